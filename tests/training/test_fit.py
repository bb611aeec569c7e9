"""The training loop: it learns, resumes to the same weights however it was interrupted, refuses other settings."""

import os
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
from spine_training.fit import Machine, Session, read_checkpoint  # noqa: E402
from spine_training.grader.augment import NOTHING, AugmentOptions  # noqa: E402
from spine_training.grader.evaluate import predict  # noqa: E402
from spine_training.grader.loss import grading_loss  # noqa: E402
from spine_training.grader.model import GraderConfig, load_grader  # noqa: E402
from spine_training.grader.train import GradingOptions, train  # noqa: E402
from spine_training.optimisation import FitOptions  # noqa: E402

pytestmark = pytest.mark.usefixtures("without_pictures")

TINY = GraderConfig(backbone="narrow_conv_8", shape=SHAPE)
GENTLE = AugmentOptions(
    drop_channel=0,
    affine=0,
    anisotropy=0,
    bias_field=0,
    ghosting=0,
    noise_sd=0.01,
    log_gamma=0.02,
)
GRADING = GradingOptions(batch=16, augment=GENTLE)
SHORT = FitOptions(
    epochs=2, learning_rate=1e-2, warmup_epochs=0.5, ema=0.9, precision="f32"
)
HERE = Machine(device="cpu", threads=1, workers=0)


def quick(grids, out, options=SHORT, *, watch=None, grading=GRADING, **more):
    session = Session(out=out, **{"machine": HERE, **more})
    return train(grids, TINY, options, session, grading=grading, watch=watch)


def same(first, second):
    return all(
        torch.equal(weights, second.state_dict()[name])
        for name, weights in first.state_dict().items()
    )


def test_a_short_training_learns_what_can_be_seen(tmp_path):
    seen, unseen = (
        bright_blobs(tmp_path / "seen", 24, 0),
        bright_blobs(tmp_path / "unseen", 20, 1),
    )
    options, grading = (
        replace(SHORT, epochs=6, learning_rate=2e-2),
        replace(GRADING, augment=replace(NOTHING, mirror=0.5)),
    )
    grader = quick(seen, tmp_path / "run", options, grading=grading)
    grades = torch.from_numpy(unseen.grades.reshape(-1, 5))
    uniform = float(grading_loss(torch.full((100, 5, 3), 1 / 3), grades))
    trained = float(
        grading_loss(torch.from_numpy(predict(grader, unseen.box_set(0))), grades)
    )
    assert trained < 0.75 * uniform
    history = read_checkpoint(tmp_path / "run/last.pt")["history"]
    assert history[-1]["grading"] < history[0]["grading"]
    table = (tmp_path / "run/curves.csv").read_text().splitlines()
    assert len(table) == 7
    assert table[0].startswith("epoch,loss,grading,exact")
    assert any(
        file.name.startswith("events")
        for file in (tmp_path / "run/tensorboard").iterdir()
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Grids, and the folder and the grader of three epochs on them that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    grids = bright_blobs(folder / "grids", 6, 0)
    return grids, folder / "run", quick(grids, folder / "run", replace(SHORT, epochs=3))


def test_a_training_stopped_after_its_second_epoch_ends_with_the_same_weights(
    tmp_path, straight
):
    grids, folder, grader = straight
    seen = []

    def stop(grader):
        seen.append(grader)
        if len(seen) > 2:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        quick(grids, tmp_path, replace(SHORT, epochs=3), watch=stop)
    assert read_checkpoint(tmp_path / "last.pt")["epoch"] == 2, (
        "there is something to go on with"
    )
    torch.manual_seed(99)
    assert same(grader, quick(grids, tmp_path, replace(SHORT, epochs=3), resume=True))
    kept, whole = (
        read_checkpoint(tmp_path / "last.pt"),
        read_checkpoint(folder / "last.pt"),
    )
    assert all(
        torch.equal(weights, kept["model"][name])
        for name, weights in whole["model"].items()
    )


def test_watching_a_training_changes_nothing(tmp_path, straight):
    grids, _, grader = straight
    quick(
        grids,
        tmp_path,
        replace(SHORT, epochs=3),
        watch=lambda grader: {"seen": float(predict(grader, grids.box_set(0)).mean())},
    )
    assert same(grader, load_grader(tmp_path / "last.pt"))


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
    straight = quick(
        bright_blobs(tmp_path / "grids", 40, 0),
        tmp_path / "straight",
        replace(SHORT, epochs=4),
    )
    command = [
        sys.executable,
        "-c",
        KILLED.format(tests=os.path.dirname(__file__)),
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed/last.pt"
    waited = time.monotonic() + 120
    while (
        not checkpoint.exists() and time.monotonic() < waited and process.poll() is None
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= read_checkpoint(checkpoint)["epoch"] < 4, (
        "it must have been killed on its way"
    )
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert read_checkpoint(checkpoint)["epoch"] == 4
    assert same(straight, load_grader(checkpoint))


def test_worker_processes_change_nothing(tmp_path):
    grids = bright_blobs(tmp_path / "grids", 8, 0)
    one = quick(grids, tmp_path / "one", replace(SHORT, epochs=1))
    options = replace(SHORT, epochs=1)
    machine = replace(HERE, workers=2)
    two = quick(grids, tmp_path / "two", options, machine=machine)
    assert same(one, two)


def test_a_training_on_other_grids_is_refused(tmp_path, straight):
    _, folder, _ = straight
    more = bright_blobs(tmp_path / "more", 7, 0)
    with pytest.raises(UsageError, match="another studies"):
        quick(more, folder, replace(SHORT, epochs=3), resume=True)
    grading = replace(GRADING, batch=8)
    with pytest.raises(UsageError, match="another batch"):
        quick(
            straight[0], folder, replace(SHORT, epochs=3), grading=grading, resume=True
        )


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
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    subprocess.run(
        [*command, str(tmp_path)], check=True, capture_output=True, timeout=240
    )
    content = read_checkpoint(tmp_path / "spread/last.pt")
    assert content["epoch"] == SHORT.epochs
    assert len(content["history"]) == SHORT.epochs
    assert content["history"][-1]["loss"] < content["history"][0]["loss"]


@pytest.mark.gpu
def test_a_gpu_learns_what_a_cpu_learns(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    seen, unseen = (
        bright_blobs(tmp_path / "seen", 64, 0),
        bright_blobs(tmp_path / "unseen", 20, 1),
    )
    options = replace(SHORT, epochs=6, precision="bf16")
    losses = []
    for device in ("cpu", "cuda"):
        machine = replace(HERE, device=device)
        grader = quick(seen, tmp_path / device, options, machine=machine)
        assert next(grader.parameters()).device.type == "cpu"
        graded = torch.from_numpy(predict(grader, unseen.box_set(0)))
        losses.append(
            float(grading_loss(graded, torch.from_numpy(unseen.grades.reshape(-1, 5))))
        )
    assert losses[1] == pytest.approx(losses[0], rel=0.15)
