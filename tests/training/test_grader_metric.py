"""The official metric against figures that are known without it."""

import numpy as np
import pytest

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_training.metric import MISSING, official_metric, prior_probabilities

# Labels of the RSNA 2024 training set (normal-mild, moderate, severe; l1_l2 .. l5_s1), conditions alphabetical.
COUNTS = (
    ((1908, 63, 2), (1791, 171, 11), (1522, 411, 40), (1204, 629, 140), (1247, 520, 206)),
    ((1690, 93, 28), (1555, 255, 83), (1324, 454, 194), (887, 624, 461), (1408, 409, 147)),
    ((1891, 63, 13), (1793, 168, 6), (1512, 414, 41), (1208, 629, 130), (1281, 496, 190)),
    ((1680, 110, 24), (1577, 243, 73), (1322, 454, 197), (891, 622, 460), (1399, 396, 173)),
    ((1886, 67, 21), (1770, 151, 53), (1622, 230, 122), (1482, 237, 255), (1904, 51, 19)),
)


def rsna_grades() -> np.ndarray:
    """Truth with the training set's counts column by column; what a column lacks is missing."""
    grades = np.full((1975, len(LEVELS), len(CONDITIONS)), MISSING)
    for condition, levels in enumerate(COUNTS):
        for level, counts in enumerate(levels):
            column = np.repeat([0, 1, 2], counts)
            grades[: len(column), level, condition] = column
    return grades


def test_the_prior_scores_the_published_floors():
    score = official_metric(prior_probabilities(1975), rsna_grades())
    assert [score.canal, score.foraminal, score.subarticular] == pytest.approx([0.706, 0.805, 0.951], abs=6e-4)


def test_uniform_predictions_score_log_3():
    grades = rsna_grades()
    score = official_metric(np.full((*grades.shape, 3), 1 / 3), grades)
    assert [score.canal, score.foraminal, score.subarticular] == pytest.approx([np.log(3)] * 3)


def test_weights_and_any_severe_by_hand():
    grades = np.zeros((2, 5, 5), int)
    grades[1, 3, 4] = 2
    probabilities = np.tile([0.8, 0.1, 0.1], (2, 5, 5, 1))
    probabilities[1, 3, 4] = [0.2, 0.2, 0.6]
    score = official_metric(probabilities * 7.0, grades)  # rows are normalised
    assert score.canal == pytest.approx((9 * -np.log(0.8) + 4 * -np.log(0.6)) / 13)
    assert score.foraminal == pytest.approx(-np.log(0.8))
    assert score.any_severe_canal == pytest.approx((1 * -np.log(0.9) + 4 * -np.log(0.6)) / 5)
    assert score.metric == pytest.approx(
        np.mean([score.canal, score.foraminal, score.subarticular, score.any_severe_canal])
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
    [(np.nan, 0, "finite"), (-0.1, 0, "negative"), (0.5, 3, "grades"), (0.5, -2, "grades")],
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
