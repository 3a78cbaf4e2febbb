"""PCI functions for User-Mode Linux: virtio-pcidev devices over vhost-user sockets.

``server``
    a socket and a thread for each function
``connection``
    one connection's socket: messages with file descriptors
``session``
    what a front end has asked for: features, memory, queues, kicks
``device``
    accesses to config space and BARs, and MSIs
``queue``, ``memory``
    the virtqueue and the guest's memory, neither of them believed
``messages``
    the vhost-user protocol without any I/O
"""

from precopy.frontends.virtio_pcidev.device import Counts
from precopy.frontends.virtio_pcidev.messages import ProtocolError
from precopy.frontends.virtio_pcidev.server import VIRTIO_DEVICE_ID, Server

__all__ = ["Server", "Counts", "ProtocolError", "VIRTIO_DEVICE_ID"]
