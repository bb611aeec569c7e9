"""The slice resampler: kernel against reference, and the canvas in patient mm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest_detection import SPEC, rotation, sagittal_stack

from spine_engine.detection import reference
from spine_engine.detection.kernels import resample_slice
from spine_engine.detection.slices import (
    canvas_axes,
    canvas_from_stack,
    chosen_slices,
    series_range,
)


@pytest.mark.parametrize("seed", range(6))
def test_kernel_agrees_with_its_reference(seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 4000, tuple(rng.integers(1, 60, 2))).astype(np.uint16)
    start, steps, sub = (
        rng.normal(0, 5, 2),
        rng.normal(0, 1.5, (2, 2)),
        rng.normal(0, 0.3, (3, 2)),
    )
    out = np.empty((33, 29), np.float32)
    resample_slice(out, pixels, start, steps[0], steps[1], sub)
    wanted = reference.resample_slice((33, 29), pixels, start, steps[0], steps[1], sub)
    assert np.allclose(out, wanted, atol=1e-2)


STORAGES = [
    {},
    {"right": (0, -1, 0), "spacing_mm": 0.45},
    {"down": (0, 1, 0), "right": (0, 0, -1), "height_mm": 300.0},
    {
        "down": (0, 0, 1),
        "slices": 9,
        "step_mm": 1.2,
        "spacing_mm": 0.3,
        "height_mm": 150.0,
    },
    {"spacing_mm": 3.0, "height_mm": 690.0},
]


@pytest.mark.parametrize("gamma", [0.5, 0.7])
@pytest.mark.parametrize("storage", STORAGES)
def test_slices_are_drawn_as_their_reference_draws_them(storage, gamma):
    rng = np.random.default_rng(5)
    stack, spec = (
        sagittal_stack(turn=rotation(3, -5, 4), **storage),
        replace(SPEC, gamma=gamma),
    )
    signed = bool(storage)
    pixels = stack.pixels.astype(np.int16) - 300 if signed else stack.pixels
    tones = rng.uniform(0.5, 2.0, (2, len(pixels))).astype(np.float32)
    stack = replace(stack, pixels=pixels, slope=tones[0], intercept=50 * tones[1])
    low, high = series_range([stack], spec)
    canvas = canvas_from_stack(stack, low, high, spec)
    which, signs = canvas_axes(stack)[3:]
    spacing, shape = np.array(stack.spacing_mm), np.array(canvas.slices.shape[1:])
    steps = np.zeros((2, 2))
    steps[[0, 1], which - 1] = signs * spec.pixel_mm / spacing[which - 1]
    start = (np.array(pixels.shape[1:]) - 1) / 2 - (shape - 1) / 2 @ steps
    counts = np.clip(np.round(1.0 / spacing), 1, 4).astype(int)
    pairs = list(zip(canvas.slices, chosen_slices(stack.positions_mm), strict=True))[
        ::4
    ]
    assert len(pairs) > 0
    for drawn, s in pairs:
        tone = (
            stack.slope[s] / (high - low),
            (stack.intercept[s] - low) / (high - low),
        )
        wanted = reference.draw_slice(
            tuple(shape),
            pixels[s],
            (start, steps),
            tuple(counts),
            tone,
            (spec.clip, gamma),
        )
        only_one_is_black = (drawn == 0.0) != (wanted == 0.0)
        assert np.abs(drawn - wanted)[only_one_is_black].max(initial=0.0) < 1e-3
        np.testing.assert_allclose(drawn**2, wanted**2, atol=2e-6)


def test_a_picture_of_one_row_or_column_is_drawn():
    for spacing_mm in (3.0, 1.0):
        stack = sagittal_stack(slices=2, spacing_mm=spacing_mm)
        for pixels in (stack.pixels[:, :1], stack.pixels[:, :, :1]):
            thin = replace(stack, pixels=np.ascontiguousarray(pixels))
            slices = canvas_from_stack(thin, *series_range([thin], SPEC), SPEC).slices
            assert np.isfinite(slices).all()
            assert slices.any() == (
                spacing_mm > SPEC.pixel_mm
            )  # a narrower one falls between the canvas's pixels


@pytest.mark.parametrize("kind", ["uint16", "int16", "both", "uneven", "falling"])
def test_the_range_of_a_series_is_numpys_percentiles(kind):
    rng = np.random.default_rng(11)
    stacks = [
        sagittal_stack(seed, slices=3, middle_mm=(40 * seed, 0, 0)) for seed in range(2)
    ]
    drawn = [rng.gamma(2.0, 300.0, s.pixels.shape).astype(np.uint16) for s in stacks]
    if kind in ("int16", "both"):
        drawn[1] = drawn[1].astype(np.int16) - 700
        drawn[0] = drawn[0].astype(np.int16) - 700 if kind == "int16" else drawn[0]
    slope = {"uneven": [1.0, 1.5, 2.0], "falling": [-0.5] * 3}.get(kind, [1.3] * 3)
    tone = {
        "slope": np.array(slope, np.float32),
        "intercept": np.full(3, -20, np.float32),
    }
    stacks = [replace(s, pixels=p, **tone) for s, p in zip(stacks, drawn, strict=True)]
    values = [
        (p * tone["slope"][:, None, None] - 20)[:, ::3, ::3].ravel() for p in drawn
    ]
    wanted = np.percentile(np.concatenate(values).astype(float), [2.0, 99.0])
    np.testing.assert_allclose(series_range(stacks, SPEC), wanted, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize(
    "storage",
    [
        {},
        {"right": (0, -1, 0)},
        {"down": (0, 1, 0), "right": (0, 0, 1)},
        {"spacing_mm": 0.6},
    ],
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
    stack = type(stack)(
        pixels,
        stack.slope,
        stack.intercept,
        stack.origins_mm,
        stack.axes,
        stack.spacing_mm,
    )
    canvas = canvas_from_stack(stack, 0.0, 3000.0, SPEC)
    assert canvas.slices.shape[1] % SPEC.multiple == 0
    weight = canvas.slices[1].astype(float) ** 4
    y, x = (np.mgrid[: weight.shape[0], : weight.shape[1]] * weight).sum(
        (1, 2)
    ) / weight.sum()
    found = canvas.origins_mm[1] + 2.0 * (y * canvas.down + x * canvas.back)
    in_plane = target - ((target - found) @ canvas.across) * canvas.across
    assert np.linalg.norm(found - in_plane) < 0.3
    assert canvas.down[2] < -0.9
    assert canvas.back[1] > 0.9
    assert canvas.across[0] > 0.9


def test_normalisation_does_not_know_scale_and_offset():
    stack = sagittal_stack()
    scaled = type(stack)(
        stack.pixels,
        stack.slope * 7.5,
        stack.intercept + 100,
        stack.origins_mm,
        stack.axes,
        stack.spacing_mm,
    )
    a = canvas_from_stack(stack, *series_range([stack], SPEC), SPEC).slices
    b = canvas_from_stack(scaled, *series_range([scaled], SPEC), SPEC).slices
    assert np.allclose(a**2, b**2, atol=1e-5)


def test_a_flat_series_is_finite():
    stack = sagittal_stack()
    flat = type(stack)(
        stack.pixels * 0 + 7,
        stack.slope,
        stack.intercept,
        stack.origins_mm,
        stack.axes,
        stack.spacing_mm,
    )
    assert np.isfinite(
        canvas_from_stack(flat, *series_range([flat], SPEC), SPEC).slices
    ).all()
