"""The example of Documentation/stream/adding.rst, as it stands there, in both of the places it names."""

import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "Documentation" / "stream" / "adding.rst"

#: Runs the command with the modules of a directory among those of the tree.
IN_THE_TREE = """
import sys
from precopy.stream import formats
formats.__path__.append(sys.argv.pop(1))
from precopy.cli.main import main
main()
"""


def block(language: str) -> str:
    """The first block of the page in that language."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(f".. code-block:: {language}\n")
    lines = []
    for line in rest.splitlines()[1:]:
        if line and not line.startswith("   "):
            break
        lines.append(line)
    return textwrap.dedent("\n".join(lines)).strip() + "\n"


def acme(*queues: bytes) -> bytes:
    return struct.pack("<8sHHI", b"ACMESTAT", 1, len(queues), 5) + b"state" + b"".join(queues)


def queue(index: int, mark: bytes = b"QUEU") -> bytes:
    return struct.pack("<4sIQ", mark, index, 0x1000 * index)


@pytest.fixture(params=["in the tree", "by entry point"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """How ``precopy`` is called where the example is installed."""
    (tmp_path / "acme_format.py").write_text(block("python"), encoding="utf-8")
    if request.param == "in the tree":
        return [sys.executable, "-c", IN_THE_TREE, str(tmp_path)]
    about = tmp_path / "acme_format-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-format\nVersion: 1\n")
    section, point = block("toml").splitlines()
    assert section == '[project.entry-points."precopy.formats"]'
    (about / "entry_points.txt").write_text(f"[precopy.formats]\n{point.replace(chr(34), '')}\n")
    return [sys.executable, "-m", "precopy"]


def called(command: list[str], arguments: list[str], folder: Path) -> tuple[int, str]:
    path = os.pathsep.join([str(folder), *sys.path])
    done = subprocess.run(
        [*command, "inspect", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_the_example_is_a_format(command: list[str], tmp_path: Path) -> None:
    state = tmp_path / "acme.state"
    state.write_bytes(acme(queue(0), queue(1, b"QUEx"), queue(2)))
    status, out = called(command, [str(state)], tmp_path)
    assert status == 1
    lines = out.splitlines()
    assert "acme, state of an acme" in lines[0]
    assert "queue 0  mark=51554555  index=0  base=0x0" in lines[3]
    assert "WRONG: byte 0x25: expected the mark of a queue, QUEU, found 51554578" in lines[4]
    assert "passed over" in lines[5]
    assert "queue 2" in lines[6]
    assert lines[7] == "whole: acme, 69 B, 2 queues, initial 21 B, final 32 B, 1 wrong"


def test_a_format_that_cannot_be_loaded_is_named_and_the_others_work(tmp_path: Path) -> None:
    about = tmp_path / "acme_format-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-format\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[precopy.formats]\nacme = acme_format\n")
    (tmp_path / "acme_format.py").write_text("raise ValueError('not today')\n")
    done = subprocess.run(
        [sys.executable, "-m", "precopy", "inspect", "--formats"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert "format acme can't be loaded: ValueError: not today" in line
    assert "mlx5" in done.stdout


def test_the_example_is_short() -> None:
    assert len(block("python").splitlines()) < 60
