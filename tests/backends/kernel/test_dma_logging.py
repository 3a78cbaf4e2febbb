"""DMA logging on the fake kernel, which writes whole 64-bit words into a bitmap."""

import errno
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.backends.kernel import KernelVfioDevice
from precopy.vfio.device import DmaRange, VfioDevice
from tests.backends.kernel.conftest import NAME
from tests.backends.kernel.fake_device import PAGE
from tests.backends.kernel.fake_kernel import FakeKernel
from tests.backends.kernel.test_device import bound

TOP = 1 << 64


def bits(bitmap: bytes | bytearray) -> set[int]:
    return {n for n in range(len(bitmap) * 8) if bitmap[n // 8] >> n % 8 & 1}


@pytest.mark.parametrize(
    "ranges",
    [
        [DmaRange(0, PAGE)],
        [DmaRange(8 * PAGE, PAGE), DmaRange(0, 2 * PAGE), DmaRange(2 * PAGE, PAGE)],
        [DmaRange(n * PAGE, PAGE) for n in range(256)],
        [DmaRange(TOP - 2 * PAGE, PAGE)],
    ],
)
def test_start(device: VfioDevice, kernel: FakeKernel, ranges: Sequence[DmaRange]) -> None:
    assert device.log_start(ranges, PAGE) == PAGE
    assert kernel.device.logged == sorted(tuple(each) for each in ranges)
    device.log_stop()
    device.log_stop()
    assert kernel.device.logged == []


def test_the_page_size_is_the_device_s(device: VfioDevice) -> None:
    assert device.log_start([DmaRange(0, 4 * PAGE)], 2 * PAGE) == PAGE


@pytest.mark.parametrize(
    ("ranges", "page_size", "code"),
    [
        ([], PAGE, errno.EINVAL),
        ([DmaRange(0, PAGE)] * 2, PAGE, errno.EINVAL),
        ([DmaRange(1, PAGE)], PAGE, errno.EINVAL),
        ([DmaRange(0, PAGE)], 0, errno.EINVAL),
        ([DmaRange(n * PAGE, PAGE) for n in range(257)], PAGE, errno.E2BIG),
        ([DmaRange(TOP - PAGE, PAGE)], PAGE, errno.EOVERFLOW),
        # Numbers that the structure has no room for.
        ([DmaRange(TOP, PAGE)], PAGE, errno.EOVERFLOW),
        ([DmaRange(-PAGE, PAGE)], PAGE, errno.EOVERFLOW),
        ([DmaRange(0, PAGE)], TOP, errno.EOVERFLOW),
    ],
)
def test_start_refused(
    device: VfioDevice, ranges: Sequence[DmaRange], page_size: int, code: int
) -> None:
    with pytest.raises(OSError, match=NAME) as caught:
        device.log_start(ranges, page_size)
    assert caught.value.errno == code


def test_a_second_start_leaves_the_first_alone(device: VfioDevice, kernel: FakeKernel) -> None:
    device.log_start([DmaRange(0, PAGE)], PAGE)
    kernel.device.write_page(0)
    with pytest.raises(OSError, match="DMA_LOGGING_START") as caught:
        device.log_start([DmaRange(PAGE, PAGE)], PAGE)
    assert caught.value.errno == errno.EINVAL
    bitmap = bytearray(1)
    device.log_report(0, PAGE, PAGE, memoryview(bitmap))
    assert bitmap == b"\x01"


@given(
    written=st.sets(st.integers(0, 299)),
    first=st.integers(0, 250),
    pages=st.integers(0, 300),
    shift=st.integers(0, 3),
    spare=st.integers(0, 9),
    before=st.integers(0, 255),
)
@settings(deadline=None)
def test_report(
    written: set[int], first: int, pages: int, shift: int, spare: int, before: int
) -> None:
    """Bits are added where pages were written, and nothing beyond the caller's buffer changes."""
    kernel = FakeKernel()
    device = bound(kernel)
    device.log_start([DmaRange(0, 600 * PAGE)], PAGE)
    for page in written:
        kernel.device.write_page(page * PAGE)
    step = 1 << shift
    need = math.ceil(pages / step / 8)
    whole = bytearray([before]) * (need + spare) + bytearray(b"\xa5" * 16)
    bitmap = memoryview(whole)[: need + spare]
    device.log_report(first * PAGE, pages * PAGE, step * PAGE, bitmap)
    expected = {(page - first) // step for page in written if first <= page < first + pages}
    assert bits(bytes(bitmap)) == bits(bytes([before]) * (need + spare)) | expected
    assert whole[need + spare :] == b"\xa5" * 16
    # What was told is not told again; the pages beside it are kept.
    rest = bytearray(38)
    device.log_report(0, 300 * PAGE, PAGE, memoryview(rest))
    assert bits(rest) == {page for page in written if not first <= page < first + pages}
    bitmap.release()
    device.close()


@pytest.mark.parametrize(
    ("iova", "length", "page_size", "size", "code"),
    [
        # The kernel would write beyond the end of the buffer.
        (0, 9 * PAGE, PAGE, 1, errno.EFAULT),
        (0, PAGE, PAGE, 0, errno.EFAULT),
        (0, 64 * PAGE + 1, PAGE, 8, errno.EFAULT),
        (0, PAGE, 0, 1, errno.EINVAL),
        (0, PAGE, 2048, 1, errno.EINVAL),
        (0, PAGE, 3 * PAGE, 1, errno.EINVAL),
        # That the page size is wrong comes first, as in the kernel.
        (0, 64 * PAGE, 1, 8, errno.EINVAL),
        (PAGE, TOP - PAGE, PAGE, 1, errno.EOVERFLOW),
        (PAGE, TOP - 1, PAGE, 1, errno.EOVERFLOW),
        (TOP, PAGE, PAGE, 1, errno.EOVERFLOW),
        (0, PAGE, TOP, 1, errno.EOVERFLOW),
    ],
)
def test_report_refused(
    device: KernelVfioDevice, iova: int, length: int, page_size: int, size: int, code: int
) -> None:
    device.log_start([DmaRange(0, 128 * PAGE)], PAGE)
    whole = bytearray(b"\xa5" * (size + 16))
    with pytest.raises(OSError, match=NAME) as caught:
        device.log_report(iova, length, page_size, memoryview(whole)[:size])
    assert caught.value.errno == code
    assert whole == b"\xa5" * (size + 16)


def test_report_to_what_may_not_be_written(device: KernelVfioDevice) -> None:
    device.log_start([DmaRange(0, 128 * PAGE)], PAGE)
    with pytest.raises(OSError, match=NAME) as caught:
        device.log_report(0, PAGE, PAGE, memoryview(bytes(8)))
    assert caught.value.errno == errno.EFAULT


def test_report_without_a_log(device: VfioDevice) -> None:
    with pytest.raises(OSError, match="DMA_LOGGING_REPORT") as caught:
        device.log_report(0, PAGE, PAGE, memoryview(bytearray(1)))
    assert caught.value.errno == errno.EINVAL


def test_logging_ends_with_the_device(device: VfioDevice, kernel: FakeKernel) -> None:
    device.log_start([DmaRange(0, PAGE)], PAGE)
    device.close()
    assert kernel.device.logged == []
