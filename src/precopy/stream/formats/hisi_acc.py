"""Streams of hisi-acc-vfio-pci: ``struct acc_vf_data``, drivers/vfio/pci/hisilicon, Linux 7.3.4.

One structure in the driver's memory order, little-endian here. All of it is known: registers of the
queue management (QM), by their offsets in the accelerator. PRE_COPY moves the first 40 bytes, which
the target compares with its own.
"""

import enum

from precopy.stream.cursor import Steps, Stream
from precopy.stream.layout import Layout, Spec, hexadecimal, named
from precopy.stream.registry import register


class Magic(enum.IntEnum):
    """``acc_magic``: of a V1 stream the driver computes the addresses of the queues anew."""

    V1 = 0xCDCDCDCDFEEDAACC
    V2 = 0xAACCFEEDDECADEDE


class Vf(enum.IntEnum):
    """``dev_id``: include/linux/pci_ids.h."""

    ZIP_VF = 0xA251
    SEC_VF = 0xA256
    HPRE_VF = 0xA259


class QmState(enum.IntEnum):
    """``vf_qm_state``: include/linux/hisi_acc_qm.h."""

    QM_READY = 0
    QM_NOT_READY = 1


MAJOR = 1


def _words(name: str, count: int) -> list[Spec]:
    return [(f"{name}[{index}]", "I", hexadecimal) for index in range(count)]


#: Up to ``QM_MATCH_SIZE``.
MATCH = Layout(
    "<",
    ("acc_magic", "Q", named(Magic)),
    ("qp_num", "I"),
    ("dev_id", "I", named(Vf)),
    ("que_iso_cfg", "I", hexadecimal),
    ("qp_base", "I"),
    ("vf_qm_state", "I", named(QmState)),
    ("major_ver", "H"),
    ("minor_ver", "H"),
    *_words("qm_rsv_state", 2),
)

#: The rest of the structure.
STATE = Layout(
    "<",
    ("aeq_int_mask", "I", hexadecimal),
    ("eq_int_mask", "I", hexadecimal),
    ("ifc_int_source", "I", hexadecimal),
    ("ifc_int_mask", "I", hexadecimal),
    ("ifc_int_set", "I", hexadecimal),
    ("page_size", "I", hexadecimal),
    *_words("qm_eqc_dw", 7),
    *_words("qm_aeqc_dw", 7),
    *_words("qm_rsv_regs", 5),
    ("padding", "I", hexadecimal),
    ("eqe_dma", "Q", hexadecimal),
    ("aeqe_dma", "Q", hexadecimal),
    ("sqc_dma", "Q", hexadecimal),
    ("cqc_dma", "Q", hexadecimal),
)

_ADDRESSES = ("eqe_dma", "aeqe_dma", "sqc_dma", "cqc_dma")


def _recognise(head: bytes) -> int:
    magics = [magic.to_bytes(8, "little") for magic in Magic]
    if any(head.startswith(magic) for magic in magics):
        return 90
    return 30 if 4 <= len(head) < 8 and any(each.startswith(head) for each in magics) else 0


@register("hisi_acc", "state of a HiSilicon accelerator's VF", _recognise)
def dissect(stream: Stream) -> Steps[None]:
    """What the target compares, then the registers; a VF that was never used has the first alone."""
    head = yield from stream.look(MATCH, "match data")
    if head["acc_magic"] not in [magic.value for magic in Magic]:
        expected = " or ".join(f"{magic:#x} ({magic.name})" for magic in Magic)
        raise stream.damage(f"acc_magic {expected}", f"{head['acc_magic']:#x}")
    if head["acc_magic"] == Magic.V2 and head["major_ver"] != MAJOR:
        at = stream.offset + MATCH.offset("major_ver")
        stream.tell_wrong(stream.damage(f"major_ver {MAJOR}", str(head["major_ver"]), at))
    stream.phase("initial", MATCH.size)
    yield from stream.struct("match data", MATCH)
    if not (yield from stream.more()):
        return
    state = yield from stream.look(STATE, "state")
    missing = [name for name in _ADDRESSES if not state[name]]
    told = f"{', '.join(missing)} 0: the target takes the queues for not ready" if missing else ""
    stream.phase("final", STATE.size)
    yield from stream.struct("state", STATE, told)
