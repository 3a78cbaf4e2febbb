"""What a name may say of the guest on its device."""

from collections.abc import Mapping

from precopy.guest.layout import WorkloadConfig
from precopy.options import Option, number, switch, whole

GUEST: dict[str, Option] = {
    "qps": Option(number, "16", "QP pairs of the guest"),
    "active": Option(number, "-1", "pairs that send messages (-1: all, at most 64)"),
    "rate": Option(number, "2000", "messages a second, all pairs together (0: no pause)"),
    "size": Option(number, "256", "bytes of a message"),
    "mix": Option(str, "siwr", "s SEND, i SEND with immediate, w RDMA WRITE, r RDMA READ"),
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
