"""What two peers agree on at the beginning: the VERSION message and its capabilities.

A capability that is not named has the protocol's default; keys that nobody here knows are passed
over. Source: docs/vfio-user.rst of libvfio-user, "VFIO_USER_VERSION".
"""

import errno
import json
from dataclasses import dataclass, replace
from typing import Any

from precopy.vfio_user.messages import MOST_FDS, Version, WireError, wrong

MAJOR, MINOR = 0, 0

#: Bytes of JSON that a VERSION may have.
MOST_TEXT = 4096

#: Bytes of data in one message: what the protocol takes for agreed if nothing is said, and what we
#: offer. QEMU allows up to 64 MiB.
DEFAULT_TRANSFER = 1 << 20
MOST_TRANSFER = 64 << 20

#: The extension's version that we speak, and the key under which it is offered.
EXTENSION = 1
_EXTENSION_KEY = "migration_extension"

PAGE_SIZES = 4096


@dataclass(frozen=True, slots=True)
class Capabilities:
    """One side's, or what both agree on."""

    max_msg_fds: int = 1
    max_data_xfer_size: int = DEFAULT_TRANSFER
    max_dma_maps: int = 65535
    pgsizes: int = PAGE_SIZES
    write_multiple: bool = False
    twin_socket: bool = False
    #: Which of the reply's descriptors is the twin socket.
    fd_index: int | None = None
    #: Version of the extension for migration, 0 for none.
    extension: int = 0


#: What we offer.
OURS = Capabilities(
    max_msg_fds=MOST_FDS, write_multiple=True, twin_socket=True, extension=EXTENSION
)


def pack(capabilities: Capabilities) -> Version:
    """Kept short: QEMU (11.1) takes no reply longer than its own request, 194 bytes of text."""
    named: dict[str, Any] = {
        "max_msg_fds": capabilities.max_msg_fds,
        "max_data_xfer_size": capabilities.max_data_xfer_size,
        "max_dma_maps": capabilities.max_dma_maps,
        "pgsizes": capabilities.pgsizes,
    }
    if capabilities.write_multiple:
        named["write_multiple"] = True
    if capabilities.twin_socket:
        named["twin_socket"] = {"supported": True}
        if capabilities.fd_index is not None:
            named["twin_socket"]["fd_index"] = capabilities.fd_index
    if capabilities.extension:
        named[_EXTENSION_KEY] = capabilities.extension
    text = json.dumps({"capabilities": named}, separators=(",", ":"))
    return Version(MAJOR, MINOR, text.encode() + b"\0")


def parse(version: Version) -> Capabilities:
    """WireError: EINVAL for text that is none, or has the wrong types; ENOTSUP for another major."""
    if version.major != MAJOR:
        raise wrong(errno.ENOTSUP, f"version {version.major}.{version.minor}; we speak {MAJOR}.x")
    text = bytes(version.text)
    if not text:
        return Capabilities()
    if len(text) > MOST_TEXT:
        raise wrong(errno.EINVAL, f"the version's text has {len(text)} bytes, at most {MOST_TEXT}")
    if text[-1]:
        raise wrong(errno.EINVAL, "the version's text does not end with a NUL")
    try:
        found = json.loads(text.rstrip(b"\0"))
    except (ValueError, RecursionError) as error:
        raise wrong(errno.EINVAL, f"the version's text is no JSON: {str(error)[:80]}") from error
    named = _mapping(found, "the version's text").get("capabilities", {})
    named = _mapping(named, "capabilities")
    twin = _mapping(named.get("twin_socket", {}), "twin_socket")
    return Capabilities(
        max_msg_fds=_number(named, "max_msg_fds", 1),
        max_data_xfer_size=_number(named, "max_data_xfer_size", DEFAULT_TRANSFER),
        max_dma_maps=_number(named, "max_dma_maps", 65535),
        pgsizes=_number(named, "pgsizes", PAGE_SIZES),
        write_multiple=_switch(named, "write_multiple"),
        twin_socket=_switch(twin, "supported"),
        fd_index=_number(twin, "fd_index", 0) if "fd_index" in twin else None,
        extension=_number(named, _EXTENSION_KEY, 0),
    )


def _mapping(found: Any, what: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise wrong(errno.EINVAL, f"{what} is no JSON object")
    return found


def _number(named: dict[str, Any], key: str, default: int) -> int:
    value = named.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise wrong(errno.EINVAL, f"{key} is no number")
    return value


def _switch(named: dict[str, Any], key: str) -> bool:
    value = named.get(key, False)
    if not isinstance(value, bool):
        raise wrong(errno.EINVAL, f"{key} is neither true nor false")
    return value


def agree(theirs: Capabilities, ours: Capabilities = OURS) -> Capabilities:
    """The most that both can do. WireError EINVAL where that is not enough to talk."""
    agreed = replace(
        ours,
        max_msg_fds=min(ours.max_msg_fds, theirs.max_msg_fds),
        max_data_xfer_size=min(ours.max_data_xfer_size, theirs.max_data_xfer_size),
        max_dma_maps=min(ours.max_dma_maps, theirs.max_dma_maps),
        write_multiple=ours.write_multiple and theirs.write_multiple,
        twin_socket=ours.twin_socket and theirs.twin_socket,
        fd_index=theirs.fd_index,
        extension=min(ours.extension, theirs.extension),
    )
    if agreed.max_data_xfer_size < 8:
        raise wrong(errno.EINVAL, f"{theirs.max_data_xfer_size} bytes a message are too few")
    return agreed


__all__ = ["Capabilities", "OURS", "WireError", "agree", "pack", "parse"]
