"""Experiments that anyone can repeat: what is published about live migration, measured here.

result       what an experiment finds: tables, curves, notes; no I/O
models       what is predicted before a run
moves        moves a device as ``precopy migrate`` does, again and again
machine      where it was measured
plot         draws the curves (matplotlib, the extra ``plot``)
downtime     with and without PRE_COPY, against the size of the state
convergence  rounds, time and downtime against how fast memory is written
queues       with and without room made ahead, against the number of QPs
"""

from precopy.experiments.moves import ExperimentError
from precopy.experiments.result import Result

__all__ = ["ExperimentError", "Result"]
