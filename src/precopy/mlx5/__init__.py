"""The mlx5 migration driver: what drivers/vfio/pci/mlx5 of Linux 7.3 does, on any command port.

``driver``
    :class:`Mlx5VfioDevice`: states and arcs, each arc the commands it takes, reset, detach
``saving``
    the saving file: images, filled by saves that run beside the reader; ``stream_queue`` holds them
``resuming``
    the resuming file: the loader's state machine over the record stream
``buffers``
    memory that the firmware writes and reads, under memory keys
``commands``
    every firmware command that migration uses
``capabilities``
    what the function can do, asked once

Where this driver does more than the kernel's, a comment says so; all such places are listed in
Documentation/design/differences.rst.
"""

from precopy.mlx5.driver import Mlx5VfioDevice

__all__ = ["Mlx5VfioDevice"]
