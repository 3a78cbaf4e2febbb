"""The guest's memory as a front end shows it: files that it shares, mapped."""

import mmap
import os
import stat
from collections.abc import Sequence

from precopy.frontends.virtio_pcidev.messages import ProtocolError, Region
from precopy.pci.dma import DmaSpace


class GuestTable:
    """The regions of one memory table. ProtocolError for what can't be mapped.

    ``fds``, one for each region, stay the caller's. The memory is unmapped when nothing refers to
    this table nor to a view of it. The front end must not make a file shorter while it is mapped.
    """

    def __init__(self, regions: Sequence[Region], fds: Sequence[int]) -> None:
        #: Guest-physical address and memory of each region.
        self.mappings = [
            (region.guest, _map(region, fd)) for region, fd in zip(regions, fds, strict=True)
        ]
        self._regions = tuple(regions)
        #: The same, to be read and written by guest-physical address.
        self.space = DmaSpace()
        try:
            self.space.replace((), self.mappings)
        except OSError as error:
            raise ProtocolError(f"memory table: {error.strerror}") from error

    def guest_address(self, user: int) -> int:
        """The guest-physical address of the front end's own address ``user``."""
        for region in self._regions:
            if 0 <= user - region.user < region.size:
                return region.guest + user - region.user
        raise ProtocolError(f"address {user:#x} is in no region of the memory table")


def _map(region: Region, fd: int) -> memoryview:
    where = f"region {region.guest:#x}+{region.size:#x}"
    status = os.fstat(fd)
    # Another kind may tell no size, and what lies beyond the size can't be touched.
    if not stat.S_ISREG(status.st_mode):
        raise ProtocolError(f"{where}: its memory is no file")
    if not region.size or region.offset + region.size > status.st_size:
        raise ProtocolError(f"{where} at {region.offset:#x} of a file of {status.st_size:#x} bytes")
    aside = region.offset % mmap.ALLOCATIONGRANULARITY
    try:
        mapped = mmap.mmap(fd, region.size + aside, offset=region.offset - aside)
    except (OSError, ValueError) as error:
        raise ProtocolError(f"{where} can't be mapped: {error}") from error
    return memoryview(mapped)[aside:]
