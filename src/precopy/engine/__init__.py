"""The engine: moves a device and its guest between two processes, over any connected socket.

``source``, ``target``
    the two sides of one migration
``listener``
    what the target says, heard while the source sends
``channel``, ``messages``
    frames with checksums; messages with schemas
``manifest``
    what a target refuses, before anything has changed
``policy``
    when to switch over
``report``, ``progress``, ``outcome``
    what was measured, what is told meanwhile, how it ends
"""
