"""Guest memory: regions of device addresses, each backed by a memfd.

A memfd can be mapped by other processes, and tells which of its pages were ever written, so that
untouched pages need not be moved. Here it is mapped twice: once for the guest's CPU and once, when it
is asked for, for devices, so that the kernel can tell who wrote a page.
"""

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from precopy.vfio.errors import refuse

PAGE_SIZE = 4096


class RegionSpec(NamedTuple):
    """Where a region stands: ``iova`` and ``length`` in bytes, both multiples of 4096."""

    iova: int
    length: int


class Extent(NamedTuple):
    """Bytes of a region that hold data: ``region`` counts from 0, ``offset`` is inside it."""

    region: int
    offset: int
    length: int


@dataclass(slots=True, eq=False)
class Region:
    """One mapped memfd; ``view`` is all of it, writable, as the guest's CPU has it."""

    spec: RegionSpec
    fd: int
    map: mmap.mmap
    view: memoryview
    _device: tuple[mmap.mmap, memoryview] | None = None
    _making: threading.Lock = field(default_factory=threading.Lock)

    @property
    def device_view(self) -> memoryview:
        """All of it in another mapping of the same memory, made at first use: what DMA goes through.

        Who tracks the CPU's writes in ``view`` (``precopy.memory``) does not see those made here.
        OSError: ENOMEM where it can't be mapped, EBADF where the memory is closed.
        """
        with self._making:
            if self.fd < 0:
                raise refuse(errno.EBADF, f"guest memory {self.spec} is closed")
            if self._device is None:
                mapped = mmap.mmap(self.fd, self.spec.length)
                self._device = mapped, memoryview(mapped)
            return self._device[1]

    def close(self) -> None:
        """Unmap and close; a second call does nothing. Views still held keep their mapping alive."""
        with self._making:
            if self.fd < 0:
                return
            os.close(self.fd)
            self.fd = -1
            device, self._device = self._device, None
        for mapped, view in ((self.map, self.view), *([device] if device else [])):
            # A view in use: the mapping ends with it.
            with contextlib.suppress(BufferError):
                view.release()
                mapped.close()


class GuestMemory:
    """The regions of one guest, in ascending order of iova, none overlapping.

    Raises OSError EINVAL for regions that overlap, are empty or not aligned to pages; ENOMEM where
    they can't be mapped.
    """

    def __init__(self, specs: Sequence[RegionSpec]) -> None:
        specs = sorted(RegionSpec(*spec) for spec in specs)
        end = 0
        for spec in specs:
            if spec.length <= 0 or spec.iova % PAGE_SIZE or spec.length % PAGE_SIZE:
                raise refuse(errno.EINVAL, f"guest memory {spec} is not made of whole pages")
            if spec.iova < end or spec.iova + spec.length > 1 << 64:
                raise refuse(errno.EINVAL, f"guest memory {spec} overlaps or wraps around")
            end = spec.iova + spec.length
        self.regions: list[Region] = []
        try:
            for spec in specs:
                self.regions.append(self._map(spec))
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _map(spec: RegionSpec) -> Region:
        fd = os.memfd_create("precopy-guest", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, spec.length)
            mapped = mmap.mmap(fd, spec.length)
        except BaseException:
            os.close(fd)
            raise
        return Region(spec, fd, mapped, memoryview(mapped))

    @property
    def specs(self) -> tuple[RegionSpec, ...]:
        return tuple(region.spec for region in self.regions)

    @property
    def size(self) -> int:
        """Bytes in all regions together."""
        return sum(region.spec.length for region in self.regions)

    def extents(self, only: int | None = None) -> Iterator[Extent]:
        """The parts that were ever written, at the granularity of pages; all else reads as 0.

        ``only``: those of one region.
        """
        for index, region in enumerate(self.regions):
            if only is not None and index != only:
                continue
            offset = 0
            while offset < region.spec.length:
                try:
                    start = os.lseek(region.fd, offset, os.SEEK_DATA)
                except OSError as error:
                    if error.errno == errno.ENXIO:
                        break
                    raise
                offset = os.lseek(region.fd, start, os.SEEK_HOLE)
                yield Extent(index, start, offset - start)

    def view(self, iova: int, length: int) -> memoryview:
        """The ``length`` bytes at ``iova``, inside one region, not copied. EFAULT where there are none."""
        for region in self.regions:
            start = iova - region.spec.iova
            if start >= 0 and start + length <= region.spec.length:
                return region.view[start : start + length]
        raise refuse(errno.EFAULT, f"no guest memory at {iova:#x}, {length} bytes")

    def close(self) -> None:
        """Unmap and close; a second call does nothing. Views still held keep their mapping alive."""
        for region in self.regions:
            region.close()
        self.regions.clear()
