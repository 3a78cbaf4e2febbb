"""What several checks do: saving a whole image, loading one, and telling whether a device keeps still."""

import errno
import select
import time

import numpy as np

from precopy.conformance.check import Context, Failed, NotApplicable
from precopy.vfio.device import MigrationFile, VfioDevice
from precopy.vfio.states import DeviceState, MigrationFlags

E, S, R, SC, RES, RP, PC, PCP = DeviceState

MIB = 1 << 20
#: The largest image, in bytes, that a check keeps and compares.
WHOLE = 64 * MIB
#: Seconds in which data that is being made has to come, and what ended has to wake who waits.
PATIENCE = 10.0

#: What a file whose session is over may answer: ENODEV in all drivers.
OVER = (errno.ENODEV,)
#: Any error at all.
ANY_ERROR = tuple(errno.errorcode)


def read_some(file: MigrationFile, size: int = 1 << 16) -> bytes:
    """One read."""
    room = bytearray(size)
    return bytes(room[: file.readinto(room)])


def read_limited(file: MigrationFile, sizes: tuple[int, ...] = (MIB,), limit: int = WHOLE) -> bytes:
    """Up to an end, ``sizes`` bytes at a time in turn. NotApplicable beyond ``limit`` bytes."""
    found = bytearray()
    count = 0
    while True:
        try:
            piece = read_some(file, sizes[count % len(sizes)])
        except OSError as error:
            if error.errno == errno.ENOMSG:
                return bytes(found)
            raise
        if not piece:
            return bytes(found)
        found += piece
        count += 1
        if len(found) > limit:
            raise NotApplicable(f"its state is larger than {limit >> 20} MiB: too much to compare")


def read_until_temporary_end(context: Context, file: MigrationFile) -> int:
    """Read away what PRE_COPY has; bytes read. Nothing is kept. Failed where another end comes."""
    context.step("read to the temporary end")
    room, total = bytearray(MIB), 0
    ends = time.monotonic() + PATIENCE
    while True:
        try:
            count = file.readinto(room)
        except OSError as error:
            if error.errno == errno.ENOMSG:
                return total
            raise
        context.expect_that("read in PRE_COPY", count > 0, "data or ENOMSG", count)
        total += count
        if time.monotonic() > ends:
            raise NotApplicable(f"no temporary end within {total >> 20} MiB: the device is at work")


def image(context: Context, device: VfioDevice | None = None) -> bytes:
    """A whole STOP_COPY stream; the device is in STOP_COPY after it."""
    file = context.enter(SC, device)
    context.step("read the whole stream")
    return read_limited(file)


def stopped_image(context: Context, device: VfioDevice | None = None) -> bytes:
    """The same, STOP after it."""
    found = image(context, device)
    context.set_state(S, device)
    return found


#: Formats whose images are made by a firmware that may number and seal each: so many bytes may differ
#: of each begun chunk (a stream is made of several images where it is saved in chunks).
_SEALED = {"mlx5": 64, "virtio": 64}
_CHUNK = 8 * MIB


def alike(context: Context, one: bytes, other: bytes) -> bool:
    """Whether two images hold the same state, as far as a stranger to their format can tell."""
    if one == other or len(one) != len(other):
        return one == other
    room = _SEALED.get(context.device.identity.stream, 0) * -(-len(one) // _CHUNK)
    if not room:
        return False
    differ = np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8)
    return int(np.count_nonzero(differ)) <= room


def expect_alike(context: Context, what: str, came: bytes, expected: bytes) -> None:
    """That two images hold the same state."""
    if not alike(context, came, expected):
        context.expect(what, came, expected)


def is_still(context: Context) -> bool:
    """Whether two images with RUNNING between them are the same. STOP before and after it."""
    first = stopped_image(context)
    context.set_state(R)
    return alike(context, stopped_image(context), first)


def target(context: Context) -> VfioDevice:
    """Where to load: the peer, or the same device; RUNNING after a reset."""
    device = context.peer or context.device
    context.reset(device)
    return device


def load(context: Context, stream: bytes, device: VfioDevice, size: int = MIB) -> None:
    """Write ``stream`` and go to STOP."""
    file = context.enter(RES, device)
    context.write_all(file, stream, size)
    context.set_state(S, device)


def refused(context: Context, stream: bytes, device: VfioDevice) -> bool:
    """Whether a write of ``stream``, or the SET of STOP after it, fails."""
    file = context.enter(RES, device)
    try:
        context.write_all(file, stream)
        context.set_state(S, device)
    except OSError:
        return True
    return False


def bring(
    context: Context, state: DeviceState, stream: bytes | None = None
) -> MigrationFile | None:
    """To ``state`` after a reset; ``stream`` is written where it is RESUMING."""
    context.reset()
    if state is R:
        return None
    file = context.set_state(state)
    if state is RES and file is not None and stream is not None:
        context.write_all(file, stream)
    return file


def saving_states(context: Context) -> list[DeviceState]:
    """The states that hand out a file to read."""
    return [each for each in (SC, PC, PCP) if each in context.states()]


def need_precopy(context: Context) -> MigrationFile:
    """The device in PRE_COPY."""
    context.need(MigrationFlags.PRE_COPY)
    return context.enter(PC)


def need_descriptor(file: MigrationFile) -> int:
    """The descriptor of the file. NotApplicable where it has none."""
    number = file.fileno()
    if number is None:
        raise NotApplicable("the data_fd of this backend is no file descriptor")
    return number


def readable(context: Context, file: MigrationFile) -> None:
    """Wait until there is something to read. Failed where nothing comes."""
    came = file.poll(select.POLLIN, PATIENCE)
    context.expect_that(f"poll, {PATIENCE:g} s", bool(came & select.POLLIN), "POLLIN", came)


def expect_dead(context: Context, what: str, file: MigrationFile, *, saving: bool = True) -> None:
    """EOF or an error, at once; never data."""
    try:
        came: object = read_some(file) if saving else file.write(b"x")
    except OSError:
        return
    if came not in (b"", 0):
        raise Failed(what, "EOF or an error", f"data ({came!r:.60})")
