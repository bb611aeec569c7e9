"""What a pool of workers runs: tasks of any kind, and what can happen to one besides its outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from spine_engine.errors import Reason

TaskT = TypeVar("TaskT")
TaskT_contra = TypeVar("TaskT_contra", contravariant=True)
OutcomeT = TypeVar("OutcomeT")
OutcomeT_co = TypeVar("OutcomeT_co", covariant=True)

Facts = Mapping[str, Any]
"""What the parent should know of a worker beside its outcomes; picklable, compared by ``==``."""


class Worker(Protocol[TaskT_contra, OutcomeT_co]):
    """Turns tasks into outcomes; lives in a process of its own, which makes it once.

    - Called from one thread, with one task at a time.
    - A ``SpineEngineError`` that it raises is raised by the pool as it is.
    - ``CompanionLostError`` counts as the loss of the process that the workers share.
    """

    def run(self, task: TaskT_contra) -> tuple[OutcomeT_co, Facts]:
        """Run one task; return its outcome and the worker's facts, whether they changed or not."""
        ...


WorkerFactory = Callable[[], tuple[Worker[TaskT, OutcomeT], Facts]]
"""Makes the worker in its process, with its first facts; picklable. What it raises as ``SpineEngineError`` ends the
run."""

OnFacts = Callable[[Facts], None]
"""Receives a worker's facts when it has started and whenever they change; what it raises ends the run."""


class Companion(Protocol):
    """A process that all workers of a pool use, beside them: it is started first and replaced when it dies."""

    @property
    def peak_memory_bytes(self) -> int:
        """The highest resident memory that it has had."""
        ...

    def ensure(self, *, gone: int | None = None) -> None:
        """Start the process unless it runs. ``gone`` is the generation that is known to be useless by now."""
        ...

    def close(self) -> None:
        """End the process for good."""
        ...


class CompanionLostError(Exception):
    """A worker's task met a companion that has died or hangs; as far as anyone can tell, not because of this task.

    Attributes:
        generation: which of the processes, one after the other, it was; 0 where none could be reached.
    """

    def __init__(self, generation: int = 0) -> None:
        super().__init__(generation)
        self.generation = generation


class WorkerError(Exception):
    """A task ended without an outcome: its worker died, or was killed because its time was up."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


class SharedFaultError(WorkerError):
    """The companion died or hung: any of the tasks that were using it may be to blame."""

    def __init__(self) -> None:
        super().__init__(Reason.WORKER_DIED)
