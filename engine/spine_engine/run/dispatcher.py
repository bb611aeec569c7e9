"""One run from the folder to the files: discovery, admission, attempts, outcomes, and what is written at the end.

Everything here happens in one thread with an event loop of its own; discovery has a thread beside it and each study a
worker process (``scheduler``). The consumer gets results through a bounded queue.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from spine_engine.dicom.discovery import RefusedFile, WorkUnit
from spine_engine.errors import (
    BackendError,
    BundleError,
    MachineError,
    OutputError,
    Reason,
)
from spine_engine.pipeline.outcome import UnitOutcome
from spine_engine.results import Status, StudyResult, study_key, ungraded
from spine_engine.run.ledger import Ledger
from spine_engine.run.plan import RunPlan
from spine_engine.scheduler import Facts, SharedFaultError, WorkerError, WorkerPool

AHEAD: Final = 64
"""Units discovery may be ahead of the workers: enough that none waits for the disk, few enough to cost no memory."""


@dataclass
class Progress:
    """How far a run is. Read it at any time; the run writes it.

    ``found`` counts units (nearly always studies) that discovery has met, ``resumed`` those that an earlier run of the
    same command had done; ``statuses`` and ``stage_seconds`` count this run's own studies.
    """

    found: int = 0
    resumed: int = 0
    processed: int = 0
    refused: int = 0
    discovering: bool = True
    stopped: bool = False
    statuses: Counter[str] = field(default_factory=Counter)
    stage_seconds: Counter[str] = field(default_factory=Counter)


class Dispatcher:
    """Walks every unit of the input that the ledger does not hold yet. One use."""

    def __init__(
        self,
        plan: RunPlan,
        ledger: Ledger,
        progress: Progress,
        emit: Callable[[StudyResult], Awaitable[None]],
        *,
        exclude: str | None = None,
    ) -> None:
        """Take note of what to run; ``exclude`` is the output folder's path below the input, if it lies there."""
        self._plan = plan
        self._exclude = exclude
        self._ledger = ledger
        self._progress = progress
        self._emit = emit
        self._inbox: asyncio.Queue[
            tuple[WorkUnit, str | None] | BaseException | None
        ] = asyncio.Queue()
        self._ahead = asyncio.Semaphore(AHEAD)
        self._open = 1  # units not yet finished, and one for discovery
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.peak_worker_bytes: list[int] = []

    async def run(self) -> None:
        """Walk everything; returns early, with all that was in flight done, after :meth:`stop`.

        Raises:
            SpineEngineError: the run cannot go on (no backend, output not writable, input not readable).
        """
        pool = self._plan.open_pool(self._check_devices)
        self._loop = asyncio.get_running_loop()
        threading.Thread(
            target=self._discover, args=(self._loop,), daemon=True, name="discovery"
        ).start()
        try:
            await self._run_all(pool, self._units(), merged=False)
            if not self._stop.is_set():
                self._ledger.sweep(merged=False)
                await self._run_all(pool, self._scattered(), merged=True)
            if not self._stop.is_set():
                self._ledger.sweep(merged=True)
                self._ledger.end()
        except ExceptionGroup as group:
            raise _first(group) from None
        finally:
            self._stop.set()
            try:
                self.peak_worker_bytes = pool.peak_memory_bytes
            finally:
                pool.close()

    def stop(self) -> None:
        """Take no more units. Callable from any thread and from a signal handler."""
        self._stop.set()
        self._progress.stopped = True
        if self._loop is not None:
            with suppress(
                RuntimeError
            ):  # the loop has ended: there is nothing left to stop
                self._loop.call_soon_threadsafe(self._inbox.put_nowait, None)

    # -- units come in -------------------------------------------------------------------------------------------------

    def _discover(self, loop: asyncio.AbstractEventLoop) -> None:
        """Feed the inbox from a thread of its own, never more than ``AHEAD`` units ahead."""

        def send(item: WorkUnit | RefusedFile | BaseException | None) -> bool:
            receiving = self._receive(item)
            try:
                asyncio.run_coroutine_threadsafe(receiving, loop).result()
            except (
                concurrent.futures.CancelledError,
                RuntimeError,
            ):  # the loop has ended: the run is over
                receiving.close()
                return False
            return True

        try:
            for item in self._plan.discover(self._plan.root):
                if self._stop.is_set() or not send(item):
                    return
            send(None)
        except Exception as error:  # noqa: BLE001 - it ends the run, in the run's own thread
            send(error)

    async def _receive(
        self, item: WorkUnit | RefusedFile | BaseException | None
    ) -> None:
        if isinstance(item, RefusedFile):
            if not self._is_output(item.path):
                self._progress.refused += 1
                self._ledger.refuse(item)
                if (
                    item.reason is Reason.UNREADABLE
                ):  # what lies there was not seen, which does not mean it is gone
                    self._ledger.keep_below(item.path)
        elif isinstance(item, WorkUnit):
            unit = self._without_output(item)
            if unit is not None and self._plan.shard.holds(unit):
                await self._ahead.acquire()
                self._progress.found += 1
                self._enqueue(unit, None)
        elif isinstance(item, BaseException):
            self._inbox.put_nowait(item)
        else:
            self._progress.discovering = False
            self._closed()

    def _is_output(self, path: str) -> bool:
        exclude = self._exclude
        return exclude is not None and (
            path == exclude or path.startswith(exclude + "/")
        )

    def _without_output(self, unit: WorkUnit) -> WorkUnit | None:
        """Return the unit without the files of an output folder inside the input; None if none is left."""
        kept = tuple(entry for entry in unit.files if not self._is_output(entry.path))
        if len(kept) == len(unit.files):
            return unit
        return (
            WorkUnit(key=unit.key, files=kept, study_id=unit.study_id) if kept else None
        )

    def _enqueue(self, unit: WorkUnit, parent: str | None) -> None:
        self._open += 1
        self._inbox.put_nowait((unit, parent))

    def _closed(self) -> None:
        self._open -= 1
        if self._open == 0:
            self._inbox.put_nowait(None)

    async def _units(self) -> AsyncIterator[tuple[WorkUnit, str | None]]:
        """Yield units, each with the key of the unit it was split from, until none is left or the run is to stop."""
        while not self._stop.is_set():
            item = await self._inbox.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            if item[1] is None:
                self._ahead.release()
            yield item

    async def _scattered(self) -> AsyncIterator[tuple[WorkUnit, str | None]]:
        """Yield the studies that were met in more than one unit once more, with all their files together."""
        for unit in self._ledger.scattered():
            if self._stop.is_set():
                return
            self._progress.found += 1
            yield unit, None

    # -- units are walked ----------------------------------------------------------------------------------------------

    async def _run_all(
        self,
        pool: WorkerPool[WorkUnit, UnitOutcome],
        units: AsyncIterator[tuple[WorkUnit, str | None]],
        *,
        merged: bool,
    ) -> None:
        free = asyncio.Semaphore(self._plan.resources.workers)
        async with asyncio.TaskGroup() as tasks:
            async for unit, parent in units:
                await free.acquire()
                task = tasks.create_task(self._unit(pool, unit, parent, merged=merged))
                task.add_done_callback(lambda _: free.release())

    async def _unit(
        self,
        pool: WorkerPool[WorkUnit, UnitOutcome],
        unit: WorkUnit,
        parent: str | None,
        *,
        merged: bool,
    ) -> None:
        if not self._stop.is_set():
            for part in await self._attempts(pool, unit, parent, merged=merged):
                self._progress.found += 1
                self._enqueue(part, unit.key)
        if not merged:
            self._closed()

    async def _attempts(
        self,
        pool: WorkerPool[WorkUnit, UnitOutcome],
        unit: WorkUnit,
        parent: str | None,
        *,
        merged: bool,
    ) -> tuple[WorkUnit, ...]:
        """Bring a unit to its outcome, attempt by attempt; return the units it splits into."""
        known = self._ledger.meet(unit, parent)
        if known.done or known.split:
            self._progress.resumed += known.done
            self._progress.found -= bool(known.split)
            return known.split
        attempts, faults, reason = known.attempts, known.faults, known.last_fault
        while faults < self._plan.max_attempts and attempts <= self._plan.max_attempts:
            # An attempt that vanished with a whole run, or killed its worker, may do so again: let it harm no other.
            alone = attempts > faults or reason is Reason.WORKER_DIED
            attempts += 1
            try:
                outcome = await self._attempt(pool, unit, alone=alone)
                if outcome.out_of_memory and not alone:
                    self._ledger.withdraw(
                        unit
                    )  # one attempt, begun again with all the memory there is
                    outcome = await self._attempt(pool, unit, alone=True)
            except SharedFaultError as fault:
                reason = fault.reason
                if alone:  # in company it may have been any of them: it counts as an attempt, and the next is alone
                    faults += 1
                    self._ledger.fault(unit, reason)
                continue
            except WorkerError as fault:
                faults, reason = faults + 1, fault.reason
                self._ledger.fault(unit, reason)
                continue
            if outcome.split and not merged:
                self._ledger.split(unit, outcome.split, outcome.refused)
                self._progress.refused += len(outcome.refused)
                self._progress.found -= 1
                return outcome.split
            await self._finish(unit, _merged(unit, outcome) if merged else outcome)
            return ()
        await self._finish(unit, _failed(unit, reason or Reason.WORKER_DIED))
        return ()

    async def _attempt(
        self, pool: WorkerPool[WorkUnit, UnitOutcome], unit: WorkUnit, *, alone: bool
    ) -> UnitOutcome:
        async with pool.slot(alone=alone) as slot:
            self._ledger.begin(unit)
            try:
                outcome = await slot.run(unit)
                if outcome.out_of_memory:
                    slot.kill()  # what a failed allocation left behind in its libraries is not known
                return outcome
            except WorkerError:
                raise
            except asyncio.CancelledError:
                self._ledger.withdraw(unit)
                raise
            except (
                BackendError,
                BundleError,
                MachineError,
                OutputError,
            ):  # no study's fault, and no other study would fare better
                self._ledger.withdraw(unit)
                raise
            except Exception as error:  # noqa: BLE001 - a bug costs one study, not the run
                return _failed(unit, Reason.INTERNAL_ERROR, detail=type(error).__name__)

    async def _finish(self, unit: WorkUnit, outcome: UnitOutcome) -> None:
        self._ledger.finish(unit, outcome.results, outcome.refused)
        self._progress.processed += 1
        self._progress.refused += len(outcome.refused)
        for result in outcome.results:
            self._progress.statuses[result.status] += 1
            for stage, ms in result.timings_ms.items():
                self._progress.stage_seconds[stage] += ms / 1000  # type: ignore[assignment]
            await self._emit(result)

    def _check_devices(self, facts: Facts) -> None:
        for role, device in facts.items():
            self._ledger.agree_device(role, device)


def _failed(
    unit: WorkUnit, reason: Reason, *, detail: str | None = None
) -> UnitOutcome:
    """Return the outcome of a unit that never came back: a failed study, or a refused unit where no id is known."""
    if unit.study_id is None:
        return UnitOutcome(refused=(RefusedFile(path=unit.key, reason=reason),))
    return UnitOutcome(
        results=(
            ungraded(study_key(unit.study_id), Status.FAILED, reason, detail=detail),
        )
    )


def _merged(unit: WorkUnit, outcome: UnitOutcome) -> UnitOutcome:
    """Return the outcome of a scattered study: its one record, whatever reading its files together gave."""
    results = tuple(
        result for result in outcome.results if result.study_id == unit.study_id
    )
    if len(results) == 1:
        return UnitOutcome(results=results, refused=outcome.refused)
    return _failed(unit, Reason.UID_COLLISION)


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """Return the first error of a group that is not a group itself."""
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
