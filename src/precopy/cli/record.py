"""``--record`` of a migration."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from precopy.cli.common import fail, warn
from precopy.engine.channel import Channel
from precopy.engine.outcome import ExitStatus, reason_of
from precopy.engine.save import record
from precopy.stream.recording import MOVED, PARTIAL, Recorder


@contextlib.contextmanager
def recorded(channel: Channel, path: Path | None) -> Iterator[None]:
    """Record what goes over ``channel`` in here to ``path``, if there is one.

    What fails of it is no reason for a migration to fail: it is a warning. A migration that fails is
    recorded with its reason. The one line and the status where the file can't be begun.
    """
    if path is None:
        yield
        return
    try:
        recorder = Recorder(path)
    except OSError as error:
        fail(f"{path}: {reason_of(error)}; nothing has changed", ExitStatus.FAILED)
    record(channel, recorder)
    outcome = MOVED
    try:
        yield
    except BaseException as error:
        outcome = f"failed: {reason_of(error)}"
        raise
    finally:
        channel.tap = None
        try:
            recorder.close(outcome)
        except OSError as error:
            warn(
                f"the recording broke off: {reason_of(error)}; what there is is in {path}{PARTIAL}"
            )
