"""Maps stored values to ``[0, 1]`` by one robust intensity window for all slices of a series."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spine_engine.study import Stack

SAMPLES = 1 << 17
"""Number of pixels of a series that give the window: percentiles of real series move by < 0.5 % beyond that."""

PERCENTILES = (1.0, 99.0)
"""Percentiles that bound the window: the darkest and brightest percent are noise, vessels and coil flare (0.5 / 99.5 of
nnU-Net v2 rounded inwards)."""

BACKGROUND_FRACTION = 0.1
"""Share of the 99th percentile below which pixels are air, which does not count towards the window's upper end."""


@dataclass(frozen=True)
class IntensityWindow:
    """The rescaled values that become 0 and 1; values outside are clipped."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (
            math.isfinite(self.low)
            and math.isfinite(self.high)
            and self.low < self.high
        ):
            raise ValueError(
                f"a window needs finite low < high, got {self.low} .. {self.high}"
            )


@dataclass(frozen=True, eq=False)
class WindowedStack:
    """A stack and the intensity window of its whole series."""

    stack: Stack
    window: IntensityWindow


def robust_window(stacks: Sequence[Stack]) -> IntensityWindow:
    """Return the intensity window of a series from all its stacks together, whatever their order.

    The lower end is the 1st percentile of a regular subsample of the rescaled values. The upper end is the 99th
    percentile of those brighter than air, so that the share of air in the field of view does not move the window. A
    series of one single value gets a window of width 1 above it.

    Raises:
        ValueError: there is no stack.
    """
    if not stacks:
        raise ValueError("a window needs at least one stack")
    pixels = sum(stack.pixels.size for stack in stacks)
    step = math.ceil(math.sqrt(max(1.0, pixels / SAMPLES)))
    values, counts = _histogram(stacks, step)
    low, high = (_percentile(values, counts, q) for q in PERCENTILES)
    tissue = values > low + BACKGROUND_FRACTION * (high - low)
    if tissue.any():
        high = _percentile(values[tissue], counts[tissue], PERCENTILES[1])
    if not high > low:
        high = low + 1.0
    return IntensityWindow(low, high)


def full_window(stacks: Sequence[Stack]) -> IntensityWindow:
    """Return the window from the smallest rescaled value, or 0 if that is lower, to the largest; it clips nothing.

    Voxels that no stack covers are sampled as 0, and so stay 0 while intensities are not negative. Without stacks the
    window is 0 .. 1.
    """
    low = 0.0
    high = 0.0
    for stack in stacks:
        for extreme in (stack.pixels.min(axis=(1, 2)), stack.pixels.max(axis=(1, 2))):
            values = extreme.astype(np.float64) * stack.slope + stack.intercept
            low = min(low, float(values.min()))
            high = max(high, float(values.max()))
    return IntensityWindow(low, high if high > low else low + 1.0)


def windowed(stacks: Iterable[Stack]) -> tuple[WindowedStack, ...]:
    """Return the stacks of one series, each with the series' robust window."""
    series = tuple(stacks)
    if not series:
        return ()
    window = robust_window(series)
    return tuple(WindowedStack(stack, window) for stack in series)


def _histogram(
    stacks: Sequence[Stack], step: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the rescaled values, ascending, and how often each occurs, in a centred subsample of the slices.

    The subsample is every ``step``-th row and column. Stored values of 16 bits are counted, not sorted; slices rescaled
    alike are counted together.
    """
    stored: dict[tuple[float, float], list[NDArray[np.uint16] | NDArray[np.int16]]] = {}
    for stack in stacks:
        row, column = (((size - 1) % step) // 2 for size in stack.pixels.shape[1:])
        sample = stack.pixels[:, row::step, column::step]
        rescales = list(
            zip(stack.slope.tolist(), stack.intercept.tolist(), strict=True)
        )
        for rescale in dict.fromkeys(rescales):
            slices = [s for s, other in enumerate(rescales) if other == rescale]
            stored.setdefault(rescale, []).append(
                sample if len(slices) == len(rescales) else sample[slices]
            )
    values = []
    counts = []
    for (slope, intercept), samples in stored.items():
        for sample in samples:
            lowest = -0x8000 if sample.dtype == np.int16 else 0
            occurrences = np.bincount(
                sample.ravel()
                if lowest == 0
                else sample.ravel().astype(np.int32) - lowest
            )
            occurring = np.flatnonzero(occurrences)
            values.append((occurring + lowest).astype(np.float64) * slope + intercept)
            counts.append(occurrences[occurring])
    all_values = np.concatenate(values)
    order = np.argsort(all_values, kind="stable")
    return all_values[order], np.concatenate(counts)[order]


def _percentile(
    values: NDArray[np.float64], counts: NDArray[np.int64], q: float
) -> float:
    """Return what ``np.percentile`` returns for ascending ``values`` that occur ``counts`` times, bit for bit."""
    ends = np.cumsum(counts)
    rank = (int(ends[-1]) - 1) * (q / 100.0)
    low = float(values[np.searchsorted(ends, int(rank), side="right")])
    high = float(values[np.searchsorted(ends, math.ceil(rank), side="right")])
    t = rank - int(rank)
    return high - (high - low) * (1 - t) if t >= 0.5 else low + (high - low) * t
