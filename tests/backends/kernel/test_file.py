"""The data_fd on the fake kernel, and on a pipe of the real one."""

import errno
import os
import select
import time

import pytest

from precopy.backends.kernel.file import KernelMigrationFile
from precopy.backends.kernel.ioctls import SystemCalls, call
from precopy.vfio.device import MigrationFile, VfioDevice
from precopy.vfio.states import DeviceState
from tests.backends.kernel.conftest import NAME
from tests.backends.kernel.fake_device import HEADER, Session
from tests.backends.kernel.fake_kernel import FakeKernel

S = DeviceState
IN, OUT, RDHUP = select.POLLIN, select.POLLOUT, select.POLLRDHUP


def enter(device: VfioDevice, new: DeviceState) -> MigrationFile:
    file = device.set_state(new)
    assert file is not None
    return file


def session(kernel: FakeKernel) -> Session:
    assert kernel.device.session is not None
    return kernel.device.session


def test_the_ends_of_a_stream(device: VfioDevice, kernel: FakeKernel) -> None:
    with enter(device, S.PRE_COPY) as file:
        buffer = bytearray(64)
        assert file.readinto(buffer) == len(HEADER)
        with pytest.raises(OSError, match="reading state failed in the kernel") as caught:
            file.readinto(buffer)
        assert caught.value.errno == errno.ENOMSG
        device.set_state(S.STOP_COPY)
        assert file.readinto(buffer) == 8
        assert [file.readinto(buffer) for _ in range(3)] == [0, 0, 0]
        device.set_state(S.STOP)
        with pytest.raises(OSError, match=NAME) as caught:
            file.readinto(buffer)
        assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize("size", [1, 3, 5, 4096])
def test_buffers_of_any_kind_and_size(device: VfioDevice, size: int) -> None:
    with enter(device, S.STOP_COPY) as file:
        stream, words = b"", memoryview(bytearray(size * 4)).cast("I")
        for buffer in (bytearray(size), memoryview(bytearray(size)), words):
            count = file.readinto(buffer)
            stream += memoryview(buffer).cast("B")[:count]
        assert (HEADER + bytes(8)).startswith(stream)
        assert len(stream) == min(size * 6, 20)


def test_the_wrong_direction(device: VfioDevice) -> None:
    with enter(device, S.STOP_COPY) as saving:
        with pytest.raises(OSError, match="writing state failed in the kernel") as caught:
            saving.write(b"x")
        assert caught.value.errno == errno.EBADF
    with enter(device, S.RESUMING) as resuming:
        with pytest.raises(OSError, match="reading state failed in the kernel") as caught:
            resuming.readinto(bytearray(1))
        assert caught.value.errno == errno.EBADF
        with pytest.raises(OSError, match="VFIO_MIG_GET_PRECOPY_INFO") as caught:
            resuming.precopy_info()
        assert caught.value.errno == errno.ENOTTY
    device.reset()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EFAULT, errno.ENOMEM, errno.EOPNOTSUPP])
def test_what_a_driver_says_of_a_state(device: VfioDevice, kernel: FakeKernel, code: int) -> None:
    kernel.errors["write"] = code
    with enter(device, S.RESUMING) as file:
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            file.write(HEADER)
        assert caught.value.errno == code
        assert NAME in str(caught.value)
    device.reset()


def test_nonblocking(device: VfioDevice, kernel: FakeKernel) -> None:
    with enter(device, S.STOP_COPY) as file:
        buffer = bytearray(64)
        file.readinto(buffer)
        session(kernel).working = True
        file.set_nonblocking(True)
        with pytest.raises(BlockingIOError) as caught:
            file.readinto(buffer)
        assert caught.value.errno == errno.EAGAIN
        session(kernel).data += b"more"
        assert buffer[: file.readinto(buffer)] == b"more"
        file.set_nonblocking(False)
        number = file.fileno()
        assert number is not None
        assert not kernel.open_files[number].nonblocking


def test_poll(device: VfioDevice, kernel: FakeKernel) -> None:
    with enter(device, S.PRE_COPY) as file:
        assert file.poll() == IN
        file.readinto(bytearray(64))
        assert file.poll(timeout=0) == 0
        session(kernel).data += b"more"
        assert file.poll(timeout=None) == IN
        device.set_state(S.STOP_COPY)
        file.readinto(bytearray(64))
        # At the permanent end a reader is to learn of it.
        assert file.poll() == IN
        device.set_state(S.STOP)
        assert file.poll() == file.poll(OUT) | IN == IN | RDHUP
        kernel.errors["poll"] = errno.EINTR
        with pytest.raises(InterruptedError, match="poll failed in the kernel"):
            file.poll()
    with enter(device, S.RESUMING) as file:
        kernel.errors.clear()
        assert file.poll(OUT) == OUT
    device.reset()


def test_a_closed_file(device: VfioDevice) -> None:
    file = enter(device, S.PRE_COPY)
    file.close()
    file.close()
    for ask in (
        lambda: file.readinto(bytearray(1)),
        lambda: file.write(b"x"),
        file.precopy_info,
        file.poll,
        file.fileno,
        lambda: file.set_nonblocking(True),
    ):
        with pytest.raises(OSError, match="the data_fd is closed") as caught:
            ask()
        assert caught.value.errno == errno.EBADF
    # The device keeps its state, and goes on from it.
    assert device.state is S.PRE_COPY
    assert device.set_state(S.RUNNING) is None


def test_a_file_that_outlives_its_device(device: VfioDevice) -> None:
    with enter(device, S.PRE_COPY) as file:
        device.close()
        with pytest.raises(OSError, match=NAME) as caught:
            file.readinto(bytearray(1))
        assert caught.value.errno == errno.ENODEV


# --- The system calls themselves ------------------------------------------------------------------


def test_on_a_pipe() -> None:
    kernel = SystemCalls()
    out, into = os.pipe()
    reading = KernelMigrationFile(kernel, out, "pipe", lambda: False)
    writing = KernelMigrationFile(kernel, into, "pipe", lambda: False)
    with reading, writing:
        assert reading.poll(timeout=0) == 0
        began = time.monotonic()
        assert reading.poll(timeout=0.05) == 0
        assert time.monotonic() - began > 0.04
        reading.set_nonblocking(True)
        with pytest.raises(BlockingIOError):
            reading.readinto(bytearray(1))
        assert writing.poll(OUT) == OUT
        assert writing.write(memoryview(b"state")) == 5
        assert reading.poll() == IN
        buffer = bytearray(3)
        assert reading.readinto(memoryview(buffer)[1:]) == 2
        assert buffer == b"\0st"
        with pytest.raises(OSError, match="VFIO_MIG_GET_PRECOPY_INFO failed") as caught:
            reading.precopy_info()
        assert caught.value.errno == errno.ENOTTY
        assert reading.fileno() == out
        writing.close()
        assert reading.poll(timeout=1) & select.POLLHUP
        assert reading.readinto(buffer) == 3
        assert reading.readinto(buffer) == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(out)


def test_on_a_file() -> None:
    kernel = SystemCalls()
    with pytest.raises(FileNotFoundError):
        kernel.open("/dev/vfio/devices/vfio99999")
    fd = os.memfd_create("region")
    # What open gives is not handed on to programs that are started.
    own = kernel.open(f"/proc/self/fd/{fd}")
    assert not os.get_inheritable(own)
    assert kernel.pwrite(own, b"register", 4) == 8
    assert kernel.pread(own, 4, 8) == b"ster"
    with pytest.raises(OSError, match="of it failed in the kernel") as caught:
        call(kernel, own, 0x3B75, bytearray(8), "that part of it", "region")
    assert caught.value.errno == errno.ENOTTY
    kernel.close(own)
    kernel.close(fd)
