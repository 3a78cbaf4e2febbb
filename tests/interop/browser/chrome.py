"""Chromium, driven: pages from files, with all that they say and ask for."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Browser, Page, sync_playwright

from precopy.lab.errors import LabError
from tests.interop.browser import chromium

Scheme = Literal["light", "dark"]

VIEW = {"width": 1280, "height": 900}


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """The Chromium of the cache. LabError where there is none."""
    tree = chromium.installed()
    if tree is None:
        raise LabError("Chromium is not in the cache: run make browser-test, which installs it")
    with sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=chromium.executable(tree),
            env=dict(chromium.environment(tree)),
            # Its sandbox refuses root, which a lab's machine often has nothing else than.
            args=["--no-sandbox"] if os.geteuid() == 0 else [],
        )
        try:
            yield started
        finally:
            started.close()


class Shown:
    """A page of a file as it is shown: ``said`` on the console, errors in it too; ``asked`` for."""

    def __init__(
        self, browser: Browser, file: Path, *, script: bool = True, scheme: Scheme = "light"
    ) -> None:
        self._context = browser.new_context(
            viewport={"width": VIEW["width"], "height": VIEW["height"]},
            java_script_enabled=script,
            color_scheme=scheme,
            offline=True,
        )
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page: Page = self._context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", self._refuse)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())

    def _refuse(self, dialog: Any) -> None:
        self.said.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function of JavaScript returns."""
        return self.page.evaluate(script, *arguments)

    def close(self) -> None:
        self._context.close()


def main(arguments: list[str]) -> int:
    """``python -m tests.interop.browser.chrome PAGE.html PICTURE.png [dark]``: a picture of a page."""
    page, picture, *rest = arguments
    scheme: Scheme = "dark" if rest == ["dark"] else "light"
    with browser() as started:
        shown = Shown(started, Path(page).resolve(), scheme=scheme)
        shown.page.screenshot(path=picture, full_page=True)
        shown.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
