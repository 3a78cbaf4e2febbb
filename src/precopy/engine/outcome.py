"""How a migration ends: exit statuses, and the errors that lead to them."""

import enum

from precopy.engine.channel import ChannelError


class ExitStatus(enum.IntEnum):
    """What ``precopy migrate`` and ``precopy receive`` exit with."""

    OK = 0
    #: The command line, or a device's name, is wrong.
    USAGE = 2
    #: The target refused before anything had changed.
    REFUSED = 3
    #: It failed; the device runs at the source, and nothing at the target.
    FAILED = 4
    #: The right to run was given away, and no answer came: look at the target.
    IN_DOUBT = 5
    #: It went through, but the guest counted faults, or was gone before it could be asked.
    GUEST_FAULTS = 6
    #: It failed, and the device stands stopped: at the source; for ``receive``, here.
    STOPPED = 7
    #: By SIGINT, SIGTERM or SIGHUP; the device runs at the source, and nothing at the target.
    CANCELLED = 130


class MigrationError(Exception):
    """One line: what was wrong, where, and where the device is now. ``status`` is the exit status."""

    status = ExitStatus.FAILED


class Refused(MigrationError):
    status = ExitStatus.REFUSED


class Failed(MigrationError):
    status = ExitStatus.FAILED


class InDoubt(MigrationError):
    """The only end at which a device may run at the target though the source does not know."""

    status = ExitStatus.IN_DOUBT


class Stopped(MigrationError):
    status = ExitStatus.STOPPED


class Cancelled(MigrationError):
    status = ExitStatus.CANCELLED


def reason_of(error: BaseException) -> str:
    """What an error says, for a line that people read."""
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    if isinstance(error, MigrationError | ChannelError | ValueError | RuntimeError) and str(error):
        return str(error)
    # Not meant for people: without its kind the text says little.
    return f"{type(error).__name__}: {error}"
