"""This project's own devices, held to every check: at work, in this process, and through vfio-user."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack

import pytest

from precopy.backends.sim import open_sim
from precopy.backends.vfio_user.client import Client
from precopy.backends.vfio_user.device import VfioUserDevice
from precopy.conformance.check import Check, Context, NotApplicable
from precopy.conformance.checks import discovery, resuming
from precopy.conformance.raw import raw_of, workload_of
from precopy.conformance.runner import load
from precopy.vfio.device import VfioDevice
from precopy.vfio.face import NUM_REGIONS, RegionInfo
from tests.contract.ways import NAME, Way, through_a_socket

CHECKS = load()
#: Requirements of DMA logging, for which it does not matter who lets the device write.
_LOGGING = range(80, 95)


class Writes:
    """The device's DMA, by the means of its PCI face: to pages that are not next to each other."""

    def __init__(self, dma_write: Callable[[int, bytes], None]) -> None:
        self._write = dma_write

    def work(self) -> list[tuple[int, int]]:
        writes = [(3 * 4096 + 100, 50), (6 * 4096 - 1, 2), (70 * 4096, 1), (200 * 4096 + 4000, 96)]
        for address, length in writes:
            self._write(address, bytes(length))
        return writes


class ClientRegisters:
    """The regions of a device behind a socket."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.regions: Sequence[RegionInfo] = [
            client.region_info(index) for index in range(NUM_REGIONS)
        ]

    def region_read(self, region: int, offset: int, size: int) -> bytes:
        return self._client.region_read(region, offset, size)

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        self._client.region_write(region, offset, data)


@contextlib.contextmanager
def at_work(check: Check) -> Iterator[Context]:
    """A guest is on it that sends messages."""
    opened = open_sim(f"{NAME.replace('&guest=0', '')}&qps=8")
    try:
        yield Context(opened.device, workload=workload_of(opened))
    finally:
        opened.close()


@contextlib.contextmanager
def in_process(check: Check) -> Iterator[Context]:
    """Without a guest, but with registers; it can be opened again."""
    with ExitStack() as stack:

        def power_on() -> Context:
            opened = open_sim(NAME, served=True)
            stack.callback(opened.close)
            assert opened.face is not None
            opened.face.dma.map(0, memoryview(bytearray(1 << 20)))
            return Context(opened.device, face=opened.face, workload=Writes(opened.face.dma.write))

        context = power_on()

        def reopen() -> VfioDevice:
            context.device.close()
            return power_on().device

        context.reopen = reopen
        yield _fitting(context, check)


@contextlib.contextmanager
def through_vfio_user(check: Check) -> Iterator[Context]:
    """The same behind a socket. A server keeps the device when its client goes: none is closed."""
    with ExitStack() as stack:
        way: Way = stack.enter_context(through_a_socket())
        assert isinstance(way.device, VfioUserDevice)
        context = Context(
            way.device,
            raw=raw_of(way.device),
            face=ClientRegisters(way.device.client),
            workload=Writes(way.dma_write),
        )
        yield _fitting(context, check)


def _fitting(context: Context, check: Check) -> Context:
    if not set(check.requirements) & set(_LOGGING):
        context.workload = None
    return context


WAYS: dict[str, Callable[[Check], AbstractContextManager[Context]]] = {
    "at work": at_work,
    "in process": in_process,
    "through vfio-user": through_vfio_user,
}

#: What can be said of none of the ways: no descriptors, no addresses, no device beside it, no state that
#: brings the device to ERROR, and no interrupt of a guest that finds its messages done when it looks.
NOWHERE = {
    "a-buffer-that-is-partly-there",
    "a-control-structure-that-is-read-only",
    "a-device-that-is-not-bound",
    "a-driver-that-is-unbound",
    "a-failed-set-has-no-data-fd",
    "a-header-that-is-nowhere",
    "a-stopped-device-raises-no-interrupt",
    "a-structure-that-is-too-short",
    "descriptor-flags",
    "info-ignores-what-was-there",
    "info-to-a-bad-pointer",
    "no-dma-to-other-devices",
    "no-seeking",
    "ranges-that-are-nowhere",
    "only-a-reset-leaves-error",
    "states-not-claimed",
}


@pytest.mark.parametrize("name", CHECKS)
def test_our_devices_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "WATCHED", 0.02)
    # Of each of the first bytes all bits are flipped; of the others one.
    monkeypatch.setattr(resuming, "HEADERS", 4)
    check = CHECKS[name]
    told = []
    for way in WAYS.values():
        with way(check) as context:
            try:
                check.run(context)
                told.append("passed")
            except NotApplicable as reason:
                told.append(str(reason))
            finally:
                context.close()
    assert ("passed" in told) == (name not in NOWHERE), told
