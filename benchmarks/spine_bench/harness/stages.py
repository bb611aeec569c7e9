"""What each stage of the engine needs when it runs alone at its best, and how fast the bare models are.

Every stage walks the same studies again and again, in one process or in one for each core. What it costs is processor
time, so that whoever else uses the machine is not counted; how fast the bare models are is wall time, because the
rates it is compared with are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter, process_time
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from spine_bench.harness.host import lone_worker
from spine_bench.harness.library import StudyLibrary
from spine_engine.anatomy import LEVELS
from spine_engine.backends import Backend, Precision
from spine_engine.bundle import Bundle
from spine_engine.detection import Detection
from spine_engine.detection.finder import LevelFinder, level_finder
from spine_engine.dicom import RoleOverrides, WorkUnit, read_unit
from spine_engine.errors import StudyError, UsageError
from spine_engine.grading import level_grids
from spine_engine.options import RunOptions, usable_cpus
from spine_engine.scheduler.processes import KEPT_MEMORY, ONE_THREAD, environment
from spine_engine.study import Role, Stack, Study
from spine_engine.tuning import tuned

STAGES: Final = ("read", "detect around the model", "detector", "voxelize", "grader")
"""Between them they are all that is done for a study that is graded level by level."""

STUDIES: Final = 16
"""Studies that a process walks: they stay in its memory, 20 to 30 MB each."""

JOINED: Final = (1, 2, 4, 8)
"""Calls of the engine put together into one when the fastest way is looked for. The engine gives the detector a slice a
call and the grader the grids of a study, so that 8 of them are 8 slices, or up to 40 grids."""

TRIED: Final = 16
"""Calls of the engine that this is tried with: twice the most that are put together."""

F32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """One look at the stages.

    Attributes:
        alone_s: processor seconds a study of each stage, one process on an otherwise idle engine.
        together_s: the same with a process for each core, all in the same stage.
        inference_studies_per_s: the bare models on the very same inputs, a process for each core, with the
            engine's calls put together as is fastest.
    """

    alone_s: dict[str, float]
    together_s: dict[str, float]
    inference_studies_per_s: float


def check_runtime(facts: Mapping[str, str]) -> None:
    """Raise ``UsageError`` unless the engine, by its ``facts``, runs as the stages do: with OpenVINO on the CPU."""
    runs = f"{facts.get('backend')} on {facts.get('device')}"
    if runs.lower() != "openvino on cpu":
        raise UsageError(f"stages are measured with openvino on cpu and the engine runs {runs}: use --no-stages")


class StageBench:
    """A process for each core, with models open and studies in memory; idle until ``measure`` is called.

    Attributes:
        joined: how many of the engine's calls, put together, the bare detector and the bare grader are fastest with.
    """

    def __init__(self, library: StudyLibrary, bundle: Path | None, processes: int | None = None) -> None:
        """Start the processes and warm them up.

        Raises:
            UsageError: the bundle does not grade level by level, or no study of the library can be graded so.
        """
        self._workers = [lone_worker() for _ in range(processes or usable_cpus())]
        try:
            with environment(
                ONE_THREAD | KEPT_MEMORY
            ):  # these are read when the libraries load, so the processes start in here
                opened = [worker.submit(_open, library, bundle) for worker in self._workers]
                self.joined = [future.result() for future in opened].pop()
        except BaseException:
            self.close()
            raise

    def measure(self, seconds: float) -> StageTimes:
        """Measure every stage.

        Args:
            seconds: how long to look at all of them together, about. It is never less than one walk over all studies a
                stage, once alone and once with every process at work, however little is asked for.
        """
        share = seconds / (2 * len(STAGES) + 1)
        alone = {stage: self._workers[0].submit(_run, stage, share).result()[0] for stage in STAGES}
        together = {}
        for stage in STAGES:
            together[stage] = float(np.mean([cpu_s for cpu_s, _ in self._all(stage, share)]))
        rate = sum(studies_per_s for _, studies_per_s in self._all("inference", share))
        return StageTimes(alone_s=alone, together_s=together, inference_studies_per_s=rate)

    def _all(self, stage: str, seconds: float) -> list[tuple[float, float]]:
        return [future.result() for future in [worker.submit(_run, stage, seconds) for worker in self._workers]]

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.shutdown(cancel_futures=True)


# -- in a stage's process ----------------------------------------------------------------------------------------------


class _Watched:
    """A backend that keeps the inputs it is given, while it is told to, and adds up the processor time it takes."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.kept: list[F32] | None = None
        self.cpu_s = 0.0

    def run(self, inputs: Mapping[str, F32]) -> dict[str, F32]:
        if self.kept is not None:
            self.kept.extend(values.copy() for values in inputs.values())  # every model of a bundle has one input
        began = process_time()
        try:
            return self.backend.run(inputs)
        finally:
            self.cpu_s += process_time() - began


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """One study after every stage: what the next stage begins with."""

    unit: WorkUnit
    study: Study
    sagittal: list[Sequence[Stack]]
    detection: Detection
    grids: F32


class _Stages:
    """The stages over a few studies, and the bare models over what the stages gave them."""

    def __init__(self, library: StudyLibrary, bundle: Bundle) -> None:
        models = bundle.manifest.models
        if models.detector is None or models.grader is None:
            raise UsageError("stages are measured with a bundle that has a detector and a grader; this one lacks one")
        self._root, self._overrides = library.root, RoleOverrides.find(library.root)
        self._entry = models.grader
        precision = cast(Precision, tuned(RunOptions(), bundle).precision)  # that of the engine's own runs
        found = [models.detector, models.vertebra_appearance, models.vertebra_context]
        self._finders = [
            _Watched(bundle.open_model(entry, precision=precision)) for entry in found if entry is not None
        ]
        self._find: LevelFinder = level_finder(models.detector.decoder, models.detector.spec, self._finders)
        self._out = np.empty((len(LEVELS), len(self._entry.channels), *self._entry.grid.shape), np.float32)
        for finder in self._finders:
            finder.kept = []
        self._ready = list(islice(filter(None, (self._walked(unit) for unit in library.units)), STUDIES))
        if not self._ready:
            raise UsageError("no study of the library is graded level by level, so its stages cannot be measured")
        seen = [finder.kept or [] for finder in self._finders]
        for finder in self._finders:
            finder.kept = None
        self._detector_calls = [_best_calls(f.backend, inputs) for f, inputs in zip(self._finders, seen, strict=True)]
        grader = bundle.open_model(self._entry, precision=precision)
        self._grader_calls = _best_calls(grader, [ready.grids for ready in self._ready])
        self.joined = {"detector": self._detector_calls[0].joined, "grader": self._grader_calls.joined}

    def _walked(self, unit: WorkUnit) -> _Ready | None:
        """Walk one study; None when it is not graded level by level."""
        studies = read_unit(self._root, unit, self._overrides).studies
        if len(studies) != 1 or studies[0].reason is not None:
            return None
        sagittal: list[Sequence[Stack]] = [
            s.stacks for role in (Role.SAGITTAL_T1, Role.SAGITTAL_T2) for s in studies[0].with_role(role)
        ]
        marks = [len(finder.kept or ()) for finder in self._finders]
        try:
            detection = self._find(sagittal)
        except StudyError:
            detection = None
        if detection is None or all(disc.source == "prior" for disc in detection.levels.values()):
            for finder, mark in zip(self._finders, marks, strict=True):
                del (finder.kept or [])[mark:]
            return None
        grids, _ = level_grids(studies[0], detection.levels, self._entry)
        return _Ready(unit=unit, study=studies[0], sagittal=sagittal, detection=detection, grids=grids)

    def walk(self, stage: str) -> float:
        """Take all studies through one stage, or through the bare models; return the processor seconds it took."""
        before, began = sum(finder.cpu_s for finder in self._finders), process_time()
        if stage in ("detector", "inference"):
            for calls in self._detector_calls:
                calls.run()
        if stage in ("grader", "inference"):
            self._grader_calls.run()
        for ready in self._ready:
            if stage == "read":
                read_unit(self._root, ready.unit, self._overrides)
            elif stage == "detect around the model":
                self._find(ready.sagittal)
            elif stage == "voxelize":
                level_grids(ready.study, ready.detection.levels, self._entry, out=self._out)
        return process_time() - began - (sum(finder.cpu_s for finder in self._finders) - before)

    def run(self, stage: str, seconds: float) -> tuple[float, float]:
        """Walk whole rounds of the studies for about ``seconds``.

        Returns:
            Processor seconds a study, and studies a second of wall time.
        """
        began, cpu_s, studies = perf_counter(), 0.0, 0
        while not studies or perf_counter() - began < seconds:
            cpu_s += self.walk(stage)
            studies += len(self._ready)
        return cpu_s / studies, studies / (perf_counter() - began)


@dataclass(frozen=True, kw_only=True)
class _Calls:
    """Calls of a model, each of up to ``joined`` of the engine's put together."""

    backend: Backend
    joined: int
    inputs: list[dict[str, F32]]

    @classmethod
    def of(cls, backend: Backend, inputs: Sequence[F32], joined: int) -> _Calls:
        """Put the inputs of the engine's calls that have one shape together, ``joined`` of them at a time."""
        by_shape: dict[tuple[int, ...], list[F32]] = {}
        for values in inputs:
            by_shape.setdefault(values.shape, []).append(values)
        name = backend.inputs[0].name
        together = [
            {name: np.ascontiguousarray(np.concatenate(alike[k : k + joined]))}
            for alike in by_shape.values()
            for k in range(0, len(alike), joined)
        ]
        return cls(backend=backend, joined=joined, inputs=together)

    def run(self) -> float:
        """Carry them out and return the processor seconds they took."""
        began = process_time()
        for inputs in self.inputs:
            self.backend.run(inputs)
        return process_time() - began


def _best_calls(backend: Backend, inputs: Sequence[F32]) -> _Calls:
    """Return the calls that take the least processor time, once warm, over the first of the engine's calls."""
    sizes = JOINED if backend.inputs[0].shape[0] is None else JOINED[:1]
    tried = [_Calls.of(backend, inputs[:TRIED], size) for size in sizes]
    for calls in tried:
        calls.run()
    best = min(tried, key=lambda calls: min(calls.run(), calls.run()))
    return _Calls.of(backend, inputs, best.joined)


_stages: _Stages | None = None


def _open(library: StudyLibrary, bundle: Path | None) -> dict[str, int]:
    global _stages
    _stages = _Stages(library, Bundle.open(bundle))
    for stage in STAGES:
        _stages.walk(stage)
    return _stages.joined


def _run(stage: str, seconds: float) -> tuple[float, float]:
    assert _stages is not None
    return _stages.run(stage, seconds)
