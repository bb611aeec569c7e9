"""What a voxel grid covers, at its bounds, and where its voxels lie: numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from test_resample import line_stack

from spine_engine.study import Stack
from spine_engine.voxels import GridPose, GridSpec, prepared, reference, voxelize
from spine_engine.voxels.placement import (
    EVEN,
    STAGGERED,
    UNEVEN,
    aligned_box,
    alike,
    pitch_mm,
    scatter_place,
    slice_segments,
    slice_shift,
)

Make = Callable[..., Stack]
POINT = GridSpec((1, 1, 1), (1.0, 1.0, 1.0))


def at(
    stack: Stack, x: float = 0.0, y: float = 0.0, z: float = 0.0
) -> tuple[float, float]:
    """The value of one voxel, and whether it is covered."""
    grid = voxelize([[stack]], POINT, GridPose(np.array([x, y, z]), np.eye(3)))
    return float(grid.values[0, 0, 0, 0]), grid.coverage[0]


# ---- grids and poses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(0, 1, 1), (1, 1, 0), (1, 1), (1, 1, 1, 1), (1, -2, 1)], ids=str
)
def test_a_grid_needs_three_sizes_of_at_least_one(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="three positive integers"):
        GridSpec(shape, (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    "spacing",
    [(0.0, 1, 1), (1, 1, -0.1), (1, 1), (1, 1, 1, 1), (1, np.nan, 1)],
    ids=str,
)
def test_a_grid_needs_three_spacings_above_zero(spacing: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="three positive numbers"):
        GridSpec((1, 1, 1), spacing)


def test_a_box_has_the_size_that_its_voxels_fill() -> None:
    assert GridSpec((2, 3, 4), (1.0, 2.0, 0.5)).size_mm == (2.0, 6.0, 2.0)


@pytest.mark.parametrize(
    ("center", "axes", "message"),
    [
        (np.zeros(2), np.eye(3), "want center_mm"),
        (np.zeros(3), np.eye(2), "want center_mm"),
        (np.zeros(3), np.eye(3) * 1.001, "orthonormal"),
        (np.zeros(3), np.full((3, 3), np.nan), "orthonormal"),
        (
            np.zeros(3),
            np.array([[1, 1e-4, 0], [0, 1, 0], [0, 0, 1]], float),
            "orthonormal",
        ),
        (np.array([0, np.nan, 0]), np.eye(3), "finite"),
        (np.array([0, 0, np.inf]), np.eye(3), "finite"),
    ],
)
def test_a_pose_is_orthonormal_and_finite(
    center: np.ndarray, axes: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GridPose(center, axes)


def test_a_pose_may_be_off_by_a_millionth() -> None:
    for off, accepted in ((0.9e-6, True), (1.1e-6, False)):
        axes = np.array([[1, off, 0], [0, 1, 0], [0, 0, 1]])
        if accepted:
            assert GridPose(np.zeros(3), axes).axes is axes
        else:
            with pytest.raises(ValueError, match="orthonormal"):
                GridPose(np.zeros(3), axes)


def test_voxels_lie_about_the_centre_along_the_axes_of_the_pose() -> None:
    """A ramp says where every voxel lies: 100 a millimetre along x, 10 along y, 1 along z."""
    x, y, z = np.arange(20.0), np.arange(20.0), np.arange(20.0)
    pixels = (z[:, None, None] + 10 * y[:, None] + 100 * x).astype(np.uint16)
    origins = np.stack([0 * z, 0 * z, z], axis=1)
    axes = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
    ones = np.ones(20, np.float32)
    stack = Stack(pixels, ones, 0 * ones, origins, axes, (1.0, 1.0))
    spec = GridSpec((2, 3, 4), (2.0, 1.5, 1.0))
    pose = GridPose(
        np.array([9.0, 8.0, 7.0]), np.array([[0.0, 0, -1], [0, 1, 0], [-1, 0, 0]])
    )
    values = voxelize([[stack]], spec, pose).values[0]
    d, h, w = (
        np.array([1.0, -1.0]),
        np.array([-1.5, 0, 1.5]),
        np.array([1.5, 0.5, -0.5, -1.5]),
    )
    want = (7 + d)[:, None, None] + 10 * (8 + h)[:, None] + 100 * (9 + w)
    np.testing.assert_allclose(values, want, atol=0.05)


# ---- coverage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("z", "covered"), [(-2.01, 0), (-1.99, 1), (1.99, 1), (2.01, 0)]
)
def test_a_single_slice_is_four_millimetres_thick(z: float, covered: int) -> None:
    assert at(line_stack([0.0]), z=z) == (100 * covered, covered)
    points = np.array([[0.0, 0.0, z]])
    assert np.isfinite(reference.resample(line_stack([0.0]), points)[0]) == covered


@pytest.mark.parametrize(("gap", "covered"), [(6.99, 1.0), (7.01, 0.0)])
@pytest.mark.parametrize("tilt", [0.0, 0.5], ids=["straight", "staggered"])
def test_slices_further_apart_than_one_and_three_quarters_have_a_gap(
    gap: float, covered: float, tilt: float
) -> None:
    stack = line_stack([0, 4, 8, 8 + gap, 12 + gap, 16 + gap])
    stack = replace(
        stack, origins_mm=stack.origins_mm + tilt * np.arange(6)[:, None] * [1.0, 0, 0]
    )
    middle = 8 + gap / 2
    assert at(stack, x=2.5 * tilt, z=middle)[1] == covered
    assert (
        np.isfinite(reference.resample(stack, np.array([[2.5 * tilt, 0, middle]]))[0])
        == covered
    )


@pytest.mark.parametrize(
    ("x", "y", "covered"),
    [
        (3.99, 0, 1),
        (4.01, 0, 0),
        (-3.99, 0, 1),
        (-4.01, 0, 0),
        (0, 3.99, 1),
        (0, 4.01, 0),
        (0, -3.99, 1),
        (0, -4.01, 0),
    ],
)
@pytest.mark.parametrize("heights", [[0, 4, 8], [0, 3, 8]], ids=["even", "uneven"])
def test_half_a_pixel_beyond_the_outermost_centres_is_covered(
    x: float, y: float, covered: int, heights: list[float]
) -> None:
    assert at(line_stack(heights), x=x, y=y, z=4.0)[1] == covered
    oblique = replace(line_stack(heights), slope=np.array([1, 1.5, 2], np.float32))
    assert at(oblique, x=x, y=y, z=4.0)[1] == covered


def test_coverage_is_the_share_of_voxels_covered() -> None:
    stack = line_stack([0, 4, 8])
    spec = GridSpec(
        (1, 1, 8), (1.0, 1.0, 2.0)
    )  # along z from -6 to 8: from -2 on is covered, seven of eight to 10
    pose = GridPose(
        np.array([0, 0, 1.0]), np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    )
    grid = voxelize([[stack], [stack, line_stack([-10.0, -6.0, -2.5])], []], spec, pose)
    assert grid.coverage == (6 / 8, 1.0, 0.0)
    assert grid.values.shape == (3, 1, 1, 8)
    assert grid.values.dtype == np.float32


# ---- how far slices are alike -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, EVEN),
        ({"z": 0.0099}, EVEN),
        ({"z": 0.0101}, UNEVEN),
        ({"z": -0.0101}, UNEVEN),
        ({"x": 0.9e-3}, EVEN),
        ({"x": 1.1e-3}, STAGGERED),
        ({"y": 1.8e-3}, EVEN),  # rows are two millimetres apart
        ({"y": 2.2e-3}, STAGGERED),
        ({"y": -2.2e-3}, STAGGERED),
        ({"slope": 1.001}, STAGGERED),
        ({"intercept": 0.5}, STAGGERED),
        ({"slope": 1.001, "z": 0.5}, STAGGERED),
    ],
    ids=str,
)
def test_slices_are_even_within_a_hundredth_of_a_millimetre_and_a_thousandth_of_a_pixel(
    changes: dict[str, float], kind: int
) -> None:
    stack = replace(line_stack([0, 4, 8, 12, 16]), spacing_mm=(2.0, 1.0))
    origins, slope, intercept = (
        stack.origins_mm.copy(),
        stack.slope.copy(),
        stack.intercept.copy(),
    )
    origins[2] += [changes.get("x", 0.0), changes.get("y", 0.0), changes.get("z", 0.0)]
    slope[3], intercept[1] = changes.get("slope", 1.0), changes.get("intercept", 0.0)
    (made,) = prepared(
        [replace(stack, origins_mm=origins, slope=slope, intercept=intercept)]
    ).stacks
    assert made.kind == kind


def test_a_single_slice_is_even_and_four_millimetres_thick() -> None:
    assert pitch_mm(np.array([7.0])) == 4.0
    assert pitch_mm(np.array([0.0, 3.0, 7.0, 8.0])) == 3.0
    assert (
        alike(
            np.zeros(1), 4.0, np.ones((2, 1), np.float32), np.zeros((2, 1), np.float32)
        )
        == EVEN
    )


def test_shifts_are_in_pixels_along_rows_and_columns() -> None:
    shift = slice_shift(np.array([[0.0, 0.0], [1.0, 3.0]]), (2.0, 0.5))
    assert shift.tolist() == [[0.0, 0.5], [0.0, 6.0]]
    assert not slice_shift(np.array([[0.0, 0.0], [1.9e-3, -0.4e-3]]), (2.0, 0.5)).any()


def test_segments_are_pairs_of_slices_half_a_slice_beyond_the_ends_and_gaps() -> None:
    made = slice_segments(np.array([0.0, 4.0, 8.0, 16.0]), 4.0)
    assert made.starts.tolist() == [-np.inf, -2, 0, 4, 8, 10, 14, 16, 18, np.inf]
    assert made.slices.tolist() == [
        [0, 0, 0, 1, 2, 2, 3, 3, 3],
        [0, 0, 1, 2, 2, 2, 3, 3, 3],
    ]
    np.testing.assert_array_equal(
        made.rate, [np.nan, 0, 0.25, 0.25, 0, np.nan, 0, 0, np.nan]
    )
    close = slice_segments(np.array([0.0, 7.0]), 4.0)  # 1.75 apart: still neighbours
    assert close.starts.tolist() == [-np.inf, -2, 0, 7, 9, np.inf]


def test_where_pixels_fall_is_counted_from_the_grids_corner() -> None:
    stack = line_stack([0, 4])
    pose = GridPose(
        np.array([1.0, 0, 2.0]), np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])
    )
    place = scatter_place(stack, GridSpec((6, 8, 10), (2.0, 1.0, 0.5)), pose)
    # pixel [0, 0] of the first slice lies at (-3.5, -3.5, 0): 2 mm below the middle, 4.5 mm to its right
    np.testing.assert_allclose(
        place[0], [(1 + 3, -3.5 + 4, -9 + 5), (0, 1, 0), (0, 0, 2)]
    )
    np.testing.assert_allclose(
        place[1], [(-1 + 3, -3.5 + 4, -9 + 5), (0, 1, 0), (0, 0, 2)]
    )


PLACE = np.array([[1.0, 2.0, 3.0], [0.5, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])


def box(
    place: Sequence[Sequence[float]],
    shape: tuple[int, ...] = (4, 5, 6),
    size: tuple[int, ...] = (9, 30, 40),
):
    return aligned_box(np.array(place, float), shape, size)


def test_an_aligned_grid_is_a_box_of_the_stack() -> None:
    made = box(PLACE)
    assert made is not None
    assert made.covered == (slice(0, 4), slice(0, 5), slice(0, 6))
    assert (made.count, made.start, made.strides, made.steps) == (
        120,
        0,
        (30, 6, 1),
        (1200, 40),
    )
    assert (made.outer, made.inner, made.column) == (
        (1, 0.5, 4, 9),
        (2, 1, 5, 30),
        (3, 1, 6, 40),
    )


def test_a_box_may_lie_along_the_axes_in_any_order() -> None:
    made = box(
        [(6.0, 2.0, 3.0), (0, 0, 1), (-2, 0, 0), (0, 1, 0)]
    )  # H runs down the slices: 6, 4, 2, 0, -2
    assert made is not None
    assert made.covered == (slice(0, 4), slice(0, 4), slice(0, 6))
    assert (made.count, made.start, made.strides, made.steps) == (
        96,
        0,
        (6, 1, 30),
        (1200, 40),
    )
    assert (made.outer, made.inner, made.column) == (
        (6, -2, 4, 9),
        (2, 1, 6, 30),
        (3, 1, 4, 40),
    )


def test_what_lies_outside_the_stack_is_cut_off() -> None:
    made = box([(-1.2, 2.0, 38.0), (0.5, 0, 0), (0, 1, 0), (0, 0, 1)])
    assert made is not None
    assert made.covered == (
        slice(2, 4),
        slice(0, 5),
        slice(0, 2),
    )  # from -0.5 on, and up to 39.5
    assert (made.count, made.start) == (2 * 5 * 2, 2 * 30)
    assert made.outer == pytest.approx((-0.2, 0.5, 2, 9))
    away = box([(-90.0, 2.0, 38.0), (0.5, 0, 0), (0, 1, 0), (0, 0, 1)])
    assert away is not None
    assert away.count == 0


def test_a_grid_off_the_axes_by_more_than_a_thousandth_is_oblique() -> None:
    for off, aligned in ((0.9e-3, True), (1.1e-3, False)):
        turned = PLACE.copy()
        turned[2, 2] = off / 2  # two steps of H from the middle to its end
        assert (box(turned) is not None) == aligned
    assert box([PLACE[0], (0.5, 0, 0), (0.5, 0, 0), (0, 0, 1)]) is None
