"""A whole bundle whose models are the fake backend's: a manifest, real digests, no weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from spine_engine.anatomy import CONDITIONS
from spine_engine.bundle import file_facts, write_manifest
from spine_engine.detection.spec import DetectorSpec
from spine_engine.manifest import (
    SCHEMA,
    DetectorEntry,
    GraderEntry,
    GridEntry,
    Manifest,
    Models,
    TensorEntry,
)
from spine_engine.study import Role


def write_fake_model(path: Path, inputs: TensorEntry, outputs: TensorEntry) -> Path:
    listing = {"inputs": [dataclasses.asdict(inputs)], "outputs": [dataclasses.asdict(outputs)]}
    path.write_text(json.dumps(listing), encoding="utf-8")
    return path


def write_fake_bundle(folder: Path) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    spec = DetectorSpec()
    slices, heatmaps = (
        TensorEntry(name="slices", shape=(None, 1, None, None)),
        TensorEntry(name="heatmaps", shape=(None, spec.channels, None, None)),
    )
    grid = GridEntry(shape=(4, 5, 6), spacing_mm=(8.0, 8.0, 8.0), center_offset_mm=(0.0, 18.0, 0.0))
    image = TensorEntry(name="image", shape=(None, 3, *grid.shape))
    probabilities = TensorEntry(name="probabilities", shape=(None, 5, 3))
    detector = write_fake_model(folder / "detector.onnx", slices, heatmaps)
    grader = write_fake_model(folder / "grader.onnx", image, probabilities)
    manifest = Manifest(
        schema=SCHEMA,
        name="fake",
        version="1.2.0",
        licence="Apache-2.0",
        intended_use="Tests only.",
        training_data=("nothing at all",),
        metrics={"score": 0.5},
        models=Models(
            detector=DetectorEntry(
                **file_facts(detector),
                inputs=(slices,),
                outputs=(heatmaps,),
                decoder="level_heatmaps",
                output_channels=("disc", "body", "row", "column", *spec.bins),
                spec=spec,
            ),
            grader=GraderEntry(
                **file_facts(grader),
                inputs=(image,),
                outputs=(probabilities,),
                precisions=("f32", "bf16"),
                channels=(Role.SAGITTAL_T1, Role.AXIAL_T2, Role.SAGITTAL_T2),
                grid=grid,
                output_channels=tuple(CONDITIONS),
            ),
        ),
    )
    write_manifest(folder, manifest)
    return manifest


@pytest.fixture
def fake_bundle(tmp_path: Path) -> Path:
    write_fake_bundle(tmp_path / "fake")
    return tmp_path / "fake"


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
