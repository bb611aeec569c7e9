"""A system that takes one study at a time, in the order in which they come: what scripts and notebooks do."""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from spine_bench.harness.interfaces import Answer, Sample

Done = Callable[[Answer], None]

CLOSED = "the system was closed"


class Clock:
    """Wall and processor seconds by stage of one study; the processor's are the whole process's."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.processor: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens inside as ``name``."""
        wall, processor = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
            self.processor[name] = self.processor.get(name, 0.0) + time.process_time() - processor


class SerialSystem(ABC):
    """A queue and one thread that works it off; a subclass says how a study is answered.

    Attributes:
        processor_seconds: by stage, of all studies so far.
    """

    name: str

    def __init__(self) -> None:
        self.processor_seconds: Counter[str] = Counter()
        self._waiting: queue.SimpleQueue[tuple[Sample, Done] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    @abstractmethod
    def load(self) -> None:
        """Load the models and warm them up."""

    @abstractmethod
    def answer(self, sample: Sample, clock: Clock) -> NDArray[np.float64]:
        """Return the probabilities of a study ``(5 levels, 5 conditions, 3 severities)``."""

    @abstractmethod
    def facts(self) -> dict[str, object]:
        """Return what really runs."""

    def open(self) -> None:
        """Load everything and begin to wait for studies."""
        self.load()
        self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
        self._thread.start()

    def submit(self, sample: Sample, done: Done) -> None:
        """Queue a study."""
        self._waiting.put((sample, done))

    def close(self) -> None:
        """Answer what still waits with a failure, finish the study in work, and end the thread."""
        self._closing.set()
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            sample, done = item
            done(Answer(probabilities=None, failure=CLOSED) if self._closing.is_set() else self._answered(sample))

    def _answered(self, sample: Sample) -> Answer:
        clock = Clock()
        try:
            probabilities = self.answer(sample, clock)
        except Exception as error:  # noqa: BLE001 - a study that cannot be graded is an answer as well
            return Answer(probabilities=None, failure=told(error), stage_seconds=clock.wall)
        self.processor_seconds.update(clock.processor)
        return Answer(probabilities=probabilities, stage_seconds=clock.wall)


def told(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
