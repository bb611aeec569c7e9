"""The slice resampler: kernel against reference, and the canvas in patient mm."""

from __future__ import annotations

import numpy as np
import pytest
from conftest_detection import SPEC, rotation, sagittal_stack

from spine_engine.detection.kernels import resample_slice, resample_slice_reference
from spine_engine.detection.slices import canvas_from_stack, normalize, series_range


@pytest.mark.parametrize("seed", range(6))
def test_kernel_agrees_with_its_reference(seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 4000, tuple(rng.integers(1, 60, 2))).astype(np.uint16)
    start, steps, sub = rng.normal(0, 5, 2), rng.normal(0, 1.5, (2, 2)), rng.normal(0, 0.3, (3, 2))
    out = np.empty((33, 29), np.float32)
    resample_slice(out, pixels, start, steps[0], steps[1], sub)
    assert np.allclose(out, resample_slice_reference((33, 29), pixels, start, steps[0], steps[1], sub), atol=1e-2)


@pytest.mark.parametrize(
    "storage", [{}, {"right": (0, -1, 0)}, {"down": (0, 1, 0), "right": (0, 0, 1)}, {"spacing_mm": 0.6}]
)
def test_canvas_pixels_lie_where_the_stack_says(storage):
    stack = sagittal_stack(turn=rotation(5, 8, -6), slices=3, **storage)
    rows, columns = np.mgrid[: stack.pixels.shape[1], : stack.pixels.shape[2]]
    place = stack.origins_mm[1] + rows[..., None] * stack.spacing_mm[0] * stack.axes[1]
    place = place + columns[..., None] * stack.spacing_mm[1] * stack.axes[2]
    target = stack.center_mm + np.array([0.0, 12.0, 31.0])
    values = 3000 * np.exp(-((place - target) ** 2).sum(-1) / 200.0)
    pixels = stack.pixels.copy()
    pixels[1] = values.astype(np.uint16)
    stack = type(stack)(pixels, stack.slope, stack.intercept, stack.origins_mm, stack.axes, stack.spacing_mm)
    canvas = canvas_from_stack(stack, 0.0, 3000.0, SPEC)
    assert canvas.slices.shape[1] % SPEC.multiple == 0
    weight = canvas.slices[1].astype(float) ** 4
    y, x = (np.mgrid[: weight.shape[0], : weight.shape[1]] * weight).sum((1, 2)) / weight.sum()
    found = canvas.origins_mm[1] + 2.0 * (y * canvas.down + x * canvas.back)
    in_plane = target - ((target - found) @ canvas.across) * canvas.across
    assert np.linalg.norm(found - in_plane) < 0.3
    assert canvas.down[2] < -0.9
    assert canvas.back[1] > 0.9
    assert canvas.across[0] > 0.9


def test_normalisation_does_not_know_scale_and_offset():
    stack = sagittal_stack()
    low, high = series_range([stack], SPEC)
    scaled = type(stack)(
        stack.pixels, stack.slope * 7.5, stack.intercept + 100, stack.origins_mm, stack.axes, stack.spacing_mm
    )
    low_2, high_2 = series_range([scaled], SPEC)
    a = normalize(stack.pixels.astype(np.float32), low, high, SPEC)
    b = normalize(stack.pixels.astype(np.float32) * 7.5 + 100, low_2, high_2, SPEC)
    assert np.allclose(a, b, atol=1e-5)


def test_a_flat_series_is_finite():
    stack = sagittal_stack()
    flat = type(stack)(
        stack.pixels * 0 + 7, stack.slope, stack.intercept, stack.origins_mm, stack.axes, stack.spacing_mm
    )
    assert np.isfinite(canvas_from_stack(flat, *series_range([flat], SPEC), SPEC).slices).all()
