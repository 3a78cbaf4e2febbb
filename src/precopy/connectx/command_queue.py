"""The command queue of a function: entries and mailboxes in its driver's memory.

Layouts: ``mlx5_cmd_layout`` and ``mlx5_cmd_prot_block`` of include/linux/mlx5/device.h (Linux 7.3).
A command whose function is suspended waits in the queue until the function works again, wherever
that is: which entries wait is part of what migrates.
"""

import functools
import operator
import struct
import threading
from collections.abc import Callable

from precopy.connectx import events
from precopy.connectx.vhca import Vhca
from precopy.mlx5_abi.wqe import EventType

#: 32 entries of 64 bytes.
LOG_ENTRIES, LOG_STRIDE = 5, 6
_ENTRIES, _ENTRY_BYTES = 1 << LOG_ENTRIES, 1 << LOG_STRIDE

#: type, inlen, in_ptr, in, out, out_ptr, outlen, token, signature, status and ownership.
_ENTRY = struct.Struct(">B3xIQ16s16sQIBBxB")
_TRANSPORT_PCI = 7
_INLINE = 16
#: Opcode and op_mod, status and syndrome: what no command has less of.
_LEAST = 8

_BLOCK_DATA, _BLOCK_BYTES = 512, 576
_NEXT = struct.Struct(">Q")
_NEXT_AT = 560

#: Most that a command carries, in bytes.
_MAX_BYTES = 16 << 20

_OWNED_BY_HARDWARE = 1


class DeliveryStatus:
    """``MLX5_CMD_DELIVERY_STAT_*``: why a command did not reach the firmware."""

    OK = 0x0
    BAD_BLOCK = 0x4
    IN_LENGTH = 0x7
    OUT_LENGTH = 0x8
    DESCRIPTOR = 0x10


class _Undelivered(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"delivery status {status:#x}")
        self.status = status


class CommandQueue:
    """``execute`` runs one command (TimeoutError: it is never answered)."""

    def __init__(self, vhca: Vhca, execute: Callable[[bytes], bytes]) -> None:
        self._vhca = vhca
        self._execute = execute
        self._lock = threading.RLock()

    def ring(self, entries: int) -> None:
        """The doorbell: one bit an entry. All are carried out on return."""
        with self._lock:
            hca = self._vhca.hca
            if not hca.cmdq_addr:
                return
            if self._vhca.responder_suspended:
                with self._vhca.lock:
                    self._vhca.edit_hca().cmdq_pending |= entries
                return
            for index in range(_ENTRIES):
                if entries >> index & 1:
                    self._one(hca.cmdq_addr, index)

    def catch_up(self) -> None:
        """The function works again: run what came while it did not."""
        pending = self._vhca.hca.cmdq_pending
        if pending:
            with self._vhca.lock:
                self._vhca.edit_hca().cmdq_pending = 0
            self.ring(pending)

    def _one(self, base: int, index: int) -> None:
        dma, at = self._vhca.dma, base + index * _ENTRY_BYTES
        try:
            kind, inlen, in_ptr, head, out_head, out_ptr, outlen, token, _, own = _ENTRY.unpack(
                dma.read(at, _ENTRY_BYTES)
            )
        except OSError:
            return
        if not own & _OWNED_BY_HARDWARE:
            return
        # Who waits for this command by event is told so; the command that makes the EQ is polled.
        by_event = events.queue_for(self._vhca, EventType.CMD) is not None
        status = DeliveryStatus.OK
        try:
            if kind != _TRANSPORT_PCI:
                raise _Undelivered(DeliveryStatus.DESCRIPTOR)
            if not _LEAST <= inlen <= _MAX_BYTES:
                raise _Undelivered(DeliveryStatus.IN_LENGTH)
            if not _LEAST <= outlen <= _MAX_BYTES:
                raise _Undelivered(DeliveryStatus.OUT_LENGTH)
            inbox = head + self._gather(in_ptr, inlen - _INLINE)
            outbox = self._execute(inbox)[:outlen].ljust(max(outlen, _INLINE), b"\0")
            out_head = outbox[:_INLINE]
            self._scatter(out_ptr, outbox[_INLINE:])
        except TimeoutError:
            return
        except _Undelivered as undelivered:
            status = undelivered.status
        except OSError:
            status = DeliveryStatus.BAD_BLOCK
        entry = _ENTRY.pack(
            kind, inlen, in_ptr, head, out_head, out_ptr, outlen, token, 0, status << 1
        )
        # All bytes together are to give 0xff.
        signature = functools.reduce(operator.xor, entry) ^ 0xFF
        entry = entry[:-3] + bytes((signature,)) + entry[-2:]
        with self._vhca.lock:
            try:
                # Ownership goes over last.
                dma.write(at, entry[:-1] + bytes((own,)))
                dma.write(at + _ENTRY_BYTES - 1, entry[-1:])
            except OSError:
                return
        if by_event:
            events.notify(self._vhca, EventType.CMD, (1 << index).to_bytes(4, "big"))

    def _gather(self, pointer: int, length: int) -> bytes:
        """``length`` bytes from a chain of mailboxes."""
        dma, pieces, left = self._vhca.dma, [], length
        while left > 0:
            if not pointer:
                raise _Undelivered(DeliveryStatus.BAD_BLOCK)
            block = dma.read(pointer, _BLOCK_BYTES)
            pieces.append(block[: min(left, _BLOCK_DATA)])
            left -= _BLOCK_DATA
            (pointer,) = _NEXT.unpack_from(block, _NEXT_AT)
        return b"".join(pieces)

    def _scatter(self, pointer: int, data: bytes) -> None:
        dma = self._vhca.dma
        for offset in range(0, len(data), _BLOCK_DATA):
            if not pointer:
                raise _Undelivered(DeliveryStatus.BAD_BLOCK)
            dma.write(pointer, data[offset : offset + _BLOCK_DATA])
            (pointer,) = _NEXT.unpack(dma.read(pointer + _NEXT_AT, _NEXT.size))
