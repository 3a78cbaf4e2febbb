"""The checks, one module a topic; importing this package registers all of them."""

from precopy.conformance.checks import (
    arcs,
    data_fd,
    data_size,
    discovery,
    dma_logging,
    dma_reports,
    features,
    lifetimes,
    precopy_info,
    resets,
    resuming,
    streams,
    threads,
    workloads,
)

__all__ = [
    "arcs",
    "data_fd",
    "data_size",
    "discovery",
    "dma_logging",
    "dma_reports",
    "features",
    "lifetimes",
    "precopy_info",
    "resets",
    "resuming",
    "streams",
    "threads",
    "workloads",
]
