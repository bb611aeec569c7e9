"""One comparator: what counts as the same answer, on what it is asked, and what is kept of the worst case."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from spine_engine.anatomy import LEVELS
from spine_engine.bundle import Bundle
from spine_engine.cli import app
from spine_engine.detection.levels import Detection
from spine_engine.errors import UsageError
from spine_engine.options import RunOptions
from spine_engine.parity import (
    LevelParity,
    Parity,
    ask,
    bundle_parity,
    compare,
    compare_levels,
    compare_probabilities,
    grader_inputs,
    keep_worst,
    phantom_samples,
)

SAMPLES = phantom_samples(1)
ENTRY = Bundle.open().grader


def test_only_sure_grades_count_as_changed():
    first = np.array([[[0.52, 0.48, 0.0]], [[0.7, 0.3, 0.0]]], np.float32)
    second = np.array([[[0.48, 0.52, 0.0]], [[0.4, 0.6, 0.0]]], np.float32)
    close = compare_probabilities(first[:1], second[:1])
    assert (close.changed, close.largest) == (0, pytest.approx(0.04))
    assert compare_probabilities(first, second).changed == 1
    assert not compare_probabilities(first, second).passed
    assert compare_probabilities(first, first).passed


def test_a_small_shift_everywhere_is_refused_by_its_mean():
    first = np.full((4, 5, 3), 1 / 3)
    second = first + np.array([0.009, 0.0, -0.009])
    found = compare_probabilities(first, second)
    assert (found.changed, found.passed) == (0, False)
    assert found.figures == {"mean": 0.006, "largest": 0.009, "changed": 0.0}


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 5, 3)])
def test_what_cannot_be_compared_is_refused(shape):
    with pytest.raises(ValueError, match="same shape and not empty"):
        compare_probabilities(np.zeros((0, 5, 3)), np.zeros(shape))


class Scripted:
    """A grader that answers item by item from the mean of its grid, with one item moved."""

    def __init__(self, moved=None):
        self.moved, self.seen = moved, 0

    def run(self, inputs):
        (grids,) = inputs.values()
        rows = np.zeros((len(grids), 5, 3), np.float32)
        for row, grid in zip(rows, grids, strict=True):
            row[:, 0] = 0.5 + 0.4 * grid.mean()
            row[:, 2] = 1 - row[:, 0]
            if self.seen == self.moved:
                row[3] = row[3, ::-1]
            self.seen += 1
        return {"probabilities": rows}


def test_the_worst_case_is_kept(tmp_path):
    first, second = ask(ENTRY, [Scripted()], SAMPLES), ask(ENTRY, [Scripted(moved=3)], SAMPLES)
    found = compare(first, second)
    assert found.changed == 1
    keep_worst(tmp_path / "worst.npz", ENTRY, SAMPLES, first, second)
    grids = grader_inputs(ENTRY, SAMPLES)
    assert grids.shape == (5, 3, *ENTRY.grid.shape)
    with np.load(tmp_path / "worst.npz") as kept:
        np.testing.assert_array_equal(kept["image"], grids[3])
        assert np.abs(kept["reference"] - kept["other"]).max() == pytest.approx(found.largest)
    np.testing.assert_array_equal(first[3], np.load(tmp_path / "worst.npz")["reference"])
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(first, [detection()])


def detection(shift_mm=0.0, source="detector"):
    levels = {
        level: replace(disc, center_mm=disc.center_mm + shift_mm * (level is LEVELS[2]), source=source)
        for level, disc in SAMPLES[0].levels.items()
    }
    return Detection(levels, (), ())


@pytest.mark.parametrize(
    ("other", "largest_mm", "passed"),
    [
        (detection(0.1), 0.1 * 3**0.5, True),
        (detection(1.0), 3**0.5, False),
        (detection(source="interpolated"), np.inf, False),
    ],
)
def test_levels_may_hardly_move(other, largest_mm, passed, tmp_path):
    found = compare([detection()], [other])
    keep_worst(tmp_path / "worst.npz", Bundle.open().detector, SAMPLES, [detection()], [other])
    assert found == LevelParity(largest_mm=pytest.approx(largest_mm), found=5)
    assert found.passed is passed
    assert np.load(tmp_path / "worst.npz")["reference"].shape == (5, 3)


def test_a_detector_that_finds_nothing_has_shown_nothing():
    nothing = detection(source="prior")
    found = compare_levels([nothing], [nothing])
    assert (found.largest_mm, found.found, found.passed) == (0, 0, False)


def test_two_runtimes_agree_on_the_packaged_bundle(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    first, second = RunOptions(precision="f32"), RunOptions(backend="onnxruntime", precision="f32")
    found = bundle_parity(Bundle.open(), first, second, 1, tmp_path / "new" / "worst")
    assert isinstance(found["grader"], Parity)
    assert found["grader"].largest <= 1e-4
    assert isinstance(found["detector"], LevelParity)
    assert found["detector"].largest_mm <= 0.05
    assert found["detector"].found == 5
    assert sorted(path.name for path in (tmp_path / "new" / "worst").iterdir()) == ["detector.npz", "grader.npz"]


def test_a_way_is_not_compared_with_itself():
    with pytest.raises(UsageError, match="both ways are openvino CPU in f32"):
        bundle_parity(Bundle.open(), RunOptions(precision="f32"), RunOptions(precision="f32"), 1)


def test_verify_shows_the_figures_and_fails_where_they_are_too_large(monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    words = ["bundle", "verify", "--parity", "--precision", "f32", "--reference", "onnxruntime", "--studies", "1"]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0, ended.output
    assert re.search(
        r"grader: probabilities moved by [\d.e-]+ on average, [\d.e-]+ at most, 0 grades: passed", ended.output
    )
    assert re.search(r"detector: 5 levels moved by [\d.e-]+ mm at most: passed", ended.output)
    monkeypatch.setattr("spine_engine.parity.MEAN_TOLERANCE", -1.0)
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 1
    assert re.search("grader: .*: REFUSED", ended.output)
