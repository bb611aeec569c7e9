"""Posed stacks into voxel grids: which stack goes first, where its slices lie, and the loop over channels."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spine_engine.study import Stack
from spine_engine.voxels.grid import GridPose, GridSpec
from spine_engine.voxels.placement import even_pitch_mm, resample_place, scatter_place, slice_segments, slice_shift
from spine_engine.voxels.window import WindowedStack

COARSE_STEP, COARSE_MIN = 4, 8
"""Stacks are ranked by how much they cover of a grid with a quarter of the voxels along each axis, but at least 8."""

Placed = Stack | WindowedStack


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """Channels sampled on one grid.

    Attributes:
        values: ``(C, D, H, W)`` float32, C-contiguous; 0 where no stack covers the voxel.
        coverage: for each channel the share of voxels that a stack covers, 0..1.
    """

    values: NDArray[np.float32]
    coverage: tuple[float, ...]


def voxelize(
    channels: Sequence[Sequence[Placed]],
    spec: GridSpec,
    pose: GridPose,
    *,
    out: NDArray[np.float32] | None = None,
) -> VoxelGrid:
    """Sample each channel's stacks at the voxel centres of a grid, trilinearly, at the slices' true positions.

    A channel is any number of stacks, of one series or several, in any order. The stack that covers most of the grid
    fills it; the holes are filled from the next best. Half a pixel and half a slice beyond a stack's outermost voxel
    centres count as covered; between slices more than 1.75 median spacings apart only half a slice on either side does.
    Voxels that nothing covers are 0.

    Args:
        channels: for each channel its stacks. A ``WindowedStack`` gives values scaled to 0..1; a plain ``Stack`` its
            rescaled values as they are. An empty channel is all 0.
        spec: shape and voxel size of the grid.
        pose: its place in LPS mm.
        out: ``(C, D, H, W)`` float32, C-contiguous, to be filled and returned instead of a fresh array.

    Raises:
        ValueError: ``out`` does not fit.
    """
    values = _output(out, len(channels), spec)
    filled = np.empty(spec.shape, np.bool_)
    coverage = []
    for channel, grid in zip(channels, values, strict=True):
        grid.fill(0.0)
        filled.fill(False)
        missing = filled.size
        for placed in _best_first(channel, spec, pose):
            if missing == 0:
                break
            missing -= _resample(placed, spec, pose, grid, filled)
        coverage.append(1.0 - missing / filled.size)
    return VoxelGrid(values, tuple(coverage))


def scatter(
    channels: Sequence[Sequence[Placed]],
    spec: GridSpec,
    pose: GridPose,
    *,
    pool: Literal["mean", "max"] = "max",
    out: NDArray[np.float32] | None = None,
) -> VoxelGrid:
    """Drop every pixel's centre into its voxel and pool what falls together: Open3D's ``VoxelGrid`` without the cloud.

    Arguments, result and errors are those of ``voxelize``; all stacks of a channel are pooled alike, and a voxel into
    which no pixel falls is 0.
    """
    from spine_engine.voxels import kernels

    values = _output(out, len(channels), spec)
    coverage = []
    for channel, grid in zip(channels, values, strict=True):
        pooled = np.zeros((*spec.shape, 2), np.float32)
        for placed in sorted(channel, key=_identity):
            stack = placed.stack if isinstance(placed, WindowedStack) else placed
            flip, tone, clip = _tone(placed)
            place = scatter_place(stack, spec, pose)
            pixels = stack.pixels.view(np.uint16)
            kernels.scatter_stack(pooled, pixels, np.uint16(flip), tone, place, clip, pool == "max")
        divisor = np.maximum(pooled[..., 1], 1.0) if pool == "mean" else np.float32(1.0)
        np.divide(pooled[..., 0], divisor, out=grid)
        coverage.append(float(np.count_nonzero(pooled[..., 1])) / grid.size)
    return VoxelGrid(values, tuple(coverage))


def _resample(
    placed: Placed, spec: GridSpec, pose: GridPose, grid: NDArray[np.float32], filled: NDArray[np.bool_]
) -> int:
    """Fill what ``placed`` covers of the voxels not yet filled; return how many those are."""
    from spine_engine.voxels import kernels

    stack = placed.stack if isinstance(placed, WindowedStack) else placed
    flip, tone, clip = _tone(placed)
    segments = slice_segments(stack)
    count: int = kernels.resample_stack(
        grid, filled, stack.pixels.view(np.uint16), np.uint16(flip), tone, slice_shift(stack),
        (segments.starts, segments.slices, segments.rate), even_pitch_mm(stack, tone),
        resample_place(stack, spec, pose), clip,
    )  # fmt: skip
    return count


def _best_first(channel: Sequence[Placed], spec: GridSpec, pose: GridPose) -> list[Placed]:
    """Sort a channel's stacks: best coverage first, then by place, so that the order given never matters."""
    if len(channel) < 2:
        return list(channel)
    d, h, w = (max(min(size, COARSE_MIN), math.ceil(size / COARSE_STEP)) for size in spec.shape)
    d_mm, h_mm, w_mm = (size / count for size, count in zip(spec.size_mm, (d, h, w), strict=True))
    coarse = GridSpec((d, h, w), (d_mm, h_mm, w_mm))
    grid, filled = np.empty(coarse.shape, np.float32), np.empty(coarse.shape, np.bool_)

    def covered(placed: Placed) -> int:
        filled.fill(False)
        return _resample(placed, coarse, pose, grid, filled)

    ranked = [(-covered(placed), _identity(placed), placed) for placed in channel]
    return [placed for count, _, placed in sorted(ranked, key=lambda rank: rank[:2]) if count < 0]


def _identity(placed: Placed) -> tuple[object, ...]:
    """Return a sort key from a stack's place and, for stacks in one place, its pixels."""
    stack = placed.stack if isinstance(placed, WindowedStack) else placed
    return (
        *stack.origins_mm[0],
        *stack.axes.ravel(),
        *stack.spacing_mm,
        *stack.pixels.shape,
        zlib.crc32(stack.pixels.data),
    )


def _tone(placed: Placed) -> tuple[int, NDArray[np.float32], tuple[np.float32, np.float32]]:
    """Return the bits that make stored values unsigned, gain and offset of each slice ``(2, S)``, and the bounds."""
    if isinstance(placed, WindowedStack):
        stack, window = placed.stack, placed.window
        scale, low, clip = 1.0 / (window.high - window.low), window.low, (np.float32(0.0), np.float32(1.0))
    else:
        stack, scale, low, clip = placed, 1.0, 0.0, (np.float32(-np.inf), np.float32(np.inf))
    flip = 0x8000 if stack.pixels.dtype == np.int16 else 0
    gain = stack.slope * scale
    offset = (stack.intercept.astype(np.float64) - low) * scale - flip * gain
    return flip, np.stack([gain, offset]).astype(np.float32), clip


def _output(out: NDArray[np.float32] | None, channels: int, spec: GridSpec) -> NDArray[np.float32]:
    """Return ``out``, checked, or a fresh array ``(C, D, H, W)``."""
    shape = (channels, *spec.shape)
    if out is None:
        return np.empty(shape, np.float32)
    if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f"out must be {shape} float32 and C-contiguous, got {out.shape} {out.dtype}")
    return out
