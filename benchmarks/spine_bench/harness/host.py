"""A system in a process of its own, so that no system's libraries, threads and memory are another's.

The process lives from round to round and works only when it is asked: systems take turns. LoadGen runs inside it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Final, TypeVar

import psutil

from spine_bench.harness.interfaces import (
    F64,
    Answer,
    StudyLibrary,
    SystemUnderTest,
    told,
)
from spine_bench.harness.loadgen import Load, Outcome, drive
from spine_bench.harness.systems import make_system
from spine_engine.errors import SpineEngineError
from spine_engine.options import usable_cpus
from spine_engine.scheduler.process import prepare_process

# A system opens and warms up in this time: compiling with Inductor takes minutes.
OPEN_TIMEOUT_S: Final = 1800.0

# Beyond a load's own time-out, after which its queries have failed, the process itself is given up.
GRACE_S: Final = 60.0

# Between two looks. One look costs 2 ms of processor time a process: under 1 % of a core for two workers.
INTERVAL_S: Final = 0.5

# A warm-up is not prolonged beyond this: a system that takes so long is measured on few studies anyway.
WARM_UP_S: Final = 60.0

T = TypeVar("T")
Answers = dict[int, F64]


class SystemFailedError(Exception):
    """A system cannot be measured (any more); the message is one line that says why."""


# Errors that say in one line what is wrong.
KNOWN: Final = (SpineEngineError, SystemFailedError)


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """What opening and warming up showed.

    Attributes:
        facts: what the system says it really runs.
        open_s: seconds until it was open, warm-up not counted.
        alone_s: seconds that one study took, alone, on a warm system.
        studies_per_s: how many it answered a second when several were there; a rough figure, to size runs with.
        answers: by place in the library, the probabilities ``(5, 5, 3)`` of the studies it graded meanwhile.
    """

    facts: dict[str, str]
    open_s: float
    alone_s: float
    studies_per_s: float
    answers: Answers


class Host:
    """One system's process. Close it to end the process and all it started."""

    def __init__(self, name: str, library: StudyLibrary, bundle: Path | None) -> None:
        self.name = name
        self.peak_memory_bytes = 0
        self._arguments = (name, library, bundle)
        self._executor = lone_worker()
        self._process: psutil.Process | None = None
        self._busy = False

    def open(self) -> WarmUp:
        """Open the system and warm it up.

        Raises:
            SystemFailedError: it cannot be opened here.
        """
        try:
            self._process = psutil.Process(
                self._wait(self._executor.submit(os.getpid), OPEN_TIMEOUT_S)
            )
            return self._wait(
                self._executor.submit(_open, *self._arguments), OPEN_TIMEOUT_S
            )
        except KeyboardInterrupt:
            self.close()
            raise

    def measure(self, load: Load) -> Outcome:
        """Put the system under a load and note its memory.

        Raises:
            SystemFailedError: its process died or does not answer.
        """
        if self._process is None:
            raise SystemFailedError("its process has ended")
        before_s = tree_cpu_s(self._process)
        with MemoryWatch(self._process.pid) as memory:
            outcome = self._wait(
                self._executor.submit(_measure, load), load.timeout_s + GRACE_S
            )
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory.peak_bytes)
        spent_s = tree_cpu_s(self._process) - before_s
        return replace(outcome, cpu_s=max(0.0, spent_s) / len(outcome.latencies_s))

    def close(self) -> None:
        """End the system, in good order unless it is busy."""
        if self._busy:  # the user ended the measurement
            self._kill()
        with suppress(SystemFailedError, RuntimeError):
            self._wait(self._executor.submit(_close), GRACE_S)
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._process is not None:
            with suppress(psutil.Error):
                self._process.wait(GRACE_S)
        self._kill()

    def _wait(self, future: Future[T], timeout_s: float) -> T:
        """Return what the process answers; ``_busy`` stays true where the user ends the measurement meanwhile."""
        self._busy = True
        try:
            error = future.exception(timeout_s)
        except TimeoutError:
            self._kill()
            error = SystemFailedError(f"no answer in {timeout_s:.0f} s")
        self._busy = False
        if error is None:
            return future.result()
        if isinstance(error, BrokenProcessPool):
            error = SystemFailedError("its process died")
        raise SystemFailedError(
            str(error) if isinstance(error, KNOWN) else told(error)
        ) from None

    def _kill(self) -> None:
        root = self._process
        self._process = None
        for process in tree(root) if root is not None else ():
            with suppress(psutil.Error):
                process.kill()


def tree(root: psutil.Process) -> list[psutil.Process]:
    """Return the living descendants of a process, and itself; nothing when it has ended."""
    with suppress(psutil.Error):
        return [*root.children(recursive=True), root]
    return []


class MemoryWatch:
    """Looks at a process tree until it is closed, in a thread; use it in a ``with``.

    Counts the proportional set size (PSS), in which a page that several processes share counts once in all: a forked
    data loader does not look larger than it is. Where the system does not tell it, the resident set size.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name="memory watch", daemon=True
        )
        self.peak_bytes = 0

    def __enter__(self) -> MemoryWatch:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self._look()

    def _look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, sum(map(_size_bytes, tree(self._root))))


def _size_bytes(process: psutil.Process) -> int:
    try:
        info = process.memory_full_info()
    except psutil.Error:  # it ended meanwhile
        return 0
    return int(getattr(info, "pss", info.rss))


def end_with_parent() -> None:
    """Called in a child process: it ends when its parent does, even by ``kill -9``, and leaves Ctrl-C to it.

    Unlike the engine's workers it still ends at SIGTERM, by which executors and loaders end the workers they give up;
    a system's own children would inherit that it is ignored.
    """
    prepare_process()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def lone_worker() -> ProcessPoolExecutor:
    """Return one process that leaves Ctrl-C to its parent, and ends with it, even by ``kill -9``."""
    return ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent
    )


def tree_cpu_s(root: psutil.Process) -> float:
    """Return the processor seconds that a process and its living descendants have taken so far."""
    total = 0.0
    for process in tree(root):
        with suppress(psutil.Error):
            user, system, *_ = process.cpu_times()
            total += user + system
    return total


# -- in the system's process -------------------------------------------------------------------------------------------

_opened: tuple[SystemUnderTest, StudyLibrary] | None = None


def _open(name: str, library: StudyLibrary, bundle: Path | None) -> WarmUp:
    global _opened
    began = perf_counter()
    system = make_system(name, library, bundle)
    system.open()
    _opened = (system, library)
    return warm_up(system, library, open_s=perf_counter() - began)


def _plain(facts: Mapping[str, object], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield facts as text, those inside other facts by names such as ``models.grader``."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _plain(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", str(value)


def _measure(load: Load) -> Outcome:
    assert _opened is not None
    return drive(*_opened, load)


def _close() -> None:
    if _opened is not None:
        _opened[0].close()


def warm_up(
    system: SystemUnderTest, library: StudyLibrary, *, open_s: float = 0.0
) -> WarmUp:
    """Answer a study twice, alone, and several at once, twice: the first time everything compiles, in every worker.

    A slow system is spared what would not end within ``WARM_UP_S``.

    Raises:
        TimeoutError: an answer did not come.
    """
    answers: Answers = {}
    began = perf_counter()
    alone_s = _timed(system, library, [0], answers)
    if alone_s < WARM_UP_S / 2:
        alone_s = _timed(system, library, [0], answers)
    rate = 1 / alone_s
    several = [k % len(library) for k in range(4 * usable_cpus())]
    for _ in range(2):
        if perf_counter() - began + len(several) / rate < WARM_UP_S:
            rate = len(several) / _timed(system, library, several, answers)
    return WarmUp(
        facts=dict(_plain(system.facts())),
        open_s=open_s,
        alone_s=alone_s,
        studies_per_s=rate,
        answers=answers,
    )


def _timed(
    system: SystemUnderTest,
    library: StudyLibrary,
    indices: Sequence[int],
    answers: Answers,
) -> float:
    """Submit studies all at once and return the seconds until the last answer, which are noted in ``answers``."""
    left = threading.Semaphore(0)

    def done(index: int, answer: Answer) -> None:
        if answer.probabilities is not None:
            answers[index] = answer.probabilities
        left.release()

    began = perf_counter()
    for index in indices:
        system.submit(library[index], partial(done, index))
    for _ in indices:
        if not left.acquire(timeout=OPEN_TIMEOUT_S):
            raise TimeoutError(
                f"no answer to a warm-up study in {OPEN_TIMEOUT_S:.0f} s"
            )
    return perf_counter() - began
