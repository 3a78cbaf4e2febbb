"""Counters of many boots, added up, and what is said of lines that none of them ran.

gcov is a fake that prints what a file of counters holds; the real one is asked in tests/lab.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from precopy.cli.main import main
from precopy.lab import LabError
from precopy.lab.build import COVERED_DIRECTORY, build
from precopy.lab.coverage import Coverage, Line, Reason, clear, keep, measure, reasons, report


@pytest.fixture
def kernel(tree: Path) -> Path:
    (kernel,) = build(lambda text: None, source=tree)
    return kernel


def counted(name: str, counts: Mapping[int, int]) -> str:
    """What gcov has to say of a file: times by line; a header that is to be left out."""
    lines = [
        {"line_number": number, "count": count, "function_name": name}
        for number, count in counts.items()
    ]
    files = [
        {"file": f"/build/linux/{COVERED_DIRECTORY}/{name}.c", "lines": lines},
        {"file": "/build/linux/drivers/net/ethernet/mellanox/mlx5/core/main.c", "lines": lines},
        {"file": "/build/linux/include/linux/err.h", "lines": lines},
        {"file": f"/build/linux/{COVERED_DIRECTORY}/cmd.h", "lines": lines},
    ]
    return json.dumps({"files": files})


def boot(tmp_path: Path, kernel: Path, main: Mapping[int, int], cmd: Mapping[int, int]) -> None:
    """One boot of ``kernel`` that counted this much."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    (scratch / "main.gcda").write_text(counted("main", main))
    (scratch / "cmd.gcda").write_text(counted("cmd", cmd))
    keep(scratch, kernel, tmp_path / "counters")


def test_boots_add_up(tmp_path: Path, kernel: Path) -> None:
    boot(tmp_path, kernel, {2: 1, 4: 1, 5: 0}, {2: 3, 4: 3, 5: 0})
    boot(tmp_path, kernel, {2: 2, 4: 2, 5: 0}, {2: 1, 4: 1, 5: 1})
    found = measure(tmp_path / "counters")
    assert found.boots == 2
    assert [(line.file, line.number, line.text, line.count) for line in found.lines] == [
        ("cmd.c", 2, "int cmd(int a)", 4),
        ("cmd.c", 4, "if (a)", 4),
        ("cmd.c", 5, "goto out;", 1),
        ("main.c", 2, "int main(int a)", 3),
        ("main.c", 4, "if (a)", 3),
        ("main.c", 5, "goto out;", 0),
    ]
    assert found.percent() == pytest.approx(100 * 5 / 6)
    assert found.percent("cmd.c") == 100
    assert found.percent("main.c") == pytest.approx(200 / 3)
    assert [(line.file, line.number) for line in found.missed()] == [("main.c", 5)]


def test_a_boot_that_counted_nothing_leaves_nothing(tmp_path: Path, kernel: Path) -> None:
    keep(tmp_path / "nowhere", kernel, tmp_path / "counters")
    assert not (tmp_path / "counters").exists()
    with pytest.raises(LabError, match=f"counters holds no counters of {kernel.name}"):
        measure(tmp_path / "counters")


def test_without_a_kernel(tmp_path: Path, environment: dict[str, str]) -> None:
    with pytest.raises(LabError, match="no kernel that counts has been built yet"):
        measure(tmp_path)


def test_counters_of_another_kernel_do_not_count(tmp_path: Path, kernel: Path) -> None:
    boot(tmp_path, kernel.with_name("linux-0000"), {2: 1}, {2: 1})
    with pytest.raises(LabError, match=f"counters holds no counters of {kernel.name}"):
        measure(tmp_path / "counters")


def test_counters_that_gcov_can_not_read(tmp_path: Path, kernel: Path) -> None:
    boot(tmp_path, kernel, {2: 1}, {2: 1})
    for file in (tmp_path / "counters").rglob("main.gcda"):
        file.write_text("main.gcda: stamp mismatch with notes file")
    with pytest.raises(LabError, match="gcov can't read the kernel's counters"):
        measure(tmp_path / "counters")


def test_gcov_is_not_there(tmp_path: Path, kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot(tmp_path, kernel, {2: 1}, {2: 1})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="gcov is not installed"):
        measure(tmp_path / "counters")


def test_clearing_takes_counters_and_nothing_else(tmp_path: Path, kernel: Path) -> None:
    boot(tmp_path, kernel, {2: 1}, {2: 1})
    (tmp_path / "counters/mine").touch()
    clear(tmp_path / "counters")
    assert [each.name for each in (tmp_path / "counters").iterdir()] == ["mine"]


# --- Reasons --------------------------------------------------------------------------------------

LINES = (
    Line("cmd.c", 10, "save", "int save(void)", 5),
    Line("cmd.c", 12, "save", "if (!page)", 5),
    Line("cmd.c", 13, "save", "return -ENOMEM;", 0),
    Line("cmd.c", 20, "load", "return -ENOMEM;", 0),
    Line("main.c", 5, "shut", "int shut(void)", 0),
    Line("main.c", 6, "shut", "return 0;", 0),
)
NO_MEMORY = Reason("cmd.c", "save", "-ENOMEM", "no memory")
NEVER_SHUT = Reason("main.c", "shut", "", "never shut")
RUN = Reason("cmd.c", "save", "!page", "said to be impossible")


def test_lines_have_reasons_by_function_and_text() -> None:
    found = Coverage(LINES, 1, (NO_MEMORY, NEVER_SHUT))
    why = {(line.file, line.number): found.why(line) for line in found.missed()}
    assert why == {
        ("cmd.c", 13): "no memory",
        ("cmd.c", 20): "",
        ("main.c", 5): "never shut",
        ("main.c", 6): "never shut",
    }
    assert found.stale() == []


def test_a_reason_for_what_has_been_run_is_told() -> None:
    found = Coverage(LINES, 1, (NO_MEMORY, RUN))
    assert found.stale() == [RUN]
    assert report(found)[-1] == "No line is left to this reason: cmd.c: save: !page"


def test_the_report() -> None:
    assert report(Coverage(LINES, 3, (NO_MEMORY, NEVER_SHUT))) == [
        "3 boots",
        "main.c: 0.0 % of 2 lines, 2 never run, 0 of them without a reason",
        "cmd.c: 50.0 % of 4 lines, 2 never run, 1 of them without a reason",
        "both: 33.3 % of 6 lines, 4 never run, 1 of them without a reason",
        "",
        "Never run, and no reason is known:",
        "  cmd.c: load",
        "       20 return -ENOMEM;",
        "",
        "never shut",
        "  main.c: shut",
        "        5 int shut(void)",
        "        6 return 0;",
        "",
        "no memory",
        "  cmd.c: save",
        "       13 return -ENOMEM;",
    ]


def test_the_table_can_be_read() -> None:
    table = reasons()
    assert len(table) == len({(each.file, each.function, each.snippet) for each in table})
    assert all(each.file in ("main.c", "cmd.c") and each.function for each in table)


# --- The command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status"), [([], 0), (["--least", "83"], 0), (["--least", "84"], 4)]
)
def test_the_command(
    tmp_path: Path,
    kernel: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
) -> None:
    boot(tmp_path, kernel, {2: 1, 4: 1, 5: 0}, {2: 1, 4: 1, 5: 1})
    monkeypatch.setenv("PRECOPY_LAB_COVERAGE", str(tmp_path / "counters"))
    done = CliRunner().invoke(main, ["lab", "coverage", *arguments])
    assert done.exit_code == status
    assert "both: 83.3 % of 6 lines" in done.stdout
    assert ("less than 84" in done.stderr) is bool(status)
    done = CliRunner().invoke(main, ["lab", "coverage", "--clear"])
    assert (done.exit_code, done.output) == (0, "")
    done = CliRunner().invoke(main, ["lab", "coverage"])
    assert done.exit_code == 4
    assert done.stderr.count("\n") == 1
