"""A system in a process of its own, so that no system's libraries, threads and memory are another's.

The process lives from round to round and works only when it is asked: systems take turns. LoadGen runs inside it.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Final, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray

from spine_bench.harness.children import end_with_parent
from spine_bench.harness.interfaces import Answer, Sample, SystemUnderTest
from spine_bench.harness.library import StudyLibrary
from spine_bench.harness.loadgen import Load, Outcome, drive
from spine_bench.harness.memory import MemoryWatch
from spine_bench.harness.systems import make_system
from spine_engine.errors import SpineEngineError
from spine_engine.options import usable_cpus

OPEN_TIMEOUT_S: Final = 1800.0
"""A system opens and warms up in this time: compiling with Inductor takes minutes."""

GRACE_S: Final = 60.0
"""Beyond a load's own time-out, after which its queries have failed, the process itself is given up."""

WARM_UP_S: Final = 60.0
"""A warm-up is not prolonged beyond this: a system that takes so long is measured on few studies anyway."""

T = TypeVar("T")


class SystemFailedError(Exception):
    """A system cannot be measured (any more); the message is one line that says why."""


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
    answers: dict[int, NDArray[np.float64]]


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
        self._process = psutil.Process(self._wait(self._executor.submit(os.getpid), OPEN_TIMEOUT_S))
        return self._wait(self._executor.submit(_open, *self._arguments), OPEN_TIMEOUT_S)

    def measure(self, load: Load) -> Outcome:
        """Put the system under a load and note its memory.

        Raises:
            SystemFailedError: its process died or does not answer.
        """
        if self._process is None:
            raise SystemFailedError("its process has ended")
        before = tree_cpu_s(self._process)
        with MemoryWatch(self._process.pid) as memory:
            outcome = self._wait(self._executor.submit(_measure, load), load.timeout_s + GRACE_S)
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory.peak_bytes)
        spent_s = max(0.0, tree_cpu_s(self._process) - before)
        return replace(outcome, cpu_s=spent_s / len(outcome.latencies_s))

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
        self._busy = True
        try:
            result = future.result(timeout_s)
        except SpineEngineError as error:
            problem = str(error)
        except BrokenProcessPool:
            problem = "its process died"
        except TimeoutError:
            self._kill()
            problem = f"no answer in {timeout_s:.0f} s"
        except Exception as error:  # noqa: BLE001 - a foreign system may raise anything; it is told, and the others go on
            problem = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        else:
            self._busy = False
            return result
        self._busy = False
        raise SystemFailedError(problem)

    def _kill(self) -> None:
        root, self._process = self._process, None
        if root is None:
            return
        with suppress(psutil.Error):
            for process in [*root.children(recursive=True), root]:
                with suppress(psutil.Error):
                    process.kill()


def lone_worker() -> ProcessPoolExecutor:
    """Return one process that leaves Ctrl-C to its parent, and ends with it, even by ``kill -9``."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent)


def tree_cpu_s(root: psutil.Process) -> float:
    """Return the processor seconds that a process and its living descendants have taken so far."""
    total = 0.0
    with suppress(psutil.Error):
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
    return total


# -- in the system's process -------------------------------------------------------------------------------------------

_opened: tuple[SystemUnderTest, StudyLibrary] | None = None


def _open(name: str, library: StudyLibrary, bundle: Path | None) -> WarmUp:
    global _opened
    began = perf_counter()
    system = make_system(name, library, bundle)
    system.open()
    _opened = (system, library)
    warm = warm_up(system, library, open_s=perf_counter() - began)
    return replace(warm, facts=dict(_plain(system.facts())))


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


def warm_up(system: SystemUnderTest, library: StudyLibrary, *, open_s: float = 0.0) -> WarmUp:
    """Answer a study twice, alone, and several at once, twice: the first time everything compiles, in every worker.

    A slow system is spared what would not end within ``WARM_UP_S``.

    Raises:
        TimeoutError: an answer did not come.
    """
    answers: dict[int, NDArray[np.float64]] = {}
    began = perf_counter()
    alone_s = _timed(system, library, [0], answers)
    if alone_s < WARM_UP_S / 2:
        alone_s = _timed(system, library, [0], answers)
    rate = 1 / alone_s
    several = [k % len(library) for k in range(4 * usable_cpus())]
    for _ in range(2):
        if perf_counter() - began + len(several) / rate < WARM_UP_S:
            rate = len(several) / _timed(system, library, several, answers)
    return WarmUp(facts={}, open_s=open_s, alone_s=alone_s, studies_per_s=rate, answers=answers)


def _timed(
    system: SystemUnderTest, library: StudyLibrary, indices: Sequence[int], answers: dict[int, NDArray[np.float64]]
) -> float:
    """Submit studies all at once and return the seconds until the last answer, which are noted in ``answers``."""
    left = threading.Semaphore(0)

    def done(index: int, answer: Answer) -> None:
        if answer.probabilities is not None:
            answers[index] = answer.probabilities
        left.release()

    began = perf_counter()
    for index in indices:
        sample: Sample = library[index]
        system.submit(sample, lambda answer, index=index: done(index, answer))  # type: ignore[misc]
    for _ in indices:
        if not left.acquire(timeout=OPEN_TIMEOUT_S):
            raise TimeoutError(f"no answer to a warm-up study in {OPEN_TIMEOUT_S:.0f} s")
    return perf_counter() - began
