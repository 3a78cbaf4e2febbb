"""Statuses of firmware commands, and the errno that each becomes.

Source: ``MLX5_CMD_STAT_*`` in include/linux/mlx5/device.h and ``cmd_status_to_err`` in
drivers/net/ethernet/mellanox/mlx5/core/cmd.c (Linux 7.3).
"""

import enum
import errno


class Status(enum.IntEnum):
    """``status`` of an outbox."""

    OK = 0x0
    INT_ERR = 0x1
    BAD_OP = 0x2
    BAD_PARAM = 0x3
    BAD_SYS_STATE = 0x4
    BAD_RES = 0x5
    RES_BUSY = 0x6
    NOT_READY = 0x7
    LIM = 0x8
    BAD_RES_STATE = 0x9
    IX = 0xA
    NO_RES = 0xF
    BAD_QP_STATE = 0x10
    BAD_PKT = 0x30
    BAD_SIZE_OUTS_CQES = 0x40
    BAD_INP_LEN = 0x50
    BAD_OUTP_LEN = 0x51


_ERRNO: dict[int, int] = {
    Status.INT_ERR: errno.EIO,
    Status.BAD_OP: errno.EINVAL,
    Status.BAD_PARAM: errno.EINVAL,
    Status.BAD_SYS_STATE: errno.EIO,
    Status.BAD_RES: errno.EINVAL,
    Status.RES_BUSY: errno.EBUSY,
    Status.NOT_READY: errno.EAGAIN,
    Status.LIM: errno.ENOMEM,
    Status.BAD_RES_STATE: errno.EINVAL,
    Status.IX: errno.EINVAL,
    Status.NO_RES: errno.EAGAIN,
    Status.BAD_QP_STATE: errno.EINVAL,
    Status.BAD_PKT: errno.EINVAL,
    Status.BAD_SIZE_OUTS_CQES: errno.EINVAL,
}


def errno_of(status: int) -> int:
    """The errno of a status other than OK; EIO for one that nobody knows."""
    return _ERRNO.get(status, errno.EIO)


def name_of(status: int) -> str:
    """``BAD_PARAM (0x3)``, for messages."""
    try:
        return f"{Status(status).name} ({status:#x})"
    except ValueError:
        return f"status {status:#x}"
