"""Figures of a grader: the best predictions score best, and a whole study's heads find their places."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("timm_3d", reason="needs the train extra")
pytest.importorskip("torchio", reason="needs the train extra")

from made_grids import SHAPE, bright_blobs  # noqa: E402

from spine_engine.anatomy import CONDITIONS, LEVELS, Condition, Level  # noqa: E402
from spine_engine.phantom.severity import best_predictions  # noqa: E402
from spine_training.grader.commands import watched  # noqa: E402
from spine_training.grader.evaluate import by_study, predict, report, scores  # noqa: E402
from spine_training.grader.loss import grading_loss  # noqa: E402
from spine_training.grader.model import Grader, GraderConfig  # noqa: E402


def test_the_best_predictions_score_best(tmp_path):
    grids = bright_blobs(tmp_path, 60, 3)
    best = scores(best_predictions(grids.narrowing), grids.grades, grids.narrowing)
    assert best["metric"] == pytest.approx(best["best"])
    assert best["best"] < best["prior"]
    assert best["miss_of_reader"] == pytest.approx(0, abs=1e-12)
    assert best["calibration_error_unweighted"] < 0.05
    unknown = scores(
        best_predictions(grids.narrowing),
        grids.grades,
        np.full_like(grids.narrowing, np.nan),
    )
    assert "best" not in unknown


def test_a_report_runs_the_grader_on_one_set_of_boxes(tmp_path):
    grids = bright_blobs(tmp_path, 6, 3)
    torch.manual_seed(0)
    figures = report(
        Grader(GraderConfig(backbone="narrow_conv_8", shape=SHAPE)), grids, 0
    )
    assert figures["metric"] > figures["best"]


def test_heads_of_a_whole_study_are_condition_major():
    heads = np.arange(2 * 25).reshape(2, 1, 25)
    placed = by_study(heads)
    assert placed.shape == (2, 5, 5)
    canal, level = (
        CONDITIONS.index(Condition.SPINAL_CANAL_STENOSIS),
        LEVELS.index(Level.L4_L5),
    )
    assert placed[1, level, canal] == 25 + canal * 5 + level
    assert np.array_equal(by_study(placed), placed), "five levels are left as they are"


def test_what_a_training_watches_is_the_loss_it_minimises_and_the_metric(tmp_path):
    grids = bright_blobs(tmp_path, 6, 3)
    torch.manual_seed(0)
    grader = Grader(GraderConfig(backbone="narrow_conv_8", shape=SHAPE))
    found = watched(grader, grids)
    rows = torch.from_numpy(predict(grader, grids.box_set(0))).float()
    loss = float(grading_loss(rows, torch.from_numpy(grids.grades.reshape(-1, 5))))
    assert found["held_out_grading"] == pytest.approx(loss, rel=1e-5)
    assert list(found) == ["held_out_grading", "metric", "prior", "best"]
    assert found["metric"] == report(grader, grids, 0)["metric"]
