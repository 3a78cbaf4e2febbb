"""``precopy serve``."""

import contextlib
import json
import logging
import os
import pwd
import stat
from contextlib import closing

import click

from precopy.backends import DeviceNameError, open_device
from precopy.cli.common import SECONDS, fail, warn
from precopy.cli.signals import SignalEvent, Signals
from precopy.engine.outcome import ExitStatus, reason_of
from precopy.frontends.vfio_user import Server
from precopy.frontends.vfio_user.quirks import QUIRKS
from precopy.vfio.guest import Opened


@click.command()
@click.argument("device")
@click.option(
    "--socket",
    "path",
    metavar="PATH",
    help="Where to listen; made with mode 0600.  [default: vfio-user.sock in a directory of yours]",
)
@click.option(
    "--allow-user",
    "users",
    multiple=True,
    metavar="USER",
    help="Another user, by name or number, who may attach the device.",
)
@click.option("--allow-all-users", is_flag=True, help="Whoever can reach the socket may.")
@click.option(
    "--quirk",
    type=click.Choice(sorted(filter(None, QUIRKS))),
    help="Speak as a client does that departs from the protocol.",
)
@click.option(
    "--grace",
    type=SECONDS,
    default=1.0,
    show_default=True,
    help="Seconds a client has to let go of the device at the end.",
)
@click.option("-q", "--quiet", is_flag=True, help="Tell of errors only, not of clients.")
@click.option("--json", "as_json", is_flag=True, help="Where it listens, as a JSON line.")
def serve(
    device: str,
    path: str | None,
    users: tuple[str, ...],
    allow_all_users: bool,
    quirk: str | None,
    grace: float,
    quiet: bool,
    as_json: bool,
) -> None:
    """Offer DEVICE by vfio-user: a VMM attaches it, precopy migrate vfio-user:PATH moves it.

    One client at a time has the device; another can have it after that. SIGINT or SIGTERM ends it.
    """
    _log_to_stderr(logging.WARNING if quiet else logging.INFO)
    stop = SignalEvent()
    allowed = None if allow_all_users else {_user(name) for name in users}
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        signals.action = stop.set
        opened = stack.enter_context(closing(_open(device)))
        try:
            path = path or _default_path()
            server = Server(
                opened.device, opened.face, path, users=allowed, quirks=QUIRKS[quirk or ""]
            )
        except OSError as error:
            fail(f"{path or device}: {reason_of(error)}", ExitStatus.USAGE)
        if allowed is None or allowed:
            os.chmod(path, 0o666)
        server.start()
        text = f"serving {device} on {path}"
        print(json.dumps({"serving": device, "socket": path}) if as_json else text, flush=True)
        stop.wait()
        server.stop(grace)


def _open(name: str) -> Opened:
    try:
        return open_device(name, served=True)
    except DeviceNameError as error:
        fail(str(error), ExitStatus.USAGE)
    except OSError as error:
        fail(f"{name}: {reason_of(error)}", ExitStatus.FAILED)


def _user(name: str) -> int:
    try:
        return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError:
        fail(f"--allow-user {name}: there is no such user", ExitStatus.USAGE)


def _default_path() -> str:
    """In the user's run-time directory, else in one below /tmp that is the user's alone. OSError."""
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/precopy-{os.getuid()}"
    directory = os.path.join(base, "precopy") if "XDG_RUNTIME_DIR" in os.environ else base
    os.makedirs(directory, mode=0o700, exist_ok=True)
    found = os.lstat(directory)
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise PermissionError(1, f"{directory} is not yours; say --socket PATH")
    return os.path.join(directory, "vfio-user.sock")


class _Stderr(logging.Handler):
    """One line each, as every message of this program."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


def _log_to_stderr(level: int) -> None:
    told = logging.getLogger("precopy")
    told.addHandler(_Stderr())
    told.setLevel(level)
