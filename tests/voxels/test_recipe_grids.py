"""Grids of recipes: equal to the slow reference in every voxel, before scaling and after."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import recipe_plainly as plain

from spine_engine.detection import Detection
from spine_engine.dicom import read_study
from spine_engine.errors import StudyError
from spine_engine.phantom.samples import phantom_samples
from spine_engine.pipeline.centers import detected_centers
from spine_engine.study import Role, Series, StoredSlice, Study
from spine_engine.voxels import recipe_named
from spine_engine.voxels.recipe import Margins
from spine_engine.voxels.recipe_grids import (
    level_box,
    level_grid,
    study_points,
    whole_grid,
)

WHOLE = recipe_named("rsna2024-whole-256")
LEVEL = recipe_named("rsna2024-level-128")
KINDS = (Role.SAGITTAL_T1, Role.AXIAL_T2, Role.SAGITTAL_T2)
SAGITTAL = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0]])
AXIAL = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def turned(axes, rng, degrees):
    """Return axes turned a little about each patient axis."""
    a, b, c = np.deg2rad(rng.uniform(-degrees, degrees, 3))
    x = np.array(
        [[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]]
    )
    y = np.array(
        [[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]]
    )
    z = np.array(
        [[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]]
    )
    return axes @ (z @ y @ x).T


def slices(rng, axes, *, count, shape, spacing, thickness, signed=False, largest=3000):
    """Return stored slices of noise with dark borders, behind each other along their normal."""
    normal = np.cross(*axes)
    middle = axes[0] * spacing[1] * shape[1] / 2 + axes[1] * spacing[0] * shape[0] / 2
    stored = []
    for n in range(count):
        values = rng.integers(-largest if signed else 0, largest, shape).astype(
            np.int16 if signed else np.uint16
        )
        values[rng.random(shape) < 0.3] = 0
        values[:, : int(rng.integers(0, 5))] = 0
        position = normal * 4.4 * (n - count / 2) - middle
        stored.append(
            StoredSlice(
                values, None, tuple(position), tuple(axes.ravel()), spacing, thickness
            )
        )
    return stored


def random_study(
    seed,
    *,
    degrees=8.0,
    signed=False,
    largest=3000,
    thickness=(4.0, 3.0, 4.99),
    oblong=False,
):
    rng = np.random.default_rng(seed)
    same = (1.5, 1.5)
    series = []
    for kind, axes, thick in zip(
        KINDS, (SAGITTAL, AXIAL, SAGITTAL), thickness, strict=True
    ):
        made = slices(
            rng,
            turned(axes, rng, degrees),
            count=4,
            shape=(int(rng.integers(40, 90)), int(rng.integers(40, 90))),
            spacing=(1.4, 1.8) if oblong else same,
            thickness=thick,
            signed=signed,
            largest=largest,
        )
        series.append(
            Series(str(kind), kind, "", (), len(made), kind=kind, stored=tuple(made))
        )
    return Study("s", tuple(series))


def as_plain(study):
    """Return the slices of each channel as the reference takes them."""
    return [
        [
            {
                "values": one.stored,
                "position": one.position_mm,
                "orientation": one.orientation,
                "spacing": one.spacing_mm,
                "thickness": one.thickness_mm,
            }
            for series in study.series
            if series.kind is kind
            for one in series.stored
        ]
        for kind in KINDS
    ]


def centers(study):
    """Return six places from the top of a study's sagittal points to their bottom."""
    places = np.concatenate([places for places, _ in plain.cloud(as_plain(study))[::2]])
    low, high = places.min(axis=0), places.max(axis=0)
    heights = np.linspace(
        high[2] - 0.15 * (high[2] - low[2]), low[2] + 0.15 * (high[2] - low[2]), 6
    )
    middle = (low + high) / 2
    return [
        np.array([middle[0] + n, middle[1] - 5 + 2.5 * n, z])
        for n, z in enumerate(heights)
    ]


SMALL = dataclasses.replace(
    WHOLE, name="small", shape=(64, 64, 64), slice_shape=(32, 32)
)
VARIANTS = {
    "oblique": {},
    "straight": {"degrees": 0.0},
    "oblong pixels": {"oblong": True},
    "signed": {"signed": True},
    "beyond 2048": {"largest": 60000},
    "no thickness": {"thickness": (None, 3.0, 4.0)},
    "thinner than 1 mm": {"thickness": (0.9, 3.0, 4.0)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_grid_of_a_whole_study_is_the_references(variant):
    study = random_study(1, **VARIANTS[variant])
    clouds = plain.cloud(
        as_plain(study), resize=lambda image: plain.area_mean(image, 32)
    )
    wanted = plain.whole_values(clouds, 64)
    grid = whole_grid(study_points(study, SMALL))
    np.testing.assert_array_equal(grid, plain.scaled(wanted))
    assert len(np.unique(grid)) > 50


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_grid_of_a_level_is_the_references(variant):
    study = random_study(2, **VARIANTS[variant])
    clouds = plain.cloud(as_plain(study))
    above, below = centers(study)[2:4]
    wanted = plain.level_values(clouds, above, below)
    grid = level_grid(study_points(study, LEVEL), above, below)
    np.testing.assert_array_equal(grid, plain.scaled(wanted))
    assert len(np.unique(grid)) > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AKs", "VB1-16", "VB2-02", "VB2-14", "VB3-21"])
def test_grids_of_real_studies_are_the_references(real_data, name):
    study = read_study(real_data / "studies" / name)
    compare_all(study, centers(study))


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_grids_of_phantoms_are_the_references(number):
    (sample,) = phantom_samples(1, start=number)
    places = detected_centers(Detection(sample.levels, (), ()), named=False).places_mm
    compare_all(sample.study, list(places))


def compare_all(study, places):
    """Compare the grid of a study, and those of its levels between six places, with the reference's."""
    given = as_plain(study)
    clouds = plain.cloud(given, resize=lambda image: plain.area_mean(image, 256))
    grid = whole_grid(study_points(study, WHOLE))
    np.testing.assert_array_equal(grid, plain.scaled(plain.whole_values(clouds)))
    points, clouds = study_points(study, LEVEL), plain.cloud(given)
    for above, below in pairwise(places):
        wanted = plain.scaled(plain.level_values(clouds, above, below))
        np.testing.assert_array_equal(level_grid(points, above, below), wanted)


def test_the_order_of_files_changes_nothing():
    study = random_study(3)
    other = Study(
        "s",
        tuple(
            dataclasses.replace(s, stored=s.stored[::-1])
            for s in reversed(study.series)
        ),
    )
    np.testing.assert_array_equal(
        whole_grid(study_points(study, SMALL)), whole_grid(study_points(other, SMALL))
    )


def test_a_missing_kind_leaves_its_channel_empty_and_does_not_count_for_the_box():
    study = random_study(4)
    without = Study(
        "s",
        tuple(series for series in study.series if series.kind is not Role.AXIAL_T2),
    )
    grid = whole_grid(study_points(without, SMALL))
    clouds = plain.cloud(
        [as_plain(study)[0], [], as_plain(study)[2]],
        resize=lambda image: plain.area_mean(image, 32),
    )
    np.testing.assert_array_equal(grid, plain.scaled(plain.whole_values(clouds, 64)))
    assert not grid[1].any()


def test_slices_without_thickness_count_once_and_are_counted():
    study = random_study(5, thickness=(None, 3.0, None))
    assert study_points(study, WHOLE).without_thickness == 8
    assert study_points(random_study(5), WHOLE).without_thickness == 0


def test_slices_thicker_than_any_scanner_makes_them_are_refused():
    with pytest.raises(StudyError, match="too_large"):
        study_points(random_study(5, thickness=(1e6, 3.0, 4.0)), WHOLE)


def test_slices_below_a_millimetre_give_a_point_only_where_a_copy_more_is_made():
    study = random_study(5, thickness=(0.9, 3.0, 4.0))
    assert study_points(study, WHOLE).present.tolist() == [False, True, True]
    assert study_points(
        study, recipe_named("rsna2024-whole-256-training")
    ).present.all()


def test_an_inverted_slice_counts_as_it_is_stored():
    study = random_study(6)
    series = study.series[0]
    inverted = tuple(
        dataclasses.replace(one, pixels=4095 - one.pixels, flip=4095)
        for one in series.stored
    )
    other = Study(
        "s", (dataclasses.replace(series, stored=inverted), *study.series[1:])
    )
    np.testing.assert_array_equal(
        whole_grid(study_points(study, SMALL)), whole_grid(study_points(other, SMALL))
    )


def test_a_level_without_any_point_is_refused():
    points = study_points(random_study(7), LEVEL)
    with pytest.raises(StudyError, match="gap_at_level"):
        level_grid(points, np.array([0.0, 0.0, 5000.0]), np.array([0.0, 0.0, 4960.0]))


def test_a_study_without_any_point_is_refused():
    empty = Study("s", ())
    with pytest.raises(StudyError, match="not_a_volume"):
        whole_grid(study_points(empty, WHOLE))


@pytest.mark.parametrize("lower", [[0.0, 0.0, 0.0], [40.0, 0.0, 0.0]])
def test_centres_that_span_no_box_are_refused(lower):
    with pytest.raises(StudyError, match="not_localized"):
        level_box(np.zeros(3), np.array(lower), LEVEL.margins)


def test_the_box_of_a_level_is_as_described():
    box = level_box(
        np.array([0.0, 10.0, 40.0]),
        np.array([0.0, 10.0, 0.0]),
        Margins(x=0.25, front=0.5, back=2.0),
    )
    np.testing.assert_allclose(box, [[-60, -10, 0], [60, 90, 40]], atol=1e-12)


def test_values_beyond_float16_are_refused():
    study = random_study(8, largest=65535)
    bright = study.series[0].stored[0]
    bright.pixels[5, 5:40] = 65535
    with pytest.raises(StudyError, match="float16"):
        whole_grid(study_points(study, dataclasses.replace(SMALL, slice_shape=None)))


# What other recipes may ask for; see ``GridRecipe``.


def pooled_by_hand(study, recipe, pool):
    """Return the unscaled grid of a recipe without slice resize, rounding or copies, by a dictionary of voxels."""
    every = []
    for number, kind in enumerate(KINDS):
        for one in (
            one
            for series in study.series
            if series.kind is kind
            for one in series.stored
        ):
            right, down = np.array(one.orientation[:3]), np.array(one.orientation[3:])
            row, column = np.nonzero(
                np.ones_like(one.pixels) if not recipe.drop_zeros else one.pixels
            )
            places = (
                np.array(one.position_mm)
                + right * one.spacing_mm[0] * column[:, None]
                + down * one.spacing_mm[1] * row[:, None]
            )
            every += [
                (number, place, float(one.pixels[r, c]))
                for place, r, c in zip(places, row, column, strict=True)
            ]
    places = np.array([place for _, place, _ in every])
    low, high = places.min(axis=0), places.max(axis=0)
    index = np.rint(
        (places - low) * ((np.array(recipe.shape) - 1) / (high - low))
    ).astype(int)
    voxels = {}
    for (number, _, value), where in zip(every, index.tolist(), strict=True):
        voxels.setdefault((number, *where), []).append(value)
    grid = np.zeros((3, *recipe.shape), np.float32)
    for where, values in voxels.items():
        grid[where] = pool(values)
    return grid


PLAIN = dataclasses.replace(
    WHOLE,
    name="plain",
    shape=(24, 24, 24),
    slice_shape=None,
    thickening="none",
    float16_values=False,
    float16_grid=False,
)


@pytest.mark.parametrize(
    ("change", "pool"),
    [
        ({}, max),
        ({"drop_zeros": False}, max),
        ({"sampling": "scatter-mean"}, np.mean),
        ({"sampling": "scatter-mean", "drop_zeros": False}, np.mean),
    ],
)
@pytest.mark.parametrize("signed", [False, True])
def test_other_ways_to_pool(change, pool, signed):
    study, recipe = random_study(9, signed=signed), dataclasses.replace(PLAIN, **change)
    values = pooled_by_hand(study, recipe, pool)
    wanted = (values - values.min()) / (values.max() - values.min())
    np.testing.assert_allclose(
        whole_grid(study_points(study, recipe)), wanted, atol=1e-6
    )


def test_other_axes_are_the_same_grid_turned():
    study = random_study(10)
    grid = whole_grid(
        study_points(study, dataclasses.replace(PLAIN, shape=(20, 24, 28)))
    )
    recipe = dataclasses.replace(
        PLAIN, shape=(28, 24, 20), axes=("down", "back", "left")
    )
    other = whole_grid(
        study_points(study, recipe), np.empty((3, 28, 24, 20), np.float32)
    )
    np.testing.assert_array_equal(other, grid.transpose(0, 3, 2, 1)[:, ::-1])


@pytest.mark.parametrize("intensity", ["channel", "percentiles", "z-score"])
def test_other_scopes_of_intensity(intensity):
    study = random_study(11)
    values = pooled_by_hand(study, PLAIN, max)
    low, high = (values.min(axis=(1, 2, 3)), values.max(axis=(1, 2, 3)))
    if intensity == "percentiles":
        low, high = np.percentile(values, [1, 99], axis=(1, 2, 3))
    if intensity == "z-score":
        low, high = (
            values.mean(axis=(1, 2, 3)),
            values.mean(axis=(1, 2, 3)) + values.std(axis=(1, 2, 3)),
        )
    low, high = low[:, None, None, None], high[:, None, None, None]
    wanted = (values - low) / (high - low)
    if intensity == "percentiles":
        wanted = np.clip(wanted, 0, 1)
    grid = whole_grid(
        study_points(study, dataclasses.replace(PLAIN, intensity=intensity))
    )
    np.testing.assert_allclose(grid, wanted, atol=1e-4)


def test_copies_along_the_slices_normal():
    """Slices turned 90 degrees about z: copies go along y, not x."""
    study = random_study(12, degrees=0.0, thickness=(3.0, 3.0, 3.0))
    recipe = dataclasses.replace(
        WHOLE, name="n", shape=(32, 32, 32), slice_shape=None, thickening="slice-normal"
    )
    straight = whole_grid(study_points(study, recipe))
    patient = whole_grid(
        study_points(study, dataclasses.replace(recipe, thickening="patient-axis"))
    )
    normals = [
        np.cross(s.stored[0].orientation[:3], s.stored[0].orientation[3:])
        for s in study.series
    ]
    assert [tuple(np.rint(n).astype(int)) for n in normals] == [
        (-1, 0, 0),
        (0, 0, 1),
        (-1, 0, 0),
    ]
    assert not np.array_equal(straight, patient)
    axial = Study("s", study.series[1:2])
    np.testing.assert_array_equal(
        whole_grid(study_points(axial, recipe)),
        whole_grid(
            study_points(axial, dataclasses.replace(recipe, thickening="patient-axis"))
        ),
    )
