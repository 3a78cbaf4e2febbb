"""The device's state in a stream that QEMU has written to a file.

Only what a single VFIO device needs: its records are found by their flag, whose 64 bits nothing else
in such a small guest holds.
"""

import struct

#: VFIO_MIG_FLAG_DEV_DATA_STATE, then a length: hw/vfio/migration.c, big-endian.
_HEAD = struct.Struct(">QQ")
_DATA_STATE = struct.pack(">Q", 0xFFFF_FFFF_EF10_0004)


def device_images(stream: bytes) -> list[tuple[int, bytes]]:
    """Offset and bytes of each piece of the device's state. ValueError for a stream cut short."""
    found = []
    at = stream.find(_DATA_STATE)
    while at >= 0:
        start = at + _HEAD.size
        length = _HEAD.unpack_from(stream, at)[1]
        if start + length > len(stream):
            raise ValueError(f"a piece of {length} bytes at {start} of {len(stream)}")
        if length:
            found.append((start, stream[start : start + length]))
        at = stream.find(_DATA_STATE, start + length)
    return found


def with_images(stream: bytes, images: list[bytes]) -> bytes:
    """The stream with the device's state replaced. ValueError where the sizes differ."""
    places = device_images(stream)
    if [len(piece) for _, piece in places] != [len(image) for image in images]:
        raise ValueError("the images have other sizes than those in the stream")
    new = bytearray(stream)
    for (start, _), image in zip(places, images, strict=True):
        new[start : start + len(image)] = image
    return bytes(new)
