"""Unix sockets that are safe to listen on: whose they are, who may connect, what is left over."""

import errno
import os
import socket
import stat
import struct

from precopy.vfio.errors import refuse

_CREDENTIALS = struct.Struct("=iII")

#: Bytes of a path in ``struct sockaddr_un``, without its NUL.
_LONGEST = 107


def listen_unix(path: str) -> socket.socket:
    """A listening socket at ``path`` with mode 0600, also where one is left of a process that is gone.

    OSError: EADDRINUSE where somebody listens there, EPERM for a directory in which others can put
    their own in its place, ENAMETOOLONG.
    """
    check_length(path)
    _check_directory(os.path.dirname(os.path.abspath(path)))
    listening = socket.socket(socket.AF_UNIX)
    try:
        before = os.umask(0o177)
        try:
            try:
                listening.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not _is_left_over(path):
                    raise
                os.unlink(path)
                listening.bind(path)
        finally:
            os.umask(before)
        listening.listen()
    except BaseException:
        listening.close()
        raise
    return listening


def check_length(path: str) -> None:
    """OSError ENAMETOOLONG where no unix socket can have that path."""
    if len(os.fsencode(path)) > _LONGEST:
        raise refuse(errno.ENAMETOOLONG, f"the path of a unix socket has at most {_LONGEST} bytes")


def _check_directory(directory: str) -> None:
    found = os.stat(directory)
    others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if others and not found.st_mode & stat.S_ISVTX:
        raise refuse(errno.EPERM, f"others may write in {directory}: use a directory of your own")


def _is_left_over(path: str) -> bool:
    """Whether ``path`` is a socket on which nobody listens."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.settimeout(1.0)
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
    return False


def peer_user(connected: socket.socket) -> int:
    """The user id of the process at the other end, as of when it connected (SO_PEERCRED)."""
    data = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(data)
    return int(uid)
