"""Windows by hand: which pixels are looked at, what is air, and what a window of everything is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spine_engine.study import Stack
from spine_engine.voxels import IntensityWindow, full_window, robust_window, windowed


def stack(pixels: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> Stack:
    count = len(pixels)
    origins = np.array([[0.0, 0, z] for z in range(count)])
    axes = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
    rescale = (np.full(count, slope, np.float32), np.full(count, intercept, np.float32))
    return Stack(np.ascontiguousarray(pixels), *rescale, origins, axes, (1.0, 1.0))


def test_from_a_hundredth_to_the_ninety_ninth() -> None:
    ramp = np.arange(1000, 11001).astype(np.uint16)[
        None, None
    ]  # no air: 0.1 of the way up lies in the ramp
    low = 1000 + 0.01 * 10000
    air = low + 0.1 * (1000 + 0.99 * 10000 - low)
    bright = np.arange(math.floor(air) + 1, 11001)
    window = robust_window([stack(ramp)])
    assert (window.low, window.high) == (low, pytest.approx(np.percentile(bright, 99)))


@pytest.mark.parametrize(("dark", "high"), [(199, 1000.0), (201, 208.0)])
def test_what_is_darker_than_a_tenth_of_the_way_up_is_air(
    dark: int, high: float
) -> None:
    """100 is the low end, 1100 the high one: a tenth of the way is 200."""
    values = np.r_[
        np.full(20, 100), np.full(970, dark), np.full(10, 1000), np.full(20, 1100)
    ].astype(np.uint16)
    window = robust_window([stack(values[None, None])])
    assert window.low == 100
    tissue = values[values > 200]
    assert window.high == pytest.approx(np.percentile(tissue, 99))
    assert (len(tissue) == 30) == (dark == 199)


@pytest.mark.parametrize(
    ("side", "step", "first"),
    [(362, 1, 0), (363, 2, 0), (724, 2, 0), (725, 3, 0), (1086, 3, 1)],
)
def test_large_series_are_looked_at_in_a_regular_centred_pattern(
    side: int, step: int, first: int
) -> None:
    """131,072 pixels are looked at, or a regular pattern of about as many: every second row and column, every third."""
    assert math.ceil(math.sqrt(max(1, side * side / 131072))) == step
    pixels = np.full((1, side, side), 60000, np.uint16)
    seen = pixels[:, first::step, first::step]
    seen[:] = (np.arange(seen.size) % 5000 + 1000).reshape(seen.shape)
    window = robust_window([stack(pixels)])
    assert window.high < 6000
    assert window.high > 5900


def test_the_pattern_goes_by_all_stacks_of_the_series_together() -> None:
    pixels = np.full((1, 300, 300), 60000, np.uint16)
    pixels[:, ::2, ::2] = 1000 + np.arange(150 * 150).reshape(150, 150) % 100
    alone, together = (
        robust_window([stack(pixels)]),
        robust_window([stack(pixels), stack(pixels)]),
    )
    assert alone.high == 60000
    assert together.high < 1100


def test_every_slice_is_looked_at_with_its_own_rescale() -> None:
    made = stack(np.full((2, 4, 4), 100, np.uint16))
    made.slope[1], made.intercept[1] = 3.0, 50.0
    assert robust_window([made]).low == 100
    assert robust_window([made]).high == 350
    falling = stack(np.array([[[0, 100]]], np.uint16), slope=-1.0)
    assert full_window([falling]) == IntensityWindow(-100.0, 0.0)


def test_the_full_window_holds_every_value_and_zero() -> None:
    one = stack(np.array([[[200, 700]], [[300, 900]]], np.uint16))
    assert full_window([one]) == IntensityWindow(0.0, 900.0)
    assert full_window(
        [one, stack(np.array([[[5]]], np.uint16), 2.0, -30.0)]
    ) == IntensityWindow(-20.0, 900.0)
    assert (
        full_window([])
        == full_window([stack(np.zeros((1, 2, 2), np.uint16))])
        == IntensityWindow(0.0, 1.0)
    )
    signed = stack(np.array([[[-50, -20]]], np.int16))
    assert full_window([signed]) == IntensityWindow(-50.0, 0.0)


@pytest.mark.parametrize(
    ("low", "high"),
    [(1, 1), (2, 1), (0, np.inf), (-np.inf, 0), (np.nan, 1), (0, np.nan)],
)
def test_a_window_is_finite_and_rises(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="finite low < high"):
        IntensityWindow(low, high)


def test_all_stacks_of_a_series_share_its_window() -> None:
    one, other = (
        stack(np.full((1, 2, 2), 100, np.uint16)),
        stack(np.full((1, 2, 2), 900, np.uint16)),
    )
    made = windowed(iter([one, other]))
    assert [placed.stack for placed in made] == [one, other]
    assert {placed.window for placed in made} == {IntensityWindow(100.0, 900.0)}
