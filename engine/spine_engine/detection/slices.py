"""Sagittal stacks as the detector's input: slices on a 2 mm canvas, superior up, anterior left, normalised per series.

Frame: patient LPS mm. The canvas of a stack is a plane grid shared by its slices; its row axis is the in-plane
stack axis nearest to the patient's superior -> inferior direction and its column axis the other
one, pointing posterior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from spine_engine.detection.spec import DetectorSpec
from spine_engine.study import Stack

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

MIN_SLICE_STEP_MM = 3.0
"""Thinner slices are thinned out to this step: the detector learnt 1-5 mm slices, and a disc is 45-55 mm wide."""

MAX_SLICES = 40
"""A sagittal lumbar series has 11-25 slices; more than this only costs time."""

SAMPLE_STEP = 3
"""Every third row and column of a slice is enough for the percentiles (they move by < 0.5 %)."""


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
    values = np.concatenate(
        [
            (s.pixels[:, ::SAMPLE_STEP, ::SAMPLE_STEP] * s.slope[:, None, None] + s.intercept[:, None, None]).ravel()
            for s in stacks
        ]
    )
    low, high = np.percentile(values, [spec.low_percentile, spec.high_percentile])
    return float(low), float(high) if high > low else float(low) + 1.0


def normalize(values: F32, low: float, high: float, spec: DetectorSpec) -> F32:
    """`clip((v - low) / (high - low), 0, clip) ** gamma`, float32."""
    scaled = np.clip((values - np.float32(low)) / np.float32(high - low), np.float32(0), np.float32(spec.clip))
    result: F32 = np.power(scaled, np.float32(spec.gamma), dtype=np.float32)
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
        return (*place, crc32(middle.tobytes()))

    kept = [sorted(stacks, key=key) for stacks in series if len(stacks)]
    return sorted(kept, key=lambda stacks: [key(s) for s in stacks])


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


def chosen_slices(positions_mm: F64) -> NDArray[np.int64]:
    """Indices of the slices to look at: all, or thinned to `MIN_SLICE_STEP_MM`, the middle `MAX_SLICES` at most."""
    kept = [0]
    for i in range(1, len(positions_mm)):
        if positions_mm[i] - positions_mm[kept[-1]] >= MIN_SLICE_STEP_MM - 0.05:
            kept.append(i)
    surplus = len(kept) - MAX_SLICES
    if surplus > 0:
        kept = kept[surplus // 2 : surplus // 2 + MAX_SLICES]
    return np.array(kept)


def canvas_from_stack(stack: Stack, low: float, high: float, spec: DetectorSpec) -> Canvas:
    """Resample the slices of one stack onto their canvas and normalise them."""
    from spine_engine.detection.kernels import resample_slice  # numba takes a second that only a run should pay

    down, back, across, which, signs = canvas_axes(stack)
    spacing = np.array(stack.spacing_mm)
    source_shape = np.array(stack.pixels.shape[1:])
    chosen = chosen_slices(stack.positions_mm)
    extent_px = np.minimum(source_shape[which - 1] * spacing[which - 1], spec.max_extent_mm) / spec.pixel_mm
    shape = (np.ceil(extent_px / spec.multiple).astype(int) * spec.multiple).tolist()
    middle_source = (source_shape - 1) / 2
    middle_canvas = (np.array(shape) - 1) / 2
    steps = np.zeros((2, 2))  # source pixels (row, column) per canvas pixel along down and back
    for k in range(2):
        steps[k, which[k] - 1] = signs[k] * spec.pixel_mm / spacing[which[k] - 1]
    start = middle_source - middle_canvas @ steps
    sub = _sub_offsets(spacing)
    slices = np.empty((len(chosen), *shape), np.float32)
    for out, index in zip(slices, chosen, strict=True):
        resample_slice(out, stack.pixels[index], start, steps[0], steps[1], sub)
    covered = np.empty((shape[0], shape[1]), np.float32)
    resample_slice(covered, np.ones(source_shape, np.uint16), start, steps[0], steps[1], sub[:1])
    slices = slices * stack.slope[chosen, None, None] + stack.intercept[chosen, None, None]
    slices = normalize(slices, low, high, spec)
    slices[:, covered == 0.0] = 0.0
    offset = start[0] * spacing[0] * stack.axes[1] + start[1] * spacing[1] * stack.axes[2]
    half = extent_px / 2
    picture = (
        float(middle_canvas[0] - half[0]),
        float(middle_canvas[0] + half[0]),
        float(middle_canvas[1] - half[1]),
        float(middle_canvas[1] + half[1]),
    )
    return Canvas(
        slices,
        stack.origins_mm[chosen] + offset,
        down,
        back,
        across,
        picture,
        _shares(stack.positions_mm[chosen]),
        spec.pixel_mm,
    )


def _sub_offsets(spacing_mm: F64) -> F64:
    """Sub-pixel offsets that average fine pixels over 1 mm, the grain of the training volumes."""
    counts = np.clip(np.round(1.0 / spacing_mm), 1, 4).astype(int)
    grids = [(np.arange(n) - (n - 1) / 2) for n in counts]
    return np.stack(np.meshgrid(*grids, indexing="ij"), -1).reshape(-1, 2).astype(np.float64)


def _shares(positions_mm: F64) -> F64:
    """Half the distance to both neighbours, mm; at most 8 mm, so that a gap does not outweigh the slices beside it."""
    if len(positions_mm) == 1:
        return np.ones(1)
    gaps = np.minimum(np.diff(positions_mm), 8.0)
    return np.concatenate([gaps[:1], (gaps[:-1] + gaps[1:]) / 2, gaps[-1:]])
