"""What a name may say of the guest on its device."""

from collections.abc import Mapping

from precopy.guest.layout import BOUNDS, WorkloadConfig
from precopy.options import Option, switch, whole, within


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
    "guest": Option(switch, "1", "0: no guest"),
}


def workload_of(found: Mapping[str, object]) -> WorkloadConfig | None:
    """The guest that parameters describe, or None where there is to be none. ValueError."""
    pairs = whole(found, "qps")
    if not found["guest"] or not pairs:
        return None
    active = whole(found, "active")
    return WorkloadConfig(
        pairs=pairs,
        active=min(pairs, 64) if active < 0 else active,
        rate=whole(found, "rate"),
        size=whole(found, "size"),
        mix=str(found["mix"]),
        seed=whole(found, "seed"),
    )
