"""The official metric on rows that fit on a page: weights, clipping, normalisation, missing rows, any severe canal.

Conditions by index: 0 and 2 are the left and right foramen, 1 and 3 the left and right recess, 4 the canal.
"""

from dataclasses import asdict
from math import log

import numpy as np
import pytest

from spine_training.metric import (
    official_metric,
    prior_probabilities,
    row_losses,
    score_of_sums,
    study_sums,
)

LEFT_FORAMEN, LEFT_RECESS, RIGHT_FORAMEN, RIGHT_RECESS, CANAL = range(5)
EPS = 2.220446049250313e-16
"""Resolution of float64, at which scikit-learn's log_loss clips."""


def blank(studies=1):
    """Every row labelled normal and predicted 0.5, 0.3, 0.2."""
    return np.tile([0.5, 0.3, 0.2], (studies, 5, 5, 1)), np.zeros((studies, 5, 5), int)


@pytest.mark.parametrize(
    ("grade", "weight", "chance"), [(0, 1.0, 0.5), (1, 2.0, 0.3), (2, 4.0, 0.2)]
)
@pytest.mark.parametrize(
    ("condition", "part", "rows"),
    [
        (LEFT_FORAMEN, "foraminal", 10),
        (RIGHT_FORAMEN, "foraminal", 10),
        (LEFT_RECESS, "subarticular", 10),
        (RIGHT_RECESS, "subarticular", 10),
        (CANAL, "canal", 5),
    ],
)
def test_a_row_weighs_by_its_true_grade_in_the_part_of_its_condition(
    condition, part, rows, grade, weight, chance
):
    probabilities, grades = blank()
    grades[0, 2, condition] = grade
    score = asdict(official_metric(probabilities, grades))
    total = (rows - 1) * -log(0.5) + weight * -log(chance)
    assert score[part] == pytest.approx(total / (rows - 1 + weight))
    for other in {"canal", "foraminal", "subarticular"} - {part}:
        assert score[other] == pytest.approx(-log(0.5))


@pytest.mark.parametrize(
    ("worst", "weight", "loss"),
    [(0, 1.0, -log(1 - 0.6)), (1, 2.0, -log(1 - 0.6)), (2, 4.0, -log(0.6))],
)
def test_any_severe_takes_the_largest_chance_of_five_levels_and_weighs_by_the_worst(
    worst, weight, loss
):
    """The chance is the largest of the study, though another level has the worst grade."""
    probabilities, grades = blank(2)
    probabilities[0, 4, CANAL] = [0.3, 0.1, 0.6]
    grades[0, 1, CANAL] = worst
    score = official_metric(probabilities, grades)
    other = -log(1 - 0.2)  # the second study: nothing severe, said with 0.2
    assert score.any_severe_canal == pytest.approx(
        (weight * loss + other) / (weight + 1)
    )
    parts = [score.canal, score.foraminal, score.subarticular, score.any_severe_canal]
    assert score.metric == pytest.approx(sum(parts) / 4)


def test_a_canal_row_without_a_label_has_no_part_in_the_largest_chance():
    probabilities, grades = blank()
    probabilities[0, 3, CANAL] = [0.0, 0.0, 1.0]
    grades[0, 3, CANAL] = -1
    score = official_metric(probabilities, grades)
    assert score.any_severe_canal == pytest.approx(-log(0.8))
    assert score.canal == pytest.approx(-log(0.5))


def test_a_study_without_canal_labels_has_no_such_row_and_still_counts_elsewhere():
    probabilities, grades = blank(2)
    grades[1, :, CANAL] = -1
    probabilities[1, :, CANAL] = [0.0, 0.0, 1.0]
    grades[1, 0, LEFT_RECESS] = 2
    losses, weights = study_sums(probabilities, grades)
    assert weights.tolist() == [[5, 10, 10, 1], [0, 10, 13, 0]]
    assert losses[1, 3] == 0
    assert official_metric(probabilities, grades).any_severe_canal == pytest.approx(
        -log(0.8)
    )


def test_chances_are_clipped_at_the_resolution_of_float64_at_both_ends():
    probabilities, grades = blank()
    probabilities[0, 0, CANAL] = [0.0, 0.0, 1.0]
    losses, _ = row_losses(probabilities, grades)
    assert losses[0, 0, CANAL] == pytest.approx(-log(EPS))
    sums, _ = study_sums(probabilities, grades)
    assert sums[0, 3] == pytest.approx(-log(EPS), rel=1e-6)  # 1 - clipped
    grades[0, 0, CANAL] = 2
    losses, _ = row_losses(probabilities, grades)
    assert losses[0, 0, CANAL] == pytest.approx(EPS, rel=1e-3)
    assert losses[0, 0, CANAL] > 0, "a sure and right row costs the clip, not nothing"


def test_rows_are_normalised_one_by_one_in_every_part():
    probabilities, grades = blank(2)
    probabilities[0, 4, CANAL] = [0.3, 0.1, 0.6]
    plain = official_metric(probabilities, grades)
    probabilities[0, 4, CANAL] *= 40.0
    probabilities[1, 2, LEFT_RECESS] *= 0.01
    assert asdict(official_metric(probabilities, grades)) == pytest.approx(
        asdict(plain)
    )


def test_the_same_study_twice_scores_as_once_and_order_is_nothing():
    rng = np.random.default_rng(0)
    probabilities, grades = (
        rng.dirichlet([1, 1, 1], (6, 5, 5)),
        rng.integers(-1, 3, (6, 5, 5)),
    )
    score = asdict(official_metric(probabilities, grades))
    assert asdict(
        official_metric(np.repeat(probabilities, 2, 0), np.repeat(grades, 2, 0))
    ) == pytest.approx(score)
    assert asdict(official_metric(probabilities[::-1], grades[::-1])) == pytest.approx(
        score
    )


def test_the_sums_of_any_studies_give_a_score_and_none_without_weight():
    score = score_of_sums(
        np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 2.0, 8.0])
    )
    assert [
        score.canal,
        score.foraminal,
        score.subarticular,
        score.any_severe_canal,
    ] == [0.5, 1.0, 1.5, 0.5]
    assert score.metric == pytest.approx(0.875)
    for part, word in enumerate(
        ("canal", "foraminal", "subarticular", "any severe canal")
    ):
        weights = np.ones(4)
        weights[part] = 0
        with pytest.raises(ValueError, match=f"no labelled row for {word}"):
            score_of_sums(np.ones(4), weights)


@pytest.mark.parametrize(
    ("shape", "grades"),
    [
        ((1, 5, 5, 2), (1, 5, 5)),
        ((2, 5, 5, 3), (1, 5, 5)),
        ((1, 4, 5, 3), (1, 4, 5)),
        ((0, 5, 5, 3), (0, 5, 5)),
    ],
)
def test_other_shapes_and_no_study_are_refused(shape, grades):
    with pytest.raises(
        ValueError, match=r"want \(S, 5, 5, 3\) and \(S, 5, 5\) with at least one study"
    ):
        official_metric(np.full(shape, 1 / 3), np.zeros(grades, int))


def test_infinite_probabilities_are_refused_and_zero_is_not():
    probabilities, grades = blank()
    probabilities[0, 0, 0] = [0.0, 0.4, 0.6]
    assert np.isfinite(official_metric(probabilities, grades).metric)
    probabilities[0, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="finite"):
        official_metric(probabilities, grades)


def test_the_prior_is_that_of_each_condition_and_level_and_a_copy():
    """Labels of RSNA 2024, both sides together, moderate twice and severe four times: recesses at L1/L2."""
    table = prior_probabilities(2)
    counts = np.array([1690 + 1680, 2 * (93 + 110), 4 * (28 + 24)])
    assert table.shape == (2, 5, 5, 3)
    assert table[0, 0, LEFT_RECESS] == pytest.approx(counts / counts.sum(), abs=1e-3)
    assert table[1, 3, CANAL] == pytest.approx(
        [0.498, 0.159, 0.343], abs=1e-3
    )  # 1482, 237, 255
    table[0] = 0.0
    assert table[1, 3, CANAL].sum() == pytest.approx(1)
