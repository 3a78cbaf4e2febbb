"""The software ConnectX: an adapter with one PF and its VFs, without the silicon.

``adapter``
    :class:`Adapter`: functions, their command ports, doorbells and interrupts
``config``
    what kind of card it is, and the faults that it is told to have
``firmware``, ``objects``, ``migration``
    commands by opcode: dispatch and capabilities; PD to QP; suspend, save and load
``image``
    the format of an image
``context_memory``, ``slots``
    where contexts live, tracked by page, and what a slot holds
``memory_keys``, ``transport``, ``events``
    keys to memory; work queue entries carried out; completions, events and interrupts
"""

from precopy.connectx.adapter import Adapter, InlineExecutor
from precopy.connectx.config import AdapterConfig, FaultPlan

__all__ = ["Adapter", "AdapterConfig", "FaultPlan", "InlineExecutor"]
