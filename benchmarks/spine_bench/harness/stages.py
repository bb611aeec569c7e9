"""What each stage of the engine needs when it runs alone at its best, and how fast the bare models are.

The pipeline itself walks the same studies again and again, in one process or in one for each core, and its own clock
says what reading, detecting and cutting take; its models are then called alone, on the very inputs that it gave them.
What a stage costs is processor time, so that whoever else uses the machine is not counted; how fast the bare models
are is wall time, because the rates it is compared with are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from time import perf_counter, process_time
from typing import Final, NamedTuple

from spine_bench.harness.bare import WAYS, fastest_way, recorded_pipeline, run_calls
from spine_bench.harness.host import lone_worker
from spine_bench.harness.interfaces import (
    StudyLibrary,
    in_seconds,
    read_sample,
    read_studies,
)
from spine_engine import Status, Warn
from spine_engine.bundle import Bundle
from spine_engine.errors import UsageError
from spine_engine.options import usable_cpus
from spine_engine.pipeline.clock import StageClock
from spine_engine.scheduler.process import KEPT_MEMORY, ONE_THREAD, environment

# Between them they are all that is done for a study that is graded level by level.
STAGES: Final = ("read", "detect around the model", "detector", "voxelize", "grader")

# What is measured one after the other: the whole pipeline, then the models of detection and the grader alone.
WALKS: Final = ("pipeline", "detector", "grader")

# Studies that a process walks; what their models are given stays in its memory.
STUDIES: Final = 16


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """One look at the stages.

    Attributes:
        alone_s: processor seconds a study of each stage, one process on an otherwise idle engine.
        together_s: the same with a process for each core, all at the same time.
        inference_studies_per_s: the bare models on the very same inputs, a process for each core, with the
            engine's calls made in the way that is fastest.
    """

    alone_s: dict[str, float]
    together_s: dict[str, float]
    inference_studies_per_s: float


def check_runtime(facts: Mapping[str, str]) -> None:
    """Raise ``UsageError`` unless the engine, by its ``facts``, runs as the stages do: with OpenVINO on the CPU."""
    runs = f"{facts.get('backend')} on {facts.get('device')}"
    if runs.lower() != "openvino on cpu":
        raise UsageError(
            f"stages are measured with openvino on cpu and the engine runs {runs}: use --no-stages"
        )


class StageBench:
    """A process for each core, with the pipeline open; idle until ``measure`` is called.

    Attributes:
        ways: by role, which way of making the engine's calls the bare model is fastest with.
    """

    def __init__(
        self,
        library: StudyLibrary,
        bundle: Path | None,
        processes: int | None = None,
    ) -> None:
        """Start the processes and warm them up.

        Raises:
            UsageError: the bundle does not grade level by level, or no study of the library can be graded so.
        """
        self._workers = [lone_worker() for _ in range(processes or usable_cpus())]
        try:
            with environment(
                ONE_THREAD | KEPT_MEMORY
            ):  # read when the libraries load, so processes start in here
                opened = [
                    worker.submit(_open, library, bundle) for worker in self._workers
                ]
                self.ways = [future.result() for future in opened].pop()
        except BaseException:
            self.close()
            raise

    def measure(self, seconds: float) -> StageTimes:
        """Measure every stage.

        Args:
            seconds: how long to look at all of them together, about. Every walk is made over all studies once alone
                and once with every process at work, however little is asked for.
        """
        share = seconds / (2 * len(WALKS) + 1)
        alone: dict[str, float] = {}
        together: dict[str, float] = {}
        for walk in WALKS:
            alone |= self._workers[0].submit(_run, walk, share).result().cpu_s
            looks = self._all(walk, share)
            together |= {
                stage: fmean(look.cpu_s[stage] for look in looks)
                for stage in looks[0].cpu_s
            }
        return StageTimes(
            alone_s={stage: alone[stage] for stage in STAGES},
            together_s={stage: together[stage] for stage in STAGES},
            inference_studies_per_s=sum(
                look.studies_per_s for look in self._all("inference", share)
            ),
        )

    def _all(self, walk: str, seconds: float) -> list[_Look]:
        return [
            future.result()
            for future in [
                worker.submit(_run, walk, seconds) for worker in self._workers
            ]
        ]

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.shutdown(cancel_futures=True)


# -- in a stage's process ----------------------------------------------------------------------------------------------


class _Look(NamedTuple):
    """Processor seconds a study by stage, and studies a second of wall time."""

    cpu_s: dict[str, float]
    studies_per_s: float


class ProcessorClock(StageClock):
    """The pipeline's clock, in processor time."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the processor time of a block as that of a stage."""
        began = process_time()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + process_time() - began


class _Stages:
    """The pipeline over a few studies, and the bare models over what it gave them."""

    def __init__(self, library: StudyLibrary, bundle: Bundle) -> None:
        self._library = library
        self._pipeline, self._models = recorded_pipeline(bundle)
        self._studies = list(
            islice(filter(self._is_graded_by_level, range(len(library))), STUDIES)
        )
        if not self._studies:
            raise UsageError(
                "no study of the library is graded level by level, so its stages cannot be measured"
            )
        called = {role: model for role, model in self._models.items() if model.kept}
        self.ways = {
            role: fastest_way(model.backend, model.kept)
            for role, model in called.items()
        }
        self._calls = {
            role: WAYS[way](called[role].kept) for role, way in self.ways.items()
        }
        for model in called.values():
            model.keeps = False

    def _is_graded_by_level(self, index: int) -> bool:
        """Grade a study; what its models were given is kept only where it is graded level by level."""
        marks = {role: len(model.kept) for role, model in self._models.items()}
        results = [
            self._pipeline.grade(study) for study in read_studies(self._library[index])
        ]
        whole = [
            result for result in results if Warn.WHOLE_STUDY_GRADER in result.warnings
        ]
        if [result.status for result in results] == [Status.GRADED] and not whole:
            return True
        for role, model in self._models.items():
            del model.kept[marks.get(role, 0) :]
        return False

    def run(self, walk: str, seconds: float) -> _Look:
        """Walk whole rounds of the studies for about ``seconds``."""
        clock = ProcessorClock()
        for model in self._models.values():
            model.cpu_s = 0.0
        studies = 0
        began = perf_counter()
        while not studies or perf_counter() - began < seconds:
            self._round(walk, clock)
            studies += len(self._studies)
        rate = studies / (perf_counter() - began)
        spent = in_seconds(clock.timings_ms())
        if walk == "pipeline":
            grader = self._models["grader"].cpu_s
            spent = {
                "read": spent["read"],
                "detect around the model": spent["detect"]
                + grader
                - sum(m.cpu_s for m in self._models.values()),
                "voxelize": spent["voxelize"] + spent["grade"] - grader,
            }
        return _Look({stage: value / studies for stage, value in spent.items()}, rate)

    def _round(self, walk: str, clock: StageClock) -> None:
        """Take all studies through the pipeline, or through bare models."""
        for index in self._studies if walk == "pipeline" else ():
            with clock.stage("read"):
                study = read_sample(self._library[index])
            self._pipeline.grade(study, clock=clock)
        for role, calls in self._calls.items():
            part = "grader" if role == "grader" else "detector"
            if walk in (part, "inference"):
                with clock.stage(part):
                    run_calls(self._models[role].backend, calls)


_stages: _Stages | None = None


def _open(library: StudyLibrary, bundle: Path | None) -> dict[str, str]:
    global _stages
    _stages = _Stages(library, Bundle.open(bundle))
    for walk in WALKS:
        _stages.run(walk, 0.0)
    return _stages.ways


def _run(walk: str, seconds: float) -> _Look:
    assert _stages is not None
    return _stages.run(walk, seconds)
