"""The oriented bounding box of the sagittal points, and the recipe whose axial points it crops."""

import dataclasses

import numpy as np
import pytest
import recipe_plainly as plain
from test_recipe_grids import SMALL, as_plain, random_study

from spine_engine.dicom import read_study
from spine_engine.study import Role, Study
from spine_engine.voxels import recipe_kernels as kernels
from spine_engine.voxels import recipe_named
from spine_engine.voxels.oriented_box import hull_corners, oriented_box
from spine_engine.voxels.recipe_grids import study_points, whole_grid

TRAINING = recipe_named("rsna2024-whole-256-training")


@pytest.mark.parametrize("seed", range(5))
def test_the_corners_of_a_hull_are_scipys(seed):
    spatial = pytest.importorskip("scipy.spatial")
    rng = np.random.default_rng(seed)
    ball = rng.normal(size=(400, 3)) * rng.uniform(1, 100, 3)
    prism = rng.uniform(-50, 50, (200, 3)) * [1, 1, 0] + np.where(
        rng.random((200, 1)) < 0.5, 0, 30
    ) * [0, 0, 1]
    for points in (ball, prism):
        assert hull_corners(points).tolist() == sorted(
            spatial.ConvexHull(points).vertices
        )


@pytest.mark.parametrize("seed", range(5))
def test_the_outline_of_a_slice_holds_the_corners_of_its_hull(seed):
    spatial = pytest.importorskip("scipy.spatial")
    rng = np.random.default_rng(seed)
    runs = np.sort(rng.integers(0, 60, (40, 2)), axis=1).astype(np.int32)
    points = np.array(
        [
            (m, n)
            for m, (first, last) in enumerate(runs.tolist())
            for n in range(first, last)
        ]
    )
    corners = {tuple(corner) for corner in kernels.outline(runs).tolist()}
    assert corners == {
        tuple(corner) for corner in points[spatial.ConvexHull(points).vertices].tolist()
    }


def test_a_slice_without_points_has_no_outline():
    assert kernels.outline(np.zeros((5, 2), np.int32)).shape == (0, 2)


def test_points_in_a_plane_have_no_box():
    flat = np.random.default_rng(0).uniform(0, 9, (50, 3)) * [1, 1, 0]
    assert oriented_box(flat) is None
    assert oriented_box(flat[:3]) is None
    assert oriented_box(np.empty((0, 3))) is None


def cropped(study, side, slice_side):
    """Return the unscaled grid of the training code, its box by the reference's own means: SciPy's hull, PCA."""
    spatial = pytest.importorskip("scipy.spatial")
    clouds = plain.cloud(
        as_plain(study), resize=lambda image: plain.area_mean(image, slice_side), more=1
    )
    sagittal = np.concatenate([clouds[0][0], clouds[2][0]])
    corners = sagittal[spatial.ConvexHull(sagittal).vertices]
    _, axes = np.linalg.eigh(np.cov(corners.T))
    low, high = (corners @ axes).min(axis=0), (corners @ axes).max(axis=0)
    places, values = clouds[1]
    inside = ((places @ axes >= low) & (places @ axes <= high)).all(axis=1)
    assert 0.05 < inside.mean() < 0.95
    clouds[1] = (places[inside], values[inside])
    return plain.whole_values(clouds, side)


def test_axial_points_outside_the_sagittal_box_are_dropped():
    study = random_study(21)
    wanted = plain.scaled(cropped(study, 64, 32))
    recipe = dataclasses.replace(SMALL, extra_copies=1, axial_crop="sagittal-box")
    grid = whole_grid(study_points(study, recipe))
    assert (grid != wanted).mean() < 1e-4


def test_without_sagittal_points_nothing_is_dropped():
    study = random_study(22)
    axial = Study(
        "s", tuple(series for series in study.series if series.kind is Role.AXIAL_T2)
    )
    recipe = dataclasses.replace(SMALL, extra_copies=1)
    with_crop = dataclasses.replace(recipe, axial_crop="sagittal-box")
    np.testing.assert_array_equal(
        whole_grid(study_points(axial, with_crop)),
        whole_grid(study_points(axial, recipe)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VB2-02", "VB3-21"])
def test_the_training_grid_of_real_studies_is_open3ds(real_data, name):
    """At most 1 % of the voxels differ."""
    open3d = pytest.importorskip("open3d")
    study = read_study(real_data / "studies" / name)
    clouds = plain.cloud(
        as_plain(study), resize=lambda image: plain.area_mean(image, 256), more=1
    )
    sagittal = np.concatenate([clouds[0][0], clouds[2][0]])
    box = open3d.geometry.PointCloud(
        open3d.utility.Vector3dVector(sagittal)
    ).get_oriented_bounding_box()
    places, values = clouds[1]
    kept = box.get_point_indices_within_bounding_box(
        open3d.utility.Vector3dVector(places)
    )
    clouds[1] = (places[kept], values[kept])
    grid = whole_grid(study_points(study, TRAINING))
    assert (grid != plain.scaled(plain.whole_values(clouds))).mean() < 0.01
