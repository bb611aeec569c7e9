"""The evidence by which a column is labelled, each weight worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from conftest_columns import candidate

from spine_engine.detection import LabellingOptions
from spine_engine.detection.candidates import Candidate
from spine_engine.detection.labelling import Labelling, label_column, typical_spacing_mm

EVEN = dict.fromkeys(range(-1, 9), 0.1)
LN10 = np.log(10.0)


def label(
    candidates: Sequence[Candidate],
    *,
    y: Sequence[float] = (),
    seen_mm: tuple[float, float] = (0.0, 0.0),
    directions: Sequence[Sequence[float]] = (),
    **options: float,
) -> Labelling:
    """Label candidates; the picture shows what lies between two heights, nothing where they are equal."""
    places = np.array(
        [
            (-c.position_mm[2], k)
            for c, k in zip(candidates, y or [0.0] * len(candidates), strict=True)
        ]
    )
    pointing = np.array(directions or [(0.0, 1.0)] * len(candidates), float)

    def in_picture(points: np.ndarray) -> np.ndarray:
        return (-points[:, 0] > seen_mm[0]) & (-points[:, 0] < seen_mm[1])

    return label_column(
        candidates, places, pointing, in_picture, LabellingOptions(**options)
    )


def clear(
    z: float, belief: dict[int, float] | None = None, **changes: float
) -> Candidate:
    return candidate(z, belief=belief or EVEN, **changes)


def test_what_the_weights_are() -> None:
    chosen = LabellingOptions()
    assert (chosen.level_weight, chosen.level_fade) == (0.9, 2.0)
    assert (chosen.spacing_mm, chosen.spacing_sd, chosen.bend_sd_deg) == (
        35.0,
        0.14,
        12.0,
    )
    assert (chosen.max_step, chosen.gap_cost, chosen.unseen_cost) == (3, 2.5, 1.5)
    assert (
        chosen.floor,
        chosen.alternative,
        chosen.series_discs,
        chosen.series_belief,
    ) == (0.003, 0.1, 3, 0.6)


@pytest.mark.parametrize(
    ("heights", "wanted"),
    [
        ([0], 35),
        ([0, 40], 35),  # one step, and two votes for 35
        ([0, 40, 80], 37.5),  # two of 40, two of 35
        ([0, 40, 80, 120, 160, 200], 40),
        ([0, 18, 36], 35),  # too near to be neighbours
        ([0, 18.1, 36.2, 54.3, 72.4, 90.5], 18.1),
        ([0, 55, 110, 165], 35),  # too far apart
        ([0, 54.9, 109.8], 44.95),
        ([0, 30, 90, 120], 32.5),  # 60 does not count: 30, 30, 35, 35
    ],
)
def test_the_typical_spacing_is_the_median_with_two_votes_for_the_expected(
    heights: list[float], wanted: float
) -> None:
    positions = np.array([(0.0, 0.0, z) for z in heights])
    assert typical_spacing_mm(positions, 35.0) == pytest.approx(wanted)


def test_a_disc_counts_by_twice_its_peak_and_by_its_own_level() -> None:
    (emit,) = label([clear(0, peak=0.3)]).column.emit
    weight = 0.9 * np.exp(
        -3.6 / 2
    )  # even bins: sacrum and L5/S1 are 0, then 1 .. 8; 36 / 10
    np.testing.assert_allclose(emit, weight * -LN10 + np.log(0.6), rtol=1e-9)
    (bright,) = label([clear(0, peak=0.6)]).column.emit
    np.testing.assert_allclose(bright, weight * -LN10 + np.log(0.98), rtol=1e-9)
    (dark,) = label([clear(0, peak=0.001)]).column.emit
    np.testing.assert_allclose(dark, weight * -LN10 + np.log(0.04), rtol=1e-9)


def test_levels_count_less_the_higher_up_they_are() -> None:
    for rank in range(9):
        (emit,) = label([clear(0, {rank: 1e6}, peak=0.49)]).column.emit
        weight = 0.9 * np.exp(-rank / 2)
        assert emit[rank] == pytest.approx(np.log(0.98), abs=1e-5)
        other = (rank + 1) % 9
        assert emit[other] == pytest.approx(
            weight * 2 * np.log(0.003) + np.log(0.98), rel=1e-4
        )  # the floor, squared
    (weighed,) = label(
        [clear(0, {1: 1e6}, peak=0.49)], level_weight=0.5, level_fade=4.0, floor=0.1
    ).column.emit
    assert weighed[0] == pytest.approx(
        0.5 * np.exp(-1 / 4) * 2 * np.log(0.1) + np.log(0.98), rel=1e-4
    )


def left_out(belief: dict[int, float], peak: float) -> float:
    """The log score of leaving out the lower of two candidates: by how much that makes the upper one's start worse."""
    column = label([clear(0, belief, peak=peak), clear(35)]).column
    return float(column.start[1, 0] - column.start[0, 0])


def test_leaving_out_a_disc_costs_what_its_peak_says() -> None:
    weight = 0.9 * np.exp(-3.6 / 2)
    assert left_out(EVEN, 0.4) == pytest.approx(np.log(1 - 1.3 * 0.4) - weight * LN10)
    assert left_out(EVEN, 0.9) == pytest.approx(np.log(1 - 0.97) - weight * LN10)
    sacral = {-1: 1e6}
    assert left_out(sacral, 0.4) == pytest.approx(np.log(1 - 1.3 * 0.4), abs=1e-5)
    assert left_out({0: 1e6}, 0.4) == pytest.approx(
        np.log(1 - 1.3 * 0.4) + 0.9 * np.log(0.1), abs=1e-5
    )


def test_what_is_left_out_costs_wherever_it_lies() -> None:
    column = label([clear(k * 35, peak=0.4) for k in range(4)]).column
    one = np.log(1 - 1.3 * 0.4) - 0.9 * np.exp(-3.6 / 2) * LN10
    np.testing.assert_allclose(column.start[:, 0], one * np.arange(4))
    np.testing.assert_allclose(column.end[:, 8], one * np.arange(3, -1, -1))
    wanted = [[0, 0, one, 2 * one], [0, 0, 0, one], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(column.between, wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("share", "factor"), [(1.0, 1.0), (0.61, 1.0), (0.3, 0.5), (0.06, 0.1)]
)
def test_a_candidate_of_little_mass_counts_in_part(share: float, factor: float) -> None:
    lot = [clear(35 * k, peak=0.45, mass=20.0) for k in range(5)] + [
        clear(175, peak=0.45, mass=20.0 * share)
    ]
    emit = label(lot).column.emit
    own = np.log(2 * 0.45 * factor)
    np.testing.assert_allclose(emit[5] - emit[0], own - np.log(0.9), atol=1e-9)


def test_a_typical_mass_is_that_of_the_five_heaviest() -> None:
    lot = [
        clear(35 * k, peak=0.45, mass=mass)
        for k, mass in enumerate((30, 30, 20, 20, 20, 1, 1, 1, 6))
    ]
    emit = label(lot).column.emit
    np.testing.assert_allclose(
        emit[8] - emit[0], np.log(0.5), atol=1e-9
    )  # 6 of 0.6 * 20


def steps(apart: float, count: int = 2, **options: float) -> np.ndarray:
    return label([clear(apart * k) for k in range(count)], **options).column.step[0, 1]


def test_a_step_costs_by_its_distance_and_each_missed_disc() -> None:
    assert steps(35)[0] == -np.inf
    exact = [(35 / (k * 35) - 1) / 0.14 for k in (1, 2, 3)]
    np.testing.assert_allclose(
        steps(35)[1:], [-0.5 * z * z - 2.5 * k for k, z in enumerate(exact)], rtol=1e-9
    )
    assert steps(70)[2] == pytest.approx(-2.5)
    assert steps(105)[3] == pytest.approx(-5.0)
    assert steps(70)[1] == pytest.approx(-25.5102, abs=1e-4)
    assert steps(105)[1] == pytest.approx(-30)  # no step costs more than 30
    assert steps(70, gap_cost=4.0)[2] == pytest.approx(-4.0)
    assert steps(42, spacing_sd=0.1)[1] == pytest.approx(-0.5 * (0.2 / 0.1) ** 2)
    assert steps(45, spacing_mm=45.0)[1] == pytest.approx(0.0)
    assert len(steps(35, max_step=2)) == 3


def test_nothing_steps_down_or_onto_itself() -> None:
    step = label([clear(35 * k) for k in range(4)]).column.step
    assert np.isinf(step[np.tri(4, dtype=bool)]).all()
    assert np.isfinite(step[np.triu_indices(4, 1)][:, 1:]).all()


def test_the_patients_own_spacing_counts() -> None:
    step = label(
        [clear(42 * k) for k in range(6)]
    ).column.step  # five steps of 42, two votes for 35
    assert step[0, 1, 1] == pytest.approx(0.0)


def bend(y: float, *directions: Sequence[float], **options: float) -> float:
    lot = [clear(0), clear(35)]
    length = np.hypot(35, y)
    straight = -0.5 * ((length / 35 - 1) / 0.14) ** 2
    return float(
        label(lot, y=(0.0, y), directions=directions, **options).column.step[0, 1, 1]
        - straight
    )


def test_a_bend_costs_by_the_angle_between_the_line_and_the_mean_normal() -> None:
    flat = (0.0, 1.0)
    assert bend(0.0, flat, flat) == pytest.approx(0.0)
    sideways = 35 * np.tan(np.deg2rad(12.0))
    assert bend(sideways, flat, flat) == pytest.approx(-0.5)
    assert bend(-sideways, flat, flat) == pytest.approx(-0.5)
    assert bend(sideways, flat, flat, bend_sd_deg=6.0) == pytest.approx(-2.0)
    assert bend(35 * np.tan(np.deg2rad(66)), flat, flat) > -16
    down = (
        np.sin(np.deg2rad(24)),
        np.cos(np.deg2rad(24)),
    )  # 24 degrees down at the back; (down, back)
    assert bend(0.0, down, flat) == pytest.approx(
        -0.5
    )  # the mean normal leans 12 degrees
    assert bend(35 * np.tan(np.deg2rad(24)), down, down) == pytest.approx(
        0.0
    )  # the column leans back with them
    upside = bend(0.0, (0.0, -1.0), (0.0, -1.0))
    assert upside == pytest.approx(-15)  # no bend costs more
    assert bend(0.0, (0.3, 0.0), flat) != pytest.approx(0.0, abs=0.1)
    assert bend(0.0, (0.09, 0.0), flat) == pytest.approx(
        0.0
    )  # the net does not know: level
    assert bend(0.0, (0.0, 5.0), (0.0, 0.2)) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("seen", "start", "end"),
    [
        ((0, 0), [0] * 9, [0] * 9),
        ((-40, 300), [0] + [-1.5] * 8, [-6.0, -4.5, -3.0, -1.5, 0, 0, 0, 0, 0]),
        ((-75, 80), [0, -1.5, *[-3.0] * 7], [-3.0, -3.0, -3.0, -1.5, 0, 0, 0, 0, 0]),
        (
            (-500, 40),
            [-1.5 * rank for rank in range(9)],
            [-1.5, -1.5, -1.5, -1.5, 0, 0, 0, 0, 0],
        ),
    ],
)
def test_discs_that_the_picture_should_show_below_and_above_cost_one_and_a_half_each(
    seen: tuple[float, float], start: list[float], end: list[float]
) -> None:
    column = label([clear(0)], seen_mm=seen).column
    np.testing.assert_allclose(column.start[0], start, atol=1e-12)
    np.testing.assert_allclose(column.end[0], end, atol=1e-12)
    double = label([clear(0)], seen_mm=seen, unseen_cost=3.0).column
    np.testing.assert_allclose(double.start[0], np.array(start) * 2, atol=1e-12)


def test_unseen_discs_are_expected_along_the_line_of_the_last_two() -> None:
    """The column leans 45 degrees back going up: the next place above lies on that line, and so does the next below."""
    lot = [clear(0), clear(30), clear(60)]
    y = (0.0, 30.0, 60.0)
    asked: list[np.ndarray] = []

    def in_picture(points: np.ndarray) -> np.ndarray:
        asked.append(points)
        return np.zeros(len(points), np.bool_)

    places = np.array([(-c.position_mm[2], k) for c, k in zip(lot, y, strict=True)])
    label_column(
        lot, places, np.array([(0.0, 1.0)] * 3), in_picture, LabellingOptions()
    )
    below, above = (points.reshape(3, -1, 2) for points in asked)
    step = np.median([np.hypot(30, 30)] * 2 + [35.0] * 2)  # 38.7 mm
    diagonal = step / np.sqrt(2)
    assert below.shape == (3, 8, 2)
    assert above.shape == (3, 4, 2)
    np.testing.assert_allclose(below[0, 0], places[0] + [diagonal, -diagonal])
    np.testing.assert_allclose(above[2, 1], places[2] + [-2 * diagonal, 2 * diagonal])
    np.testing.assert_allclose(
        below[2, 0], places[2] + [step, 0]
    )  # the uppermost alone: straight down
    np.testing.assert_allclose(above[0, 0], places[0] + [-step, 0])


def test_a_disc_missed_within_the_column_keeps_the_names_beyond_it() -> None:
    lot = [clear(0, {0: 0.9}), clear(35), clear(105), clear(140)]
    labelling = label(lot, seen_mm=(-10, 10))
    assert labelling.ranks.tolist() == [0, 1, 3, 4]
    assert labelling.posterior.shape == (4, 9)
    assert labelling.posterior[0, 0] > 0.9
    assert (labelling.posterior.sum(axis=1) < 1 + 1e-9).all()
