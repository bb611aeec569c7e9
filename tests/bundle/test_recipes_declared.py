"""The recipe of a grader's grids in a manifest: a preset's name or the whole object, and what must go with it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from spine_engine.bundle import Bundle
from spine_engine.bundle.manifest import GridEntry, manifest_text, parse_manifest
from spine_engine.errors import BundleError
from spine_engine.study import Role
from spine_engine.voxels import PRESETS, GridRecipe, recipe_named

CHANNELS = ["sagittal_t1", "axial_t2", "sagittal_t2"]


@pytest.fixture
def content(tmp_path: Path, make_bundle) -> dict[str, Any]:
    """A manifest's JSON with all three kinds of models."""
    make_bundle(tmp_path / "all", ("detector", "grader", "whole_study_grader"))
    read: dict[str, Any] = json.loads((tmp_path / "all" / "bundle.json").read_text())
    return read


def made_by(
    content: dict[str, Any], role: str, recipe: str | dict[str, Any], side: int
) -> dict[str, Any]:
    """Give the grader of ``role`` a recipe and all that goes with it; return its entry."""
    entry: dict[str, Any] = content["models"][role]
    entry |= {
        "recipe": recipe,
        "channels": CHANNELS,
        "normalisation": "grid_range",
        "grid": {"shape": [side] * 3, "spacing_mm": [1.0] * 3},
    }
    entry["inputs"][0]["shape"] = [None, 3, side, side, side]
    entry.pop("profile", None)
    return entry


def refusal(content: Any) -> str:
    with pytest.raises(BundleError) as caught:
        parse_manifest(json.dumps(content))
    return str(caught.value)


def written(recipe: GridRecipe) -> dict[str, Any]:
    as_json: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return as_json


def test_an_entry_that_names_no_recipe_is_native(content):
    content["models"]["grader"].pop("recipe", None)
    grader = parse_manifest(json.dumps(content)).models.grader
    assert grader.recipe == "native"
    assert grader.grid_recipe.is_native


def test_the_packaged_bundle_opens_as_native():
    assert Bundle.open().grader.grid_recipe is PRESETS["native"]


def test_a_named_recipe_is_read_and_written(content):
    made_by(content, "grader", "rsna2024-level-128", 128)
    made_by(content, "whole_study_grader", "rsna2024-whole-256", 256)
    manifest = parse_manifest(json.dumps(content))
    assert manifest.models.grader.grid_recipe.of_levels
    assert manifest.models.whole_study_grader.grid_recipe.slice_shape == (256, 256)
    assert parse_manifest(manifest_text(manifest)) == manifest
    assert (
        json.loads(manifest_text(manifest))["models"]["grader"]["recipe"]
        == "rsna2024-level-128"
    )


def test_a_recipe_may_be_written_out(content):
    own = dataclasses.replace(
        PRESETS["rsna2024-whole-256"], name="ours", extra_copies=2, shape=(96, 96, 96)
    )
    made_by(content, "whole_study_grader", written(own), 96)
    manifest = parse_manifest(json.dumps(content))
    assert manifest.models.whole_study_grader.grid_recipe == own
    assert parse_manifest(manifest_text(manifest)) == manifest


def test_a_recipe_that_takes_a_presets_name_is_refused(content):
    own = dataclasses.replace(PRESETS["rsna2024-whole-256"], extra_copies=2)
    made_by(content, "whole_study_grader", written(own), 256)
    assert "is not the preset of that name" in refusal(content)


def test_an_unknown_name_is_refused_with_those_there_are(content):
    made_by(content, "grader", "rsna2025", 128)
    message = refusal(content)
    assert "there is no recipe 'rsna2025'" in message
    assert all(name in message for name in PRESETS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("channels", ["axial_t2", "sagittal_t1", "sagittal_t2"]),
        ("normalisation", "series_window"),
        ("grid", {"shape": [128] * 3, "spacing_mm": [2.0] * 3}),
        (
            "grid",
            {
                "shape": [128] * 3,
                "spacing_mm": [1.0] * 3,
                "center_offset_mm": [0.0, 1.0, 0.0],
            },
        ),
    ],
)
def test_what_a_recipe_implies_cannot_be_said_otherwise(content, key, value):
    made_by(content, "grader", "rsna2024-level-128", 128)[key] = value
    assert f"{key} must be as the recipe 'rsna2024-level-128' implies" in refusal(
        content
    )


def test_a_recipe_of_levels_is_none_for_whole_studies(content):
    made_by(content, "whole_study_grader", "rsna2024-level-128", 128)
    assert "makes grids of one level" in refusal(content)


def test_a_recipe_of_another_version_is_refused(content):
    made_by(
        content, "grader", {**written(PRESETS["rsna2024-level-128"]), "version": 2}, 128
    )
    assert "version is 2" in refusal(content)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sampling": "trilinear"}, "with trilinear sampling"),
        ({"channels": None}, "channels must name"),
        ({"channels": (Role.AXIAL_T2, Role.AXIAL_T2)}, "channels must name"),
        ({"shape": None}, "shape must be"),
        ({"shape": (256, 256, 1)}, "shape must be"),
        ({"slice_shape": (0, 256)}, "slice_shape must be"),
        ({"thickening": "none", "extra_copies": 1}, "extra_copies must be"),
        ({"extra_copies": 17}, "extra_copies must be"),
        ({"box": "frame"}, "box is cloud or vertebrae"),
        ({"box": "vertebrae"}, "margins belong"),
        ({"intensity": "manifest"}, "intensity the recipe's own"),
        ({"voxel_mm": 1.0}, "voxels of voxel_mm are resized"),
        ({"voxel_mm": 1.0, "resize": "trilinear"}, "with the rounding floor"),
        ({"axes": ("left", "right", "up")}, "three different directions"),
        ({"name": ""}, "name must be"),
    ],
)
def test_values_that_do_not_go_together_are_refused(change, why):
    with pytest.raises(ValueError, match=why):
        dataclasses.replace(PRESETS["rsna2024-whole-256"], **change)


def test_presets_do_not_change():
    """Bundles name them: a preset that is made otherwise gets another name."""
    whole = recipe_named("rsna2024-whole-256")
    assert written(whole) == {
        **{
            "name": "rsna2024-whole-256",
            "version": 1,
            "sampling": "scatter-max",
            "channels": CHANNELS,
        },
        **{
            "series": "every-of-kind",
            "drop_zeros": True,
            "slice_shape": [256, 256],
            "thickening": "patient-axis",
        },
        **{
            "extra_copies": 0,
            "axial_crop": "none",
            "box": "cloud",
            "margins": None,
            "voxel_mm": None,
        },
        **{
            "rounding": "half-even",
            "resize": "none",
            "shape": [256] * 3,
            "axes": ["left", "back", "up"],
        },
        **{"float16_values": True, "intensity": "tensor", "float16_grid": True},
    }
    training = {
        "name": "rsna2024-whole-256-training",
        "extra_copies": 1,
        "axial_crop": "sagittal-box",
    }
    assert written(recipe_named("rsna2024-whole-256-training")) == {
        **written(whole),
        **training,
    }
    level = {
        **{"name": "rsna2024-level-128", "slice_shape": None, "box": "vertebrae"},
        **{
            "margins": {"x": 0.25, "front": 0.5, "back": 2.0},
            "voxel_mm": 1.0,
            "rounding": "floor",
        },
        **{"resize": "trilinear", "shape": [128] * 3},
    }
    assert written(recipe_named("rsna2024-level-128")) == {**written(whole), **level}


def test_the_grid_of_native_is_the_manifests():
    with pytest.raises(ValueError, match="leaves the grid to the manifest"):
        GridEntry.of_recipe(PRESETS["native"])


def test_the_grids_of_another_recipe_are_never_laid_out_as_the_engines_own(content):
    made_by(content, "grader", "rsna2024-level-128", 128)
    entry = parse_manifest(json.dumps(content)).models.grader
    with pytest.raises(BundleError, match="cannot be laid out"):
        _ = entry.layout
