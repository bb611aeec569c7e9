"""The bare models: the calls that the engine's pipeline makes, recorded, and made again with nothing around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import process_time
from typing import Final

import numpy as np

from spine_bench.harness.interfaces import F32
from spine_bench.harness.turns import take_turns
from spine_engine.backends import Backend
from spine_engine.bundle import Bundle
from spine_engine.errors import UsageError
from spine_engine.options import RunOptions
from spine_engine.pipeline.models import PipelineModels, in_two_stages, open_role
from spine_engine.pipeline.study_pipeline import StudyPipeline
from spine_engine.run.tuning import tuned

# The inputs of a network, in the order of the calls; every network of a bundle has one input.
Calls = Sequence[F32]

# Calls of the engine that ways are tried with: twice the most that are put together.
TRIED: Final = 16

# How often each way is tried after a first time, which pays for its kernels; the least time counts.
TRIALS: Final = 3


class Recorder:
    """A model that keeps what it is given, while ``keeps`` is true, and adds up the processor time it takes."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.inputs = backend.inputs
        self.outputs = backend.outputs
        self.device = backend.device
        self.keeps = True
        self.kept: list[F32] = []
        self.cpu_s = 0.0

    def run(self, inputs: Mapping[str, F32]) -> dict[str, F32]:
        """Run the model once."""
        if self.keeps:
            self.kept.extend(values.copy() for values in inputs.values())
        began = process_time()
        try:
            return self.backend.run(inputs)
        finally:
            self.cpu_s += process_time() - began

    def close(self) -> None:
        """Release the model."""
        self.backend.close()


def recorded_pipeline(bundle: Bundle) -> tuple[StudyPipeline, dict[str, Recorder]]:
    """Open a bundle as the engine's own runs do, on one thread; return the pipeline and the models in it by role.

    Raises:
        UsageError: the bundle does not find the levels first and grade each.
    """
    if not in_two_stages(bundle, RunOptions()):
        raise UsageError(
            "this is measured with a bundle that has a detector and a grader; this one lacks one"
        )
    options = RunOptions(precision=tuned(RunOptions(), bundle).precision)
    recorders: dict[str, Recorder] = {}

    def opened(role: str) -> Backend:
        recorders[role] = Recorder(open_role(bundle, options, role))
        return recorders[role]

    return StudyPipeline(PipelineModels(bundle, options, opened)), recorders


def joined(parts: Calls, count: int) -> list[F32]:
    """Put the inputs of calls that have one shape together, ``count`` of them at a time."""
    by_shape: dict[tuple[int, ...], list[F32]] = {}
    for part in parts:
        by_shape.setdefault(part.shape, []).append(part)
    return [
        np.concatenate(alike[first : first + count])
        for alike in by_shape.values()
        for first in range(0, len(alike), count)
    ]


def single(parts: Calls) -> list[F32]:
    """Take calls apart, an item a call."""
    return [part[item : item + 1] for part in parts for item in range(len(part))]


AS_THE_ENGINE: Final = "as the engine calls it"
# How a network may be called. The engine gives the detector a slice a call and the grader the grids of a study, so that
# 8 of its calls are 8 slices, or up to 40 grids.
WAYS: Final[dict[str, Callable[[Calls], list[F32]]]] = {
    AS_THE_ENGINE: list,
    "item by item": single,
    **{f"{count} calls in one": partial(joined, count=count) for count in (2, 4, 8)},
}


def run_calls(model: Backend, calls: Calls) -> list[F32]:
    """Make calls, and return what the model answers to each."""
    given = model.inputs[0].name
    gives = model.outputs[0].name
    return [model.run({given: values})[gives] for values in calls]


def fastest_way(model: Backend, parts: Calls) -> str:
    """Return which way of making the engine's calls takes the least processor time."""
    ways = list(WAYS) if model.inputs[0].shape[0] is None else [AS_THE_ENGINE]
    times = take_turns(
        {way: partial(run_calls, model, WAYS[way](parts[:TRIED])) for way in ways},
        TRIALS,
        process_time,
    )
    return min(ways, key=lambda way: min(times[way]))
