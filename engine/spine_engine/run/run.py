"""A run over one folder: iterate over it to carry it out."""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from spine_engine._version import __version__
from spine_engine.errors import OutputError, UsageError
from spine_engine.options import RunOptions
from spine_engine.results import (
    PREDICTIONS_FILE,
    RUN_FILE,
    STUDIES_FILE,
    StudyResult,
    write_lines,
    write_predictions,
)
from spine_engine.run.dispatcher import Dispatcher, Progress
from spine_engine.run.folders import OutputLock, check_input, excluded_path, locked
from spine_engine.run.ledger import LEDGER_FILE, Ledger, LedgerReader
from spine_engine.run.plan import RunPlan
from spine_engine.run.shards import WHOLE, Shard, join_shards
from spine_engine.run.summary import RunSummary
from spine_engine.scheduler import peak_memory_bytes

_WAITING = 64
"""Results that may wait for the consumer; beyond that no new study is begun, so a slow consumer costs no memory."""
_WATCH_S = 2.0
"""How often a run looks whether its output folder is still the one it holds."""
_EXAMPLES = 100
"""Refused files named in ``run.json``; the counts cover all of them."""


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What decides the results of a run: two runs that share it may share an output folder."""

    bundle: Mapping[str, str]
    options: RunOptions
    series_descriptions: str
    shard: Shard = WHOLE
    centers: str = "none"

    def facts(self, root: Path) -> dict[str, str]:
        """Return the facts that the ledger holds on to, by name."""
        return {
            "engine version": __version__,
            "bundle": self.bundle["digest"],
            "input": str(root),
            "backend": self.options.backend,
            "device": self.options.device,
            "precision": self.options.precision,
            "series descriptions": self.series_descriptions,
            "detector": "on" if self.options.detector else "off",
            "centres": self.centers,
            "schedule": "batch" if self.options.batched else "study",
            "threads": str(self.options.thread_count)
            if self.options.device.lower() == "cpu"
            else "-",
            "shard": str(self.shard),
        }


class Run:
    """A run over one folder: iterate over it to carry it out, once.

    Studies come in the order they end in, not sorted. Those an earlier run into the same output folder had done are in
    the files but do not come again. A study whose files lie in several places comes once for each and then once more,
    from all of them together; the last is the one that counts.

    Leaving the loop early ends the workers; the output folder stays resumable.
    """

    def __init__(
        self,
        plan: RunPlan,
        output: Path | None,
        *,
        identity: RunIdentity,
        shards: Sequence[Path] = (),
    ) -> None:
        """Check the folders; nothing runs yet. ``shards`` are output folders whose results are taken over at the start.

        Raises:
            UsageError: the input is not a readable folder, or is the output as well; the shards are not of one set.
        """
        root = check_input(plan.root)
        self._plan = replace(plan, root=root)
        self._exclude = None if output is None else excluded_path(root, output)
        self._identity = identity
        self._shards = shards
        self._missing_shards: list[str] = []
        self._results: queue.Queue[StudyResult | None] = queue.Queue(_WAITING)
        self._error: BaseException | None = None
        self._aborted = threading.Event()
        self._stopped = threading.Event()
        self._dispatcher: Dispatcher | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self.output = output
        self.progress = Progress()
        self.summary: RunSummary | None = None

    def __iter__(self) -> Iterator[StudyResult]:
        """Carry the run out, yielding each study's result as it comes.

        Raises:
            SpineEngineError: the run cannot begin or cannot go on; single studies never raise.
        """
        thread = self._begin()
        try:
            while (result := self._results.get()) is not None:
                yield result
        finally:
            self.abort()  # does nothing after a regular end
            thread.join()
        if self._error is not None:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[StudyResult]:
        """Carry the run out as ``__iter__`` does, while the event loop goes on. Errors are the same."""
        thread = self._begin()
        try:
            while (result := await asyncio.to_thread(self._results.get)) is not None:
                yield result
        finally:
            self.abort()
            await asyncio.to_thread(thread.join)
        if self._error is not None:
            raise self._error

    def _begin(self) -> threading.Thread:
        if self._thread is not None:
            raise RuntimeError(
                "a run can be iterated over once; ask the engine for another"
            )
        self._thread = threading.Thread(target=self._main, name="spine-engine run")
        self._thread.start()
        return self._thread

    def finish(self) -> RunSummary:
        """Carry the run out to its end and return its summary."""
        for _ in self:
            pass
        assert self.summary is not None
        return self.summary

    def to_frame(self) -> Any:
        """Carry the run out to its end and return its grades as a pandas ``DataFrame``, 25 rows a study.

        The columns are ``study_id``, ``status``, ``condition``, ``level``, a probability for each severity, and
        ``assessed``: false where the row holds the prior instead of a grade. With an output folder the studies of
        earlier runs into it are there too.

        Raises:
            UsageError: pandas is not installed.
            SpineEngineError: the run cannot begin or cannot go on.
        """
        try:
            import pandas
        except ImportError:
            raise UsageError(
                "to_frame needs pandas: pip install pandas, or iterate over the run"
            ) from None
        results = {result.study_id: result for result in self}
        if self.output is not None:
            with closing(LedgerReader(self.output / LEDGER_FILE)) as reader:
                results = {
                    study.result.study_id: study.result for study in reader.studies()
                }
        return pandas.DataFrame(
            [row for _, result in sorted(results.items()) for row in result.records()]
        )

    def stop(self) -> None:
        """Begin no more studies; those in flight are finished and the files written. Safe in a signal handler."""
        self._stopped.set()
        if self._dispatcher is not None:
            self._dispatcher.stop()

    def abort(self) -> None:
        """End the workers now and write no files; what is recorded stays. Safe in a signal handler."""
        self._aborted.set()
        if self._task is not None:
            with suppress(RuntimeError):  # its loop has ended
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    # -- in the run's own thread ---------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            with ExitStack() as stack:
                output = self.output
                if output is None:
                    output = Path(
                        stack.enter_context(
                            tempfile.TemporaryDirectory(prefix="spine-engine-")
                        )
                    )
                lock = stack.enter_context(locked(output))
                ledger = Ledger(
                    output / LEDGER_FILE, self._identity.facts(self._plan.root)
                )
                stack.callback(ledger.close)
                self._missing_shards = join_shards(ledger, self._shards)
                self._carry_out(lock, ledger)
        except sqlite3.Error as error:
            self._error = OutputError(
                f"the ledger cannot be used: {error}; free space and run the command again"
            )
        except BaseException as error:  # noqa: BLE001 - it is raised again where the results are read
            self._error = error
        finally:
            self._put_last()

    def _carry_out(self, lock: OutputLock, ledger: Ledger) -> None:
        begun = time.monotonic()
        self._dispatcher = Dispatcher(
            self._plan, ledger, self.progress, self._emit, exclude=self._exclude
        )
        if self._stopped.is_set():
            self._dispatcher.stop()
        with suppress(asyncio.CancelledError):
            asyncio.run(self._run(self._dispatcher, lock))
        digests: dict[str, str] = {}
        if self._aborted.is_set():
            self.progress.stopped = True
        else:
            lock.check()
            digests = _write_results(lock.folder, ledger)
        self.summary = self._summarise(
            ledger, self._dispatcher, time.monotonic() - begun, digests
        )
        if not self._aborted.is_set():
            lock.check()
            write_lines(
                lock.folder / RUN_FILE, [json.dumps(self.summary.record(), indent=2)]
            )

    async def _run(self, dispatcher: Dispatcher, lock: OutputLock) -> None:
        self._task = asyncio.current_task()
        if self._aborted.is_set():
            return
        dispatching = asyncio.create_task(dispatcher.run())
        watching = asyncio.create_task(_watch(lock))
        try:
            await asyncio.wait(
                {dispatching, watching}, return_when=asyncio.FIRST_COMPLETED
            )
            if watching.done():
                watching.result()
            await dispatching
        finally:
            watching.cancel()
            dispatching.cancel()
            await asyncio.gather(watching, dispatching, return_exceptions=True)

    async def _emit(self, result: StudyResult) -> None:
        while True:
            try:
                self._results.put_nowait(result)
                return
            except queue.Full:
                await asyncio.sleep(0.02)

    def _put_last(self) -> None:
        while True:
            try:
                self._results.put(None, timeout=0.1)
                return
            except queue.Full:
                if self._aborted.is_set():  # nobody reads any more
                    with suppress(queue.Empty):
                        self._results.get_nowait()

    def _summarise(
        self,
        ledger: Ledger,
        dispatcher: Dispatcher,
        wall_s: float,
        digests: Mapping[str, str],
    ) -> RunSummary:
        statuses, reasons = ledger.counts()
        options: dict[str, Any] = asdict(self._identity.options)
        for name in ("series_descriptions", "centers"):
            options[name] = options[name] and str(options[name])
        options["workers"] = self._plan.resources.workers
        options["threads"] = self._identity.options.thread_count
        options["schedule"] = "batch" if self._plan.companion is not None else "study"
        main = peak_memory_bytes()
        workers = dispatcher.peak_worker_bytes
        return RunSummary(
            engine_version=__version__,
            bundle=self._identity.bundle,
            devices=ledger.devices(),
            options=options,
            interrupted=self.progress.stopped,
            digests=digests,
            series_tables=self._plan.series_tables,
            shard=self._identity.shard,
            missing_shards=self._missing_shards,
            incomplete=ledger.incomplete(),
            statuses=statuses,
            reasons=reasons,
            refused_files=ledger.refused_counts(),
            refused_examples=ledger.refused_files(limit=_EXAMPLES),
            walked=self.progress.processed,
            resumed=self.progress.resumed,
            wall_s=wall_s,
            stage_seconds=self.progress.stage_seconds,
            peak_memory_bytes={
                "main": main,
                "workers": workers,
                "total": main + sum(workers),
            },
        )


def _write_results(folder: Path, ledger: Ledger) -> dict[str, str]:
    """Write ``predictions.csv`` and ``studies.jsonl``; return the SHA-256 of each by name."""
    predictions = write_predictions(
        folder / PREDICTIONS_FILE, ((name, rows) for name, rows, _ in ledger.outcomes())
    )
    studies = write_lines(
        folder / STUDIES_FILE, (line for _, _, line in ledger.outcomes())
    )
    return {PREDICTIONS_FILE: predictions, STUDIES_FILE: studies}


async def _watch(lock: OutputLock) -> None:
    """Return never; raise ``OutputError`` when the output folder is no longer the one that is held."""
    while True:
        await asyncio.sleep(_WATCH_S)
        lock.check()
