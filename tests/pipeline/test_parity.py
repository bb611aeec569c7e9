"""One comparator: what counts as the same answer, on what it is asked, and what is kept of the worst case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from spine_engine.anatomy import LEVELS
from spine_engine.backends.base import Device
from spine_engine.bundle import Bundle
from spine_engine.cli import app
from spine_engine.detection.levels import Detection
from spine_engine.options import RunOptions
from spine_engine.phantom.samples import phantom_samples
from spine_engine.pipeline.parity import (
    LevelParity,
    Parity,
    ask,
    bundle_parity,
    compare,
    compare_levels,
    compare_probabilities,
    grader_inputs,
    keep_worst,
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
    first, second = (
        ask(ENTRY, [Scripted()], SAMPLES),
        ask(ENTRY, [Scripted(moved=3)], SAMPLES),
    )
    found = compare(first, second)
    assert found.changed == 1
    keep_worst(tmp_path / "worst.npz", ENTRY, SAMPLES, first, second)
    grids = grader_inputs(ENTRY, SAMPLES)
    assert grids.shape == (5, 3, *ENTRY.grid.shape)
    with np.load(tmp_path / "worst.npz") as kept:
        np.testing.assert_array_equal(kept["image"], grids[3])
        assert np.abs(kept["reference"] - kept["other"]).max() == pytest.approx(
            found.largest
        )
    np.testing.assert_array_equal(
        first[3], np.load(tmp_path / "worst.npz")["reference"]
    )
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(first, [detection()])


def detection(shift_mm=0.0, source="detector"):
    levels = {
        level: replace(
            disc,
            center_mm=disc.center_mm + shift_mm * (level is LEVELS[2]),
            source=source,
        )
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
    keep_worst(
        tmp_path / "worst.npz", Bundle.open().detector, SAMPLES, [detection()], [other]
    )
    assert found == LevelParity(largest_mm=pytest.approx(largest_mm), found=5)
    assert found.passed is passed
    assert np.load(tmp_path / "worst.npz")["reference"].shape == (5, 3)


def test_a_detector_that_finds_nothing_has_shown_nothing():
    nothing = detection(source="prior")
    found = compare_levels([nothing], [nothing])
    assert (found.largest_mm, found.found, found.passed) == (0, 0, False)


def test_two_runtimes_agree_on_the_packaged_bundle(tmp_path):
    pytest.importorskip(
        "onnxruntime",
        reason="onnxruntime is not installed: that two runtimes agree is not shown",
    )
    first, second = (
        RunOptions(precision="f32"),
        RunOptions(backend="onnxruntime", precision="f32"),
    )
    found = bundle_parity(Bundle.open(), first, second, 1, tmp_path / "new" / "worst")
    assert isinstance(found["grader"], Parity)
    assert found["grader"].largest <= 1e-4
    assert isinstance(found["detector"], LevelParity)
    assert found["detector"].largest_mm <= 0.05
    assert found["detector"].found == 5
    assert sorted(path.name for path in (tmp_path / "new" / "worst").iterdir()) == [
        "detector.npz",
        "grader.npz",
    ]


@pytest.fixture
def verify(monkeypatch):
    """Verify the packaged bundle over models that need no runtime; the comparison gives what it is told to."""
    asked = []

    class Loaded:
        device = Device("openvino", "CPU", "bf16")

        def close(self):
            asked.append("closed")

    monkeypatch.setattr(
        Bundle,
        "open_model",
        lambda self, entry, **options: (asked.append(options), Loaded())[1],
    )

    def verify(found, *words):
        monkeypatch.setattr(
            "spine_engine.pipeline.parity.bundle_parity",
            lambda *given: (asked.append(given), found)[1],
        )
        ended = CliRunner().invoke(app, ["bundle", "verify", *words])
        return ended, asked

    return verify


GOOD = {
    "detector": LevelParity(largest_mm=0.1, found=5),
    "grader": Parity(mean=0.001, largest=0.02, changed=0),
}


def test_verify_shows_the_figures_and_fails_where_they_are_too_large(verify):
    words = [
        "--parity",
        "--precision",
        "f32",
        "--reference",
        "onnxruntime",
        "--studies",
        "3",
        "--worst",
        "w",
    ]
    ended, asked = verify(GOOD, *words)
    assert ended.exit_code == 0, ended.output
    assert ended.output.splitlines()[-2:] == [
        "detector: 5 levels moved by 0.1 mm at most: passed",
        "grader: probabilities moved by 0.001 on average, 0.02 at most, 0 grades: passed",
    ]
    bundle, reference, other, count, worst = asked[-1]
    assert bundle.digest == Bundle.open().digest
    assert (reference.backend, reference.device, reference.precision) == (
        "onnxruntime",
        "cpu",
        "f32",
    )
    assert (other.backend, other.device, other.precision) == ("openvino", "cpu", "f32")
    assert (count, worst) == (3, Path("w"))
    for role, bad in (
        ("grader", Parity(mean=0.001, largest=0.02, changed=1)),
        ("detector", LevelParity(largest_mm=0.6, found=5)),
    ):
        ended, _ = verify(GOOD | {role: bad}, "--parity")
        assert ended.exit_code == 1
        (line,) = [
            line for line in ended.output.splitlines() if line.endswith(": REFUSED")
        ]
        assert line.startswith(f"{role}: ")


def test_verify_without_parity_compares_nothing_and_closes_what_it_opened(verify):
    ended, asked = verify(
        GOOD, "--backend", "onnxruntime", "--device", "CUDA", "--precision", "f16"
    )
    assert ended.exit_code == 0
    told = {"name": "onnxruntime", "device": "CUDA", "precision": "f16"}
    assert asked == [told, "closed"] * len(Bundle.open().manifest.models.by_role())
    digest = Bundle.open().digest
    assert ended.output.splitlines()[0] == (
        f"detector: {Bundle.open().detector.file} is as the manifest says, on openvino CPU in bf16"
    )
    assert ended.output.endswith(f"is sound, digest {digest}\n")


def test_verify_compares_eight_phantoms_with_openvino_by_default(verify):
    _, asked = verify(GOOD, "--parity")
    _, reference, other, count, worst = asked[-1]
    assert (reference.backend, reference.precision, other.precision) == (
        "openvino",
        "f32",
        "auto",
    )
    assert (count, worst) == (8, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--worst", "w"], "--worst keeps what --parity finds: give both"),
        (
            ["--precision", "f8"],
            "--precision must be one of auto, bf16, f16, f32, int8, got 'f8'",
        ),
    ],
)
def test_verify_refuses_what_makes_no_sense(verify, words, message):
    ended, asked = verify(GOOD, *words)
    assert ended.exit_code == 2
    assert " ".join(ended.output.split()).endswith(message)
    assert not asked
