"""``spine-engine evaluate`` as it is called."""

import csv
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import typer
from rsna_truth import STUDIES, rsna_grades, write_rows, write_truth
from typer.testing import CliRunner

from spine_engine.errors import OutputError, UsageError
from spine_training.evaluation.command import evaluate
from spine_training.metric import MISSING, official_metric, prior_probabilities

app = typer.Typer()
app.command()(evaluate)


def invoked(*options):
    done = CliRunner().invoke(app, [str(option) for option in options])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def called(*options):
    return invoked(*options).output


@pytest.fixture
def small(tmp_path):
    """Twelve studies with random predictions in two files: the options that name them, arrays and ids."""
    rng = np.random.default_rng(0)
    studies = [str(1000 + k) for k in range(12)]
    grades = rng.choice([MISSING, 0, 1, 2], p=[0.1, 0.5, 0.2, 0.2], size=(12, 5, 5))
    probabilities = rng.dirichlet([1, 1, 1], grades.shape)
    write_truth(tmp_path / "train.csv", studies, grades)
    write_rows(tmp_path / "predictions.csv", studies, probabilities)
    options = (
        "--predictions",
        tmp_path / "predictions.csv",
        "--truth",
        tmp_path / "train.csv",
        "--bootstrap",
        100,
    )
    return options, probabilities, grades, studies


def test_json_holds_the_official_metric(small):
    options, probabilities, grades, _ = small
    report = json.loads(called(*options, "--json"))
    score = official_metric(probabilities, grades)
    assert report["scores"]["metric"]["value"] == pytest.approx(score.metric, rel=1e-12)
    assert report["scores"]["any_severe_canal"]["value"] == pytest.approx(
        score.any_severe_canal, rel=1e-12
    )
    assert report["prior"]["metric"] == pytest.approx(
        official_metric(prior_probabilities(12), grades).metric
    )
    assert (report["studies"], report["ignored_studies"], report["comparison"]) == (
        12,
        0,
        None,
    )


def test_the_order_of_rows_changes_nothing(small, tmp_path):
    options, probabilities, grades, studies = small
    before = called(*options, "--json")
    order = np.random.default_rng(1).permutation(300)
    write_rows(tmp_path / "predictions.csv", studies, probabilities, order)
    write_truth(tmp_path / "train.csv", studies[::-1], grades[::-1])
    assert called(*options, "--json") == before


def test_studies_beyond_the_truth_are_ignored_and_counted(small, tmp_path):
    options, probabilities, grades, studies = small
    write_truth(tmp_path / "train.csv", studies[:9], grades[:9])
    report = json.loads(called(*options, "--json"))
    assert (report["studies"], report["ignored_studies"]) == (9, 3)
    assert report["scores"]["metric"]["value"] == pytest.approx(
        official_metric(probabilities[:9], grades[:9]).metric
    )
    assert "3 studies of" in called(*options)


def test_a_comparison_says_which_file_is_better(small, tmp_path):
    options, probabilities, grades, studies = small
    better = probabilities.copy()
    known = grades != MISSING
    better[known] += np.eye(3)[grades[known]]
    write_rows(
        tmp_path / "better.csv", studies, better / better.sum(axis=-1, keepdims=True)
    )
    against = ("--against", tmp_path / "better.csv")
    row = json.loads(called(*options, *against, "--json"))["comparison"]["metric"]
    assert row["difference"]["low"] > 0
    assert row["first_better"] == 0
    shown = called(*options, *against)
    assert f"{row['difference']['value']:+.4f}" in shown
    assert "0.0%" in shown


def test_the_tables_show_score_floors_and_counts(small):
    options, probabilities, grades, _ = small
    shown = called(*options)
    own, prior = (
        official_metric(rows, grades)
        for rows in (probabilities, prior_probabilities(12))
    )
    assert f"{own.metric:.4f}" in shown
    assert f"{prior.canal:.4f}" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.fixture
def without_matplotlib(monkeypatch):
    """What is written beside the pictures: drawing them takes ten times as long."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.mark.usefixtures("without_matplotlib")
def test_out_gets_the_report_and_its_tables(small, tmp_path):
    options, _, grades, _ = small
    text = invoked(*options, "--json", "--out", tmp_path / "new" / "folder").stdout
    folder = tmp_path / "new" / "folder"
    assert json.loads((folder / "report.json").read_text()) == json.loads(text)
    with (folder / "confusion.csv").open() as file:
        assert (
            sum(int(row["rows"]) for row in csv.DictReader(file))
            == (grades != MISSING).sum()
        )
    with (folder / "reliability.csv").open() as file:
        rows = list(csv.DictReader(file))
    for outcome in ("most_probable", "at_least_moderate", "severe"):
        for weighing in ("metric", "alike"):
            chosen = [
                row
                for row in rows
                if (row["outcome"], row["rows_weighed"]) == (outcome, weighing)
            ]
            assert sum(int(row["rows"]) for row in chosen) == (grades != MISSING).sum()


def test_an_unfit_file_and_a_folder_that_cannot_be_are_the_user_s(small, tmp_path):
    options, *_ = small
    with pytest.raises(OutputError, match="cannot write"):
        called(*options, "--out", tmp_path / "train.csv")
    (tmp_path / "predictions.csv").write_text("row_id\n")
    with pytest.raises(UsageError, match="normal_mild"):
        called(*options)


@pytest.mark.slow
def test_all_of_rsna_s_studies_take_less_than_five_seconds(tmp_path):
    rng = np.random.default_rng(0)
    studies, grades = [str(k) for k in range(STUDIES)], rsna_grades()
    write_truth(tmp_path / "train.csv", studies, grades)
    write_rows(
        tmp_path / "predictions.csv", studies, rng.dirichlet([3, 2, 1], grades.shape)
    )
    began = time.process_time()
    called(
        "--predictions",
        tmp_path / "predictions.csv",
        "--truth",
        tmp_path / "train.csv",
        "--json",
    )
    assert time.process_time() - began < 5


def test_neither_pytorch_nor_scipy_nor_numba_is_imported():
    code = "import sys; from spine_training.evaluation import command, report, show, tables; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert not {"torch", "timm_3d", "scipy", "numba"}.intersection(done.stdout.split())
