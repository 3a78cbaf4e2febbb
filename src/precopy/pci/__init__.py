"""PCI, without anything of mlx5.

``memory``
    guest memory: regions of memfd that processes can share and that migrate with a device
``dma``
    the address space in which a function reads and writes memory
"""
