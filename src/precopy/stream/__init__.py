"""Dissects what went over the wire: devices' streams, and the streams that carry them.

``cursor``: where a dissector stands. ``registry``: the formats. ``formats``: a module each.
``dissect``: runs a dissector, whatever is in the stream. ``item``: what it says; ``tree``, ``lines``,
``place``, ``extract``: who hears it. ``compare``: two streams.
"""
