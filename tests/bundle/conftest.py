"""A whole bundle whose models are the fake backend's: a manifest, real digests, no weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.bundle import file_facts, write_manifest
from spine_engine.bundle.manifest import (
    SCHEMA,
    DetectorEntry,
    GraderEntry,
    GridEntry,
    Manifest,
    ModelEntry,
    Models,
    TensorEntry,
)
from spine_engine.detection.spec import DetectorSpec
from spine_engine.study import Role


def write_fake_model(path: Path, inputs: TensorEntry, outputs: TensorEntry) -> Path:
    listing = {
        "inputs": [dataclasses.asdict(inputs)],
        "outputs": [dataclasses.asdict(outputs)],
    }
    path.write_text(json.dumps(listing), encoding="utf-8")
    return path


def write_fake_bundle(
    folder: Path,
    roles: Sequence[str] = ("detector", "grader"),
    *,
    heads: Sequence[str] | None = None,
) -> Manifest:
    """Write a bundle of the models named; ``heads`` are the whole-study grader's outputs, by default in order."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = DetectorSpec()
    slices, heatmaps = (
        TensorEntry(name="slices", shape=(None, 1, None, None)),
        TensorEntry(name="heatmaps", shape=(None, spec.channels, None, None)),
    )
    grid = GridEntry(
        shape=(4, 5, 6), spacing_mm=(8.0, 8.0, 8.0), center_offset_mm=(0.0, 18.0, 0.0)
    )
    image = TensorEntry(name="image", shape=(None, 3, *grid.shape))
    probabilities = TensorEntry(name="probabilities", shape=(None, 5, 3))
    detector = write_fake_model(folder / "detector.onnx", slices, heatmaps)
    grader = write_fake_model(folder / "grader.onnx", image, probabilities)
    both = tuple(
        heads
        or (f"{condition}_{level}" for condition in CONDITIONS for level in LEVELS)
    )
    wide = GridEntry(shape=(8, 6, 4), spacing_mm=(30.0, 30.0, 30.0))
    all_of_it, all_grades = (
        TensorEntry(name="image", shape=(1, 3, *wide.shape)),
        TensorEntry(name="probabilities", shape=(1, 25, 3)),
    )
    whole = write_fake_model(folder / "whole.onnx", all_of_it, all_grades)
    channels = (Role.SAGITTAL_T1, Role.AXIAL_T2, Role.SAGITTAL_T2)
    entries: dict[str, Callable[[], ModelEntry]] = {
        "detector": lambda: DetectorEntry(
            **file_facts(detector),
            inputs=(slices,),
            outputs=(heatmaps,),
            decoder="level_heatmaps",
            output_channels=("disc", "body", "row", "column", *spec.bins),
            spec=spec,
        ),
        "grader": lambda: GraderEntry(
            **file_facts(grader),
            inputs=(image,),
            outputs=(probabilities,),
            precisions=("f32", "bf16"),
            channels=channels,
            grid=grid,
            output_channels=tuple(CONDITIONS),
        ),
        "whole_study_grader": lambda: GraderEntry(
            **file_facts(whole),
            inputs=(all_of_it,),
            outputs=(all_grades,),
            channels=channels,
            grid=wide,
            output_channels=both,
        ),
    }
    manifest = Manifest(
        schema=SCHEMA,
        name="fake",
        version="1.2.0",
        licence="Apache-2.0",
        intended_use="Tests only.",
        training_data=("nothing at all",),
        metrics={"score": 0.5},
        models=Models(**{role: entries[role]() for role in roles}),
    )
    write_manifest(folder, manifest)
    return manifest


@pytest.fixture
def make_bundle() -> Callable[..., Manifest]:
    return write_fake_bundle


@pytest.fixture
def fake_bundle(tmp_path: Path) -> Path:
    write_fake_bundle(tmp_path / "fake")
    return tmp_path / "fake"


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
