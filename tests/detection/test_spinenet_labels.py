"""SpineNet's three labelling steps: volumes round vertebrae, the painted column, the beam search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from test_spinenet_joining import box

from spine_engine.detection.spinenet.beam import CLASS_NAMES, named_column
from spine_engine.detection.spinenet.joining import Body
from spine_engine.detection.spinenet.labels import (
    context_column,
    log_softmax,
    volume_round,
)
from spine_engine.detection.spinenet.view import View

# ---- the beam -----------------------------------------------------------------------------------------------------


def cheapest(log_p, missed):
    """Every column there can be, priced by the rules: the best cost and all columns that have it."""
    costs = {}
    for path in itertools.product(range(24), repeat=len(log_p)):
        cost = -sum(log_p[k][rank] for k, rank in enumerate(path))
        for (upper, lower), gap in zip(itertools.pairwise(path), missed, strict=True):
            if not 1 <= upper - lower <= 1 + gap:
                cost += 100 if upper == lower == 0 else 1000
        costs[path] = cost
    return min(costs.items(), key=lambda item: item[1])


def log_p(rng, count, spread):
    return log_softmax(rng.normal(0, spread, (count, 24)))


@pytest.mark.parametrize("seed", range(9))
def test_the_beam_finds_what_trying_everything_finds(seed):
    rng = np.random.default_rng(seed)
    count = 1 + seed % 3
    table = log_p(
        rng, count, [1.0, 40.0, 4000.0][seed // 3]
    )  # 4000: a break may be the cheapest
    missed = rng.choice([0, 0, 1], count - 1).tolist()
    path, cost = cheapest(table, missed)
    column = named_column(table, missed)
    assert column.cost == pytest.approx(cost)
    assert tuple(column.classes.tolist()) == path


def test_a_break_and_a_second_sacral_vertebra_cost_what_they_should():
    table = np.full((3, 24), -3000.0)
    for row, rank in enumerate((1, 0, 0)):
        table[row, rank] = -0.1
    column = named_column(table, [0, 0])
    assert column.names == ["l5", "s1", "s2"]
    assert column.cost == pytest.approx(100.3)
    for row, rank in enumerate((5, 3, 2)):
        table[row] = -3000.0
        table[row, rank] = -0.1
    column = named_column(table, [0, 0])
    assert column.classes.tolist() == [5, 3, 2]
    assert column.cost == pytest.approx(1000.3)
    assert named_column(table, [1, 0]).cost == pytest.approx(
        0.3
    )  # there is room for the one in between


def test_the_column_outvotes_one_vertebra_and_says_how_sure_it_is():
    scores = np.zeros((6, 24))
    for row, rank in enumerate(range(5, -1, -1)):
        scores[row, rank] = 60.0
    scores[2] = 0.0
    scores[2, 7] = 60.0
    column = named_column(log_softmax(scores), [0] * 5)
    assert column.names == ["l1", "l2", "l3", "l4", "l5", "s1"]
    assert column.probability.min() > 0.99
    doubtful = np.zeros((4, 24))
    for row in range(4):
        doubtful[row, [8 - row, 9 - row]] = 50.0, 50.1
    unsure = named_column(log_softmax(doubtful), [0] * 3)
    assert unsure.probability == pytest.approx(
        np.full(4, 1 / (1 + np.exp(-0.04))), abs=0.01
    )


def test_names_are_those_of_the_spine():
    assert len(CLASS_NAMES) == 24
    assert (CLASS_NAMES[0], CLASS_NAMES[1], CLASS_NAMES[5], CLASS_NAMES[6]) == (
        "s1",
        "l5",
        "l1",
        "t12",
    )
    assert (CLASS_NAMES[17], CLASS_NAMES[18], CLASS_NAMES[23]) == ("t1", "c7", "c2")


# ---- volumes and columns ------------------------------------------------------------------------------------------


def view_of(pixels, spacing_mm=(1.0, 1.0), slope=None):
    count = len(pixels)
    origins = np.arange(count)[:, None] * np.array([4.0, 0.0, 0.0])
    slope = (
        np.ones(count, np.float32) if slope is None else np.asarray(slope, np.float32)
    )
    down, back = np.array([0.0, 0.0, -1.0]), np.array([0.0, 1.0, 0.0])
    return View(
        np.asarray(pixels), slope, 0 * slope, origins, down, back, np.array(spacing_mm)
    )


def body_at(view, polygon_mm, first=0, last=None):
    """A body whose corners are `polygon_mm` (x, y) from the picture's first pixel centre."""
    last = len(view.pixels) - 1 if last is None else last
    middle = view.origins_mm[(first + last) // 2]
    return Body(
        middle + polygon_mm[:, :1] * view.back + polygon_mm[:, 1:] * view.down,
        first,
        last,
    )


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 1.25)])
@pytest.mark.parametrize("angle", [0.0, 0.5, -0.4])
def test_the_volume_is_upright_three_edges_wide_and_runs_over_the_slices(
    spacing, angle
):
    shape = np.round(200 / np.array(spacing)).astype(int)
    y, x = (
        np.mgrid[: shape[1], : shape[0]]
        * np.array([spacing[1], spacing[0]])[:, None, None]
    )
    u, v = (
        np.array([np.cos(angle), np.sin(angle)]),
        np.array([-np.sin(angle), np.cos(angle)]),
    )
    center = np.array([104.0, 93.0])
    along, across = (
        (x - center[0]) * u[0] + (y - center[1]) * u[1],
        (x - center[0]) * v[0] + (y - center[1]) * v[1],
    )
    # brightness grows along the vertebra's own axes and from slice to slice
    values = np.stack([3000 + 10 * along + 3 * across + 100 * s for s in range(7)])
    view = view_of(values.round().astype(np.uint16), spacing)
    volume = volume_round(view, body_at(view, box(*center, 40.0, 26.0, angle), 2, 5))
    assert volume.shape == (224, 224, 16)
    assert volume.dtype == np.float32
    place = (np.arange(224) + 0.5) * 120 / 224 - 60
    wanted = (
        10 * place[None, :, None]
        + 3 * place[:, None, None]
        + 100 * np.linspace(2, 5, 16)
    )
    wanted -= wanted.min()
    assert np.abs(volume - wanted / np.percentile(wanted, 95)).max() < 2e-3
    assert np.percentile(volume, 95) == pytest.approx(1.0, abs=1e-4)


def test_every_slice_of_a_volume_is_rescaled_by_its_own_slope_and_an_empty_one_is_zero():
    pixels = (
        np.full((4, 100, 100), 50, np.uint16)
        * np.array([1, 2, 4, 8], np.uint16)[:, None, None]
    )
    pixels[:, 50:] //= 2
    flat = view_of(pixels, slope=[8, 4, 2, 1])
    volume = volume_round(flat, body_at(flat, box(50, 50, 20, 15)))
    assert np.ptp(volume, axis=2).max() < 1e-6
    empty = view_of(0 * pixels)
    assert (volume_round(empty, body_at(empty, box(50, 50, 20, 15))) == 0).all()
    (edge,) = [volume_round(flat, body_at(flat, box(2, 2, 20, 15)))]
    assert (edge[:80, :80] == 0).all()  # beyond the picture


def test_the_column_is_painted_a_row_a_millimetre():
    view = view_of(np.zeros((3, 200, 100), np.uint16), (0.7, 1.5))  # 300 mm high
    bodies = [body_at(view, box(40, y, 34, 28)) for y in (40.0, 76.0, 290.0)]
    probability = np.random.default_rng(0).dirichlet(np.ones(24), 3)
    column, rows = context_column(view, bodies, probability)
    assert column.shape == (1, 1, 512, 24)
    assert column.dtype == np.float32
    top = -0.75  # the picture's edge lies half a pixel above its first centres
    for y, p, row in zip((40.0, 76.0, 290.0), probability, rows.tolist(), strict=True):
        assert row == int(y - top)
        painted = np.flatnonzero(np.abs(column[0, 0] - p).max(axis=1) < 1e-6)
        assert np.array_equal(
            painted, np.flatnonzero(np.abs(np.arange(512) + 0.5 - (y - top)) <= 7)
        )
        assert len(painted) == 14
        assert row in painted
    assert (column[0, 0] > 0).any(axis=1).sum() == 3 * 14


def test_the_column_of_a_short_picture_is_padded_to_256_rows():
    view = view_of(np.zeros((3, 256, 100), np.uint16))
    assert context_column(
        view, [body_at(view, box(40, 100))], np.full((1, 24), 1 / 24)
    )[0].shape == (1, 1, 256, 24)


def test_scores_become_probabilities_at_temperature_ten():
    scores = np.array([[0.0, 10.0, 20.0]])
    weights = np.exp([0.0, 1.0, 2.0])
    assert np.allclose(np.exp(log_softmax(scores)), weights / weights.sum())
    assert np.isfinite(log_softmax(1e6 * scores)).all()
