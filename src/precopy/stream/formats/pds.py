"""Streams of pds-vfio-pci: drivers/vfio/pci/pds, include/linux/pds/pds_adminq.h, Linux 7.3.4.

The device's firmware writes up to 65536 bytes (``PDS_LM_DEVICE_STATE_LENGTH``), without a magic, a
version or a length. What they mean is the firmware's own; nobody can recognise them.
"""

from precopy.stream.cursor import Steps, Stream
from precopy.stream.registry import register

#: All that a target has room for.
LENGTH = 65536


def _recognise(head: bytes) -> int:
    return 0


@register("pds", "state of an AMD Pensando VF, opaque (only by --format)", _recognise)
def dissect(stream: Stream) -> Steps[None]:
    """Words of the firmware's. How many there are, it alone knows."""
    if not (yield from stream.more()):
        raise stream.damage("the device's state", "the end of the stream")
    with stream.group("device state", text="opaque, the firmware's own") as group:
        block = 4096
        for number in range(LENGTH // block):
            size = len((yield from stream.head(block)))
            if not size:
                break
            yield from stream.opaque(f"block {number}", size)
        group.text = f"opaque, the firmware's own, at most {LENGTH} bytes"
    stream.phase("final", stream.offset)
