"""What a check is: a function that drives a device, and the requirement that it is about.

A check raises :class:`Failed` by the context's ``expect`` methods, or :class:`NotApplicable` where the
device has not what it is about, or the backend can't express it. Any other OSError fails it, too. Before
each check the device is RUNNING after a reset; what a check leaves open is closed after it.
"""

import contextlib
import enum
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, runtime_checkable

from precopy.vfio.device import MigrationFile, VfioDevice
from precopy.vfio.face import RegionInfo
from precopy.vfio.states import DeviceState, MigrationFlags, is_supported, path
from precopy.vfio.uapi import Feature


class Severity(enum.Enum):
    """How binding a requirement is: text of the uAPI, the kernel core's contract, or good sense."""

    NORMATIVE = "normative"
    CONTRACT = "contract"
    QUALITY = "quality"


class Failed(Exception):
    """The device did something else than the requirement says."""

    def __init__(self, what: str, expected: str, came: str) -> None:
        super().__init__(f"{what}: expected {expected}, came {came}")
        self.what, self.expected, self.came = what, expected, came


class NotApplicable(Exception):
    """Why the check says nothing about this device."""


class Raw(Protocol):
    """VFIO_DEVICE_FEATURE below the level of the contract, where a backend has that."""

    def feature(self, argsz: int, flags: int, data: bytes) -> bytes:
        """One call with exactly these; the payload as it came back. OSError."""


@runtime_checkable
class RawInPlace(Protocol):
    """A backend whose call leaves its structure to be looked at, also where it fails."""

    def feature_in_place(self, argument: bytearray) -> None:
        """One call with ``argument``, header and payload. OSError."""


@runtime_checkable
class RawAddresses(Protocol):
    """A backend whose calls take addresses, which may be wrong."""

    def feature_at(self, address: int) -> None:
        """One call whose structure is at ``address``. OSError."""


@runtime_checkable
class RawUnbound(Protocol):
    """A backend that can ask a device before it is bound to an IOMMU context."""

    def feature_unbound(self, argsz: int, flags: int, data: bytes) -> None:
        """One call on a second file of the device, which is not bound. OSError, NotApplicable."""


class Workload(Protocol):
    """Something that makes the device work, where that is to be had: DMA writes that are known."""

    def work(self) -> list[tuple[int, int]]:
        """Let the device write; address and length in bytes of all that it wrote."""


class Registers(Protocol):
    """Regions of the device as a VMM reaches them; a ``PciFace`` is one."""

    @property
    def regions(self) -> Sequence[RegionInfo]: ...

    def region_read(self, region: int, offset: int, size: int) -> bytes: ...

    def region_write(self, region: int, offset: int, data: bytes) -> None: ...


@dataclass(slots=True)
class Context:
    """One check's device. Every step that is taken through here is told where the check fails."""

    device: VfioDevice
    #: Opens another device to load into, RUNNING; None: the same device has to do, reset in between.
    peer: VfioDevice | None = None
    raw: Raw | None = None
    workload: Workload | None = None
    #: Registers and config space as a VMM sees them, where the backend has them.
    face: Registers | None = None
    #: Closes the device and opens it again; the new one.
    reopen: Callable[[], VfioDevice] | None = None
    steps: list[str] = field(default_factory=list)
    _files: list[MigrationFile] = field(default_factory=list)

    # --- Steps --------------------------------------------------------------------------------

    def step(self, text: str) -> None:
        """What is done next, in words."""
        self.steps.append(text)

    def set_state(self, new: int, device: VfioDevice | None = None) -> MigrationFile | None:
        """SET MIG_DEVICE_STATE; the data_fd is closed after the check."""
        which = device or self.device
        name = DeviceState(new).name if new in DeviceState._value2member_map_ else str(new)
        self.step(f"{which.name}: SET {name}")
        file = which.set_state(new)
        if file is not None:
            self._files.append(file)
        return file

    def enter(self, new: DeviceState, device: VfioDevice | None = None) -> MigrationFile:
        """The same, where a data_fd has to come. Failed where none does."""
        file = self.set_state(new, device)
        if file is None:
            self.fail(f"data_fd of {new.name}", "a file", "none")
        return file

    def state(self, device: VfioDevice | None = None) -> DeviceState:
        """GET MIG_DEVICE_STATE."""
        return (device or self.device).state

    def reset(self, device: VfioDevice | None = None) -> None:
        which = device or self.device
        self.step(f"{which.name}: RESET")
        which.reset()

    def read_all(self, file: MigrationFile, size: int = 1 << 20) -> bytes:
        """Everything up to an end, temporary or permanent, ``size`` bytes at a time."""
        self.step(f"read to the end, {size} bytes at a time")
        room, found = bytearray(size), bytearray()
        while True:
            try:
                count = file.readinto(room)
            except OSError as error:
                if error.errno == errno.ENOMSG:
                    return bytes(found)
                raise
            if not count:
                return bytes(found)
            found += room[:count]

    def write_all(self, file: MigrationFile, data: bytes, size: int = 1 << 20) -> None:
        """All of ``data``, ``size`` bytes at a time."""
        self.step(f"write {len(data)} bytes, {size} at a time")
        view = memoryview(data)
        while view:
            view = view[file.write(view[:size]) :]

    # --- What the device has ------------------------------------------------------------------

    @property
    def flags(self) -> MigrationFlags:
        return self.device.migration_flags

    def need(self, flag: MigrationFlags) -> None:
        """NotApplicable where the device does not claim ``flag``."""
        if not self.flags & flag:
            raise NotApplicable(f"the device has no {flag.name}")

    def need_feature(self, feature: Feature) -> None:
        """NotApplicable where the device does not have ``feature``."""
        if feature not in self.device.features():
            raise NotApplicable(f"the device has no {feature.name}")

    def need_raw(self) -> Raw:
        """NotApplicable where the backend has no call below the contract."""
        if self.raw is None:
            raise NotApplicable("this backend has no VFIO_DEVICE_FEATURE call that could be wrong")
        return self.raw

    def need_raw_in_place(self) -> RawInPlace:
        """NotApplicable where nobody sees the structure of a call that failed."""
        raw = self.need_raw()
        if not isinstance(raw, RawInPlace):
            raise NotApplicable("this backend shows no structure after a call that failed")
        return raw

    def need_raw_addresses(self) -> RawAddresses:
        """NotApplicable where calls have no addresses."""
        raw = self.need_raw()
        if not isinstance(raw, RawAddresses):
            raise NotApplicable("this backend takes no addresses, so none can be wrong")
        return raw

    def need_raw_unbound(self) -> RawUnbound:
        """NotApplicable where there is no device that is not bound."""
        raw = self.need_raw()
        if not isinstance(raw, RawUnbound):
            raise NotApplicable("a device of this backend is bound as soon as it is there")
        return raw

    def need_workload(self) -> Workload:
        """NotApplicable where nothing makes the device work."""
        if self.workload is None:
            raise NotApplicable("there is nothing that makes this device work")
        return self.workload

    def need_face(self) -> Registers:
        """NotApplicable where the backend has no registers and no config space."""
        if self.face is None:
            raise NotApplicable("this backend shows no registers and no config space")
        return self.face

    def need_reopen(self) -> Callable[[], VfioDevice]:
        """NotApplicable where nobody can close the device and open it again."""
        if self.reopen is None:
            raise NotApplicable("the device can't be closed and opened again here")
        return self.reopen

    def states(self) -> list[DeviceState]:
        """The states that the device may be asked to enter."""
        return [each for each in DeviceState if is_supported(each, self.flags)]

    def path(self, origin: DeviceState, new: DeviceState) -> tuple[DeviceState, ...]:
        """Every state on the way, as the kernel's core goes. OSError EINVAL where there is none."""
        return path(origin, new, self.flags)

    # --- What is expected ---------------------------------------------------------------------

    def fail(self, what: str, expected: str, came: str) -> NoReturn:
        raise Failed(what, expected, came)

    def expect(self, what: str, came: Any, expected: Any) -> None:
        """``came`` has to equal ``expected``."""
        if came != expected:
            self.fail(what, _told(expected), _told(came))

    def expect_that(
        self, what: str, holds: bool, expected: str, came: Any = "something else"
    ) -> None:
        """``holds``, or what came instead."""
        if not holds:
            self.fail(what, expected, _told(came))

    def expect_errno(
        self, what: str, codes: int | tuple[int, ...], call: Callable[[], Any]
    ) -> None:
        """``call`` has to raise OSError with one of ``codes``."""
        wanted = codes if isinstance(codes, tuple) else (codes,)
        few = len(wanted) <= 8
        names = " or ".join(errno.errorcode[code] for code in wanted) if few else "an error"
        try:
            came = call()
        except OSError as error:
            if error.errno not in wanted:
                name = errno.errorcode.get(error.errno or 0, str(error.errno))
                self.fail(what, names, f"{name} ({error.strerror})")
            return
        self.fail(what, names, f"success ({_told(came)})")

    def close(self) -> None:
        """Close what the check has opened."""
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()
        self._files.clear()


def _told(value: Any) -> str:
    if isinstance(value, DeviceState):
        return value.name
    if isinstance(value, bytes | bytearray) and len(value) > 32:
        return f"{len(value)} bytes, {bytes(value[:16]).hex()}..."
    return repr(value)


@dataclass(frozen=True, slots=True)
class Check:
    """``requirements``: numbers of R1-R94. ``dangerous``: can bring a kernel down, so only when asked for."""

    name: str
    requirements: tuple[int, ...]
    severity: Severity
    run: Callable[[Context], None]
    dangerous: bool = False
    #: Seconds after which it counts as a hang.
    timeout: float = 30.0

    @property
    def text(self) -> str:
        """What is checked, in a sentence: the function's docstring."""
        return " ".join((self.run.__doc__ or "").split())


#: All that there is, by name; the modules of ``conformance.checks`` fill it when they are imported.
CHECKS: dict[str, Check] = {}


def check(
    *requirements: int,
    severity: Severity = Severity.NORMATIVE,
    dangerous: bool = False,
    timeout: float = 30.0,
) -> Callable[[Callable[[Context], None]], Callable[[Context], None]]:
    """Register a function as the check of ``requirements``; its name is the check's, with dashes."""

    def register(run: Callable[[Context], None]) -> Callable[[Context], None]:
        name = run.__name__.replace("_", "-")
        assert name not in CHECKS, name
        CHECKS[name] = Check(name, requirements, severity, run, dangerous, timeout)
        return run

    return register
