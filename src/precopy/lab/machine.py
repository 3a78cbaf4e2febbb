"""A running lab kernel: a command in it, over the host's file system, which it can't change."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from precopy.lab import card, console, coverage, watchdog
from precopy.lab.build import NEWEST, ORDINARY, built, fragment, notes
from precopy.lab.card import Card
from precopy.lab.errors import LabError
from precopy.lab.link import Link, pair

#: The UUIDs of the mtty devices that a machine is given, in order.
MTTY_UUIDS = tuple(f"83b8f4f2-509f-382f-3c1e-e6bfe0fa10{n:02x}" for n in range(1, 9))

#: Exit status of a command that did not end in time, as coreutils' timeout has it.
TIMED_OUT = 124

#: The kernel of a job that names none, where these say one.
VARIANT = "PRECOPY_LAB_VARIANT"
VERSION = "PRECOPY_LAB_KERNEL"

#: Seconds between two looks at the output of a running command.
_LOOK = 0.05

#: Seconds to shut down in, when the command is done; twice what init waits for (see ``init``).
_SHUTDOWN = 20.0


@dataclass(frozen=True, slots=True)
class Result:
    """What a command in the lab left: ``trouble`` is a line of the kernel's own, empty if none."""

    status: int
    out: str
    err: str
    kernel_log: str
    trouble: str


@dataclass(frozen=True, slots=True)
class Job:
    """A command for a machine. ``mtty``: how many devices; ``writable``: directories of the host."""

    command: Sequence[str]
    mtty: int = 0
    #: The software ConnectX in its PCI slots, as ``mlx5?vfs=2`` (see ``card``); empty: none.
    adapter: str = ""
    memory: str = "512M"
    timeout: float = 120.0
    #: Seconds without output after which it counts as hanging, too; 0: it may be silent for long.
    silence: float = 0.0
    writable: Sequence[Path] = ()
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    #: More for the kernel's command line.
    arguments: Sequence[str] = ()
    #: The kernel, as ``debug``; empty: the one of $PRECOPY_LAB_VARIANT, else the ordinary one.
    variant: str = ""
    #: Its version, as ``6.12``; empty: that of $PRECOPY_LAB_KERNEL, else the newest.
    version: str = ""
    #: Where the counters of what the driver has run go (see ``coverage``); None: to the directory of
    #: $PRECOPY_LAB_COVERAGE, if there is one.
    coverage: Path | None = None
    #: False: it is ended when the command is done, for its drivers would wait for ever.
    shutdown: bool = True


def _variant(job: Job) -> str:
    return job.variant or os.environ.get(VARIANT) or ORDINARY


def _version(job: Job) -> str:
    return job.version or os.environ.get(VERSION) or NEWEST


def ready(job: Job) -> Path:
    """The kernel to boot. LabError where there is none, or ``job`` asks for what it can't have."""
    variant, version = _variant(job), _version(job)
    # There may be no such kernel.
    fragment(variant, version)
    kernel = built(variant, version)
    if kernel is None:
        name, option = "", ""
        if version != NEWEST:
            name, option = f"{version} ", f" --kernel {version}"
        if variant != ORDINARY:
            name, option = f"{name}{variant} ", f"{option} --variant {variant}"
        raise LabError(f"no {name}kernel has been built yet: run precopy lab build{option}")
    if not 0 <= job.mtty <= len(MTTY_UUIDS):
        raise LabError(f"a machine has 0 to {len(MTTY_UUIDS)} mtty devices, not {job.mtty}")
    if not re.fullmatch(r"\d+[MG]", job.memory):
        raise LabError(f"memory {job.memory!r}: write 512M or 2G")
    if job.adapter:
        card.parse(job.adapter)
    for path in job.writable:
        if not path.is_dir():
            raise LabError(f"{path} is no directory that could be made writable")
    return kernel


class Machine:
    """One kernel, at an end of a cable if ``link`` is given. LabError as :func:`ready` raises it."""

    def __init__(
        self,
        job: Job,
        *,
        link: Link | None = None,
        prepare: Callable[[Card], object] | None = None,
    ) -> None:
        self._kernel = ready(job)
        self._job = job
        self._began = time.monotonic()
        self._scratch = Path(tempfile.mkdtemp(prefix="precopy-lab-"))
        self._read = {"out": 0, "err": 0}
        #: The adapter that is in it, for who wants to watch or to disturb it.
        self.card: Card | None = None
        try:
            if job.adapter:
                self.card = Card(job.adapter, self._scratch)
                if prepare is not None:
                    prepare(self.card)
            self._process = self._boot(self._kernel, link)
        except BaseException:
            self._remove_card()
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise

    def _remove_card(self) -> None:
        if self.card is not None:
            self.card.close()

    def _boot(self, kernel: Path, link: Link | None) -> "subprocess.Popen[bytes]":
        here, job = self._scratch, self._job
        text = resources.files("precopy.lab").joinpath("init.py").read_text()
        init = here / "init"
        init.write_text(f"#!{os.path.realpath(sys.executable)} -IS\n{text}")
        init.chmod(0o755)
        told = {
            "command": list(job.command),
            "cwd": str(job.cwd or Path.cwd()),
            "env": dict(os.environ if job.env is None else job.env),
            "mtty": MTTY_UUIDS[: job.mtty],
            "vfs": self.card.vfs if self.card else 0,
            "address": link.address if link else "",
            "coverage": self._coverage() is not None,
        }
        (here / "job.json").write_text(json.dumps(told))
        for name in ("out", "err"):
            (here / name).touch()
        command = [
            sys.executable,
            "-IS",
            str(resources.files("precopy.lab").joinpath("namespace.py")),
        ]
        command += [str(here), *(str(path.resolve()) for path in job.writable), "--", str(kernel)]
        command += [f"mem={job.memory}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw"]
        command += [f"init={init}", f"uml_dir={here}/", f"umid={watchdog.UMID}"]
        command += ["con=null", "con0=null,fd:1"]
        # Warnings, and what is worse: with "quiet" the console would not tell of a WARN_ON.
        # The commands are who started it's own: that they could reach each other's memory in the guest
        # is a fair price for page faults in less than half the time.
        command += ["loglevel=5", "seccomp=auto", *job.arguments]
        if self.card is not None:
            command += self.card.arguments()
        fds: tuple[int, ...] = ()
        if link is not None:
            # Twice as fast without queues; but then the driver takes locks in queues that are not there,
            # which only a kernel that has no locks gets over.
            queues = ",vec=0" if _variant(job) == ORDINARY else ""
            command.append(f"vec0:transport=fd,fd={link.end.fileno()}{queues}")
            fds = (link.end.fileno(),)
        with open(here / "console", "wb") as console:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                pass_fds=fds,
                start_new_session=True,
            )

    def _coverage(self) -> Path | None:
        told = os.environ.get(coverage.ENVIRONMENT)
        return self._job.coverage or (Path(told) if told else None)

    def _new(self, name: str) -> str:
        """What the command has written since the last look."""
        with open(self._scratch / name, "rb") as file:
            file.seek(self._read[name])
            data = file.read()
        self._read[name] += len(data)
        return data.decode(errors="replace")

    def wait(
        self, out: Callable[[str], object] | None = None, err: Callable[[str], object] | None = None
    ) -> Result:
        """The command's end; ``out`` and ``err`` are given its output as it comes."""
        parts: dict[str, list[str]] = {"out": [], "err": []}
        hear = {"out": out, "err": err}
        hangs = ""
        done: float | None = None
        heard = self._began

        def look() -> bool:
            some = False
            for name, found in parts.items():
                text = self._new(name)
                listener = hear[name]
                if text:
                    some = True
                    found.append(text)
                    if listener is not None:
                        listener(text)
            return some

        try:
            while True:
                try:
                    self._process.wait(_LOOK)
                    break
                except subprocess.TimeoutExpired:
                    said = look()
                now = time.monotonic()
                heard = now if said else heard
                if done is None and (self._scratch / "status").exists():
                    done = now
                    if not self._job.shutdown:
                        break
                if now - self._began > self._job.timeout:
                    hangs = f"not done within {self._job.timeout:g} s"
                    break
                if done is None and 0 < self._job.silence < now - heard:
                    hangs = f"silent for {self._job.silence:g} s"
                    break
                if done is not None and now - done > _SHUTDOWN:
                    hangs = f"no power-off within {_SHUTDOWN:g} s"
                    break
            log = self._log()
            trouble = console.trouble(log)
            if hangs:
                line, details = self._where()
                log += details
                trouble = "; ".join(each for each in (trouble, f"{hangs}: {line}") if each)
            self.kill()
            look()
            out_text, err_text = "".join(parts["out"]), "".join(parts["err"])
            return self._result(out_text, err_text, log, trouble, timed_out=bool(hangs))
        finally:
            self.kill()
            self._remove_card()
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _where(self) -> tuple[str, str]:
        symbols = notes(self._kernel) / "System.map"
        return watchdog.look(self._scratch, self._process.pid, symbols)

    def _log(self) -> str:
        return (self._scratch / "console").read_text(errors="replace")

    def _result(self, out: str, err: str, log: str, trouble: str, *, timed_out: bool) -> Result:
        directory = self._coverage()
        if directory is not None:
            coverage.keep(self._scratch / "coverage", self._kernel, directory)
        status = self._scratch / "status"
        if timed_out:
            return Result(TIMED_OUT, out, err, log, trouble)
        if status.exists():
            return Result(int(status.read_text()), out, err, log, trouble)
        last = (log.strip().splitlines() or ["it said nothing"])[-1]
        return Result(125, out, err, log, trouble or f"the kernel did not run the command: {last}")

    def kill(self) -> None:
        """End it, and all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def run(
    job: Job,
    out: Callable[[str], object] | None = None,
    err: Callable[[str], object] | None = None,
    *,
    link: Link | None = None,
    prepare: Callable[[Card], object] | None = None,
) -> Result:
    """Boot a machine, at an end of a cable if ``link`` is given, run ``job`` in it, power it off.

    ``prepare`` is given the adapter, where there is one, before the kernel finds it.
    """
    return Machine(job, link=link, prepare=prepare).wait(out, err)


def run_linked(first: Job, second: Job) -> tuple[Result, Result]:
    """Two machines at once, joined by a network: they are 10.77.0.1 and 10.77.0.2."""
    one, other = pair()
    with one, other:
        machines = [Machine(first, link=one)]
        try:
            machines.append(Machine(second, link=other))
        except BaseException:
            machines[0].kill()
            raise
    # Either may wait for the other, so both are watched: one thread each would do no more.
    second_result = None
    try:
        second_result = machines[1].wait()
    finally:
        if second_result is None:
            machines[0].kill()
    return machines[0].wait(), second_result
