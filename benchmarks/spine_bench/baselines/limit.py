"""``limit``: what is left when only the models run, the inference-only bound of a machine.

The engine's own pipeline is walked once over the first studies of the library when the system is opened, and what each
network is given is kept. Measured are those calls alone: the arrays lie in memory, nothing is read, cut or decoded, in
as many processes as cores, one thread each, under OpenVINO in the precision of the engine's own runs. Which way of
making the calls is the fastest is measured on the first study, network by network. Studies that are not recorded borrow
the recorded ones' calls in turn.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import astuple
from functools import partial
from itertools import chain, cycle
from pathlib import Path
from typing import Final

import numpy as np

from spine_bench.baselines.grading import probabilities
from spine_bench.baselines.pool import PooledSystem, grader
from spine_bench.harness.bare import WAYS, fastest_way, recorded_pipeline, run_calls
from spine_bench.harness.interfaces import (
    F32,
    F64,
    Done,
    Sample,
    StudyLibrary,
    read_sample,
)
from spine_engine.anatomy import Level
from spine_engine.bundle import Bundle
from spine_engine.detection import DiscLevel
from spine_engine.options import usable_cpus
from spine_engine.pipeline.clock import StageClock

# What each network is given for a study, by role, in the order of the calls.
Calls = dict[str, list[F32]]

# Studies that are recorded for each process: their arrays stay in memory, 126 MB a study at 128^3 voxels.
RECORDED_A_WORKER: Final = 4


class LimitSystem(PooledSystem):
    """See the module's description."""

    def __init__(self, library: StudyLibrary, folder: Path | None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="spine-bench-limit-")
        super().__init__(
            "limit",
            folder,
            partial(BareModels, folder=Path(self._folder.name)),
            usable_cpus(),
        )
        count = min(len(library), RECORDED_A_WORKER * self._workers)
        self._recorded = {
            library[index].unit.key: library[index] for index in range(count)
        }
        self._lent = cycle(self._recorded.values())

    def open(self) -> None:
        """Open the models in every process, and record the studies.

        Raises:
            Exception: a model cannot be opened, or the first study not be graded.
        """
        super().open()
        first, *_ = self._recorded.values()
        ways = self._pool.submit(_ways, first).result()
        for recording in [
            self._pool.submit(_record, sample, ways)
            for sample in self._recorded.values()
        ]:
            recording.exception()  # a study that cannot be graded says so when it is submitted
        self._facts = {**self._facts, "called": ways}

    def submit(self, sample: Sample, done: Done) -> None:
        """Queue the calls of a study."""
        super().submit(self._recorded.get(sample.unit.key) or next(self._lent), done)

    def close(self) -> None:
        """End the processes and remove the recordings."""
        super().close()
        self._folder.cleanup()


class BareModels:
    """The models of one process, and the recordings that it has mapped into memory."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self._entry = bundle.grader
        self._folder = folder
        self._pipeline, self._models = recorded_pipeline(bundle)
        self._known: dict[str, tuple[Calls, dict[Level, DiscLevel]]] = {}
        self.facts: Mapping[str, object] = {
            "threads": 1,
            "models": {
                role: " ".join(astuple(model.device))
                for role, model in self._models.items()
            },
        }

    def calls_of(self, sample: Sample) -> tuple[Calls, dict[Level, DiscLevel]]:
        """Walk a study; return what each network is given, and the levels that were found."""
        for model in self._models.values():
            model.kept = []
        study = read_sample(sample)
        levels = self._pipeline.locate(study).levels
        self._models["grader"].kept = [self._pipeline.grids(study, levels)]
        return {role: model.kept for role, model in self._models.items()}, dict(levels)

    def ways(self, sample: Sample) -> dict[str, str]:
        """Measure on a whole study, network by network, which way of making its calls is the fastest."""
        calls, _ = self.calls_of(sample)
        return {
            role: fastest_way(self._models[role].backend, parts)
            for role, parts in calls.items()
        }

    def record(self, sample: Sample, ways: Mapping[str, str]) -> Path:
        """Keep the calls of a study, in the ways that are the fastest, where every process finds them."""
        place = self._folder / sample.unit.digest
        if place.exists():
            return place
        calls, levels = self.calls_of(sample)
        draft = Path(tempfile.mkdtemp(prefix="partial-", dir=self._folder))
        for role, parts in calls.items():
            for number, values in enumerate(WAYS[ways[role]](parts)):
                np.save(draft / f"{role}.{number:05}.npy", values)
        (draft / "levels.pickle").write_bytes(pickle.dumps(levels))
        return draft.rename(place)

    def answer(self, sample: Sample, clock: StageClock) -> F64:
        """Make the calls of a study, and nothing else."""
        with clock.stage("record"):
            calls, levels = self.recorded(sample)
        answers: dict[str, list[F32]] = {}
        for role, parts in calls.items():
            with clock.stage("grade" if role == "grader" else "detect"):
                answers[role] = run_calls(self._models[role].backend, parts)
        return probabilities(np.concatenate(answers["grader"]), self._entry, levels)

    def recorded(self, sample: Sample) -> tuple[Calls, dict[Level, DiscLevel]]:
        """Return the recorded calls of a study and its levels; they are mapped into memory when first asked for.

        Raises:
            StudyError: the study cannot be graded, so it could not be recorded.
        """
        place = self._folder / sample.unit.digest
        if not place.exists():
            return self.calls_of(sample)
        if place.name not in self._known:
            levels = pickle.loads((place / "levels.pickle").read_bytes())
            calls: Calls = {role: [] for role in self._models}
            for path in sorted(place.glob("*.npy")):
                calls[path.name.partition(".")[0]].append(np.load(path, mmap_mode="c"))
            for part in chain.from_iterable(calls.values()):
                part.sum()  # in memory before anything is measured
            self._known[place.name] = calls, levels
        return self._known[place.name]


def _ways(sample: Sample) -> dict[str, str]:
    ways: dict[str, str] = grader().ways(sample)
    return ways


def _record(sample: Sample, ways: Mapping[str, str]) -> None:
    grader().record(sample, ways)
