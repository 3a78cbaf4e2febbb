"""Runs in a lab kernel: streams of its drivers, dissected, what came of it printed as JSON.

python -m tests.lab.inside_streams DEVICE...
"""

import json
import sys
from typing import Any

from tests.stream.formats.own_device import precopy_stream
from tests.stream.hearing import heard


def told(name: str) -> dict[str, Any]:
    """What is in the stream of a device, with two middle images if a guest is at work on it."""
    data = precopy_stream(name, 2 if "guest=1" in name else 0)
    found = heard(data)
    (summary,) = found.summaries
    return {
        "format": summary.format,
        "bytes": len(data),
        "counts": summary.counts,
        "phases": summary.phases,
        "wrong": [str(wrong) for wrong in found.wrongs],
        "items": [[item.name, item.text] for item in found.items],
    }


if __name__ == "__main__":
    print(json.dumps({name: told(name) for name in sys.argv[1:]}))
