"""Reliability bins at their edges, weights, and the tables that a terminal and a plot get."""

import csv
import io
from math import log

import numpy as np
import pytest
from rich.console import Console

from spine_training.evaluation.reliability import (
    confusion,
    expected_error,
    reliability,
    reliability_unweighted,
    unweighted,
)
from spine_training.evaluation.report import compare_arrays, evaluate_arrays
from spine_training.evaluation.show import (
    calibration_table,
    comparison_table,
    confusion_lines,
    reliability_lines,
    tables,
)


def row(top):
    return [top, (1 - top) * 0.75, (1 - top) * 0.25]


@pytest.mark.parametrize(
    ("top", "lower", "upper"),
    [
        (0.6, 9, 10),
        (0.5999, 8, 9),
        (0.6001, 9, 10),
        (0.95, 14, 15),
        (1.0, 14, 15),
        (2 / 3 + 1e-9, 10, 11),
    ],
)
def test_there_are_fifteen_bins_closed_below_and_the_last_above_too(top, lower, upper):
    (found,) = reliability(np.array([row(top)]), np.array([0]))
    assert (found.lower, found.upper) == pytest.approx((lower / 15, upper / 15))
    assert (found.rows, found.observed, found.confidence) == (
        1,
        1.0,
        pytest.approx(top),
    )


def test_weights_are_divided_out_of_probabilities():
    assert unweighted(np.array([0.4, 0.4, 0.2])) == pytest.approx(
        np.array([0.4, 0.2, 0.05]) / 0.65
    )
    (found,) = reliability_unweighted(np.array([[0.4, 0.4, 0.2]]), np.array([2]))
    assert (found.weight, found.observed) == (1.0, 0.0)
    assert found.confidence == pytest.approx(0.4 / 0.65)


def test_the_error_is_the_weighted_mean_gap():
    rows = np.array([row(0.9), row(0.9), row(0.7)])
    curve = reliability(rows, np.array([0, 1, 0]))
    low, high = curve
    assert (high.weight, high.observed) == (3.0, pytest.approx(1 / 3))
    assert expected_error(curve) == pytest.approx(
        (3 * abs(0.9 - 1 / 3) + 1 * abs(0.7 - 1)) / 4
    )
    assert low.lower < high.lower


def test_confusion_has_the_truth_in_its_rows_whatever_is_missing():
    rows = np.array([[0.2, 0.7, 0.1]] * 3)
    assert confusion(rows, np.array([2, 2, -1])).tolist() == [
        [0, 0, 0],
        [0, 0, 0],
        [0, 2, 0],
    ]


@pytest.fixture(scope="module")
def report():
    """Three studies whose rows are right at 0.7, but for one severe canal said to be normal, and a missing column."""
    rows = np.tile([0.7, 0.2, 0.1], (3, 5, 5, 1))
    grades = np.zeros((3, 5, 5), int)
    grades[1, 2, 4] = 2
    grades[:, 1, 0] = -1
    return rows, grades, evaluate_arrays(rows, grades, resamples=100, seed=0)


def shown(*parts):
    console = Console(file=io.StringIO(), width=200, highlight=False)
    console.print(*parts)
    return console.file.getvalue()


def test_a_report_s_numbers_are_those_of_the_rows(report):
    _, _, made = report
    canal = (14 * -log(0.7) + 4 * -log(0.1)) / 18
    severe = (2 * -log(0.9) + 4 * -log(0.1)) / 6
    assert made.scores["canal"].value == pytest.approx(canal)
    assert made.scores["any_severe_canal"].value == pytest.approx(severe)
    assert made.uniform.canal == pytest.approx(log(3))
    assert (made.studies, made.labels) == (3, 72)
    assert made.groups["canal"].confusion == ((14, 0, 0), (0, 0, 0), (1, 0, 0))
    assert list(made.groups) == ["canal", "foraminal", "subarticular"]
    cells = {(cell.condition, cell.level): cell for cell in made.cells}
    assert cells["spinal_canal_stenosis", "l3_l4"].labels == (2, 0, 1)
    assert cells["spinal_canal_stenosis", "l3_l4"].log_loss == pytest.approx(
        (2 * -log(0.7) + 4 * -log(0.1)) / 6
    )
    assert cells["left_neural_foraminal_narrowing", "l2_l3"].log_loss is None
    weighed = (71 * abs(0.7 - 71 / 75) + 4 * abs(0.7 - 71 / 75)) / 75
    assert made.calibration_error == pytest.approx(weighed)


def test_the_same_seed_gives_the_same_intervals_and_another_gives_others():
    rng = np.random.default_rng(0)
    rows, grades = rng.dirichlet([2, 1, 1], (12, 5, 5)), rng.integers(0, 3, (12, 5, 5))
    first, again, other = (
        evaluate_arrays(rows, grades, resamples=300, seed=seed).scores
        for seed in (4, 4, 5)
    )
    assert first == again
    assert first["metric"].low != other["metric"].low
    assert first["metric"].value == other["metric"].value
    assert first["metric"].low < first["metric"].value < first["metric"].high


def test_more_resamples_than_are_drawn_at_once_are_all_drawn():
    """600 resamples are the first 250, the next 250 and 100 of one generator."""
    rng = np.random.default_rng(0)
    rows, grades = rng.dirichlet([2, 1, 1], (8, 5, 5)), rng.integers(0, 3, (8, 5, 5))
    from spine_training.metric import study_sums

    losses, weights = study_sums(rows, grades)
    counts = (
        np.random.default_rng(9)
        .multinomial(8, np.full(8, 1 / 8), size=600)
        .astype(float)
    )
    canal = (counts @ losses)[:, 0] / (counts @ weights)[:, 0]
    found = evaluate_arrays(rows, grades, resamples=600, seed=9).scores["canal"]
    assert (found.low, found.high) == pytest.approx(
        tuple(np.percentile(canal, [2.5, 97.5]))
    )


def test_the_tables_say_every_number_once(report):
    rows, grades, made = report
    text = shown(*tables(made))
    for said in (
        "Official metric, 3 studies, 72 labels (lower is better)",
        f"{made.scores['canal'].value:.4f}",
        f"{made.scores['canal'].low:.4f} .. {made.scores['canal'].high:.4f}",
        f"{made.prior.metric:.4f}",
        f"{made.uniform.metric:.4f}",
        "any severe canal",
        f"Calibration error {made.calibration_error:.4f} as the metric weighs rows, "
        f"{made.calibration_error_unweighted:.4f} unweighted",
        "as normal/mild",
        "0.67 .. 0.73",
        "0.700 0.778 (15)",  # canal: predicted, right, rows
    ):
        assert said in text, said
    lines = [line.split() for line in text.splitlines()]
    assert ["spinal", "canal", "L1/L2", f"{-log(0.7):.4f}", "3", "0", "0"] in lines
    assert ["L2/L3", "-", "0", "0", "0"] in lines
    worse = np.tile([1 / 3, 1 / 3, 1 / 3], (3, 5, 5, 1))
    comparison = compare_arrays(rows, worse, grades, resamples=100, seed=0)
    text = shown(comparison_table(comparison, "mine.csv", "theirs.csv"))
    gap = comparison["foraminal"].difference
    assert "First: mine.csv" in text
    assert "Second: theirs.csv" in text
    assert f"{-log(0.7):.4f}" in text
    assert f"{gap.value:+.4f}" in text
    assert gap.value == pytest.approx(-log(0.7) - log(3))
    assert f"{gap.low:+.4f} .. {gap.high:+.4f}" in text
    assert comparison["foraminal"].first_better == 1.0
    assert "100.0%" in text


def test_a_calibration_s_table_has_a_column_for_each_stage():
    figures = [
        "metric",
        "canal",
        "foraminal",
        "subarticular",
        "any_severe_canal",
        "calibration_error",
    ]
    names = [*figures, "calibration_error_unweighted"]
    stages = {
        stage: {name: k + number / 10 for number, name in enumerate(names)}
        for k, stage in enumerate(("before", "in_sample", "cross_validated"))
    }
    lines = [
        line.split()
        for line in shown(calibration_table(stages, studies=7, labels=170)).splitlines()
    ]
    assert ["Calibration", "on", "7", "studies,", "170", "labels"] in lines
    assert ["before", "in", "sample", "cross", "validated"] in lines
    for number, name in enumerate(names):
        assert [
            *name.split("_"),
            *(f"{k + number / 10:.4f}" for k in range(3)),
        ] in lines


def test_confusion_and_curves_are_written_as_tables(report):
    _, _, made = report
    rows = list(csv.DictReader(confusion_lines(made)))
    assert len(rows) == 27
    assert {
        "group": "canal",
        "true_grade": "severe",
        "predicted_grade": "normal_mild",
        "rows": "1",
    } in rows
    assert {
        "group": "canal",
        "true_grade": "normal_mild",
        "predicted_grade": "severe",
        "rows": "0",
    } in rows
    curves = list(csv.DictReader(reliability_lines(made)))
    assert list(curves[0]) == [
        "group", "outcome", "rows_weighed", "lower", "upper", "rows", "weight", "confidence", "observed",
    ]  # fmt: skip
    canal = [
        one
        for one in curves
        if one["group"] == "canal" and one["rows_weighed"] == "metric"
    ]
    found = {one["outcome"]: one for one in canal}
    assert found["most_probable"] == {
        "group": "canal", "outcome": "most_probable", "rows_weighed": "metric", "lower": "0.666667",
        "upper": "0.733333", "rows": "15", "weight": "18", "confidence": "0.700000", "observed": "0.777778",
    }  # fmt: skip
    assert (
        found["at_least_moderate"]["confidence"],
        found["at_least_moderate"]["observed"],
    ) == (
        "0.300000",
        "0.222222",
    )
    assert (found["severe"]["confidence"], found["severe"]["observed"]) == (
        "0.100000",
        "0.222222",
    )
    alike = [
        one
        for one in curves
        if one["rows_weighed"] == "alike" and one["group"] == "canal"
    ]
    assert {one["weight"] for one in alike} == {"15"}
    assert {one["outcome"] for one in alike} == {
        "most_probable",
        "at_least_moderate",
        "severe",
    }
