"""The kernel for grids along a stack's own axes against the NumPy reference, and when it runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from unittest.mock import patch

import numpy as np
import pytest
from plainly import grid_of

from spine_engine.study import Stack
from spine_engine.voxels import GridPose, GridSpec, aligned, voxelize
from spine_engine.voxels.placement import aligned_box

STORED_RANGE = 65535.0
SHAPES = [(5, 14, 17), (7, 25, 40), (1, 20, 20), (6, 2, 1)]
Make = Callable[..., Stack]


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
@pytest.mark.parametrize("shape", [(9, 11, 13), (18, 33, 20)], ids=str)
@pytest.mark.parametrize("seed", range(len(SHAPES)))
def test_kernel_equals_reference(
    make_stack: Make, order: tuple[int, ...], shape: tuple[int, int, int], seed: int
) -> None:
    """Every order and direction of the axes, covered in part, tiles whole and broken."""
    stack = make_stack(
        seed,
        even=True,
        plain_tone=True,
        dtype=(np.uint16, np.int16)[seed % 2],
        shape=SHAPES[seed],
    )
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], 3)
    pose = GridPose(
        stack.center_mm + np.array([0.3, -0.2, 0.1]),
        stack.axes[list(order)] * signs[:, None],
    )
    spec = GridSpec(shape, (2.1, 1.7, 1.9) if seed % 3 else (0.7, 0.8, 0.6))
    want = grid_of(stack, spec, pose)
    with patch.object(
        aligned, "resample_aligned", wraps=aligned.resample_aligned
    ) as kernel:
        grid = voxelize(
            [[stack]], spec, pose, out=np.full((1, *shape), 7.0, np.float32)
        )
    assert kernel.call_count == 1
    assert np.abs(grid.values[0] - np.nan_to_num(want)).max() < 2e-4 * STORED_RANGE
    assert grid.coverage[0] == np.isfinite(want).mean()


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 2, 0)], ids=str)
@pytest.mark.parametrize("pixels_a_voxel", [0.4, 1.6, 3.4, 5.5])
def test_rows_of_voxels_are_picked_from_one_vector_of_pixels_or_several(
    make_stack: Make, order: tuple[int, ...], pixels_a_voxel: float
) -> None:
    """Up to four vectors of pixels for one of voxels, and more than that, in rows of whole vectors and a rest."""
    stack = make_stack(1, even=True, plain_tone=True, shape=(5, 40, 215))
    spacing = [1.3, 0.9, 1.1 * pixels_a_voxel]
    axes = list(order)
    shape = [3, 4, 5]
    shape[axes.index(2)] = 37
    spec = GridSpec(
        (shape[0], shape[1], shape[2]),
        (spacing[axes[0]], spacing[axes[1]], spacing[axes[2]]),
    )
    pose = GridPose(stack.center_mm, stack.axes[axes])
    want = grid_of(stack, spec, pose)
    got = voxelize([[stack]], spec, pose).values[0]
    assert np.abs(got - np.nan_to_num(want)).max() < 2e-4 * STORED_RANGE


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)], ids=str)
def test_a_large_grid_is_the_same_wherever_it_lies_in_memory(
    make_stack: Make, order: tuple[int, ...]
) -> None:
    """It is written past the caches where its rows begin on a boundary for that, else through them."""
    stack = make_stack(1, even=True, plain_tone=True, shape=(9, 60, 70))
    spec, pose = (
        GridSpec((64, 64, 68), (0.5, 0.5, 0.5)),
        GridPose(stack.center_mm, stack.axes[list(order)]),
    )
    size, grids = math.prod(spec.shape), []
    for first in range(2):
        memory = np.full(size + 1, 7.0, np.float32)
        grids.append(
            voxelize(
                [[stack]],
                spec,
                pose,
                out=memory[first : first + size].reshape(1, *spec.shape),
            ).values
        )
    assert grids[0].nbytes > aligned._STREAM_BYTES
    np.testing.assert_array_equal(*grids)


def test_holes_are_filled_from_an_oblique_stack_as_well(make_stack: Make) -> None:
    best = make_stack(3, even=True, plain_tone=True, shape=(5, 18, 20))
    other = make_stack(4, even=True, plain_tone=True, shape=(9, 30, 30))
    other = replace(other, origins_mm=other.origins_mm + 18 * best.axes[0])
    pose, spec = (
        GridPose(best.center_mm, best.axes),
        GridSpec((8, 14, 16), (3.0, 1.0, 1.0)),
    )
    grid = voxelize([[other, best]], spec, pose)
    first, second = (grid_of(stack, spec, pose) for stack in (best, other))
    want = np.where(np.isfinite(first), first, second)
    assert np.isfinite(first).sum() > np.isfinite(second).sum() > 100
    assert np.isfinite(first).sum() < np.isfinite(want).sum() < want.size
    assert (
        np.abs(grid.values[0] - np.nan_to_num(want)) > 2e-4 * STORED_RANGE
    ).sum() <= 1
    assert grid.coverage[0] == pytest.approx(
        np.isfinite(want).mean(), abs=1.5 / want.size
    )


def test_a_thousandth_of_a_pixel_over_the_grid_is_still_aligned() -> None:
    place = np.array([[1.0, 2.0, 3.0], [0.5, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    for turn, found in ((0.9e-3 / 5, True), (1.1e-3 / 5, False)):
        place[3, 1] = turn
        assert (aligned_box(place, (11, 11, 11), (9, 30, 30)) is not None) == found
