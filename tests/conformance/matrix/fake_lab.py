"""A lab whose kernels do what the name of a check says: a place to run checks in that is no kernel."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from precopy.conformance.check import Check
from precopy.conformance.matrix.inside import MARK, dump
from precopy.conformance.matrix.targets import Kernel, Target
from precopy.conformance.outcome import Result, Verdict
from precopy.lab import Result as Ended
from tests.conformance.made_up import made

SPLAT = "WARNING: drivers/some.c:12 at probe+0x1, CPU#0: init/1"
PANIC = "Kernel panic - not syncing: Kernel mode fault at addr 0x0"

#: What a check's name begins with, and what comes of it.
VERDICTS = {
    "pass": Verdict.PASS,
    "warn": Verdict.PASS,
    "fail": Verdict.FAIL,
    "hang": Verdict.HANG,
    "spoilt": Verdict.NOT_RUN,
}


def checks(*names: str, dangerous: str = "dangerous") -> list[Check]:
    """Checks of these names; those that begin with ``dangerous`` are."""
    return [made(name=name, dangerous=name.startswith(dangerous)) for name in names]


@dataclass(slots=True)
class FakeLab:
    """``down-...``: a panic; ``killed-...``: the program is ended; ``stuck-...``: silence; ``spoilt-...``: not run, but in a new kernel;
    ``warn-...``: passes, and the kernel complains; others by :data:`VERDICTS`, else they pass."""

    release: str = "7.3.4"
    refused: str = ""
    #: What the kernel says when it comes up.
    boot: str = "booting"
    #: What the program's standard error has when it does not even begin.
    broken: str = ""
    #: Each boot: the kernel, and the checks that it was asked to run.
    boots: list[tuple[str, list[str]]] = field(default_factory=list)

    def __call__(
        self,
        target: Target,
        kernel: Kernel | None,
        names: Sequence[str],
        hear: Callable[[str], object],
    ) -> Ended:
        self.boots.append((kernel.name if kernel else "", list(names)))
        if self.broken:
            return Ended(1, "", self.broken, "", "")
        if self.refused:
            _say(hear, refused=self.refused)
            return Ended(0, "", "", "", "")
        _say(hear, about=f"who {target.name} is", release=self.release)
        log = f"{self.boot}\n"
        for at, name in enumerate(names):
            log += f"{MARK}{name}\n"
            _say(hear, alive=True)
            _say(hear, begun=name)
            kind = name.split("-")[-2]
            if kind == "down":
                # Cut in the middle of a line.
                hear('{"result": {"chec')
                return Ended(125, "", "", f"{log}{PANIC}\n", PANIC)
            if kind == "killed":
                log += "Out of memory: Killed process 77 (python3) total-vm:5kB\n"
                return Ended(137, "", "", log, "")
            if kind == "stuck":
                return Ended(124, "", "", log, "silent for 30 s: it runs in some_function")
            if kind == "warn":
                log += f"{SPLAT}\n"
            verdict = VERDICTS.get(kind, Verdict.PASS)
            if kind == "spoilt" and at == 0:
                verdict = Verdict.PASS
            failed = verdict not in (Verdict.PASS, Verdict.NOT_RUN)
            what = ("the state", "RUNNING", "STOP") if failed else ("", "", "")
            result = Result(made(name=name), verdict, *what)
            _say(hear, result=dump(result))
            if verdict in (Verdict.HANG, Verdict.NOT_RUN):
                break
        return Ended(0, "", "", log, "")


def _say(hear: Callable[[str], object], **told: object) -> None:
    """As output comes: in pieces that are no lines."""
    text = json.dumps(told) + "\n"
    hear(text[:7])
    hear(text[7:])
