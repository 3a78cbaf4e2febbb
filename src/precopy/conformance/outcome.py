"""What comes of a check, and of a run of many: verdicts and the exit status."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from precopy.conformance.check import Check, Severity


class Verdict(enum.Enum):
    """What is said of a device by one check."""

    PASS = "pass"
    FAIL = "fail"
    #: It says nothing about this device, or was not asked for; ``came`` says why.
    NOT_APPLICABLE = "not applicable"
    #: It did not end in its time.
    HANG = "hang"
    #: The device could not be brought to where the check begins; ``came`` says why.
    NOT_RUN = "not run"
    #: The kernel under it went down, or got stuck as a whole; ``came`` is what it said.
    KERNEL_DOWN = "kernel down"


class ConformStatus(enum.IntEnum):
    """What ``precopy conform`` exits with, beside 2 (usage) and 4 (the device can't be opened)."""

    OK = 0
    NORMATIVE = 10
    CONTRACT = 11
    QUALITY = 12
    HANG = 13
    #: Differences that are stated as known, and are no more.
    GONE = 14


@dataclass(frozen=True, slots=True)
class Known:
    """A stated difference: of a ``check`` or of a ``requirement`` (0: of the check)."""

    check: str
    requirement: int
    reason: str
    reference: str = ""
    #: What comes of the check: FAIL, or KERNEL_DOWN.
    verdict: Verdict = Verdict.FAIL
    #: The series of kernels that have it, as ``6.12``; empty: all.
    kernel: str = ""
    #: What stands in what came, where the check may fail for other reasons as well.
    came: str = ""

    @property
    def subject(self) -> str:
        return self.check or f"R{self.requirement}"

    def covers(self, check: Check) -> bool:
        return check.name == self.check or self.requirement in check.requirements

    def expects(self, result: "Result") -> bool:
        """Whether ``result``, of a check that it covers, is what was stated."""
        return result.verdict is self.verdict and self.came in result.came


@dataclass(slots=True)
class Result:
    """One check's verdict. ``what``, ``expected`` and ``came``: of a failure; ``came`` alone: why not."""

    check: Check
    verdict: Verdict
    what: str = ""
    expected: str = ""
    came: str = ""
    steps: Sequence[str] = field(default_factory=list)
    seconds: float = 0.0
    #: The stated difference that covers the failure.
    known: Known | None = None

    @property
    def is_failure(self) -> bool:
        """A failure that nobody has stated."""
        return self.known is None and self.verdict in FAILURES

    @property
    def told(self) -> str:
        """The verdict, in a word or two."""
        return "known" if self.known else self.verdict.value


#: Verdicts that are not well unless they are known.
FAILURES = frozenset(set(Verdict) - {Verdict.PASS, Verdict.NOT_APPLICABLE})

_BY_SEVERITY = {
    Severity.NORMATIVE: ConformStatus.NORMATIVE,
    Severity.CONTRACT: ConformStatus.CONTRACT,
    Severity.QUALITY: ConformStatus.QUALITY,
}


def status_of(results: Sequence[Result], gone: Sequence[Known] = ()) -> ConformStatus:
    """The worst that came: a hang, then failures by their severity, then differences that are gone."""
    failed = [each for each in results if each.is_failure]
    if any(each.verdict is not Verdict.FAIL for each in failed):
        return ConformStatus.HANG
    if failed:
        return min(_BY_SEVERITY[each.check.severity] for each in failed)
    return ConformStatus.GONE if gone else ConformStatus.OK
