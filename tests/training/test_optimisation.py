"""The schedule and the averaged weights against the formulas that earlier trainings were made with, written out once
more: PyTorch's ``LambdaLR`` and ``AveragedModel`` give the same numbers."""

import copy
import math

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from torch import nn  # noqa: E402

from spine_training.optimisation import (  # noqa: E402
    FitOptions,
    averaged_model,
    plain_groups,
    scheduled,
)


def former_rate(options, epoch):
    warm = min(options.warmup_epochs, options.epochs / 2)
    if epoch < warm:
        rate = (epoch + 0.01) / warm
    else:
        rate = (
            1 + math.cos(math.pi * (epoch - warm) / max(options.epochs - warm, 1e-9))
        ) / 2
    return options.learning_rate * min(rate, 1.0)


@torch.no_grad()
def former_average(averaged, model, decay):
    for kept, new in zip(
        averaged.state_dict().values(), model.state_dict().values(), strict=True
    ):
        if kept.dtype.is_floating_point:
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)


def a_net():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)
    )


def an_optimizer(net):
    named = list(net.named_parameters())
    far = {"params": [p for _, p in named[-1:]], "weight_decay": 0.0, "times": 10.0}
    return torch.optim.AdamW([*plain_groups(named[:-1], 0.02), far])


@pytest.mark.parametrize(
    "options",
    [
        FitOptions(epochs=5, learning_rate=2e-3),
        FitOptions(epochs=12, learning_rate=3e-3, warmup_epochs=0.5),
        FitOptions(epochs=1, learning_rate=0.1),
        FitOptions(epochs=3, learning_rate=1.0, warmup_epochs=0.0),
    ],
    ids=lambda options: f"{options.epochs} epochs, {options.warmup_epochs} to warm up",
)
@pytest.mark.parametrize("steps", [1, 7, 200])
def test_every_step_has_the_former_rate(options, steps):
    """To the bit; for a group of another multiple but for the last bit, because the factors are in another order."""
    optimizer = an_optimizer(a_net())
    schedule = scheduled(optimizer, options, steps)
    for epoch in range(options.epochs):
        for number in range(steps):
            rates = [group["lr"] for group in optimizer.param_groups]
            wanted = former_rate(options, epoch + number / steps)
            assert rates[:2] == [wanted, wanted]
            assert rates[2] == pytest.approx(10 * wanted, rel=1e-15)
            optimizer.step()
            schedule.step()


def test_a_schedule_goes_on_where_it_stopped_whatever_the_groups_say():
    options = FitOptions(epochs=3, learning_rate=0.5)
    straight, resumed = an_optimizer(a_net()), an_optimizer(a_net())
    schedule = scheduled(straight, options, 4)
    for _ in range(5):
        straight.step()
        schedule.step()
    again = scheduled(resumed, options, 4, done=5)
    for _ in range(7):
        assert [g["lr"] for g in resumed.param_groups] == [
            g["lr"] for g in straight.param_groups
        ]
        for optimizer, each in ((straight, schedule), (resumed, again)):
            optimizer.step()
            each.step()


@pytest.mark.parametrize("decay", [0.2, 0.9, 0.998])
def test_every_update_moves_the_average_as_formerly(decay):
    """To the bit, over weights, running statistics and the count of batches."""
    net = a_net()
    former, averaged = copy.deepcopy(net), averaged_model(net, decay)
    assert not averaged.training
    for step in range(30):
        net(torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(step)))
        with torch.no_grad():
            for number, weights in enumerate(net.parameters()):
                weights += torch.randn(
                    weights.shape,
                    generator=torch.Generator().manual_seed(100 * step + number),
                )
        averaged.update_parameters(net)
        former_average(former, net, min(decay, (1 + step) / (10 + step)))
        assert former.state_dict().keys() == averaged.module.state_dict().keys()
        for name, value in former.state_dict().items():
            assert torch.equal(averaged.module.state_dict()[name], value), (step, name)
    assert averaged.n_averaged == 31
    assert former[1].num_batches_tracked == 30


def test_a_new_average_is_the_model_itself_and_apart_from_it():
    net = a_net()
    averaged = averaged_model(net, 0.5)
    assert all(
        torch.equal(averaged.module.state_dict()[name], value)
        for name, value in net.state_dict().items()
    )
    with torch.no_grad():
        net[0].weight += 1
    assert not torch.equal(averaged.module[0].weight, net[0].weight)
