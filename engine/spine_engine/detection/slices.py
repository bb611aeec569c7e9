"""Sagittal stacks as the detector's input: slices on a 2 mm canvas, superior up, anterior left, normalised per series.

Frame: patient LPS mm. The canvas of a stack is a plane grid shared by its slices; its row axis is the in-plane
stack axis nearest to the patient's superior -> inferior direction and its column axis the other
one, pointing posterior.
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
"""Thinner slices are thinned out to this step: the detector learnt 1-5 mm slices, and a disc is 45-55 mm wide."""

PAIR_STEP_MM = 6.0
"""Where two series show the spine each is thinned out to this step: every second of the usual 4-5 mm slices, of one
series those that the other leaves out. That halves the detector's time (docs/decisions/0013)."""

MAX_SLICES = 40
"""A sagittal lumbar series has 11-25 slices; more than this only costs time."""

SAMPLE_STEP = 3
"""Every third row and column of a slice is enough for the percentiles (they move by < 0.5 %)."""

GRAIN_MM = 1.0
"""Finer pixels are averaged over this, the grain of the training volumes."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """Slices of one stack on the detector's grid.

    Attributes:
        slices: `(S, H, W)` float32, normalised, 0 outside the picture.
        origins_mm: `(S, 3)` LPS centre of canvas pixel [0, 0] of each slice.
        down, back: unit LPS vectors along rows (superior -> inferior) and columns (anterior -> posterior).
        across: unit LPS vector across the slices, patient right -> left.
        picture: `(row from, row to, column from, column to)` canvas pixels that the picture covers.
        step_mm: `(S,)` lateral share of each slice, mm (half the distance to each neighbour).
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
    """Low and high rescaled values of a series: percentiles of `spec` over a regular subsample of every slice."""
    stored = [s.pixels[:, ::SAMPLE_STEP, ::SAMPLE_STEP] for s in stacks]
    slopes, intercepts = (np.concatenate([getattr(s, name) for s in stacks]) for name in ("slope", "intercept"))
    percentiles = np.array([spec.low_percentile, spec.high_percentile])
    if np.ptp(slopes) == 0 and np.ptp(intercepts) == 0 and slopes[0] > 0:
        values = np.concatenate([part.ravel() for part in stored])
        low, high = _counted_percentiles(values, percentiles) * float(slopes[0]) + float(intercepts[0])
    else:
        pairs = zip(stored, stacks, strict=True)
        rescaled = [(part * s.slope[:, None, None] + s.intercept[:, None, None]).ravel() for part, s in pairs]
        low, high = np.percentile(np.concatenate(rescaled), percentiles)
    return float(low), float(high) if high > low else float(low) + 1.0


def _counted_percentiles(values: NDArray[np.integer[Any]], percentiles: F64) -> F64:
    """`np.percentile` of integers, by counting them: a quarter of its time."""
    lowest = int(values.min())
    upto = np.cumsum(np.bincount(values.astype(np.int64) - lowest if lowest < 0 else values))
    place = percentiles / 100 * (len(values) - 1)
    below = np.floor(place).astype(np.int64)
    one = np.searchsorted(upto, below, side="right")
    other = np.searchsorted(upto, np.minimum(below + 1, len(values) - 1), side="right")
    result: F64 = one + (other - one) * (place - below) + min(lowest, 0)
    return result


def canvas_axes(stack: Stack) -> tuple[F64, F64, F64, NDArray[np.int64], NDArray[np.float64]]:
    """`down`, `back`, `across` of a sagittal stack, with the stack axis (1 or 2) and sign behind `down` and `back`."""
    first = 1 if abs(stack.axes[1, 2]) >= abs(stack.axes[2, 2]) else 2
    which = np.array([first, 3 - first])
    signs = np.array([-1.0 if stack.axes[first, 2] > 0 else 1.0, 1.0 if stack.axes[3 - first, 1] >= 0 else -1.0])
    down, back = signs[0] * stack.axes[first], signs[1] * stack.axes[3 - first]
    across = stack.axes[0] if stack.axes[0, 0] >= 0 else -stack.axes[0]
    return down, back, across, which, signs


def in_fixed_order(series: Sequence[Sequence[Stack]]) -> list[list[Stack]]:
    """Return series and their stacks sorted by place and content, without the empty ones."""

    def key(stack: Stack) -> tuple[object, ...]:
        middle = stack.pixels[len(stack.pixels) // 2]
        place = (*stack.origins_mm[0].tolist(), *stack.axes.ravel().tolist(), *stack.spacing_mm, *stack.pixels.shape)
        return (*place, middle.tobytes())

    keyed = [sorted(((key(stack), stack) for stack in stacks), key=itemgetter(0)) for stacks in series if len(stacks)]
    keyed.sort(key=lambda pairs: [each for each, _ in pairs])
    return [[stack for _, stack in pairs] for pairs in keyed]


def spine_frame(stacks: Sequence[Stack]) -> F64:
    """Rows (down, back, across) shared by all sagittal stacks, orthonormal: the mean across, superior -> inferior made
    perpendicular to it. Stacks weigh by the slices that are looked at.
    """
    axes = [canvas_axes(stack)[:3] for stack in stacks]
    counts = [len(chosen_slices(stack.positions_mm)) for stack in stacks]
    across = np.sum([each[2] * count for each, count in zip(axes, counts, strict=True)], axis=0)
    across = across / np.linalg.norm(across)
    down = np.sum([each[0] for each in axes], axis=0)
    down = down - (down @ across) * across
    down = down / np.linalg.norm(down)
    return np.stack([down, np.cross(across, down), across])


def field_of_view_center(stacks: Sequence[Stack]) -> F64:
    """The middle of the sagittal field of view `(3,)`, LPS mm: the mean of the stacks' own middles."""
    center: F64 = np.mean([stack.center_mm for stack in stacks], axis=0)
    return center


def chosen_slices(positions_mm: F64, step_mm: float = MIN_SLICE_STEP_MM, begin_mm: float = 0.0) -> NDArray[np.int64]:
    """Indices of the slices to look at, the middle `MAX_SLICES` at most.

    Args:
        positions_mm: `(S,)` ascending.
        step_mm: slices nearer to each other are thinned out.
        begin_mm: the first one lies at least this far behind the first of all.
    """
    begin = int(np.searchsorted(positions_mm, positions_mm[0] + begin_mm - 0.05))
    kept = [min(begin, len(positions_mm) - 1)]
    for i in range(kept[0] + 1, len(positions_mm)):
        if positions_mm[i] - positions_mm[kept[-1]] >= step_mm - 0.05:
            kept.append(i)
    surplus = len(kept) - MAX_SLICES
    if surplus > 0:
        kept = kept[surplus // 2 : surplus // 2 + MAX_SLICES]
    return np.array(kept)


def slices_of_pair(positions_mm: F64, number: int) -> NDArray[np.int64]:
    """Indices of the slices to look at in series `number` of several: see `PAIR_STEP_MM`. Every other series begins
    half a step later, unless its slices are so far apart that all of them are taken."""
    spacing_mm = float(np.median(np.diff(positions_mm))) if len(positions_mm) > 1 else PAIR_STEP_MM
    later_mm = max(0.0, min(PAIR_STEP_MM / 2, PAIR_STEP_MM - spacing_mm))
    return chosen_slices(positions_mm, PAIR_STEP_MM, begin_mm=later_mm if number % 2 else 0.0)


def canvas_from_stack(
    stack: Stack, low: float, high: float, spec: DetectorSpec, chosen: NDArray[np.int64] | None = None
) -> Canvas:
    """Resample slices of one stack onto their canvas and normalise them.

    A value becomes ``clip((v - low) / (high - low), 0, clip) ** gamma``. The slices are those `chosen`, or all that
    `chosen_slices` takes of a lone series.
    """
    from spine_engine.detection.kernels import draw_slices  # numba takes a second that only a run should pay

    down, back, across, which, signs = canvas_axes(stack)
    spacing = np.array(stack.spacing_mm)
    source_shape = np.array(stack.pixels.shape[1:])
    chosen = chosen_slices(stack.positions_mm) if chosen is None else chosen
    extent_px = np.minimum(source_shape[which - 1] * spacing[which - 1], spec.max_extent_mm) / spec.pixel_mm
    shape = np.ceil(extent_px / spec.multiple).astype(int) * spec.multiple
    middle_canvas = (shape - 1) / 2
    along = which - 1  # the canvas axis that lies along the source's rows, along its columns: its own inverse
    step = (signs * spec.pixel_mm / spacing[along])[along]
    start = (source_shape - 1) / 2 - middle_canvas[along] * step
    sides = zip(shape[along].tolist(), source_shape.tolist(), start, step, spacing, strict=True)
    rows, columns = (_taps(*side) for side in sides)
    tone = np.stack([stack.slope[chosen], stack.intercept[chosen] - low], axis=1) / (high - low)
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
    offset = start[0] * spacing[0] * stack.axes[1] + start[1] * spacing[1] * stack.axes[2]
    half = extent_px / 2
    picture = (
        float(middle_canvas[0] - half[0]),
        float(middle_canvas[0] + half[0]),
        float(middle_canvas[1] - half[1]),
        float(middle_canvas[1] + half[1]),
    )
    return Canvas(
        slices if along[0] == 0 else np.ascontiguousarray(slices.transpose(0, 2, 1)),
        stack.origins_mm[chosen] + offset,
        down,
        back,
        across,
        picture,
        _shares(stack.positions_mm[chosen]),
        spec.pixel_mm,
    )


@dataclass(frozen=True, eq=False)
class _Taps:
    """How a grid axis reads the source axis it lies along: position i is the sum of ``weights[:, i]`` times the pixels
    from ``first[i]`` on; the positions from ``covered[0]`` to ``covered[1]`` lie on the picture."""

    first: NDArray[np.int64]
    weights: F32
    covered: tuple[int, int]


def _taps(size: int, source: int, start: float, step: float, spacing_mm: float) -> _Taps:
    """Bilinear weights of `size` positions `start + i * step` among `source` pixels, averaged over `GRAIN_MM`."""
    count = int(np.clip(np.round(GRAIN_MM / spacing_mm), 1, 4))
    place = start + np.arange(size) * step
    inside = np.flatnonzero((place >= -0.5) & (place <= source - 0.5))
    samples = np.clip(place[:, None] + np.arange(count) - (count - 1) / 2, 0.0, source - 1.0)
    pixel = np.minimum(samples.astype(np.int64), max(source - 2, 0))
    beside = np.minimum(pixel + 1, source - 1)
    taps = int((beside[:, -1] - pixel[:, 0]).max()) + 1
    first = np.minimum(pixel[:, 0], source - taps)
    weights = np.zeros((taps, size))
    share, index = (samples - pixel) / count, np.arange(size)
    for k in range(count):
        weights[pixel[:, k] - first, index] += 1.0 / count - share[:, k]
        weights[beside[:, k] - first, index] += share[:, k]
    covered = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
    return _Taps(first, weights.astype(np.float32), covered)


def _shares(positions_mm: F64) -> F64:
    """Half the distance to both neighbours, mm; a gap counts as 8 mm, or as the usual distance where that is more, so
    that it does not outweigh the slices beside it."""
    if len(positions_mm) == 1:
        return np.ones(1)
    gaps = np.diff(positions_mm)
    gaps = np.minimum(gaps, max(8.0, float(np.median(gaps))))
    return np.concatenate([gaps[:1], (gaps[:-1] + gaps[1:]) / 2, gaps[-1:]])
