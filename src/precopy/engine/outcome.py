"""How a migration ends: exit statuses, and the errors that lead to them."""

import enum


class ExitStatus(enum.IntEnum):
    """What ``precopy migrate`` and ``precopy receive`` exit with."""

    OK = 0
    #: The command line, or a device's name, is wrong.
    USAGE = 2
    #: The target refused before anything had changed.
    REFUSED = 3
    #: It failed; the device runs at the source.
    FAILED = 4
    #: The right to run was given away, and no answer came: look at the target.
    IN_DOUBT = 5
    #: It went through, but the guest counted messages lost, doubled, reordered or damaged.
    GUEST_FAULTS = 6
    #: It failed, and the device stands stopped at the source.
    STOPPED = 7
    CANCELLED = 130


class MigrationError(Exception):
    """One line: what was wrong, where, and where the device is now. ``status`` is the exit status."""

    status = ExitStatus.FAILED


class Refused(MigrationError):
    status = ExitStatus.REFUSED


class Failed(MigrationError):
    status = ExitStatus.FAILED


class InDoubt(MigrationError):
    status = ExitStatus.IN_DOUBT


class Stopped(MigrationError):
    status = ExitStatus.STOPPED


class Cancelled(MigrationError):
    status = ExitStatus.CANCELLED
