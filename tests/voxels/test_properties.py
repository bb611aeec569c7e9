"""Voxel grids of any stack and pose: what a plain reading gives, however the study is stored, and mirrored with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from plainly import centers, grid_of, sampled
from voxel_stacks import random_stack

from spine_engine.study import Stack
from spine_engine.voxels import (
    GridPose,
    GridSpec,
    IntensityWindow,
    WindowedStack,
    reference,
    scatter,
    voxelize,
)

RANGE = 65535.0
quickly = settings(max_examples=30, deadline=None)


def even_or_not(stack: Stack) -> bool:
    """Whether the slices are exactly even or clearly not: those within 0.01 mm are taken to be even."""
    positions = stack.positions_mm
    steps = np.diff(positions)
    off = (
        np.abs(
            positions - positions[0] - np.median(steps) * np.arange(len(positions))
        ).max()
        if len(steps)
        else 0.0
    )
    return off < 1e-9 or off > 0.011


stacks = st.builds(
    random_stack,
    st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 18), st.integers(1, 18)),
    dtype=st.sampled_from([np.uint16, np.int16]),
    sheared=st.booleans(),
    plain_tone=st.booleans(),
    even=st.booleans(),
).filter(even_or_not)
specs = st.builds(
    GridSpec,
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.floats(0.4, 5.0)] * 3),
)


def oblique(seed: int) -> GridPose:
    """Return a pose anywhere near the origin, turned anyhow."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return GridPose(rng.uniform(-6, 6, 3), q)


poses = st.builds(oblique, st.integers(0, 10**6))


def assert_same(
    got: NDArray[np.float32],
    want: NDArray[np.float64],
    edge: NDArray[np.bool_],
    scale: float,
) -> None:
    """Compare all voxels but those whose place is within rounding of the edge of what is covered."""
    assert (~edge).sum() > 0.9 * edge.size - 2
    np.testing.assert_allclose(
        got[~edge], np.nan_to_num(want)[~edge], atol=3e-4 * scale
    )


def on_the_edge(stack: Stack, spec: GridSpec, pose: GridPose) -> NDArray[np.bool_]:
    """Return which voxels are covered or not by a ten-thousandth of a millimetre."""
    points = centers(spec, pose)
    moves = [np.zeros(3), *(1e-3 * np.eye(3)), *(-1e-3 * np.eye(3))]
    covered = [
        np.isfinite(sampled(stack, points + move @ stack.axes)) for move in moves
    ]
    return (np.any(covered, axis=0) & ~np.all(covered, axis=0)).reshape(spec.shape)


@quickly
@given(stack=stacks, spec=specs, pose=poses)
def test_any_stack_in_any_pose_is_sampled_as_promised(
    stack: Stack, spec: GridSpec, pose: GridPose
) -> None:
    grid, want = voxelize([[stack]], spec, pose), grid_of(stack, spec, pose)
    edge = on_the_edge(stack, spec, pose)
    assert_same(grid.values[0], want, edge, 2 * RANGE)
    assert (
        abs(grid.coverage[0] - np.isfinite(want).mean())
        <= (edge.sum() + 0.5) / edge.size
    )
    own = reference.resample(
        stack, centers(spec, pose)[:40]
    )  # the kernels' own twin says the same
    np.testing.assert_allclose(own, want.ravel()[:40], atol=1e-6 * RANGE)


@quickly
@given(
    stack=stacks,
    spec=specs,
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
)
def test_any_grid_along_the_stacks_own_axes_is_sampled_as_promised(
    stack: Stack, spec: GridSpec, order: list[int], signs: tuple[float, ...]
) -> None:
    pose = GridPose(
        stack.center_mm + np.array([0.3, -0.2, 0.1]),
        stack.axes[order] * np.array(signs)[:, None],
    )
    grid, want = voxelize([[stack]], spec, pose), grid_of(stack, spec, pose)
    assert_same(grid.values[0], want, on_the_edge(stack, spec, pose), 2 * RANGE)


def otherwise(stack: Stack, how: int) -> Stack:
    """Return the same pixels at the same places, stored another way: bits 1: slices from the other end, 2: rows
    upside down, 4: columns from the other end, 8: rows and columns exchanged."""
    pixels, origins, axes, spacing = (
        stack.pixels,
        stack.origins_mm,
        stack.axes,
        stack.spacing_mm,
    )
    if how & 2:
        pixels = pixels[:, ::-1]
        origins = origins + axes[1] * spacing[0] * (pixels.shape[1] - 1)
        axes = axes * np.array([[1], [-1], [1]])
    if how & 4:
        pixels = pixels[:, :, ::-1]
        origins = origins + axes[2] * spacing[1] * (pixels.shape[2] - 1)
        axes = axes * np.array([[1], [1], [-1]])
    if how & 8:
        pixels, axes, spacing = (
            pixels.transpose(0, 2, 1),
            axes[[0, 2, 1]],
            (spacing[1], spacing[0]),
        )
    slope, intercept = stack.slope, stack.intercept
    if how & 1:
        axes = axes * np.array([[-1], [1], [1]])
        pixels, origins, slope, intercept = (
            pixels[::-1],
            origins[::-1],
            slope[::-1],
            intercept[::-1],
        )
    copied = (
        np.ascontiguousarray(part) for part in (pixels, slope, intercept, origins)
    )
    return Stack(*copied, np.ascontiguousarray(axes), spacing)


@quickly
@given(
    stack=stacks, spec=specs, pose=poses, how=st.integers(1, 15), aligned=st.booleans()
)
def test_a_stack_stored_another_way_gives_the_same_grid(
    stack: Stack, spec: GridSpec, pose: GridPose, how: int, aligned: bool
) -> None:
    if aligned:
        pose = GridPose(pose.center_mm, stack.axes)
    window = IntensityWindow(-1000.0, 60000.0)
    one, other = (
        voxelize([[WindowedStack(s, window)]], spec, pose).values[0]
        for s in (stack, otherwise(stack, how))
    )
    edge = on_the_edge(stack, spec, pose)
    np.testing.assert_allclose(other[~edge], one[~edge], atol=1e-3)


@quickly
@given(stack=stacks, spec=specs, pose=poses, how=st.integers(1, 15))
def test_a_stack_stored_another_way_scatters_alike(
    stack: Stack, spec: GridSpec, pose: GridPose, how: int
) -> None:
    one, other = (
        scatter([[s]], spec, pose, pool="max").values
        for s in (stack, otherwise(stack, how))
    )
    np.testing.assert_allclose(other, one, rtol=1e-5, atol=0.5)


@quickly
@given(stack=stacks, spec=specs, pose=poses)
def test_a_mirrored_patient_gives_the_mirrored_grid(
    stack: Stack, spec: GridSpec, pose: GridPose
) -> None:
    """The patient is reflected in the plane x = 0, and so is the grid, whose W then runs from the other side."""
    flip = np.diag([-1.0, 1.0, 1.0])
    other = replace(stack, origins_mm=stack.origins_mm @ flip, axes=stack.axes @ flip)
    across = GridPose(
        pose.center_mm @ flip, (pose.axes @ flip) * np.array([[1], [1], [-1]])
    )
    one = voxelize([[stack]], spec, pose).values[0]
    two = voxelize([[other]], spec, across).values[0]
    edge = on_the_edge(stack, spec, pose)
    np.testing.assert_allclose(two[..., ::-1][~edge], one[~edge], atol=3e-4 * 2 * RANGE)


@quickly
@given(
    seeds=st.lists(st.integers(0, 10**6), min_size=2, max_size=4, unique=True),
    spec=specs,
    pose=poses,
    data=st.data(),
)
def test_the_order_of_stacks_changes_no_byte(
    seeds: list[int], spec: GridSpec, pose: GridPose, data: st.DataObject
) -> None:
    several = [random_stack(seed, shape=(3, 9, 8)) for seed in seeds]
    shuffled = data.draw(st.permutations(several))
    one, two = voxelize([several], spec, pose), voxelize([shuffled], spec, pose)
    assert one.values.tobytes() == two.values.tobytes()
    assert one.coverage == two.coverage
