"""How stored values become ``[0, 1]``: one robust intensity window for all slices of a series."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spine_engine.study import Stack

SAMPLES = 1 << 17
"""How many pixels of a series the window is read from: percentiles of real series move by < 0.5 % beyond that."""

PERCENTILES = (1.0, 99.0)
"""The darkest and brightest percent are noise, vessels and coil flare; 0.5 / 99.5 of nnU-Net v2 rounded inwards."""

BACKGROUND_FRACTION = 0.1
"""Pixels below this share of the 99th percentile are air: they do not count towards the upper end of the window."""


@dataclass(frozen=True)
class IntensityWindow:
    """The rescaled values that become 0 and 1; what lies outside is clipped."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a window needs finite low < high, got {self.low} .. {self.high}")


@dataclass(frozen=True, eq=False)
class WindowedStack:
    """A stack together with the intensity window of the whole series it belongs to."""

    stack: Stack
    window: IntensityWindow


def robust_window(stacks: Sequence[Stack]) -> IntensityWindow:
    """Return the intensity window of a series from all its stacks together, whatever their order.

    The lower end is the 1st percentile of a regular subsample of the rescaled values; the upper end the 99th percentile
    of those brighter than air, so that the share of air in the field of view does not move the window. A series of one
    single value gets a window of width 1 above it.

    Raises:
        ValueError: there is no stack.
    """
    if not stacks:
        raise ValueError("a window needs at least one stack")
    step = math.ceil(math.sqrt(max(1.0, sum(stack.pixels.size for stack in stacks) / SAMPLES)))
    values, counts = _histogram(stacks, step)
    low, high = (_percentile(values, counts, q) for q in PERCENTILES)
    tissue = values > low + BACKGROUND_FRACTION * (high - low)
    if tissue.any():
        high = _percentile(values[tissue], counts[tissue], PERCENTILES[1])
    if not high > low:
        high = low + 1.0
    return IntensityWindow(low, high)


def full_window(stacks: Sequence[Stack]) -> IntensityWindow:
    """Return the window from the smallest rescaled value, or 0 where that is lower, to the largest: it clips nothing.

    Voxels that no stack covers are sampled as 0 and so stay at 0 while intensities are not negative. No stack gives the
    window 0 .. 1.
    """
    low, high = 0.0, 0.0
    for stack in stacks:
        for extreme in (stack.pixels.min(axis=(1, 2)), stack.pixels.max(axis=(1, 2))):
            values = extreme.astype(np.float64) * stack.slope + stack.intercept
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return IntensityWindow(low, high if high > low else low + 1.0)


def windowed(stacks: Iterable[Stack]) -> tuple[WindowedStack, ...]:
    """Return the stacks of one series, each with the series' robust window."""
    kept = tuple(stacks)
    if not kept:
        return ()
    window = robust_window(kept)
    return tuple(WindowedStack(stack, window) for stack in kept)


def _histogram(stacks: Sequence[Stack], step: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the rescaled values of every ``step``-th row and column of each slice, centred: distinct, ascending, and
    how often each occurs. Stored values of 16 bits are counted, not sorted; slices rescaled alike are counted together.
    """
    stored: dict[tuple[float, float], list[NDArray[np.uint16] | NDArray[np.int16]]] = {}
    for stack in stacks:
        row, column = (((size - 1) % step) // 2 for size in stack.pixels.shape[1:])
        sample = stack.pixels[:, row::step, column::step]
        tones = list(zip(stack.slope.tolist(), stack.intercept.tolist(), strict=True))
        for tone in dict.fromkeys(tones):
            chosen = [s for s, other in enumerate(tones) if other == tone]
            stored.setdefault(tone, []).append(sample if len(chosen) == len(tones) else sample[chosen])
    values, counts = [], []
    for (slope, intercept), samples in stored.items():
        for sample in samples:
            lowest = -0x8000 if sample.dtype == np.int16 else 0
            occurs = np.bincount(sample.ravel() if lowest == 0 else sample.ravel().astype(np.int32) - lowest)
            found = np.flatnonzero(occurs)
            values.append((found + lowest).astype(np.float64) * slope + intercept)
            counts.append(occurs[found])
    together, times = np.concatenate(values), np.concatenate(counts)
    order = np.argsort(together, kind="stable")
    return together[order], times[order]


def _percentile(values: NDArray[np.float64], counts: NDArray[np.int64], q: float) -> float:
    """Return what ``np.percentile`` returns for ascending ``values`` that occur ``counts`` times, bit for bit."""
    ends = np.cumsum(counts)
    place = (int(ends[-1]) - 1) * (q / 100.0)
    low, high = (float(values[np.searchsorted(ends, rank, side="right")]) for rank in (int(place), math.ceil(place)))
    t = place - int(place)
    return high - (high - low) * (1 - t) if t >= 0.5 else low + (high - low) * t
