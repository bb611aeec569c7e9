"""Resamples posed stacks into voxel grids: ranks the stacks, finds their slices, loops over channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spine_engine.voxels.grid import GridPose, GridSpec
from spine_engine.voxels.placement import EVEN, AlignedBox, aligned_box, scatter_place
from spine_engine.voxels.prepared import (
    PreparedChannel,
    PreparedStack,
    StackInput,
    prepared,
)

COARSE_STEP = 4
COARSE_MIN = 8
"""Stacks are ranked by how much they cover of a grid with a quarter of the voxels along each axis, but at least 8."""


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
    channels: Sequence[Sequence[StackInput] | PreparedChannel],
    spec: GridSpec,
    pose: GridPose,
    *,
    out: NDArray[np.float32] | None = None,
) -> VoxelGrid:
    """Sample each channel's stacks at the voxel centres of a grid, trilinearly, at the slices' true positions.

    A channel is any number of stacks, of one series or several, in any order. The stack that covers most of the grid
    fills it; the next best fill the holes. Half a pixel and half a slice beyond a stack's outermost voxel centres count
    as covered; between slices more than 1.75 median spacings apart only half a slice on either side does. Voxels that
    no stack covers are 0.

    Args:
        channels: the stacks of each channel. A ``WindowedStack`` gives values scaled to 0..1; a plain ``Stack`` gives
            its rescaled values unchanged. An empty channel is all 0. ``prepared`` prepares a channel for several grids.
        spec: shape and voxel size of the grid.
        pose: place of the grid, LPS mm.
        out: ``(C, D, H, W)`` float32, C-contiguous; filled and returned instead of a new array.

    Raises:
        ValueError: ``out`` does not fit.
    """
    values = _output(out, len(channels), spec)
    # All channels are prepared first: filling a grid evicts the code for preparing from the caches.
    ready = [_ready(channel) for channel in channels]
    coverage = [
        _fill(channel, spec, pose, grid) / grid.size
        for channel, grid in zip(ready, values, strict=True)
    ]
    return VoxelGrid(values, tuple(coverage))


def _ready(channel: Sequence[StackInput] | PreparedChannel) -> PreparedChannel:
    return channel if isinstance(channel, PreparedChannel) else prepared(channel)


def _fill(
    channel: PreparedChannel, spec: GridSpec, pose: GridPose, grid: NDArray[np.float32]
) -> int:
    """Fill one channel's grid from its stacks, best first; return how many voxels they cover."""
    order = _best_first(channel, spec, pose)
    if not order:
        grid.fill(0.0)
        return 0
    places = channel.places(spec, pose)
    filled = np.empty(spec.shape if len(order) > 1 else (0, 0, 0), np.bool_)
    covered = 0
    for turn, n in enumerate(order):
        if covered < grid.size:
            covered += _resample(
                channel.stacks[n], places[n], grid, filled, fresh=turn == 0
            )
    return covered


def scatter(
    channels: Sequence[Sequence[StackInput] | PreparedChannel],
    spec: GridSpec,
    pose: GridPose,
    *,
    pool: Literal["mean", "max"] = "max",
    out: NDArray[np.float32] | None = None,
) -> VoxelGrid:
    """Assign every pixel to the voxel of its centre and pool each voxel's pixels, as Open3D's ``VoxelGrid`` does.

    Arguments, result and errors are those of ``voxelize``. All stacks of a channel are pooled alike; a voxel without a
    pixel is 0.
    """
    from spine_engine.voxels import kernels

    values = _output(out, len(channels), spec)
    pooled = np.zeros(2 * (math.prod(spec.shape) + 1), np.float32)
    coverage = []
    for channel, grid in zip(channels, values, strict=True):
        for s in _ready(channel).stacks:
            pixels = s.stack.pixels.view(np.uint16)
            place = scatter_place(s.stack, spec, pose)
            kernels.scatter_stack(
                pooled,
                spec.shape,
                pixels,
                s.sign_bit,
                s.rescale,
                place,
                s.clip,
                pool == "max",
            )
        coverage.append(kernels.settle(pooled, grid, pool == "mean") / grid.size)
    return VoxelGrid(values, tuple(coverage))


def _resample(
    stack: PreparedStack,
    place: NDArray[np.float64],
    grid: NDArray[np.float32],
    filled: NDArray[np.bool_],
    *,
    fresh: bool,
) -> int:
    """Fill the voxels that a stack covers and that are not yet filled; return how many those are."""
    from spine_engine.voxels import kernels

    if fresh and stack.kind == EVEN:
        box = aligned_box(place, grid.shape, stack.stack.pixels.shape)
        if box is not None:
            return _resample_aligned(stack, box, grid, filled)
    count: int = kernels.resample_stack(
        grid, filled, fresh, stack.flat, stack.stack.pixels.shape, stack.sign_bit, stack.rescale, stack.shift,
        stack.segments, stack.kind, place, stack.clip,
    )  # fmt: skip
    return count


def _resample_aligned(
    stack: PreparedStack,
    box: AlignedBox,
    grid: NDArray[np.float32],
    filled: NDArray[np.bool_],
) -> int:
    """Fill the covered voxels of a new grid along the stack's own axes; return how many those are."""
    from spine_engine.voxels import aligned

    if box.count < grid.size:
        grid.fill(0.0)
    if filled.size:
        filled.fill(False)
        filled[box.covered] = True
    if box.count:
        aligned.resample_aligned(
            grid.reshape(-1), box.start, box.strides, stack.flat, box.steps, stack.sign_bit, stack.rescale, box.outer,
            box.inner, box.column, stack.clip,
        )  # fmt: skip
    return box.count


def _best_first(channel: PreparedChannel, spec: GridSpec, pose: GridPose) -> list[int]:
    """Return the numbers of the stacks that touch the grid, best coverage first, then in the channel's own order."""
    if len(channel.stacks) < 2:
        return list(range(len(channel.stacks)))
    d, h, w = (
        max(min(size, COARSE_MIN), math.ceil(size / COARSE_STEP)) for size in spec.shape
    )
    d_mm, h_mm, w_mm = (
        size / count for size, count in zip(spec.size_mm, (d, h, w), strict=True)
    )
    coarse = GridSpec((d, h, w), (d_mm, h_mm, w_mm))
    grid = np.empty(coarse.shape, np.float32)
    no_marks = np.empty((0, 0, 0), np.bool_)
    placed = zip(channel.stacks, channel.places(coarse, pose), strict=True)
    covered = [
        _resample(stack, place, grid, no_marks, fresh=True) for stack, place in placed
    ]
    best_first = sorted(range(len(covered)), key=lambda n: -covered[n])
    return [n for n in best_first if covered[n]]


def _output(
    out: NDArray[np.float32] | None, channels: int, spec: GridSpec
) -> NDArray[np.float32]:
    """Return ``out`` after checking it, or a new array ``(C, D, H, W)``."""
    shape = (channels, *spec.shape)
    if out is None:
        return np.empty(shape, np.float32)
    if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(
            f"out must be {shape} float32 and C-contiguous, got {out.shape} {out.dtype}"
        )
    return out
