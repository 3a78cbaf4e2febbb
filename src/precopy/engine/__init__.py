"""The engine: moves a device and its guest between two processes, over any connected socket.

``source``, ``target``
    the two sides of one migration
``sending``, ``memory``, ``pages``
    what the source sends: images; and the guest's memory, at either side
``listener``
    what the target says, heard while the source sends
``channel``, ``messages``
    frames with checksums; messages with schemas
``manifest``
    what a target refuses, before anything has changed
``policy``
    when to switch over
``save``, ``replay``
    a device to a file; a file to a device, or a migration once more
``timeline``
    what happened when, on both sides, on one clock
``report``, ``progress``, ``outcome``
    what was measured, what is told meanwhile, how it ends
"""
