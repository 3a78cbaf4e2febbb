"""The kernel's mlx5_vfio_pci on a software ConnectX: programs that ask it, and who watches the card.

``rig``, ``actions``, ``cards``
    outside: boots a lab kernel, runs a program in it, watches the card; what is done to the card
    meanwhile; cards for which the adapter has no option
``vf``, ``attempt``, ``devlink``
    inside: marks, streams, guests; a VF taken through steps that may fail; the PF's reload
``sessions``, ``endings``, ``misuse``, ``faults``, ``never``, ``shortage``, ``bus``, ``dirty``, ``trips``
    inside: what is asked, by subject; run by ``tests.lab.inside_mlx5``
"""
