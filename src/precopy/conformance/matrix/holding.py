"""All checks of one target, in as many kernels as it takes.

A kernel that goes down is the verdict of the check that was under way; what is left goes on in
another. Dangerous checks have a kernel each, of the debug variant.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from precopy import lab
from precopy.conformance import known
from precopy.conformance.check import Check
from precopy.conformance.matrix.inside import MARK, parse
from precopy.conformance.matrix.places import Place, somewhere
from precopy.conformance.matrix.targets import Kernel, Target
from precopy.conformance.outcome import ConformStatus, Known, Result, Verdict, status_of
from precopy.lab import console

#: So many kernels of one target may go down; what is left then is not run.
MOST_DOWN = 20

_DEBUG = "debug"

#: How a kernel tells that it has ended a program, for want of memory.
_KILLED = re.compile(r"Out of memory: Killed process \d+ \([^)]*\)")

_MARK = re.compile(rf"^.*{re.escape(MARK)}(\S+)$", re.MULTILINE)


@dataclass(slots=True)
class Held:
    """What came of a target. ``kernel``: None where it needs none."""

    target: Target
    kernel: Kernel | None
    results: list[Result] = field(default_factory=list)
    #: Known differences that are not seen here; another mix may have them (see ``ledger.gone``).
    gone: list[Known] = field(default_factory=list)
    #: Who the device is; the kernel's release; why the driver offers no migration, where so.
    about: str = ""
    release: str = ""
    refused: str = ""

    @property
    def surprise(self) -> str:
        """What is wrong with the target as a whole, in a line; empty where nothing is."""
        if self.target.migrates or self.refused or not self.about:
            return ""
        return "its driver offers migration without what it needs for that"

    @property
    def status(self) -> ConformStatus:
        """The worst that came."""
        return ConformStatus.NORMATIVE if self.surprise else status_of(self.results)


@dataclass(slots=True)
class _Heard:
    """The output of the program of ``inside``, line by line."""

    checks: Mapping[str, Check]
    results: list[Result] = field(default_factory=list)
    begun: str = ""
    about: str = ""
    release: str = ""
    refused: str = ""
    _rest: str = ""

    def hear(self, text: str) -> None:
        """More of it. What is no line of the program's is left alone."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            try:
                told = json.loads(line)
                self._take(told)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    def _take(self, told: dict[str, str]) -> None:
        if "begun" in told:
            self.begun = told["begun"]
        elif "result" in told:
            self.results.append(parse(told["result"], self.checks))  # type: ignore[arg-type]
            self.begun = ""
        elif "about" in told:
            self.about, self.release = told["about"], told["release"]
        elif "refused" in told:
            self.refused = told["refused"]


def hold(
    target: Target, kernel: Kernel | None, checks: Sequence[Check], place: Place = somewhere
) -> Held:
    """Every one of ``checks`` on ``target``. LabError where a kernel is not there."""
    held = Held(target, kernel)
    left = [each for each in checks if not (kernel and each.dangerous)]
    while left and not held.refused:
        left = _some(held, kernel, left, place)
    for each in checks:
        if kernel and each.dangerous and not held.refused:
            _some(held, Kernel(kernel.version, _DEBUG), [each], place)
    _account(held, checks)
    if target.known:
        stated = known.of_kernel(known.load(Path(target.known)), held.release)
        held.gone = known.apply(held.results, stated)
    return held


def _account(held: Held, checks: Sequence[Check]) -> None:
    """A verdict for what has none, and all in their order."""
    if held.refused:
        expected = not held.target.migrates
        verdict = Verdict.NOT_APPLICABLE if expected else Verdict.NOT_RUN
        came = f"the driver offers no migration: {held.refused}"
        held.results = [Result(each, verdict, came=came) for each in checks]
    order = [each.name for each in checks]
    held.results.sort(key=lambda each: order.index(each.check.name))


def _some(held: Held, kernel: Kernel | None, left: Sequence[Check], place: Place) -> list[Check]:
    """Run ``left`` in a new kernel, as far as it goes; what is left then, at least one less."""
    by_name = {each.name: each for each in left}
    heard = _Heard(by_name)
    ended = place(held.target, kernel, list(by_name), heard.hear)
    held.about, held.release = held.about or heard.about, held.release or heard.release
    held.refused = heard.refused
    found = heard.results
    if len(found) > 1 and found[-1].verdict is Verdict.NOT_RUN:
        # What an earlier check has done to the device: another kernel has it as new.
        found.pop()
    _complain(found, ended)
    if heard.begun in by_name:
        found.append(_down(by_name[heard.begun], kernel, ended))
    if not heard.refused and not found:
        # Not even the first one.
        found = [Result(each, Verdict.NOT_RUN, came=_last_words(ended)) for each in left]
    held.results += found
    done = {each.check.name for each in found}
    rest = [each for name, each in by_name.items() if name not in done]
    if rest and found and found[-1].verdict is Verdict.NOT_RUN:
        held.results += [Result(each, Verdict.NOT_RUN, came=found[-1].came) for each in rest]
        return []
    downs = sum(each.verdict is Verdict.KERNEL_DOWN for each in held.results)
    if rest and downs >= MOST_DOWN:
        came = f"{downs} kernels have gone down"
        held.results += [Result(each, Verdict.NOT_RUN, came=came) for each in rest]
        return []
    return rest


def _down(check: Check, kernel: Kernel | None, ended: lab.Result) -> Result:
    # Without trouble the kernel is up, and what ran in it was ended.
    died = Verdict.KERNEL_DOWN if kernel else Verdict.HANG
    verdict = died if ended.trouble else Verdict.FAIL
    return Result(check, verdict, "the check as a whole", "an end", _last_words(ended))


def _last_words(ended: lab.Result) -> str:
    if ended.trouble:
        return ended.trouble
    killed = _KILLED.findall(ended.kernel_log)
    said = ended.err.strip().splitlines()
    return (killed or said or [f"nothing but status {ended.status}"])[-1]


def _complain(results: Sequence[Result], ended: lab.Result) -> None:
    """Let what the kernel complained of while a check ran be the check's failure.

    What it complained of before, while it came up, is that of the first.
    """
    parts = _MARK.split(ended.kernel_log)
    said = {name: console.trouble(log) for name, log in zip(parts[1::2], parts[2::2], strict=True)}
    early = console.trouble(parts[0])
    for at, each in enumerate(results):
        trouble = (early if at == 0 else "") or said.get(each.check.name)
        if not trouble:
            continue
        if each.verdict is Verdict.PASS:
            each.verdict, each.what = Verdict.FAIL, "the kernel's log"
            each.expected, each.came = "no complaint", trouble
        else:
            each.came = f"{each.came}; the kernel's log: {trouble}"
