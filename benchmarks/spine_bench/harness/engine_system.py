"""Our engine as a system under test: the workers that ``spine-engine run`` uses, without ledger and files."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spine_bench.harness.interfaces import Answer, Sample
from spine_engine.anatomy import CONDITIONS, LEVELS, SEVERITIES
from spine_engine.backends import Device
from spine_engine.bundle import Bundle
from spine_engine.dicom import WorkUnit
from spine_engine.options import RunOptions
from spine_engine.results import DECIMALS, StudyResult
from spine_engine.scheduler import Scheduler, UnitOutcome, WorkerError
from spine_engine.tuning import tuned
from spine_engine.walk import plan_walk


class EngineSystem:
    """The engine's scheduler, its asyncio loop in a thread of its own."""

    def __init__(self, root: Path, bundle: Path | None, options: RunOptions | None = None) -> None:
        """Take note of what to run; the samples must lie under ``root``."""
        self.name = "engine"
        self._root = root
        self._bundle = Bundle.open(bundle)
        self._options = tuned(options or RunOptions(), self._bundle)
        self._workers = 0
        self._devices: dict[str, Device] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine under test", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduler: Scheduler | None = None

    def open(self) -> None:
        """Start every worker, which opens the models."""
        self._thread.start()
        self._call(self._open())

    def submit(self, sample: Sample, done: Callable[[Answer], None]) -> None:
        """Queue a sample for the next free worker."""
        if sample.root != self._root:
            raise ValueError("the sample lies outside the folder that this system was made for")
        self._loop.call_soon_threadsafe(self._begin, sample.unit, done)

    def facts(self) -> dict[str, object]:
        """Return bundle, options and the devices that the models really run on."""
        options: dict[str, Any] = asdict(replace(self._options, series_descriptions=None))
        devices = {role: f"{d.backend} {d.device} {d.precision}" for role, d in sorted(self._devices.items())}
        return {"bundle": self._bundle.facts, **options, "workers": self._workers, "models": devices}

    def close(self) -> None:
        """End the workers; what is still open is answered with a failure."""
        if self._thread.is_alive():
            self._call(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    # -- all that this file knows of the scheduler

    async def _open(self) -> None:
        plan = plan_walk(self._root, self._bundle, self._options)
        self._workers = plan.resources.workers
        self._scheduler = Scheduler(
            plan.factory,
            workers=self._workers,
            timeout_s=self._options.timeout_s,
            on_devices=self._devices.update,
            memory=plan.resources.memory,
            models=plan.models,
        )
        async with AsyncExitStack() as slots:  # all at once: a worker starts when its slot is first taken
            await asyncio.gather(*(slots.enter_async_context(self._scheduler.slot()) for _ in range(self._workers)))

    async def _walk(self, unit: WorkUnit) -> UnitOutcome:
        assert self._scheduler is not None, "open() comes first"
        async with self._scheduler.slot() as slot:
            return await slot.walk(unit)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._scheduler is not None:
            self._scheduler.close()

    # -- in the loop's thread

    def _begin(self, unit: WorkUnit, done: Callable[[Answer], None]) -> None:
        task = self._loop.create_task(self._answer(unit, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, unit: WorkUnit, done: Callable[[Answer], None]) -> None:
        try:
            answer = answer_of(await self._walk(unit))
        except WorkerError as error:
            answer = Answer(probabilities=None, failure=str(error.reason))
        except asyncio.CancelledError:
            answer = Answer(probabilities=None, failure="the system was closed")
        except Exception as error:  # noqa: BLE001 - whatever it is, the sample must be answered
            answer = Answer(probabilities=None, failure=f"{type(error).__name__}: {error}")
        done(answer)

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()


def answer_of(outcome: UnitOutcome) -> Answer:
    """Return what the engine made of a unit as an answer; only a graded study has probabilities."""
    if len(outcome.results) != 1:
        return Answer(probabilities=None, failure=f"{len(outcome.results)} studies in the sample's files")
    (result,) = outcome.results
    stages = {stage: ms / 1000 for stage, ms in result.timings_ms.items()}
    if result.reason is not None:
        return Answer(probabilities=None, failure=str(result.reason), stage_seconds=stages)
    return Answer(probabilities=probabilities_of(result), stage_seconds=stages)


def probabilities_of(result: StudyResult) -> NDArray[np.float64]:
    """Return ``(5 levels, 5 conditions, 3 severities)`` from the rows of ``predictions.csv``."""
    rows = np.array(result.rows, np.float64).reshape(len(CONDITIONS), len(LEVELS), len(SEVERITIES))
    return rows.transpose(1, 0, 2) / 10**DECIMALS
