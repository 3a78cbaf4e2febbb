"""A migration that was noted, and one with everything in it that a hostile peer could think of."""

import pytest

from precopy.engine.source import Options
from precopy.engine.timeline import Notes, Timeline
from precopy.engine.timeline.clock import Clock, Offset
from tests.engine.rig import SOURCE, both

HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"


@pytest.fixture(scope="session")
def moved() -> Timeline:
    """Of a migration that went well, with middle images and guest memory."""
    timeline = Timeline()
    with both(f"{SOURCE}&memory=1M") as pair:
        pair.move(Options(min_rounds=2, timeline=timeline))
    return timeline


@pytest.fixture
def hostile() -> Timeline:
    return hostile_timeline()


def hostile_timeline() -> Timeline:
    """Every text that a peer can give is hostile."""
    timeline = Timeline(Notes(), Notes())
    for _, notes in timeline.sides():
        for lane in ("arcs", "firmware", "downtime", "moments"):
            notes.span(lane, HOSTILE, 1.0, 2.0, **{HOSTILE: HOSTILE})
        notes.count("bytes", 10, 1.0)
        notes.count("bytes", 20, 2.0)
    timeline.clock = Clock(Offset(0.5, 0.001, 1.0))
    timeline.remarks.append(HOSTILE)
    timeline.end(
        HOSTILE,
        {
            "source": HOSTILE,
            "target": HOSTILE,
            "stages": {HOSTILE: 1.0},
            "images": [{"kind": HOSTILE, "bytes": 1, "seconds": 1.0, "rate": 1.0}],
            "notes": [HOSTILE],
        },
    )
    return timeline
