"""Every command of every way from state to state: failing, unreachable, and with a reset, a detach or
a close coming in the middle of it."""

import errno
import itertools
import threading
from collections.abc import Callable

import pytest

from precopy.mlx5_abi.commands import Opcode
from precopy.mlx5_abi.status import errno_of
from precopy.vfio.device import MigrationFile
from precopy.vfio.states import DeviceState, MigrationFlags, next_state, path
from tests.mlx5.conftest import IMAGE, MakeRig, Rig, new_rig, read_all, read_some, records
from tests.mlx5.fake_firmware import FakeFirmware

E, S, R, SC, RES, RP, PC, PCP = DeviceState

ALL = MigrationFlags(7)

#: A status of each class that mlx5_core tells apart, among them the one that a save may answer in
#: PRE_COPY without harm, and one that nobody knows.
STATUSES = (0x1, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, 0x9, 0x10, 0x50, 0xEE)
BAD_RES_STATE = 0x9

STATES = (R, S, SC, RES, RP, PC, PCP)
WAYS = [
    (start, end)
    for start, end in itertools.permutations(STATES, 2)
    if not (start is SC and end in (PC, PCP))
]

MODES: dict[str, dict[str, object]] = {
    "older": {},
    "chunks": {"chunk_mode": True, "total": 30_000},
    "newest": {"chunk_mode": True, "migration_state": True},
    # The final state has outgrown the buffer set aside for it.
    "grown": {"incremental_size": 50_000},
}

#: An arc, and the opcodes of its commands.
Leg = tuple[DeviceState, DeviceState, list[Opcode]]


def rig_in(state: DeviceState, mode: str) -> Rig:
    rig = new_rig(**{"incremental_size": 100, **MODES[mode]})
    rig.go(state)
    return rig


def legs_of(start: DeviceState, end: DeviceState, mode: str) -> list[Leg]:
    """What a way takes where nothing goes wrong."""
    rig = rig_in(start, mode)
    found, here = [], start
    for step in path(start, end, ALL):
        rig.firmware.opcodes.clear()
        assert next_state(here, step, ALL) is step
        rig.device.set_state(step)
        found.append((here, step, list(rig.firmware.opcodes)))
        here = step
    rig.close()
    return found


def flat(legs: list[Leg]) -> list[tuple[DeviceState, DeviceState, Opcode]]:
    return [(start, end, opcode) for start, end, opcodes in legs for opcode in opcodes]


def ways(mode: str) -> list[tuple[DeviceState, DeviceState, list[Leg]]]:
    return [(start, end, legs_of(start, end, mode)) for start, end in WAYS]


# --- Commands that fail ---------------------------------------------------------------------------


def outcome(start: DeviceState, end: DeviceState, opcode: Opcode, status: int) -> int:
    """The errno of an arc of which one command fails; 0 where the arc goes on all the same."""
    if opcode in (Opcode.DESTROY_MKEY, Opcode.DEALLOC_PD):
        return 0
    if opcode is not Opcode.SAVE_VHCA_STATE:
        return errno_of(status)
    # A save's status comes later, to the file; only the cleanup save is waited for. The kernel's
    # driver takes BAD_RES_STATE for an answer there, too.
    cleanup = (start, end) in ((PC, R), (PCP, RP))
    return errno.EIO if cleanup and status != BAD_RES_STATE else 0


def what_is_read(start: DeviceState, status: int) -> tuple[int, int]:
    """Bytes to be read and the errno behind them, once a save has failed on an arc from ``start``."""
    tracked = start in (R, RP)
    return (24, errno.ENOMSG) if tracked and status == BAD_RES_STATE else (0, errno.ENODEV)


@pytest.mark.parametrize("mode", MODES)
def test_a_failing_command(mode: str) -> None:
    for start, end, legs in ways(mode):
        for nth, (before, after, opcode) in enumerate(flat(legs), 1):
            for status in STATUSES:
                fail_one(mode, start, end, nth, status, (before, after, opcode))


def fail_one(
    mode: str,
    start: DeviceState,
    end: DeviceState,
    nth: int,
    status: int,
    where: tuple[DeviceState, DeviceState, Opcode],
) -> None:
    case = (mode, start.name, end.name, nth, hex(status), where[2].name)
    before, after, opcode = where
    rig = rig_in(start, mode)
    firmware, device = rig.firmware, rig.device
    firmware.at[firmware.commands + nth] = lambda: status
    expected = outcome(before, after, opcode, status)
    file = None
    if expected:
        with pytest.raises(OSError, match=r"vf: \w+ -> \w+: ") as caught:
            device.set_state(end)
        assert caught.value.errno == expected, case
        assert device.state is before, case
    else:
        file = device.set_state(end)
        assert device.state is end, case
    if opcode is Opcode.SAVE_VHCA_STATE and file is not None and end is not RES:
        count, code = what_is_read(before, status)
        assert count == 0 or len(read_some(file)) == count, case
        with pytest.raises(OSError, match=errno.errorcode[code]) as caught:
            read_some(file)
        assert caught.value.errno == code, case
    if end is RES and file is not None:
        file.write(IMAGE)
    # Without a reset the device can be brought back to work, and then holds nothing.
    device.set_state(R)
    assert device.state is R, case
    assert len(firmware.keys) == (opcode is Opcode.DESTROY_MKEY), case
    assert len(firmware.pds) == (opcode is Opcode.DEALLOC_PD), case
    firmware.keys.clear()
    firmware.pds.clear()
    rig.close()


_GIVING_BACK = (Opcode.DESTROY_MKEY, Opcode.DEALLOC_PD)


def stops_at(
    flat_legs: list[tuple[DeviceState, DeviceState, Opcode]], nth: int
) -> DeviceState | None:
    """Where a way ends when no command from the ``nth`` on is answered; None where it is not cut."""
    for before, after, opcode in flat_legs[nth - 1 :]:
        if opcode in _GIVING_BACK:
            continue
        # An arc that can be undone only by another command leaves the device in ERROR.
        undone = (before, after) != (PCP, SC) or opcode is Opcode.SUSPEND_VHCA
        return before if undone else E
    return None


@pytest.mark.parametrize("mode", MODES)
def test_a_firmware_that_is_gone_from_some_command_on(mode: str) -> None:
    for start, end, legs in ways(mode):
        commands = flat(legs)
        for nth in range(1, len(commands) + 1):
            case = (mode, start.name, end.name, nth)
            rig = rig_in(start, mode)

            def go(firmware: FakeFirmware = rig.firmware) -> None:
                firmware.gone = True

            rig.firmware.at[rig.firmware.commands + nth] = go
            stop = stops_at(commands, nth)
            if stop is None:
                rig.device.set_state(end)
            else:
                with pytest.raises(OSError, match="gone") as caught:
                    rig.device.set_state(end)
                assert caught.value.errno == errno.ENOTCONN, case
            assert rig.device.state is (end if stop is None else stop), case
            rig.device.reset()
            assert rig.device.state is R, case
            rig.close()


# --- A reset, a detach and a close in the middle --------------------------------------------------


def assert_reset(rig: Rig, case: object) -> None:
    assert rig.device.state is R, case
    assert rig.resets == [None], case
    assert not rig.firmware.keys, case
    assert not rig.firmware.pds, case
    assert not rig.firmware.dma.mapped, case
    # Nothing is left of the old session that would disturb a new one.
    rig.worker.run()
    rig.firmware.images.clear()
    file = rig.device.set_state(PC)
    assert file is not None
    rig.device.set_state(SC)
    rig.worker.run()
    assert [payload for _, payload in records(read_all(file))][1:] == rig.firmware.images, case


def assert_refuses(rig: Rig, code: int, case: object) -> None:
    with pytest.raises(OSError, match=errno.errorcode[code]) as caught:
        rig.device.set_state(R)
    assert caught.value.errno == code, case
    assert not rig.firmware.keys, case
    assert not rig.firmware.pds, case
    assert not rig.firmware.dma.mapped, case


INTERRUPTIONS: dict[str, tuple[Callable[[Rig], None], Callable[[Rig, object], None]]] = {
    "reset": (lambda rig: rig.device.reset(), assert_reset),
    "detach": (
        lambda rig: rig.device.detach(),
        lambda rig, case: assert_refuses(rig, errno.ENOTCONN, case),
    ),
    "close": (
        lambda rig: rig.device.close(),
        lambda rig, case: assert_refuses(rig, errno.ENODEV, case),
    ),
}


def assert_dead(file: MigrationFile | None, end: DeviceState, case: object) -> None:
    if file is not None:
        with pytest.raises(OSError, match="ENODEV") as caught:
            file.write(b"x") if end is RES else read_some(file)
        assert caught.value.errno == errno.ENODEV, case


@pytest.mark.parametrize("what", INTERRUPTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_an_interruption_from_inside_a_command(mode: str, what: str) -> None:
    interrupt, check = INTERRUPTIONS[what]
    for start, end, legs in ways(mode):
        for nth in range(1, len(flat(legs)) + 1):
            case = (mode, start.name, end.name, nth)
            rig = rig_in(start, mode)
            rig.firmware.at[rig.firmware.commands + nth] = lambda rig=rig: interrupt(rig)  # type: ignore[misc]
            # The transition is carried to its end; what interrupted it comes then.
            file = rig.device.set_state(end)
            assert_dead(file, end, case)
            check(rig, case)
            rig.close()


@pytest.mark.parametrize("what", INTERRUPTIONS)
def test_an_interruption_from_another_thread(what: str) -> None:
    interrupt, check = INTERRUPTIONS[what]
    for start, end, legs in ways("chunks"):
        for nth in range(1, len(flat(legs)) + 1):
            case = (start.name, end.name, nth)
            rig = rig_in(start, "chunks")
            thread = threading.Thread(target=interrupt, args=(rig,))
            rig.firmware.at[rig.firmware.commands + nth] = thread.start
            file = rig.device.set_state(end)
            thread.join()
            assert_dead(file, end, case)
            check(rig, case)
            rig.close()


def ask_info(rig: Rig) -> MigrationFile:
    file = rig.device.set_state(PC)
    assert file is not None
    read_some(file)
    return file


def use_info(rig: Rig, file: MigrationFile) -> None:
    file.precopy_info()


def use_write(rig: Rig, file: MigrationFile) -> None:
    assert file.write(IMAGE) == len(IMAGE)


def use_data_size(rig: Rig, file: MigrationFile) -> None:
    assert rig.device.data_size() == rig.firmware.full_size


def begin_chunks(rig: Rig) -> MigrationFile:
    rig.firmware.next_required.extend([20_000, 50_000])
    file = rig.device.set_state(SC)
    assert file is not None
    return file


#: How to begin, and a call in which commands are issued outside the arcs.
CALLS: dict[
    str, tuple[Callable[[Rig], MigrationFile | None], Callable[[Rig, MigrationFile], None]]
] = {
    "precopy_info": (ask_info, use_info),
    "write": (lambda rig: rig.device.set_state(RES), use_write),
    "a later chunk": (begin_chunks, lambda rig, file: rig.worker.run()),
    "data_size": (ask_info, use_data_size),
    "reset": (ask_info, lambda rig, file: rig.device.reset()),
}


@pytest.mark.parametrize("what", INTERRUPTIONS)
@pytest.mark.parametrize("call", CALLS)
def test_an_interruption_of_other_calls(call: str, what: str) -> None:
    begin, use = CALLS[call]
    interrupt, check = INTERRUPTIONS[what]
    nth = 1
    while True:
        rig = rig_in(R, "newest")
        file = begin(rig)
        assert file is not None
        before = rig.firmware.commands
        rig.firmware.at[before + nth] = lambda rig=rig: interrupt(rig)  # type: ignore[misc]
        use(rig, file)
        if rig.firmware.at:
            rig.close()
            break
        with pytest.raises(OSError, match="ENODEV"):
            file.write(b"x") if call == "write" else read_some(file)
        if call == "reset" and what == "reset":
            assert rig.resets == [None, None]
            rig.resets.pop()
        check(rig, (call, nth))
        rig.close()
        nth += 1
    assert nth > 1, "the call issues no command"


def test_a_reset_waits_for_the_save_in_flight(make_rig: MakeRig) -> None:
    rig = make_rig(hold=True)
    file = rig.device.set_state(PC)
    assert file is not None
    thread = threading.Thread(target=rig.device.reset)
    thread.start()
    rig.firmware.complete()
    thread.join()
    assert rig.device.state is R
    assert_dead(file, PC, "held")


def test_two_resets_in_one_transition(make_rig: MakeRig) -> None:
    rig = make_rig()
    for nth in (1, 2):
        rig.firmware.at[rig.firmware.commands + nth] = rig.device.reset
    rig.device.set_state(S)
    assert rig.device.state is R
    assert rig.resets == [None, None]


def test_a_vf_is_reset_after_the_transition_that_it_interrupts(make_rig: MakeRig) -> None:
    """Else a command that follows the reset would suspend a VF that is told to be RUNNING."""
    rig = make_rig()
    rig.firmware.at[rig.firmware.commands + 1] = rig.device.reset
    seen: list[int] = []
    rig.firmware.at[rig.firmware.commands + 2] = lambda: seen.append(len(rig.resets))
    rig.device.set_state(S)
    assert seen == [0]
    assert rig.resets == [None]
