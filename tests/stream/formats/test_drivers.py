"""What each driver's stream holds, and what its target refuses."""

import struct

import pytest

from tests.stream.formats.builders import (
    Section,
    hisi_acc,
    klv,
    mtty,
    packet,
    part,
    preamble,
    qat,
    qat_setup,
    record,
    virtio,
    virtio_parts,
    word,
    xe,
    xe_descriptor,
)
from tests.stream.hearing import Heard, heard


def fields(found: Heard, name: str) -> dict[str, str]:
    """Of the first item of that name."""
    return {each.name: each.text for each in found.named(name)[0].fields}


def wrongs(data: bytes, format: str) -> list[tuple[int, str]]:
    return [(wrong.offset, wrong.expected) for wrong in heard(data, format).wrongs]


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


# --- mtty -------------------------------------------------------------------------------------


def test_the_ports_of_an_mtty() -> None:
    found = heard(mtty(1))
    port = fields(found, "port 0")
    assert port["uart_reg[3] LCR"] == "0x3"
    assert bytes.fromhex(port["rxtx.fifo"]) == b"loop back       "
    assert (port["rxtx.count"], port["overrun"], port["divisor"]) == ("9", "1", "12")
    assert (port["fcr"], port["max_fifo_size"], port["intr_trigger_level"]) == ("0x1", "16", "8")
    assert found.named("port 0")[0].text == "9 bytes in its FIFO"
    assert found.summaries[0].phases == {"initial": 24, "final": 36}


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (0, "magic 0x7e9d09898c3e2c4e"),
        (8, "major_ver 0x1"),
        (12, "minor_ver 0x0"),
        (16, "nr_ports 0x1 or 0x2"),
        (20, "flags 0x0"),
    ],
)
def test_what_an_mtty_refuses(at: int, expected: str) -> None:
    assert wrongs(changed(mtty(), at, b"\x99"), "mtty") == [(at, expected)]


def test_more_than_the_ports_of_an_mtty() -> None:
    assert wrongs(mtty() + b"more", "mtty") == [(24 + 72, "the end of the stream")]


# --- hisi_acc ---------------------------------------------------------------------------------


def test_the_state_of_an_accelerator() -> None:
    found = heard(hisi_acc())
    match, state = fields(found, "match data"), fields(found, "state")
    assert (match["acc_magic"], match["dev_id"]) == ("V2", "SEC_VF")
    assert (match["qp_num"], match["vf_qm_state"]) == ("4", "QM_READY")
    assert (state["page_size"], state["qm_aeqc_dw[6]"]) == ("0x5", "0x13")
    assert state["cqc_dma"] == "0x4000"
    assert found.summaries[0].phases == {"initial": 40, "final": 136}


def test_both_versions_of_an_accelerator_s_state() -> None:
    assert wrongs(hisi_acc(magic=0xCDCDCDCDFEEDAACC, major=0), "hisi_acc") == []
    assert wrongs(hisi_acc(major=2), "hisi_acc") == [(28, "major_ver 1")]
    assert heard(hisi_acc(magic=0xCDCDCDCDFEEDAACC)).summaries[0].format == "hisi_acc"


def test_an_accelerator_that_is_not_ready_is_told() -> None:
    (state,) = heard(hisi_acc(dma=0)).named("state")
    assert state.text.startswith("eqe_dma 0")


def test_what_an_accelerator_refuses() -> None:
    (wrong,) = wrongs(changed(hisi_acc(), 3, b"\0"), "hisi_acc")
    assert wrong[0] == 0
    assert wrong[1].startswith("acc_magic 0xcdcdcdcdfeedaacc (V1) or ")
    assert wrongs(hisi_acc() + b"\0", "hisi_acc") == [(176, "the end of the stream")]


# --- qat --------------------------------------------------------------------------------------


def test_the_sections_of_a_qat() -> None:
    found = heard(qat())
    assert fields(found, "svcmap")["value"] == "0x2d"
    assert fields(found, "sla 1")["srv"] == "SVC_SYM"
    bank = fields(found, "mregs")
    assert (bank["reserved0"], bank["rings[15].tail"]) == ("0x15", "0x3")
    assert len(found.named("mregs")) == 4
    assert found.named("section bnk3")[0].depth == 2
    summary = found.summaries[0]
    assert summary.phases == {"initial": len(qat_setup()), "final": 4096 - len(qat_setup())}


SETUP = len(qat_setup())


@pytest.mark.parametrize(
    ("at", "new", "place", "expected"),
    [
        (0, b"\0", 0, "magic 0xadf5caea"),
        (4, b"\2", 4, "version 1 at most"),
        (8, b"\1", 8, "a preamble of 16 to 4096"),
        (12, b"\0\x20", 12, "a setup of at most 4096 bytes in all"),
        (24, b"\xff", 24, "a section that ends in setup: at most"),
        (32 + 8, b"\xff", 32 + 8, "a section that ends in CONFIG: at most"),
        (32, b"x", SETUP, "section gencap in CONFIG"),
        (SETUP, b"\0", SETUP, "magic 0xadf5caea"),
        (SETUP + 12, b"\xff\xff", SETUP + 12, f"at most {4096 - SETUP - 16} bytes"),
    ],
)
def test_what_a_qat_refuses(at: int, new: bytes, place: int, expected: str) -> None:
    found = wrongs(changed(qat(), at, new), "qat")
    assert found[0][0] == place
    assert found[0][1].startswith(expected)


def test_a_section_that_a_qat_does_not_know_is_passed_over() -> None:
    config = [word("gencap", 1), word("svcmap", 1, 2), word("extdc", 1), Section("later", b"new")]
    found = heard(preamble(Section("CONFIG", inner=config)))
    assert found.wrongs == []
    assert found.named("section later")


def test_a_qat_has_no_more_than_its_room() -> None:
    assert wrongs(qat() + b"\0", "qat") == [(4096, "the end of the stream")]


# --- virtio -----------------------------------------------------------------------------------


def test_the_parts_of_a_virtio_device() -> None:
    found = heard(virtio())
    assert fields(found, "feature bits 0-63")["feature_bits"] == "0x130000000"
    assert found.named("part DEV_FEATURES")[0].text == "optional"
    assert found.named("part VQ_CFG[1]")
    assert found.named("part 0x200[0x0]")
    values = [each.fields[0] for each in found.named("value") if each.fields]
    assert (values[0].name, values[0].value) == ("num_queues", 3)
    summary = found.summaries[0]
    assert summary.counts == {"records": 3, "parts": 14}
    one = len(record(virtio_parts()))
    assert summary.phases == {"initial": one + 19, "final": one}


def test_a_part_that_leaves_its_record_is_named_and_the_next_record_found() -> None:
    data = virtio()
    found = heard(changed(data, 16 + 12, b"\xff\xff"), "virtio")
    assert [wrong.offset for wrong in found.wrongs] == [16 + 12]
    assert found.summaries[0].counts["records"] == 3


def test_what_virtio_refuses() -> None:
    data = virtio()
    assert wrongs(changed(data, 12, b"\1"), "virtio")[0][0] == 12
    assert wrongs(changed(data, 16 + 3, b"\1"), "virtio") == [(16 + 3, "reserved 0")]
    after = len(record(virtio_parts()))
    found = heard(changed(data, after + 4, b"\1"), "virtio")
    assert [wrong.offset for wrong in found.wrongs] == [after]
    assert found.named("passed over")[0].size == 19
    short = record(part(0x103, b"\1") + b"123")
    assert wrongs(short, "virtio") == [(16 + 17, "a part's header, 16 bytes")]


# --- xe ---------------------------------------------------------------------------------------


def test_the_packets_of_an_xe() -> None:
    found = heard(xe())
    assert fields(found, "value")["value"] == "0x64a0"
    assert found.named("0x1234 (unknown)")
    assert fields(found, "VF_SW_FLAG(2)")["value"] == "0x3"
    texts = [item.text for item in found.items if item.name.startswith("packet ")]
    assert texts == ["DESCRIPTOR", "GUC", "GGTT", "MMIO", "VRAM", "TRAILER"]
    assert found.summaries[0].phases == {"final": len(xe())}


FIRST = len(xe_descriptor())


@pytest.mark.parametrize(
    ("data", "place", "expected"),
    [
        (changed(xe(), 0, b"\2"), 0, "version 1"),
        (changed(xe(), 1, b"\0"), 1, "a type other than 0"),
        (changed(xe(), 2, b"\1"), 2, "0: a DESCRIPTOR belongs to no tile"),
        (changed(xe(), FIRST + 1, b"\0"), FIRST + 1, "a type other than 0"),
        (packet(1, klv(0xF001, 1)[:-2]) + packet(2), 16, "a multiple of 4 in a DESCRIPTOR"),
        (packet(1, klv(0xF001, 1, 2)[:-4]) + packet(2), 24, "at most 1 words"),
        (xe() + packet(6), len(xe()), "the end of the stream"),
        (xe_descriptor(), FIRST, "a packet, the last of them a TRAILER"),
    ],
)
def test_what_an_xe_refuses(data: bytes, place: int, expected: str) -> None:
    found = wrongs(data, "xe")
    assert found[0][0] == place
    assert found[0][1].startswith(expected)


def test_the_next_packet_of_an_xe_is_found() -> None:
    found = heard(changed(xe(), FIRST, b"\2"))
    assert [wrong.offset for wrong in found.wrongs] == [FIRST]
    texts = [item.text for item in found.items if item.name.startswith("packet ")]
    assert texts == ["DESCRIPTOR", "GGTT", "MMIO", "VRAM", "TRAILER"]


def test_a_packet_that_an_xe_does_not_know_is_passed_over() -> None:
    data = xe_descriptor() + packet(9, b"later") + packet(2)
    found = heard(data)
    assert found.wrongs == []
    assert "passed over" in found.named("data")[0].text


def test_the_size_of_a_packet_is_not_believed() -> None:
    data = xe_descriptor() + struct.pack("<BBBBIQQ", 1, 6, 0, 0, 0, 0, 1 << 60) + b"little"
    assert wrongs(data, "xe") == [(len(data), f"{(1 << 60) - 6} more bytes of data")]


# --- pds --------------------------------------------------------------------------------------


def test_the_state_of_a_pds_is_known_by_its_name_alone() -> None:
    data = bytes(range(256)) * 256
    assert heard(data).summaries[0].format != "pds"
    found = heard(data, "pds")
    assert found.wrongs == []
    assert "opaque" in found.named("device state")[0].text
    assert wrongs(data + b"\0", "pds") == [(65536, "the end of the stream")]
    assert wrongs(b"", "pds") == [(0, "the device's state")]
