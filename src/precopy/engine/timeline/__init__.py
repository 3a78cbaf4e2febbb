"""What happened when, on both sides of a migration, on one clock.

- ``events``: what one side notes: spans, moments and counters, in bounded memory
- ``noting``: who notes it: a device, a channel, a progress that tell of what they do
- ``clock``: the target's clock against the source's, with the error of that
- ``exchange``: the messages for it: clocks compared, the target's events fetched
- ``timeline``: both sides of one migration together
- ``perfetto``: as a trace for Perfetto and chrome://tracing, written and read
- ``page``: as one HTML page, drawn by ``drawing``
"""

from precopy.engine.timeline.events import Notes
from precopy.engine.timeline.timeline import Timeline

__all__ = ["Timeline", "Notes"]
