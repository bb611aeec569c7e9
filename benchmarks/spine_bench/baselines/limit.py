"""``limit``: what is left when only the models run, the inference-only bound of a machine.

The engine's own way is walked once over every study, and what each network is given is kept. Measured are those calls
alone: the arrays lie in memory, nothing is read, cut or decoded, in as many processes as cores, one thread each, under
OpenVINO in the precision of the engine's own runs. Whether the slices of a stack and the grids of a study go as the
engine calls, all in one call or one by one is measured on the first recorded study, network by network, and the fastest
way is taken.

Studies are recorded when they are first submitted, which is no part of the bound (the stage ``record``): warm the
system up with as many as it records, or name them to ``prepare`` before ``open``. Those that come later borrow the
recorded ones' calls in turn.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from spine_bench.baselines.grading import F32, finder, probabilities, sagittal
from spine_bench.baselines.serial import CLOSED, Clock, Done, told
from spine_bench.harness.children import end_with_parent
from spine_bench.harness.interfaces import Answer, Sample
from spine_engine.anatomy import Level
from spine_engine.backends import Backend, Precision
from spine_engine.bundle import Bundle
from spine_engine.detection import DiscLevel
from spine_engine.dicom import RoleOverrides, read_unit
from spine_engine.grading import level_grids
from spine_engine.options import RunOptions, usable_cpus
from spine_engine.study import Study
from spine_engine.tuning import tuned

Calls = dict[str, list[F32]]
"""Inputs by role, in the order of the calls."""

TRIALS: Final = 4
"""How often each way of calling a network is measured; the least time counts, for the first pays for its kernels."""

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
        self._ways: dict[str, str] = {}
        self._recorded: list[Sample] = []
        self._borrowed = 0

    def prepare(self, samples: Sequence[Sample]) -> None:
        """Name the studies whose calls are to be recorded by ``open``."""
        self._samples = list(samples)

    def open(self) -> None:
        """Open the models in every process, and record the prepared studies.

        Raises:
            Exception: what a prepared study cannot be recorded for.
        """
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
        for recorded in [self._pool.submit(_record, sample) for sample in self._samples]:
            recorded.result()
        self._recorded = self._samples
        if self._samples:
            self._ways = self._pool.submit(_fastest, self._samples[0]).result()

    def submit(self, sample: Sample, done: Done) -> None:
        """Queue the calls of a study for the next free process; the first study settles how networks are called."""
        if self._pool is None:
            raise RuntimeError("open() comes first")
        recorded = {known.unit.key for known in self._recorded}
        if sample.unit.key not in recorded and len(recorded) < RECORDED_A_WORKER * self._workers:
            self._recorded = [*self._recorded, sample]
        elif sample.unit.key not in recorded:
            self._borrowed += 1
            sample = self._recorded[self._borrowed % len(self._recorded)]
        if not self._ways:
            try:
                self._ways = self._pool.submit(_fastest, sample).result()
            except Exception as error:  # noqa: BLE001 - a study that cannot be graded is an answer as well
                done(Answer(probabilities=None, failure=told(error)))
                return
        self._pool.submit(_call, sample, self._ways).add_done_callback(lambda future: done(_answer_of(future)))

    def facts(self) -> dict[str, object]:
        """Return the devices, processes, and how each network is called."""
        shared = {"bundle": self._bundle.facts, "processes": self._workers, "threads": 1}
        return {**shared, "called": self._ways, **self._facts}

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
        precision = cast(Precision, tuned(RunOptions(), bundle).precision)  # that of the engine's own runs
        self.networks = {
            role: bundle.open_model(entry, precision=precision, threads=1) for role, entry in self.entries.items()
        }
        self.known: dict[str, tuple[Calls, dict[Level, DiscLevel]]] = {}


def _start(bundle: Path, folder: Path, started: Any) -> None:
    global _here
    end_with_parent()
    _here = _Models(Bundle.open(bundle), folder)
    started.wait()  # no process takes work before every one is there


def _models() -> _Models:
    assert _here is not None, "the process was not started"
    return _here


def _facts() -> dict[str, object]:
    devices = {role: network.device for role, network in _models().networks.items()}
    return {"models": {role: f"{d.backend} {d.device} {d.precision}" for role, d in devices.items()}}


def _record(sample: Sample) -> None:
    """Walk a study, keep what the networks are given, and write it where every process finds it.

    Two processes may record one study at once: each writes into a folder of its own, and the first to end is kept.
    """
    overrides = RoleOverrides.find(sample.root)
    (study,) = read_unit(sample.root, sample.unit, overrides).studies
    calls, levels = _calls_of(study)
    folder = _models().folder
    own = Path(tempfile.mkdtemp(prefix="partial-", dir=folder))
    for role, arrays in calls.items():
        for number, array in enumerate(arrays):
            np.save(own / f"{role}.{number:05}.npy", array)
    (own / "levels.pickle").write_bytes(pickle.dumps(dict(levels)))
    place = folder / sample.unit.digest
    try:
        os.rename(own, place)
    except OSError:
        shutil.rmtree(own)
        if not place.exists():
            raise


def _calls_of(study: Study) -> tuple[Calls, Mapping[Level, DiscLevel]]:
    """Walk a study and return what each network is given, and the levels that were found."""
    models = _models()
    recorders = {role: _Recorder(network) for role, network in models.networks.items()}
    levels = finder(models.bundle, recorders, every_slice=False)(sagittal(study)).levels
    recorders["grader"].kept = [level_grids(study, levels, models.bundle.grader)[0]]
    return {role: recorder.kept for role, recorder in recorders.items()}, levels


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


def _single(parts: Sequence[F32]) -> list[F32]:
    return [part[n : n + 1] for part in parts for n in range(len(part))]


WAYS: Final[dict[str, Callable[[Sequence[F32]], list[F32]]]] = {
    "as the engine calls it": list,
    "all in one call": _stacked,
    "one by one": _single,
}
"""How a network may be called, and what makes its calls of those that were recorded."""


def _recorded(sample: Sample) -> tuple[Calls, dict[Level, DiscLevel]]:
    """Return what the networks are given for a study, and its levels; it is recorded when no process has done so."""
    place = _models().folder / sample.unit.digest
    if not place.exists():
        _record(sample)
    calls: Calls = {role: [] for role in _models().entries}
    for path in sorted(place.glob("*.*.npy")):
        calls[path.name.split(".")[0]].append(np.load(path, mmap_mode="c"))
    return calls, pickle.loads((place / "levels.pickle").read_bytes())


def _call(sample: Sample, ways: Mapping[str, str]) -> Answer:
    """Make the calls of a study, and nothing else; ``ways`` says by role how."""
    clock = Clock()
    models = _models()
    digest = sample.unit.digest
    if digest not in models.known:
        with clock.stage("record"):
            calls, levels = _recorded(sample)
            calls = {role: WAYS[ways[role]](arrays) for role, arrays in calls.items()}
            for arrays in calls.values():  # in memory before anything is measured
                _ = [array.sum() for array in arrays]
            models.known[digest] = calls, levels
    calls, levels = models.known[digest]
    found: dict[str, list[F32]] = {}
    for role, arrays in calls.items():
        with clock.stage("grade" if role == "grader" else "detect"):
            found[role] = _run(role, arrays)
    raw = np.concatenate(found["grader"])
    answer: NDArray[np.float64] = probabilities(raw, models.bundle.grader, levels)
    return Answer(probabilities=answer, stage_seconds=clock.wall)


def _run(role: str, parts: Sequence[F32]) -> list[F32]:
    """Return what a network says in each call."""
    network, entry = _models().networks[role], _models().entries[role]
    given, gives = entry.inputs[0].name, entry.outputs[0].name
    return [network.run({given: part})[gives] for part in parts]


def _fastest(sample: Sample) -> dict[str, str]:
    """Measure on a whole study, network by network and the ways in turns, which takes the least processor time."""
    calls, _ = _recorded(sample)
    chosen = {}
    for role, arrays in calls.items():
        batched = _models().entries[role].inputs[0].shape[0] is None
        tried = {way: make(arrays) for way, make in WAYS.items() if batched or make is list}
        times = [{way: _processor_s(role, parts) for way, parts in tried.items()} for _ in range(TRIALS)]
        chosen[role] = min(tried, key=lambda way: min(trial[way] for trial in times))
    return chosen


def _processor_s(role: str, parts: Sequence[F32]) -> float:
    began = time.process_time()
    _run(role, parts)
    return time.process_time() - began
