"""A guest for the mtty device: a boot sector that works with it, and checks it, at each timer tick.

It sets up the first port (line control, modem control, four bytes in the FIFO, which the device
loops back) and then counts, in its memory and in the port's scratch register: at each tick the two
have to agree. So a device that comes out of a migration with another moment's state, or a memory
that does, is noticed by the guest itself.
"""

from dataclasses import dataclass

#: The device is function 0 of this slot.
SLOT = 4

#: Where the guest keeps what it knows: ticks, disagreements, the port, a mark that it is at work.
REPORT = 0x7E00
MARK = 0x4F494656

#: Registers of a 16550, by their offset in BAR 0.
FIFO, FIFO_CONTROL, LINE_CONTROL, MODEM_CONTROL, SCRATCH = 0, 2, 3, 4, 7

#: FIFO_CONTROL: enabled, and emptied.
FIFO_CLEAR = 7

#: Of a floppy disk; the BIOS tells its geometry by it.
_DISK = 1_474_560


@dataclass(frozen=True, slots=True)
class Registers:
    """What is set, and has to be found at the other end. ``fifo``: four bytes, as Latin-1."""

    line_control: int
    modem_control: int
    fifo: str


# Real mode, loaded at 0x7c00. In the words of the GNU assembler; capitals are filled in.
_LISTING = """
31 c0               xorw   %ax, %ax
8e d8               movw   %ax, %ds
66 b8 BAR           movl   $BAR, %eax           # the address of BAR 0 in config space
ba f8 0c            movw   $0xcf8, %dx
66 ef               outl   %eax, %dx
b2 fc               movb   $0xfc, %dl
66 ed               inl    %dx, %eax
24 fc               andb   $0xfc, %al
a3 08 7e            movw   %ax, 0x7e08
66 c7 06 00 7e 00 00 00 00   movl $0, 0x7e00
66 c7 06 04 7e 00 00 00 00   movl $0, 0x7e04
89 c2               movw   %ax, %dx
42                  incw   %dx
42                  incw   %dx
b0 07               movb   $7, %al              # FIFO control: enable and clear
ee                  outb   %al, %dx
42                  incw   %dx
b0 LINE             movb   $LINE, %al
ee                  outb   %al, %dx
42                  incw   %dx
b0 MODEM            movb   $MODEM, %al
ee                  outb   %al, %dx
83 ea 04            subw   $4, %dx
b0 F0               movb   $F0, %al             # four bytes into the FIFO
ee                  outb   %al, %dx
b0 F1               movb   $F1, %al
ee                  outb   %al, %dx
b0 F2               movb   $F2, %al
ee                  outb   %al, %dx
b0 F3               movb   $F3, %al
ee                  outb   %al, %dx
83 c2 07            addw   $7, %dx
30 c0               xorb   %al, %al
ee                  outb   %al, %dx             # the scratch register: no tick yet
66 c7 06 0c 7e MARK movl   $MARK, 0x7e0c
fb                  sti                         # tick:
f4                  hlt
ec                  inb    %dx, %al
3a 06 00 7e         cmpb   0x7e00, %al
74 05               je     1f
66 ff 06 04 7e      incl   0x7e04               # they disagree
66 ff 06 00 7e      incl   0x7e00               # 1:
a0 00 7e            movb   0x7e00, %al
ee                  outb   %al, %dx
eb e7               jmp    tick
"""


def _assembled(values: dict[str, bytes]) -> bytes:
    code = bytearray()
    for line in _LISTING.strip().splitlines():
        for word in line.split():
            if word in values:
                code += values[word]
            elif len(word) == 2 and set(word) <= set("0123456789abcdef"):
                code.append(int(word, 16))
            else:
                break
    return bytes(code)


def disk(registers: Registers) -> bytes:
    """A floppy disk's image that boots into the guest."""
    fifo = registers.fifo.encode("latin-1")
    if len(fifo) != 4:
        raise ValueError(f"the FIFO is given 4 bytes, not {len(fifo)}")
    values = {
        "BAR": (0x8000_0010 | SLOT << 11).to_bytes(4, "little"),
        "LINE": bytes([registers.line_control]),
        "MODEM": bytes([registers.modem_control]),
        "MARK": MARK.to_bytes(4, "little"),
        **{f"F{n}": fifo[n : n + 1] for n in range(4)},
    }
    return (_assembled(values).ljust(510, b"\0") + b"\x55\xaa").ljust(_DISK, b"\0")
