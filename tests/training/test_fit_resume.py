"""A training that is stopped after its first checkpoint goes on to the same bits; checkpoints are whole, safe and
those of the same training."""

import os
import pickle
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from toy_task import OPTIONS, Toy, stopping, train  # noqa: E402

from spine_engine.errors import UsageError  # noqa: E402
from spine_training import curves  # noqa: E402
from spine_training.fit import read_checkpoint  # noqa: E402

pytestmark = pytest.mark.usefixtures("without_pictures")

TRUSTED = torch.load
"""PyTorch's own, whatever a test puts in its place."""


def everything(path):
    """Return all that a checkpoint holds, flat and comparable bit by bit, but for how long its epochs took."""
    flat = {}

    def walk(name, value):
        if isinstance(value, torch.Tensor):
            flat[name] = (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
        elif isinstance(value, dict):
            for key, inner in value.items():
                if key != "seconds":
                    walk(f"{name}.{key}", inner)
        elif isinstance(value, (list, tuple)):
            for number, inner in enumerate(value):
                walk(f"{name}.{number}", inner)
        else:
            flat[name] = value

    walk("", read_checkpoint(path))
    return flat


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A training of four epochs that nothing disturbed: its folder and its task."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "write_picture", lambda *_: None)
        folder, task = tmp_path_factory.mktemp("straight"), Toy()
        task.watch = lambda epoch: {"metric": 1.0}
        train(task, folder)
    return folder, task


def interrupted(folder, after):
    """Train until Ctrl-C in the epoch after so many finished ones; return the task."""
    task = Toy()
    task.watch = stopping(after)
    with pytest.raises(KeyboardInterrupt):
        train(task, folder)
    return task


def continued(folder):
    """Go on as a new process does: other weights to begin with, another state of PyTorch's own random numbers."""
    task = Toy(seed=77)
    torch.manual_seed(12345)
    torch.rand(11)
    task.watch = lambda epoch: {"metric": 1.0}
    averaged = train(task, folder, resume=True)
    return task, averaged


@pytest.mark.parametrize("after", [1, 3])
def test_a_stopped_training_ends_with_the_same_bits_as_an_undisturbed_one(
    tmp_path, straight, after
):
    folder, undisturbed = straight
    interrupted(tmp_path, after)
    assert read_checkpoint(tmp_path / "last.pt")["epoch"] == after, (
        "there is something to go on with"
    )
    task, averaged = continued(tmp_path)
    kept, whole = everything(tmp_path / "last.pt"), everything(folder / "last.pt")
    assert kept == whole
    for part in (".model.", ".ema.", ".optimizer.state."):
        assert sum(name.startswith(part) for name in kept) > 5, part
    assert any(name.endswith("exp_avg_sq") for name in kept)
    assert kept[".epoch"] == 4
    assert task.asked == undisturbed.asked[3 * after :], (
        "no batch twice and none left out"
    )
    assert task.losses == undisturbed.losses[3 * after :], "the same dropout"
    assert task.progress == undisturbed.progress[3 * after :]
    assert task.weights[-1].keys() == undisturbed.weights[-1].keys()
    assert all(
        torch.equal(value, undisturbed.weights[-1][name])
        for name, value in task.weights[-1].items()
    )
    ema = read_checkpoint(folder / "last.pt")["ema"]
    assert all(
        torch.equal(value, ema[name]) for name, value in averaged.state_dict().items()
    )


def test_a_checkpoint_of_an_earlier_version_goes_on_to_the_same_bits(
    tmp_path, straight
):
    """Its optimiser knows the last step's rate and no peak: earlier versions set the rate before each step."""
    interrupted(tmp_path, 2)
    content = read_checkpoint(tmp_path / "last.pt")
    for group in content["optimizer"]["param_groups"]:
        del group["initial_lr"]
        group["lr"] = 0.0123
    torch.save(content, tmp_path / "last.pt")
    continued(tmp_path)
    assert everything(tmp_path / "last.pt") == everything(straight[0] / "last.pt")


def test_a_training_stopped_within_an_epoch_does_that_epoch_again(tmp_path, straight):
    task = Toy()
    task.watch = lambda epoch: {"metric": 1.0}
    loss = task.loss

    def failing(batch, progress):
        if len(task.losses) == 7:  # the second batch of the third epoch
            raise MemoryError
        return loss(batch, progress)

    task.loss = failing
    with pytest.raises(MemoryError):
        train(task, tmp_path)
    assert read_checkpoint(tmp_path / "last.pt")["epoch"] == 2
    again, _ = continued(tmp_path)
    assert again.asked[0] == (2, 0)
    assert everything(tmp_path / "last.pt") == everything(straight[0] / "last.pt")


def test_a_finished_training_that_is_resumed_stays_as_it_is(tmp_path):
    train(Toy(), tmp_path)
    before = everything(tmp_path / "last.pt")
    task = Toy(seed=9)
    averaged = train(task, tmp_path, resume=True)
    assert task.asked == []
    assert everything(tmp_path / "last.pt") == before
    ema = read_checkpoint(tmp_path / "last.pt")["ema"]
    assert all(
        torch.equal(value, ema[name]) for name, value in averaged.state_dict().items()
    )


def test_resume_without_a_checkpoint_begins_and_a_second_training_in_a_folder_must_be_asked_for(
    tmp_path, straight
):
    task = Toy()
    task.watch = lambda epoch: {"metric": 1.0}
    train(task, tmp_path, resume=True)
    assert everything(tmp_path / "last.pt") == everything(straight[0] / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(
        UsageError, match="holds a training already; add --resume to go on with it"
    ):
        train(Toy(), tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": {"kind": "other"}}, "kind"),
        ({"task": {"data": "other exams"}}, "data"),
        ({"epochs": 5}, "epochs"),
        ({"learning_rate": 0.2}, "learning_rate"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"warmup_epochs": 0.5}, "warmup_epochs"),
        ({"ema": 0.9}, "ema"),
        ({"clip_norm": 1.0}, "clip_norm"),
        ({"seed": 1}, "seed"),
        ({"precision": "bf16"}, "precision"),
        ({"task": {"kind": "other", "data": "other"}, "seed": 2}, "data, kind, seed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_only_the_same_training_is_resumed(straight, change, said):
    options = replace(
        OPTIONS, **{name: value for name, value in change.items() if name != "task"}
    )
    before = (straight[0] / "last.pt").read_bytes()
    with pytest.raises(
        UsageError, match=f"was trained with another {said}; give the same"
    ):
        train(Toy(**change.get("task", {})), straight[0], options, resume=True)
    assert (straight[0] / "last.pt").read_bytes() == before


def test_a_setting_that_the_checkpoint_lacks_is_another_training(straight, tmp_path):
    content = read_checkpoint(straight[0] / "last.pt")
    del content["options"]["clip_norm"]
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(UsageError, match="another clip_norm"):
        train(Toy(), tmp_path, resume=True)


# -- a checkpoint is whole ---------------------------------------------------------------------------------------------


def test_a_checkpoint_that_is_cut_off_while_it_is_written_leaves_the_earlier_one_whole(
    tmp_path, monkeypatch
):
    save, saved = torch.save, []

    def full_disk(content, path):
        saved.append(content["epoch"])
        if len(saved) < 3:
            return save(content, path)
        with open(path, "wb") as file:
            file.write(b"PK half of a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        train(Toy(), tmp_path)
    monkeypatch.undo()
    assert saved == [1, 2, 3]
    assert read_checkpoint(tmp_path / "last.pt")["epoch"] == 2
    monkeypatch.setattr(curves, "write_picture", lambda *_: None)
    train(Toy(seed=3), tmp_path, resume=True)
    assert read_checkpoint(tmp_path / "last.pt")["epoch"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "curves.csv",
        "last.pt",
        "tensorboard",
    ]


def test_a_checkpoint_says_what_it_is_of(straight):
    content = read_checkpoint(straight[0] / "last.pt")
    assert content["config"] == {"kind": "toy"}
    assert content["settings"] == {"data": "made up"}
    assert content["options"] == {
        "epochs": 4, "learning_rate": 0.1, "weight_decay": 0.02, "warmup_epochs": 1.0, "ema": 0.998, "clip_norm": 5.0,
        "seed": 0, "precision": "f32",
    }  # fmt: skip
    assert [row["epoch"] for row in content["history"]] == [1, 2, 3, 4]


# -- a checkpoint is safe ----------------------------------------------------------------------------------------------


class Intruder:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle"])
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path, kind):
    path, marker = tmp_path / "last.pt", tmp_path / "ran"
    content = {"config": {"kind": "toy"}, "model": {}, "history": Intruder(marker)}
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(
        UsageError,
        match=r"last\.pt is no checkpoint that can be read safely: .*(system|damaged)",
    ) as said:
        read_checkpoint(path)
    assert "\n" not in str(said.value)
    with pytest.raises(UsageError, match="that can be read safely"):
        train(Toy(), tmp_path, resume=True)
    assert not marker.exists()
    if kind == "plain pickle":
        pickle.loads(path.read_bytes())  # the trap does work
    else:
        TRUSTED(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    "content",
    [[1], {"weights": {}}, {"model": {}}, {"config": {}}],
    ids=["list", "neither", "no config", "no model"],
)
def test_what_holds_no_model_or_no_configuration_is_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(
        UsageError,
        match=r"other\.pt is no checkpoint of this project: it lacks 'config' or 'model'",
    ):
        read_checkpoint(tmp_path / "other.pt")


def test_files_that_are_not_torch_s_or_not_there_are_named(tmp_path):
    (tmp_path / "text.pt").write_text("no checkpoint")
    for name, said in (
        ("text.pt", r"text\.pt is no checkpoint that can be read safely"),
        ("missing.pt", r"cannot read .*missing\.pt: there is no such file"),
    ):
        with pytest.raises(UsageError, match=said):
            read_checkpoint(tmp_path / name)


def test_weights_are_read_onto_the_cpu(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch,
        "load",
        lambda path, **more: asked.append(more) or {"config": {}, "model": {}},
    )
    (tmp_path / "any.pt").touch()
    read_checkpoint(tmp_path / "any.pt")
    assert asked == [{"map_location": "cpu", "weights_only": True}]
