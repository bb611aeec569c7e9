"""The kernels behind the slices against their NumPy twins: peaks, clusters, labellings."""

from __future__ import annotations

import numpy as np
import pytest

from spine_engine.detection import kernels, reference


def bumps(rng: np.random.Generator, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Heat maps of blobs, noise below and plateaus among them, some cut by the map's edge."""
    maps = rng.normal(0, 2, shape).astype(np.float32)
    y, x = np.mgrid[: shape[2], : shape[3]]
    for n in range(shape[0]):
        for channel in (0, 1):
            heat = 0.05 * rng.random(shape[2:])
            for _ in range(12):
                cy, cx = rng.uniform(-1, shape[2]), rng.uniform(-1, shape[3])
                heat = np.maximum(
                    heat,
                    rng.uniform(0.1, 0.95)
                    * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 12),
                )
            maps[n, channel] = np.minimum(heat, 0.6)
    return maps


@pytest.mark.parametrize("seed", range(4))
def test_peaks_are_those_of_the_reference(seed):
    maps = bumps(np.random.default_rng(seed), (3, 14, 31 + seed, 45))
    found, wanted = kernels.find_peaks(maps, 0.08), reference.find_peaks(maps, 0.08)
    assert len(wanted) > 30
    assert {0.0, 1.0} == set(wanted[:, 1])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_as_many_peaks_as_a_map_can_hold_fit():
    maps = np.zeros((2, 14, 10, 13), np.float32)
    maps[:, :2, ::3, ::3] = 0.9
    found = kernels.find_peaks(maps, 0.08)
    assert len(found) == 2 * 2 * 4 * 5
    np.testing.assert_allclose(found, reference.find_peaks(maps, 0.08), atol=1e-6)


def test_a_map_of_no_numbers_has_no_peaks():
    assert kernels.find_peaks(
        np.full((1, 14, 8, 8), np.nan, np.float32), 0.08
    ).shape == (0, 17)


@pytest.mark.parametrize("seed", range(4))
def test_clusters_are_those_of_the_reference(seed):
    rng = np.random.default_rng(seed)
    places = rng.normal(0, 3, (120, 2)) + rng.choice([0.0, 20.0, 40.0], (120, 2))
    heights = rng.uniform(0.1, 1.0, 120)
    order = np.argsort(-heights, kind="stable")
    found, wanted = (
        kernels.join_peaks(places, heights, order, 9.0),
        reference.join_peaks(places, heights, order, 9.0),
    )
    assert 9 <= wanted.max() + 1 < 60
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("seed", range(6))
def test_columns_are_weighed_as_the_reference_weighs_them(seed):
    rng = np.random.default_rng(seed)
    n, ranks, most = 2 + seed, 9, 3
    step = np.full((n, n, most + 1), -np.inf)
    step[np.triu_indices(n, 1)] = rng.normal(-1, 2, (n * (n - 1) // 2, most + 1))
    step[..., 0] = -np.inf
    emit = rng.normal(-1, 2, (n, ranks))
    emit[rng.random((n, ranks)) < 0.3] = -np.inf
    between, start, end = (
        rng.normal(-1, 1, (n, n)),
        rng.normal(-1, 1, (n, ranks)),
        rng.normal(-1, 1, (n, ranks)),
    )
    forward, backward, best = start + emit, end.copy(), start + emit
    came = np.full((n, ranks, 2), -1)
    kernels.weigh_column(forward, backward, best, came, emit, step, between)
    wanted = reference.weigh_column(emit, step, between, start, end)
    for found, one in zip((forward, backward, best), wanted, strict=True):
        np.testing.assert_allclose(found, one, atol=1e-9)
    followed = np.argwhere(came[..., 0] >= 0)
    assert len(followed) > 0
    for j, r in followed:
        i, q = came[j, r]
        assert best[j, r] == pytest.approx(
            best[i, q] + between[i, j] + step[i, j, r - q] + emit[j, r]
        )
