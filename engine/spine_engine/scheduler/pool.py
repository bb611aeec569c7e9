"""Runs tasks in worker processes that may die: the death of one costs one attempt at one task.

A pool has a fixed number of slots, each with a process of its own that runs one task at a time on one thread. Runtimes,
numba and BLAS get one thread each, so the bytes of an outcome do not depend on how many workers run. Workers may share
a companion: another process that all of them use, such as the one that serves models in batches.

A task takes two calls: ``async with pool.slot() as slot`` and ``await slot.run(task)``.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import AsyncIterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from typing import Any, Final, Generic

from spine_engine.errors import BackendError, Reason
from spine_engine.scheduler.process import (
    KEPT_MEMORY,
    ONE_THREAD,
    START_TIMEOUT_S,
    MemoryShare,
    environment,
    limit_memory,
    no_main_module,
    peak_memory_bytes,
    prepare_process,
)
from spine_engine.scheduler.task import (
    Companion,
    CompanionLostError,
    Facts,
    OnFacts,
    OutcomeT,
    SharedFaultError,
    TaskT,
    Worker,
    WorkerError,
    WorkerFactory,
)

MAX_DEATHS: Final = 2
"""How often a worker may die while it starts: one death may be bad luck (memory), two are not."""
MAX_LOSSES: Final = 10
"""How often the companion may die while one worker connects to it; with tasks that kill it this happens."""


class WorkerPool(Generic[TaskT, OutcomeT]):
    """A fixed number of worker slots. Close the pool to end its workers.

    Args:
        factory: makes the worker in each process.
        workers: how many tasks run at once.
        timeout_s: how long one task may take.
        on_facts: called with a worker's facts when it has started and whenever they change.
        memory: the ceiling of each worker's memory; none where not given.
        companion: the process that all workers use, if there is one. The pool starts it before the first worker and
            closes it.
    """

    def __init__(
        self,
        factory: WorkerFactory[TaskT, OutcomeT],
        *,
        workers: int,
        timeout_s: float,
        on_facts: OnFacts = lambda facts: None,
        memory: MemoryShare | None = None,
        companion: Companion | None = None,
    ) -> None:
        self.workers = workers
        self._factory = factory
        self._timeout_s = timeout_s
        self._on_facts = on_facts
        self._memory = memory
        self._companion = companion
        self._slots = [WorkerSlot(self) for _ in range(workers)]
        # last used first: a small run starts few workers
        self._free: asyncio.LifoQueue[WorkerSlot[TaskT, OutcomeT]] = asyncio.LifoQueue()
        for slot in reversed(self._slots):
            self._free.put_nowait(slot)
        self._turn = asyncio.Condition()
        self._running = 0
        self._loners = 0

    @asynccontextmanager
    async def slot(
        self, *, alone: bool = False
    ) -> AsyncIterator[WorkerSlot[TaskT, OutcomeT]]:
        """Wait for a free worker, started and ready. With ``alone`` nothing else runs until it is given back.

        A task under suspicion runs alone, so that what it does to the machine (memory above all) hits no other task.
        Where memory has a ceiling the pool ends the other workers first, and the one that is left may have all of it.

        Raises:
            SpineEngineError: the worker could not be made ready (no such backend, a damaged bundle, ...).
        """
        slot = await self._free.get()
        try:
            async with self._turn_taken(alone):
                if alone and self._has_more_alone:
                    for other in self._slots:
                        if other is not slot:
                            other.kill()
                await self._ensure_companion()
                await slot.start()
                slot.limit_memory(alone=alone)
                yield slot
        finally:
            self._free.put_nowait(slot)

    @asynccontextmanager
    async def _turn_taken(self, alone: bool) -> AsyncIterator[None]:
        async with self._turn:
            self._loners += alone
            try:
                await self._turn.wait_for(
                    lambda: self._running == 0 if alone else self._loners == 0
                )
                self._running += 1
            except BaseException:
                self._loners -= alone
                self._turn.notify_all()
                raise
        try:
            yield
        finally:
            self._running -= 1
            self._loners -= alone
            async with self._turn:
                self._turn.notify_all()

    @property
    def _has_more_alone(self) -> bool:
        """Whether a worker that is the only one may have more memory than usual."""
        return (
            self._memory is not None
            and self._memory.alone_bytes > self._memory.usual_bytes
        )

    async def _ensure_companion(self, *, gone: int | None = None) -> None:
        if self._companion is not None:
            await asyncio.to_thread(self._companion.ensure, gone=gone)

    @property
    def peak_memory_bytes(self) -> list[int]:
        """The highest resident memory of each worker that ran, and of the companion."""
        peaks = [
            slot.peak_memory_bytes for slot in self._slots if slot.peak_memory_bytes
        ]
        return (
            peaks
            if self._companion is None
            else [*peaks, self._companion.peak_memory_bytes]
        )

    def close(self) -> None:
        """End every worker at once, busy or not."""
        for slot in self._slots:
            slot.kill()
        if self._companion is not None:
            self._companion.close()


class WorkerSlot(Generic[TaskT, OutcomeT]):
    """One worker process at a time, replaced when it dies."""

    def __init__(self, pool: WorkerPool[TaskT, OutcomeT]) -> None:
        """Use ``pool.slot()``."""
        self._pool = pool
        self._limited_bytes = 0
        self._executor: ProcessPoolExecutor | None = None
        self._pid = 0
        self._facts: Facts = {}
        self.peak_memory_bytes = 0

    async def start(self) -> None:
        """Start the worker unless it runs already."""
        if self._executor is not None:
            return
        deaths = losses = 0
        while deaths < MAX_DEATHS and losses < MAX_LOSSES:
            try:
                await self._start_once()
                return
            except (WorkerError, BrokenProcessPool):
                self.kill()
                deaths += 1
            except CompanionLostError as lost:  # another task took it down meanwhile
                self.kill()
                losses += 1
                await self._pool._ensure_companion(gone=lost.generation)
            except BaseException:
                self.kill()
                raise
        what = "the shared models die at once"
        if deaths == MAX_DEATHS:
            what = "a worker process died twice while it loaded the models"
        raise BackendError(f"{what}; run 'spine-engine doctor', or use fewer workers")

    async def _start_once(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(
            1, mp_context=context, initializer=prepare_process
        )
        with (
            environment(ONE_THREAD | KEPT_MEMORY),
            no_main_module(),
        ):  # the first submit starts the process
            process = self._executor.submit(os.getpid)
        self._pid = await self._result(process, START_TIMEOUT_S)
        made = self._executor.submit(_make_worker, self._pool._factory)
        self._tell(await self._result(made, START_TIMEOUT_S))

    def limit_memory(self, *, alone: bool) -> None:
        """Hold the worker, once started, to its share of the memory."""
        memory = self._pool._memory
        if memory is None:
            return
        wanted = memory.alone_bytes if alone else memory.usual_bytes
        if wanted != self._limited_bytes:
            limit_memory(self._pid, wanted, memory.alone_bytes)
            self._limited_bytes = wanted

    async def run(self, task: TaskT) -> OutcomeT:
        """Run ``task`` in the worker.

        Raises:
            WorkerError: the worker died or ran out of time; the next :meth:`start` replaces it.
            SharedFaultError: the companion died or hung; another is in its place.
            Exception: whatever the worker raised.
        """
        assert self._executor is not None, "start() comes first"
        try:
            future = self._executor.submit(_run_task, task)
        except BrokenProcessPool:  # it died while it had nothing to do
            self.kill()
            raise WorkerError(Reason.WORKER_DIED) from None
        outcome: OutcomeT
        try:
            outcome, facts, peak = await self._result(future, self._pool._timeout_s)
        except CompanionLostError as lost:
            await self._pool._ensure_companion(gone=lost.generation)
            raise SharedFaultError from None
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak)
        if facts != self._facts:
            self._tell(facts)
        return outcome

    def _tell(self, facts: Facts) -> None:
        self._facts = facts
        self._pool._on_facts(facts)

    async def _result(self, future: Future[Any], timeout_s: float) -> Any:
        """Wait for a call's result; on timeout, death or cancellation the worker is gone afterwards."""
        waiting = asyncio.wrap_future(future)
        waiting.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # marks its exception as seen
        try:
            await asyncio.wait({waiting}, timeout=timeout_s)
        except asyncio.CancelledError:
            self.kill()
            raise
        if not future.done():
            self.kill()
            raise WorkerError(Reason.TIMEOUT)
        try:
            return future.result()
        except BrokenProcessPool:
            self.kill()
            raise WorkerError(Reason.WORKER_DIED) from None

    def kill(self) -> None:
        """End the worker now, whatever it is doing."""
        executor, self._executor = self._executor, None
        if executor is None:
            return
        for process in (
            multiprocessing.active_children()
        ):  # knows the living ones, so no process id is hit twice
            if process.pid == self._pid:
                process.kill()
        self._pid = 0
        self._limited_bytes = 0
        executor.shutdown(wait=False, cancel_futures=True)


# -- in the worker process ---------------------------------------------------------------------------------------------

_worker: Worker[Any, Any] | None = None


def _make_worker(factory: WorkerFactory[Any, Any]) -> Facts:
    global _worker
    _worker, facts = factory()
    return facts


def _run_task(task: Any) -> tuple[Any, Facts, int]:
    assert _worker is not None
    outcome, facts = _worker.run(task)
    return outcome, facts, peak_memory_bytes()
