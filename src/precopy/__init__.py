"""Live migration of VFIO devices, outside the kernel.

General layout (an import points down, never up):

``cli``, ``engine``
    what a user runs, and what moves a device between hosts
``backends``, ``mlx5``, ``connectx``, ``guest``, ``lab``
    ways to reach a device; the mlx5 migration driver; the software adapter; a workload
    that drives it; a real kernel to try all of it on
``mlx5_abi``, ``pci``, ``vfio``
    what driver and firmware share; DMA; the migration contract of linux/vfio.h
"""

__version__ = "0.1.0"
