"""What decides the grids that are kept, and the rows that a calibration is fitted on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_calibration import app, files  # noqa: F401
from typer.testing import CliRunner

pytest.importorskip("torch", reason="needs the train extra")

from spine_training.evaluation import calibration
from spine_training.grader.grids import BoxJitter, cache_folder
from spine_training.grader.model import WHOLE_STUDY, GraderConfig
from spine_training.metric import MISSING


class Source:
    def __init__(self, **facts):
        self.facts = {"kind": "made up", **facts}


def folder(config=None, jitter=None, **facts):
    return cache_folder(
        Source(**facts), config or GraderConfig(), jitter or BoxJitter(), Path("cache")
    )


@pytest.mark.parametrize(
    "change",
    [
        {"config": replace(GraderConfig(), shape=(24, 40, 47))},
        {"config": replace(GraderConfig(), spacing_mm=(1.6, 1.2, 1.3))},
        {"config": replace(GraderConfig(), offset_mm=(0.0, 17.0, 0.0))},
        {
            "config": replace(
                GraderConfig(), channels=("sagittal_t1", "sagittal_t2", "axial_t2")
            )
        },
        {"config": WHOLE_STUDY},
        {"jitter": BoxJitter(center_mm=2.0)},
        {"jitter": BoxJitter(rotation_deg=5.0)},
        {"jitter": BoxJitter(boxes=2)},
        {"number": 1},
    ],
    ids=[
        "shape",
        "spacing",
        "offset",
        "channels",
        "task",
        "shift",
        "turn",
        "boxes",
        "source",
    ],
)
def test_grids_that_are_cut_otherwise_are_kept_elsewhere(change):
    assert folder(**change) != folder()


@pytest.mark.parametrize(
    "change", [{"backbone": "resnet18"}, {"pool": "max"}, {"coordinates": False}]
)
def test_what_the_network_is_made_of_changes_no_grid(change):
    assert folder(replace(GraderConfig(), **change)) == folder()


def test_a_calibration_is_fitted_on_graded_rows_alone(files, tmp_path, monkeypatch):  # noqa: F811
    fit = calibration.fit_calibration
    given = []
    monkeypatch.setattr(
        calibration,
        "fit_calibration",
        lambda rows, grades: given.append(grades) or fit(rows, grades),
    )
    done = CliRunner().invoke(
        app, [*files, "--out", str(tmp_path / "c.json")], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    grades = given[0]
    assert (grades[3] == MISSING).all()
    assert np.count_nonzero(grades != MISSING) == 39 * 25
