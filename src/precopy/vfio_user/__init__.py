"""The vfio-user protocol, which server and client share.

``messages``
    every command as a typed request and reply, and the table of them
``version``
    what two peers agree on at the beginning
``conversation``
    one socket: messages, descriptors, replies matched to commands
"""
