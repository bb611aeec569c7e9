"""Stacks made ready: their rescales and order, and which fills a grid first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from test_resample import line_stack

from spine_engine.study import Stack
from spine_engine.voxels import (
    GridPose,
    GridSpec,
    IntensityWindow,
    WindowedStack,
    prepared,
    scatter,
    voxelize,
)
from spine_engine.voxels.prepared import rescale_of

Make = Callable[..., Stack]


def test_a_tone_takes_stored_values_to_the_window() -> None:
    stack = replace(
        line_stack([0, 4]),
        slope=np.array([2, 4], np.float32),
        intercept=np.array([-10, 30], np.float32),
    )
    flip, rescale, clip = rescale_of(WindowedStack(stack, IntensityWindow(50.0, 250.0)))
    assert flip == 0
    np.testing.assert_allclose(
        rescale, [[2 / 200, 4 / 200], [-60 / 200, -20 / 200]], rtol=1e-6
    )
    assert clip == (0.0, 1.0)
    flip, rescale, clip = rescale_of(stack)
    np.testing.assert_allclose(rescale, [[2, 4], [-10, 30]])
    assert clip == (-np.inf, np.inf)


def test_signed_values_are_read_as_unsigned_and_put_back() -> None:
    stack = replace(
        line_stack([0, 4]), pixels=line_stack([0, 4]).pixels.astype(np.int16) - 250
    )
    flip, rescale, _ = rescale_of(WindowedStack(stack, IntensityWindow(-150.0, 50.0)))
    assert flip == 0x8000
    stored = stack.pixels[:, 0, 0]  # -150 and -50
    seen = (stored.view(np.uint16) ^ 0x8000).astype(float)
    np.testing.assert_allclose(rescale[0] * seen + rescale[1], [0.0, 0.5], atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_a_stack_is_not_copied_unless_it_is_one_pixel_wide(
    make_stack: Make, dtype: type
) -> None:
    stack = make_stack(1, dtype=dtype)
    (made,) = prepared([stack]).stacks
    assert np.shares_memory(made.flat, stack.pixels)
    thin = make_stack(1, dtype=dtype, shape=(3, 9, 1))
    (made,) = prepared([thin]).stacks
    assert len(made.flat) == 28
    assert made.flat[-1] == made.flat[-2]


def test_stacks_that_share_a_place_are_ordered_by_what_they_show() -> None:
    first = line_stack([0, 4, 8])
    stacks = [replace(first, pixels=first.pixels + np.uint16(n)) for n in range(3)]
    orders = {
        tuple(made.stack.pixels[0, 0, 0] for made in prepared(list(given)).stacks)
        for given in permutations(stacks)
    }
    assert len(orders) == 1
    grids = [voxelize([list(given)], GridSpec((2, 2, 2), (1.0,) * 3), GridPose(np.zeros(3), np.eye(3))) for given in
             permutations(stacks)]  # fmt: skip
    assert len({grid.values.tobytes() for grid in grids}) == 1


def test_the_stack_that_covers_most_fills_the_grid_first() -> None:
    large, small = line_stack([0, 4, 8, 12]), line_stack([0, 4, 8])
    small = replace(small, pixels=small.pixels * 7)
    spec = GridSpec((1, 1, 4), (1.0, 1.0, 4.0))
    pose = GridPose(
        np.array([0, 0, 6.0]), np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    )
    for given in ([large, small], [small, large]):
        assert voxelize([given], spec, pose).values[0, 0, 0].tolist() == [
            100,
            200,
            300,
            400,
        ]
    # the one that reaches beyond the grid covers no more of it than the other, which then comes first by its place
    beyond = replace(
        line_stack([-8, -4, 0, 4, 8]), pixels=line_stack([1, 2, 3, 4, 5]).pixels * 3
    )
    narrow = GridSpec((1, 1, 2), (1.0, 1.0, 4.0))
    middle = GridPose(np.array([0, 0, 2.0]), pose.axes)
    for given in ([large, beyond], [beyond, large]):
        assert voxelize([given], narrow, middle).values[0, 0, 0].tolist() == [900, 1200]


def test_stacks_that_touch_no_voxel_leave_none() -> None:
    far = line_stack([900, 904])
    grid = voxelize(
        [[far, line_stack([800, 804])]],
        GridSpec((2, 2, 2), (1.0,) * 3),
        GridPose(np.zeros(3), np.eye(3)),
    )
    assert grid.coverage == (0.0,)
    assert not grid.values.any()


def test_a_channel_made_ready_gives_what_its_stacks_give(make_stack: Make) -> None:
    stacks = [make_stack(1), make_stack(2)]
    spec, pose = GridSpec((5, 6, 7), (2.0, 2.0, 2.0)), GridPose(np.zeros(3), np.eye(3))
    for cut in (voxelize, scatter):
        np.testing.assert_array_equal(
            cut([prepared(stacks)], spec, pose).values, cut([stacks], spec, pose).values
        )


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((1, 2, 2, 3), np.float32),
        np.zeros((2, 2, 2, 2), np.float32),
        np.zeros((1, 2, 2, 2), np.float64),
        np.zeros((2, 2, 2, 1), np.float32).transpose(3, 0, 1, 2)[:, ::-1],
    ],
    ids=["shape", "channels", "dtype", "strides"],
)
@pytest.mark.parametrize("cut", [voxelize, scatter])
def test_an_array_that_does_not_fit_is_refused(
    cut: Callable[..., object], out: np.ndarray
) -> None:
    spec, pose = GridSpec((2, 2, 2), (1.0,) * 3), GridPose(np.zeros(3), np.eye(3))
    with pytest.raises(
        ValueError, match=r"out must be \(1, 2, 2, 2\) float32 and C-contiguous"
    ):
        cut([[line_stack([0, 4])]], spec, pose, out=out)


def test_scattered_values_are_windowed_clipped_and_the_largest_unless_asked_otherwise() -> (
    None
):
    stack = WindowedStack(line_stack([0.0, 4.0]), IntensityWindow(50.0, 150.0))
    spec, pose = (
        GridSpec((1, 1, 1), (20.0, 20.0, 20.0)),
        GridPose(np.zeros(3), np.eye(3)),
    )
    out = np.full((2, 1, 1, 1), 7.0, np.float32)
    grid = scatter([[stack], []], spec, pose, out=out)
    assert grid.values is out
    assert grid.values.ravel().tolist() == [1.0, 0.0]
    assert grid.coverage == (1.0, 0.0)
    assert scatter([[stack]], spec, pose, pool="max").values.item() == 1.0
    assert scatter([[stack]], spec, pose, pool="mean").values.item() == pytest.approx(
        0.75
    )  # half and, clipped, one
    dark = WindowedStack(line_stack([0.0]), IntensityWindow(200.0, 300.0))
    assert scatter([[dark]], spec, pose, pool="max").values.item() == 0.0


def test_the_largest_may_be_negative() -> None:
    stack = replace(line_stack([0.0]), intercept=np.array([-500], np.float32))
    grid = scatter(
        [[stack]], GridSpec((1, 1, 1), (20.0,) * 3), GridPose(np.zeros(3), np.eye(3))
    )
    assert grid.values.item() == -400
