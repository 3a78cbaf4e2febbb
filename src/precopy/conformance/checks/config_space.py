"""PCI configuration space, of what the checks need: the list of capabilities."""

from precopy.conformance.check import Registers
from precopy.vfio.face import RegionIndex

#: Where the list of capabilities starts, and ids of some (PCI Local Bus 3.0, appendix H).
_CAP_POINTER = 0x34
CAP_EXPRESS, CAP_MSIX = 0x10, 0x11
#: More there can't be in 256 bytes; a list that goes round ends here, too.
_MOST = 48


def read_config(face: Registers, offset: int, size: int) -> int:
    return int.from_bytes(face.region_read(RegionIndex.CONFIG, offset, size), "little")


def find_capability(face: Registers, wanted: int) -> int:
    """The offset of the capability ``wanted``; 0 where there is none."""
    at = read_config(face, _CAP_POINTER, 1)
    for _ in range(_MOST):
        if not at or read_config(face, at, 1) == wanted:
            return at
        at = read_config(face, at + 1, 1)
    return 0
