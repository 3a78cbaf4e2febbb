"""Running checks: verdicts, the watchdog, a fresh device for each, and what is chosen."""

import errno
from collections.abc import Iterator

import pytest

from precopy.backends import open_device
from precopy.conformance.check import Context
from precopy.conformance.outcome import Verdict
from precopy.conformance.raw import raw_of, workload_of
from precopy.conformance.requirements import REQUIREMENTS, number_of
from precopy.conformance.runner import Runner, SelectionError, select
from precopy.vfio.device import DmaRange
from precopy.vfio.guest import Opened
from precopy.vfio.states import DeviceState
from tests.conformance.made_up import (
    Hanging,
    broken,
    failing,
    made,
    not_applicable,
    opener,
    passing,
    refused,
    run,
)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    found = Hanging()
    yield found
    found.release()


def test_verdicts() -> None:
    found = run(*map(made, (passing, failing, refused, broken, not_applicable)))
    assert [each.verdict for each in found] == [
        Verdict.PASS,
        Verdict.FAIL,
        Verdict.FAIL,
        Verdict.FAIL,
        Verdict.NOT_APPLICABLE,
    ]
    assert (found[1].what, found[1].expected, found[1].came) == ("state", "RUNNING", "STOP")
    assert list(found[1].steps) == ["sim:mlx5: SET STOP"]
    assert found[2].what == "sim:mlx5: SET ERROR"
    assert found[2].came.startswith("EINVAL")
    assert "KeyError: 'nothing'" in found[3].came
    assert "made_up.py:" in found[3].came
    assert found[4].came == "there is no such thing here"


def test_each_check_has_a_device_that_runs_and_logs_nothing() -> None:
    seen = []

    def spoil(context: Context) -> None:
        seen.append((context.state(), context.device))
        context.device.log_start([DmaRange(0, 1 << 20)], 4096)
        context.device.enable_precopy_info_v2()
        context.set_state(DeviceState.RESUMING)

    found = run(made(spoil), made(spoil), made(passing))
    assert [each.verdict for each in found] == [Verdict.PASS] * 3
    assert [state for state, _ in seen] == [DeviceState.RUNNING] * 2
    assert seen[0][1] is not seen[1][1]


def test_device_that_is_left_as_it_was_is_reset() -> None:
    # One that stays when it is closed, as a served one does.
    opened = opener()
    opened.device.set_state(DeviceState.STOP)

    class Kept(Opened):
        def close(self) -> None:
            """It stays."""

    found = list(Runner(lambda: Kept(opened.device)).run([made(passing), made(failing)] * 2))
    assert opened.device.state is DeviceState.RUNNING
    opened.close()
    assert [each.verdict for each in found] == [Verdict.PASS, Verdict.FAIL] * 2


def test_a_hang_ends_its_check_only(hanging: Hanging) -> None:
    found = run(hanging.check(), made(passing))
    assert [each.verdict for each in found] == [Verdict.HANG, Verdict.PASS]
    assert list(found[0].steps) == ["the call that hangs"]
    assert found[0].what == "the call that hangs"
    assert found[0].came.startswith("none; it is in threading.py:")


def test_what_comes_after_a_device_that_hangs_is_told(hanging: Hanging) -> None:
    calls = []

    def once() -> Opened:
        calls.append(1)
        if len(calls) > 1:
            raise OSError(errno.ENODEV, "it is gone")
        return opener()

    found = list(Runner(once).run([hanging.check(), made(passing), made(failing)]))
    assert [each.verdict for each in found] == [Verdict.HANG, Verdict.NOT_RUN, Verdict.NOT_RUN]
    assert [each.came for each in found[1:]] == ["ENODEV (it is gone)"] * 2
    assert len(calls) == 2


def test_device_that_is_busy_for_a_while_is_waited_for() -> None:
    calls = []

    def late() -> Opened:
        calls.append(1)
        if len(calls) < 3:
            raise OSError(errno.EBUSY, "somebody has it")
        return opener()

    assert next(Runner(late).run([made(passing)])).verdict is Verdict.PASS
    assert len(calls) == 3


def test_opening_that_hangs(hanging: Hanging) -> None:
    def stuck() -> Opened:
        hanging.released.wait()
        return opener()

    found = list(Runner(stuck, opening=0.05).run([made(passing), made(passing)]))
    assert [each.verdict for each in found] == [Verdict.NOT_RUN] * 2
    assert "hangs" in found[1].came


def test_closing_that_hangs(hanging: Hanging) -> None:
    class Stuck(Opened):
        def close(self) -> None:
            hanging.released.wait()

    first = opener()
    found = list(Runner(lambda: Stuck(first.device), opening=0.05).run([made(passing)]))
    first.close()
    assert found[0].verdict is Verdict.HANG
    assert "closing" in found[0].what


def test_dangerous_checks_are_run_when_asked_for() -> None:
    ran = []

    def note(context: Context) -> None:
        ran.append(context)

    check = made(note, dangerous=True)
    (without,) = run(check)
    assert without.verdict is Verdict.NOT_APPLICABLE
    assert "--dangerous" in without.came
    assert not ran
    (with_it,) = run(check, dangerous=True)
    assert with_it.verdict is Verdict.PASS
    assert len(ran) == 1


def test_peer_is_another_device() -> None:
    seen: list[Context] = []
    assert run(made(seen.append), peer=opener)[0].verdict is Verdict.PASS
    assert seen[0].peer is not None
    assert seen[0].peer is not seen[0].device


def test_selection() -> None:
    checks = {
        each.name: each
        for each in (made(passing, 19), made(failing, 19, 20), made(refused, 33, name="r"))
    }

    def names(*only: str) -> list[str]:
        return [each.name for each in select(only, checks)]

    assert names() == ["passing", "failing", "r"]
    assert names("R33", "passing") == ["passing", "r"]
    assert names("R19") == ["passing", "failing"]
    with pytest.raises(SelectionError, match="nothing-such"):
        select(["nothing-such"], checks)
    with pytest.raises(SelectionError, match=r"R31: .*two devices"):
        select(["R31"], checks)
    with pytest.raises(SelectionError, match="R95"):
        select(["R95"], checks)


def test_requirements_are_all_there() -> None:
    assert list(REQUIREMENTS) == list(range(1, 95))
    assert all(each.text and each.source for each in REQUIREMENTS.values())
    assert number_of("R33") == number_of("r33") == 33
    assert number_of("R0") == number_of("33") == number_of("R33x") == 0


def test_work_tells_what_the_device_wrote() -> None:
    with_guest = open_device("sim:mlx5?qps=2")
    workload = workload_of(with_guest)
    assert workload is not None
    first = workload.work()
    specs = [region.spec for region in with_guest.guest.memory.regions] if with_guest.guest else []
    assert first
    assert all(
        any(each.iova <= address <= address + length <= each.iova + each.length for each in specs)
        for address, length in first
    )
    with_guest.device.set_state(DeviceState.STOP)
    assert workload.work() == []
    with_guest.close()


def test_devices_without_a_guest_do_no_work() -> None:
    with opener().device as device:
        assert workload_of(Opened(device)) is None
        assert raw_of(device) is None
