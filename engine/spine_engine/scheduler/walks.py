"""What the scheduler runs: walks, made once in each worker, that take units to their outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from spine_engine.dicom.discovery import RefusedFile, WorkUnit
from spine_engine.errors import Reason
from spine_engine.results import StudyResult

if TYPE_CHECKING:
    from spine_engine.backends.base import Device


@dataclass(frozen=True, kw_only=True)
class UnitOutcome:
    """What walking a unit gave: its studies' results, or the units it splits into; and the files it could not use."""

    results: tuple[StudyResult, ...] = ()
    split: tuple[WorkUnit, ...] = ()
    refused: tuple[RefusedFile, ...] = ()

    @property
    def out_of_memory(self) -> bool:
        """Whether a study would have needed more memory than its worker may have."""
        return any(result.reason is Reason.OUT_OF_MEMORY for result in self.results)


class Walk(Protocol):
    """Takes units to their outcome; lives in a worker process, which makes it once.

    - Called from one thread, with one unit at a time.
    - Every error of a study is a result with a reason; what it raises counts as an internal error of the engine, but
      ``BackendError`` and ``BundleError`` (a model opened late that cannot be had) end the run, and
      ``ModelsGoneError`` counts like the death of the worker.
    - ``devices`` says by role what each model opened so far really runs on; it may grow from unit to unit.
    """

    devices: Mapping[str, Device]

    def __call__(self, unit: WorkUnit) -> UnitOutcome:
        """Walk one unit."""
        ...


WalkFactory = Callable[[], Walk]
"""Makes the walk inside a worker; picklable. What it raises as ``SpineEngineError`` ends the run with that error."""

OnDevices = Callable[[dict[str, "Device"]], None]
"""Told a worker's devices when it has started and when it has opened more; what it raises ends the run."""


class WorkerError(Exception):
    """A unit's attempt ended without an outcome: its worker died, or was killed because its time was up."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


class ModelsLostError(WorkerError):
    """The process of the shared models died or hung: any of the studies that were using it may be to blame."""

    def __init__(self) -> None:
        super().__init__(Reason.WORKER_DIED)
