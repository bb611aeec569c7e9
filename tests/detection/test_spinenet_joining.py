"""Polygons of patches and slices become vertebrae: overlap in mm, joined, dropped, merged."""

from __future__ import annotations

import numpy as np
import pytest

from spine_engine.detection.spinenet.decode import Polygons, is_vertebra
from spine_engine.detection.spinenet.joining import (
    bodies_from_slices,
    groups_from_polygons,
    without_doubles,
)
from spine_engine.detection.spinenet.kernels import overlaps
from spine_engine.detection.spinenet.view import View


def box(x, y, width=34.0, height=27.0, angle=0.0):
    """Corners right-top, right-bottom, left-bottom, left-top of a turned box."""
    u, v = (
        np.array([np.cos(angle), np.sin(angle)]),
        np.array([-np.sin(angle), np.cos(angle)]),
    )
    signs = [(1, -1), (1, 1), (-1, 1), (-1, -1)]
    return np.array(
        [
            np.array([x, y]) + sx * width / 2 * u + sy * height / 2 * v
            for sx, sy in signs
        ]
    )


def painted(polygon, step=0.1):
    """Which points of a fine grid lie in a convex polygon."""
    y, x = np.mgrid[-40:40:step, -40:40:step]
    inside = np.ones(x.shape, bool)
    for p, q in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        inside &= (q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0]) >= 0
    return inside


def test_overlap_is_that_of_painted_polygons():
    rng = np.random.default_rng(0)
    polygons = []
    while len(polygons) < 8:
        corners = box(*rng.normal(0, 10, 2), angle=rng.normal(0, 0.5)) + rng.normal(
            0, 4, (4, 2)
        )
        if is_vertebra(corners[None])[0]:
            polygons.append(corners)
    shared = overlaps(np.array(polygons[:4]), np.array(polygons[4:]))
    for i in range(4):
        for j in range(4):
            a, b = painted(polygons[i]), painted(polygons[4 + j])
            assert shared[i, j] == pytest.approx(
                (a & b).sum() / (a | b).sum(), abs=0.008
            )
    assert shared.max() > 0.2


def test_overlap_of_plain_cases():
    a = box(0, 0, 4, 2)
    others = np.array(
        [
            a,
            box(2, 0, 4, 2),
            box(0, 0, 2, 1),
            box(4, 0, 4, 2),
            box(9, 9, 4, 2),
            box(0, 0, 2, 4),
        ]
    )
    assert np.allclose(overlaps(a[None], others)[0], [1, 1 / 3, 1 / 4, 0, 0, 4 / 12])


def test_of_two_patches_the_better_view_of_a_vertebra_stays():
    corners = np.array([box(0, 0), box(1, 1), box(0, 36), box(0.5, 36), box(0, 72)])
    kept = without_doubles(
        Polygons(
            corners, np.array([3, 4, 4, 4, 3]), np.array([0.99, 0.7, 0.8, 0.9, 0.7])
        )
    )
    assert sorted(kept.corners[:, 0].tolist()) == sorted(corners[[1, 3, 4], 0].tolist())
    order = np.array([4, 2, 0, 3, 1])
    again = without_doubles(
        Polygons(
            corners[order],
            np.array([3, 4, 3, 4, 4]),
            np.array([0.7, 0.8, 0.99, 0.9, 0.7]),
        )
    )
    assert np.array_equal(again.corners, kept.corners)


def groups(polygons, slices):
    found = groups_from_polygons(np.array(polygons), np.array(slices))
    return sorted(sorted(group.tolist()) for group in found)


def test_slices_are_joined_and_a_single_one_is_dropped():
    polygons = [box(0, 0), box(0, 36), box(1, 1), box(1, 37), box(2, 2), box(0, 80)]
    assert groups(polygons, [0, 0, 1, 1, 2, 2]) == [[0, 2, 4], [1, 3]]


def test_a_curved_column_is_followed_from_slice_to_slice_and_over_a_gap():
    polygons = [box(8 * k, 0) for k in range(6)] + [box(8 * k, 40) for k in range(6)]
    slices = [0, 1, 2, 4, 5, 6] * 2
    assert groups(polygons, slices) == [list(range(6)), list(range(6, 12))]


def test_each_polygon_goes_to_the_one_it_overlaps_most():
    polygons = [
        box(0, 0),
        box(0, 26),
        box(0, 17),
        box(0, -8),
    ]  # the third overlaps both of the first slice
    assert groups(polygons, [0, 0, 1, 1]) == [[0, 3], [1, 2]]


def test_two_vertebrae_of_different_slices_that_overlap_are_merged():
    polygons = [box(0, 0), box(0, 0), box(24, 0), box(24, 0), box(70, 0), box(70, 0)]
    assert overlaps(polygons[0][None], polygons[2][None])[0, 0] == pytest.approx(
        10 / 58
    )  # too little to join
    assert groups(polygons, [0, 1, 2, 3, 2, 3]) == [[0, 1, 2, 3], [4, 5]]


def test_bodies_lie_in_the_patient_and_come_from_above():
    count = 5
    down, back = np.array([0.0, 0.0, -1.0]), np.array([0.0, 1.0, 0.0])
    origins = np.array(
        [[-8.0 + 4 * s, 3.0 * s, 100.0] for s in range(count)]
    )  # slices staggered in their plane
    ones = np.ones(count, np.float32)
    view = View(
        np.zeros((count, 200, 100), np.uint16),
        ones,
        0 * ones,
        origins,
        down,
        back,
        np.array([0.5, 0.8]),
    )
    seen = []
    for s in range(count):
        placed = np.array([box(20, 70), box(20, 30)]) - [
            3.0 * s,
            0,
        ]  # the same place in the patient
        keep = slice(None) if 0 < s < 4 else slice(1, 1)
        corners = placed[keep] / view.spacing_mm
        seen.append(Polygons(corners, np.full(len(corners), 4), np.ones(len(corners))))
    bodies = bodies_from_slices(view, seen)
    assert [(body.first, body.last) for body in bodies] == [(1, 3), (1, 3)]
    assert np.allclose(bodies[0].center_mm, [0, 20, 70])
    assert np.allclose(bodies[1].center_mm, [0, 20, 30])
    assert (bodies[0].height_mm, bodies[0].depth_mm) == (
        pytest.approx(27),
        pytest.approx(34),
    )
    assert (
        bodies_from_slices(
            view, [Polygons(np.empty((0, 4, 2)), np.empty(0, int), np.empty(0))] * count
        )
        == []
    )
