"""Trained checkpoints -> a bundle that the engine opens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import onnx

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.bundle import Bundle, file_facts, write_manifest
from spine_engine.detection.spec import DetectorSpec
from spine_engine.errors import UsageError
from spine_engine.manifest import (
    SCHEMA,
    Calibration,
    DetectorEntry,
    GraderEntry,
    GridEntry,
    Manifest,
    Models,
    TensorEntry,
)
from spine_engine.study import Role
from spine_export.onnx import export_detector, export_grader
from spine_export.parity import DetectorParity, Parity, detector_precisions, reduced_precisions
from spine_export.samples import phantom_grids, phantom_series
from spine_training.fit import read_checkpoint
from spine_training.grader.model import GraderConfig

LICENCE: Final = "not stated: the weights belong to whoever trained them"
INTENDED_USE: Final = "Research only; not a medical device."


@dataclass(frozen=True, kw_only=True)
class Card:
    """What only people can say of a bundle's models; the rest is read from the checkpoints.

    Attributes:
        licence, intended_use: of the bundle.
        training_data: a sentence each: what was trained on, from where, under which licence; what was held out.
        metrics: held-out figures by dotted name.
    """

    licence: str = LICENCE
    intended_use: str = INTENDED_USE
    training_data: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Card:
        """Read a card from JSON; its objects may nest, and their numbers are kept under dotted names.

        Raises:
            UsageError: it cannot be read, or holds a key that no card has.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            metrics = _numbers(content.pop("metrics", {}))
            return cls(**{**content, "training_data": tuple(content.get("training_data", ()))}, metrics=metrics)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            wanted = "licence, intended_use, training_data and metrics"
            raise UsageError(f"cannot read the card {path}: {error}; want a JSON object of {wanted}") from None


def write_bundle(
    out: Path,
    *,
    name: str,
    version: str,
    detector: Path | None = None,
    grader: Path | None = None,
    whole_study: Path | None = None,
    calibration: Calibration | None = None,
    card: Card | None = None,
    say: Any = print,
) -> Bundle:
    """Export checkpoints into ``out``, find the precisions they may run in, and open the bundle to prove it.

    Args:
        out: the bundle's folder; its files are replaced.
        name, version: of the bundle.
        detector, grader, whole_study: checkpoints of ``train``; ``grader`` needs ``detector``.
        calibration: of the level grader's probabilities.
        card: what the checkpoints cannot say.
        say: takes a line about each model.

    Raises:
        BundleError: the engine would not accept what was written.
        UsageError: a file is no such checkpoint, or the models make no bundle.
    """
    if grader is None and whole_study is None:
        raise UsageError("a bundle needs a grader, a whole-study grader or both; give --grader or --whole-study")
    if (grader is None) != (detector is None):
        raise UsageError("a level grader and a detector need each other; give both --detector and --grader")
    card = card or Card()
    out.mkdir(parents=True, exist_ok=True)
    checkpoints = {"detector": detector, "grader": grader, "whole_study_grader": whole_study}
    given = {role: path for role, path in checkpoints.items() if path is not None}
    entries: dict[str, Any] = {}
    for role, path in given.items():
        file = out / f"{role}.onnx"
        entry, found = _detector(path, file) if role == "detector" else _grader(path, file, role, calibration)
        entries[role] = entry
        tried = ", ".join(f"{p} {'passed' if parity.passed else 'refused'} ({parity})" for p, parity in found.items())
        say(f"{file}: {file.stat().st_size / 1e6:.1f} MB; f32{', ' if tried else ''}{tried}")
    trained = [f"{role}: {data}" for role, path in given.items() if (data := _data_of(path))]
    measured = {f"{role}.{key}": value for role, path in given.items() for key, value in _figures_of(path).items()}
    manifest = Manifest(
        schema=SCHEMA,
        name=name,
        version=version,
        licence=card.licence,
        intended_use=card.intended_use,
        training_data=(*card.training_data, *(() if card.training_data else trained)),
        metrics=card.metrics or measured,
        models=Models(**entries),
    )
    write_manifest(out, manifest)
    for stale in {path.name for path in out.glob("*.onnx")} - {f"{role}.onnx" for role in given}:
        (out / stale).unlink()
    return Bundle.open(out)


def grader_entry(
    model: Path, config: GraderConfig, precisions: Sequence[str] = ("f32",), calibration: Calibration | None = None
) -> GraderEntry:
    """Describe an exported grader of either kind for the manifest."""
    both = tuple(f"{condition}_{level}" for condition in CONDITIONS for level in LEVELS)
    return GraderEntry(
        **_model_facts(model, precisions),
        channels=tuple(Role(channel) for channel in config.channels),
        grid=GridEntry(shape=config.shape, spacing_mm=config.spacing_mm, center_offset_mm=config.offset_mm),
        output_channels=tuple(CONDITIONS) if config.task == "level" else both,
        calibration=calibration,
    )


def detector_entry(model: Path, spec: DetectorSpec, precisions: Sequence[str] = ("f32",)) -> DetectorEntry:
    """Describe an exported level heat-map detector for the manifest."""
    channels = ("disc", "body", "direction_row", "direction_column", *(f"level_{name}" for name in spec.bins))
    return DetectorEntry(
        **_model_facts(model, precisions), decoder="level_heatmaps", output_channels=channels, spec=spec
    )


def _detector(checkpoint: Path, file: Path) -> tuple[DetectorEntry, dict[str, Any]]:
    export_detector(checkpoint, file)
    spec = DetectorSpec()
    found: dict[Any, DetectorParity] = dict(detector_precisions(file.read_bytes(), spec, phantom_series()))
    return detector_entry(file, spec, _passed(found)), found


def _grader(
    checkpoint: Path, file: Path, role: str, calibration: Calibration | None
) -> tuple[GraderEntry, dict[str, Any]]:
    config = export_grader(checkpoint, file).grader.config
    if (config.task == "level") != (role == "grader"):
        raise UsageError(f"{checkpoint} is a {config.task} grader, not a {role}; swap --grader and --whole-study")
    found: dict[Any, Parity] = dict(reduced_precisions(file.read_bytes(), phantom_grids(config)))
    return grader_entry(file, config, _passed(found), calibration if role == "grader" else None), found


def _passed(found: dict[Any, Any]) -> tuple[str, ...]:
    return ("f32", *(str(precision) for precision, parity in found.items() if parity.passed))


def _data_of(checkpoint: Path) -> str:
    return str(read_checkpoint(checkpoint).get("settings", {}).get("data", ""))


def _figures_of(checkpoint: Path) -> dict[str, float]:
    """Return the last epoch's figures on what was held out."""
    history = read_checkpoint(checkpoint).get("history", [])
    kept = ("metric", "prior", "best")
    return {key: round(float(history[-1][key]), 4) for key in kept if history and key in history[-1]}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of nested objects by dotted names."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found.update({f"{key}.{name}": number for name, number in _numbers(value).items()})
        else:
            found[key] = float(value)
    return found


def _model_facts(path: Path, precisions: Sequence[str]) -> dict[str, Any]:
    graph = onnx.load(path, load_external_data=False).graph
    initial = {tensor.name for tensor in graph.initializer}
    inputs = tuple(_tensor(value) for value in graph.input if value.name not in initial)
    outputs = tuple(_tensor(value) for value in graph.output)
    return {**file_facts(path), "inputs": inputs, "outputs": outputs, "precisions": tuple(precisions)}


def _tensor(value: onnx.ValueInfoProto) -> TensorEntry:
    sizes = value.type.tensor_type.shape.dim
    return TensorEntry(
        name=value.name, shape=tuple(size.dim_value if size.HasField("dim_value") else None for size in sizes)
    )
