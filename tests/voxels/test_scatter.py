"""The scatter kernel against its NumPy twin, and against Open3D's definition of a voxel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest

from spine_engine.study import Stack
from spine_engine.voxels import GridPose, GridSpec, scatter
from spine_engine.voxels.reference import scatter as reference

SPEC = GridSpec((5, 6, 7), (4.1, 3.3, 3.7))
Make = Callable[..., Stack]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize(
    "kind", [{}, {"dtype": np.int16}, {"sheared": True}, {"gap_after": 1}], ids=str
)
def test_kernel_equals_reference(
    make_stack: Make,
    make_pose: Any,
    kind: dict[str, Any],
    pool: Literal["mean", "max"],
    seed: int,
) -> None:
    stacks, pose = (
        [make_stack(seed, **kind), make_stack(seed + 50, **kind)],
        make_pose(seed),
    )
    grid = scatter([stacks], SPEC, pose, pool=pool)
    pooled, count = reference(stacks, SPEC, pose, pool)
    assert count.max() > 1
    np.testing.assert_allclose(grid.values[0], pooled, rtol=1e-5, atol=0.05)
    assert grid.coverage[0] == np.count_nonzero(count) / count.size
    again = scatter([stacks[::-1]], SPEC, pose, pool=pool)
    assert np.array_equal(again.values, grid.values)


@pytest.mark.parametrize(("pool", "want"), [("mean", [2, 15, 7]), ("max", [3, 20, 7])])
def test_voxel_is_the_floor_of_the_distance_from_the_corner(
    pool: Literal["mean", "max"], want: list[int]
) -> None:
    """Open3D: ``floor((point - min_bound) / voxel_size)``; its voxel 0 begins at the corner, not at a voxel centre."""
    x_mm = np.array([-0.1, 0.1, 1.9, 2.1, 3.9, 5.9, 6.1])
    values = np.array([9, 1, 3, 10, 20, 7, 9], np.uint16)
    pixels = np.ascontiguousarray(values[None, :, None])
    axes, one = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]]), np.ones(1, np.float32)
    stacks = [
        Stack(
            pixels[:, i : i + 1],
            one,
            0 * one,
            np.array([[x, 1.0, 1.0]]),
            axes,
            (1.0, 1.0),
        )
        for i, x in enumerate(x_mm)
    ]
    spec, pose = (
        GridSpec((3, 1, 1), (2.0, 2.0, 2.0)),
        GridPose(np.array([3.0, 1, 1]), np.eye(3)),
    )
    assert scatter([stacks], spec, pose, pool=pool).values[0, :, 0, 0].tolist() == want


def test_agrees_with_open3d_where_installed(make_stack: Make) -> None:
    open3d = pytest.importorskip("open3d", reason="open3d is not installed")
    stack, size = make_stack(2, plain_tone=True), 3.0
    rows, columns = stack.pixels.shape[1:]
    r, c = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    plane = (
        r[..., None] * stack.axes[1] * stack.spacing_mm[0]
        + c[..., None] * stack.axes[2] * stack.spacing_mm[1]
    )
    points = (stack.origins_mm[:, None, None] + plane).reshape(-1, 3)
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
    cloud.colors = open3d.utility.Vector3dVector(
        np.repeat(stack.pixels.reshape(-1, 1) / 65535.0, 3, axis=1)
    )
    half = np.array([8.0, 7, 9]) * size / 2
    voxels = open3d.geometry.VoxelGrid.create_from_point_cloud_within_bounds(
        cloud, size, -half, half
    )
    grid = scatter(
        [[stack]],
        GridSpec((8, 7, 9), (size,) * 3),
        GridPose(np.zeros(3), np.eye(3)),
        pool="mean",
    )
    within = [
        v
        for v in voxels.get_voxels()
        if np.all((v.grid_index >= 0) & (v.grid_index < grid.values[0].shape))
    ]
    assert (
        len(within) > 100
    )  # Open3D keeps points beyond the bounds, in voxels of their own
    for voxel in within:
        assert grid.values[0][tuple(voxel.grid_index)] / 65535.0 == pytest.approx(
            voxel.color[0], abs=1e-4
        )
