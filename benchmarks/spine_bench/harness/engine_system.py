"""Our engine as a system under test: the workers that ``spine-engine run`` uses, without ledger and files."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from spine_bench.harness.interfaces import (
    CLOSED,
    F64,
    Answer,
    Done,
    Sample,
    StudyLibrary,
    in_seconds,
    told,
)
from spine_engine import RunOptions, StudyResult
from spine_engine.anatomy import CONDITIONS, LEVELS, SEVERITIES
from spine_engine.bundle import Bundle
from spine_engine.dicom import WorkUnit
from spine_engine.pipeline.outcome import UnitOutcome
from spine_engine.results import DECIMALS
from spine_engine.run.plan import plan_run
from spine_engine.run.tuning import tuned
from spine_engine.scheduler import WorkerError


class EngineSystem:
    """The engine's pool of workers, its asyncio loop in a thread of its own."""

    name = "engine"

    def __init__(
        self,
        library: StudyLibrary,
        bundle: Path | None,
        options: RunOptions | None = None,
    ) -> None:
        """Take note of what to run; the samples must be of the library."""
        self._bundle = Bundle.open(bundle)
        self._options = tuned(options or RunOptions(), self._bundle)
        self._plan = plan_run(library.root, self._bundle, self._options)
        self._devices: dict[str, dict[str, str]] = {}
        self._pool = self._plan.open_pool(self._devices.update)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever,
            name="engine under test",
            daemon=True,
        )
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Start every worker, which opens the models."""
        self._thread.start()
        self._call(self._open())

    def submit(self, sample: Sample, done: Done) -> None:
        """Queue a sample for the next free worker."""
        if sample.root != self._plan.root:
            raise ValueError(
                "the sample lies outside the folder that this system was made for"
            )
        self._loop.call_soon_threadsafe(self._begin, sample.unit, done)

    def facts(self) -> dict[str, object]:
        """Return bundle, options and the devices that the models really run on."""
        return {
            "bundle": self._bundle.facts,
            **asdict(replace(self._options, series_descriptions=None)),
            "workers": self._plan.resources.workers,
            "models": {
                role: " ".join(device.values())
                for role, device in sorted(self._devices.items())
            },
        }

    def close(self) -> None:
        """End the workers; what is still open is answered with a failure."""
        if self._thread.is_alive():
            self._call(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # -- in the loop's thread

    async def _open(self) -> None:
        async with (
            AsyncExitStack() as slots
        ):  # all at once: a worker starts when its slot is first taken
            await asyncio.gather(
                *[
                    slots.enter_async_context(self._pool.slot())
                    for _ in range(self._plan.resources.workers)
                ]
            )

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._pool.close()

    def _begin(self, unit: WorkUnit, done: Done) -> None:
        task = self._loop.create_task(self._answer(unit, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, unit: WorkUnit, done: Done) -> None:
        try:
            async with self._pool.slot() as slot:
                answer = answer_of(await slot.run(unit))
        except WorkerError as error:
            answer = Answer(probabilities=None, failure=str(error.reason))
        except asyncio.CancelledError:
            answer = Answer(probabilities=None, failure=CLOSED)
        except Exception as error:  # noqa: BLE001 - whatever it is, the sample must be answered
            answer = Answer(probabilities=None, failure=told(error))
        done(answer)


def answer_of(outcome: UnitOutcome) -> Answer:
    """Return what the engine made of a unit as an answer; only a graded study has probabilities."""
    if len(outcome.results) != 1:
        return Answer(
            probabilities=None,
            failure=f"{len(outcome.results)} studies in the sample's files",
        )
    (result,) = outcome.results
    return Answer(
        probabilities=probabilities_of(result) if result.reason is None else None,
        failure=None if result.reason is None else str(result.reason),
        stage_seconds=in_seconds(result.timings_ms),
    )


def probabilities_of(result: StudyResult) -> F64:
    """Return ``(5 levels, 5 conditions, 3 severities)`` from the rows of ``predictions.csv``."""
    rows = np.array(result.rows, np.float64).reshape(
        len(CONDITIONS),
        len(LEVELS),
        len(SEVERITIES),
    )
    return rows.transpose(1, 0, 2) / 10**DECIMALS
