"""A pool of processes that may die, for tasks of any kind; ``batching`` serves models to its workers."""

from spine_engine.scheduler.pool import WorkerPool, WorkerSlot
from spine_engine.scheduler.process import MemoryShare, peak_memory_bytes
from spine_engine.scheduler.task import (
    Companion,
    CompanionLostError,
    Facts,
    SharedFaultError,
    Worker,
    WorkerError,
    WorkerFactory,
)

__all__ = [
    "Companion",
    "CompanionLostError",
    "Facts",
    "MemoryShare",
    "SharedFaultError",
    "Worker",
    "WorkerError",
    "WorkerFactory",
    "WorkerPool",
    "WorkerSlot",
    "peak_memory_bytes",
]
