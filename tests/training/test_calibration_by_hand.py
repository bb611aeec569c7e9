"""Calibration where a hand can follow it: which pair goes where, what the fit minimises, what the file holds."""

import json
from dataclasses import asdict
from itertools import pairwise
from math import exp, log

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rsna_truth import write_rows, write_truth
from typer.testing import CliRunner

pytest.importorskip("scipy", reason="needs the train extra")

from spine_engine.bundle.manifest import Calibration
from spine_engine.errors import OutputError, UsageError
from spine_training.evaluation import calibration as calibrating
from spine_training.evaluation.calibration import (
    IDENTITY,
    apply,
    calibration_command,
    cross_validated,
    figures,
    fit_calibration,
    read_calibration,
    without_prior_rows,
)
from spine_training.evaluation.reliability import (
    calibration_error,
    calibration_error_unweighted,
)
from spine_training.metric import official_metric, prior_probabilities

app = typer.Typer()
app.command()(calibration_command)


def sigmoid(x):
    return 1 / (1 + exp(-x))


def logit(p):
    return log(p / (1 - p))


def a_calibration(condition, level, temperature=1.0, shift=0.0):
    """The identity but for one condition and level."""
    temperatures, shifts = np.ones((5, 5)), np.zeros((5, 5))
    temperatures[condition, level], shifts[condition, level] = temperature, shift
    return Calibration(
        temperature=tuple(map(tuple, temperatures.tolist())),
        shift=tuple(map(tuple, shifts.tolist())),
    )


@pytest.mark.parametrize(("condition", "level"), [(0, 0), (1, 3), (4, 2), (2, 4)])
def test_a_pair_is_applied_to_its_condition_and_level_alone(condition, level):
    rows = np.tile([0.5, 0.3, 0.2], (2, 5, 5, 1))
    moved = apply(rows, a_calibration(condition, level, 2.0, 0.5))
    first, second = sigmoid(logit(0.5) / 2 + 0.5), sigmoid(logit(0.8) / 2 + 0.5)
    assert moved[1, level, condition] == pytest.approx(
        [first, second - first, 1 - second]
    )
    elsewhere = np.ones((5, 5), bool)
    elsewhere[level, condition] = False
    assert moved[:, elsewhere] == pytest.approx(rows[:, elsewhere])


probabilities = st.tuples(
    st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.01, 1)
).map(lambda p: np.array(p) / sum(p))


@given(
    rows=st.lists(probabilities, min_size=2, max_size=6),
    temperature=st.floats(0.25, 4),
    shift=st.floats(-4, 4),
)
def test_it_never_reorders_studies_and_rows_stay_probabilities(
    rows, temperature, shift
):
    """Studies ordered by P(y <= 0), or by P(severe), stay so: both are monotone in a logit of their own."""
    table = np.tile(np.array(rows)[:, None, None], (1, 5, 5, 1))
    moved = apply(table, a_calibration(4, 1, temperature, shift))
    assert moved.sum(-1) == pytest.approx(np.ones(moved.shape[:3]))
    assert moved.min() >= 0
    for grade in (0, 2):
        order = np.argsort(table[:, 1, 4, grade], kind="stable")
        assert all(b - a > -1e-12 for a, b in pairwise(moved[order, 1, 4, grade]))


def said(chance, count, hits, condition=0):
    """Studies whose foraminal rows all say normal with ``chance``; ``hits`` of them are, the others severe."""
    rows = np.tile([0.9, 0.05, 0.05], (count, 5, 5, 1))
    rows[:, :, [0, 2]] = [chance, (1 - chance) / 2, (1 - chance) / 2]
    grades = np.zeros((count, 5, 5), int)
    grades[hits:, :, [0, 2]] = 2
    return rows, grades


def test_the_fit_minimises_the_weighted_log_loss_held_by_normal_priors():
    """40 foraminal rows a level say 0.6, 0.2, 0.2; 26 are normal, 10 moderate, 4 severe. A grid search finds the same
    pairs: first for the group, round the identity by 0.35, then for each level, round the group's by 0.2."""
    rows, grades = said(0.6, 20, 18)
    grades[:5, :, [0, 2]] = 1
    fitted = fit_calibration(rows, grades)
    log_t, shift = np.meshgrid(np.arange(-1.3, 1.3, 0.01), np.arange(-1.3, 1.3, 0.01))

    def best(rows_of_each, spread, center):
        first, second = (
            1 / (1 + np.exp(-(logit(p) / np.exp(log_t) + shift))) for p in (0.6, 0.8)
        )
        normal, moderate, severe = rows_of_each
        loss = (
            -normal * np.log(first)
            - 2 * moderate * np.log(second - first)
            - 4 * severe * np.log(1 - second)
        )
        loss += ((log_t - center[0]) ** 2 + (shift - center[1]) ** 2) / (2 * spread**2)
        place = np.unravel_index(loss.argmin(), loss.shape)
        return log_t[place], shift[place]

    group = best((130, 50, 20), 0.35, (0.0, 0.0))
    level = best((26, 10, 4), 0.2, group)
    assert abs(level[0]) < 1.2
    for head in (0, 2):
        assert np.log(fitted.temperature[head]) == pytest.approx(
            [level[0]] * 5, abs=0.02
        )
        assert fitted.shift[head] == pytest.approx([level[1]] * 5, abs=0.02)


def test_a_group_without_labels_keeps_the_identity_and_a_level_without_them_its_group_s():
    rows, grades = said(0.6, 30, 20)
    grades[:, :, [1, 3]] = -1
    grades[:, 4, [0, 2]] = -1
    fitted = fit_calibration(rows, grades)
    for head in (1, 3):
        assert (fitted.temperature[head], fitted.shift[head]) == (
            (1.0,) * 5,
            (0.0,) * 5,
        )
    assert fitted.shift[0][4] != 0
    assert abs(fitted.shift[0][4]) < abs(fitted.shift[0][0]), (
        "the group's, held nearer to the identity"
    )
    assert fitted.shift[0] == fitted.shift[2]


def test_a_fit_stops_at_its_limits():
    """Temperatures of 0.25 to 4, shifts of up to 4: predictions that are sure and wrong everywhere."""
    rows, grades = said(0.97, 800, 0)
    fitted = fit_calibration(rows, grades)
    assert min(map(min, fitted.shift)) >= -4.0
    assert max(map(max, fitted.temperature)) <= 4.0
    assert min(map(min, fitted.temperature)) >= 0.25
    assert fitted.shift[0][0] == pytest.approx(-4.0, abs=0.01)


def test_the_prior_s_rows_are_those_that_the_engine_writes_within_rounding():
    rows = np.tile([0.5, 0.3, 0.2], (1, 5, 5, 1))
    grades = np.ones((1, 5, 5), int)
    prior = prior_probabilities(1)
    rows[0, 1, 3], rows[0, 2, 4] = prior[0, 1, 3], prior[0, 2, 4] + [4e-7, 0, -4e-7]
    rows[0, 3, 0] = prior[0, 3, 0] + [3e-6, 0, -3e-6]
    rows[0, 0, 1] = prior[0, 0, 4]  # the prior of another condition
    kept = without_prior_rows(rows, grades)
    assert sorted(map(tuple, np.argwhere(kept == -1).tolist())) == [
        (0, 1, 3),
        (0, 2, 4),
    ]
    assert grades.min() == 1, "the grades that were given stay"


def test_each_study_is_calibrated_by_a_fit_that_has_not_seen_it(monkeypatch):
    seen = []

    def fit(rows, grades):
        seen.append(grades[:, 0, 0].tolist())
        return a_calibration(4, 0, 1.0, float(len(seen)))

    monkeypatch.setattr(calibrating, "fit_calibration", fit)
    rows, grades = (
        np.tile([0.5, 0.3, 0.2], (12, 5, 5, 1)),
        np.tile(np.arange(12)[:, None, None], (1, 5, 5)),
    )
    held_out = cross_validated(rows, grades)
    assert [len(known) for known in seen] == [9, 9, 10, 10, 10]
    for study in range(12):
        first = held_out[study, 0, 4, 0]
        used = round(logit(first) - logit(0.5))
        assert study not in seen[used - 1]
    again = cross_validated(rows, grades)
    assert seen[:5] == seen[5:], "the same folds every time"
    assert again.shape == held_out.shape


def test_figures_are_the_metric_and_errors_of_three_stages(monkeypatch):
    rng = np.random.default_rng(1)
    rows, grades = rng.dirichlet([2, 1, 1], (10, 5, 5)), rng.integers(0, 3, (10, 5, 5))
    monkeypatch.setattr(
        calibrating,
        "fit_calibration",
        lambda rows, grades: a_calibration(1, 1, 1.5, grades.mean()),
    )
    found = figures(rows, grades, a_calibration(0, 0, 2.0, 0.3))
    stages = {
        "before": rows,
        "in_sample": apply(rows, a_calibration(0, 0, 2.0, 0.3)),
        "cross_validated": cross_validated(rows, grades),
    }
    assert list(found) == list(stages)
    for stage, table in stages.items():
        assert found[stage] == {
            **asdict(official_metric(table, grades)),
            "calibration_error": calibration_error(table, grades),
            "calibration_error_unweighted": calibration_error_unweighted(table, grades),
        }


def test_what_is_written_is_read_again_to_the_last_digit(tmp_path, monkeypatch):
    monkeypatch.setattr(
        calibrating, "cross_validated", lambda rows, grades: rows
    )  # five more fits
    rng = np.random.default_rng(2)
    studies = [str(k) for k in range(6)]
    rows, grades = rng.dirichlet([2, 1, 1], (6, 5, 5)), rng.integers(0, 3, (6, 5, 5))
    write_truth(tmp_path / "train.csv", studies, grades)
    write_rows(tmp_path / "predictions.csv", studies, rows)
    asked = [
        "--predictions",
        str(tmp_path / "predictions.csv"),
        "--truth",
        str(tmp_path / "train.csv"),
    ]
    out = tmp_path / "calibration.json"
    done = CliRunner().invoke(app, [*asked, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    content = json.loads(out.read_text())
    kept, fitted = read_calibration(out), fit_calibration(rows, grades)
    assert json.loads(json.dumps(asdict(kept))) == content["calibration"]
    assert np.array(kept.temperature) == pytest.approx(
        np.array(fitted.temperature), rel=1e-3
    )
    assert np.array(kept.shift) == pytest.approx(np.array(fitted.shift), abs=1e-3)
    assert f"Calibration: {out}" in done.output.replace("\n", "")
    with pytest.raises(OutputError, match="cannot write"):
        CliRunner().invoke(
            app, [*asked, "--out", str(out / "c.json")], catch_exceptions=False
        )


@pytest.mark.parametrize(
    ("after", "wanted"), [(0.5, True), (0.6, True), (0.4999, False)]
)
def test_a_calibration_that_does_not_help_on_unseen_studies_is_said_to(
    tmp_path, monkeypatch, after, wanted
):
    rng = np.random.default_rng(3)
    studies = [str(k) for k in range(5)]
    write_truth(tmp_path / "train.csv", studies, rng.integers(0, 3, (5, 5, 5)))
    write_rows(
        tmp_path / "predictions.csv", studies, rng.dirichlet([2, 1, 1], (5, 5, 5))
    )
    names = (
        "metric",
        "canal",
        "foraminal",
        "subarticular",
        "any_severe_canal",
        "calibration_error",
    )
    made = dict.fromkeys((*names, "calibration_error_unweighted"), 0.5)
    stages = {
        "before": made,
        "in_sample": made,
        "cross_validated": {**made, "metric": after},
    }
    monkeypatch.setattr(calibrating, "fit_calibration", lambda rows, grades: IDENTITY)
    monkeypatch.setattr(calibrating, "figures", lambda *_: stages)
    asked = [
        "--predictions",
        str(tmp_path / "predictions.csv"),
        "--truth",
        str(tmp_path / "train.csv"),
    ]
    done = CliRunner().invoke(
        app, [*asked, "--out", str(tmp_path / "c.json")], catch_exceptions=False
    )
    assert (
        "On studies it has not seen this calibration does not help"
        in " ".join(done.output.split())
    ) is wanted


def test_five_studies_are_enough_and_four_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(calibrating, "fit_calibration", lambda rows, grades: IDENTITY)
    rng = np.random.default_rng(3)
    asked = [
        "--predictions",
        str(tmp_path / "predictions.csv"),
        "--truth",
        str(tmp_path / "train.csv"),
    ]
    asked += ["--out", str(tmp_path / "c.json")]
    for count in (5, 4):
        studies = [str(k) for k in range(count)]
        write_truth(tmp_path / "train.csv", studies, rng.integers(0, 3, (count, 5, 5)))
        write_rows(
            tmp_path / "predictions.csv",
            studies,
            rng.dirichlet([2, 1, 1], (count, 5, 5)),
        )
        if count == 5:
            assert CliRunner().invoke(app, asked, catch_exceptions=False).exit_code == 0
    with pytest.raises(UsageError, match="has 4 studies; a calibration needs 5"):
        CliRunner().invoke(app, asked, catch_exceptions=False)


@pytest.mark.parametrize("table", ["temperature", "shift"])
@pytest.mark.parametrize("value", [True, None, "1", float("inf"), [1.0]])
def test_a_calibration_holds_finite_numbers_alone(tmp_path, table, value):
    content = asdict(IDENTITY)
    rows = [list(row) for row in content[table]]
    rows[2][3] = value
    (tmp_path / "c.json").write_text(
        json.dumps({"calibration": {**content, table: rows}})
    )
    place = rf"calibration\.{table}\[2\]\[3\]: got .*, want a number"
    with pytest.raises(
        UsageError, match=rf"is no calibration: ({place}|Infinity is not a number)"
    ):
        read_calibration(tmp_path / "c.json")
    rows[2][3] = 1
    (tmp_path / "c.json").write_text(
        json.dumps({"calibration": {**content, table: rows}})
    )
    assert getattr(read_calibration(tmp_path / "c.json"), table)[2][3] == 1.0


@pytest.mark.parametrize("missing", ["temperature", "shift"])
def test_a_calibration_needs_both_tables(tmp_path, missing):
    content = {
        name: table for name, table in asdict(IDENTITY).items() if name != missing
    }
    (tmp_path / "c.json").write_text(json.dumps({"calibration": content}))
    with pytest.raises(UsageError, match=f"'{missing}' is missing"):
        read_calibration(tmp_path / "c.json")
