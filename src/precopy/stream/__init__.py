"""Dissects what went over the wire: devices' streams, and the streams that carry them.

``cursor``, ``layout``
    where a dissector stands in a stream that comes in pieces; structures as tables
``registry``, ``formats``
    the formats, a module each that registers itself; ``qemu`` has what QEMU's streams need
``dissect``
    runs a dissector, whatever is in the stream
``item``
    what it says, to whoever hears it: ``show``, ``place``, ``extract``, ``compare``
``elsewhere``
    a file that is looked at elsewhere than where it is read
``recording``
    the file of a recorded migration, or of a saved device
"""
