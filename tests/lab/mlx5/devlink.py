"""``devlink dev reload``, over generic netlink: the PF's driver lets go of its functions and takes them back.

Numbers: include/uapi/linux/{netlink,genetlink,devlink}.h (Linux 7.3).
"""

import os
import socket
import struct

_NETLINK_GENERIC = 16
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_NLMSG_ERROR = 2
_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY = 16, 3
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 1, 2
_DEVLINK_CMD_RELOAD = 37
_DEVLINK_ATTR_BUS_NAME, _DEVLINK_ATTR_DEV_NAME = 1, 2

_MESSAGE = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")


def _attribute(kind: int, text: str) -> bytes:
    data = text.encode() + b"\0"
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)


def _ask(link: socket.socket, family: int, command: int, attributes: bytes) -> bytes:
    """One request; the attributes of its answer, none where it has only been carried out. OSError."""
    body = _GENERIC.pack(command, 1, 0) + attributes
    flags = _NLM_F_REQUEST | _NLM_F_ACK
    link.send(_MESSAGE.pack(_MESSAGE.size + len(body), family, flags, 1, 0) + body)
    found = b""
    while True:
        answer = link.recv(65536)
        while answer:
            length, kind, *_ = _MESSAGE.unpack_from(answer)
            if kind == _NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", answer, _MESSAGE.size)
                if code:
                    raise OSError(-code, os.strerror(-code))
                return found
            found = answer[_MESSAGE.size + _GENERIC.size : length]
            answer = answer[-(-length // 4) * 4 :]


def _family(link: socket.socket, name: str) -> int:
    asked = _attribute(_CTRL_ATTR_FAMILY_NAME, name)
    found = _ask(link, _GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, asked)
    while found:
        length, kind = _ATTRIBUTE.unpack_from(found)
        if kind == _CTRL_ATTR_FAMILY_ID:
            return int.from_bytes(found[4:6], "little")
        found = found[-(-length // 4) * 4 :]
    raise AssertionError(f"no family {name}")


def reload(device: str) -> None:
    """Reload the driver of PCI device ``device``. OSError where it does not come up again."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as link:
        link.bind((0, 0))
        who = _attribute(_DEVLINK_ATTR_BUS_NAME, "pci") + _attribute(_DEVLINK_ATTR_DEV_NAME, device)
        _ask(link, _family(link, "devlink"), _DEVLINK_CMD_RELOAD, who)
