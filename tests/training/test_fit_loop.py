"""The training loop step by step: rates, averages, clipping, means, what each process of several does."""

import math
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from torch import nn  # noqa: E402
from toy_task import HERE, OPTIONS, Toy, train  # noqa: E402

from spine_engine.errors import UsageError  # noqa: E402
from spine_training import fit, progress  # noqa: E402
from spine_training.fit import Machine, read_checkpoint  # noqa: E402
from spine_training.optimisation import (  # noqa: E402
    FitOptions,
    averaged_model,
    plain_groups,
)

pytestmark = pytest.mark.usefixtures("without_pictures")


def rates_of(tmp_path, **changes):
    task = Toy(steps=changes.pop("steps", 4))
    train(task, tmp_path / "run", replace(OPTIONS, **changes))
    return [rates[0] for rates in task.rates]


def test_the_rate_warms_up_in_a_line_and_falls_along_a_cosine(tmp_path):
    rates = rates_of(tmp_path, epochs=5, learning_rate=1.0, warmup_epochs=1.0)
    assert rates[:4] == pytest.approx([0.01, 0.26, 0.51, 0.76])
    assert rates[4] == pytest.approx(1.0)  # the peak, when the warm-up is over
    assert rates[8] == pytest.approx(
        (1 + math.sqrt(0.5)) / 2
    )  # a quarter of the cosine
    assert rates[12] == pytest.approx(0.5)
    assert rates[16] == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert rates[19] == pytest.approx((1 + math.cos(math.pi * 3.75 / 4)) / 2)


def test_a_warm_up_takes_at_most_half_of_a_training_and_none_begins_at_the_peak(
    tmp_path,
):
    assert rates_of(tmp_path, epochs=1, learning_rate=2.0)[:3] == pytest.approx(
        [0.04, 1.04, 2.0]
    )
    begun = rates_of(tmp_path / "none", epochs=2, learning_rate=2.0, warmup_epochs=0.0)
    assert begun[:3:2] == pytest.approx([2.0, 1 + math.cos(math.pi / 4)])


def test_the_rate_never_exceeds_the_peak(tmp_path):
    rates = rates_of(tmp_path, epochs=2, learning_rate=1.0, steps=150)
    assert max(rates) == 1.0
    assert rates[149] == 1.0  # (0.993 + 0.01) epochs would be 1.003 of it


def test_each_group_has_its_multiple_of_the_rate_and_the_table_the_plain_one(tmp_path):
    task = Toy()
    train(task, tmp_path, replace(OPTIONS, epochs=1))
    assert task.rates[-1] == pytest.approx(
        [task.rates[-1][0]] * 2 + [10 * task.rates[-1][0]]
    )
    history = read_checkpoint(tmp_path / "last.pt")["history"]
    assert history[0]["learning_rate"] == pytest.approx(task.rates[-1][0])


def test_weights_decay_and_biases_and_norms_do_not():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 3))
    decaying, others = plain_groups(list(net.named_parameters()), 0.07)
    names = {id(p): name for name, p in net.named_parameters()}
    assert [names[id(p)] for p in decaying["params"]] == ["0.weight", "2.weight"]
    assert [names[id(p)] for p in others["params"]] == [
        "0.bias",
        "1.weight",
        "1.bias",
        "2.bias",
    ]
    assert [(g["weight_decay"], g["times"]) for g in (decaying, others)] == [
        (0.07, 1.0),
        (0.0, 1.0),
    ]


def test_averages_move_by_the_rest_of_the_decay_and_whole_numbers_are_copied():
    model = nn.BatchNorm1d(2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([1.0, 2.0]))
        average = averaged_model(model, 0.75)
        average.n_averaged.fill_(27)  # from the 27th update on the decay is at 27 / 36
        model.weight.copy_(torch.tensor([3.0, -2.0]))
        model.running_mean.copy_(torch.tensor([10.0, 20.0]))
        model.num_batches_tracked.fill_(7)
    average.update_parameters(model)
    averaged = average.module
    assert averaged.weight.tolist() == pytest.approx([1.5, 1.0])
    assert averaged.running_mean.tolist() == pytest.approx([2.5, 5.0])
    assert averaged.num_batches_tracked.item() == 7
    assert model.weight.tolist() == [3.0, -2.0]


def test_the_first_steps_hardly_count_in_the_average_and_no_decay_is_above_the_option(
    tmp_path,
):
    """Step n keeps (1 + n) / (10 + n) of the average, counted over all epochs, at most ``ema``."""
    task = Toy(steps=2)
    expected = task.model.state_dict()["0.weight"].clone()
    averaged = train(task, tmp_path, replace(OPTIONS, epochs=2, ema=0.2))
    for decay, weights in zip((1 / 10, 2 / 11, 0.2, 0.2), task.weights, strict=True):
        expected = decay * expected + (1 - decay) * weights["0.weight"]
    torch.testing.assert_close(averaged.state_dict()["0.weight"], expected)
    assert averaged.state_dict()["1.num_batches_tracked"] == 4
    assert not averaged.training


def test_gradients_are_cut_to_the_norm_and_small_ones_left(tmp_path):
    task = Toy()
    task.scale = 1e4
    train(task, tmp_path / "large", replace(OPTIONS, epochs=1, clip_norm=0.5))
    assert task.norms == pytest.approx([0.5] * 3, rel=1e-3)
    small = Toy()
    small.scale = 1e-3
    train(small, tmp_path / "small", replace(OPTIONS, epochs=1, clip_norm=0.5))
    assert 0 < max(small.norms) < 0.05


def test_a_training_is_the_plain_loop(tmp_path):
    """AdamW written out once more: gradients start from nothing at each step, the decay is the options'."""
    options = replace(OPTIONS, epochs=2, weight_decay=0.3, clip_norm=1e9)
    task, by_hand = Toy(), Toy()
    by_hand.model[2], task.model[2] = nn.Identity(), nn.Identity()
    train(task, tmp_path, options)
    optimizer = torch.optim.AdamW(by_hand.parameter_groups(0.3))
    for step, rates in enumerate(task.rates):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        optimizer.zero_grad()
        by_hand.loss(by_hand.batch(*divmod(step, 3)), 0.0)[0].backward()
        optimizer.step()
    for name, weights in by_hand.model.state_dict().items():
        torch.testing.assert_close(task.model.state_dict()[name], weights)


def test_every_batch_is_asked_for_once_in_order_with_how_far_the_training_is(tmp_path):
    task = Toy()
    train(task, tmp_path, replace(OPTIONS, epochs=2))
    assert task.asked == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert task.progress == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert task.modes == [True] * 6


def test_a_model_that_was_only_read_is_trained_as_one(tmp_path):
    """A checkpoint to begin with is read in evaluation mode, without dropout and with frozen norms."""
    task = Toy()
    task.model.eval()
    train(task, tmp_path, replace(OPTIONS, epochs=1))
    assert task.modes == [True] * 3


def test_the_history_holds_the_means_of_an_epoch_and_what_was_watched(tmp_path):
    task = Toy()
    task.watch = lambda epoch: {"metric": 10.0 * epoch}
    train(task, tmp_path, replace(OPTIONS, epochs=2))
    rows = read_checkpoint(tmp_path / "last.pt")["history"]
    for number, row in enumerate(rows):
        assert row["epoch"] == number + 1
        assert row["loss"] == pytest.approx(
            sum(task.losses[3 * number : 3 * number + 3]) / 3
        )
        assert row["twice"] == pytest.approx(2 * row["loss"])
        assert row["metric"] == 10.0 * (number + 1)
    assert list(rows[0]) == [
        "epoch",
        "loss",
        "twice",
        "metric",
        "seconds",
        "learning_rate",
    ]


@pytest.mark.parametrize(("precision", "wanted"), [("bf16", True), ("f32", False)])
def test_only_bf16_runs_the_forward_pass_in_half_precision(tmp_path, precision, wanted):
    task = Toy()
    train(task, tmp_path, replace(OPTIONS, epochs=1, precision=precision))
    assert task.autocast == [wanted] * 3
    assert {p.dtype for p in task.model.parameters()} == {torch.float32}


def test_the_seed_decides_the_dropout(tmp_path):
    losses = []
    for seed in (0, 0, 1):
        task = Toy()
        train(task, tmp_path / str(len(losses)), replace(OPTIONS, epochs=2, seed=seed))
        losses.append(task.losses)
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"epochs": -1}, {"learning_rate": 0.0}, {"learning_rate": -1e-3}],
    ids=str,
)
def test_options_that_train_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="want epochs >= 1 and learning_rate > 0"):
        FitOptions(**{"epochs": 1, "learning_rate": 1e-9, **wrong})
    assert FitOptions(epochs=1, learning_rate=1e-9).epochs == 1


def test_threads_are_set_only_where_they_are_named(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for name, threads in (("none", None), ("three", 3)):
        fit.fit(
            Toy(),
            replace(OPTIONS, epochs=1),
            tmp_path / name,
            machine=replace(HERE, threads=threads),
        )
    assert asked == [3]


@pytest.mark.parametrize(
    ("device", "gpu", "wanted"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_auto_takes_the_gpu_where_there_is_one_and_a_named_device_is_taken(
    monkeypatch, device, gpu, wanted
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with fit._world(Machine(device=device)) as world:
        assert (world.device.type, world.rank, world.size) == (wanted, 0, 1)


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UsageError, match="device cuda was asked for and PyTorch sees no GPU here"
    ):
        fit.fit(Toy(), OPTIONS, tmp_path / "run", machine=Machine(device="cuda"))
    assert not (tmp_path / "run").exists()


@dataclass(frozen=True)
class OneOfTwo(fit._World):
    """A process of two whose other half is elsewhere."""

    def wrapped(self, module):
        return module

    def mean(self, value):
        return float(value)


def as_rank(monkeypatch, rank):
    @contextmanager
    def world(machine):
        yield OneOfTwo(rank, 2, torch.device("cpu"))

    monkeypatch.setattr(fit, "_world", world)


@pytest.mark.parametrize(("rank", "steps"), [(0, [0, 2]), (1, [1, 3])])
def test_processes_share_the_batches_evenly_and_the_first_alone_writes(
    tmp_path, monkeypatch, rank, steps
):
    as_rank(monkeypatch, rank)
    task = Toy(steps=5)
    train(task, tmp_path, replace(OPTIONS, epochs=1))
    assert task.asked == [(0, step) for step in steps], (
        "the fifth batch would leave the other process waiting"
    )
    assert {path.name for path in tmp_path.iterdir()} == (
        {"last.pt", "curves.csv", "tensorboard"} if rank == 0 else set()
    )


def test_more_processes_than_batches_are_refused(tmp_path, monkeypatch):
    as_rank(monkeypatch, 0)
    with pytest.raises(UsageError, match="2 processes share 1 batches"):
        train(Toy(steps=1), tmp_path)
    assert train(Toy(steps=2), tmp_path, replace(OPTIONS, epochs=1)) is not None


class Clock:
    """A clock that a test moves on; each reading takes a second."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        self.now += 1.0
        return self.now


def test_each_epoch_is_told_with_its_seconds_and_what_is_left(
    tmp_path, monkeypatch, capsys
):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    task = Toy()

    def watch(epoch):
        clock.now += 299.0  # the reading after it makes it 300
        return {"metric": 0.25}

    task.watch = watch
    train(task, tmp_path, replace(OPTIONS, epochs=3))
    told = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
    told = re.findall(r"epoch \d/\d .*? min left", " ".join(told))
    assert [line.split()[1] for line in told] == ["1/3", "2/3", "3/3"]
    assert [line.split()[-3] for line in told] == ["10.0", "5.0", "0.0"]
    assert all("metric 0.25" in line and "seconds 300" in line for line in told)
    assert [
        row["seconds"] for row in read_checkpoint(tmp_path / "last.pt")["history"]
    ] == [300.0] * 3
