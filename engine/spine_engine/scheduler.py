"""Runs study after study in worker processes, so that the death of one costs one study's attempt.

The shape for CPUs: a fixed number of slots, each with a process of its own that opens the models once and then walks
one unit at a time on one thread. Runtimes, numba and BLAS get one thread each, so the bytes of a result do not depend
on how many workers run. (A stage graph with batches across studies is the shape for GPUs; it serves the same two calls:
``async with scheduler.slot()`` and ``await slot.walk(unit)``.)
"""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from spine_engine.dicom.discovery import RefusedFile, WorkUnit
from spine_engine.errors import BackendError, Reason
from spine_engine.results import StudyResult

if TYPE_CHECKING:
    from spine_engine.backends.base import Device

START_TIMEOUT_S: Final = 300.0
"""A worker imports the runtimes and compiles the models in this time, or the run ends. It takes seconds."""

_ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
"""Set while a worker starts, because these are read once, when the libraries load."""


@dataclass(frozen=True, kw_only=True)
class UnitOutcome:
    """What walking a unit gave: its studies' results, or the units it splits into; and the files it could not use."""

    results: tuple[StudyResult, ...] = ()
    split: tuple[WorkUnit, ...] = ()
    refused: tuple[RefusedFile, ...] = ()


class Walk(Protocol):
    """Takes units to their outcome; lives in a worker process, which makes it once.

    - Called from one thread, with one unit at a time.
    - Every error of a study is a result with a reason; what it raises counts as an internal error of the engine, but
      ``BackendError`` and ``BundleError`` (a model opened late that cannot be had) end the run.
    - ``devices`` says by role what each model opened so far really runs on; it may grow from unit to unit.
    """

    devices: Mapping[str, Device]

    def __call__(self, unit: WorkUnit) -> UnitOutcome:
        """Walk one unit."""
        ...


WalkFactory = Callable[[], Walk]
"""Makes the walk inside a worker; picklable. What it raises as ``SpineEngineError`` ends the run with that error."""

OnDevices = Callable[[dict[str, "Device"]], None]
"""Told a worker's devices when it has started and when it has opened more; what it raises ends the run."""


class WorkerError(Exception):
    """A unit's attempt ended without an outcome: its worker died, or was killed because its time was up."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Scheduler:
    """A bounded set of slots. Close it to end the workers.

    Args:
        factory: makes the walk in each worker.
        workers: how many units are walked at once.
        timeout_s: how long one unit may take.
        on_devices: called each time a worker has started or has opened another model.
    """

    def __init__(
        self,
        factory: WalkFactory,
        *,
        workers: int,
        timeout_s: float,
        on_devices: OnDevices = lambda devices: None,
    ) -> None:
        self._slots = [Slot(factory, timeout_s, on_devices) for _ in range(workers)]
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

        Raises:
            SpineEngineError: the worker could not be made ready (no such backend, a damaged bundle, ...).
        """
        slot = await self._free.get()
        try:
            async with self._turn_taken(alone):
                await slot.start()
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

    @property
    def peak_memory_bytes(self) -> list[int]:
        """The highest resident memory of each worker that ran."""
        return [slot.peak_memory_bytes for slot in self._slots if slot.peak_memory_bytes]

    def close(self) -> None:
        """End every worker at once, busy or not."""
        for slot in self._slots:
            slot.kill()


class Slot:
    """One worker process at a time, replaced when it dies."""

    def __init__(self, factory: WalkFactory, timeout_s: float, on_devices: OnDevices) -> None:
        self._factory = factory
        self._timeout_s = timeout_s
        self._on_devices = on_devices
        self._executor: ProcessPoolExecutor | None = None
        self._pid = 0
        self._devices: dict[str, Device] = {}
        self.peak_memory_bytes = 0

    async def start(self) -> None:
        """Start the worker unless it runs already."""
        if self._executor is not None:
            return
        for _ in range(2):  # one death while starting may be bad luck (memory), two are not
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(1, mp_context=context, initializer=_prepare_process)
            try:
                with _environment(_ONE_THREAD):  # the process is started by the first submit
                    process = self._executor.submit(os.getpid)
                self._pid = await self._result(process, START_TIMEOUT_S)
                self._tell(await self._result(self._executor.submit(_open_walk, self._factory), START_TIMEOUT_S))
                return
            except (WorkerError, BrokenProcessPool):
                self.kill()
            except BaseException:
                self.kill()
                raise
        raise BackendError(
            "a worker process died twice while it loaded the models; run 'spine-engine doctor', or use fewer workers"
        )

    async def walk(self, unit: WorkUnit) -> UnitOutcome:
        """Walk ``unit`` in the worker.

        Raises:
            WorkerError: the worker died or ran out of time; the next :meth:`start` replaces it.
            Exception: whatever the walk let out.
        """
        assert self._executor is not None, "start() comes first"
        try:
            future = self._executor.submit(_walk_unit, unit)
        except BrokenProcessPool:  # it died while it had nothing to do
            self.kill()
            raise WorkerError(Reason.WORKER_DIED) from None
        outcome: UnitOutcome
        outcome, peak, devices = await self._result(future, self._timeout_s)
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
        self._pid = 0
        executor.shutdown(wait=False, cancel_futures=True)


def peak_memory_bytes() -> int:
    """Return the highest resident memory this process has had, in bytes."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Hold environment variables at ``values``, for the children started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# -- in the worker process ---------------------------------------------------------------------------------------------

_walk: Walk | None = None


def _prepare_process() -> None:
    """Leave Ctrl-C and SIGTERM to the main process, and end when it ends, even by ``kill -9``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _open_walk(factory: WalkFactory) -> dict[str, Device]:
    global _walk
    _walk = factory()
    return dict(_walk.devices)


def _walk_unit(unit: WorkUnit) -> tuple[UnitOutcome, int, dict[str, Device]]:
    assert _walk is not None
    return _walk(unit), peak_memory_bytes(), dict(_walk.devices)
