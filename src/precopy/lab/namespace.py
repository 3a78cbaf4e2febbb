"""Runs a command where the whole file system is read-only, but for directories that are named.

    python namespace.py [DIRECTORY...] -- COMMAND...

In a mount namespace of its own, so that nothing of it is seen outside. Standing alone: it is started
as a script, with nothing of the package.
"""

import ctypes
import os
import signal
import struct
import sys

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MOUNT_SETATTR = 442
_PR_SET_PDEATHSIG = 1
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_RDONLY = 1
#: attr_set, attr_clr, propagation, userns_fd
_ATTR = struct.Struct("=QQQQ")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        sys.exit(f"precopy: lab: {what}: {os.strerror(code)}")


def _set(path: str, *, read_only: bool, recursive: bool) -> None:
    attr = _ATTR.pack(_RDONLY, 0, 0, 0) if read_only else _ATTR.pack(0, _RDONLY, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    _check(
        _libc.syscall(
            _MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, attr, ctypes.c_size_t(len(attr))
        ),
        f"making {path} {'read-only' if read_only else 'writable'}",
    )


def _enter() -> None:
    user, group = os.geteuid(), os.getegid()
    _check(_libc.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if user else 0)), "a mount namespace")
    if user:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {user} 1"),
            ("gid_map", f"0 {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def main(arguments: list[str]) -> None:
    split = arguments.index("--")
    writable, command = arguments[:split], arguments[split + 1 :]
    _enter()
    # It does not outlive who started it, however that ends. New credentials would undo this.
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL), "tying it to its parent")
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "private mounts")
    for path in writable:
        _check(_libc.mount(path.encode(), path.encode(), None, _MS_BIND, None), f"mounting {path}")
    _set("/", read_only=True, recursive=True)
    for path in writable:
        _set(path, read_only=False, recursive=False)
    # Memory of the guest's: a file system of its own, that ends with it.
    _check(_libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=90%"), "mounting /dev/shm")
    os.environ["TMPDIR"] = "/dev/shm"
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
