"""What a grid should hold, read plainly from the promises of ``voxelize``: in float64, with numbers written out.

Nothing is taken from the code that is checked: neither its constants nor its own reference.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spine_engine.study import Stack
from spine_engine.voxels import GridPose, GridSpec

F64 = NDArray[np.float64]


def centers(spec: GridSpec, pose: GridPose) -> F64:
    """The voxel centres ``(D H W, 3)``, LPS mm: the grid's middle is the pose's centre."""
    index = np.indices(spec.shape).reshape(3, -1).T
    middle = (np.array(spec.shape) - 1) / 2
    return pose.center_mm + ((index - middle) * spec.spacing_mm) @ pose.axes


def sampled(stack: Stack, points_mm: F64) -> F64:
    """Trilinear values of a stack at ``(N, 3)`` LPS mm; NaN where it covers nothing.

    Half a pixel and half a slice beyond the outermost centres are covered; between slices more than 1.75 median
    spacings apart only half a slice on either side is; a single slice is 4 mm thick.
    """
    positions = stack.origins_mm @ stack.axes[0]
    nominal = float(np.median(np.diff(positions))) if len(positions) > 1 else 4.0
    z = points_mm @ stack.axes[0]
    lower = np.clip(
        np.searchsorted(positions, z, side="right") - 1, 0, len(positions) - 1
    )
    upper = np.minimum(lower + 1, len(positions) - 1)
    apart = positions[upper] - positions[lower]
    between = (z >= positions[0]) & (upper > lower) & (apart <= 1.75 * nominal)
    t = np.where(between, (z - positions[lower]) / np.where(apart > 0, apart, 1), 0.0)
    nearest = np.abs(positions[None, :] - z[:, None]).argmin(axis=1)
    beside = np.abs(positions[nearest] - z) <= nominal / 2
    first, second = np.where(between, lower, nearest), np.where(between, upper, nearest)
    values = (1 - t) * _in_slice(stack, first, points_mm)
    values = np.where(t > 0, values + t * _in_slice(stack, second, points_mm), values)
    return np.where(between | beside, values, np.nan)


def _in_slice(stack: Stack, slices: NDArray[np.int64], points_mm: F64) -> F64:
    """Bilinear values of points in the slice of each, rescaled; NaN more than half a pixel beside it."""
    yx = (points_mm - stack.origins_mm[slices]) @ stack.axes[1:].T / stack.spacing_mm
    rows, columns = stack.pixels.shape[1:]
    inside = ((yx >= -0.5) & (yx <= [rows - 0.5, columns - 0.5])).all(axis=1)
    y, x = np.clip(yx, 0, [rows - 1, columns - 1]).T
    i, j = y.astype(int), x.astype(int)
    below, beside = np.minimum(i + 1, rows - 1), np.minimum(j + 1, columns - 1)
    image = stack.pixels.astype(np.float64)
    upper = (1 - (x - j)) * image[slices, i, j] + (x - j) * image[slices, i, beside]
    lower = (1 - (x - j)) * image[slices, below, j] + (x - j) * image[
        slices, below, beside
    ]
    stored = (1 - (y - i)) * upper + (y - i) * lower
    return np.where(
        inside, stack.slope[slices] * stored + stack.intercept[slices], np.nan
    )


def grid_of(stack: Stack, spec: GridSpec, pose: GridPose) -> F64:
    """The values ``(D, H, W)`` of one stack, NaN where it covers nothing."""
    return sampled(stack, centers(spec, pose)).reshape(spec.shape)
