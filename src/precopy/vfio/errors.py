"""Errors of the contract: an ``OSError`` whose errno is the one that linux/vfio.h names."""

import errno
import os


def refuse(code: int, what: str) -> OSError:
    """An ``OSError`` with errno ``code`` whose text is ``what`` (one line: what, where, what to do).

    The exact subclass is Python's choice by errno (``BlockingIOError`` for EAGAIN, ...).
    """
    return OSError(code, f"{what} ({errno.errorcode.get(code, code)}: {os.strerror(code)})")
