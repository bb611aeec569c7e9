"""Models to export: the PyTorch module of a checkpoint, its interface, and its entry in a manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import onnx
from torch import nn

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.backends import Profile
from spine_engine.bundle import file_facts
from spine_engine.bundle.manifest import (
    Calibration,
    DetectorEntry,
    GraderEntry,
    GridEntry,
    ModelEntry,
    TensorEntry,
)
from spine_engine.detection.detect import BATCH
from spine_engine.detection.spec import DetectorSpec
from spine_engine.errors import UsageError
from spine_engine.study import Role
from spine_export.onnx import (
    DETECTOR,
    SPINENET_FACES,
    Face,
    Width,
    export_module,
    folded,
    grader_face,
)
from spine_export.pipelines import open_grader
from spine_export.sources import PipelineConfig
from spine_training.checkpoints import Averaging
from spine_training.detector.model import Deployed, load_detector
from spine_training.grader.model import GraderConfig, MirrorAveraged
from spine_training.spinenet import SpineNetKind, load_spinenet

USUAL_SLICE: Final = (160, 160)
"""Pixels of a 2 mm canvas for the 280 to 320 mm of the usual sagittal field of view."""

LONGEST_COLUMN: Final = 1024
"""Rows of a millimetre: a whole spine, in multiples of 256."""

LARGEST_BATCH: Final = 16
"""Grids that a runtime with shape-specialised engines is prepared for in one call."""


@dataclass(frozen=True)
class Part:
    """One model to export: its PyTorch module, its interface, and the function that describes its file."""

    module: nn.Module
    face: Face
    describe: Callable[[Path], ModelEntry]

    def export(self, path: Path, precision: Width = "f32") -> Path:
        """Write it as ONNX and check the file; ``UsageError`` when a weight is too large for ``precision``."""
        return export_module(
            self.module,
            path,
            self.face,
            precision=precision,
        )


def detector_part(checkpoint: Path) -> Part:
    """Return a level heat-map detector from a checkpoint of ``train``; ``UsageError`` when it is none."""
    module = Deployed(folded(load_detector(checkpoint)))
    return Part(
        module,
        DETECTOR,
        partial(detector_entry, spec=DetectorSpec()),
    )


def spinenet_part(checkpoint: Path, kind: SpineNetKind) -> Part:
    """Return one of SpineNet's networks from its checkpoint; ``UsageError`` when it is another's."""
    return Part(
        load_spinenet(checkpoint, kind),
        SPINENET_FACES[kind],
        partial(spinenet_entry, kind=kind),
    )


def grader_part(
    checkpoint: Path,
    described: PipelineConfig | None = None,
    calibration: Calibration | None = None,
    *,
    role: str | None = None,
    weights: Averaging | None = None,
) -> Part:
    """Return a grader: ours, averaged with its mirror image, or that of an older pipeline as it is.

    Args:
        checkpoint: checkpoint of ``train``, or a file of weights alone.
        described: facts that such a file lacks; None for ours.
        calibration: for its manifest entry.
        weights: which weights of such a file that has averaged and plain ones; averaged ones if not given.
        role: ``grader`` or ``whole_study_grader``, where it must be that kind.

    Raises:
        UsageError: the file is no such grader.
    """
    grader = open_grader(checkpoint, described, weights)
    kind = "grader" if grader.config.task == "level" else "whole_study_grader"
    if role not in (None, kind):
        raise UsageError(
            f"{checkpoint} is a {kind}, not a {role}; swap --grader and --whole-study"
        )
    facts: dict[str, Any] = {"calibration": calibration}
    if described is not None:
        facts["normalisation"] = described.normalisation
        facts["recipe"] = described.recipe
    module = MirrorAveraged(grader) if described is None else grader
    return Part(
        module,
        grader_face(grader),
        partial(
            grader_entry,
            config=grader.config,
            **facts,
        ),
    )


def grader_entry(model: Path, config: GraderConfig, **facts: Any) -> GraderEntry:
    """Describe an exported grader of either kind for the manifest; ``facts`` are further fields of the entry."""
    both = tuple(f"{condition}_{level}" for condition in CONDITIONS for level in LEVELS)
    grid = (len(config.channels), *config.shape)
    usual = len(LEVELS) if config.task == "level" else 1
    profile = Profile(
        smallest=(1, *grid),
        usual=(usual, *grid),
        largest=(LARGEST_BATCH, *grid),
        batches=tuple(sorted({1, usual})),
    )
    return GraderEntry(
        **_model_facts(model),
        channels=tuple(Role(channel) for channel in config.channels),
        grid=GridEntry(
            shape=config.shape,
            spacing_mm=config.spacing_mm,
            center_offset_mm=config.offset_mm,
        ),
        output_channels=tuple(CONDITIONS) if config.task == "level" else both,
        profile=profile,
        **facts,
    )


def detector_entry(model: Path, spec: DetectorSpec) -> DetectorEntry:
    """Describe an exported level heat-map detector for the manifest."""
    channels = (
        "disc",
        "body",
        "direction_row",
        "direction_column",
        *(f"level_{name}" for name in spec.bins),
    )
    side, widest = spec.multiple, int(spec.max_extent_mm / spec.pixel_mm)
    profile = Profile(
        smallest=(1, 1, side, side),
        usual=(BATCH, 1, *USUAL_SLICE),
        largest=(LARGEST_BATCH, 1, widest, widest),
        batches=(1, BATCH - 1, BATCH, BATCH + 1),
    )
    facts = _model_facts(model)
    return DetectorEntry(
        **facts,
        decoder="level_heatmaps",
        output_channels=channels,
        spec=spec,
        profile=profile,
    )


def spinenet_entry(model: Path, kind: SpineNetKind) -> ModelEntry:
    """Describe one of SpineNet's exported networks for the manifest."""
    facts = _model_facts(model)
    item = SPINENET_FACES[kind].example[1:]
    longest = (item[0], LONGEST_COLUMN, item[2]) if kind == "context" else item
    facts["profile"] = Profile(
        smallest=(1, *item),
        usual=(1, *item),
        largest=(LARGEST_BATCH, *longest),
        batches=(1,),
    )
    if kind != "vfr":
        return ModelEntry(**facts)
    corners = ("right_top", "right_bottom", "left_bottom", "left_top")
    channels = (
        *corners,
        "centroid",
        *(f"{axis}_{corner}" for axis in "xy" for corner in corners),
    )
    return DetectorEntry(
        **facts,
        decoder="vfr",
        output_channels=channels,
    )


def _model_facts(path: Path) -> dict[str, Any]:
    graph = onnx.load(path, load_external_data=False).graph
    initial = {tensor.name for tensor in graph.initializer}
    inputs = tuple(_tensor(value) for value in graph.input if value.name not in initial)
    outputs = tuple(_tensor(value) for value in graph.output)
    return {
        **file_facts(path),
        "inputs": inputs,
        "outputs": outputs,
    }


def _tensor(value: onnx.ValueInfoProto) -> TensorEntry:
    sizes = value.type.tensor_type.shape.dim
    return TensorEntry(
        name=value.name,
        shape=tuple(
            size.dim_value if size.HasField("dim_value") else None for size in sizes
        ),
    )
