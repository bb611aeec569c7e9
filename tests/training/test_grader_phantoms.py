"""Phantoms cut as at run time: what training sees is what the engine makes."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("timm_3d", reason="needs the train extra")
pytest.importorskip("torchio", reason="needs the train extra")

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.errors import UsageError
from spine_engine.phantom import Protocol, draw_spine, render
from spine_engine.study import AXIS_DECIMALS, PLACE_DECIMALS
from spine_engine.voxels import GridPose, GridSpec, voxelize, windowed
from spine_training.grader.grids import (
    BoxJitter,
    cut_levels,
    load_grids,
    make_grids,
    small_rotation,
    strayed,
)
from spine_training.grader.model import WHOLE_STUDY, GraderConfig
from spine_training.grader.phantoms import PhantomSource, level_boxes, one_t2

CONFIG = GraderConfig()
SMALL = Protocol(
    sagittal_matrix=160, axial_matrix=112, axial_slices=3, sagittal_slices=11
)


@pytest.fixture(scope="module")
def phantom():
    return render(draw_spine(3), seed=3, protocol=SMALL)


def cut(phantom):
    spine = phantom.spine
    return cut_levels(
        one_t2(phantom, "t2"),
        level_boxes(spine.disc_center_mm, spine.disc_axes),
        CONFIG,
    )


def test_grids_lie_behind_the_disc_in_the_engines_frame(phantom):
    grids = cut(phantom)
    assert grids.shape == (5, 3, *CONFIG.shape)
    level = 2
    rows = np.round(
        phantom.spine.disc_axes[level], AXIS_DECIMALS
    )  # as results tell places
    center_mm = np.round(phantom.spine.disc_center_mm[level], PLACE_DECIMALS)
    pose = GridPose(center_mm + np.array(CONFIG.offset_mm) @ rows, rows)
    series = {series.name: series for series in phantom.series}
    channels = [
        windowed(series[name].stacks)
        for name in ("sagittal_t1", "axial_t2", "sagittal_t2")
    ]
    by_hand = voxelize(channels, GridSpec(CONFIG.shape, CONFIG.spacing_mm), pose).values
    assert np.array_equal(grids[level], by_hand)


def test_a_mirrored_patient_gives_mirrored_grids(phantom):
    plain, other = (
        cut(phantom),
        cut(render(phantom.spine.mirrored(), seed=3, protocol=SMALL)),
    )
    assert np.abs(other[..., ::-1] - plain).mean() < 0.02
    assert np.abs(other - plain).mean() > 0.02


def test_a_level_that_was_not_found_has_an_empty_grid(phantom):
    boxes = level_boxes(phantom.spine.disc_center_mm, phantom.spine.disc_axes)
    boxes[1] = np.full((4, 3), np.nan)
    grids = cut_levels(one_t2(phantom, "t2"), boxes, CONFIG)
    assert not grids[1].any()
    assert grids[0].any()


def test_grids_are_kept_and_made_once(tmp_path, monkeypatch, phantom):
    monkeypatch.setattr(
        "spine_training.grader.phantoms.render", lambda spine, seed: phantom
    )
    source, jitter = PhantomSource((3,)), BoxJitter(boxes=2)
    with pytest.raises(UsageError, match="study 3 are not in"):
        load_grids(source, CONFIG, jitter, tmp_path)
    assert list(make_grids(source, CONFIG, jitter, tmp_path)) == ["3"]
    assert list(make_grids(source, CONFIG, jitter, tmp_path)) == []
    grids = load_grids(source, CONFIG, jitter, tmp_path)
    assert len(grids) == 1
    assert grids.places.shape == (2 * len(LEVELS), 3)
    assert np.array_equal(grids.narrowing[0], phantom.spine.narrowing)
    assert np.array_equal(grids.grades[0], phantom.spine.grades)
    true, other = grids.box_set(0), grids.box_set(1)
    assert true.shape == (5, 3, *CONFIG.shape)
    assert np.array_equal(grids.grid(0, 0, 4), true[4])
    assert np.abs(other.astype(float) - true).mean() > 0.01
    assert list(make_grids(source, CONFIG, BoxJitter(boxes=1), tmp_path)) == ["3"], (
        "other boxes are other grids"
    )


def test_a_whole_study_is_one_grid_with_25_grades_condition_by_condition(
    tmp_path, monkeypatch, phantom
):
    monkeypatch.setattr(
        "spine_training.grader.phantoms.render", lambda spine, seed: phantom
    )
    source, jitter = PhantomSource((3,)), BoxJitter(boxes=2)
    list(make_grids(source, WHOLE_STUDY, jitter, tmp_path))
    grids = load_grids(source, WHOLE_STUDY, jitter, tmp_path)
    assert grids.box_set(0).shape == (1, 3, *WHOLE_STUDY.shape)
    assert grids.grades.shape == (1, 1, 25)
    canal = CONDITIONS.index("spinal_canal_stenosis")
    assert np.array_equal(
        grids.grades[0, 0, 5 * canal : 5 * canal + 5], phantom.spine.grades[:, canal]
    )
    assert np.array_equal(grids.narrowing[0, 0, 4::5], phantom.spine.narrowing[4])


def test_boxes_stray_within_their_bounds_and_stay_boxes():
    rng = np.random.default_rng(0)
    jitter = BoxJitter(center_mm=3, rotation_deg=6)
    for _ in range(5):
        box = np.concatenate(
            [rng.normal(size=(1, 3)) * 50, small_rotation(rng.normal(size=3))]
        )
        moved = strayed(box, jitter, rng)
        assert 0 < np.abs(moved[0] - box[0]).max() <= 3 * np.sqrt(3)
        assert np.abs(moved[1:] @ moved[1:].T - np.eye(3)).max() < 1e-12
        angle = np.degrees(np.arccos((np.trace(moved[1:].T @ box[1:]) - 1) / 2))
        assert 0 < angle <= 6 * np.sqrt(3) + 1e-9
