"""QEMU's migration: the main stream, and a channel of multifd (see ``precopy.stream.qemu``)."""

from precopy.stream.qemu import multifd, sections
from precopy.stream.registry import begins_with, register

register(
    "qemu",
    "a migration stream of QEMU",
    begins_with(sections.MAGIC),
    sections.resync,
    beside=True,
    carries=True,
)(sections.dissect)
register(
    "qemu-multifd",
    "a multifd channel of QEMU's migration",
    multifd.recognise,
    multifd.resync,
    carries=True,
)(multifd.dissect)
