"""From a memory key and an address to the memory behind them."""

import numpy as np

from precopy.connectx.slots import MTT_BYTES, MTT_SLOTS, MkeySlot
from precopy.connectx.vhca import Vhca
from precopy.mlx5_abi.contexts import AccessMode

#: ``pd`` and ``qpn`` that no key is compared with: the firmware's own access.
ANY = -1

_ANY_QP = 0xFFFFFF


class KeyFault(Exception):
    """A key that does not allow what was asked of it; the text says why."""


def resolve(vhca: Vhca, key: int, address: int, length: int, access: str) -> list[memoryview]:
    """The memory that ``length`` bytes at ``address`` of ``key`` stand for; see :func:`translate`."""
    runs = translate(vhca, key, address, length, access, pd=ANY, qpn=ANY)
    return [view for run in runs for view in vhca.dma.views(*run)]


def translate(
    vhca: Vhca, key: int, address: int, length: int, access: str, *, pd: int, qpn: int
) -> list[tuple[int, int]]:
    """The device addresses and lengths that ``length`` bytes at ``address`` of ``key`` stand for.

    ``access`` names the right that is needed: ``lr``, ``lw``, ``rr`` or ``rw``. Raises KeyFault for
    a key that is not there, another protection domain, a right that it lacks, bounds, and memory
    that is not mapped for DMA.
    """
    index = key >> 8
    if not vhca.in_use("mkey", index):
        raise KeyFault(f"key {key:#x} does not exist")
    mkey = MkeySlot(vhca.table("mkey").slot(index))
    if mkey.mkey_7_0 != key & 0xFF:
        raise KeyFault(f"key {key:#x} has another variant ({mkey.mkey_7_0:#x})")
    if pd != ANY and mkey.pd != pd:
        raise KeyFault(f"key {key:#x} belongs to PD {mkey.pd}, not {pd}")
    if qpn != ANY and mkey.qpn not in (_ANY_QP, qpn):
        raise KeyFault(f"key {key:#x} is for QP {mkey.qpn} alone")
    if not getattr(mkey, access):
        raise KeyFault(f"key {key:#x} lacks the right {access}")
    offset = address - mkey.start_addr
    if not mkey.length64 and (offset < 0 or offset + length > mkey.len):
        raise KeyFault(f"{length} bytes at {address:#x} are outside key {key:#x}")
    try:
        if mkey.access_mode_1_0 == AccessMode.PA:
            runs = [(address, length)]
        else:
            runs = _translate(vhca, mkey, offset, length)
        for run in runs:
            vhca.dma.check(*run)
    except OSError as error:
        raise KeyFault(f"key {key:#x}: {error.strerror}") from error
    return runs


def _translate(vhca: Vhca, mkey: MkeySlot, offset: int, length: int) -> list[tuple[int, int]]:
    """Runs of device addresses, joined where pages follow each other."""
    shift = mkey.log_page_size
    page = 1 << shift
    if length <= 0 or shift < 12:
        raise KeyFault(f"{length} bytes with pages of {page}")
    first, last = offset >> shift, (offset + length - 1) >> shift
    start = mkey.first_mtt + first
    if last >= mkey.num_mtts or start + last - first >= MTT_SLOTS:
        raise KeyFault(f"{length} bytes at offset {offset:#x}: no translation entry")
    rows = vhca.table("mtt").rows
    if first == last:
        entry = int.from_bytes(rows[start], "big") & ~(page - 1)
        return [(entry + (offset & (page - 1)), length)]
    entries = rows[start : start + last - first + 1].reshape(-1).view(">u8").astype(np.uint64)
    entries &= np.uint64(~(page - 1) & (1 << 64) - 1)
    # A run ends where the next page is not the one behind.
    ends = np.flatnonzero(np.diff(entries) != np.uint64(page)) + 1
    runs = []
    left, into = length, offset & (page - 1)
    for low, high in zip((0, *ends.tolist()), (*ends.tolist(), len(entries)), strict=True):
        count = min(left, ((high - low) << shift) - into)
        runs.append((int(entries[low]) + into, count))
        left -= count
        into = 0
    return runs


def write_entries(vhca: Vhca, first: int, entries: bytes | memoryview) -> None:
    """Put translation entries (be64 each) at ``first``."""
    if len(entries):
        vhca.table("mtt").edit_bytes(first * MTT_BYTES, len(entries))[:] = entries
