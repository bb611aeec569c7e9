"""Carries units of work out: workers, what they share, and what becomes of those that die."""

from spine_engine.scheduler.models import ModelProcess
from spine_engine.scheduler.processes import peak_memory_bytes
from spine_engine.scheduler.slots import MemoryShare, Scheduler, Slot
from spine_engine.scheduler.walks import ModelsLostError, UnitOutcome, Walk, WalkFactory, WorkerError

__all__ = [
    "MemoryShare",
    "ModelProcess",
    "ModelsLostError",
    "Scheduler",
    "Slot",
    "UnitOutcome",
    "Walk",
    "WalkFactory",
    "WorkerError",
    "peak_memory_bytes",
]
