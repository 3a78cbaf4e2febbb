"""What both ways of a VFIO device's state have: the words in it, and the device's PCI state.

hw/vfio/migration.c, hw/vfio/pci.c and hw/pci/pci.c, QEMU 11.1.
"""

import enum
from collections.abc import Iterator

from precopy.stream.cursor import BitField, Steps, Stream
from precopy.stream.layout import Layout, hexadecimal, named


class Flag(enum.IntEnum):
    """The words that a section is made of (VFIO_MIG_FLAG_*)."""

    END_OF_STATE = 0xFFFF_FFFF_EF10_0001
    DEV_CONFIG_STATE = 0xFFFF_FFFF_EF10_0002
    DEV_SETUP_STATE = 0xFFFF_FFFF_EF10_0003
    DEV_DATA_STATE = 0xFFFF_FFFF_EF10_0004
    DEV_INIT_DATA_SENT = 0xFFFF_FFFF_EF10_0005
    DEV_CONFIG_LOAD_READY = 0xFFFF_FFFF_EF10_0006


FLAG = Layout(">", ("flag", "Q", named(Flag)))

#: Config space and the interrupt lines behind it: hw/pci/pci.c.
_VERSION_BYTES, _INTERRUPT_BYTES = 4, 16
_CONFIG_SIZES = (4096, 256)

#: Of config space, little-endian: offset, name, bytes.
_CONFIG = (
    (0x00, "vendor", 2),
    (0x02, "device", 2),
    (0x04, "command", 2),
    (0x06, "status", 2),
    (0x08, "revision", 1),
    (0x09, "class", 3),
    *((0x10 + 4 * number, f"bar{number}", 4) for number in range(6)),
    (0x2C, "subsystem_vendor", 2),
    (0x2E, "subsystem_device", 2),
    (0x3C, "interrupt_line", 1),
    (0x3D, "interrupt_pin", 1),
)


def pci_state(stream: Stream, size: int) -> Steps[None]:
    """``size`` bytes: version, config space, interrupt lines, then MSI-X and what else there is."""
    config = next(
        (each for each in _CONFIG_SIZES if size >= _VERSION_BYTES + each + _INTERRUPT_BYTES), 0
    )
    if not config:
        yield from stream.opaque("PCI state", size, "too short; not looked at")
        return
    data = bytes(
        (yield from stream.window(_VERSION_BYTES + config + _INTERRUPT_BYTES, "PCI state"))
    )
    with stream.group("PCI state", size):
        version = int.from_bytes(data[:4], "big")
        yield from stream.bits("version", 4, [("version", 0, 4, version, f"{version}")])
        fields = list(_config_fields(data[4 : 4 + config]))
        yield from stream.bits("config space", config, fields, f"{config} bytes")
        lines: list[BitField] = []
        for number in range(4):
            at = 4 + config + 4 * number
            level = int.from_bytes(data[at : at + 4], "big")
            lines.append((f"INT{'ABCD'[number]}", 4 * number, 4, level, f"{level}"))
        yield from stream.bits("interrupt lines", _INTERRUPT_BYTES, lines)
        rest = size - _VERSION_BYTES - config - _INTERRUPT_BYTES
        vectors = _msix_vectors(data[4 : 4 + config])
        msix = vectors * 16 + -(-vectors // 8)
        if vectors and msix <= rest:
            text = f"{vectors} vectors: table, then pending bits"
            yield from stream.opaque("MSI-X", msix, text)
            rest -= msix
        if rest:
            yield from stream.opaque("more", rest, "subsections; not looked at")


def _config_fields(config: bytes) -> Iterator[BitField]:
    for at, name, size in _CONFIG:
        value = int.from_bytes(config[at : at + size], "little")
        yield name, at, size, value, hexadecimal(value)


def _msix_vectors(config: bytes) -> int:
    """Of the capability MSI-X; 0 where there is none."""
    if not int.from_bytes(config[6:8], "little") & 0x10:
        return 0
    at = config[0x34] & 0xFC
    for _ in range(48):
        if not 0x40 <= at <= 0xFC:
            break
        if config[at] == 0x11:
            return (int.from_bytes(config[at + 2 : at + 4], "little") & 0x7FF) + 1
        at = config[at + 1] & 0xFC
    return 0
