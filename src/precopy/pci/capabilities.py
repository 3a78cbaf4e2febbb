"""Capabilities of a function: PCI Express, power management, MSI-X, SR-IOV.

Each is a function that writes its registers into a config space and says where they are. Source:
PCI Express Base Specification 5.0, sections 7.5.2, 7.5.3, 7.7.2, 9.3.3.
"""

from dataclasses import dataclass

from precopy.pci.config_space import ConfigSpace

_ID_PM, _ID_VENDOR, _ID_EXPRESS, _ID_MSIX = 0x01, 0x09, 0x10, 0x11
_ID_SRIOV = 0x10

# --- PCI Express ------------------------------------------------------------------------------

_EXPRESS_BYTES = 0x3C
_DEVCAP, _DEVCTL, _LNKCAP, _LNKSTA = 0x04, 0x08, 0x0C, 0x12
_DEVCAP_FLR = 1 << 28
_DEVCAP_ROLE_BASED = 1 << 15
#: Initiate Function Level Reset; reads as 0.
DEVCTL_FLR = 0x8000
_LINK_16GT_X16 = 4 | 16 << 4


def express(space: ConfigSpace) -> int:
    """An endpoint that can be reset by itself. The offset of Device Control."""
    at = space.add_capability(_ID_EXPRESS, _EXPRESS_BYTES)
    space.put(at + 2, 2, 2)
    space.put(at + _DEVCAP, 4, _DEVCAP_FLR | _DEVCAP_ROLE_BASED | 2)
    space.put(at + _DEVCTL, 2, 0x2810, 0xFFFF)
    space.put(at + _LNKCAP, 4, _LINK_16GT_X16)
    space.put(at + _LNKSTA, 2, _LINK_16GT_X16)
    return at + _DEVCTL


# --- Power management -------------------------------------------------------------------------


def power_management(space: ConfigSpace) -> int:
    """D0 and D3hot, nothing lost between. The offset of the control register."""
    at = space.add_capability(_ID_PM, 8)
    space.put(at + 2, 2, 3)
    #: No_Soft_Reset, and the power state that a driver sets.
    space.put(at + 4, 2, 0x8, 0x3)
    return at + 4


# --- MSI-X ------------------------------------------------------------------------------------

MSIX_ENABLE = 0x8000
MSIX_MASK_ALL = 0x4000


def msix(space: ConfigSpace, vectors: int, bar: int, table: int, pending: int) -> int:
    """``vectors`` vectors; table and pending bits at these offsets of ``bar``. Message Control's offset."""
    at = space.add_capability(_ID_MSIX, 12)
    space.put(at + 2, 2, vectors - 1, MSIX_ENABLE | MSIX_MASK_ALL)
    space.put(at + 4, 4, table | bar)
    space.put(at + 8, 4, pending | bar)
    return at + 2


# --- A capability of the maker's own ----------------------------------------------------------


def vendor_specific(space: ConfigSpace, kind: int, length: int) -> int:
    """``length`` bytes with the header, whose fourth byte is ``kind``. Its offset."""
    at = space.add_capability(_ID_VENDOR, length)
    space.put(at + 2, 1, length)
    space.put(at + 3, 1, kind)
    return at


# --- SR-IOV -----------------------------------------------------------------------------------

_SRIOV_BYTES = 0x40
SRIOV_VF_ENABLE = 0x1


@dataclass(frozen=True, slots=True)
class SriovRegisters:
    """Offsets of the registers that matter once it works."""

    control: int
    num_vfs: int


def sriov(
    space: ConfigSpace, *, total: int, device_id: int, bar_bytes: int, offset: int, stride: int
) -> SriovRegisters:
    """Up to ``total`` VFs at routing ids ``offset`` + n * ``stride``, each with a BAR0 of ``bar_bytes``."""
    at = space.add_extended(_ID_SRIOV, 1, _SRIOV_BYTES)
    # VF Enable and VF Memory Space Enable.
    space.put(at + 0x08, 2, 0, SRIOV_VF_ENABLE | 0x8)
    space.put(at + 0x0C, 2, total)
    space.put(at + 0x0E, 2, total)
    space.put(at + 0x10, 2, 0, 0xFFFF)
    space.put(at + 0x14, 2, offset)
    space.put(at + 0x16, 2, stride)
    space.put(at + 0x1A, 2, device_id)
    # Pages of 4 KiB, and those alone.
    space.put(at + 0x1C, 4, 1)
    space.put(at + 0x20, 4, 1, 1)
    space.put_bar(at + 0x24, bar_bytes)
    return SriovRegisters(control=at + 0x08, num_vfs=at + 0x10)
