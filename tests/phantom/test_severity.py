"""The noisy reader: frequencies, correlations and the best metric that can be reached."""

import numpy as np
import pytest

from spine_engine.anatomy import CONDITIONS, LEVELS, Condition
from spine_engine.phantom.severity import (
    READER_THRESHOLDS,
    best_predictions,
    draw_narrowing,
    grade_frequencies,
    official_metric,
    read_grades,
    reader_probabilities,
)

STUDIES = 3000
CANAL = CONDITIONS.index(Condition.SPINAL_CANAL_STENOSIS)
SIDES = {
    name: (
        CONDITIONS.index(Condition(f"left_{name}")),
        CONDITIONS.index(Condition(f"right_{name}")),
    )
    for name in ("neural_foraminal_narrowing", "subarticular_stenosis")
}


@pytest.fixture(scope="module")
def population() -> tuple[np.ndarray, np.ndarray]:
    """Narrowings and grades of many patients, anatomy not drawn, nothing rendered."""
    narrowing = np.stack(
        [draw_narrowing(np.random.default_rng([k, 1]))[0] for k in range(STUDIES)]
    )
    grades = np.stack([read_grades(n, k) for k, n in enumerate(narrowing)])
    return narrowing, grades


def test_grades_come_as_often_as_in_the_rsna_labels(
    population: tuple[np.ndarray, np.ndarray],
) -> None:
    _, grades = population
    found = np.stack([(grades == k).mean(axis=0) for k in range(3)], axis=-1)
    # Four standard errors of a share of 0.5 in 3,000 studies.
    assert np.abs(found - grade_frequencies()).max() < 4 * 0.5 / np.sqrt(STUDIES)


def test_frequencies_are_those_of_the_label_counts() -> None:
    frequencies = grade_frequencies()
    assert frequencies[3, CANAL] == pytest.approx(np.array([1482, 237, 255]) / 1974)
    assert frequencies.sum(axis=-1) == pytest.approx(
        np.ones((len(LEVELS), len(CONDITIONS)))
    )


def test_conditions_go_together_as_in_the_labels(
    population: tuple[np.ndarray, np.ndarray],
) -> None:
    _, grades = population
    recesses = grades[..., list(SIDES["subarticular_stenosis"])]
    severe = grades[..., CANAL] == 2
    assert (severe & (recesses == 0).all(axis=-1)).sum() / severe.sum() < 0.03
    for left, right in SIDES.values():
        assert (
            0.01 < (np.abs(grades[..., left] - grades[..., right]) == 2).mean() < 0.04
        )
    worst = [(grades[..., CANAL].max(axis=1) == k).mean() for k in range(3)]
    assert worst == pytest.approx(np.array([1263, 346, 365]) / 1974, abs=0.05)


def test_best_reachable_metric_is_about_a_fifth(
    population: tuple[np.ndarray, np.ndarray],
) -> None:
    narrowing, grades = population
    best = official_metric(best_predictions(narrowing), grades).mean()
    assert best == pytest.approx(0.20, abs=0.02)
    # The weights by true grade make the plain probabilities a worse answer.
    assert official_metric(reader_probabilities(narrowing), grades).mean() > best


def test_metric_of_the_uniform_answer(
    population: tuple[np.ndarray, np.ndarray],
) -> None:
    _, grades = population
    parts = official_metric(np.full((*grades.shape, 3), 1 / 3), grades)
    assert parts[:3] == pytest.approx([np.log(3)] * 3)


def test_reader_is_undecided_at_the_thresholds() -> None:
    probabilities = reader_probabilities(np.array([0.0, *READER_THRESHOLDS, 1.0]))
    assert probabilities.sum(axis=-1) == pytest.approx(np.ones(4))
    assert probabilities[0, 0] > 0.999
    assert probabilities[3, 2] > 0.999
    assert probabilities[1, 0] == pytest.approx(0.5)
    assert probabilities[2, 2] == pytest.approx(0.5)
