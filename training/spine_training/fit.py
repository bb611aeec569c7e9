"""The training loop that the detector and both graders share, in plain PyTorch (why: docs/decisions/0008-training.md).

AdamW, one cosine, averaged weights, mixed precision, gradient clipping; every epoch a checkpoint and curves, as CSV, as
a picture and for TensorBoard; a CPU, one GPU, or several through ``torchrun``. Every random draw depends on the seed,
the epoch and the step alone, so a training that was interrupted and resumed ends with the weights it would have had
anyway.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from spine_engine.errors import SpineEngineError, UsageError
from spine_training import curves

CHECKPOINT: Final = "last.pt"
TENSORBOARD: Final = "tensorboard"

Batch = tuple[Tensor, ...]
Parts = dict[str, Tensor]

_FULL_AVERAGE_AFTER: Final = 10
"""The first steps hardly enter the averaged weights: step n keeps at most n / (n + 10) of the average."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The optimisation; stored in every checkpoint, and a resumed training must ask for the same.

    Attributes:
        epochs: passes over the batches of a task.
        learning_rate: peak; linear warm-up over ``warmup_epochs``, then a cosine to zero.
        ema: decay of the averaged weights, a step.
        clip_norm: largest norm of the gradient.
        precision: of the forward pass; ``bf16`` keeps weights and losses in float32.
    """

    epochs: int
    learning_rate: float
    weight_decay: float = 0.02
    warmup_epochs: float = 1.0
    ema: float = 0.998
    clip_norm: float = 5.0
    seed: int = 0
    precision: Literal["bf16", "f32"] = "bf16"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.learning_rate <= 0:
            raise ValueError(f"want epochs >= 1 and learning_rate > 0, got {self.epochs} and {self.learning_rate}")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a training runs; none of it changes what is computed, but for the rounding of another device.

    Attributes:
        device: ``auto`` takes the GPU where there is one.
        threads: CPU threads of the forward and backward pass; None leaves PyTorch's default.
        workers: processes that prepare batches; 0 prepares them in between.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    workers: int = 1


class Task(Protocol):
    """What is trained.

    Attributes:
        config: what the model is made of, as plain values; stored, enough to build it again.
        settings: what else decides the result, as plain values; stored, and compared when a training is resumed.
        steps: batches an epoch.
    """

    config: dict[str, Any]
    settings: dict[str, Any]
    steps: int

    @property
    def model(self) -> nn.Module:
        """Return the network, with the weights to begin with."""
        ...

    def batch(self, epoch: int, step: int) -> Batch:
        """Return one batch; it depends on nothing but the two numbers and the task's seed."""
        ...

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        """Return the scalar to minimise by ``model`` and detached scalars to report; ``progress`` runs from 0 to 1."""
        ...

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return AdamW's groups of ``model``; ``times`` multiplies the common learning rate."""
        ...

    def after_step(self) -> None:
        """Repair ``model`` after an optimiser step, where a constraint asks for it."""
        ...

    def figures(self, averaged: nn.Module) -> dict[str, float]:
        """Return what the averaged model reaches on data that is not trained on; empty for nothing."""
        ...


def fit(
    task: Task, options: FitOptions, out: Path, *, machine: Machine | None = None, resume: bool = False
) -> nn.Module:
    """Train ``task.model`` and return the model with averaged weights, on the CPU.

    Args:
        task: the model, its batches and its loss.
        options: the optimisation.
        out: folder for ``last.pt``, ``curves.csv``, ``curves.svg`` and ``tensorboard/``.
        machine: device, threads, workers.
        resume: go on after the last finished epoch in ``out``, where there is one.

    Raises:
        UsageError: ``out`` holds a training and ``resume`` was not asked for, the training in ``out`` had another model
            or other options, or the device is not there.
    """
    machine = machine or Machine()
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    if not resume and (out / CHECKPOINT).exists():
        raise UsageError(f"{out} holds a training already; add --resume to go on with it, or name another folder")
    with _world(machine) as world:
        if task.steps < world.size:
            raise UsageError(f"{world.size} processes share {task.steps} batches; start fewer, or give smaller batches")
        state = _State.begin(task, options, world.device)
        if resume and (out / CHECKPOINT).exists():
            state.load(out / CHECKPOINT, task, options)
        out.mkdir(parents=True, exist_ok=True)
        reporter = _Reporter(out, options, state) if world.rank == 0 else None
        objective = world.wrapped(_Objective(task))
        for epoch in range(state.epoch, options.epochs):
            means = _epoch(task, objective, options, state, world, machine, reporter)
            state.epoch = epoch + 1
            if reporter is not None:
                rate = state.optimizer.param_groups[0]["lr"] / state.optimizer.param_groups[0]["times"]
                reporter.finish(epoch, means, task.figures(state.averaged), rate)
                state.save(out / CHECKPOINT, task, options)
        if reporter is not None:
            reporter.close()
    return state.averaged.cpu().eval()


@dataclass
class _State:
    """What a checkpoint holds beside the model: its average, the optimiser, how far it is, the history."""

    averaged: nn.Module
    optimizer: torch.optim.AdamW
    epoch: int
    history: list[dict[str, float]]

    @classmethod
    def begin(cls, task: Task, options: FitOptions, device: torch.device) -> _State:
        layout = torch.channels_last_3d if any(p.ndim == 5 for p in task.model.parameters()) else torch.channels_last
        task.model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        groups = task.parameter_groups(options.weight_decay)
        return cls(copy.deepcopy(task.model).eval(), torch.optim.AdamW(groups), 0, [])

    def save(self, path: Path, task: Task, options: FitOptions) -> None:
        """Write the checkpoint through a temporary file and a rename."""
        content = {
            "config": task.config,
            "settings": task.settings,
            "options": asdict(options),
            "epoch": self.epoch,
            "history": self.history,
            "model": task.model.state_dict(),
            "ema": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = path.with_suffix(".partial")
        torch.save(content, partial)
        os.replace(partial, path)

    def load(self, path: Path, task: Task, options: FitOptions) -> None:
        content = read_checkpoint(path)
        mine = {**task.config, **task.settings, **asdict(options)}
        theirs = {**content["config"], **content.get("settings", {}), **content.get("options", {})}
        other = sorted(key for key in {*theirs, *mine} if theirs.get(key) != mine.get(key))
        if other:
            raise UsageError(
                f"{path} was trained with another {', '.join(other)}; give the same or another output folder"
            )
        task.model.load_state_dict(content["model"])
        self.averaged.load_state_dict(content["ema"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.epoch, self.history = content["epoch"], content["history"]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ``fit`` onto the CPU, tensors and plain values only.

    Raises:
        UsageError: the file is not there or is no checkpoint of this project.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever torch.load raises on a file that is none of its own
        raise UsageError(f"cannot read {path} as a checkpoint: {type(error).__name__}; give a file of train") from None
    if not isinstance(content, dict) or not {"config", "model"} <= content.keys():
        raise UsageError(f"{path} is no checkpoint of this project: it lacks 'config' or 'model'; give a file of train")
    return content


class _Objective(nn.Module):
    """Model and loss as one module, so that DistributedDataParallel sees a forward pass."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self._loss = task.loss

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        return self._loss(batch, progress)


class _Batches(Dataset[Batch]):
    """A task's batches by (epoch, step), as a DataLoader wants them."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        return self._task.batch(*place)


def _epoch(
    task: Task,
    objective: nn.Module,
    options: FitOptions,
    state: _State,
    world: _World,
    machine: Machine,
    reporter: _Reporter | None,
) -> dict[str, float]:
    """Train one epoch; return the means of what the loss reported."""
    epoch = state.epoch
    torch.manual_seed(int(np.random.SeedSequence([options.seed, epoch, world.rank]).generate_state(1)[0]))
    usable = task.steps // world.size * world.size  # every rank takes as many steps
    places = [(epoch, step) for step in range(world.rank, usable, world.size)]
    loader = DataLoader(
        _Batches(task),
        batch_size=None,
        sampler=places,
        num_workers=machine.workers,
        pin_memory=world.device.type == "cuda",
        prefetch_factor=4 if machine.workers else None,
    )
    task.model.train()
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(loader):
        at = epoch + number / len(places)
        _set_rate(state.optimizer, options, at)
        batch = tuple(part.to(world.device, non_blocking=True) for part in batch)
        with torch.autocast(world.device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            loss, parts = objective(batch, at / options.epochs)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(task.model.parameters(), options.clip_norm)
        state.optimizer.step()
        task.after_step()
        done = epoch * len(places) + number
        average_weights(state.averaged, task.model, min(options.ema, (1 + done) / (_FULL_AVERAGE_AFTER + done)))
        for name, value in {"loss": loss.detach(), **parts}.items():
            sums[name] = sums.get(name, torch.zeros((), device=world.device)) + value
        if reporter is not None:
            reporter.step(number + 1, len(places), sums)
    return {name: world.mean(total / len(places)) for name, total in sums.items()}


@torch.no_grad()
def average_weights(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move weights and running statistics of ``averaged`` towards ``model``'s, in place; whole numbers are copied."""
    for kept, new in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.dtype.is_floating_point:
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)


def plain_groups(named: Sequence[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's groups: weights decay; biases and norms (below two dimensions) do not."""
    return [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": weight_decay, "times": 1.0},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0, "times": 1.0},
    ]


def _set_rate(optimizer: torch.optim.Optimizer, options: FitOptions, epoch: float) -> None:
    """Set the learning rate at a fractional epoch."""
    warm = min(options.warmup_epochs, options.epochs / 2)
    if epoch < warm:
        rate = (epoch + 0.01) / warm
    else:
        rate = (1 + math.cos(math.pi * (epoch - warm) / max(options.epochs - warm, 1e-9))) / 2
    for group in optimizer.param_groups:
        group["lr"] = options.learning_rate * min(rate, 1.0) * group["times"]


@dataclass(frozen=True)
class _World:
    """This process among those of ``torchrun``."""

    rank: int
    size: int
    device: torch.device

    def wrapped(self, module: nn.Module) -> nn.Module:
        if self.size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module)

    def mean(self, value: Tensor) -> float:
        if self.size > 1:
            torch.distributed.all_reduce(value)
        return float(value) / self.size


@contextmanager
def _world(machine: Machine) -> Iterator[_World]:
    """Join the other processes where ``torchrun`` started some."""
    wanted = machine.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for and PyTorch sees no GPU here; leave --device at auto or name cpu")
    kind = "cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu"
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield _World(0, 1, torch.device(kind))
        return
    device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield _World(torch.distributed.get_rank(), size, device)
    finally:
        torch.distributed.destroy_process_group()


class _Reporter:
    """Progress on the terminal, ``curves.csv``, ``curves.svg``, TensorBoard."""

    def __init__(self, out: Path, options: FitOptions, state: _State) -> None:
        from tensorboardX import SummaryWriter  # only the process that reports needs it

        self._out, self._options, self._history = out, options, state.history
        self._can_draw = True
        self._writer = SummaryWriter(str(out / TENSORBOARD), purge_step=state.epoch + 1)
        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
        self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
        left = options.epochs - state.epoch
        self._task = self._bar.add_task("training", total=left, said="")
        self._first, self._began = state.epoch, time.monotonic()
        self._epoch_began = self._began
        if self._console.is_terminal:
            self._bar.start()

    def step(self, done: int, steps: int, sums: dict[str, Tensor]) -> None:
        if not self._bar.live.is_started or done % max(1, steps // 50):
            return
        epoch = len(self._history)
        self._bar.update(
            self._task,
            completed=epoch - self._first + done / steps,
            description=f"epoch {epoch + 1}/{self._options.epochs}",
            said=f"loss {float(sums['loss']) / done:.4f}",
        )

    def finish(self, epoch: int, means: dict[str, float], figures: dict[str, float], rate: float) -> None:
        now = time.monotonic()
        shown = {**means, **figures, "seconds": now - self._epoch_began}
        row = {"epoch": epoch + 1.0, **shown, curves.LEARNING_RATE: rate}
        self._epoch_began = now
        self._history.append(row)
        left_s = (now - self._began) / (epoch + 1 - self._first) * (self._options.epochs - epoch - 1)
        said = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self._console.print(f"epoch {epoch + 1}/{self._options.epochs}  {said}  {left_s / 60:.1f} min left")
        for name, value in row.items():
            self._writer.add_scalar(name, value, epoch + 1)
        self._writer.flush()
        curves.write_table(self._out / curves.TABLE, self._history)
        self._draw()

    def _draw(self) -> None:
        """Draw the curves; what hinders it is said once and stops nothing."""
        if not self._can_draw:
            return
        try:
            curves.write_picture(self._out / curves.PICTURE, self._history)
        except Exception as error:  # noqa: BLE001 - hours of training are worth more than any picture
            said = str(error) if isinstance(error, SpineEngineError) else f"no picture: {type(error).__name__}: {error}"
            self._console.print(said, markup=False, highlight=False, soft_wrap=True)
            self._can_draw = False

    def close(self) -> None:
        self._bar.stop()
        self._writer.close()
