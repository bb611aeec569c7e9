"""Samples, losses, the net and a resumed training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training extra is not installed")
nib = pytest.importorskip("nibabel", reason="the training extra is not installed")

from spine_engine.detection import DetectorSpec  # noqa: E402
from spine_engine.errors import UsageError  # noqa: E402
from spine_training.detector import train as training  # noqa: E402
from spine_training.detector.augment import arrays_from_exam, sample  # noqa: E402
from spine_training.detector.data import load_exams  # noqa: E402
from spine_training.detector.exam import Exam  # noqa: E402
from spine_training.detector.loss import detector_loss, level_bins  # noqa: E402
from spine_training.detector.model import LevelHeatmapNet, load_detector  # noqa: E402
from spine_training.detector.truth import column_from_bodies  # noqa: E402
from spine_training.fit import Machine, Session, read_checkpoint  # noqa: E402

pytestmark = pytest.mark.usefixtures("without_pictures")

SPEC = DetectorSpec()


def column_volume():
    """A 1 mm volume with five bright boxes as vertebral bodies, and their labels."""
    labels = np.zeros((224, 160, 30), np.uint8)
    for i, label in enumerate((1, 2, 3, 4, 5)):
        labels[20 + 35 * i : 45 + 35 * i, 60:94, 5:25] = label
    image = (
        np.random.default_rng(0).integers(10, 40, labels.shape) + 120 * (labels > 0)
    ).astype(np.uint8)
    return image, labels


@pytest.fixture(scope="module")
def exam():
    image, labels = column_volume()
    return arrays_from_exam(
        Exam("A", "VB3", "A", image, (1.0, 1.0, 1.0), column_from_bodies(labels)), SPEC
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder with two exams of one source."""
    root = tmp_path_factory.mktemp("data")
    (root / "lumbar-mri").mkdir()
    image, labels = column_volume()
    for k, name in enumerate(("VB3-01", "VB3-03")):
        for suffix, volume in (("image", image + np.uint8(k)), ("levels", labels)):
            nib.save(
                nib.Nifti1Image(volume, np.eye(4)),
                root / "lumbar-mri" / f"{name}_{suffix}.nii.gz",
            )
    return root


@pytest.fixture(scope="module")
def two(folder):
    """The two exams of the folder."""
    return load_exams(folder)


def test_a_sample_is_its_seed_and_its_targets_fit(exam):
    for seed in range(8):
        image, target = sample(exam, (160, 128), np.random.default_rng(seed), SPEC)
        again, _ = sample(exam, (160, 128), np.random.default_rng(seed), SPEC)
        assert np.array_equal(image, again)
        assert image.shape == (160, 128)
        assert target.shape == (9, 80, 64)
        assert np.isfinite(image).all()
        assert 0 <= target[0].min() <= target[0].max() <= 1
        assert np.isin(target[5], (0, 1)).all()
        used = target[8] > 0
        assert target[4][used].min() > -1.5
        assert target[4][used].max() < 6.5
        direction = np.hypot(target[2], target[3])[target[7] > 0]
        assert np.allclose(direction, 1.0, atol=1e-5)


def test_heat_lies_on_dark_gaps_between_bodies(exam):
    dark, bright = [], []
    for seed in range(30):
        image, target = sample(exam, (160, 128), np.random.default_rng(seed), SPEC)
        coarse = image.reshape(80, 2, 64, 2).mean((1, 3))
        if target[0].max() > 0.6 and target[1].max() > 0.6:
            dark.append(coarse[target[0] > 0.5].mean())
            bright.append(coarse[target[1] > 0.5].mean())
    contrast = np.abs(np.array(dark) - np.array(bright))
    assert len(dark) > 5
    assert np.median(contrast) > 0.1


def test_level_bins_are_soft_between_discs():
    bins = level_bins(torch.tensor([[[-3.0, 0.0, 0.25, 20.0]]]), 10)[0, :, 0]
    assert torch.allclose(bins.sum(0), torch.ones(4))
    assert bins[0, 0] == 1
    assert bins[1, 1] == 1
    assert bins[1, 2] == pytest.approx(0.75)
    assert bins[9, 3] == 1


def test_a_perfect_answer_costs_nothing_and_masked_pixels_do_not_count():
    target = torch.zeros(1, 9, 8, 8)
    target[:, 5:7] = 1
    output = torch.full((1, 14, 8, 8), -20.0)
    assert detector_loss(output, target)[0] < 1e-3
    wrong = output.clone()
    wrong[:, 0, 4:] = 20.0
    assert detector_loss(wrong, target)[0] > 1.0
    target[:, 5, 4:] = 0
    assert detector_loss(wrong, target)[0] < 1e-3


def test_the_net_accepts_every_multiple_of_32():
    net = LevelHeatmapNet(SPEC).eval()
    with torch.no_grad():
        for size in ((32, 32), (96, 160)):
            assert net(torch.zeros(1, 1, *size)).shape == (
                1,
                SPEC.channels,
                size[0] // 2,
                size[1] // 2,
            )


def quick(exams, out, *, epochs=2, **more):
    options = replace(training.DETECTOR_FIT, epochs=epochs, precision="f32")
    machine = Machine(device="cpu", threads=1, workers=0)
    return training.train(
        exams, Session(out=out, machine=machine, **more), options, steps=2
    )


def test_a_resumed_training_gives_the_same_weights(two, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CANVASES", (((64, 64), 2, 1.0),))
    exams = training.TrainingExams.of(two, -1)
    assert exams.data == "2 VB3 exams"
    whole = quick(exams, tmp_path / "whole").state_dict()
    watched = []

    def stop(task, averaged):
        watched.append(task)
        if len(watched) > 1:
            raise KeyboardInterrupt
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(training.DetectorTask, "figures", stop)
        with pytest.raises(KeyboardInterrupt):
            quick(exams, tmp_path / "parts")
    assert read_checkpoint(tmp_path / "parts/last.pt")["epoch"] == 1, (
        "there is something to go on with"
    )
    torch.manual_seed(99)
    parts = quick(exams, tmp_path / "parts", resume=True).state_dict()
    assert all(torch.equal(weights, parts[name]) for name, weights in whole.items())
    kept = load_detector(tmp_path / "parts/last.pt").state_dict()
    assert all(torch.equal(weights, kept[name]) for name, weights in whole.items())
    latest = read_checkpoint(tmp_path / "parts/last.pt")["model"]
    assert all(
        torch.equal(w, latest[name])
        for name, w in read_checkpoint(tmp_path / "whole/last.pt")["model"].items()
    )


def test_a_training_begins_with_the_averaged_weights_of_another(
    two, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "CANVASES", (((64, 64), 2, 1.0),))
    exams = training.TrainingExams.of(two, -1)
    net, averaged = LevelHeatmapNet(), LevelHeatmapNet()
    torch.save(
        {"config": {}, "model": net.state_dict(), "ema": averaged.state_dict()},
        tmp_path / "start.pt",
    )
    begun = []

    def only_look(task, options, out, **more):
        begun.append(task.model.state_dict())
        return task.model

    monkeypatch.setattr(training, "fit", only_look)
    quick(exams, tmp_path / "begun", start=tmp_path / "start.pt")
    assert all(
        torch.equal(weights, begun[0][name])
        for name, weights in averaged.state_dict().items()
    )
    quick(exams, tmp_path / "fresh")
    assert not torch.equal(begun[1]["stem.0.weight"], begun[0]["stem.0.weight"])


def test_held_out_exams_are_watched_on_the_same_slices_every_epoch(
    two, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "CANVASES", (((64, 64), 2, 1.0),))
    monkeypatch.setattr(training, "WATCHED_STEPS", 1)
    exams = training.TrainingExams.of(two, 0)
    assert {name: len(found) for name, found in exams.held_out.items()} == {"VB3": 1}
    assert (
        exams.held_out["VB3"][0].volume.tolist()
        != exams.groups["VB3"][0].volume.tolist()
    )
    net = LevelHeatmapNet().eval()
    task = training.DetectorTask(net, exams, steps=2)
    found = task.figures(net)
    assert found == task.figures(net)
    assert list(found) == ["held_out_loss", "held_out_level_right"]
    assert found["held_out_loss"] > 0
    assert (
        training.DetectorTask(net, training.TrainingExams.of(two, -1)).figures(net)
        == {}
    )
    quick(exams, tmp_path / "run", epochs=1)
    (row,) = read_checkpoint(tmp_path / "run/last.pt")["history"]
    assert np.isfinite(row["held_out_level_right"])


def test_a_fold_that_leaves_nothing_is_refused():
    with pytest.raises(UsageError, match="no exam is left"):
        training.TrainingExams.of([], 0)
