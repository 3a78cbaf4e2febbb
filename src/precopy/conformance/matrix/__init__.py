"""The suite on everything that can be had here: drivers in lab kernels, our own devices.

``targets``
    what is held to the suite, in which mix of capabilities, on which kernels: tables
``inside``
    the program that runs checks next to the device, and tells each result as it comes
``places``
    where that program runs: in a lab kernel, or in a process of its own
``holding``
    all checks of one target, whatever goes down on the way
``ledger``
    what came of it, as JSON that the documentation is made of
"""
