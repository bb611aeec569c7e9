"""A task for ``fit`` that trains in milliseconds and writes down everything the loop does with it."""

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from torch import nn  # noqa: E402

from spine_training.fit import Machine, fit  # noqa: E402
from spine_training.optimisation import FitOptions, plain_groups  # noqa: E402

HERE = Machine(device="cpu", threads=1, workers=0)
OPTIONS = FitOptions(epochs=4, learning_rate=0.1, precision="f32")


class Toy:
    """A regression of random numbers, with dropout, batch norm and a weight of its own learning rate."""

    def __init__(self, *, steps=3, seed=5, kind="toy", data="made up"):
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)
        )
        self.config, self.settings, self.steps = {"kind": kind}, {"data": data}, steps
        self.asked, self.progress, self.rates, self.norms = [], [], [], []
        self.weights, self.losses, self.modes, self.autocast = [], [], [], []
        self.watch = lambda epoch: {}
        self.scale = 1.0

    def batch(self, epoch, step):
        self.asked.append((epoch, step))
        draw = torch.Generator().manual_seed(1000 * epoch + step)
        return torch.randn(6, 4, generator=draw), torch.randn(6, 1, generator=draw)

    def loss(self, batch, progress):
        self.progress.append(progress)
        self.modes.append(self.model.training)
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        inputs, wanted = batch
        loss = self.scale * (self.model(inputs).float() - wanted).square().mean()
        self.losses.append(float(loss.detach()))
        return loss, {"twice": 2 * loss.detach()}

    def parameter_groups(self, weight_decay):
        named = list(self.model.named_parameters())
        last = {
            "params": [p for name, p in named if name.startswith("3.")],
            "weight_decay": 0.0,
            "times": 10.0,
        }
        self.groups = [
            *plain_groups(
                [(n, p) for n, p in named if not n.startswith("3.")], weight_decay
            ),
            last,
        ]
        return self.groups

    def after_step(self):
        self.rates.append([group["lr"] for group in self.groups])
        gradients = [p.grad for p in self.model.parameters()]
        self.norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        self.weights.append(
            {name: value.clone() for name, value in self.model.state_dict().items()}
        )

    def figures(self, averaged):
        assert not averaged.training
        return self.watch(len(self.weights) // self.steps)


def train(task, out, options=OPTIONS, **more):
    return fit(task, options, out, machine=HERE, **more)


def stopping(after):
    """Return what to watch: Ctrl-C in the epoch after so many that were watched."""
    watched = []

    def watch(epoch):
        watched.append(epoch)
        if len(watched) > after:
            raise KeyboardInterrupt
        return {"metric": 1.0}

    return watch
