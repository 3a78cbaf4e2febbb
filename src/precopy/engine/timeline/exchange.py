"""The messages for a timeline: clocks are compared, the target's events are fetched.

The source asks for it before the manifest (``timeline``, then ``clock`` some times, each answered by
``time``), and again once the device runs at the target: ``clock`` some times, then ``tell``, answered
by ``noted`` messages. By then the migration has succeeded; whatever goes wrong is a remark.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from precopy.engine import messages
from precopy.engine.channel import MAX_CONTROL, Channel, ChannelError
from precopy.engine.timeline import events
from precopy.engine.timeline.clock import Clock, Exchange, Offset, estimate
from precopy.engine.timeline.events import Notes
from precopy.engine.timeline.timeline import Timeline

#: The version of the protocol that has these messages.
SINCE = 3

#: Exchanges of clocks, each time; more than ``MOST_CLOCKS`` in all a target does not answer.
EXCHANGES = 16
MOST_CLOCKS = 64

#: Rows that a source takes, and that a target sends.
MAX_ROWS = 50_000

#: Seconds that all of it may take after the migration, and in which a peer has to say something.
_ALL, _SILENCE = 5.0, 2.0

#: Of a message, for what surrounds its rows.
_ROOM = MAX_CONTROL - 200


def compare(ask: Callable[[], object], answer: Callable[[], tuple[float, float]]) -> Offset:
    """The offset by :data:`EXCHANGES` exchanges. ``answer``: the target's time, and when it came."""
    found = []
    for _ in range(EXCHANGES):
        asked = time.monotonic()
        ask()
        there, heard = answer()
        found.append(Exchange(asked, there, heard))
    return estimate(found)


def answer_clock(channel: Channel) -> None:
    """The target's time, for a source that asked."""
    messages.send(channel, "time", at=time.monotonic())


@contextlib.contextmanager
def _within(channel: Channel, seconds: float) -> Iterator[None]:
    """Whatever the peer does, ``channel`` is closed after so long."""
    timer = threading.Timer(seconds, channel.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


# --- After the migration: the source ------------------------------------------------------------


def fetch(timeline: Timeline, channel: Channel) -> None:
    """The target's events into ``timeline``, on the source's clock. Whatever fails is a remark."""
    assert timeline.clock is not None
    begin = timeline.clock.begin
    try:
        with _within(channel, _ALL):
            channel.limit_reads(_SILENCE)
            channel.limit_writes(_SILENCE)

            def answer() -> tuple[float, float]:
                _, fields = messages.expect(channel, "time")
                return fields["at"], time.monotonic()

            end = compare(lambda: messages.send(channel, "clock"), answer)
            timeline.clock = Clock(begin, end)
            messages.send(channel, "tell")
            timeline.target = _collect(channel, timeline.clock)
    except (ChannelError, OSError) as error:
        timeline.remarks.append(f"the target's side is missing: {error}")


def _collect(channel: Channel, clock: Clock) -> Notes:
    notes, count = Notes(), 0
    while True:
        _, fields = messages.expect(channel, "noted")
        count += len(fields["rows"])
        if count > MAX_ROWS:
            raise ChannelError(f"the target tells of more than {MAX_ROWS} things")
        for row in fields["rows"]:
            events.take_row(notes, row, clock.to_source)
        for lane, left_out in fields["left_out"].items():
            notes.leave_out(lane, left_out)
        notes.commands = fields["commands"]
        if not fields["more"]:
            return notes


# --- After the migration: the target ------------------------------------------------------------


def serve(channel: Channel, notes: Notes) -> str | None:
    """Answer a source's questions until it has been told all; why that failed, or None."""
    try:
        with _within(channel, _ALL):
            channel.limit_reads(_SILENCE)
            channel.limit_writes(_SILENCE)
            for _ in range(MOST_CLOCKS):
                kind, _ = messages.expect(channel, "tell", "clock")
                if kind == "tell":
                    _tell(channel, notes)
                    return None
                answer_clock(channel)
            raise ChannelError("the source asks for the time without an end")
    except (ChannelError, OSError) as error:
        return f"the source did not fetch the timeline: {error}"


def _tell(channel: Channel, notes: Notes) -> None:
    def send(rows: list[Any], *, more: bool, left_out: dict[str, int]) -> None:
        told = {"left_out": left_out, "commands": notes.commands}
        messages.send(channel, "noted", rows=rows, more=more, **told)

    batch: list[Any] = []
    size = 0
    for _, row in zip(range(MAX_ROWS), events.rows(notes), strict=False):
        length = len(messages.encode("noted", rows=[row]))
        if batch and (size + length > _ROOM or len(batch) == events.MAX_BATCH):
            send(batch, more=True, left_out={})
            batch, size = [], 0
        batch.append(row)
        size += length
    send(batch, more=False, left_out=notes.left_out)
