"""A VFIO device's sections: hw/vfio/migration.c, QEMU 11.1. The device's own state is a stream of its own."""

from precopy.stream.cursor import Steps, Stream
from precopy.stream.layout import Layout, named
from precopy.stream.qemu import multifd
from precopy.stream.qemu.config import FLAG, Flag, pci_state
from precopy.stream.qemu.state import (
    END,
    FULL,
    PART,
    START,
    Main,
    Section,
    distance,
    footer,
    pass_over,
)

#: Those behind which nothing of the section follows.
_LAST = (Flag.END_OF_STATE, Flag.DEV_INIT_DATA_SENT, Flag.DEV_CONFIG_LOAD_READY)

DATA = Layout(">", ("flag", "Q", named(Flag)), ("length", "Q"))

_PHASES = {START: "setup", PART: "pre-copy", END: "stop-copy"}


def owns(name: str) -> bool:
    """Whether a section of this name is a VFIO device's."""
    return name == "vfio" or name.endswith("/vfio")


def body(stream: Stream, main: Main, section: Section, kind: int) -> Steps[None]:
    """Up to the word that ends the section. Damage."""
    pieces, config = 0, False
    while True:
        flag = (yield from stream.look(FLAG, "a VFIO flag"))["flag"]
        if flag not in Flag._value2member_map_:
            expected = f"a VFIO flag, {Flag.END_OF_STATE:#x} to {Flag.DEV_CONFIG_LOAD_READY:#x}"
            raise stream.damage(expected, f"{flag:#x}")
        name = Flag(flag).name
        if flag == Flag.DEV_DATA_STATE:
            length = (yield from stream.look(DATA, name))["length"]
            with stream.group(f"data {pieces}" if pieces else "data", DATA.size + length):
                yield from stream.struct(name, DATA)
                if section.number in main.broken:
                    yield from stream.opaque("state", length, "behind a wrong place")
                else:
                    device = _device(stream, main, section)
                    device.count("pieces of data")
                    device.phase(_PHASES.get(kind, "config"), length)
                    yield from stream.pass_on(device, length, f"the state of {section.device}")
            pieces += 1
            continue
        yield from stream.struct(name, FLAG)
        if flag == Flag.DEV_CONFIG_STATE:
            config = True
            yield from _config(stream, main, section)
        elif flag in _LAST:
            break
    if kind == END and not pieces:
        _by_multifd(stream, main, section)
    elif kind == FULL and not config:
        _without_config(stream, main, section)


def breaks(main: Main) -> None:
    """The section that one is in has a wrong place: of a device's state there, no one knows the rest."""
    if main.inside is not None:
        main.broken.add(main.inside)
        if main.inside in main.devices:
            main.devices[main.inside].leave("a piece of it is wrong")
        main.inside = None


def _device(stream: Stream, main: Main, section: Section) -> Stream:
    """The stream of the device's state."""
    found = main.devices.get(section.number)
    if found is None:
        found = main.devices[section.number] = stream.carry(section.device)
    return found


def _by_multifd(stream: Stream, main: Main, section: Section) -> None:
    """The last part of the state, if it went over multifd's channels and they were given."""
    packets = multifd.packets_of(stream).get((section.name, section.instance), {})
    if not packets or section.number in main.broken:
        return
    stream.say("multifd", "what follows came over channels of its own")
    device = _device(stream, main, section)
    for index in range(len(packets)):
        packet = packets.get(index)
        if packet is None:
            break
        if packet.config:
            device.phase("config", packet.size)
            break
        file = stream.files[packet.file]
        assert file is not None
        device.count("packets of data")
        device.phase("stop-copy", packet.size)
        at, end = packet.offset, packet.offset + packet.size
        while data := file.read_at(at, min(multifd.STEP, end - at)):
            stream.bring(device, data, packet.file, at)
            at += len(data)
    missing = multifd.gap(packets)
    if missing:
        stream.tell_wrong(stream.damage(f"{missing} of {section.device} in a channel", "none"))
        device.leave(f"{missing} is not in the channels that were given")


def _without_config(stream: Stream, main: Main, section: Section) -> None:
    """Only where the state went over multifd's channels has this section no config."""
    packets = multifd.packets_of(stream).get((section.name, section.instance), {})
    if not packets:
        stream.say("remark", f"the rest of {section.device} is in multifd's channels")
        device = main.devices.get(section.number)
        if device is not None:
            device.leave("in multifd's channels: name their captures behind this one")


def _config(stream: Stream, main: Main, section: Section) -> Steps[None]:
    """The device's PCI state, up to END_OF_STATE and the section's footer."""
    ending = Flag.END_OF_STATE.to_bytes(8, "big") + footer(section.number)
    size = yield from distance(stream, ending, main)
    start = stream.offset
    if size is None:
        with stream.group("PCI state", text="not looked at") as item:
            item.digest = yield from pass_over(stream, ending, main)
    elif size:
        yield from pci_state(stream, size)
    device = main.devices.get(section.number)
    whole = stream.offset - start
    if device is not None:
        device.phase("config", whole)
    else:
        stream.phase(f"{section.device} config", whole)
