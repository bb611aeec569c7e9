"""What the baselines share behind the reading: networks that find the levels, and probabilities from a grader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spine_engine.anatomy import CONDITIONS, LEVELS, SEVERITIES, Level
from spine_engine.backends import Backend, Device, TensorInfo
from spine_engine.bundle import Bundle
from spine_engine.detection import DetectionOptions, DiscLevel
from spine_engine.detection.finder import LevelFinder, level_finder
from spine_engine.grading import calibrated, checked, prior_probabilities
from spine_engine.manifest import GraderEntry, ModelEntry
from spine_engine.parity import phantom_samples
from spine_engine.study import Role, Stack, Study

F32 = NDArray[np.float32]

WARM_UP_SLICES: Final = 3
"""Enough that a vertebra is seen in the two slices that SpineNet's detector asks for."""


def finder(bundle: Bundle, networks: Mapping[str, Backend], *, every_slice: bool) -> LevelFinder:
    """Return what finds levels with the networks of a bundle, by role: in every slice of the sagittal series, as is
    usual, or in those that the engine looks at."""
    entry = bundle.detector
    roles = ("detector", "vertebra_appearance", "vertebra_context")
    options = DetectionOptions(every_slice=every_slice)
    return level_finder(entry.decoder, entry.spec, [networks[role] for role in roles if role in networks], options)


def sagittal(study: Study) -> list[tuple[Stack, ...]]:
    """Return the stacks of each sagittal series, as detection takes them."""
    return [series.stacks for role in (Role.SAGITTAL_T1, Role.SAGITTAL_T2) for series in study.with_role(role)]


def warm_up_study() -> Study:
    """Return a phantom of three slices a stack, to be walked once before anything is measured: kernels compile."""
    study = phantom_samples(1)[0].study
    series = (replace(one, stacks=tuple(map(_middle, one.stacks))) for one in study.series)
    return replace(study, series=tuple(series))


def _middle(stack: Stack) -> Stack:
    if len(stack.pixels) <= WARM_UP_SLICES:
        return stack
    first = (len(stack.pixels) - WARM_UP_SLICES) // 2
    kept = slice(first, first + WARM_UP_SLICES)
    origins, slope, intercept = stack.origins_mm[kept], stack.slope[kept], stack.intercept[kept]
    return replace(stack, pixels=stack.pixels[kept], origins_mm=origins, slope=slope, intercept=intercept)


def probabilities(raw: F32, entry: GraderEntry, levels: Mapping[Level, DiscLevel]) -> NDArray[np.float64]:
    """Return ``(5, 5, 3)`` from a grader's output, calibrated, the prior where a level has no place."""
    graded = checked(raw, (len(LEVELS), len(CONDITIONS), len(SEVERITIES)))
    if entry.calibration is not None:
        graded = calibrated(graded, entry.calibration)
    known = np.array([levels[level].source != "prior" for level in LEVELS])
    return np.where(known[:, None, None], graded, prior_probabilities())


class TorchNetwork:
    """A PyTorch module as a ``Backend``: eager float32, or under autocast to bfloat16 where told to.

    Args:
        module: in evaluation mode.
        entry: its input and output.
        bf16: run under autocast to bfloat16.
        channels_last: give it 4-D and 5-D inputs in the memory format that convolutions prefer.
    """

    def __init__(
        self, module: nn.Module, entry: ModelEntry, *, bf16: bool = False, channels_last: bool = False
    ) -> None:
        self.inputs = tuple(TensorInfo(tensor.name, tensor.shape) for tensor in entry.inputs)
        self.outputs = tuple(TensorInfo(tensor.name, tensor.shape) for tensor in entry.outputs)
        self.device = Device("torch", "CPU", "bf16" if bf16 else "f32")
        self._module, self._bf16 = module, bf16
        formats: dict[int, Any] = {4: torch.channels_last, 5: torch.channels_last_3d} if channels_last else {}
        self._format = formats.get(len(self.inputs[0].shape), torch.contiguous_format)
        module.to(memory_format=self._format)

    def run(self, inputs: Mapping[str, F32]) -> dict[str, F32]:
        """Run the module once."""
        image = torch.from_numpy(inputs[self.inputs[0].name]).to(memory_format=self._format)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            found: torch.Tensor = self._module(image)
        return {self.outputs[0].name: found.float().contiguous().numpy()}

    def close(self) -> None:
        """Nothing to release."""
