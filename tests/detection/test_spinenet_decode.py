"""The fast decode of the detector's maps equals a slow plain reading of arXiv 2007.02606 and 2205.01683."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from spine_engine.detection.spinenet.decode import (
    MAX_PEAKS,
    is_vertebra,
    polygons_from_maps,
)
from spine_engine.detection.spinenet.kernels import label_components

SIZE = 224
VOTE_PX = 10.0


def labelled(heat, threshold=0.6):
    labels = np.empty(heat.shape, np.int32)
    stack, tops = np.empty((2, heat.size), np.int32)
    count = label_components(heat.astype(np.float32), threshold, labels, stack, tops)
    return labels, tops[:count].copy()


@pytest.mark.parametrize("density", [0.0, 0.2, 0.45, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(224, 224), (37, 61), (1, 9), (9, 1)])
def test_components_are_those_of_scipy(density, shape):
    rng = np.random.default_rng(int(density * 100) + shape[0])
    heat = np.where(
        rng.random(shape) < density,
        rng.choice([0.7, 0.8, 0.9, 1.5], shape),
        rng.choice([0.0, 0.6], shape),
    )
    labels, tops = labelled(heat)
    wanted, count = ndimage.label(
        heat.astype(np.float32) > np.float32(0.6), np.ones((3, 3))
    )
    assert np.array_equal(labels, wanted)
    best = [
        int(
            np.flatnonzero(
                (wanted == k).ravel() & (heat.ravel() == heat[wanted == k].max())
            )[0]
        )
        for k in range(1, count + 1)
    ][:300]
    assert tops[:300].tolist() == best


def test_nothing_is_above_nan_and_one_spiral_is_one_component():
    assert labelled(np.full((8, 8), np.nan))[0].max() == 0
    spiral = np.zeros((9, 9))
    (
        spiral[0],
        spiral[:, 8],
        spiral[8],
        spiral[2:, 0],
        spiral[2, :7],
        spiral[2:7, 6],
        spiral[6, 2:7],
    ) = [1] * 7
    assert labelled(spiral)[0].max() == 1


# ---- the slow reference -------------------------------------------------------------------------------------------


def slow_peaks(heat):
    """(x, y) of the highest pixel of every 8-connected component above 0.6, by its first pixel in raster order."""
    left = {
        (y, x)
        for y in range(heat.shape[0])
        for x in range(heat.shape[1])
        if heat[y, x] > 0.6
    }
    peaks = []
    for seed in sorted(left):
        if seed not in left:
            continue
        left.discard(seed)
        todo, members = [seed], []
        while todo:
            y, x = todo.pop()
            members.append((y, x))
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in left:
                    left.discard(near)
                    todo.append(near)
        y, x = min(members, key=lambda p: (-heat[p], p))
        peaks.append((x, y))
    return peaks


def slow_decode(maps):
    """Vertebrae of one patch: list of (four corners (x, y), corners seen)."""
    centroids = slow_peaks(maps[4])
    votes = {
        centroid: {} for centroid in centroids
    }  # centroid -> corner type -> (distance, corner, arrow)
    for kind in range(4):
        for x, y in slow_peaks(maps[kind]):
            arrow = float(maps[5 + kind, y, x]), float(maps[9 + kind, y, x])
            vote = x + arrow[0], y + arrow[1]
            if not centroids or not all(map(math.isfinite, vote)):
                continue
            nearest = min(centroids, key=lambda c: math.dist(c, vote))
            gap = math.dist(nearest, vote)
            if gap <= VOTE_PX and (
                kind not in votes[nearest] or gap < votes[nearest][kind][0]
            ):
                votes[nearest][kind] = (gap, (x, y), arrow)
    vertebrae = []
    for centroid in centroids:
        own = votes[centroid]
        corners = {kind: corner for kind, (_, corner, _) in own.items()}
        if len(corners) < 3:
            continue
        for kind in range(4):
            if kind not in corners:
                _, _, (dx, dy) = own[(kind + 2) % 4]
                corners[kind] = (centroid[0] + dx, centroid[1] + dy)
        vertebrae.append(([corners[kind] for kind in range(4)], len(own)))
    return vertebrae


def convex(corners):
    turns = []
    for k in range(4):
        (ax, ay), (bx, by), (cx, cy) = corners[k - 1], corners[k], corners[(k + 1) % 4]
        turns.append((bx - ax) * (cy - by) - (by - ay) * (cx - bx))
    return min(turns) > 0


# ---- drawn spines -------------------------------------------------------------------------------------------------


def drawn(
    rng, *, vertebrae=8, noise=0.03, missing=(), arrow_noise=0.5, top=10.0, radius=3.0
):
    """Maps of a bent column; `missing` are (vertebra, corner) that leave no heat. Returns maps and the true corners."""
    maps = rng.normal(0, noise, (13, SIZE, SIZE))
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    truth = []
    for number in range(vertebrae):
        angle = 0.3 * math.sin(number / 2 + 1)
        u, v = (
            np.array([math.cos(angle), math.sin(angle)]),
            np.array([-math.sin(angle), math.cos(angle)]),
        )
        center = np.array([112 + 10 * math.sin(number), top + 28 * number])
        corners = [
            center + sx * 14 * u + sy * 11 * v
            for sx, sy in [(1, -1), (1, 1), (-1, 1), (-1, -1)]
        ]
        truth.append(corners)
        maps[4] += np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / radius**2)
        for kind, corner in enumerate(corners):
            if (number, kind) in missing:
                continue
            heat = np.exp(-((x - corner[0]) ** 2 + (y - corner[1]) ** 2) / radius**2)
            maps[kind] += heat
            near = heat > 0.1
            maps[5 + kind][near] = (
                center[0] - x + rng.normal(0, arrow_noise, x.shape)
            )[near]
            maps[9 + kind][near] = (
                center[1] - y + rng.normal(0, arrow_noise, x.shape)
            )[near]
    return maps.astype(np.float32), np.array(truth)


def equal(maps):
    """Compare the decodes and return the fast one."""
    (fast,) = polygons_from_maps(maps[None])
    slow = [(corners, seen) for corners, seen in slow_decode(maps) if convex(corners)]
    assert fast.seen.tolist() == [seen for _, seen in slow]
    assert fast.corners.shape == (len(slow), 4, 2)
    if slow:
        assert np.allclose(fast.corners, [corners for corners, _ in slow], atol=1e-4)
    return fast


@pytest.mark.parametrize("seed", range(12))
def test_drawn_spines_decode_as_the_slow_reading_says(seed):
    rng = np.random.default_rng(seed)
    holes = {
        (int(v), int(k))
        for v, k in zip(rng.integers(0, 8, 6), rng.integers(0, 4, 6), strict=True)
    }
    maps, truth = drawn(
        rng,
        noise=[0.0, 0.05, 0.18][seed % 3],
        missing=holes if seed % 2 else (),
        arrow_noise=seed % 4,
    )
    fast = equal(maps)
    if seed % 3 < 2 and seed % 4 < 2:
        lost = (
            [v for v in range(8) if sum((v, k) in holes for k in range(4)) > 1]
            if seed % 2
            else []
        )
        whole = [
            v
            for v in range(8)
            if v not in lost and truth[v].min() > 1 and truth[v].max() < SIZE - 2
        ]
        for v in whole:
            assert np.abs(fast.corners - truth[v]).max(axis=(1, 2)).min() < 4.0, v


def test_maps_of_pure_noise_decode_alike():
    rng = np.random.default_rng(5)
    maps = ndimage.gaussian_filter(
        rng.normal(0, 1, (13, SIZE, SIZE)), (0, 6, 6)
    ).astype(np.float32)
    maps[:5] *= 0.75 / np.sort(maps[:5].ravel())[-2500]
    maps[5:] *= 400
    equal(maps)


def test_one_corner_is_restored_and_two_lose_the_vertebra():
    maps, truth = drawn(
        np.random.default_rng(0),
        vertebrae=7,
        missing={(2, 0), (4, 1), (4, 3), (5, 2)},
        arrow_noise=0.0,
        top=15.0,
    )
    fast = equal(maps)
    assert fast.seen.tolist() == [4, 4, 3, 4, 3, 4]
    for found, own in zip(fast.corners, np.delete(truth, 4, axis=0), strict=True):
        assert np.abs(found - own).max() < 1.6


def test_a_vertebra_cut_by_the_patch_is_restored_or_dropped():
    one_out, _ = drawn(np.random.default_rng(1), top=9.0, noise=0.0)
    assert equal(one_out).seen.min() in (3, 4)
    two_out, _ = drawn(np.random.default_rng(1), top=4.0, noise=0.0)
    assert len(equal(two_out).seen) < 8


def test_empty_low_and_broken_maps_have_no_vertebra():
    assert len(equal(np.zeros((13, SIZE, SIZE), np.float32)).seen) == 0
    maps, _ = drawn(np.random.default_rng(2), noise=0.0)
    low = maps.copy()
    low[:5] *= 0.55
    assert len(equal(low).seen) == 0
    for channel in (5, 6):
        maps[channel] = np.nan
    assert len(equal(maps).seen) == 0
    assert polygons_from_maps(np.full((2, 13, SIZE, SIZE), np.nan, np.float32))[
        1
    ].corners.shape == (0, 4, 2)


def test_a_corner_far_from_every_centroid_is_no_corner():
    maps, _ = drawn(
        np.random.default_rng(3), vertebrae=3, noise=0.0, arrow_noise=0.0, top=40.0
    )
    maps[5][maps[0] > 0.1] += 12.0  # all right-top arrows miss by more than a vote may
    fast = equal(maps)
    assert fast.seen.tolist() == [3, 3, 3]


def test_noise_of_thousands_of_peaks_is_bounded():
    rng = np.random.default_rng(0)
    maps = np.zeros((1, 13, SIZE, SIZE), np.float32)
    maps[:, :5, ::2, ::2] = rng.uniform(0.7, 1.0, (1, 5, SIZE // 2, SIZE // 2))
    (fast,) = polygons_from_maps(maps)
    assert len(fast.seen) <= MAX_PEAKS


def test_patches_are_decoded_each_for_itself():
    both = np.stack(
        [drawn(np.random.default_rng(k), vertebrae=4 + k)[0] for k in range(2)]
    )
    apart = [polygons_from_maps(maps[None])[0] for maps in both]
    for fast, own in zip(polygons_from_maps(both), apart, strict=True):
        assert np.array_equal(fast.corners, own.corners)
        assert np.array_equal(fast.heat, own.heat)
        assert (fast.heat > 0.6).all()


def test_only_convex_quadrilaterals_in_the_right_order_are_vertebrae():
    square = np.array([(1.0, 0), (1, 1), (0, 1), (0, 0)])
    dent = square.copy()
    dent[2] = (0.7, 0.3)
    bow = square[[0, 2, 1, 3]]
    assert (
        is_vertebra(np.stack([square, dent, bow, square[::-1], 0 * square])).tolist()
        == [True] + [False] * 4
    )
