"""The robust intensity window of a series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from spine_engine.study import Stack
from spine_engine.voxels import IntensityWindow, robust_window, windowed

Make = Callable[..., Stack]


def tissue(air: int, seed: int = 0) -> Stack:
    """Return slices of tissue (600 +- 150) with ``air`` columns of near-black background on one side."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(600, 150, (4, 64, 200)).clip(60, None)
    pixels[:, :, :air] = rng.rayleigh(8, (4, 64, air))
    origins = np.array([[0.0, 0, z] for z in range(4)])
    axes = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
    ones = np.ones(4, np.float32)
    return Stack(pixels.astype(np.uint16), ones, 0 * ones, origins, axes, (1.0, 1.0))


def test_share_of_air_hardly_moves_the_bright_end() -> None:
    highs = [robust_window([tissue(air)]).high for air in (0, 60, 140)]
    assert max(highs) / min(highs) < 1.03


def test_outliers_do_not_move_it() -> None:
    stack = tissue(60)
    want = robust_window([stack])
    stack.pixels[0, 0, :40] = 65535
    got = robust_window([stack])
    assert got.high < 1.05 * want.high


def test_all_stacks_of_the_series_count_in_any_order(make_stack: Make) -> None:
    stacks = [make_stack(seed) for seed in range(3)]
    windows = [entry.window for entry in windowed(stacks)]
    assert windows == [robust_window(stacks[::-1])] * 3
    assert robust_window(stacks[:1]) != windows[0]


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
@pytest.mark.parametrize("plain", [True, False])
def test_it_is_what_numpy_s_percentiles_say_bit_for_bit(
    make_stack: Make, dtype: type, *, plain: bool
) -> None:
    for seed in range(6):
        stacks = [
            make_stack(2 * seed + k, dtype=dtype, plain_tone=plain, shape=(5, 31, 33))
            for k in range(2)
        ]
        for stack in stacks:
            stack.pixels[:, : seed * 4] //= 40
        values = np.concatenate(
            [
                (
                    s.pixels.astype(np.float64) * s.slope[:, None, None]
                    + s.intercept[:, None, None]
                ).ravel()
                for s in stacks
            ]
        )
        low, high = np.percentile(values, (1, 99))
        high = np.percentile(values[values > low + 0.1 * (high - low)], 99)
        assert robust_window(stacks) == IntensityWindow(float(low), float(high))


def test_rescale_is_applied() -> None:
    stack = tissue(0)
    window = robust_window([stack])
    shifted = replace(stack, slope=stack.slope * 2, intercept=stack.intercept - 100)
    got = robust_window([shifted])
    assert (got.low, got.high) == pytest.approx(
        (2 * window.low - 100, 2 * window.high - 100), rel=1e-6
    )


def test_a_constant_series_and_none_at_all() -> None:
    stack = tissue(0)
    stack.pixels[:] = 7
    assert robust_window([stack]) == IntensityWindow(7, 8)
    assert windowed([]) == ()
    with pytest.raises(ValueError, match="at least one stack"):
        robust_window([])
    with pytest.raises(ValueError, match="low < high"):
        IntensityWindow(2, 1)
