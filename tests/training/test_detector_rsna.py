"""Detector exams from RSNA's layout: any storage of a stack, the cache, folds, and a training on them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("pandas", reason="the training extra is not installed")
pytest.importorskip("nibabel", reason="the training extra is not installed")

from spine_engine.detection import DetectorSpec  # noqa: E402
from spine_engine.errors import UsageError  # noqa: E402
from spine_engine.phantom import Protocol  # noqa: E402
from spine_engine.phantom.rsna import write_studies  # noqa: E402
from spine_engine.study import Stack  # noqa: E402
from spine_training.detector import rsna_exams  # noqa: E402
from spine_training.detector import train as training  # noqa: E402
from spine_training.detector.augment import arrays_from_exam, sample  # noqa: E402
from spine_training.detector.data import fold_of, load_data  # noqa: E402
from spine_training.detector.exam import pixels_of  # noqa: E402
from spine_training.detector.stacks import volume_from_stack  # noqa: E402
from spine_training.fit import Machine, Session, read_checkpoint  # noqa: E402
from spine_training.folds import fold_of_study  # noqa: E402
from spine_training.optimisation import FitOptions  # noqa: E402

pytestmark = pytest.mark.usefixtures("without_pictures")

SMALL = Protocol(sagittal_matrix=128, axial_matrix=96, sagittal_slices=11)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("rsna") / "set"
    list(write_studies(root, 2, 4, protocol=SMALL))
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def exams(written, cache):
    return load_data([written], cache)


def stack_of(pixels, origins, spacing=(1.0, 1.0), intercept=0.0):
    """A sagittal stack, superior up, anterior left, patient right first."""
    count = len(pixels)
    axes = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    ones = np.ones(count, np.float32)
    return Stack(
        pixels.astype(np.int16),
        ones,
        ones * np.float32(intercept),
        origins,
        axes,
        spacing,
    )


def test_both_sagittal_series_become_exams_with_the_discs_of_the_phantom(
    written, exams
):
    truth = json.loads((written / "truth.json").read_text())
    assert {exam.patient for exam in exams} == set(truth)
    assert sorted(exam.contrast for exam in exams) == ["T1", "T1", "T2", "T2"]
    for exam in exams:
        assert [disc.rank for disc in exam.column.discs] == [0, 1, 2, 3, 4]
        assert [rank for rank, _ in exam.column.bodies] == [0, 1, 2, 3, 4]
        places = np.array([disc.center_mm for disc in exam.column.discs])
        levels = truth[exam.patient]["levels"]
        true = np.array(
            [
                levels[level]["center_mm"]
                for level in ("l5_s1", "l4_l5", "l3_l4", "l2_l3", "l1_l2")
            ]
        )
        # distances between discs do not depend on the frame
        apart = np.linalg.norm(places[:, None] - places, axis=-1) - np.linalg.norm(
            true[:, None] - true, axis=-1
        )
        assert np.abs(apart).max() < 5.0


def test_discs_are_dark_or_bright_where_the_exam_says_they_are(exams):
    spec = DetectorSpec()
    for exam in exams:
        volume = pixels_of(exam.volume)
        at_disc, at_body = (
            [
                volume[tuple(np.round(place / exam.spacing_mm).astype(int))]
                for place in places
            ]
            for places in (
                [disc.center_mm for disc in exam.column.discs],
                [center for rank, center in exam.column.bodies if rank < 4],
            )
        )
        assert abs(np.median(at_disc) - np.median(at_body)) > 10
        image, target = sample(
            arrays_from_exam(exam, spec), (160, 128), np.random.default_rng(1), spec
        )
        assert image.max() > 0.2
        assert np.isfinite(target).all()


def test_what_is_cached_is_not_read_again_and_says_the_same(
    written, cache, exams, monkeypatch
):
    def never(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(rsna_exams, "_exams_of", never)
    again = load_data([written], cache)
    assert [exam.name for exam in again] == [exam.name for exam in exams]
    for a, b in zip(exams, again, strict=True):
        assert np.array_equal(pixels_of(a.volume), pixels_of(b.volume))
        assert all(
            np.array_equal(x.center_mm, y.center_mm)
            for x, y in zip(a.column.discs, b.column.discs, strict=True)
        )


def test_changed_points_are_read_again_and_a_study_without_them_is_left_out(
    written, exams, cache, tmp_path
):
    root = tmp_path / "set"
    shutil.copytree(written, root)
    table = root / "train_label_coordinates.csv"
    lines = table.read_text().splitlines()
    dropped = exams[0].patient
    table.write_text(
        "\n".join(
            line for line in lines if not (line.startswith(dropped) and "L5/S1" in line)
        )
        + "\n"
    )
    found = rsna_exams.load_rsna(root, cache)
    assert {exam.patient for exam in found.exams} == {
        exam.patient for exam in exams
    } - {dropped}
    assert found.left_out == {"no points at L5/S1 and above": 1}


def test_rsna_studies_have_the_folds_of_every_training(exams):
    assert fold_of(exams) == {exam.name: fold_of_study(exam.patient) for exam in exams}


def test_a_folder_of_neither_kind_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="no exams"):
        load_data([tmp_path], tmp_path / "cache")


def test_a_missing_slice_keeps_the_others_in_place():
    pixels = np.arange(1, 7)[:, None, None] * np.ones((1, 4, 4))
    origins = np.array([[4.0 * k, 0, 0] for k in range(6)])
    whole = volume_from_stack(stack_of(pixels, origins))
    kept = [0, 1, 3, 4, 5]
    holed = volume_from_stack(stack_of(pixels[kept], origins[kept]))
    assert holed.pixels.shape == whole.pixels.shape == (4, 4, 6)
    assert np.array_equal(holed.pixels[:, :, kept], whole.pixels[:, :, kept])


def test_fine_pixels_are_averaged_to_a_millimetre_and_stay_where_they_are():
    fine = np.zeros((3, 40, 60))
    fine[:, 20:22, 30:32] = (
        100.0  # rows at 10.0-10.5 mm: the block of 0.5 mm pixels 20 and 21
    )
    origins = np.array([[4.0 * k, 7.0, 90.0] for k in range(3)])
    volume = volume_from_stack(stack_of(fine, origins, (0.5, 0.5), intercept=-20.0))
    assert volume.pixels.shape == (20, 30, 3)
    assert volume.spacing_mm == (1.0, 1.0, 4.0)
    row, column, _ = np.argwhere(volume.pixels == 255)[0]
    middle = np.array(
        [4.0, 7.0 + 15.25, 90.0 - 10.25]
    )  # LPS middle of the bright block, slice 1
    assert np.allclose(volume.place(middle), [row * 1.0, column * 1.0, 4.0])


def test_a_detector_trains_on_a_set_in_rsnas_layout(exams, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CANVASES", (((96, 64), 2, 1.0),))
    options, machine = (
        FitOptions(epochs=1, learning_rate=1e-3),
        Machine(device="cpu", threads=1, workers=0),
    )
    chosen = training.TrainingExams.of(exams, -1)
    training.train(chosen, Session(out=tmp_path, machine=machine), options, steps=2)
    content = read_checkpoint(tmp_path / "last.pt")
    assert content["epoch"] == 1
    assert "RSNA exams" in content["settings"]["data"]
