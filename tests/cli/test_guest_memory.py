"""What the commands tell of a guest's memory."""

import json
from pathlib import Path

from tests.cli.processes import BLANK, SMALL, listens, precopy, start

MEMORY = f"{SMALL}&memory=16M&writes=20000"


def test_a_migration_tells_of_the_memory() -> None:
    command = ("migrate", "--progress", "none", "--run-for", "0.1")
    done = precopy(*command, MEMORY, BLANK)
    assert done.status == 0, done.err
    said = " ".join(done.out.split())
    assert " 0 damaged, 0 failed, 0 of 4096 pages of memory wrong" in said


def test_the_receiver_tells_of_the_memory(tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    with start(
        *("receive", BLANK, "--listen", f"unix:{socket}", "--progress", "none", "--run-for", "0.1")
    ) as target:
        listens(target)
        done = precopy("migrate", "--json", "--progress", "none", MEMORY, f"unix:{socket}")
        assert done.status == 0, done.err
        assert json.loads(done.out)["memory_bytes"] >= 16 << 20
        out, err = target.communicate()
        assert target.returncode == 0, err
        assert out.splitlines()[-1].endswith(" received, 0 faults, 0 of 4096 pages of memory wrong")


def test_a_migration_that_fails_tells_of_it_too() -> None:
    done = precopy("migrate", "--progress", "none", MEMORY, f"{BLANK}&fault=LOAD_VHCA_STATE:1:0x3")
    assert done.status == 4
    assert done.err.endswith(" messages, 0 faults, 0 of 4096 pages of memory wrong\n")


def test_more_memory_than_there_is() -> None:
    done = precopy("migrate", f"{SMALL}&memory=1G&writes=1&fill=0", BLANK)
    assert done.status == 2
    assert done.err == (
        f"precopy: {SMALL}&memory=1G&writes=1&fill=0: writes go to pages that hold data: fill must"
        " not be 0\n"
    )
