"""The trilinear kernel against its NumPy twin, and the rules of coverage and order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from plainly import grid_of

from spine_engine.study import Stack
from spine_engine.voxels import (
    GridPose,
    GridSpec,
    IntensityWindow,
    WindowedStack,
    voxelize,
)

SPEC = GridSpec((9, 11, 13), (2.1, 1.7, 1.9))
STORED_RANGE = 65535.0
Make = Callable[..., Stack]


def assert_agree(got: NDArray[np.float32], want: NDArray[np.float64]) -> None:
    """Compare but for voxels within float32 rounding of the stack's edge; what is not covered must be 0."""
    want = np.nan_to_num(want)
    differs = np.abs(got - want) > 2e-4 * STORED_RANGE
    assert differs.sum() <= 1, (
        f"{differs.sum()} of {got.size} voxels differ, worst {np.abs(got - want).max()}"
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"plain_tone": True},
        {"plain_tone": True, "even": True},
        {"plain_tone": True, "even": True, "dtype": np.int16},
        {"plain_tone": True, "even": True, "shape": (1, 20, 20)},
        {"plain_tone": True, "even": True, "shape": (5, 2, 2)},
        {"plain_tone": True, "even": True, "shape": (5, 30, 1)},
        {"plain_tone": True, "even": True, "sheared": True},
        {"even": True},
        {"dtype": np.int16},
        {"sheared": True},
        {"sheared": True, "dtype": np.int16, "plain_tone": True},
        {"gap_after": 2},
        {"shape": (1, 20, 20)},
        {"shape": (5, 1, 30)},
        {"shape": (5, 30, 1)},
        {"shape": (2, 2, 2)},
    ],
    ids=str,
)
def test_kernel_equals_reference(
    make_stack: Make, make_pose: Any, kind: dict[str, Any], seed: int
) -> None:
    stack, pose = make_stack(seed, **kind), make_pose(seed)
    grid = voxelize([[stack]], SPEC, pose)
    want = grid_of(stack, SPEC, pose)
    assert_agree(grid.values[0], want)
    assert grid.coverage[0] == pytest.approx(
        np.isfinite(want).mean(), abs=1.5 / want.size
    )
    assert grid.coverage[0] > 0


def line_stack(positions_mm: list[float], *, pixels: int = 8) -> Stack:
    """Return axial slices of constant value 100, 200, ... at given heights, the slice centred on the z axis."""
    count = len(positions_mm)
    values = (
        np.repeat(100 * (1 + np.arange(count)), pixels * pixels)
        .reshape(count, pixels, pixels)
        .astype(np.uint16)
    )
    origins = np.array(
        [[-(pixels - 1) / 2, -(pixels - 1) / 2, z] for z in positions_mm]
    )
    axes = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
    return Stack(
        values,
        np.ones(count, np.float32),
        np.zeros(count, np.float32),
        origins,
        axes,
        (1.0, 1.0),
    )


def column(stack: Stack, heights_mm: list[float]) -> list[float]:
    """Sample the stack on the z axis at single points."""
    spec = GridSpec((1, 1, 1), (1.0, 1.0, 1.0))
    return [
        float(
            voxelize([[stack]], spec, GridPose(np.array([0, 0, z]), np.eye(3))).values[
                0, 0, 0, 0
            ]
        )
        for z in heights_mm
    ]


def test_nothing_is_interpolated_across_a_gap() -> None:
    stack = line_stack([0, 4, 8, 16, 20])
    assert column(stack, [8, 9.9, 10.1, 13.9, 14.1, 18]) == [300, 300, 0, 0, 400, 450]


def test_uneven_slices_keep_their_positions() -> None:
    assert column(line_stack([0, 3, 8, 12]), [1.5, 5.5, 10]) == [150, 250, 350]


def test_half_a_slice_and_half_a_pixel_beyond_the_edge_are_covered() -> None:
    stack = line_stack([0, 4, 8], pixels=8)
    assert column(stack, [-2.1, -1.9, 9.9, 10.1]) == [0, 100, 300, 0]
    spec = GridSpec((1, 1, 1), (1.0, 1.0, 1.0))
    beside = [
        voxelize([[stack]], spec, GridPose(np.array([x, 0, 4.0]), np.eye(3))).coverage[
            0
        ]
        for x in (3.9, 4.1)
    ]
    assert beside == [1.0, 0.0]


def test_window_scales_and_clips() -> None:
    windowed = WindowedStack(line_stack([0, 4, 8]), IntensityWindow(150, 250))
    spec = GridSpec((1, 1, 5), (1.0, 1.0, 2.0))
    axes = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    values = voxelize([[windowed]], spec, GridPose(np.array([0, 0, 4.0]), axes)).values[
        0, 0, 0
    ]
    np.testing.assert_allclose(values, [0, 0, 0.5, 1, 1], atol=1e-6)


def test_stacks_of_a_channel_are_order_independent_and_the_best_covering_wins(
    make_stack: Make, make_pose: Any
) -> None:
    stacks = [
        make_stack(seed, shape=shape)
        for seed, shape in ((1, (9, 30, 30)), (2, (4, 14, 17)), (3, (4, 14, 17)))
    ]
    stacks.append(replace(stacks[1], pixels=stacks[1].pixels[:, ::-1].copy()))
    pose = make_pose(5)
    grids = [voxelize([list(order)], SPEC, pose) for order in permutations(stacks)]
    assert len({grid.values.tobytes() for grid in grids}) == 1
    best = grid_of(stacks[0], SPEC, pose)
    covered = np.isfinite(best)
    np.testing.assert_allclose(
        grids[0].values[0][covered], best[covered], atol=2e-4 * STORED_RANGE
    )
    assert grids[0].coverage[0] >= covered.mean()


def test_holes_are_filled_from_the_next_best() -> None:
    low, high = line_stack([0, 4, 8]), line_stack([8, 12, 16, 20])
    spec = GridSpec((1, 1, 6), (1.0, 1.0, 4.0))
    pose = GridPose(
        np.array([0, 0, 10.0]), np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    )
    grid = voxelize([[low, high]], spec, pose)
    assert grid.values[0, 0, 0].tolist() == [100, 200, 100, 200, 300, 400]
    assert grid.coverage == (1.0,)


def test_out_is_filled_and_an_empty_channel_is_zero(
    make_stack: Make, make_pose: Any
) -> None:
    stack, pose = make_stack(1), make_pose(1)
    out = np.full((2, *SPEC.shape), 7.0, np.float32)
    grid = voxelize([[stack], []], SPEC, pose, out=out)
    assert grid.values is out
    assert np.array_equal(out[0], voxelize([[stack]], SPEC, pose).values[0])
    assert not out[1].any()
    assert grid.coverage[1] == 0.0
    with pytest.raises(ValueError, match="C-contiguous"):
        voxelize([[stack]], SPEC, pose, out=out)


def test_mirrored_patient_gives_the_mirrored_grid() -> None:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 4096, (5, 12, 12)).astype(np.uint16)
    axes = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
    origins = np.array([[-5.5, -5.5, z] for z in (-8.0, -4, 0, 4, 8)])
    rescale = (np.ones(5, np.float32), np.zeros(5, np.float32))
    stack = Stack(pixels, *rescale, origins, axes, (1.0, 1.0))
    mirror = Stack(
        np.ascontiguousarray(pixels[:, :, ::-1]), *rescale, origins, axes, (1.0, 1.0)
    )
    spec, pose = (
        GridSpec((8, 8, 9), (1.3, 1.1, 0.9)),
        GridPose(np.zeros(3), np.eye(3)[::-1].copy()),
    )
    one, two = (voxelize([[s]], spec, pose).values for s in (stack, mirror))
    np.testing.assert_allclose(two, one[..., ::-1], atol=0.01)
