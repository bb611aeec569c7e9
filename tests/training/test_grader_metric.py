"""The official metric against figures that are known without it."""

from collections import defaultdict
from math import log

import numpy as np
import pytest
from rsna_truth import CANAL, COUNTS, STUDIES, WORST_CANAL, rsna_grades

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_training.metric import (
    MISSING,
    PARTS,
    official_metric,
    prior_probabilities,
    study_sums,
)


def slow_metric(probabilities: np.ndarray, grades: np.ndarray) -> dict[str, float]:
    """The challenge's description taken at its word, row by row over a list of the rows that have a label."""
    rows = []
    for study, level, condition in np.ndindex(grades.shape):
        grade = int(grades[study, level, condition])
        if grade != MISSING:
            chances = probabilities[study, level, condition]
            name = (
                CONDITIONS[condition]
                .removeprefix("left_")
                .removeprefix("right_")
                .split("_")[0]
            )
            rows.append(
                (study, name, grade, [float(p) / float(sum(chances)) for p in chances])
            )
    part = {}
    for group, word in (
        ("canal", "spinal"),
        ("foraminal", "neural"),
        ("subarticular", "subarticular"),
    ):
        own = [
            (2**grade, chances[grade])
            for _, name, grade, chances in rows
            if name == word
        ]
        part[group] = sum(-weight * log(chance) for weight, chance in own) / sum(
            weight for weight, _ in own
        )
    by_study = defaultdict(list)
    for study, name, grade, chances in rows:
        if name == "spinal":
            by_study[study].append((grade, chances[2]))
    total = weights = 0.0
    for canal in by_study.values():
        chance = max(chance for _, chance in canal)
        worst = max(grade for grade, _ in canal)
        total -= 2**worst * (log(chance) if worst == 2 else log(1 - chance))
        weights += 2**worst
    part["any_severe_canal"] = total / weights
    return {"metric": sum(part.values()) / 4, **part}


def test_it_is_the_challenge_s_metric_to_the_digit():
    rng = np.random.default_rng(0)
    grades = rng.choice(
        [MISSING, 0, 1, 2],
        p=[0.15, 0.6, 0.15, 0.1],
        size=(150, len(LEVELS), len(CONDITIONS)),
    )
    grades[4, :, CANAL] = MISSING
    grades[5, :4, CANAL], grades[5, 4, CANAL] = MISSING, 2
    probabilities = rng.dirichlet([1, 0.7, 0.5], grades.shape)
    score = official_metric(probabilities, grades)
    for name, value in slow_metric(probabilities, grades).items():
        assert getattr(score, name) == pytest.approx(value, rel=1e-12), name


def test_the_sums_of_studies_give_the_score_of_any_choice_of_them():
    rng = np.random.default_rng(1)
    grades = rng.integers(MISSING, 3, (40, 5, 5))
    probabilities = rng.dirichlet([1, 1, 1], grades.shape)
    drawn = rng.integers(0, 40, 40)
    losses, weights = study_sums(probabilities, grades)
    parts = losses[drawn].sum(axis=0) / weights[drawn].sum(axis=0)
    score = official_metric(probabilities[drawn], grades[drawn])
    assert parts == pytest.approx([getattr(score, name) for name in PARTS])


def test_the_truth_has_the_published_counts():
    grades = rsna_grades()
    assert len(grades) == STUDIES
    for c, v in np.ndindex(5, 5):
        assert (
            tuple((grades[:, v, c] == grade).sum() for grade in range(3))
            == COUNTS[c][v]
        )
    worst = grades[..., CANAL].max(axis=1)
    assert tuple((worst == grade).sum() for grade in range(3)) == WORST_CANAL


def test_uniform_predictions_score_the_published_floor():
    grades = rsna_grades()
    score = official_metric(np.full((*grades.shape, 3), 1 / 3), grades)
    assert [getattr(score, name) for name in PARTS] == pytest.approx(
        [1.0986, 1.0986, 1.0986, 0.7018], abs=5e-5
    )
    assert score.metric == pytest.approx(0.9994, abs=5e-5)


def test_the_prior_scores_the_published_floors():
    score = official_metric(prior_probabilities(STUDIES), rsna_grades())
    assert [score.canal, score.foraminal, score.subarticular] == pytest.approx(
        [0.706, 0.805, 0.951], abs=5e-4
    )
    assert score.metric == pytest.approx(0.7900, abs=5e-4)


def test_weights_and_any_severe_by_hand():
    grades = np.zeros((2, 5, 5), int)
    grades[1, 3, 4] = 2
    probabilities = np.tile([0.8, 0.1, 0.1], (2, 5, 5, 1))
    probabilities[1, 3, 4] = [0.2, 0.2, 0.6]
    score = official_metric(probabilities * 7.0, grades)  # rows are normalised
    assert score.canal == pytest.approx((9 * -np.log(0.8) + 4 * -np.log(0.6)) / 13)
    assert score.foraminal == pytest.approx(-np.log(0.8))
    assert score.any_severe_canal == pytest.approx(
        (1 * -np.log(0.9) + 4 * -np.log(0.6)) / 5
    )
    assert score.metric == pytest.approx(
        np.mean(
            [score.canal, score.foraminal, score.subarticular, score.any_severe_canal]
        )
    )


def test_missing_rows_count_nowhere():
    rng = np.random.default_rng(0)
    grades = rng.integers(0, 3, (20, 5, 5))
    probabilities = rng.dirichlet([1, 1, 1], (20, 5, 5))
    grades[:, :, 0] = MISSING
    grades[3] = MISSING
    moved = probabilities.copy()
    moved[:, :, 0] = [0.0, 0.0, 1.0]
    moved[3] = [0.0, 0.0, 1.0]
    assert official_metric(moved, grades) == official_metric(probabilities, grades)


@pytest.mark.parametrize(
    ("probability", "grade", "message"),
    [
        (np.nan, 0, "finite"),
        (-0.1, 0, "negative"),
        (0.5, 3, "grades"),
        (0.5, -2, "grades"),
    ],
)
def test_impossible_values_are_refused(probability, grade, message):
    grades = np.zeros((1, 5, 5), int)
    probabilities = np.full((1, 5, 5, 3), 1 / 3)
    grades[0, 0, 0], probabilities[0, 0, 0, 0] = grade, probability
    with pytest.raises(ValueError, match=message):
        official_metric(probabilities, grades)


def test_a_group_without_labels_is_an_error():
    grades = np.zeros((1, 5, 5), int)
    grades[:, :, 4] = MISSING
    with pytest.raises(ValueError, match="canal"):
        official_metric(np.full((1, 5, 5, 3), 1 / 3), grades)


def test_a_row_of_zeros_is_an_error():
    probabilities = np.full((1, 5, 5, 3), 1 / 3)
    probabilities[0, 1, 2] = 0
    with pytest.raises(ValueError, match="all be 0"):
        official_metric(probabilities, np.zeros((1, 5, 5), int))
