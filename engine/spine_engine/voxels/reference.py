"""Plain NumPy references of the kernels: slow, short, in float64, voxel by voxel or pixel by pixel. For tests only."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spine_engine.study import Stack
from spine_engine.voxels.grid import GridPose, GridSpec
from spine_engine.voxels.placement import MAX_GAP, SINGLE_SLICE_MM


def resample(stack: Stack, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the trilinear values ``(N,)`` of a stack at points ``(N, 3)`` LPS mm; NaN where it does not cover them."""
    return np.array([_at(stack, point) for point in points_mm])


def _at(stack: Stack, point: NDArray[np.float64]) -> float:
    positions: NDArray[np.float64] = stack.positions_mm
    nominal = stack.slice_spacing_mm or SINGLE_SLICE_MM
    z = float(stack.axes[0] @ point)
    above = int(np.searchsorted(positions, z, side="right"))
    if (
        0 < above < len(positions)
        and positions[above] - positions[above - 1] <= MAX_GAP * nominal
    ):
        t = float(
            (z - positions[above - 1]) / (positions[above] - positions[above - 1])
        )
        return (1 - t) * _in_slice(stack, above - 1, point) + t * _in_slice(
            stack, above, point
        )
    nearest = int(np.argmin(np.abs(positions - z)))
    return (
        _in_slice(stack, nearest, point)
        if abs(positions[nearest] - z) <= nominal / 2
        else np.nan
    )


def _in_slice(stack: Stack, s: int, point: NDArray[np.float64]) -> float:
    y, x = stack.axes[1:] @ (point - stack.origins_mm[s]) / np.asarray(stack.spacing_mm)
    rows, columns = stack.pixels.shape[1:]
    if not (-0.5 <= y <= rows - 0.5 and -0.5 <= x <= columns - 0.5):
        return float("nan")
    y = min(max(y, 0), rows - 1)
    x = min(max(x, 0), columns - 1)
    i = int(y)
    j = int(x)
    below = min(i + 1, rows - 1)
    beside = min(j + 1, columns - 1)
    image = stack.pixels[s].astype(np.float64)
    upper = (1 - x + j) * image[i, j] + (x - j) * image[i, beside]
    lower = (1 - x + j) * image[below, j] + (x - j) * image[below, beside]
    return float(
        stack.slope[s] * ((1 - y + i) * upper + (y - i) * lower) + stack.intercept[s]
    )


def scatter(
    stacks: list[Stack], spec: GridSpec, pose: GridPose, pool: Literal["mean", "max"]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return pooled values ``(D, H, W)`` (0 where empty) and the number of pixels in each voxel.

    The points of the cloud are the pixel centres in the grid's frame, measured from its corner; the voxel of a point is
    ``floor((p - corner) / spacing)`` as in Open3D's ``VoxelGrid``.
    """
    total = np.zeros(spec.shape)
    count = np.zeros(spec.shape, np.int64)
    largest = np.full(spec.shape, -np.inf)
    corner = -np.asarray(spec.size_mm) / 2
    for stack in stacks:
        down = stack.axes[1] * stack.spacing_mm[0]
        right = stack.axes[2] * stack.spacing_mm[1]
        r, c = np.meshgrid(
            *(np.arange(size) for size in stack.pixels.shape[1:]), indexing="ij"
        )
        for s, (image, origin) in enumerate(
            zip(stack.pixels, stack.origins_mm, strict=True)
        ):
            points = origin + r[..., None] * down + c[..., None] * right
            voxel = np.floor(
                ((points - pose.center_mm) @ pose.axes.T - corner)
                / np.asarray(spec.spacing_mm)
            )
            inside = np.all((voxel >= 0) & (voxel < np.asarray(spec.shape)), axis=-1)
            where = tuple(voxel[inside].astype(int).T)
            values = (stack.slope[s] * image.astype(np.float64) + stack.intercept[s])[
                inside
            ]
            np.add.at(total, where, values)
            np.add.at(count, where, 1)
            np.maximum.at(largest, where, values)
    pooled = (
        total / np.maximum(count, 1)
        if pool == "mean"
        else np.where(count > 0, largest, 0.0)
    )
    return pooled, count
