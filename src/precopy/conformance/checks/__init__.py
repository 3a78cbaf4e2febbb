"""The checks, one module a topic; importing this package registers all of them."""

import precopy.conformance.checks.arcs
import precopy.conformance.checks.data_fd
import precopy.conformance.checks.data_size
import precopy.conformance.checks.discovery
import precopy.conformance.checks.dma_logging
import precopy.conformance.checks.dma_reports
import precopy.conformance.checks.features
import precopy.conformance.checks.lifetimes
import precopy.conformance.checks.precopy_info
import precopy.conformance.checks.resets
import precopy.conformance.checks.resuming
import precopy.conformance.checks.streams
import precopy.conformance.checks.threads
import precopy.conformance.checks.workloads  # noqa: F401
