"""Systems that put studies in a queue, and the processes, or the one thread, that work it off."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from spine_bench.harness.host import end_with_parent
from spine_bench.harness.interfaces import (
    CLOSED,
    F64,
    Answer,
    Done,
    Sample,
    answered,
    told,
)
from spine_engine.bundle import Bundle
from spine_engine.pipeline.clock import StageClock


class StudyGrader(Protocol):
    """Grades one study after the other; it is used where it was made."""

    facts: Mapping[str, object]

    def answer(self, sample: Sample, clock: StageClock) -> F64:
        """Return the probabilities of a study ``(5 levels, 5 conditions, 3 severities)``."""


MakeGrader = Callable[[Bundle], StudyGrader]


class PooledSystem:
    """Studies in a queue, and graders that take the next when they are free.

    Args:
        name: of the system.
        folder: of the bundle; None for the packaged one.
        make: makes a grader of a bundle, where it is to work, and warms it up.
        processes: how many there are, each with a grader; 0 for a thread of this process with a single one.
    """

    def __init__(
        self,
        name: str,
        folder: Path | None,
        make: MakeGrader,
        processes: int = 0,
    ) -> None:
        self.name = name
        self._bundle = Bundle.open(folder)
        self._workers = max(processes, 1)
        self._pool = _executor(partial(make, self._bundle), processes)
        self._facts: Mapping[str, object] = {}

    def open(self) -> None:
        """Make every grader.

        Raises:
            Exception: one cannot be made.
        """
        for opened in [self._pool.submit(_facts) for _ in range(self._workers)]:
            self._facts = opened.result()

    def submit(self, sample: Sample, done: Done) -> None:
        """Queue a study."""
        self._pool.submit(_answer, sample).add_done_callback(
            lambda future: done(_answer_of(future))
        )

    def facts(self) -> dict[str, object]:
        """Return the bundle, the processes, and what the graders say of themselves."""
        return {"bundle": self._bundle.facts, "processes": self._workers, **self._facts}

    def close(self) -> None:
        """Finish the studies in work; what still waits is answered with a failure."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _executor(make: Callable[[], StudyGrader], processes: int) -> Executor:
    if not processes:
        return ThreadPoolExecutor(1, initializer=_start, initargs=(make,))
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        processes, context, _start_process, (make, context.Barrier(processes))
    )


def _answer_of(future: Future[Answer]) -> Answer:
    if future.cancelled():
        return Answer(probabilities=None, failure=CLOSED)
    error = future.exception()
    return Answer(probabilities=None, failure=told(error)) if error else future.result()


# -- where the graders work --------------------------------------------------------------------------------------------

_made: StudyGrader | Exception | None = None


def _start(make: Callable[[], StudyGrader]) -> None:
    global _made
    try:
        _made = make()
    except Exception as error:  # noqa: BLE001 - it is raised where it is asked for; here it would only break the pool
        _made = error


def _start_process(make: Callable[[], StudyGrader], started: Any) -> None:
    end_with_parent()
    _start(make)
    started.wait()  # no process takes work before every one is there


def grader() -> Any:
    """Return the grader of this process."""
    if isinstance(_made, Exception):
        raise _made
    return _made


def _facts() -> Mapping[str, object]:
    facts: Mapping[str, object] = grader().facts
    return facts


def _answer(sample: Sample) -> Answer:
    return answered(partial(grader().answer, sample))
