"""A fitted calibration undoes a known distortion, stays near the identity without labels, and never harms."""

import json

import numpy as np
import pytest
import typer
from rsna_truth import write_rows, write_truth
from typer.testing import CliRunner

pytest.importorskip("scipy", reason="needs the train extra")

from spine_engine.anatomy import CONDITIONS, LEVELS, MIRRORED_CONDITION
from spine_engine.bundle.manifest import Calibration
from spine_engine.errors import UsageError
from spine_engine.pipeline.grading import calibrated
from spine_training.evaluation.calibration import (
    IDENTITY,
    SHIFT_LIMIT,
    TEMPERATURE_LIMITS,
    _loss,
    apply,
    calibration_command,
    cross_validated,
    figures,
    fit_calibration,
    read_calibration,
    without_prior_rows,
)
from spine_training.evaluation.reliability import calibration_error, unweighted
from spine_training.metric import GROUPS, MISSING, official_metric, prior_probabilities

DISTORTION = {"canal": (0.6, 0.8), "foraminal": (1.8, -0.5), "subarticular": (1.0, 0.6)}
"""Temperature and shift that a made-up grader lacks, by group."""

app = typer.Typer()
app.command()(calibration_command)


def made(studies, seed):
    """Probabilities that are right in the metric's sense, and grades read from them."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet([0.9, 0.5, 0.4], (studies, 5, 5))
    chances = unweighted(probabilities).cumsum(axis=-1)
    grades = (rng.random((studies, 5, 5, 1)) > chances).sum(axis=-1).clip(0, 2)
    return probabilities, grades


def by_group(pairs, part):
    group_of = {head: name for name, heads in GROUPS.items() for head in heads}
    return tuple(
        (pairs[group_of[c]][part],) * len(LEVELS) for c in range(len(CONDITIONS))
    )


def distorted(probabilities, pairs):
    """Undo ``pairs`` beforehand, so that they are what a fit should find: ``logit -> (logit - b) * T``."""
    inverse = {name: (1 / t, -b * t) for name, (t, b) in pairs.items()}
    return calibrated(
        probabilities,
        Calibration(temperature=by_group(inverse, 0), shift=by_group(inverse, 1)),
    )


def test_a_known_distortion_is_recovered_and_the_metric_comes_back():
    right, grades = made(1000, 0)
    wrong = distorted(right, DISTORTION)
    fitted = fit_calibration(wrong, grades)
    assert np.log(fitted.temperature) == pytest.approx(
        np.log(by_group(DISTORTION, 0)), abs=0.12
    )
    assert np.array(fitted.shift) == pytest.approx(
        np.array(by_group(DISTORTION, 1)), abs=0.12
    )
    best, before = (
        official_metric(right, grades).metric,
        official_metric(wrong, grades).metric,
    )
    assert before > best + 0.02
    assert official_metric(apply(wrong, fitted), grades).metric < best + 0.001
    assert official_metric(
        cross_validated(wrong[:300], grades[:300]), grades[:300]
    ).metric < (official_metric(wrong[:300], grades[:300]).metric - 0.02)
    assert (
        calibration_error(apply(wrong, fitted), grades)
        < 0.015
        < calibration_error(wrong, grades)
    )


def test_one_level_of_its_own_is_recovered_and_its_neighbours_stay():
    right, grades = made(1000, 1)
    wrong = right.copy()
    inverse = distorted(right, dict.fromkeys(GROUPS, (1.0, 0.8)))
    wrong[:, 3] = inverse[:, 3]
    shift = np.array(fit_calibration(wrong, grades).shift)
    assert shift[:, 3] == pytest.approx(0.8, abs=0.25)
    assert np.abs(np.delete(shift, 3, axis=1)).max() < 0.25


def test_a_level_without_labels_takes_its_group_s_pair_and_a_group_without_any_the_identity():
    right, grades = made(300, 2)
    wrong = distorted(right, DISTORTION)
    grades[:, 0] = MISSING
    grades[..., list(GROUPS["foraminal"])] = MISSING
    fitted = fit_calibration(wrong, grades)
    canal, foraminal = CONDITIONS[GROUPS["canal"][0]], GROUPS["foraminal"]
    assert fitted.shift[CONDITIONS.index(canal)][0] == pytest.approx(0.8, abs=0.2)
    for head in foraminal:
        assert fitted.temperature[head] == (1.0,) * 5
        assert fitted.shift[head] == (0.0,) * 5


def test_few_labels_move_little_and_never_past_the_limits():
    right, grades = made(2, 3)
    assert np.abs(fit_calibration(right, grades).shift).max() < 0.7
    hopeless = np.tile([0.98, 0.01, 0.01], (400, 5, 5, 1))
    fitted = fit_calibration(hopeless, np.full((400, 5, 5), 2))
    assert np.abs(fitted.shift).max() <= SHIFT_LIMIT
    assert np.min(fitted.temperature) >= TEMPERATURE_LIMITS[0]
    assert np.max(fitted.temperature) <= TEMPERATURE_LIMITS[1]


def test_left_and_right_share_their_parameters():
    right, grades = made(60, 4)
    fitted = fit_calibration(right, grades)
    for c, condition in enumerate(CONDITIONS):
        mirrored = CONDITIONS.index(MIRRORED_CONDITION[condition])
        assert fitted.temperature[c] == fitted.temperature[mirrored]
        assert fitted.shift[c] == fitted.shift[mirrored]


@pytest.mark.parametrize("seed", range(3))
def test_it_never_scores_worse_than_the_identity_on_its_own_data(seed):
    right, grades = made(15, seed)
    before = official_metric(apply(right, IDENTITY), grades)
    after = official_metric(apply(right, fit_calibration(right, grades)), grades)
    assert after.metric <= before.metric
    assert after.foraminal <= before.foraminal
    assert after.subarticular <= before.subarticular


def test_a_canal_fit_that_any_severe_canal_cannot_bear_is_dropped():
    """Every study has one severe level, said to be severe at 0.7: 0.5 is best for its rows, 1 for the study."""
    rows, grades = made(50, 0)
    rows[..., 4, :] = [0.295, 0.005, 0.7]
    grades[..., 4] = 2 * np.eye(5, dtype=int)[np.arange(50) % 5]
    fitted = fit_calibration(rows, grades)
    assert fitted.temperature[4] == (1.0,) * 5
    assert fitted.shift[4] == (0.0,) * 5
    assert fitted.shift[0] != (0.0,) * 5


def test_the_gradient_is_the_slope_of_the_loss():
    rng = np.random.default_rng(0)
    rows = (
        np.sort(rng.normal(0, 2, (50, 2)), axis=1),
        rng.integers(0, 3, 50),
        rng.choice([1.0, 2.0, 4.0], 50),
    )
    point, step = np.array([0.2, -0.3]), 1e-6
    _, slope = _loss(point, *rows)
    numeric = [
        (_loss(point + d, *rows)[0] - _loss(point - d, *rows)[0]) / (2 * step)
        for d in np.eye(2) * step
    ]
    assert slope == pytest.approx(numeric, rel=1e-5)


def test_the_loss_that_is_minimised_is_that_of_the_engine_s_calibration():
    rows, grades = made(40, 5)
    pairs = dict.fromkeys(GROUPS, (1.4, -0.3))
    moved = calibrated(
        rows, Calibration(temperature=by_group(pairs, 0), shift=by_group(pairs, 1))
    )
    cumulative = np.cumsum(rows, axis=-1)[..., :2].reshape(-1, 2)
    logits = np.log(cumulative / (1 - cumulative))
    loss, _ = _loss(
        np.array([np.log(1.4), -0.3]), logits, grades.ravel(), np.ones(grades.size)
    )
    chosen = np.take_along_axis(moved.reshape(-1, 3), grades.reshape(-1, 1), axis=1)
    assert loss == pytest.approx(-np.log(chosen).sum(), rel=1e-6)


def test_figures_show_an_over_fit():
    gains = np.zeros(2)
    for seed in range(2):
        right, grades = made(16, seed)
        stages = figures(right, grades, fit_calibration(right, grades))
        gains += [
            stages["before"]["metric"] - stages[stage]["metric"]
            for stage in ("in_sample", "cross_validated")
        ]
    assert gains[0] > 0  # what is right already seems to gain on its own data
    assert gains[1] < 0.5 * gains[0]


def test_rows_of_the_prior_are_no_grades():
    probabilities, grades = made(3, 7)
    probabilities[1, 2] = np.round(prior_probabilities(1)[0, 2], 6)
    kept = without_prior_rows(probabilities, grades)
    assert (kept[1, 2] == MISSING).all()
    assert (kept != MISSING).sum() == 70


@pytest.fixture
def files(tmp_path):
    right, grades = made(40, 8)
    wrong = distorted(right, DISTORTION)
    wrong[3] = prior_probabilities(1)[0]
    studies = [str(k) for k in range(100, 140)]
    write_truth(tmp_path / "train.csv", studies, grades)
    write_rows(tmp_path / "predictions.csv", studies, wrong)
    return [
        "--predictions",
        str(tmp_path / "predictions.csv"),
        "--truth",
        str(tmp_path / "train.csv"),
    ]


def test_the_command_writes_what_the_bundle_reads(files, tmp_path):
    out = tmp_path / "new" / "calibration.json"
    done = CliRunner().invoke(app, [*files, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    written = json.loads(out.read_text())
    stages = written["figures"]
    assert (stages["studies"], stages["labels"]) == (40, 39 * 25)
    assert stages["in_sample"]["metric"] < stages["before"]["metric"]
    for stage in ("before", "in_sample", "cross_validated"):
        assert f"{stages[stage]['metric']:.4f}" in done.output
    calibration = read_calibration(out)
    assert [list(row) for row in calibration.temperature] == written["calibration"][
        "temperature"
    ]
    assert calibration.shift[4][0] > 0.2


def test_the_command_wants_studies_and_graded_rows(files, tmp_path):
    rng = np.random.default_rng(0)
    few = [str(k) for k in range(100, 104)]
    write_truth(tmp_path / "train.csv", few, rng.integers(0, 3, (4, 5, 5)))
    with pytest.raises(UsageError, match="has 4 studies"):
        CliRunner().invoke(
            app, [*files, "--out", str(tmp_path / "c.json")], catch_exceptions=False
        )
    studies = [str(k) for k in range(100, 110)]
    write_truth(tmp_path / "train.csv", studies, rng.integers(0, 3, (10, 5, 5)))
    write_rows(tmp_path / "predictions.csv", studies, prior_probabilities(10))
    with pytest.raises(UsageError, match="no labelled row"):
        CliRunner().invoke(
            app, [*files, "--out", str(tmp_path / "c.json")], catch_exceptions=False
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "'calibration' is missing"),
        ("[1]", "is no calibration"),
        ("nothing", "is no calibration"),
        (
            '{"calibration": {"temperature": [[1]], "shift": [[0]]}}',
            "temperature must have 5 rows",
        ),
        (
            '{"calibration": {"temperature": [["1"]], "shift": [[0]]}}',
            'got "1", want a number',
        ),
        (
            '{"calibration": {"temperature": [[NaN]], "shift": [[0]]}}',
            "NaN is not a number that JSON knows",
        ),
    ],
)
def test_a_file_that_is_no_calibration_is_refused(tmp_path, content, message):
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        read_calibration(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_calibration(tmp_path / "absent.json")
