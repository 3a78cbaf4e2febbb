"""Debian's Chromium beside the host's packages, to look at pages with.

``python -m tests.interop.browser.chromium`` unpacks it, with every library that it needs, into the
lab's cache; the host is given nothing. It comes from the host's own release: Chromium starts itself
again for each of its processes, which only the host's own loader does.
"""

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from precopy.lab import packages
from precopy.lab.errors import LabError
from precopy.lab.packages import Packages, tree_name
from precopy.lab.source import Say, run

PACKAGE = "chromium"

#: Without any there would be no text.
_FONTS = "fonts-dejavu-core"

_LIBRARIES = (
    "usr/lib/x86_64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/pulseaudio",
)

#: Parts of the host's C library, which has to be the one of its loader.
_HOSTS = "libc6_*.deb"

_FAILED = 4


def executable(tree: Path) -> Path:
    return tree / "usr/lib/chromium/chromium"


def environment(tree: Path) -> Mapping[str, str]:
    """What Chromium needs to find its libraries and fonts in ``tree``."""
    return {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(str(tree / each) for each in _LIBRARIES),
        "FONTCONFIG_FILE": str(tree / "fonts.conf"),
    }


def installed() -> Path | None:
    """The tree of the Chromium installed last, or None."""
    return packages.installed("chromium")


def install(say: Say) -> Path:
    """The tree of Chromium, from Debian unless the cache has one.

    LabError where this is no Debian, or its mirror does not answer.
    """
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")

    def fetch(debian: Packages) -> Path:
        debian.update(say, (suite,))
        version = debian.versions(PACKAGE, (suite,))[suite]
        tree = debian.cache / tree_name("chromium", version)
        if not tree.exists():
            say(f"downloading Chromium and its libraries from {suite}")
            debian.download_with_needs(PACKAGE, (suite,))
            debian.download_with_needs(_FONTS, (suite,))
            for package in (debian.work / "debs").glob(_HOSTS):
                package.unlink()
            unpacked = debian.unpack(say)
            _name_fonts(unpacked, tree)
            run(
                ["env", "-i", *_assignments(unpacked), str(executable(unpacked)), "--version"],
            )
            unpacked.rename(tree)
        return tree

    return packages.install("chromium", "Chromium", fetch, say)


def _assignments(tree: Path) -> list[str]:
    return [f"{name}={value}" for name, value in environment(tree).items()]


def _name_fonts(unpacked: Path, tree: Path) -> None:
    """Fonts of the tree, where it will stand, and a cache of them in it."""
    (unpacked / "fonts.conf").write_text(
        '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">\n'
        f"<fontconfig><dir>{tree}/usr/share/fonts</dir><cachedir>{tree}/cache</cachedir>"
        "</fontconfig>\n"
    )


def main() -> int:
    """Prints where Chromium is. Exit status 4, with a line that says why, without one."""

    def say(text: str) -> None:
        print(f"precopy: lab: {text}", file=sys.stderr, flush=True)

    try:
        print(install(say))
    except LabError as error:
        say(str(error))
        return _FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
