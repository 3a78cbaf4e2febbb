"""A cache of its own, fake tools, and a source tree, for each test."""

from pathlib import Path

import pytest

from precopy.lab.build import COVERED, COVERED_DIRECTORY
from tests.lab_unit import tools


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of this process, and of its children, for one test."""
    found = {**tools.install(tmp_path / "bin"), "PRECOPY_CACHE": str(tmp_path / "cache")}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    for name in ("PRECOPY_LAB_VARIANT", "PRECOPY_LAB_KERNEL", "PRECOPY_LAB_COVERAGE"):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.fixture
def tree(tmp_path: Path, environment: dict[str, str]) -> Path:
    """As little of a kernel's source as a build touches."""
    tree = tmp_path / "linux-source"
    driver = tree / COVERED_DIRECTORY
    driver.mkdir(parents=True)
    (tree / "Kconfig").touch()
    for name in COVERED:
        (driver / f"{name}.c").write_text(
            f"/* {name} */\nint {name}(int a)\n{{\n\tif (a)\n\t\tgoto out;\n}}\n"
        )
    return tree
