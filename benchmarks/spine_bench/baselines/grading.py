"""What the baselines share behind the reading: networks that find the levels, and probabilities from a grader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from spine_bench.harness.interfaces import F32, F64, Sample
from spine_engine.anatomy import CONDITIONS, LEVELS, SEVERITIES, Level
from spine_engine.backends import Backend, Device, TensorInfo
from spine_engine.bundle import Bundle
from spine_engine.bundle.manifest import GraderEntry, ModelEntry
from spine_engine.detection import DetectionOptions, DiscLevel
from spine_engine.detection.finder import LevelFinder, level_finder
from spine_engine.phantom import Protocol, draw_spine, render
from spine_engine.phantom.samples import UNSEEN_SEED
from spine_engine.pipeline.clock import StageClock
from spine_engine.pipeline.grading import (
    calibrated,
    checked,
    grade,
    prior_probabilities,
)
from spine_engine.study import Source, Study


class EngineWay:
    """Grades as the engine does, with networks of another runtime.

    Args:
        bundle: the bundle whose networks they are.
        networks: by role.
        read: reads a study.
        every_slice: look at every slice of the sagittal series, as is usual, or at those that the engine looks at.
        facts: what really runs.
    """

    def __init__(
        self,
        bundle: Bundle,
        networks: Mapping[str, Backend],
        read: Callable[[Sample], Study],
        *,
        every_slice: bool,
        facts: Mapping[str, object],
    ) -> None:
        self.facts = facts
        self._read = read
        self._find = finder(bundle, networks, every_slice=every_slice)
        self._grader = networks["grader"]
        self._entry = bundle.grader
        self._graded(warm_up_study(), StageClock())

    def answer(self, sample: Sample, clock: StageClock) -> F64:
        """Read, detect, cut the levels, grade."""
        with clock.stage("read"):
            study = self._read(sample)
        return self._graded(study, clock)

    def _graded(self, study: Study, clock: StageClock) -> F64:
        with clock.stage("detect"):
            levels = self._find(study.sagittal_stacks).levels
        with clock.stage("voxelize and grade"):
            return grade(study, levels, self._grader, self._entry).probabilities


def finder(
    bundle: Bundle, networks: Mapping[str, Backend], *, every_slice: bool
) -> LevelFinder:
    """Return what finds levels with the networks of a bundle, by role: in every slice of the sagittal series, as is
    usual, or in those that the engine looks at."""
    entry = bundle.detector
    roles = ("detector", "vertebra_appearance", "vertebra_context")
    return level_finder(
        entry.decoder,
        entry.spec,
        [networks[role] for role in roles if role in networks],
        DetectionOptions(every_slice=every_slice),
    )


def warm_up_study() -> Study:
    """Return a phantom of three slices a series, to be graded once before anything is measured: kernels compile.

    With three, a vertebra is seen in the two slices that SpineNet's detector asks for.
    """
    return render(
        draw_spine(UNSEEN_SEED),
        seed=UNSEEN_SEED,
        protocol=Protocol(sagittal_slices=3, axial_slices=1),
    ).as_study()


def probabilities(
    raw: F32, entry: GraderEntry, levels: Mapping[Level, DiscLevel]
) -> F64:
    """Return ``(5, 5, 3)`` from a grader's output, calibrated, the prior where a level has no place."""
    graded = checked(raw, (len(LEVELS), len(CONDITIONS), len(SEVERITIES)))
    if entry.calibration is not None:
        graded = calibrated(graded, entry.calibration)
    return np.where(
        np.array([levels[level].source != Source.PRIOR for level in LEVELS])[
            :, None, None
        ],
        graded,
        prior_probabilities(),
    )


class TorchNetwork:
    """A PyTorch module as a ``Backend``: eager float32, or under autocast to bfloat16 where told to.

    Args:
        module: in evaluation mode.
        entry: its input and output.
        bf16: run under autocast to bfloat16, and give it its input in the memory format that convolutions prefer.
    """

    def __init__(
        self,
        module: nn.Module,
        entry: ModelEntry,
        *,
        bf16: bool = False,
    ) -> None:
        self.inputs = tuple(
            TensorInfo(tensor.name, tensor.shape) for tensor in entry.inputs
        )
        self.outputs = tuple(
            TensorInfo(tensor.name, tensor.shape) for tensor in entry.outputs
        )
        self.device = Device("torch", "CPU", "bf16" if bf16 else "f32")
        self._module = module
        self._bf16 = bf16
        formats: dict[int, Any] = (
            {4: torch.channels_last, 5: torch.channels_last_3d} if bf16 else {}
        )
        self._format = formats.get(len(self.inputs[0].shape), torch.contiguous_format)
        module.to(memory_format=self._format)

    def run(self, inputs: Mapping[str, F32]) -> dict[str, F32]:
        """Run the module once."""
        image = torch.from_numpy(inputs[self.inputs[0].name]).to(
            memory_format=self._format
        )
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16, enabled=self._bf16),
        ):
            found: torch.Tensor = self._module(image)
        return {self.outputs[0].name: found.float().contiguous().numpy()}

    def close(self) -> None:
        """Nothing to release."""
