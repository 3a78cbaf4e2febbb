"""Offers a device by vfio-user, to VMMs and to ``precopy migrate vfio-user:PATH``.

``server``
    the socket: who may connect, one client at a time
``session``, ``commands``
    one client: its course, and what it may ask
``offered``
    the device, and what outlives a client
``memory``, ``client_memory``, ``interrupts``, ``migration``
    DMA to the client's memory, its eventfds, DEVICE_FEATURE and the data of the state
``quirks``
    where clients depart from the protocol
"""

from precopy.frontends.vfio_user.server import Server

__all__ = ["Server"]
