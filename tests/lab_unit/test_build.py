"""Kernels in the cache: when one is built, when not, and what is left of a build that fails.

The compiler is a fake; that a kernel comes out of the real one is seen by the tests in tests/lab.
"""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from precopy.cli.main import main
from precopy.lab import Job, LabError
from precopy.lab.build import VARIANTS, VERSIONS, build, built, fragment, lacking, notes
from precopy.lab.machine import ready
from tests.lab_unit.tools import goals

COMPILED = ["mrproper", "allnoconfig", "olddefconfig", "linux"]


def silent(text: str) -> None:
    pass


def build_tree(
    tree: Path,
    variants: Sequence[str] = ("ordinary",),
    options: str | None = None,
    version: str = "newest",
) -> list[Path]:
    return build(silent, variants=variants, version=version, source=tree, options=options)


def test_a_kernel_and_what_belongs_to_it(tree: Path) -> None:
    assert built() is None
    (kernel,) = build_tree(tree)
    assert built() == kernel
    assert "CONFIG_MLX5_VFIO_PCI=y\n" in kernel.read_text()
    assert sorted(each.name for each in notes(kernel).iterdir()) == [
        *("System.map", "cmd.c", "cmd.gcno", "main.c", "main.gcno"),
    ]


def test_one_that_is_there_is_not_built_again(tree: Path, environment: dict[str, str]) -> None:
    first = build_tree(tree)
    assert build_tree(tree) == first
    assert goals(environment) == COMPILED


def test_a_change_in_the_source_gives_another_kernel(
    tree: Path, environment: dict[str, str]
) -> None:
    first = build_tree(tree)
    file = tree / "drivers/vfio/pci/mlx5/cmd.c"
    file.write_text("/* changed */\n")
    later = file.stat().st_mtime_ns + 1
    os.utime(file, ns=(later, later))
    second = build_tree(tree)
    assert first != second
    assert built() == second[0]
    assert (notes(second[0]) / "cmd.c").read_text() == "/* changed */\n"
    assert first[0].exists()


def test_variants_are_built_from_one_tree_and_stand_beside_each_other(
    tree: Path, environment: dict[str, str]
) -> None:
    ordinary, debug = build_tree(tree, ("ordinary", "debug"))
    assert goals(environment) == [*COMPILED, *COMPILED[1:]]
    assert (built("ordinary"), built("debug")) == (ordinary, debug)
    assert "CONFIG_PROVE_LOCKING=y\n" in debug.read_text()
    assert "CONFIG_PROVE_LOCKING=y\n" not in ordinary.read_text()


def test_versions_stand_beside_each_other(tree: Path) -> None:
    (newest,) = build_tree(tree)
    old, old_debug = build_tree(tree, ("ordinary", "debug"), version="6.12")
    assert (built(), built("ordinary", "6.12"), built("debug", "6.12")) == (newest, old, old_debug)
    assert built("debug") is None
    # What 6.12 wants otherwise.
    assert "CONFIG_UML_NET=y\n" in old.read_text()
    assert "CONFIG_UML_NET=y\n" not in newest.read_text()
    assert "# CONFIG_GCOV_KERNEL is not set\n" in old.read_text()


def test_the_source_is_left_as_it_was(tree: Path) -> None:
    before = sorted(tree.rglob("*"))
    build_tree(tree)
    assert sorted(tree.rglob("*")) == before


def test_an_option_on_top_wins(tree: Path) -> None:
    (kernel,) = build_tree(tree, options="# CONFIG_SYSVIPC is not set\nCONFIG_BLOCK=y\n")
    assert "# CONFIG_SYSVIPC is not set\n" in kernel.read_text()
    assert "CONFIG_BLOCK=y\n" in kernel.read_text()


def test_an_option_that_the_source_does_not_take(tree: Path) -> None:
    (tree / "refuses").write_text("CONFIG_MLX5_VFIO_PCI")
    with pytest.raises(LabError, match=r"does not take CONFIG_MLX5_VFIO_PCI=y$"):
        build_tree(tree)
    assert built() is None


def test_a_build_that_fails_leaves_its_log_and_no_kernel(tree: Path, tmp_path: Path) -> None:
    (tree / "broken").touch()
    with pytest.raises(LabError, match="does not compile: see ") as raised:
        build_tree(tree)
    log = Path(str(raised.value).partition(": see ")[2])
    assert "expected declaration" in log.read_text()
    assert {each.name for each in (tmp_path / "cache").iterdir()} == {"lock", log.name}
    (tree / "broken").unlink()
    assert build_tree(tree)[0].exists()


def test_what_an_interrupted_build_has_left_is_replaced(tree: Path) -> None:
    (kernel,) = build_tree(tree)
    kernel.unlink()
    (notes(kernel) / "main.gcno").write_text("of another compilation")
    assert build_tree(tree) == [kernel]
    assert (notes(kernel) / "main.gcno").read_text() == "notes of main"


def test_what_is_no_source(tmp_path: Path, environment: dict[str, str]) -> None:
    with pytest.raises(LabError, match=f"{tmp_path} is no kernel source tree"):
        build_tree(tmp_path)
    with pytest.raises(LabError, match=r"nothing: no such kernel source"):
        build_tree(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("wanted", "config", "expected"),
    [
        ("CONFIG_A=y\n", "CONFIG_A=y\n", []),
        ("CONFIG_A=y\n", "# CONFIG_A is not set\n", ["CONFIG_A=y"]),
        ("CONFIG_A=y\n", "", ["CONFIG_A=y"]),
        ("# CONFIG_A is not set\n", "", []),
        ("# CONFIG_A is not set\n", "CONFIG_A=m\n", ["# CONFIG_A is not set"]),
        ("CONFIG_A=y\n# CONFIG_A is not set\n", "", []),
        ("# CONFIG_A is not set\nCONFIG_A=5\n", "CONFIG_A=4\n", ["CONFIG_A=5"]),
        ("# a remark\n\n", "", []),
        ("A=y\n", "CONFIG_A=y\n", ["A=y"]),
    ],
)
def test_which_options_are_lacking(wanted: str, config: str, expected: list[str]) -> None:
    assert lacking(wanted, config) == expected


def test_options_stand_once() -> None:
    for variant, version in itertools.product(VARIANTS, VERSIONS):
        text = fragment(variant, version)
        lines = [line for line in text.splitlines() if line.startswith("CONFIG_")]
        assert len(lines) == len(set(lines)) == len({line.partition("=")[0] for line in lines})


def test_there_is_no_such_variant() -> None:
    with pytest.raises(LabError, match="no kernel variant 'fast': write ordinary or debug"):
        fragment("fast")
    with pytest.raises(LabError, match=r"no kernel version '2.4': write newest or 6.12"):
        fragment("ordinary", "2.4")


def test_the_command(tree: Path, environment: dict[str, str]) -> None:
    arguments = ["lab", "build", "--source", str(tree), "--variant", "debug"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0
    assert done.stdout == f"{built('debug')}\n"
    assert built() is None


# --- Which kernel a job gets ----------------------------------------------------------------------


def test_a_job_has_the_kernel_that_it_names(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary, debug = build_tree(tree, ("ordinary", "debug"))
    assert ready(Job(["true"])) == ordinary
    assert ready(Job(["true"], variant="debug")) == debug
    monkeypatch.setenv("PRECOPY_LAB_VARIANT", "debug")
    assert ready(Job(["true"])) == debug
    assert ready(Job(["true"], variant="ordinary")) == ordinary


def test_a_job_has_the_version_that_it_names(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (newest,) = build_tree(tree)
    (old,) = build_tree(tree, version="6.12")
    assert ready(Job(["true"])) == newest
    assert ready(Job(["true"], version="6.12")) == old
    monkeypatch.setenv("PRECOPY_LAB_KERNEL", "6.12")
    assert ready(Job(["true"])) == old
    assert ready(Job(["true"], version="newest")) == newest


@pytest.mark.parametrize(
    ("variant", "version", "text"),
    [
        ("", "", "no kernel has been built yet: run precopy lab build$"),
        ("debug", "", "no debug kernel has been built yet: run precopy lab build --variant debug$"),
        (
            *("debug", "6.12"),
            "no 6.12 debug kernel .* run precopy lab build --kernel 6.12 --variant debug$",
        ),
        ("fast", "", "there is no kernel variant 'fast'"),
        ("", "2.4", "there is no kernel version '2.4'"),
    ],
)
def test_a_job_without_a_kernel(
    environment: dict[str, str], variant: str, version: str, text: str
) -> None:
    with pytest.raises(LabError, match=text):
        ready(Job(["true"], variant=variant, version=version))
