"""Turns sagittal stacks into the detector's input: slices on a 2 mm canvas, superior up, anterior left, normalised.

Frame: patient LPS mm. The canvas of a stack is a plane grid shared by its slices. Its row axis is the in-plane stack
axis nearest to the patient's superior -> inferior direction; its column axis is the other one, pointing posterior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spine_engine.detection.spec import DetectorSpec
from spine_engine.study import Stack

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

MIN_SLICE_STEP_MM = 3.0
"""Smallest distance between the slices of a lone series; the detector learnt 1-5 mm slices, a disc is 45-55 mm wide."""

PAIR_STEP_MM = 6.0
"""Smallest distance between the slices of each series if several show the spine: every second of the usual 4-5 mm
slices; one series shows those that the other leaves out. This halves the detector's time (docs/decisions/0013)."""

MAX_SLICES = 40
"""Largest number of slices per series: a sagittal lumbar series has 11-25; more only cost time."""

SAMPLE_STEP = 3
"""Step between the rows and columns that the percentiles are taken from: it moves them by < 0.5 %."""

GRAIN_MM = 1.0
"""Length over which finer pixels are averaged: the grain of the training volumes."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """The slices of one stack on the detector's grid.

    Attributes:
        slices: `(S, H, W)` float32, normalised, 0 outside the picture.
        origins_mm: `(S, 3)` LPS centre of canvas pixel [0, 0] of each slice.
        down, back: unit LPS vectors along rows (superior -> inferior) and columns (anterior -> posterior).
        across: unit LPS vector across the slices, patient right -> left.
        picture: `(row from, row to, column from, column to)`, the canvas pixels that the picture covers.
        step_mm: `(S,)`, the lateral share of each slice, mm (half the distance to each neighbour).
        pixel_mm: edge of a canvas pixel.
    """

    slices: F32
    origins_mm: F64
    down: F64
    back: F64
    across: F64
    picture: tuple[float, float, float, float]
    step_mm: F64
    pixel_mm: float


def series_range(stacks: Sequence[Stack], spec: DetectorSpec) -> tuple[float, float]:
    """Return the low and high rescaled value of a series: percentiles over a regular subsample of every slice."""
    samples = [stack.pixels[:, ::SAMPLE_STEP, ::SAMPLE_STEP] for stack in stacks]
    slopes = np.concatenate([stack.slope for stack in stacks])
    intercepts = np.concatenate([stack.intercept for stack in stacks])
    percentiles = np.array([spec.low_percentile, spec.high_percentile])
    if np.ptp(slopes) == 0 and np.ptp(intercepts) == 0 and slopes[0] > 0:
        stored = np.concatenate([sample.ravel() for sample in samples])
        low, high = _counted_percentiles(stored, percentiles) * float(
            slopes[0]
        ) + float(intercepts[0])
    else:
        rescaled = [
            (
                sample * stack.slope[:, None, None] + stack.intercept[:, None, None]
            ).ravel()
            for sample, stack in zip(samples, stacks, strict=True)
        ]
        low, high = np.percentile(np.concatenate(rescaled), percentiles)
    return float(low), float(high) if high > low else float(low) + 1.0


def _counted_percentiles(values: NDArray[np.integer[Any]], percentiles: F64) -> F64:
    """Return `np.percentile` of integers by counting them, in a quarter of its time."""
    lowest = int(values.min())
    counts_up_to = np.cumsum(
        np.bincount(values.astype(np.int64) - lowest if lowest < 0 else values)
    )
    rank = percentiles / 100 * (len(values) - 1)
    rank_below = np.floor(rank).astype(np.int64)
    below = np.searchsorted(counts_up_to, rank_below, side="right")
    above = np.searchsorted(
        counts_up_to, np.minimum(rank_below + 1, len(values) - 1), side="right"
    )
    return np.asarray(below + (above - below) * (rank - rank_below) + min(lowest, 0))


def canvas_axes(
    stack: Stack,
) -> tuple[F64, F64, F64, NDArray[np.int64], NDArray[np.float64]]:
    """Return `down`, `back` and `across` of a sagittal stack.

    The stack axes (1 or 2) that `down` and `back` lie along and their signs `(2,)` follow.
    """
    along_down = 1 if abs(stack.axes[1, 2]) >= abs(stack.axes[2, 2]) else 2
    along_back = 3 - along_down
    down_sign = -1.0 if stack.axes[along_down, 2] > 0 else 1.0
    back_sign = 1.0 if stack.axes[along_back, 1] >= 0 else -1.0
    across = stack.axes[0] if stack.axes[0, 0] >= 0 else -stack.axes[0]
    return (
        down_sign * stack.axes[along_down],
        back_sign * stack.axes[along_back],
        across,
        np.array([along_down, along_back]),
        np.array([down_sign, back_sign]),
    )


def in_fixed_order(series: Sequence[Sequence[Stack]]) -> list[list[Stack]]:
    """Return series and their stacks sorted by place and content, without the empty ones."""

    def key(stack: Stack) -> tuple[object, ...]:
        middle = stack.pixels[len(stack.pixels) // 2]
        place = (
            *stack.origins_mm[0].tolist(),
            *stack.axes.ravel().tolist(),
            *stack.spacing_mm,
            *stack.pixels.shape,
        )
        return (*place, middle.tobytes())

    keyed = [
        sorted(((key(stack), stack) for stack in stacks), key=itemgetter(0))
        for stacks in series
        if len(stacks)
    ]
    keyed.sort(key=lambda pairs: [stack_key for stack_key, _ in pairs])
    return [[stack for _, stack in pairs] for pairs in keyed]


def spine_frame(stacks: Sequence[Stack]) -> F64:
    """Return the orthonormal rows (down, back, across) shared by all sagittal stacks.

    `across` is the mean of the stacks, weighted by their chosen slices; `down` is made perpendicular to it.
    """
    axes = [canvas_axes(stack) for stack in stacks]
    counts = [len(chosen_slices(stack.positions_mm)) for stack in stacks]
    across = np.sum(
        [
            across * count
            for (_, _, across, _, _), count in zip(axes, counts, strict=True)
        ],
        axis=0,
    )
    across = across / np.linalg.norm(across)
    down = np.sum([down for down, *_ in axes], axis=0)
    down = down - (down @ across) * across
    down = down / np.linalg.norm(down)
    return np.stack([down, np.cross(across, down), across])


def field_of_view_center(stacks: Sequence[Stack]) -> F64:
    """Return the middle of the sagittal field of view `(3,)`, LPS mm: the mean of the stacks' own middles."""
    return np.asarray(np.mean([stack.center_mm for stack in stacks], axis=0))


def chosen_slices(
    positions_mm: F64, step_mm: float = MIN_SLICE_STEP_MM, begin_mm: float = 0.0
) -> NDArray[np.int64]:
    """Return the indices of the slices that the detector sees, at most the middle `MAX_SLICES`.

    Args:
        positions_mm: `(S,)` ascending.
        step_mm: smallest distance between two chosen slices.
        begin_mm: smallest distance of the first chosen slice from the first of all.
    """
    begin = int(np.searchsorted(positions_mm, positions_mm[0] + begin_mm - 0.05))
    chosen = [min(begin, len(positions_mm) - 1)]
    for i in range(chosen[0] + 1, len(positions_mm)):
        if positions_mm[i] - positions_mm[chosen[-1]] >= step_mm - 0.05:
            chosen.append(i)
    surplus = max(len(chosen) - MAX_SLICES, 0)
    return np.array(chosen[surplus // 2 : surplus // 2 + MAX_SLICES])


def slices_of_pair(positions_mm: F64, number: int) -> NDArray[np.int64]:
    """Return the indices of the slices that the detector sees in series `number` of several, `PAIR_STEP_MM` apart.

    Every other series begins half a step later, unless its slices are so far apart that all of them are taken.
    """
    spacing_mm = (
        float(np.median(np.diff(positions_mm)))
        if len(positions_mm) > 1
        else PAIR_STEP_MM
    )
    later_mm = max(0.0, min(PAIR_STEP_MM / 2, PAIR_STEP_MM - spacing_mm))
    return chosen_slices(
        positions_mm, PAIR_STEP_MM, begin_mm=later_mm if number % 2 else 0.0
    )


def canvas_from_stack(
    stack: Stack,
    low: float,
    high: float,
    spec: DetectorSpec,
    chosen: NDArray[np.int64] | None = None,
) -> Canvas:
    """Resample the `chosen` slices of one stack onto their canvas and normalise them.

    A value becomes ``clip((v - low) / (high - low), 0, clip) ** gamma``. By default `chosen_slices` chooses the slices.
    """
    from spine_engine.detection.kernels import (
        draw_slices,
    )  # numba takes a second that only a run should pay

    down, back, across, which, signs = canvas_axes(stack)
    spacing = np.array(stack.spacing_mm)
    source_shape = np.array(stack.pixels.shape[1:])
    chosen = chosen_slices(stack.positions_mm) if chosen is None else chosen
    along = (
        which - 1
    )  # the canvas axis that lies along the source's rows, along its columns: its own inverse
    extent_px = (
        np.minimum(source_shape[along] * spacing[along], spec.max_extent_mm)
        / spec.pixel_mm
    )
    shape = np.ceil(extent_px / spec.multiple).astype(int) * spec.multiple
    middle_canvas = (shape - 1) / 2
    step = (signs * spec.pixel_mm / spacing[along])[along]
    start = (source_shape - 1) / 2 - middle_canvas[along] * step
    sides = zip(
        shape[along].tolist(), source_shape.tolist(), start, step, spacing, strict=True
    )
    rows, columns = (_taps(*side) for side in sides)
    tone = np.stack([stack.slope[chosen], stack.intercept[chosen] - low], axis=1) / (
        high - low
    )
    slices = np.zeros((len(chosen), *shape[along]), np.float32)
    draw_slices(
        slices,
        stack.pixels.view(np.uint16),
        np.uint16(0x8000 if stack.pixels.dtype == np.int16 else 0),
        chosen,
        (rows.first, columns.first),
        (rows.weights, columns.weights),
        (rows.covered, columns.covered),
        tone.astype(np.float32),
        (np.float32(spec.clip), np.float32(spec.gamma)),
    )
    offset = (
        start[0] * spacing[0] * stack.axes[1] + start[1] * spacing[1] * stack.axes[2]
    )
    top, left = (middle_canvas - extent_px / 2).tolist()
    bottom, right = (middle_canvas + extent_px / 2).tolist()
    return Canvas(
        slices if along[0] == 0 else np.ascontiguousarray(slices.transpose(0, 2, 1)),
        stack.origins_mm[chosen] + offset,
        down,
        back,
        across,
        (top, bottom, left, right),
        _shares(stack.positions_mm[chosen]),
        spec.pixel_mm,
    )


@dataclass(frozen=True, eq=False)
class _Taps:
    """The pixels and weights that a grid axis reads from the source axis it lies along.

    Position i is the sum of ``weights[:, i]`` times the pixels from ``first[i]`` on; the positions from ``covered[0]``
    to ``covered[1]`` lie on the picture.
    """

    first: NDArray[np.int64]
    weights: F32
    covered: tuple[int, int]


def _taps(
    size: int, source: int, start: float, step: float, spacing_mm: float
) -> _Taps:
    """Return the bilinear taps of positions `start + i * step` among `source` pixels, averaged over `GRAIN_MM`."""
    count = int(np.clip(np.round(GRAIN_MM / spacing_mm), 1, 4))
    place = start + np.arange(size) * step
    inside = np.flatnonzero((place >= -0.5) & (place <= source - 0.5))
    samples = np.clip(
        place[:, None] + np.arange(count) - (count - 1) / 2, 0.0, source - 1.0
    )
    pixel = np.minimum(samples.astype(np.int64), max(source - 2, 0))
    beside = np.minimum(pixel + 1, source - 1)
    taps = int((beside[:, -1] - pixel[:, 0]).max()) + 1
    first = np.minimum(pixel[:, 0], source - taps)
    weights = np.zeros((taps, size))
    share = (samples - pixel) / count
    index = np.arange(size)
    for k in range(count):
        weights[pixel[:, k] - first, index] += 1.0 / count - share[:, k]
        weights[beside[:, k] - first, index] += share[:, k]
    covered = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
    return _Taps(first, weights.astype(np.float32), covered)


def _shares(positions_mm: F64) -> F64:
    """Return half the distance of each slice to both neighbours, mm.

    A gap counts as 8 mm, or as the usual distance if that is more, so that it does not outweigh the slices beside it.
    """
    if len(positions_mm) == 1:
        return np.ones(1)
    gaps = np.diff(positions_mm)
    gaps = np.minimum(gaps, max(8.0, float(np.median(gaps))))
    return np.concatenate([gaps[:1], (gaps[:-1] + gaps[1:]) / 2, gaps[-1:]])
