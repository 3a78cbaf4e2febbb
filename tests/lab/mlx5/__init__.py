"""The kernel's mlx5_vfio_pci on a software ConnectX: programs that ask it, and who watches the card.

``rig``
    outside: boots a lab kernel, runs a program in it, watches the card
``vf``
    inside: marks, streams, guests
``sessions``, ``endings``, ``misuse``, ``faults``, ``bus``, ``dirty``, ``trips``
    inside: what is asked, by subject; run by ``tests.lab.inside_mlx5``
"""
