"""Grades, probabilities and the metric of phantoms, worked out by hand."""

from __future__ import annotations

from math import erf, log, sqrt

import numpy as np
import pytest

from spine_engine.phantom.severity import (
    best_predictions,
    draw_narrowing,
    grade_frequencies,
    official_metric,
    read_grades,
    reader_probabilities,
)

# RSNA 2024 training labels: normal-mild, moderate, severe for l1_l2 .. l5_s1, left and right pooled.
CANAL = [
    (1886, 67, 21),
    (1770, 151, 53),
    (1622, 230, 122),
    (1482, 237, 255),
    (1904, 51, 19),
]
FORAMINAL = [
    (3799, 126, 15),
    (3584, 339, 17),
    (3044, 825, 81),
    (2412, 1258, 270),
    (2528, 1016, 396),
]
SUBARTICULAR = [
    (3370, 203, 52),
    (3132, 498, 156),
    (2646, 908, 391),
    (1778, 1246, 921),
    (2807, 805, 320),
]
# Columns: left foramen, left recess, right foramen, right recess, canal.
TABLES = (FORAMINAL, SUBARTICULAR, FORAMINAL, SUBARTICULAR, CANAL)


@pytest.mark.parametrize("condition", range(5))
@pytest.mark.parametrize("level", range(5))
def test_frequencies_are_those_of_the_labels(level: int, condition: int) -> None:
    counts = TABLES[condition][level]
    assert grade_frequencies()[level, condition] == pytest.approx(
        [count / sum(counts) for count in counts]
    )


def cdf(z: float) -> float:
    return 0.5 * (1 + erf(z / sqrt(2)))


@pytest.mark.parametrize("narrowing", [0.0, 0.35, 0.42, 0.5, 0.68, 0.7, 1.0])
def test_probabilities_of_a_reader_with_noise(narrowing: float) -> None:
    """Cut at 0.42 and 0.68, noise 0.073."""
    moderate, severe = cdf((narrowing - 0.42) / 0.073), cdf((narrowing - 0.68) / 0.073)
    found = reader_probabilities(np.array([narrowing]))
    assert found.shape == (1, 3)
    assert found[0] == pytest.approx(
        [1 - moderate, moderate - severe, severe], abs=1e-12
    )


def test_the_best_answer_weighs_grades_1_2_4() -> None:
    p = reader_probabilities(np.array(0.6))
    weighted = [p[0], 2 * p[1], 4 * p[2]]
    assert best_predictions(np.array(0.6)) == pytest.approx(
        [w / sum(weighted) for w in weighted]
    )


def test_grades_follow_the_narrowing() -> None:
    narrowing = np.array([[0.0, 0.05, 1.0], [1.0, 0.95, 0.1]])
    for seed in range(3):
        assert read_grades(narrowing, seed).tolist() == [[0, 0, 2], [2, 2, 0]]
    between = (
        np.bincount(read_grades(np.full(4000, 0.55), 3)) / 4000
    )  # 1.78 standard deviations from both cuts
    assert between == pytest.approx([0.0375, 0.925, 0.0375], abs=0.012)
    at_the_cut = np.full(4000, 0.42)
    assert (read_grades(at_the_cut, 1) == 1).mean() == pytest.approx(0.5, abs=0.04)
    assert read_grades(at_the_cut, 1).tolist() == read_grades(at_the_cut, 1).tolist()
    assert read_grades(at_the_cut, 1).tolist() != read_grades(at_the_cut, 2).tolist()


def test_a_reading_at_a_threshold_is_the_higher_grade(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spine_engine.phantom.severity.READER_NOISE", 0.0)
    assert read_grades(np.array([0.4199, 0.42, 0.6799, 0.68]), 1).tolist() == [
        0,
        1,
        1,
        2,
    ]


def metric_case() -> tuple[np.ndarray, np.ndarray]:
    """Two studies, all normal but two places; every prediction 0.7, 0.2, 0.1."""
    predictions = np.tile([0.7, 0.2, 0.1], (2, 5, 5, 1))
    grades = np.zeros((2, 5, 5), int)
    return predictions, grades


def test_the_metric_of_its_parts() -> None:
    predictions, grades = metric_case()
    grades[0, 1, 4] = 2  # a severe canal
    grades[1, 2, 0] = 1  # a moderate left foramen
    grades[1, 3, 3] = 2  # a severe right recess
    canal = (9 * -log(0.7) + 4 * -log(0.1)) / 13
    foraminal = (19 * -log(0.7) + 2 * -log(0.2)) / 21
    recess = (19 * -log(0.7) + 4 * -log(0.1)) / 23
    any_severe = (4 * -log(0.1) + 1 * -log(0.9)) / 5
    assert official_metric(predictions, grades) == pytest.approx(
        [canal, foraminal, recess, any_severe]
    )


def test_the_worst_canal_weighs_a_study_and_the_highest_chance_counts() -> None:
    predictions, grades = metric_case()
    grades[0, 0, 4], grades[1, 4, 4] = 1, 2
    predictions[1, 2, 4] = [0.3, 0.2, 0.5]
    parts = official_metric(predictions, grades)
    assert parts[3] == pytest.approx((2 * -log(0.9) + 4 * -log(0.5)) / 6)


def test_sure_answers_stay_finite() -> None:
    predictions, grades = metric_case()
    predictions[:] = [0.0, 0.0, 1.0]
    parts = official_metric(predictions, grades)
    assert parts[:3] == pytest.approx([-log(1e-15)] * 3)
    assert parts[3] == pytest.approx(-log(1e-15), rel=0.01)
    grades[:] = 2
    predictions[:] = [1.0, 0.0, 0.0]
    assert official_metric(predictions, grades) == pytest.approx([-log(1e-15)] * 4)


def test_narrowings_are_logit_normal_about_a_mean_for_each_place() -> None:
    drawn = np.stack([draw_narrowing(np.random.default_rng(k))[0] for k in range(300)])
    assert ((drawn > 0) & (drawn < 1)).all()
    logit = np.log(drawn / (1 - drawn))
    z = (logit - logit.mean(0)) / logit.std(0)
    sides = (z[..., 0] * z[..., 2]).mean(), (z[..., 1] * z[..., 3]).mean()
    levels = (z[:, :-1, 4] * z[:, 1:, 4]).mean()
    assert sides == pytest.approx((0.25 + 0.20 + 0.13, 0.42 + 0.30), abs=0.1)
    assert levels == pytest.approx(0.50, abs=0.1)


def test_wear_goes_with_the_narrowings() -> None:
    both = [draw_narrowing(np.random.default_rng(k)) for k in range(300)]
    narrowing, wear = (np.stack(values) for values in zip(*both, strict=True))
    assert wear.shape == (300, 5)
    assert wear.mean() == pytest.approx(0, abs=0.15)
    assert wear.std() == pytest.approx(1, abs=0.1)
    canal = np.log(narrowing[..., 4] / (1 - narrowing[..., 4]))
    z = (canal - canal.mean(0)) / canal.std(0)
    assert (z * wear).mean() == pytest.approx(
        sqrt(0.35) * (sqrt(0.50) + sqrt(0.44)), abs=0.12
    )
