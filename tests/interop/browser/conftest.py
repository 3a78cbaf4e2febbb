"""One browser, and one migration between two processes, for all tests of pages."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from precopy.engine.timeline import Timeline
from precopy.engine.timeline.page import page
from precopy.engine.timeline.perfetto import read
from precopy.lab.errors import LabError
from tests.engine.timeline.conftest import hostile_timeline
from tests.interop.browser import chrome
from tests.interop.browser.chrome import Scheme, Shown

SOURCE = "sim:mlx5?qps=64&active=8&state=16M&memory=16M"


@dataclass
class Moved:
    """A migration's page, its trace, and what has to be in them."""

    file: Path
    trace: Path
    timeline: Timeline


@pytest.fixture(scope="session")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Moved:
    directory = tmp_path_factory.mktemp("moved")
    trace, file = directory / "t.json", directory / "t.html"
    files = ("--timeline", str(trace), "--timeline", str(file))
    command = [sys.executable, "-m", "precopy", "migrate", "--min-rounds", "2", *files]
    command += ["--progress", "none", "--run-for", "0.1", SOURCE, "sim:mlx5"]
    subprocess.run(command, check=True, capture_output=True, timeout=90)
    return Moved(file, trace, read(trace))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    try:
        with chrome.browser() as started:
            yield started
    except LabError as error:
        pytest.exit(f"precopy: {error}", returncode=1)


Show = Callable[..., Shown]


@pytest.fixture
def show(browser: Browser) -> Iterator[Show]:
    """Shows a file. By the end of the test nothing was said on its console, and nothing asked for."""
    all_shown: list[Shown] = []

    def shown(file: Path, *, script: bool = True, scheme: Scheme = "light") -> Shown:
        all_shown.append(Shown(browser, file, script=script, scheme=scheme))
        return all_shown[-1]

    yield shown
    for each in all_shown:
        each.close()
        assert not each.said
        assert {url.partition(":")[0] for url in each.asked} == {"file"}
        assert len(each.asked) == 1


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """The page of a migration whose every text is an attack."""
    file = tmp_path / "hostile.html"
    file.write_text(page(hostile_timeline()))
    return file
