"""Computes where a stack's slices and pixels lie in a grid's indices, and how the kernels address them."""

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
"""Distance of neighbouring slices, in median spacings, above which a slice is missing between them and nothing is
interpolated: below 2 (one slice lost), above the unevenness of real series."""

SINGLE_SLICE_MM = 4.0
"""Nominal thickness of a stack of one slice, which has no spacing of its own: lumbar protocols use 3 to 5 mm."""

MIN_SHIFT_PX = 1e-3
"""Distance in pixels from the first slice's normal below which a slice starts on it: positions are rounded."""

MAX_UNEVEN_MM = 0.01
"""Deviation from an even row up to which slices are even: headers round positions to a micrometre or so, and 0.01 mm of
4 mm moves a value by 0.25 % of the difference between neighbouring slices."""


EVEN, UNEVEN, STAGGERED = range(3)
"""Likeness of a stack's slices: alike in every way; alike except for their distances; not straight behind each other or
not rescaled alike."""


@dataclass(frozen=True, eq=False)
class SliceSegments:
    """The line of slice positions cut into K segments, each with the two slices it is interpolated from.

    Attributes:
        starts: ``(K + 1,)`` float32, mm along the stack's normal from its first slice, ascending, from -inf to +inf.
        slices: ``(2, K)`` int32, the lower and the upper slice of each segment.
        rate: ``(K,)`` float32, weight that the upper slice gains per mm from the segment's start; 0 takes the lower
            slice alone, NaN means that no slice covers the segment.
    """

    starts: NDArray[np.float32]
    slices: NDArray[np.int32]
    rate: NDArray[np.float32]


NO_SEGMENTS = SliceSegments(
    np.zeros(0, np.float32), np.zeros((2, 0), np.int32), np.zeros(0, np.float32)
)
"""The segments of even slices, which are counted instead."""


def slice_segments(positions_mm: NDArray[np.float64], nominal: float) -> SliceSegments:
    """Cut the normal of a stack, from its first slice, into segments.

    These are half a slice beyond each end, pairs of slices, and gaps between slices much further apart than ``nominal``
    mm.
    """
    positions = positions_mm.tolist()
    half = nominal / 2
    last = len(positions) - 1
    cuts: list[tuple[float, int, int, float]] = [
        (-math.inf, 0, 0, math.nan),
        (-half, 0, 0, 0.0),
    ]
    for s, (here, there) in enumerate(pairwise(positions)):
        if there - here <= MAX_GAP * nominal:
            cuts.append((here, s, s + 1, 1.0 / (there - here)))
        else:
            cuts += [
                (here, s, s, 0.0),
                (here + half, s, s, math.nan),
                (there - half, s + 1, s + 1, 0.0),
            ]
    cuts += [
        (positions[last], last, last, 0.0),
        (positions[last] + half, last, last, math.nan),
    ]
    starts, lower, upper, rate = zip(*cuts, strict=True)
    return SliceSegments(
        np.array([*starts, math.inf], np.float32),
        np.array([lower, upper], np.int32),
        np.array(rate, np.float32),
    )


def slice_shift(
    offsets_mm: NDArray[np.float64], spacing_mm: tuple[float, float]
) -> NDArray[np.float32]:
    """Return ``(2, S)``: (rows, columns) between each slice's start and the first slice's normal, in pixels.

    ``offsets_mm (S, 2)`` is the same in mm.
    """
    down, right = np.abs(offsets_mm).max(axis=0).tolist()
    if max(down / spacing_mm[0], right / spacing_mm[1]) < MIN_SHIFT_PX:
        return np.zeros(offsets_mm.shape[::-1], np.float32)
    return np.ascontiguousarray((offsets_mm / spacing_mm).T, np.float32)


def scatter_place(stack: Stack, spec: GridSpec, pose: GridPose) -> NDArray[np.float64]:
    """Return ``(S, 3, 3)``: the first pixel of each slice in voxels from the grid's corner; row and column steps."""
    spacing = np.asarray(spec.spacing_mm)
    first = (stack.origins_mm - pose.center_mm) @ pose.axes.T / spacing + np.asarray(
        spec.shape
    ) / 2
    steps = (
        (stack.axes[1:] * np.asarray(stack.spacing_mm)[:, None]) @ pose.axes.T / spacing
    )
    return np.concatenate(
        [first[:, None], np.broadcast_to(steps, (len(first), 2, 3))], axis=1
    )


def pitch_mm(positions_mm: NDArray[np.float64]) -> float:
    """Return the median distance of a stack's slices, mm; a single slice has its nominal thickness."""
    positions = positions_mm.tolist()
    return (
        median(b - a for a, b in pairwise(positions))
        if len(positions) > 1
        else SINGLE_SLICE_MM
    )


def alike(
    positions_mm: NDArray[np.float64],
    pitch: float,
    rescale: NDArray[np.float32],
    shift: NDArray[np.float32],
) -> int:
    """Return the likeness of slices: ``EVEN``, ``UNEVEN`` or ``STAGGERED``."""
    if shift.any() or (rescale != rescale[:, :1]).any():
        return STAGGERED
    even = (
        np.abs(positions_mm - pitch * np.arange(len(positions_mm))).max()
        <= MAX_UNEVEN_MM
    )
    return EVEN if even else UNEVEN


GridLine = tuple[float, float, int, int]
"""A grid axis along a stack's axis: the first voxel's place and the step in pixels, the numbers of voxels and pixels.
"""


@dataclass(frozen=True, eq=False)
class AlignedBox:
    """The voxels that a stack covers of a grid along its own axes, as arguments of ``aligned.resample_aligned``.

    Attributes:
        covered: the box of covered voxels, a slice for each of D, H and W.
        count: number of covered voxels.
        start, strides, steps, outer, inner, column: see ``aligned.resample_aligned``.
    """

    covered: tuple[slice, slice, slice]
    count: int
    start: int
    strides: tuple[int, int, int]
    steps: tuple[int, int]
    outer: GridLine
    inner: GridLine
    column: GridLine


def aligned_box(
    place: NDArray[np.float64], shape: tuple[int, ...], size: tuple[int, ...]
) -> AlignedBox | None:
    """Return how an even stack lies in a grid along the stack's axes, in any order and direction.

    The result is None if the grid is oblique: if a voxel would be off by more than a thousandth of a pixel or slice.

    Args:
        place: ``(4, 3)``: (slice, row, column) of voxel [0, 0, 0], and the steps along D, H and W.
        shape: ``(D, H, W)`` of the grid.
        size: ``(S, R, C)`` of the stack.
    """
    first, *steps = place.tolist()
    reach = [(count - 1) / 2 for count in shape]
    along = [row.index(max(row, key=abs)) for row in steps]
    if sorted(along) != [0, 1, 2]:
        return None
    covered = []
    lines = []
    for axis, k in enumerate(along):
        moves = [steps[d][k] * reach[d] for d in range(3)]
        if sum(map(abs, moves)) - abs(moves[axis]) > MIN_SHIFT_PX:
            return None
        begin = first[k] + sum(moves) - moves[axis]
        step = steps[axis][k]
        ends = sorted(((-0.5 - begin) / step, (size[k] - 0.5 - begin) / step))
        start = max(math.ceil(ends[0]), 0)
        stop = max(min(math.floor(ends[1]) + 1, shape[axis]), start)
        covered.append(slice(start, stop))
        lines.append((begin + start * step, step, stop - start, size[k]))
    column = along.index(2)
    inner = 1 if column == 2 else 2
    outer = 3 - column - inner
    area = size[1] * size[2]
    strides = (shape[1] * shape[2], shape[2], 1)
    return AlignedBox(
        covered=(covered[0], covered[1], covered[2]),
        count=lines[0][2] * lines[1][2] * lines[2][2],
        start=covered[0].start * strides[0]
        + covered[1].start * strides[1]
        + covered[2].start,
        strides=(strides[outer], strides[inner], strides[column]),
        steps=(
            area if along[outer] == 0 else size[2],
            area if along[inner] == 0 else size[2],
        ),
        outer=lines[outer],
        inner=lines[inner],
        column=lines[column],
    )
