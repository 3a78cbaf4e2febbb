"""The lab: a real Linux kernel with real VFIO drivers, as a process (User-Mode Linux).

``source``, ``build``
    the kernel: Debian's linux-source, configured, compiled, cached
"""
