"""Runs study after study in worker processes, so that the death of one costs one study's attempt.

A fixed number of slots, each with a process of its own that walks one unit at a time on one thread. On CPUs each worker
opens the models for itself, and since runtimes, numba and BLAS get one thread each, the bytes of a result do not depend
on how many workers run. On GPUs the workers share the models of one process (``models``), which answers them in batches
across studies. Both are used by the same two calls: ``async with scheduler.slot()`` and ``await slot.walk(unit)``.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import AsyncIterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from spine_engine.dicom.discovery import WorkUnit
from spine_engine.errors import BackendError, Reason
from spine_engine.scheduler.models import ModelProcess
from spine_engine.scheduler.processes import (
    KEPT_MEMORY,
    ONE_THREAD,
    START_TIMEOUT_S,
    environment,
    limit_memory,
    no_main_module,
    peak_memory_bytes,
    prepare_process,
)
from spine_engine.scheduler.remote import ModelsGoneError
from spine_engine.scheduler.walks import ModelsLostError, OnDevices, UnitOutcome, Walk, WalkFactory, WorkerError

if TYPE_CHECKING:
    from spine_engine.backends.base import Device


MAX_LOSSES: Final = 10
"""How often the shared models may die while one worker connects to them; with studies that kill them it happens."""


@dataclass(frozen=True, kw_only=True)
class MemoryShare:
    """How much private memory a worker may have: usually, and when it is the only one there."""

    usual_bytes: int
    alone_bytes: int


class Scheduler:
    """A bounded set of slots. Close it to end the workers.

    Args:
        factory: makes the walk in each worker.
        workers: how many units are walked at once.
        timeout_s: how long one unit may take.
        on_devices: called each time a worker has started or has opened another model.
        memory: the ceiling of each worker's memory; none where not given.
        models: the process that the workers share their models of; each opens its own where not given. It is started
            before the first worker, and closed with the scheduler.
    """

    def __init__(
        self,
        factory: WalkFactory,
        *,
        workers: int,
        timeout_s: float,
        on_devices: OnDevices = lambda devices: None,
        memory: MemoryShare | None = None,
        models: ModelProcess | None = None,
    ) -> None:
        self._memory = memory
        self._models = models
        self._slots = [Slot(self, factory, timeout_s, on_devices, memory) for _ in range(workers)]
        self._free: asyncio.LifoQueue[Slot] = asyncio.LifoQueue()  # last used first: a small run starts few workers
        for slot in reversed(self._slots):
            self._free.put_nowait(slot)
        self._turn = asyncio.Condition()
        self._running = 0
        self._loners = 0

    @asynccontextmanager
    async def slot(self, *, alone: bool = False) -> AsyncIterator[Slot]:
        """Wait for a free worker, started and ready. With ``alone`` nothing else runs until it is given back.

        A unit under suspicion runs alone, so that what it does to the machine (memory above all) hits no other study.
        Where memory has a ceiling the other workers are ended first, and the one that is left may have all of it.

        Raises:
            SpineEngineError: the worker could not be made ready (no such backend, a damaged bundle, ...).
        """
        slot = await self._free.get()
        try:
            async with self._turn_taken(alone):
                if alone and self._memory is not None:
                    for other in self._slots:
                        if other is not slot:
                            other.kill()
                await self.start_models()
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
                await self._turn.wait_for(lambda: self._running == 0 if alone else self._loners == 0)
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

    async def start_models(self, *, gone: int | None = None) -> None:
        """Make sure that the model process runs, where there is one; see ``ModelProcess.ensure``."""
        if self._models is not None:
            await asyncio.to_thread(self._models.ensure, gone=gone)

    @property
    def peak_memory_bytes(self) -> list[int]:
        """The highest resident memory of each worker that ran, and of the model process."""
        peaks = [slot.peak_memory_bytes for slot in self._slots if slot.peak_memory_bytes]
        return [*peaks, self._models.peak_memory_bytes] if self._models is not None else peaks

    def close(self) -> None:
        """End every worker at once, busy or not."""
        for slot in self._slots:
            slot.kill()
        if self._models is not None:
            self._models.close()


class Slot:
    """One worker process at a time, replaced when it dies."""

    def __init__(
        self,
        scheduler: Scheduler,
        factory: WalkFactory,
        timeout_s: float,
        on_devices: OnDevices,
        memory: MemoryShare | None,
    ) -> None:
        self._scheduler = scheduler
        self._factory = factory
        self._timeout_s = timeout_s
        self._on_devices = on_devices
        self._memory = memory
        self._limited_bytes = 0
        self._executor: ProcessPoolExecutor | None = None
        self._pid = 0
        self._devices: dict[str, Device] = {}
        self.peak_memory_bytes = 0

    async def start(self) -> None:
        """Start the worker unless it runs already."""
        if self._executor is not None:
            return
        deaths = losses = 0
        while deaths < 2 and losses < MAX_LOSSES:  # one death while starting may be bad luck (memory), two are not
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(1, mp_context=context, initializer=prepare_process)
            try:
                with (
                    environment(ONE_THREAD | KEPT_MEMORY),
                    no_main_module(),
                ):  # the process is started by the first submit
                    process = self._executor.submit(os.getpid)
                self._pid = await self._result(process, START_TIMEOUT_S)
                self._tell(await self._result(self._executor.submit(_open_walk, self._factory), START_TIMEOUT_S))
                return
            except (WorkerError, BrokenProcessPool):
                self.kill()
                deaths += 1
            except ModelsGoneError as lost:  # another study took them down meanwhile
                self.kill()
                losses += 1
                await self._scheduler.start_models(gone=lost.generation)
            except BaseException:
                self.kill()
                raise
        what = (
            "a worker process died twice while it loaded the models" if deaths == 2 else "the shared models die at once"
        )
        raise BackendError(f"{what}; run 'spine-engine doctor', or use fewer workers")

    def limit_memory(self, *, alone: bool) -> None:
        """Hold the worker, once started, to its share of the memory."""
        if self._memory is None:
            return
        wanted = self._memory.alone_bytes if alone else self._memory.usual_bytes
        if wanted != self._limited_bytes:
            limit_memory(self._pid, wanted, self._memory.alone_bytes)
            self._limited_bytes = wanted

    async def walk(self, unit: WorkUnit) -> UnitOutcome:
        """Walk ``unit`` in the worker.

        Raises:
            WorkerError: the worker died or ran out of time; the next :meth:`start` replaces it.
            ModelsLostError: the process of the shared models died or hung; another is in its place.
            Exception: whatever the walk let out.
        """
        assert self._executor is not None, "start() comes first"
        try:
            future = self._executor.submit(_walk_unit, unit)
        except BrokenProcessPool:  # it died while it had nothing to do
            self.kill()
            raise WorkerError(Reason.WORKER_DIED) from None
        outcome: UnitOutcome
        try:
            outcome, peak, devices = await self._result(future, self._timeout_s)
        except ModelsGoneError as lost:
            await self._scheduler.start_models(gone=lost.generation)
            raise ModelsLostError from None
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak)
        if devices != self._devices:
            self._tell(devices)
        return outcome

    def _tell(self, devices: dict[str, Device]) -> None:
        self._devices = devices
        self._on_devices(devices)

    async def _result(self, future: Future[Any], timeout_s: float) -> Any:
        """Wait for a call's result; on timeout, death or cancellation the worker is gone afterwards."""
        waiting = asyncio.wrap_future(future)
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())  # marks its exception as seen
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
        for process in multiprocessing.active_children():  # knows the living ones, so no process id is hit twice
            if process.pid == self._pid:
                process.kill()
        self._pid = self._limited_bytes = 0
        executor.shutdown(wait=False, cancel_futures=True)


# -- in the worker process ---------------------------------------------------------------------------------------------

_walk: Walk | None = None


def _open_walk(factory: WalkFactory) -> dict[str, Device]:
    global _walk
    _walk = factory()
    return dict(_walk.devices)


def _walk_unit(unit: WorkUnit) -> tuple[UnitOutcome, int, dict[str, Device]]:
    assert _walk is not None
    return _walk(unit), peak_memory_bytes(), dict(_walk.devices)
