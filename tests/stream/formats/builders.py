"""Streams of the kernel's drivers, written by hand from the structures in their sources (Linux 7.3.4)."""

import struct
from dataclasses import dataclass, field

import xxhash

# --- mlx5: drivers/vfio/pci/mlx5/cmd.h --------------------------------------------------------

IMAGE = struct.Struct("<8sHHIQIBBHQQQQ")
FULL, FINAL = 1, 2
#: Tables of the software adapter's context memory, by their number in a page id.
PD, UAR, MKEY, MTT, EQ, CQ, QP, STEERING, HCA = range(9)


def record(payload: bytes, flags: int = 0, tag: int = 0) -> bytes:
    """A record of mlx5, and of virtio."""
    return struct.pack("<QII", len(payload), flags, tag) + payload


def size_record(size: int) -> bytes:
    return record(struct.pack("<Q", size), 1, 1)


def image(
    pages: dict[tuple[int, int], bytes],
    flags: int = FULL,
    sequence: int = 0,
    session: int = 9,
    model: int = 0x101E,
) -> bytes:
    """An image of the software adapter: pages of a small function by table and number."""
    ids = b"".join(struct.pack("<Q", table << 32 | page) for table, page in sorted(pages))
    body = ids + b"".join(pages[key] for key in sorted(pages))
    head = IMAGE.pack(
        *(b"CXVHCA\r\n", 1, flags, sequence, session, model, 8, 8, 3, 4),
        *(len(pages), IMAGE.size + len(body), 0),
    )[:-8]
    return head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head + body)) + body


def qp_page(*states: int) -> bytes:
    """A page with two QPs, in use and in these states (at most two)."""
    page = bytearray(4096)
    for slot, state in enumerate(states):
        page[slot * 2048] = state << 4
        page[slot * 2048 + 0x740 // 8] = 1
    return bytes(page)


def mlx5(*images: bytes) -> bytes:
    return size_record(8192) + b"".join(map(record, images))


def mlx5_images() -> list[bytes]:
    """An initial, a middle and a final one."""
    return [
        image({(QP, 1): qp_page(3, 3), (STEERING, 0): b"\x55" * 4096}),
        image({(QP, 1): qp_page(3, 6)}, flags=0, sequence=1),
        image({(STEERING, 3): b"\x66" * 4096}, flags=FINAL, sequence=2),
    ]


# --- virtio: include/uapi/linux/virtio_pci.h --------------------------------------------------


def part(kind: int, value: bytes, selector: int = 0, flags: int = 0) -> bytes:
    return struct.pack("<HBBQI", kind, flags, 0, selector, len(value)) + value


def virtio_parts() -> bytes:
    return b"".join(
        (
            part(0x100, struct.pack("<Q", 0x1_3000_0000), flags=1),
            part(0x101, struct.pack("<QQ", 0x1_0000_0000, 0)),
            part(0x102, struct.pack("<H", 3), selector=0x12),
            part(0x103, b"\x0f"),
            part(0x104, struct.pack("<HHHHQQQ", 256, 1, 1, 0, 0x1000, 0x2000, 0x3000), selector=1),
            part(0x105, struct.pack("<HHI", 1, 1, 0), selector=1),
            part(0x200, b"mac addr"),
        )
    )


def virtio() -> bytes:
    return b"".join((record(virtio_parts()), record(b"new", 1, 5), record(virtio_parts())))


# --- mtty: samples/vfio-mdev/mtty.c -----------------------------------------------------------


def mtty(ports: int = 2) -> bytes:
    port = struct.pack(
        "<8B16s3B2Bx H3Bx", *range(8), b"loop back       ", 9, 0, 9, 0, 1, 12, 1, 16, 8
    )
    assert len(port) == 36
    return struct.pack("<QIIII", 0x7E9D09898C3E2C4E, 1, 0, ports, 0) + port * ports


# --- hisi_acc: drivers/vfio/pci/hisilicon/hisi_acc_vfio_pci.h ---------------------------------


def hisi_acc(magic: int = 0xAACCFEEDDECADEDE, major: int = 1, dma: int = 0x1000) -> bytes:
    data = struct.pack("<Q5I2H2I", magic, 4, 0xA256, 0, 16, 0, major, 0, 0, 0)
    assert len(data) == 40
    data += struct.pack("<6I7I7I5II4Q", *range(26), dma, 0x2000, 0x3000, 0x4000)
    assert len(data) == 176
    return data


# --- qat: drivers/crypto/intel/qat/qat_common/adf_mstate_mgr.c --------------------------------


@dataclass
class Section:
    """``struct adf_mstate_sect_h`` and what is in it."""

    id: str
    content: bytes = b""
    inner: list["Section"] = field(default_factory=list)

    def pack(self) -> bytes:
        inside = self.content + b"".join(each.pack() for each in self.inner)
        return struct.pack("<8sII", self.id.encode(), len(inside), len(self.inner)) + inside


def preamble(*sections: Section) -> bytes:
    inside = b"".join(each.pack() for each in sections)
    return struct.pack("<IIHHI", 0xADF5CAEA, 1, 16, len(sections), len(inside)) + inside


def word(name: str, value: int, size: int = 4) -> Section:
    return Section(name, value.to_bytes(size, "little"))


def qat_setup() -> bytes:
    config = [word("gencap", 0x7F), word("svcmap", 0x2D, 2), word("extdc", 1)]
    return preamble(Section("CONFIG", inner=config))


def qat() -> bytes:
    sla = struct.pack("<IIQII", 1, 0, 0xF, 100, 200)
    general = [word("iovinit", 1, 1), word("compver", 4, 1), Section("sla", sla * 2)]
    misc = [word(name, 7) for name in ("visrc", "vimsk", "vispv", "vimpv", "pf2vm", "vm2pf")]
    bank = struct.pack("<22I", *range(22)) + struct.pack("<QIIII", 0x1000, 1, 2, 3, 0) * 16
    banks = [Section(f"bnk{number}", inner=[Section("mregs", bank)]) for number in range(4)]
    state = preamble(
        Section("GENER", inner=general),
        Section("MISCBAR", inner=misc),
        Section("ETRBAR", inner=banks),
    )
    return (qat_setup() + state).ljust(4096, b"\0")


# --- xe: drivers/gpu/drm/xe/xe_sriov_packet_types.h -------------------------------------------


def packet(kind: int, payload: bytes = b"", tile: int = 0, gt: int = 0, offset: int = 0) -> bytes:
    return struct.pack("<BBBBIQQ", 1, kind, tile, gt, 0, offset, len(payload)) + payload


def klv(key: int, *words: int) -> bytes:
    return struct.pack(f"<HH{len(words)}I", len(words), key, *words)


def xe_descriptor() -> bytes:
    return packet(1, klv(0xF001, 0x64A0) + klv(0xF002, 4) + klv(0x1234, 1, 2))


def xe() -> bytes:
    return b"".join(
        (
            xe_descriptor(),
            packet(5, b"guc state" * 7, gt=1),
            packet(3, bytes(8) * 4),
            packet(4, struct.pack("<4I", 1, 2, 3, 4)),
            packet(6, b"\x5a" * 4096, offset=0x200000),
            packet(2),
        )
    )


#: Format, a whole stream of it, and where else it may end and still be one.
SAMPLES: dict[str, tuple[bytes, frozenset[int]]] = {
    "mlx5": (mlx5(*mlx5_images()), frozenset()),
    "virtio": (
        virtio(),
        frozenset({16 + len(virtio_parts()), 16 + len(virtio_parts()) + 19}),
    ),
    "mtty": (mtty(), frozenset()),
    "hisi_acc": (hisi_acc(), frozenset({40})),
    "qat": (qat(), frozenset({len(qat_setup())})),
    "xe": (xe(), frozenset()),
}
