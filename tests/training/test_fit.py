"""The training loop: it learns, resumes to the same weights however it was interrupted, refuses other settings."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("timm_3d", reason="needs the train extra")
pytest.importorskip("torchio", reason="needs the train extra")

from made_grids import SHAPE, bright_blobs  # noqa: E402

from spine_engine.errors import UsageError  # noqa: E402
from spine_training import curves  # noqa: E402
from spine_training.fit import FitOptions, Machine, read_checkpoint  # noqa: E402
from spine_training.grader.augment import AugmentOptions  # noqa: E402
from spine_training.grader.evaluate import predict  # noqa: E402
from spine_training.grader.loss import grading_loss  # noqa: E402
from spine_training.grader.model import GraderConfig, load_grader  # noqa: E402
from spine_training.grader.train import GradingOptions, train  # noqa: E402

TINY = GraderConfig(backbone="narrow_conv_8", shape=SHAPE)
GENTLE = AugmentOptions(drop_channel=0, affine=0, anisotropy=0, bias_field=0, ghosting=0, noise_sd=0.01, log_gamma=0.02)
GRADING = GradingOptions(batch=16, augment=GENTLE)
SHORT = FitOptions(epochs=2, learning_rate=1e-2, warmup_epochs=0.5, ema=0.9, precision="f32")
HERE = Machine(device="cpu", threads=1, workers=0)


def quick(grids, out, options=SHORT, **more):
    return train(grids, TINY, options, out, grading=GRADING, machine=HERE, **more)


def same(first, second):
    return all(torch.equal(weights, second.state_dict()[name]) for name, weights in first.state_dict().items())


def test_a_short_training_learns_what_can_be_seen(tmp_path):
    seen, unseen = bright_blobs(tmp_path / "seen", 64, 0), bright_blobs(tmp_path / "unseen", 20, 1)
    grader = quick(seen, tmp_path / "run", replace(SHORT, epochs=6))
    grades = torch.from_numpy(unseen.grades.reshape(-1, 5))
    uniform = float(grading_loss(torch.full((100, 5, 3), 1 / 3), grades))
    trained = float(grading_loss(torch.from_numpy(predict(grader, unseen.box_set(0))), grades))
    assert trained < 0.75 * uniform
    history = read_checkpoint(tmp_path / "run/last.pt")["history"]
    assert history[-1]["grading"] < history[0]["grading"]
    curves = (tmp_path / "run/curves.csv").read_text().splitlines()
    assert len(curves) == 7
    assert curves[0].startswith("epoch,loss,grading,exact")
    assert any(file.name.startswith("events") for file in (tmp_path / "run/tensorboard").iterdir())


def test_a_training_stopped_between_epochs_ends_with_the_same_weights(tmp_path):
    grids = bright_blobs(tmp_path / "grids", 10, 0)

    def stop(grader):
        raise KeyboardInterrupt

    straight = quick(grids, tmp_path / "straight", replace(SHORT, epochs=3))
    quick(grids, tmp_path / "broken", replace(SHORT, epochs=3), watch=lambda grader: {"seen": 1.0})
    assert same(straight, load_grader(tmp_path / "broken/last.pt"))
    with pytest.raises(KeyboardInterrupt):
        quick(grids, tmp_path / "stopped", replace(SHORT, epochs=3), watch=stop)
    assert not (tmp_path / "stopped/last.pt").exists()
    assert same(straight, quick(grids, tmp_path / "stopped", replace(SHORT, epochs=3), resume=True))


def drawn_epochs(svg):
    return int(re.search(r"Training, (\d+) epochs?", svg.read_text())[1])


def test_curves_are_drawn_after_every_epoch_and_go_on_when_resumed(tmp_path):
    pytest.importorskip("matplotlib")
    grids, options = bright_blobs(tmp_path / "grids", 10, 0), replace(SHORT, epochs=4)
    folder, seen = tmp_path / "run", []

    def watch(grader):
        if (folder / "curves.svg").exists():
            seen.append(drawn_epochs(folder / "curves.svg"))
        if seen == [1, 2]:
            raise KeyboardInterrupt
        return {"metric": 1.0}

    with pytest.raises(KeyboardInterrupt):
        quick(grids, folder, options, watch=watch)
    assert seen == [1, 2]
    quick(grids, folder, options, watch=lambda grader: {"metric": 1.0}, resume=True)
    assert drawn_epochs(folder / "curves.svg") == 4
    with (folder / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[0] <= options.learning_rate
    quick(grids, tmp_path / "straight", options, watch=lambda grader: {"metric": 1.0})
    assert (tmp_path / "straight/curves.svg").read_bytes() == (folder / "curves.svg").read_bytes()


def test_a_drawing_that_fails_is_said_once_and_stops_nothing(tmp_path, monkeypatch, capsys):
    def fails(path, history):
        raise ValueError("no [such] font")

    monkeypatch.setattr(curves, "write_picture", fails)
    grids = bright_blobs(tmp_path / "grids", 10, 0)
    quick(grids, tmp_path / "failed")
    assert capsys.readouterr().err.count("no picture: ValueError: no [such] font") == 1
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    quick(grids, tmp_path / "without")
    assert capsys.readouterr().err.count("matplotlib is not installed") == 1
    for folder in ("failed", "without"):
        assert read_checkpoint(tmp_path / folder / "last.pt")["epoch"] == SHORT.epochs
        assert (tmp_path / folder / "curves.csv").exists()
        assert not (tmp_path / folder / "curves.svg").exists()


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_fit import SHORT, bright_blobs, quick
from dataclasses import replace
folder = Path(sys.argv[1])
quick(bright_blobs(folder / "grids", 40, 0), folder / "killed", replace(SHORT, epochs=4), resume=True)
"""


@pytest.mark.slow
def test_a_training_killed_within_an_epoch_ends_with_the_same_weights(tmp_path):
    straight = quick(bright_blobs(tmp_path / "grids", 40, 0), tmp_path / "straight", replace(SHORT, epochs=4))
    command = [sys.executable, "-c", KILLED.format(tests=os.path.dirname(__file__)), str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed/last.pt"
    waited = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < waited and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= read_checkpoint(checkpoint)["epoch"] < 4, "it must have been killed on its way"
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert read_checkpoint(checkpoint)["epoch"] == 4
    assert same(straight, load_grader(checkpoint))


def test_worker_processes_change_nothing(tmp_path):
    grids = bright_blobs(tmp_path / "grids", 8, 0)
    one = quick(grids, tmp_path / "one", replace(SHORT, epochs=1))
    options = replace(SHORT, epochs=1)
    machine = replace(HERE, workers=2)
    two = train(grids, TINY, options, tmp_path / "two", grading=GRADING, machine=machine)
    assert same(one, two)


def test_other_settings_and_used_folders_are_refused(tmp_path):
    grids = bright_blobs(tmp_path / "grids", 4, 0)
    quick(grids, tmp_path / "run", replace(SHORT, epochs=1))
    with pytest.raises(UsageError, match="holds a training already; add --resume"):
        quick(grids, tmp_path / "run", replace(SHORT, epochs=1))
    with pytest.raises(UsageError, match="another epochs"):
        quick(grids, tmp_path / "run", replace(SHORT, epochs=3), resume=True)
    with pytest.raises(UsageError, match="another studies"):
        quick(bright_blobs(tmp_path / "more", 5, 0), tmp_path / "run", replace(SHORT, epochs=1), resume=True)


def test_a_device_that_is_not_there_is_an_error(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match="no GPU here"):
        train(bright_blobs(tmp_path, 4, 0), TINY, SHORT, tmp_path / "run", machine=Machine(device="cuda"))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pt")
    for name in ("text.pt", "other.pt", "missing.pt"):
        with pytest.raises(UsageError, match=name):
            read_checkpoint(tmp_path / name)


SPREAD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_fit import SHORT, bright_blobs, quick
folder = Path(sys.argv[1])
quick(bright_blobs(folder / f"grids", 8, 0), folder / "spread")
"""


@pytest.mark.slow
def test_two_processes_of_torchrun_train_one_model(tmp_path):
    bright_blobs(tmp_path / "grids", 8, 0)
    script = tmp_path / "spread.py"
    script.write_text(SPREAD.format(tests=os.path.dirname(__file__)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run([*command, str(tmp_path)], check=True, capture_output=True, timeout=240)
    content = read_checkpoint(tmp_path / "spread/last.pt")
    assert content["epoch"] == SHORT.epochs
    assert len(content["history"]) == SHORT.epochs
    assert content["history"][-1]["loss"] < content["history"][0]["loss"]


@pytest.mark.gpu
def test_a_gpu_learns_what_a_cpu_learns(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    seen, unseen = bright_blobs(tmp_path / "seen", 64, 0), bright_blobs(tmp_path / "unseen", 20, 1)
    options = replace(SHORT, epochs=6, precision="bf16")
    losses = []
    for device in ("cpu", "cuda"):
        machine = replace(HERE, device=device)
        grader = train(seen, TINY, options, tmp_path / device, grading=GRADING, machine=machine)
        assert next(grader.parameters()).device.type == "cpu"
        graded = torch.from_numpy(predict(grader, unseen.box_set(0)))
        losses.append(float(grading_loss(graded, torch.from_numpy(unseen.grades.reshape(-1, 5)))))
    assert losses[1] == pytest.approx(losses[0], rel=0.15)
