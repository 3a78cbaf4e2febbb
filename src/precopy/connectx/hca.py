"""Commands about a function itself: switched on and off, its pages, its ISSI, its registers.

Pages that a driver gives are the firmware's to use; this one needs none and only keeps account of
them, so that a driver's own accounts come out right.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from precopy.connectx import events
from precopy.connectx.migration import Refused
from precopy.mlx5_abi.commands import (
    AccessRegIn,
    EnableHcaIn,
    ManagePagesIn,
    ManagePagesKind,
    ManagePagesOut,
    Opcode,
    Outbox,
    PagesKind,
    QueryAdapterOut,
    QueryIssiOut,
    QueryPagesIn,
    QueryPagesOut,
    SetHcaCapIn,
    SetIssiIn,
)
from precopy.mlx5_abi.status import Status
from precopy.mlx5_abi.wqe import EventType

if TYPE_CHECKING:
    from precopy.connectx.firmware import Function

#: Pages that a PF wants before INIT_HCA, and for it; a VF wants some from the PF's driver.
_PF_PAGES = {PagesKind.BOOT: 16, PagesKind.INIT: 24}
_VF_PAGES = 8

_IEEE_VENDOR_ID = 0x0002C9

#: Registers of ACCESS_REG. DTOR holds times that drivers wait; HOST_ENDIANNESS is write only.
_HOST_ENDIANNESS, _DTOR = 0x7004, 0xC00E
_DTOR_BYTES = 64
#: ``health_poll_to`` of DTOR: 1 hour; 0 is a driver's own time, 2 seconds.
_HEALTH_POLL_AT, _ONE_HOUR = 20, (3 << 29 | 1).to_bytes(4, "big")

_SUPPORTED_ISSI = 0b11


class Hca:
    """The functions of one adapter, as their drivers switch them on and off."""

    def __init__(self, functions: Mapping[int, "Function"], *, few_polls: bool = False) -> None:
        self._functions, self._few_polls = functions, few_polls

    def _about(self, function: "Function", index: int) -> "Function":
        """The function that a command of ``function`` is about: itself, or (PF only) VF index - 1."""
        if not index:
            return function
        found = self._functions.get(index)
        if function.index or found is None:
            raise Refused(Status.BAD_PARAM, 0x5D01, "no such function")
        return found

    def _enable(self, function: "Function", inbox: bytes, out: Outbox) -> None:
        about = self._about(function, EnableHcaIn(inbox).function_id)
        with about.vhca.lock:
            about.vhca.edit_hca().enabled = 1
        if about is not function:
            self._request_pages(function, about, _VF_PAGES)

    def _disable(self, function: "Function", inbox: bytes, out: Outbox) -> None:
        about = self._about(function, EnableHcaIn(inbox).function_id)
        with about.vhca.lock:
            about.vhca.edit_hca().enabled = 0
        if about is not function and about.pages:
            self._request_pages(function, about, -len(about.pages))

    @staticmethod
    def _request_pages(pf: "Function", about: "Function", count: int) -> None:
        data = b"\0\0" + about.index.to_bytes(2, "big") + count.to_bytes(4, "big", signed=True)
        events.notify(pf.vhca, EventType.PAGE_REQUEST, data)

    def _init(self, function: "Function", inbox: bytes, out: Outbox) -> None:
        with function.vhca.lock:
            function.vhca.edit_hca().initialized = 1

    def _teardown(self, function: "Function", inbox: bytes, out: Outbox) -> None:
        function.vhca.teardown()
        with function.vhca.lock:
            function.vhca.edit_hca().initialized = 0

    def _query_issi(self, function: "Function", inbox: bytes, out: Outbox) -> None:
        assert isinstance(out, QueryIssiOut)
        out.current_issi = function.vhca.hca.issi
        out.supported_issi_dw0 = _SUPPORTED_ISSI

    def _set_issi(self, function: "Function", inbox: bytes, out: Outbox) -> None:
        issi = SetIssiIn(inbox).current_issi
        if not _SUPPORTED_ISSI >> issi & 1:
            raise Refused(Status.BAD_PARAM, 0x5D02, f"ISSI {issi} is not there")
        with function.vhca.lock:
            function.vhca.edit_hca().issi = issi

    def _query_adapter(self, function: "Function", inbox: bytes, out: Outbox) -> None:
        assert isinstance(out, QueryAdapterOut)
        out.ieee_vendor_id = _IEEE_VENDOR_ID

    def _set_hca_cap(self, function: "Function", inbox: bytes, out: Outbox) -> None:
        """A driver chooses among what it was offered; nothing here depends on it."""
        self._about(function, SetHcaCapIn(inbox).function_id)

    def _access_reg(self, function: "Function", inbox: bytes, out: Outbox) -> None:
        asked = AccessRegIn(inbox)
        if asked.register_id == _DTOR:
            register = bytearray(_DTOR_BYTES)
            if self._few_polls:
                register[_HEALTH_POLL_AT : _HEALTH_POLL_AT + 4] = _ONE_HOUR
            out.buf += register
        elif asked.register_id != _HOST_ENDIANNESS:
            raise Refused(Status.BAD_PARAM, 0x5D03, f"no register {asked.register_id:#x}")

    # --- Pages --------------------------------------------------------------------------------

    def _query_pages(self, function: "Function", inbox: bytes, out: Outbox) -> None:
        asked = QueryPagesIn(inbox)
        about = self._about(function, asked.function_id)
        assert isinstance(out, QueryPagesOut)
        out.function_id = asked.function_id
        if not about.index:
            out.num_pages = (
                _PF_PAGES.get(PagesKind(asked.op_mod), 0) if asked.op_mod in (1, 2, 3) else 0
            )

    def _manage_pages(self, function: "Function", inbox: bytes, out: Outbox) -> None:
        asked = ManagePagesIn(inbox)
        about = self._about(function, asked.function_id)
        count = asked.input_num_entries
        assert isinstance(out, ManagePagesOut)
        if asked.op_mod == ManagePagesKind.GIVE:
            entries = inbox[ManagePagesIn.SIZE : ManagePagesIn.SIZE + 8 * count]
            if len(entries) != 8 * count:
                raise Refused(Status.BAD_INP_LEN, 0x5D04, "page addresses are missing")
            about.pages += [
                int.from_bytes(entries[at : at + 8], "big") for at in range(0, len(entries), 8)
            ]
        elif asked.op_mod == ManagePagesKind.TAKE:
            taken = about.pages[-count:] if count else []
            del about.pages[len(about.pages) - len(taken) :]
            out.output_num_entries = len(taken)
            out.buf += b"".join(page.to_bytes(8, "big") for page in taken)
        elif asked.op_mod != ManagePagesKind.CANNOT_GIVE:
            raise Refused(Status.BAD_PARAM, 0x5D05, f"op_mod {asked.op_mod}")


Handler = Callable[[Hca, "Function", bytes, Outbox], None]

COMMANDS: dict[int, Handler] = {
    Opcode.ENABLE_HCA: Hca._enable,
    Opcode.DISABLE_HCA: Hca._disable,
    Opcode.INIT_HCA: Hca._init,
    Opcode.TEARDOWN_HCA: Hca._teardown,
    Opcode.QUERY_ISSI: Hca._query_issi,
    Opcode.SET_ISSI: Hca._set_issi,
    Opcode.QUERY_ADAPTER: Hca._query_adapter,
    Opcode.SET_HCA_CAP: Hca._set_hca_cap,
    Opcode.ACCESS_REG: Hca._access_reg,
    Opcode.QUERY_PAGES: Hca._query_pages,
    Opcode.MANAGE_PAGES: Hca._manage_pages,
}
