"""The report's figures against slow ones worked out row by row."""

import numpy as np
import pytest

from spine_training.evaluation.reliability import (
    BINS,
    CUTS,
    calibration_error,
    calibration_error_unweighted,
    confusion,
    reliability,
    reliability_unweighted,
    unweighted,
)
from spine_training.evaluation.report import FIGURES, compare_arrays, evaluate_arrays
from spine_training.metric import GROUPS, MISSING, PARTS, official_metric


def made(studies, seed, sharpness=1.0):
    """Probabilities that are right in the metric's sense when sharpness is 1, and grades read from them."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet([0.9, 0.5, 0.4], (studies, 5, 5))
    chances = unweighted(probabilities).cumsum(axis=-1)
    grades = (rng.random((studies, 5, 5, 1)) > chances).sum(axis=-1).clip(0, 2)
    grades[rng.random(grades.shape) < 0.05] = MISSING
    sharp = probabilities**sharpness
    return sharp / sharp.sum(axis=-1, keepdims=True), grades


def test_intervals_are_percentiles_of_scores_of_drawn_studies():
    probabilities, grades = made(30, 0)
    report = evaluate_arrays(probabilities, grades, resamples=120, seed=3)
    counts = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), size=120)
    scores = [
        official_metric(
            np.repeat(probabilities, often, axis=0), np.repeat(grades, often, axis=0)
        )
        for often in counts
    ]
    for name in FIGURES:
        low, high = np.percentile(
            [getattr(score, name) for score in scores], [2.5, 97.5]
        )
        estimate = report.scores[name]
        assert estimate.value == getattr(official_metric(probabilities, grades), name)
        assert (estimate.low, estimate.high) == pytest.approx((low, high))
        assert low < estimate.value < high


def test_a_resample_without_a_label_of_a_part_is_left_out():
    probabilities, grades = made(6, 1)
    grades[1:, :, 4] = MISSING  # five in six studies have no canal label
    report = evaluate_arrays(probabilities, grades, resamples=500, seed=0)
    canal = (
        official_metric(probabilities[:1], grades[:1])
        if (grades[0, :, 4] != MISSING).any()
        else None
    )
    assert report.scores["canal"].low == pytest.approx(canal.canal)
    assert np.isfinite([report.scores[name].high for name in FIGURES]).all()


def test_cells_hold_each_condition_and_level():
    probabilities, grades = made(40, 2)
    grades[:, 1, 0] = MISSING
    cells = evaluate_arrays(probabilities, grades, resamples=100, seed=0).cells
    assert len(cells) == 25
    assert (cells[1].condition, cells[1].level) == (
        "left_neural_foraminal_narrowing",
        "l2_l3",
    )
    assert (cells[1].log_loss, cells[1].labels) == (None, (0, 0, 0))
    last = [
        (2.0**g, -np.log(p[g]))
        for p, g in zip(probabilities[:, 4, 4], grades[:, 4, 4], strict=True)
        if g >= 0
    ]
    assert cells[-1].log_loss == pytest.approx(
        sum(w * x for w, x in last) / sum(w for w, _ in last)
    )
    assert sum(sum(cell.labels) for cell in cells) == (grades != MISSING).sum()


def test_confusion_counts_true_against_most_probable_grade():
    rows = np.array(
        [
            [0.7, 0.2, 0.1],
            [0.1, 0.2, 0.7],
            [0.2, 0.5, 0.3],
            [0.6, 0.3, 0.1],
            [0.1, 0.1, 0.8],
        ]
    )
    counts = confusion(rows, np.array([0, 1, 1, 2, MISSING]))
    assert counts.tolist() == [[1, 0, 0], [0, 1, 1], [1, 0, 0]]


def test_a_reliability_curve_by_hand():
    rows = np.array(
        [
            [0.7, 0.2, 0.1],
            [0.2, 0.68, 0.12],
            [0.05, 0.0, 0.95],
            [1.0, 0.0, 0.0],
            [0.9, 0.1, 0.0],
        ]
    )
    grades = np.array([0, 0, 2, 1, MISSING])
    low, high = reliability(rows, grades)
    assert (low.rows, low.weight, low.lower, low.upper) == (
        2,
        2.0,
        10 / BINS,
        11 / BINS,
    )
    assert (low.confidence, low.observed) == pytest.approx((0.69, 0.5))
    assert (high.rows, high.weight) == (
        2,
        6.0,
    )  # a severe row weighs 4, a moderate one 2
    assert (high.confidence, high.observed) == pytest.approx(
        ((4 * 0.95 + 2 * 1.0) / 6, 4 / 6)
    )
    wanted = (2 * 0.19 + 6 * abs(high.confidence - high.observed)) / 8
    assert calibration_error(rows, grades) == pytest.approx(wanted)


def test_a_reliability_curve_at_a_cut_by_hand():
    rows = np.array(
        [[0.7, 0.2, 0.1], [0.72, 0.16, 0.12], [0.05, 0.0, 0.95], [0.9, 0.1, 0.0]]
    )
    grades = np.array([0, 1, 2, MISSING])
    low, high = reliability(rows, grades, CUTS["at_least_moderate"])
    assert (low.rows, low.weight, low.lower, low.upper) == (2, 3.0, 4 / BINS, 5 / BINS)
    assert (low.confidence, low.observed) == pytest.approx(
        ((1 * 0.3 + 2 * 0.28) / 3, 2 / 3)
    )
    assert (high.rows, high.weight, high.confidence, high.observed) == pytest.approx(
        (1, 4.0, 0.95, 1.0)
    )
    low, high = reliability(rows, grades, CUTS["severe"])
    assert (low.confidence, low.observed) == pytest.approx(
        ((1 * 0.1 + 2 * 0.12) / 3, 0.0)
    )
    alike = reliability_unweighted(rows, grades, CUTS["severe"])
    assert sum(b.weight for b in alike) == 3
    assert alike[-1].confidence == pytest.approx((0.95 / 4) / (0.95 / 4 + 0.05))


def test_right_probabilities_are_right_at_both_cuts_and_sharpened_ones_are_not():
    for sharpness, least, most in ((1.0, 0.0, 0.015), (2.0, 0.03, 1.0)):
        report = evaluate_arrays(*made(4000, 5, sharpness), resamples=100, seed=0)
        for group in report.groups.values():
            assert list(group.cuts) == list(CUTS)
            for curves in group.cuts.values():
                assert least < curves.calibration_error < most
                assert least < curves.calibration_error_unweighted < most


def test_right_probabilities_have_no_calibration_error_and_sharpened_ones_do():
    """The weighted error also sees weights that were not trained in."""
    right, grades = made(4000, 5)
    assert calibration_error(right, grades) < 0.01
    assert calibration_error_unweighted(right, grades) < 0.01
    sharp, grades = made(4000, 5, sharpness=2.0)
    assert calibration_error(sharp, grades) > 0.05
    assert calibration_error_unweighted(sharp, grades) > 0.05
    assert calibration_error(unweighted(right), grades) > 0.05


def test_groups_hold_their_own_rows():
    probabilities, grades = made(50, 6)
    grades[..., list(GROUPS["canal"])] = 0
    report = evaluate_arrays(probabilities, grades, resamples=100, seed=0)
    assert np.sum(report.groups["canal"].confusion) == 250
    assert sum(report.groups["canal"].confusion[0]) == 250
    labels = sum(np.sum(group.confusion) for group in report.groups.values())
    assert (
        labels
        == report.labels
        == sum(b.rows for group in report.groups.values() for b in group.reliability)
    )


def test_a_comparison_is_paired():
    right, grades = made(200, 7)
    rng = np.random.default_rng(0)
    worse = right * np.exp(rng.normal(0, 0.3, right.shape))
    worse /= worse.sum(axis=-1, keepdims=True)
    rows = compare_arrays(right, worse, grades, resamples=400, seed=0)
    own = evaluate_arrays(right, grades, resamples=400, seed=0).scores
    for name in ("metric", *PARTS[:3]):
        assert rows[name].first_better > 0.95
        assert rows[name].difference.high < 0.005
        paired, alone = (
            estimate.high - estimate.low
            for estimate in (rows[name].difference, own[name])
        )
        assert paired < 0.5 * alone
    assert rows["metric"].difference.value == pytest.approx(
        rows["metric"].first - rows["metric"].second
    )
    back = compare_arrays(worse, right, grades, resamples=400, seed=0)["metric"]
    assert back.difference.low == pytest.approx(-rows["metric"].difference.high)
    assert back.first_better == pytest.approx(1 - rows["metric"].first_better)


def test_a_file_compared_with_itself_is_a_tie():
    probabilities, grades = made(20, 8)
    tie = compare_arrays(probabilities, probabilities, grades, resamples=100, seed=0)[
        "metric"
    ]
    assert (tie.difference.low, tie.difference.high, tie.first_better) == (0, 0, 0.5)


def test_a_group_without_labels_has_no_report():
    probabilities, grades = made(5, 9)
    grades[..., list(GROUPS["foraminal"])] = MISSING
    with pytest.raises(ValueError, match="foraminal"):
        evaluate_arrays(probabilities, grades, resamples=100, seed=0)
