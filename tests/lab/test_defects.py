"""The programs of Documentation/conformance/reproducers, on the drivers that they are about.

What they print stands beside them, and in Documentation/conformance/defects.rst. A program that prints
something else is most likely good news: then the driver was mended, and its section, and the entries of
``precopy.conformance.known`` that name it, are to be taken out.
"""

import sys
from pathlib import Path

import pytest

from precopy.lab import MTTY_UUIDS, Job, run
from precopy.lab.build import NEWEST, VERSIONS

TOP = Path(__file__).parents[2]
FOLDER = TOP / "Documentation/conformance/reproducers"

MTTY = (
    "temporary_end",
    "refused_header",
    "closed_in_stop",
    "poll_of_the_dead",
    "log_stub",
    "flipped_bit",
)
MLX5 = (
    "info_keeps_input",
    "cut_stream",
    "failed_write",
    "partial_buffer",
    "empty_range",
    "empty_image",
    "after_precopy_error",
)

KERNELS = [
    pytest.param(version, marks=[pytest.mark.older] if version != NEWEST else [])
    for version in VERSIONS
]

#: Those of Linux 6.12 alone, and the adapter of each.
OLD = {"announced_early": "mlx5?vfs=1&state=20M"}

#: Those that bring the kernel down: the function in which it falls, and the variant that tells.
CRASHES = {
    "large_record": ("mlx5vf_resume_write", "ordinary"),
    "closed_in_precopy": ("mlx5vf_cmd_query_vhca_migration_state", "ordinary"),
    "unbound": ("mlx5vf_resume_write", "debug"),
}

VF = "vfio:0000:00:01.0"
ADAPTER = "mlx5?vfs=1&state=1M"

#: Stands before what each program prints.
_MARK = "=== "


def printed(
    programs: dict[str, str], *, mtty: int = 0, adapter: str = "", version: str = ""
) -> dict[str, str]:
    """What each prints on its device, all in one boot."""
    calls = [
        f"echo '{_MARK}{name}'; {sys.executable} {FOLDER / name}.py {device} 2>&1"
        for name, device in programs.items()
    ]
    command = ["sh", "-c", "\n".join(calls)]
    result = run(Job(command, mtty=mtty, adapter=adapter, version=version, cwd=TOP))
    assert (result.trouble, result.err) == ("", "")
    parts = [each.partition("\n") for each in result.out.split(_MARK)[1:]]
    return {name: text for name, _, text in parts}


def recorded(name: str) -> str:
    return (FOLDER / f"{name}.out").read_text(encoding="utf-8")


def expect_as_recorded(found: dict[str, str]) -> None:
    other = {name: text for name, text in found.items() if text != recorded(name)}
    assert not other, (
        f"these print something else than their .out files ({', '.join(other)}): is the driver mended? "
        f"Then take out their sections in defects.rst and their entries in known/*.toml. {other}"
    )


@pytest.mark.timeout(120)
@pytest.mark.parametrize("version", KERNELS)
def test_mtty(version: str) -> None:
    devices = dict(zip(MTTY, MTTY_UUIDS, strict=False))
    found = printed(devices, mtty=len(MTTY), version=version)
    assert tuple(found) == MTTY
    expect_as_recorded(found)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("version", KERNELS)
def test_mlx5(version: str) -> None:
    found = printed(dict.fromkeys(MLX5, VF), adapter=ADAPTER, version=version)
    assert tuple(found) == MLX5
    expect_as_recorded(found)


@pytest.mark.older
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", OLD)
def test_an_older_kernel(name: str) -> None:
    expect_as_recorded(printed({name: VF}, adapter=OLD[name], version="6.12"))
    # The newest is mended.
    assert printed({name: VF}, adapter=OLD[name], version="newest")[name] != recorded(name)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", CRASHES)
def test_the_kernel_falls(name: str) -> None:
    function, variant = CRASHES[name]
    command = [sys.executable, str(FOLDER / f"{name}.py"), VF]
    result = run(Job(command, adapter=ADAPTER, cwd=TOP, memory="256M", variant=variant))
    assert result.trouble.startswith(("Kernel panic", "BUG: KASAN")), (
        f"{name} brings the kernel down no more ({result.out or result.err}): is the driver mended? "
        "Then take out its section in defects.rst"
    )
    assert f"{function}+" in result.kernel_log


def test_all_of_them_are_run_and_told() -> None:
    found = {path.stem for path in FOLDER.glob("*.py")}
    assert found == {*MTTY, *MLX5, *OLD, *CRASHES}
    text = (FOLDER.parent / "defects.rst").read_text(encoding="utf-8")
    assert all(f"reproducers/{name}.py" in text for name in found)
