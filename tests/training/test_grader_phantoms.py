"""One phantom cut as at run time: what training sees is what the engine makes."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("timm_3d", reason="needs the train extra")

from spine_engine.anatomy import CONDITIONS
from spine_engine.phantom import Protocol, draw_spine, render
from spine_engine.voxels import GridPose, GridSpec, voxelize, windowed
from spine_training.grader.data import BoxJitter, cut_grids, load_crops, make_crops
from spine_training.grader.model import GraderConfig

CONFIG = GraderConfig()
SMALL = Protocol(sagittal_matrix=160, axial_matrix=112, axial_slices=3, sagittal_slices=11)


@pytest.fixture(scope="module")
def study():
    return render(draw_spine(3), seed=3, protocol=SMALL)


def test_grids_lie_behind_the_disc_in_the_engines_frame(study):
    grids = cut_grids(study, study.spine.disc_center_mm, study.spine.disc_axes, CONFIG)
    assert grids.shape == (5, 3, *CONFIG.shape)
    level = 2
    rows = study.spine.disc_axes[level]
    pose = GridPose(study.spine.disc_center_mm[level] + np.array(CONFIG.offset_mm) @ rows, rows)
    series = {series.name: series for series in study.series}
    channels = [windowed(series[name].stacks) for name in ("sagittal_t1", "axial_t2", "sagittal_t2")]
    by_hand = voxelize(channels, GridSpec(CONFIG.shape, CONFIG.spacing_mm), pose).values
    assert np.array_equal(grids[level], by_hand)


def test_a_mirrored_patient_gives_mirrored_grids(study):
    mirrored = render(study.spine.mirrored(), seed=3, protocol=SMALL)
    plain = cut_grids(study, study.spine.disc_center_mm, study.spine.disc_axes, CONFIG)
    other = cut_grids(mirrored, mirrored.spine.disc_center_mm, mirrored.spine.disc_axes, CONFIG)
    assert np.abs(other[..., ::-1] - plain).mean() < 0.02
    assert np.abs(other - plain).mean() > 0.02


def test_crops_are_kept_and_made_once(tmp_path, monkeypatch, study):
    monkeypatch.setattr("spine_training.grader.data.render", lambda spine, seed: study)
    jitter = BoxJitter(boxes=2)
    assert list(make_crops([3], CONFIG, jitter, tmp_path)) == [3]
    assert list(make_crops([3], CONFIG, jitter, tmp_path)) == []
    crops = load_crops(tmp_path, [3])
    assert crops.grids.shape == (10, 3, *CONFIG.shape)
    assert np.array_equal(crops.narrowing[:5], study.spine.narrowing)
    assert np.array_equal(crops.grades[5:], study.spine.grades)
    assert crops.grades.shape == (10, len(CONDITIONS))
    true = load_crops(tmp_path, [3], slice(1))
    assert np.array_equal(true.grids, crops.grids[:5])
    assert np.abs(crops.grids[5:].astype(float) - true.grids).mean() > 0.01
