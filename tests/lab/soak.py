"""Round trips of a working guest between two VFs of one lab kernel, by its own mlx5_vfio_pci.

    python -m tests.lab.soak [--trips 200] [--adapter 'mlx5?vfs=2&state=8M']

Ends with status 1 where a message was lost, doubled, reordered or damaged, or where the kernel or
the card is left in disorder. ``make lab-soak`` runs it.
"""

import argparse
import sys
from typing import Any

from tests.lab.mlx5.rig import Seen, boot

#: Few QPs, so that a VF is small.
ADAPTER = "mlx5?vfs=2&log_max_qp=12"

#: Seconds that a trip may take on a slow machine, and a kernel besides.
_A_TRIP, _A_KERNEL = 5.0, 60.0


def soak(trips: int, adapter: str = ADAPTER) -> Seen:
    """A kernel in which ``trips`` round trips were made. AssertionError where that went wrong."""
    timeout = _A_KERNEL + trips * _A_TRIP
    return boot(f"trips={trips}", adapter=adapter, kernel=(), timeout=timeout)


def faults(seen: Seen, trips: int) -> list[str]:
    """What is wrong with it, a line each."""
    told: dict[str, Any] = seen.told[f"trips={trips}"]
    guest, found = told["guest"], []
    for name in ("lost", "doubled", "reordered", "damaged", "failed"):
        if guest[name]:
            found.append(f"{guest[name]} messages {name}")
    if guest["sent"] != guest["received"]:
        found.append(f"{guest['sent']} messages sent, {guest['received']} received")
    idle = sum(
        before >= after for before, after in zip(told["sent"], told["sent"][1:], strict=False)
    )
    if idle:
        found.append(f"the guest did nothing on {idle} of {2 * trips} ways")
    closed = seen.standings["closed"]
    left = {
        kind: closed.objects[kind] for kind in ("pd", "mkey", "cq", "qp") if closed.objects[kind]
    }
    if left:
        found.append(f"left in the card: {left}")
    if not all(closed.works):
        found.append("a VF stands still")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trips", type=int, default=200, help="there and back (default: 200)")
    parser.add_argument("--adapter", default=ADAPTER, help="the card, as of precopy lab run")
    asked = parser.parse_args()
    try:
        seen = soak(asked.trips, asked.adapter)
    except AssertionError as error:
        print(f"soak: the kernel or the program in it failed: {error}", file=sys.stderr)
        return 1
    told = seen.told[f"trips={asked.trips}"]
    wrong = faults(seen, asked.trips)
    for line in wrong:
        print(f"soak: {line}", file=sys.stderr)
    guest = told["guest"]
    print(
        f"{asked.trips} round trips, {sum(told['images'])} images, {told['seconds']:.1f} s; guest:"
        f" {guest['sent']} messages sent, {guest['received']} received, {guest['lost']} lost,"
        f" {guest['doubled']} doubled, {guest['reordered']} reordered, {guest['damaged']} damaged"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
