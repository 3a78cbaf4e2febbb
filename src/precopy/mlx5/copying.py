"""Copying large pieces of memory without holding up other threads."""

import numpy as np

#: Below this a copy is over before another thread would have got its turn.
_LARGE = 64 << 10


def copy(target: memoryview, source: memoryview) -> None:
    """Copy ``source`` to ``target`` (of equal length); large ones without the interpreter's lock."""
    if len(source) < _LARGE:
        target[:] = source
    else:
        np.copyto(np.frombuffer(target, dtype=np.uint8), np.frombuffer(source, dtype=np.uint8))
