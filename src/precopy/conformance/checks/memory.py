"""Memory whose pages are protected, for calls with addresses that can't be read or written."""

import ctypes
import mmap
from types import TracebackType
from typing import Self

PAGE = mmap.PAGESIZE
#: An address at which no process has anything.
NOWHERE = 16

#: Protections of a page (mprotect).
NONE, READ_ONLY, ALL = 0, mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE

libc = ctypes.CDLL(None, use_errno=True)


class Pages:
    """``count`` pages from ``address`` on. Whoever leaves the block gives them back."""

    def __init__(self, count: int, data: bytes = b"") -> None:
        self._map = mmap.mmap(-1, count * PAGE)
        self._map[: len(data)] = data
        self._held = ctypes.c_char.from_buffer(self._map)
        self._count = count
        self.address = ctypes.addressof(self._held)

    def protect(self, page: int, protection: int) -> None:
        """``protection`` for ``page``."""
        where = ctypes.c_void_p(self.address + page * PAGE)
        if libc.mprotect(where, PAGE, protection):
            code = ctypes.get_errno()
            raise OSError(code, "mprotect")

    def __getitem__(self, part: slice) -> bytes:
        return self._map[part]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for page in range(self._count):
            self.protect(page, ALL)
        del self._held
        self._map.close()
