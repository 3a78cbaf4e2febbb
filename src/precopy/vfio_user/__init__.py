"""The vfio-user protocol, which server and client share.

``messages``
    every command as a typed request and reply, and the table of them
``version``
    what two peers agree on at the beginning
``receiving``, ``conversation``
    one socket: messages and descriptors out of its bytes, replies matched to commands
"""
