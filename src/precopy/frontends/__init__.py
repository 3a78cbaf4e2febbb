"""Ways to offer a device to something that wants one.

``virtio_pcidev``
    PCI functions for User-Mode Linux, over vhost-user sockets
"""
