"""Where a stack's slices and pixels lie in a grid's indices, and how the kernels address them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spine_engine.study import Stack
from spine_engine.voxels.grid import GridPose, GridSpec

MAX_GAP = 1.75
"""Neighbouring slices further apart than this many median spacings have a slice missing between them: nothing is
interpolated there. Below 2 (one slice lost), above the unevenness of real series."""

SINGLE_SLICE_MM = 4.0
"""Nominal thickness of a stack of one slice, which has no spacing of its own: lumbar protocols use 3 to 5 mm."""

MIN_SHIFT_PX = 1e-3
"""Slices that start within a thousandth of a pixel of the first one's normal lie on it: positions are rounded."""

MAX_UNEVEN_MM = 0.01
"""Slices this close to an even row are even: headers round positions to a micrometre or so, and 0.01 mm of 4 mm moves a
value by 0.25 % of the difference between neighbouring slices."""


@dataclass(frozen=True, eq=False)
class SliceSegments:
    """The line of slice positions cut into K segments, each with the two slices it is interpolated from.

    Attributes:
        starts: ``(K + 1,)`` float32, mm along the stack's normal from its first slice, ascending, from -inf to +inf.
        slices: ``(2, K)`` int32, the lower and the upper slice of each segment.
        rate: ``(K,)`` float32, weight the upper slice gains per mm from the segment's start; 0: the lower alone; NaN:
            no slice covers the segment.
    """

    starts: NDArray[np.float32]
    slices: NDArray[np.int32]
    rate: NDArray[np.float32]


def slice_segments(stack: Stack) -> SliceSegments:
    """Cut the normal of a stack into segments: half a slice beyond each end, pairs of slices, and gaps between them."""
    positions = (stack.positions_mm - stack.positions_mm[0]).tolist()
    nominal = stack.slice_spacing_mm or SINGLE_SLICE_MM
    half, last = nominal / 2, len(positions) - 1
    cuts: list[tuple[float, int, int, float]] = [(-math.inf, 0, 0, math.nan), (-half, 0, 0, 0.0)]
    for s in range(last):
        here, there = positions[s], positions[s + 1]
        if there - here <= MAX_GAP * nominal:
            cuts.append((here, s, s + 1, 1.0 / (there - here)))
        else:
            cuts += [(here, s, s, 0.0), (here + half, s, s, math.nan), (there - half, s + 1, s + 1, 0.0)]
    cuts += [(positions[last], last, last, 0.0), (positions[last] + half, last, last, math.nan)]
    starts = np.array([*(cut[0] for cut in cuts), math.inf], np.float32)
    slices = np.array([[cut[1] for cut in cuts], [cut[2] for cut in cuts]], np.int32)
    return SliceSegments(starts, slices, np.array([cut[3] for cut in cuts], np.float32))


def slice_shift(stack: Stack) -> NDArray[np.float32]:
    """Return ``(2, S)``: (rows, columns) by which each slice starts away from the first one's normal, in pixels."""
    offsets = stack.origins_mm - stack.origins_mm[0]
    shift = (offsets @ stack.axes[1:].T / np.asarray(stack.spacing_mm)).T
    return np.where(np.abs(shift).max() < MIN_SHIFT_PX, 0.0, shift).astype(np.float32)


def resample_place(stack: Stack, spec: GridSpec, pose: GridPose) -> NDArray[np.float64]:
    """Return ``(4, 3)``: (mm along the normal, row, column) of voxel [0, 0, 0] in a stack, and their D, H, W steps."""
    to_stack = stack.axes / np.array([1.0, *stack.spacing_mm])[:, None]
    steps = (pose.axes * np.asarray(spec.spacing_mm)[:, None]) @ to_stack.T
    center = to_stack @ (pose.center_mm - stack.origins_mm[0])
    first = center - (np.asarray(spec.shape) - 1) / 2 @ steps
    return np.concatenate([first[None], steps])


def scatter_place(stack: Stack, spec: GridSpec, pose: GridPose) -> NDArray[np.float64]:
    """Return ``(S, 3, 3)``: the first pixel of each slice in voxels from the grid's corner; row and column steps."""
    spacing = np.asarray(spec.spacing_mm)
    first = (stack.origins_mm - pose.center_mm) @ pose.axes.T / spacing + np.asarray(spec.shape) / 2
    steps = (stack.axes[1:] * np.asarray(stack.spacing_mm)[:, None]) @ pose.axes.T / spacing
    return np.concatenate([first[:, None], np.broadcast_to(steps, (len(first), 2, 3))], axis=1)


def even_pitch_mm(stack: Stack, tone: NDArray[np.float32]) -> float:
    """Return the distance of the slices where all are alike, so that the quick kernel may run; else 0.

    Alike: evenly spaced, straight behind each other, rescaled alike, and at least two pixels wide and high.
    """
    positions = stack.positions_mm - stack.positions_mm[0]
    pitch = stack.slice_spacing_mm or SINGLE_SLICE_MM
    even = np.abs(positions - pitch * np.arange(len(positions))).max() <= MAX_UNEVEN_MM
    alike = bool(even) and not slice_shift(stack).any() and bool((tone == tone[:, :1]).all())
    return pitch if alike and min(stack.pixels.shape[1:]) >= 2 else 0.0
