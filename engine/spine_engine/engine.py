"""The public face: ``Engine.open(bundle).run(folder)``."""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spine_engine._version import __version__
from spine_engine.errors import OutputError
from spine_engine.ledger import LEDGER_FILE, Ledger
from spine_engine.options import RunOptions
from spine_engine.output import check_input, excluded_path, held
from spine_engine.resources import Resources
from spine_engine.results import PREDICTIONS_FILE, RUN_FILE, STUDIES_FILE, StudyResult, write_lines, write_predictions
from spine_engine.runner import Discover, Progress, Runner, RunPlan
from spine_engine.scheduler import ModelProcess, WalkFactory, peak_memory_bytes
from spine_engine.summary import RunSummary

_WAITING = 64
"""Results that may wait for the consumer; beyond that no new study is begun, so a slow consumer costs no memory."""
_EXAMPLES = 100
"""Refused files named in ``run.json``; the counts cover all of them."""


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What decides the results of a run: two runs that share it may share an output folder."""

    bundle: Mapping[str, str]
    options: RunOptions
    series_descriptions: str

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
            "schedule": "batch" if self.options.batched else "study",
            "threads": str(self.options.thread_count) if self.options.device.lower() == "cpu" else "-",
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
        folder: Path,
        output: Path | None,
        *,
        identity: RunIdentity,
        discover: Discover,
        factory: WalkFactory,
        resources: Resources | None = None,
        models: ModelProcess | None = None,
    ) -> None:
        """Check the folders; nothing runs yet.

        Raises:
            UsageError: the input is not a readable folder, or is the output as well.
        """
        self._root = check_input(folder)
        self._exclude = None if output is None else excluded_path(self._root, output)
        self._identity = identity
        self._discover = discover
        self._factory = factory
        self._resources = resources or Resources(workers=identity.options.worker_count, memory=None)
        self._models = models
        self._results: queue.Queue[StudyResult | None] = queue.Queue(_WAITING)
        self._error: BaseException | None = None
        self._aborted = threading.Event()
        self._stopped = threading.Event()
        self._runner: Runner | None = None
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
            raise RuntimeError("a run can be iterated over once; ask the engine for another")
        self._thread = threading.Thread(target=self._main, name="spine-engine run")
        self._thread.start()
        return self._thread

    def finish(self) -> RunSummary:
        """Carry the run out to its end and return its summary."""
        for _ in self:
            pass
        assert self.summary is not None
        return self.summary

    def stop(self) -> None:
        """Begin no more studies; those in flight are finished and the files written. Safe in a signal handler."""
        self._stopped.set()
        if self._runner is not None:
            self._runner.stop()

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
                    output = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spine-engine-")))
                stack.enter_context(held(output))
                ledger = Ledger(output / LEDGER_FILE, self._identity.facts(self._root))
                stack.callback(ledger.close)
                self._carry_out(output, ledger)
        except sqlite3.Error as error:
            self._error = OutputError(f"the ledger cannot be used: {error}; free space and run the command again")
        except BaseException as error:  # noqa: BLE001 - it is raised again where the results are read
            self._error = error
        finally:
            self._put_last()

    def _carry_out(self, output: Path, ledger: Ledger) -> None:
        begun = time.monotonic()
        options = self._identity.options
        plan = RunPlan(
            root=self._root,
            exclude=self._exclude,
            discover=self._discover,
            factory=self._factory,
            resources=self._resources,
            timeout_s=options.timeout_s,
            max_attempts=options.max_attempts,
            models=self._models,
        )
        self._runner = Runner(plan, ledger, self.progress, self._emit)
        if self._stopped.is_set():
            self._runner.stop()
        with suppress(asyncio.CancelledError):
            asyncio.run(self._run(self._runner))
        if self._aborted.is_set():
            self.progress.stopped = True
        else:
            write_predictions(output / PREDICTIONS_FILE, ((name, rows) for name, rows, _ in ledger.outcomes()))
            write_lines(output / STUDIES_FILE, (line for _, _, line in ledger.outcomes()))
        self.summary = self._summarise(ledger, self._runner, time.monotonic() - begun)
        if not self._aborted.is_set():
            write_lines(output / RUN_FILE, [json.dumps(self.summary.record(), indent=2)])

    async def _run(self, runner: Runner) -> None:
        self._task = asyncio.current_task()
        if not self._aborted.is_set():
            await runner.run()

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

    def _summarise(self, ledger: Ledger, runner: Runner, wall_s: float) -> RunSummary:
        statuses, reasons = ledger.counts()
        options: dict[str, Any] = asdict(self._identity.options)
        options["series_descriptions"] = options["series_descriptions"] and str(options["series_descriptions"])
        options["workers"] = self._resources.workers
        options["threads"] = self._identity.options.thread_count
        options["schedule"] = "batch" if self._models is not None else "study"
        main = peak_memory_bytes()
        workers = runner.peak_worker_bytes
        return RunSummary(
            engine_version=__version__,
            bundle=self._identity.bundle,
            devices=ledger.devices(),
            options=options,
            interrupted=self.progress.stopped,
            statuses=statuses,
            reasons=reasons,
            refused_files=ledger.refused_counts(),
            refused_examples=ledger.refused_files(limit=_EXAMPLES),
            walked=self.progress.walked,
            resumed=self.progress.resumed,
            wall_s=wall_s,
            stage_seconds=self.progress.stage_seconds,
            peak_memory_bytes={"main": main, "workers": workers, "total": main + sum(workers)},
        )


class Engine:
    """Grades folders of studies with one verified bundle.

    Example::

        from spine_engine import Engine

        for study in Engine.open().run("exams"):
            print(study.study_id, study.status)
    """

    def __init__(self, bundle: Any, options: RunOptions) -> None:
        """Use :meth:`open`."""
        self.bundle = bundle
        self.options = options

    @classmethod
    def open(cls, bundle: str | Path | None = None, *, options: RunOptions | None = None) -> Engine:
        """Verify a bundle, the packaged one where none is named, and return an engine for it.

        Raises:
            BundleError: the bundle is missing, damaged or not what its manifest says.
        """
        from spine_engine.bundle import Bundle

        return cls(Bundle.open(None if bundle is None else Path(bundle)), options or RunOptions())

    def run(self, folder: str | Path, output: str | Path | None = None) -> Run:
        """Return a run over the DICOM files of ``folder``; iterate over it to carry it out.

        With ``output`` the results are written there and an interrupted run can be resumed; without, nothing is kept.

        Raises:
            UsageError: the input is not a readable folder, or the series descriptions cannot be used.
        """
        from spine_engine.tuning import tuned
        from spine_engine.walk import plan_walk

        root = check_input(Path(folder))
        options = tuned(self.options, self.bundle)
        walk = plan_walk(root, self.bundle, options)
        identity = RunIdentity(bundle=self.bundle.facts, options=options, series_descriptions=walk.series_descriptions)
        return Run(
            root,
            None if output is None else Path(output),
            identity=identity,
            discover=walk.discover,
            factory=walk.factory,
            resources=walk.resources,
            models=walk.models,
        )
