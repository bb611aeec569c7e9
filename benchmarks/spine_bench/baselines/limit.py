"""``limit``: what is left when only the models run, the inference-only bound of a machine.

The engine's own way is walked once over every study, and what each network is given is kept. Measured are those calls
alone: the arrays lie in memory, nothing is read, cut or decoded, in as many processes as cores, one thread each, under
OpenVINO in the engine's precision. Whether the slices of a stack and the grids of a study go in one call or one by one
is measured when the system is opened, network by network, and the faster way is taken.

Studies are recorded when they are first submitted, which is no part of the bound (the stage ``record``): warm the
system up with as many as it records, or name them to ``prepare`` before ``open``. Those that come later borrow the
recorded ones' calls in turn.
"""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spine_bench.baselines.grading import F32, finder, probabilities, sagittal, warm_up_study
from spine_bench.baselines.serial import CLOSED, Clock, Done, told
from spine_bench.harness.interfaces import Answer, Sample
from spine_engine.anatomy import Level
from spine_engine.backends import Backend
from spine_engine.bundle import Bundle
from spine_engine.detection import DiscLevel
from spine_engine.dicom import RoleOverrides, read_unit
from spine_engine.grading import level_grids
from spine_engine.options import usable_cpus
from spine_engine.study import Study

Calls = dict[str, list[F32]]
"""Inputs by role, in the order of the calls."""

TRIALS: Final = 3
TRIED: Final = 5
"""How often each way of calling a network is measured, and on how many items; the fastest counts."""

RECORDED_A_WORKER: Final = 4
"""Studies that are recorded for each process: their arrays stay in memory, 126 MB a study at 128^3 voxels."""


class LimitSystem:
    """See the module's description."""

    name = "limit"

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._workers = usable_cpus()
        self._samples: list[Sample] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._pool: ProcessPoolExecutor | None = None
        self._facts: dict[str, object] = {}
        self._whole: dict[str, bool] = {}
        self._recorded: list[Sample] = []
        self._borrowed = 0

    def prepare(self, samples: Sequence[Sample]) -> None:
        """Name the studies whose calls are to be recorded by ``open``."""
        self._samples = list(samples)

    def open(self) -> None:
        """Open the models in every process, record the prepared studies, and choose how the networks are called."""
        self._folder = tempfile.TemporaryDirectory(prefix="spine-bench-limit-")
        started = multiprocessing.get_context("spawn").Barrier(self._workers)
        self._pool = ProcessPoolExecutor(
            self._workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(self._bundle.path, Path(self._folder.name), started),
        )
        for future in [self._pool.submit(_facts) for _ in range(self._workers)]:
            self._facts = future.result()
        self._whole = self._pool.submit(_fastest).result()
        for recorded in [self._pool.submit(_record, sample) for sample in self._samples]:
            recorded.result()
        self._recorded = self._samples

    def submit(self, sample: Sample, done: Done) -> None:
        """Queue the calls of a study for the next free process."""
        if self._pool is None:
            raise RuntimeError("open() comes first")
        recorded = {known.unit.key for known in self._recorded}
        if sample.unit.key not in recorded and len(recorded) < RECORDED_A_WORKER * self._workers:
            self._recorded = [*self._recorded, sample]
        elif sample.unit.key not in recorded:
            self._borrowed += 1
            sample = self._recorded[self._borrowed % len(self._recorded)]
        self._pool.submit(_call, sample, self._whole).add_done_callback(lambda future: done(_answer_of(future)))

    def facts(self) -> dict[str, object]:
        """Return the devices, processes, and how each network is called."""
        called = {role: "all in one call" if whole else "one by one" for role, whole in self._whole.items()}
        return {"bundle": self._bundle.facts, "processes": self._workers, "threads": 1, "called": called, **self._facts}

    def close(self) -> None:
        """End the processes; what still waits is answered with a failure."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _answer_of(future: Future[Answer]) -> Answer:
    if future.cancelled():
        return Answer(probabilities=None, failure=CLOSED)
    error = future.exception()
    return Answer(probabilities=None, failure=told(Exception(str(error)))) if error else future.result()


# -- in a process of its own -------------------------------------------------------------------------------------------

_here: _Models | None = None


class _Models:
    """The networks of one process, and the recordings that it has mapped."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.bundle, self.folder = bundle, folder
        self.entries = {
            role: entry for role, entry in bundle.manifest.models.by_role().items() if role != "whole_study_grader"
        }
        self.networks = {role: bundle.open_model(entry, threads=1) for role, entry in self.entries.items()}
        self.known: dict[str, tuple[Calls, dict[Level, DiscLevel]]] = {}


def _start(bundle: Path, folder: Path, started: Any) -> None:
    global _here
    _here = _Models(Bundle.open(bundle), folder)
    started.wait()  # no process takes work before every one is there


def _models() -> _Models:
    assert _here is not None, "the process was not started"
    return _here


def _facts() -> dict[str, object]:
    devices = {role: network.device for role, network in _models().networks.items()}
    return {"models": {role: f"{d.backend} {d.device} {d.precision}" for role, d in devices.items()}}


def _record(sample: Sample) -> None:
    """Walk a study, keep what the networks are given, and write it where every process finds it."""
    overrides = RoleOverrides.find(sample.root)
    (study,) = read_unit(sample.root, sample.unit, overrides).studies
    calls, levels = _calls_of(study)
    place = _models().folder / sample.unit.digest
    place.mkdir(exist_ok=True)
    for role, arrays in calls.items():
        for number, array in enumerate(arrays):
            np.save(place / f"{role}.{number:05}.npy", array)
    partial = place / "levels.partial"
    partial.write_bytes(pickle.dumps(dict(levels)))
    partial.rename(place / "levels.pickle")


def _calls_of(study: Study) -> tuple[Calls, Mapping[Level, DiscLevel]]:
    """Walk a study and return what each network is given, and the levels that were found."""
    models = _models()
    recorders = {role: _Recorder(network) for role, network in models.networks.items()}
    levels = finder(models.bundle, recorders)(sagittal(study)).levels
    recorders["grader"].kept = list(np.split(level_grids(study, levels, models.bundle.grader)[0], len(levels)))
    return {role: _stacked(recorder.kept) for role, recorder in recorders.items()}, levels


class _Recorder:
    """A network that keeps what it is given."""

    def __init__(self, network: Backend) -> None:
        self.inputs, self.outputs, self.device = network.inputs, network.outputs, network.device
        self.kept: list[F32] = []
        self._network = network

    def run(self, inputs: Mapping[str, F32]) -> dict[str, F32]:
        """Run the network once."""
        self.kept.extend(array.copy() for array in inputs.values())
        return self._network.run(inputs)

    def close(self) -> None:
        """The network is not its own."""


def _stacked(parts: Sequence[F32]) -> list[F32]:
    """Join calls that follow each other with inputs of one size."""
    return [np.concatenate(list(group)) for _, group in groupby(parts, key=lambda part: part.shape[1:])]


def _recorded(sample: Sample, clock: Clock) -> tuple[Calls, dict[Level, DiscLevel]]:
    models = _models()
    digest = sample.unit.digest
    if digest not in models.known:
        place = models.folder / digest
        with clock.stage("record"):
            if not (place / "levels.pickle").exists():
                _record(sample)
            calls: Calls = {role: [] for role in models.entries}
            for path in sorted(place.glob("*.*.npy")):
                calls[path.name.split(".")[0]].append(np.load(path, mmap_mode="c"))
            for arrays in calls.values():  # in memory before anything is measured
                _ = [array.sum() for array in arrays]
            levels = pickle.loads((place / "levels.pickle").read_bytes())
        models.known[digest] = calls, levels
    return models.known[digest]


def _call(sample: Sample, whole: Mapping[str, bool]) -> Answer:
    """Make the calls of a study, and nothing else; ``whole`` says by role which take all items at once."""
    clock = Clock()
    models = _models()
    calls, levels = _recorded(sample, clock)
    found: F32 | None = None
    for role, arrays in calls.items():
        with clock.stage("grade" if role == "grader" else "detect"):
            found = _run(role, arrays, whole=whole.get(role, True))
    assert found is not None, "a bundle has a grader"
    answer: NDArray[np.float64] = probabilities(found, models.bundle.grader, levels)
    return Answer(probabilities=answer, stage_seconds=clock.wall)


def _run(role: str, arrays: Sequence[F32], *, whole: bool) -> F32:
    """Return what a network says of recorded inputs, in one call for each size or item by item."""
    network, entry = _models().networks[role], _models().entries[role]
    given, gives = entry.inputs[0].name, entry.outputs[0].name
    parts = arrays if whole else [array[n : n + 1] for array in arrays for n in range(len(array))]
    found = [network.run({given: part})[gives] for part in parts]
    alike = len({part.shape[1:] for part in found}) == 1
    return np.concatenate(found) if alike else found[-1]


def _fastest() -> dict[str, bool]:
    """Measure on a phantom, network by network, whether one call for all is faster than one for each."""
    calls, _ = _calls_of(warm_up_study())

    def seconds(role: str, whole: bool) -> float:
        began = time.thread_time()
        _run(role, [array[:TRIED] for array in calls[role][:1]], whole=whole)
        return time.thread_time() - began

    chosen = {}
    for role in calls:
        least = {whole: min(seconds(role, whole) for _ in range(TRIALS)) for whole in (True, False)}
        chosen[role] = least[True] <= least[False]
    return chosen
