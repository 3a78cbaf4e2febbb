"""The requirements R1-R94: what a device with the VFIO migration uAPI owes its user, and who says so.

They stand in ``requirements.toml``. Files are those of Linux 7.3.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from precopy.conformance.check import Severity


@dataclass(frozen=True, slots=True)
class Requirement:
    """``source``: where it is said. ``unchecked``: what of it no check sees, and why."""

    number: int
    topic: str
    severity: Severity
    text: str
    source: str
    unchecked: str = ""

    @property
    def name(self) -> str:
        return f"R{self.number}"


_SEVERITIES = {"n": Severity.NORMATIVE, "c": Severity.CONTRACT, "q": Severity.QUALITY}


def _read() -> dict[int, Requirement]:
    path = resources.files(__package__) / "requirements.toml"
    found = {}
    for topic in tomllib.loads(path.read_text(encoding="utf-8"))["topic"]:
        for number, row in topic["requirements"].items():
            severity, text, source, *why = row
            found[int(number)] = Requirement(
                int(number), topic["name"], _SEVERITIES[severity], text, source, "".join(why)
            )
    return found


#: By number.
REQUIREMENTS: Mapping[int, Requirement] = _read()


def number_of(text: str) -> int:
    """33 of ``R33``; 0 of what is no requirement's name."""
    found = re.fullmatch(r"[Rr]([1-9][0-9]{0,3})", text)
    return int(found.group(1)) if found else 0
