"""QEMU's migration stream, version 3: facts of QEMU 11.1.

``sections``
    the frame: header, configuration, sections with their footers, commands, description
``ram``, ``vfio``, ``vmstate``
    what is in a section: guest memory, a VFIO device, any other device
``multifd``
    a channel of its own beside the main one
``config``
    a VFIO device's words and PCI state, as both have them
``vmdesc``
    the description of the devices at the end of the main stream
``state``
    what has been learnt of a stream so far
"""
