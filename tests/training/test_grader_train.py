"""Training on made-up grids: it learns, resumes to the same weights, and cuts phantoms as the engine does."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("timm_3d", reason="needs the train extra")

from spine_engine.anatomy import CONDITIONS  # noqa: E402
from spine_engine.phantom.severity import best_predictions, read_grades  # noqa: E402
from spine_training.grader.augment import AugmentOptions  # noqa: E402
from spine_training.grader.data import BoxJitter, CropSet, load_crops, small_rotation, strayed_boxes  # noqa: E402
from spine_training.grader.evaluate import calibration_error, predict, report, unweighted  # noqa: E402
from spine_training.grader.loss import grading_loss  # noqa: E402
from spine_training.grader.model import GraderConfig  # noqa: E402
from spine_training.grader.train import TrainOptions, train  # noqa: E402

TINY = GraderConfig(backbone="narrow_conv_8", shape=(8, 8, 12))
GENTLE = AugmentOptions(drop_channel=0, gamma=0.05, gain=0.02, shift=0.01, noise=0.01, bias=0)
SHORT = TrainOptions(epochs=2, batch=16, learning_rate=1e-2, warmup_epochs=0.5, ema=0.9, bf16=False, augment=GENTLE)


def bright_blobs(count: int, seed: int) -> CropSet:
    """Grids whose five narrowings are the brightness of five places: two left, two right, one in the middle."""
    rng = np.random.default_rng(seed)
    narrowing = rng.random((count, len(CONDITIONS)))
    grids = rng.random((count, 3, *TINY.shape)) * 0.05 + 0.01
    left, right, middle = slice(8, 12), slice(0, 4), slice(5, 7)
    for name, rows, columns in (
        ("left_neural_foraminal_narrowing", slice(0, 4), left),
        ("right_neural_foraminal_narrowing", slice(0, 4), right),
        ("left_subarticular_stenosis", slice(4, 8), left),
        ("right_subarticular_stenosis", slice(4, 8), right),
        ("spinal_canal_stenosis", slice(2, 6), middle),
    ):
        value = narrowing[:, CONDITIONS.index(name)]
        grids[:, :, rows, :, columns] += 0.8 * value[:, None, None, None, None]
    return CropSet(grids.astype(np.float16), narrowing, read_grades(narrowing, seed))


def test_a_short_training_learns_what_can_be_seen(tmp_path):
    seen, unseen = bright_blobs(320, 0), bright_blobs(100, 1)
    losses = []
    grader = train(
        seen, TINY, replace(SHORT, epochs=5), tmp_path, on_epoch=lambda _, __, figures: losses.append(figures["loss"])
    )
    uniform = float(grading_loss(torch.full((100, 5, 3), 1 / 3), torch.from_numpy(unseen.grades)))
    trained = float(grading_loss(torch.from_numpy(predict(grader, unseen.grids)), torch.from_numpy(unseen.grades)))
    assert trained < 0.75 * uniform
    assert losses[-1] < losses[0]
    assert (tmp_path / "curves.csv").read_text().count("\n") == 6


def test_a_resumed_training_ends_with_the_same_weights(tmp_path):
    crops = bright_blobs(48, 0)

    def stop(epoch, grader, figures):
        raise KeyboardInterrupt

    straight = train(crops, TINY, SHORT, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train(crops, TINY, SHORT, tmp_path / "broken", on_epoch=stop)
    resumed = train(crops, TINY, SHORT, tmp_path / "broken", resume=True)
    for name, weights in straight.state_dict().items():
        assert torch.equal(weights, resumed.state_dict()[name]), name


def test_resuming_with_other_options_is_refused(tmp_path):
    crops = bright_blobs(16, 0)
    train(crops, TINY, replace(SHORT, epochs=1), tmp_path)
    with pytest.raises(ValueError, match="other settings"):
        train(crops, TINY, replace(SHORT, epochs=3), tmp_path, resume=True)


def test_a_report_of_the_best_predictions_is_the_best():
    crops = bright_blobs(200, 3)
    figures = report(best_predictions(crops.narrowing), crops)
    assert figures["metric"] == pytest.approx(figures["best"])
    assert figures["best"] < figures["prior"]
    assert figures["mean_miss_of_reader"] == pytest.approx(0, abs=1e-12)


def test_weights_divide_out_and_calibration_error_is_zero_for_sure_and_right():
    weighted = np.array([[0.5, 0.2, 0.8]]) * [1, 2, 4] / np.sum(np.array([0.5, 0.2, 0.8]) * [1, 2, 4])
    assert unweighted(weighted)[0] == pytest.approx(np.array([0.5, 0.2, 0.8]) / 1.5)
    rows = np.eye(3)[[0, 1, 2, 2]]
    assert calibration_error(rows, np.array([0, 1, 2, 2])) == 0
    assert calibration_error(rows, np.array([0, 1, 2, 0])) == pytest.approx(0.25)


def test_each_epoch_has_another_reader():
    crops = bright_blobs(400, 0)
    first, second = crops.grades_of_epoch(0), crops.grades_of_epoch(1)
    assert 0 < (first != second).mean() < 0.3
    assert np.array_equal(first, crops.grades_of_epoch(0))


def test_boxes_stray_within_their_bounds_and_stay_boxes():
    rng = np.random.default_rng(0)
    axes = np.stack([small_rotation(rng.normal(size=3)) for _ in range(5)])
    centers, jitter = rng.normal(size=(5, 3)) * 50, BoxJitter(center_mm=3, rotation_deg=6)
    moved, turned = strayed_boxes(centers, axes, jitter, rng)
    assert 0 < np.abs(moved - centers).max() <= 3 * np.sqrt(3)
    assert np.abs(turned @ turned.transpose(0, 2, 1) - np.eye(3)).max() < 1e-12
    angles = np.degrees(np.arccos((np.einsum("lij,lij->l", turned, axes) - 1) / 2))
    assert np.all((angles > 0) & (angles <= 6 * np.sqrt(3) + 1e-9))


def test_missing_crops_are_named(tmp_path):
    with pytest.raises(ValueError, match="phantom 7"):
        load_crops(tmp_path, [7])
