"""Where a stack's slices and pixels lie in a grid's indices, and how the kernels address them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

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


EVEN, UNEVEN, SIDED = range(3)
"""How far a stack's slices are alike: in every way; but for their distances; not even straight behind each other or
rescaled alike."""


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


NO_SEGMENTS = SliceSegments(np.zeros(0, np.float32), np.zeros((2, 0), np.int32), np.zeros(0, np.float32))
"""What even slices have: they are counted."""


def slice_segments(positions_mm: NDArray[np.float64], nominal: float) -> SliceSegments:
    """Cut the normal of a stack, from its first slice, into segments: half a slice beyond each end, pairs of slices,
    and the gaps between slices much further apart than the ``nominal`` mm."""
    positions = positions_mm.tolist()
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


def slice_shift(offsets_mm: NDArray[np.float64], spacing_mm: tuple[float, float]) -> NDArray[np.float32]:
    """Return ``(2, S)``: (rows, columns) by which each slice starts away from the first one's normal, in pixels; from
    ``(S, 2)``, the same in mm."""
    down, right = np.abs(offsets_mm).max(axis=0).tolist()
    if max(down / spacing_mm[0], right / spacing_mm[1]) < MIN_SHIFT_PX:
        return np.zeros(offsets_mm.shape[::-1], np.float32)
    return np.ascontiguousarray((offsets_mm / spacing_mm).T, np.float32)


def scatter_place(stack: Stack, spec: GridSpec, pose: GridPose) -> NDArray[np.float64]:
    """Return ``(S, 3, 3)``: the first pixel of each slice in voxels from the grid's corner; row and column steps."""
    spacing = np.asarray(spec.spacing_mm)
    first = (stack.origins_mm - pose.center_mm) @ pose.axes.T / spacing + np.asarray(spec.shape) / 2
    steps = (stack.axes[1:] * np.asarray(stack.spacing_mm)[:, None]) @ pose.axes.T / spacing
    return np.concatenate([first[:, None], np.broadcast_to(steps, (len(first), 2, 3))], axis=1)


def pitch_mm(positions_mm: NDArray[np.float64]) -> float:
    """Return the (median) distance of a stack's slices, mm; a single slice has its nominal thickness."""
    positions = positions_mm.tolist()
    return median(b - a for a, b in pairwise(positions)) if len(positions) > 1 else SINGLE_SLICE_MM


def alike(
    positions_mm: NDArray[np.float64], pitch: float, tone: NDArray[np.float32], shift: NDArray[np.float32]
) -> int:
    """Return how far slices are alike: ``EVEN``, ``UNEVEN`` or ``SIDED``."""
    if shift.any() or (tone != tone[:, :1]).any():
        return SIDED
    even = np.abs(positions_mm - pitch * np.arange(len(positions_mm))).max() <= MAX_UNEVEN_MM
    return EVEN if even else UNEVEN


Line = tuple[float, float, int, int]
"""An axis of a grid along one of a stack's: the first voxel's place in pixels, the step, how many voxels and pixels."""


@dataclass(frozen=True, eq=False)
class AlignedBox:
    """The voxels that a stack covers of a grid along its own axes, as ``aligned.resample_aligned`` wants them.

    Attributes:
        covered: the box of covered voxels, a slice for D, H and W.
        count: how many voxels that are.
        start, strides, steps, outer, inner, column: described there.
    """

    covered: tuple[slice, slice, slice]
    count: int
    start: int
    strides: tuple[int, int, int]
    steps: tuple[int, int]
    outer: Line
    inner: Line
    column: Line


def aligned_box(place: NDArray[np.float64], shape: tuple[int, ...], size: tuple[int, ...]) -> AlignedBox | None:
    """Return how an even stack lies in a grid along its own axes, in any order and direction; None where the grid is
    oblique: where a voxel would be off by more than a thousandth of a pixel or of a slice.

    Args:
        place: ``(4, 3)``: (slice, row, column) of voxel [0, 0, 0], and their steps along D, H and W.
        shape: ``(D, H, W)`` of the grid.
        size: ``(S, R, C)`` of the stack.
    """
    first, *steps = place.tolist()
    reach = [(count - 1) / 2 for count in shape]
    along = [row.index(max(row, key=abs)) for row in steps]
    if sorted(along) != [0, 1, 2]:
        return None
    covered, lines = [], []
    for axis, k in enumerate(along):
        moves = [steps[d][k] * reach[d] for d in range(3)]
        begin, step, end = first[k] + sum(moves) - moves[axis], steps[axis][k], size[k]
        if sum(map(abs, moves)) - abs(moves[axis]) > MIN_SHIFT_PX:
            return None
        enter, leave = (-0.5 - begin) / step, (end - 0.5 - begin) / step
        start = max(math.ceil(min(enter, leave)), 0)
        stop = max(min(math.floor(max(enter, leave)) + 1, shape[axis]), start)
        covered.append(slice(start, stop))
        lines.append((begin + start * step, step, stop - start, end))
    column = along.index(2)
    inner = 1 if column == 2 else 2
    outer = 3 - column - inner
    area, strides = size[1] * size[2], (shape[1] * shape[2], shape[2], 1)
    return AlignedBox(
        covered=(covered[0], covered[1], covered[2]),
        count=lines[0][2] * lines[1][2] * lines[2][2],
        start=covered[0].start * strides[0] + covered[1].start * strides[1] + covered[2].start,
        strides=(strides[outer], strides[inner], strides[column]),
        steps=(area if along[outer] == 0 else size[2], area if along[inner] == 0 else size[2]),
        outer=lines[outer],
        inner=lines[inner],
        column=lines[column],
    )
