"""Systems that take a millisecond a study, fail, die, or answer in odd ways; libraries of files that are no studies."""

import os
import queue
import threading
import time
from typing import ClassVar

import numpy as np

from spine_bench.harness.host import SystemFailedError, WarmUp
from spine_bench.harness.interfaces import Answer, StudyLibrary
from spine_bench.harness.loadgen import Outcome
from spine_engine.dicom import WorkUnit
from spine_engine.dicom.discovery import InputFile

GRADES = np.full((5, 5, 3), 1 / 3)


def made_library(root, count=5, name="made"):
    units = []
    for k in range(count):
        path = root / f"study{k}"
        path.write_bytes(b"x" * (k + 1))
        units.append(WorkUnit(path.name, (InputFile(path.name, k + 1),), path.name))
    return StudyLibrary(name=name, root=root, units=tuple(units))


class FakeSystem:
    """Workers that sleep and answer; ``deed`` decides what they answer."""

    def __init__(
        self,
        service_s=0.001,
        workers=2,
        deed=lambda sample: Answer(probabilities=GRADES),
    ):
        self.name = "fake"
        self.seen = []
        self._service_s, self._workers, self._deed = service_s, workers, deed
        self._queue = queue.Queue()
        self._threads = [
            threading.Thread(target=self._work, daemon=True) for _ in range(workers)
        ]

    def open(self):
        for thread in self._threads:
            thread.start()

    def submit(self, sample, done):
        self.seen.append(sample.unit.key)
        self._queue.put((sample, done))

    def facts(self):
        return {"workers": self._workers, "models": {"grader": "none"}}

    def close(self):
        for _ in self._threads:
            self._queue.put(None)

    def _work(self):
        while (item := self._queue.get()) is not None:
            sample, done = item
            time.sleep(self._service_s)
            answer = self._deed(sample)
            if answer is not None:
                done(answer)


class Reversed(FakeSystem):
    """Collects what comes within 50 ms and answers the last first."""

    def _work(self):
        while (item := self._queue.get()) is not None:
            time.sleep(0.05)
            items = [item]
            while not self._queue.empty():
                items.append(self._queue.get())
            for sample, done in reversed([item for item in items if item is not None]):
                done(self._deed(sample))


class Twice(FakeSystem):
    """Answers everything twice."""

    def submit(self, sample, done):
        done(Answer(probabilities=GRADES))
        done(Answer(probabilities=GRADES))


def failing(sample):
    return (
        Answer(probabilities=None, failure="corrupt_file")
        if sample.unit.key == "study0"
        else Answer(probabilities=GRADES, stage_seconds={"read": 0.5})
    )


# -- what a name such as ``bench_fakes:fast`` finds


def fast(library, bundle):
    return FakeSystem()


def slow(library, bundle):
    return FakeSystem(service_s=0.004)


def dying(library, bundle):
    return FakeSystem(deed=lambda sample: os._exit(3))


def dying_later(library, bundle):
    return FakeSystem(deed=_Later())


def broken(library, bundle):
    raise ZeroDivisionError("not today")


def failing_all(library, bundle):
    return FakeSystem(
        deed=lambda sample: Answer(probabilities=None, failure="corrupt_file")
    )


def busy(library, bundle):
    return FakeSystem(service_s=0, deed=_work_20_ms)


def _work_20_ms(sample):
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        pass
    return Answer(probabilities=GRADES)


class _Later:
    """Answers the warm-up and dies after it."""

    def __init__(self):
        self._left = 60

    def __call__(self, sample):
        self._left -= 1
        if self._left < 0:
            os._exit(3)
        return Answer(probabilities=GRADES)


# -- a system that needs no process


class MadeHost:
    """A system that takes ``service_s`` a study, on one worker; what becomes of it is in ``deeds``."""

    deeds: ClassVar[dict[str, dict[str, object]]] = {}
    opened: ClassVar[list[str]] = []
    closed: ClassVar[list[str]] = []

    def __init__(self, name, library, bundle):
        self.name, self.peak_memory_bytes = name, 0
        self._deed = dict(self.deeds[name])
        self._turns = 0

    def open(self):
        if "broken" in self._deed:
            raise SystemFailedError(self._deed["broken"])
        self.opened.append(self.name)
        service_s = self._deed["service_s"]
        answers = {0: GRADES + self._deed.get("away", 0.0)}
        return WarmUp(
            facts={"workers": "1"},
            open_s=2.0,
            alone_s=service_s,
            studies_per_s=1 / service_s,
            answers=answers,
        )

    def measure(self, load):
        self._turns += 1
        if self._turns > self._deed.get("dies_after", 10**9):
            raise SystemFailedError("its process died")
        self.peak_memory_bytes = max(self.peak_memory_bytes, 1_000_000 * self._turns)
        service_s, failures = (
            self._deed["service_s"],
            load.queries if "failing" in self._deed else 0,
        )
        late = load.rate is not None and load.rate > self._deed.get("bears", 1e9)
        return Outcome(
            wall_s=service_s * load.queries,
            latencies_s=(service_s,) * load.queries,
            failures={"corrupt_file": failures} if failures else {},
            stage_seconds={},
            valid=not failures and not late,
            doubts=(),
            cpu_s=service_s,
        )

    def close(self):
        self.closed.append(self.name)
