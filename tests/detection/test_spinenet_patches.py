"""SpineNet's patches: the picture turned upright, square in mm, sampled by the cubic kernel as its twin does."""

from __future__ import annotations

import numpy as np
import pytest
from conftest_detection import rotation, sagittal_stack

from spine_engine.detection.spinenet.kernels import (
    cubic_taps,
    resample_cubic,
    resample_cubic_reference,
)
from spine_engine.detection.spinenet.patches import (
    PATCH_MM,
    PATCH_PX,
    patch_grid,
    patches_from_slice,
)
from spine_engine.detection.spinenet.view import View, view_from_stack
from spine_engine.study import Stack


def view_of(pixels, spacing_mm=(1.0, 1.0)) -> View:
    """A view of the given slices `(S, H, W)`; the spacing is that of (x, y)."""
    count = len(pixels)
    origins = np.arange(count)[:, None] * np.array([4.0, 0.0, 0.0])
    ones = np.ones(count, np.float32)
    down, back = np.array([0.0, 0.0, -1.0]), np.array([0.0, 1.0, 0.0])
    return View(
        np.asarray(pixels), ones, 0 * ones, origins, down, back, np.array(spacing_mm)
    )


@pytest.mark.parametrize(
    "shape", [(384, 384), (200, 333), (224, 224), (90, 60), (3, 1)]
)
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_the_cubic_kernel_is_its_twin(shape, dtype):
    rng = np.random.default_rng(sum(shape))
    info = np.iinfo(dtype)
    pixels = rng.integers(info.min, info.max, shape, endpoint=True).astype(dtype)
    taps = (*cubic_taps(shape[0], 224), *cubic_taps(shape[1], 224))
    out = np.empty((224, 224), np.float32)
    resample_cubic(out, pixels, *taps)
    assert (
        np.abs(out - resample_cubic_reference(pixels, *taps)).max() < 0.05
    )  # of 65535
    assert out.min() >= pixels.min()
    assert out.max() <= pixels.max()


def test_cubic_samples_of_a_parabola_are_exact_inside():
    x = np.arange(60.0)
    taps, weights = cubic_taps(60, 224)
    place = (np.arange(224) + 0.5) * 60 / 224 - 0.5
    inside = (place > 1) & (place < 58)
    assert (
        np.abs(
            (3 * x**2 - 7 * x)[taps[inside]] * weights[inside] @ np.ones(4)
            - (3 * place**2 - 7 * place)[inside]
        ).max()
        < 2e-3
    )
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "spacing", "starts", "size"),
    [
        ((384, 384), (0.677, 0.677), [(0, 0)], (384, 384)),  # 260 mm: one patch
        (
            (384, 384),
            (0.678, 0.678),
            [(0, 0)],
            (383, 383),
        ),  # a pixel too wide: still one
        (
            (512, 384),
            (0.677, 0.677),
            [(0, 0), (0, 128)],
            (384, 384),
        ),  # 0.6 of a patch is already beyond the last
        (
            (900, 300),
            (1.0, 1.0),
            [(0, r) for r in (0, 156, 312, 468, 624, 640)],
            (260, 260),
        ),
        ((400, 400), (1.0, 1.0), [(0, 0), (140, 0), (0, 140), (140, 140)], (260, 260)),
        (
            (300, 150),
            (1.0, 1.0),
            [(0, 0), (0, 90), (0, 150)],
            (150, 150),
        ),  # at most the picture
        (
            (300, 600),
            (1.0, 0.5),
            [(c, 0) for c in (0, 90, 180, 270, 360, 450)],
            (150, 300),
        ),  # square in mm
        ((520, 400), (0.65, 0.5), [(0, 0)], (400, 520)),
    ],
)
def test_the_grid_of_patches(shape, spacing, starts, size):
    if shape == (900, 300):
        starts = [(c, r) for r in (0, 156, 312, 468, 624, 640) for c in (0, 40)]
    grid = patch_grid(view_of(np.zeros((1, *shape), np.uint16), spacing))
    assert [tuple(start) for start in grid.starts.tolist()] == starts
    assert tuple(grid.size.tolist()) == size
    assert (grid.starts + grid.size <= np.array(shape)[::-1]).all()


def test_patches_are_placed_where_their_points_say_they_are():
    pixels = np.zeros((1, 500, 640), np.uint16)
    dots = [(100, 140), (333, 241), (480, 600)]  # row, column
    for row, column in dots:
        y, x = np.mgrid[:500, :640]
        pixels[0] += (4000 * np.exp(-((x - column) ** 2 + (y - row) ** 2) / 18)).astype(
            np.uint16
        )
    view = view_of(pixels, (0.6, 0.8))
    grid = patch_grid(view)
    patches = patches_from_slice(view, 0, grid)
    assert patches.shape == (len(grid.starts), 1, PATCH_PX, PATCH_PX)
    assert patches.dtype == np.float32
    found = set()
    for number, patch in enumerate(patches[:, 0]):
        weight = np.clip(patch, 0, None) * 1.0
        for row, column in dots:
            inside = grid.starts[number] + 10 < (column, row)
            if not (
                inside.all()
                and ((column, row) < grid.starts[number] + grid.size - 10).all()
            ):
                continue
            y, x = np.mgrid[:PATCH_PX, :PATCH_PX]
            px, py = np.moveaxis(
                grid.to_picture(number, np.stack([x, y], -1).astype(float)), -1, 0
            )
            near = (np.abs(px - column) < 12) & (np.abs(py - row) < 12)
            here = (
                np.array([(weight * near * p).sum() for p in (px, py)])
                / (weight * near).sum()
            )
            assert np.abs(here - (column, row)).max() < 0.05
            found.add((row, column))
    assert found == set(dots)


def test_a_patch_spreads_between_its_percentiles_and_an_even_one_is_zero():
    rng = np.random.default_rng(4)
    pixels = rng.integers(100, 3000, (2, 300, 300)).astype(np.uint16)
    pixels[1] = 77
    view = view_of(pixels)
    grid = patch_grid(view)
    noisy, even = (patches_from_slice(view, number, grid) for number in (0, 1))
    assert (even == 0).all()
    for patch in noisy[:, 0]:
        low, high = np.percentile(patch, [0.5, 99.5])
        assert high - low == pytest.approx(1.0, abs=1e-5)
        assert patch.min() == 0.0
    assert grid.size.tolist() == [PATCH_MM, PATCH_MM]


STORAGES = {
    "as it is": {},
    "mirrored": {"right": (0, -1, 0)},
    "head down": {"down": (0, 0, 1)},
    "both": {"down": (0, 0, 1), "right": (0, -1, 0)},
    "turned": {"down": (0, 1, 0), "right": (0, 0, -1)},
    "turned back": {"down": (0, -1, 0), "right": (0, 0, 1)},
}


@pytest.mark.parametrize("storage", STORAGES.values(), ids=STORAGES.keys())
def test_a_view_is_upright_and_keeps_every_pixel_in_its_place(storage):
    stack = sagittal_stack(3, turn=rotation(7, -5, 4), slices=5, **storage)
    spacing = (0.8, 1.1)
    stack = Stack(
        stack.pixels,
        stack.slope,
        stack.intercept,
        stack.origins_mm,
        stack.axes,
        spacing,
    )
    view = view_from_stack(stack)
    assert view.down[2] < -0.9
    assert view.back[1] > 0.9
    assert np.all(np.diff(view.origins_mm[:, 0]) > 0)  # the patient's right first
    rng = np.random.default_rng(0)
    for _ in range(20):
        s, row, column = (int(rng.integers(n)) for n in view.pixels.shape)
        offset = view.placed(s, np.array([column, row], float)) - stack.origins_mm
        own = int(np.argmin(np.abs(offset @ stack.axes[0])))
        r, c = (offset[own] @ stack.axes[1:].T / spacing).round(6)
        assert abs(offset[own] @ stack.axes[0]) < 1e-9
        assert view.pixels[s, row, column] == stack.pixels[own, round(r), round(c)]
        assert np.allclose([r, c], [round(r), round(c)])
