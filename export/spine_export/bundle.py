"""Detector and grader -> a bundle that the engine opens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import onnx

from spine_engine.anatomy import CONDITIONS
from spine_engine.bundle import Bundle, file_facts, write_manifest
from spine_engine.detection.spec import DetectorSpec
from spine_engine.manifest import SCHEMA, DetectorEntry, GraderEntry, GridEntry, Manifest, Models, TensorEntry
from spine_engine.study import Role
from spine_training.grader.model import GraderConfig

LICENCE: Final = "Apache-2.0; the detector's weights for research only, as one source of their training data asks"
INTENDED_USE: Final = (
    "Research only; not a medical device. The grades are a demonstration: the grader was trained on synthetic phantoms "
    "and knows nothing of real disease."
)

NOT_FIGURES: Final = frozenset({"training_data", "models", "spec", "config", "precisions"})
"""Keys of a card that hold something else than held-out figures."""


def grader_entry(model: Path, config: GraderConfig, precisions: tuple[str, ...] = ("f32",)) -> GraderEntry:
    """Describe an exported grader for the manifest."""
    return GraderEntry(
        **_model_facts(model, precisions),
        channels=tuple(Role(channel) for channel in config.channels),
        grid=GridEntry(shape=config.shape, spacing_mm=config.spacing_mm, center_offset_mm=config.offset_mm),
        output_channels=tuple(CONDITIONS),
    )


def detector_entry(model: Path, spec: DetectorSpec, precisions: tuple[str, ...] = ("f32",)) -> DetectorEntry:
    """Describe an exported level heat-map detector for the manifest."""
    channels = ("disc", "body", "direction_row", "direction_column", *(f"level_{name}" for name in spec.bins))
    return DetectorEntry(
        **_model_facts(model, precisions), decoder="level_heatmaps", output_channels=channels, spec=spec
    )


def write_bundle(
    detector_onnx: Path,
    detector_card: Path,
    grader_onnx: Path,
    grader_card: Path,
    out: Path,
    *,
    name: str,
    version: str,
) -> Bundle:
    """Copy two models into ``out`` as a bundle with what their cards say, and open it to prove it.

    A card is a JSON object: ``training_data`` (sentences with sources and licences); ``metrics`` and any other objects
    with held-out figures, nested as one likes, whose numbers are kept under dotted names and whose texts (``what``) say
    how they were measured; ``precisions`` (those that passed parity; f32 where not said); and the detector's ``spec``
    (the default where not said) or the grader's ``config``.

    Raises:
        BundleError: the engine would not accept what was written.
        ValueError: a card lacks a key or holds a wrong value.
    """
    detector, grader = _card(detector_card), _card(grader_card)
    out.mkdir(parents=True, exist_ok=True)
    files = {"detector": out / "detector.onnx", "grader": out / "grader.onnx"}
    shutil.copyfile(detector_onnx, files["detector"])
    shutil.copyfile(grader_onnx, files["grader"])
    config = GraderConfig.from_dict(grader["config"])
    figures: dict[str, float | str] = {}
    for role, card in (("detector", detector), ("grader", grader)):
        held_out = _leaves({key: value for key, value in card.items() if key not in NOT_FIGURES})
        figures |= {f"{role}.{key.removeprefix('metrics.')}": value for key, value in held_out.items()}
    manifest = Manifest(
        schema=SCHEMA,
        name=name,
        version=version,
        licence=LICENCE,
        intended_use=INTENDED_USE,
        training_data=(
            *detector["training_data"],
            *grader["training_data"],
            *(f"{key}: {text}" for key, text in figures.items() if isinstance(text, str)),
        ),
        metrics={key: float(value) for key, value in figures.items() if not isinstance(value, str)},
        models=Models(
            detector=detector_entry(files["detector"], _detector_spec(detector), _precisions(detector)),
            grader=grader_entry(files["grader"], config, _precisions(grader)),
        ),
    )
    write_manifest(out, manifest)
    return Bundle.open(out)


def write_grader_card(
    path: Path,
    config: GraderConfig,
    metrics: dict[str, float],
    training_data: Sequence[str],
    precisions: Sequence[str] = ("f32",),
) -> None:
    """Write what ``write_bundle`` wants to know of a grader."""
    content = {
        "config": asdict(config),
        "metrics": metrics,
        "training_data": list(training_data),
        "precisions": list(precisions),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _card(path: Path) -> dict[str, Any]:
    """Read a card; a whole manifest entry under ``models`` may stand for ``spec`` and ``precisions``."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not content.get("training_data"):
        raise ValueError(f"{path.name} lacks training_data: a card says what its model was trained on")
    entry = content.get("models", {}).get("detector", {})
    return {**{key: entry[key] for key in ("spec", "precisions") if key in entry}, **content}


def _precisions(card: dict[str, Any]) -> tuple[str, ...]:
    return tuple(card.get("precisions", ["f32"]))


def _detector_spec(card: dict[str, Any]) -> DetectorSpec:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in card.get("spec", {}).items()}
    return DetectorSpec(**fields)


def _leaves(values: dict[str, Any]) -> dict[str, float | str]:
    """Return the numbers and texts of nested objects by dotted names; a text keeps the name of its object."""
    found: dict[str, float | str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found.update({f"{key}.{name}".removesuffix(".what"): leaf for name, leaf in _leaves(value).items()})
        elif isinstance(value, (int, float, str)):
            found[key] = value
    return found


def _model_facts(path: Path, precisions: tuple[str, ...]) -> dict[str, Any]:
    graph = onnx.load(path, load_external_data=False).graph
    initial = {tensor.name for tensor in graph.initializer}
    inputs = tuple(_tensor(value) for value in graph.input if value.name not in initial)
    outputs = tuple(_tensor(value) for value in graph.output)
    return {**file_facts(path), "inputs": inputs, "outputs": outputs, "precisions": precisions}


def _tensor(value: onnx.ValueInfoProto) -> TensorEntry:
    sizes = value.type.tensor_type.shape.dim
    return TensorEntry(
        name=value.name, shape=tuple(size.dim_value if size.HasField("dim_value") else None for size in sizes)
    )
