"""What a name may say of the guest on its device."""

import os
from collections.abc import Mapping

from precopy.guest.layout import BOUNDS, WorkloadConfig
from precopy.options import Option, size, switch, whole, within

#: All the memory that this machine has: a guest that fills more would be its end.
MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def mix(text: str) -> str:
    return WorkloadConfig(mix=text).mix


# Each is looked at also where there is to be no guest, so that a slip of the pen does not pass.
GUEST: dict[str, Option] = {
    "qps": Option(within(0, BOUNDS["pairs"][1]), "16", "QP pairs of the guest (0: no guest)"),
    "active": Option(
        within(-1, BOUNDS["pairs"][1]), "-1", "pairs that send messages (-1: all, at most 64)"
    ),
    "rate": Option(
        within(*BOUNDS["rate"]), "2000", "messages a second, all pairs together (0: no pause)"
    ),
    "size": Option(within(*BOUNDS["size"]), "256", "bytes of a message"),
    "mix": Option(mix, "siwr", "s SEND, i SEND with immediate, w RDMA WRITE, r RDMA READ"),
    "memory": Option(
        size(BOUNDS["memory"][1]), "0", "memory that the guest works on, such as 1G (0: none)"
    ),
    "writes": Option(within(*BOUNDS["writes"]), "0", "pages of it written a second"),
    "working": Option(
        within(*BOUNDS["working"]), "100", "percent of what holds data that are written"
    ),
    "fill": Option(within(*BOUNDS["fill"]), "100", "percent of it that hold data at power-on"),
    "zeros": Option(within(*BOUNDS["zeros"]), "0", "percent of the writes that clear a page"),
    "guest": Option(switch, "1", "0: no guest"),
}


def workload_of(found: Mapping[str, object]) -> WorkloadConfig | None:
    """The guest that parameters describe, or None where there is to be none. ValueError."""
    pairs = whole(found, "qps")
    if not found["guest"] or not pairs:
        return None
    active = whole(found, "active")
    config = WorkloadConfig(
        pairs=pairs,
        active=min(pairs, 64) if active < 0 else active,
        rate=whole(found, "rate"),
        size=whole(found, "size"),
        mix=str(found["mix"]),
        seed=whole(found, "seed"),
        **{name: whole(found, name) for name in ("memory", "writes", "working", "fill", "zeros")},
    )
    if config.memory * config.fill // 100 > MACHINE:
        raise ValueError(
            f"memory: {config.fill} percent of {config.memory >> 20}M is more than this"
            f" machine's memory; ask for less, or for a lower fill"
        )
    return config
