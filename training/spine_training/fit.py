"""The training loop that the detector and both graders share, in plain PyTorch (why: docs/decisions/0008-training.md).

AdamW, one cosine, averaged weights, mixed precision, gradient clipping; every epoch a checkpoint and curves, as CSV, as
a picture and for TensorBoard; a CPU, one GPU, or several through ``torchrun``. Every random draw depends on the seed,
the epoch and the step alone, so an interrupted and resumed training ends with the same weights as an undisturbed one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from spine_engine.errors import UsageError
from spine_training.checkpoints import read_pickle
from spine_training.optimisation import FitOptions, averaged_model, scheduled
from spine_training.progress import Reporter

CHECKPOINT: Final = "last.pt"

Batch = tuple[Tensor, ...]
Parts = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine of a training; it changes nothing that is computed, but for the rounding of another device.

    Attributes:
        device: ``auto`` takes the GPU where there is one.
        threads: CPU threads of the forward and backward pass; None leaves PyTorch's default.
        workers: processes that prepare batches; 0 prepares them between the steps.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    workers: int = 1


class Task(Protocol):
    """A model that ``fit`` trains, with its batches and its loss.

    Attributes:
        config: plain values that rebuild the model; every checkpoint stores them.
        settings: other plain values that decide the result; stored, and compared when a training is resumed.
        steps: batches an epoch.
    """

    config: dict[str, Any]
    settings: dict[str, Any]
    steps: int

    @property
    def model(self) -> nn.Module:
        """Return the network, with the weights to begin with."""

    def batch(self, epoch: int, step: int) -> Batch:
        """Return one batch; it depends on nothing but the two numbers and the task's seed."""

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        """Return the scalar to minimise by ``model`` and detached scalars to report; ``progress`` runs from 0 to 1."""

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return AdamW's groups of ``model``; ``times`` multiplies the common learning rate."""

    def after_step(self) -> None:
        """Repair ``model`` after an optimiser step, where a constraint asks for it."""

    def figures(self, averaged: nn.Module) -> dict[str, float]:
        """Return figures of the averaged model on held-out data; empty without any."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """One sitting of a training: where it runs, what it starts with, where it writes.

    Attributes:
        out: folder of the checkpoint and the curves.
        machine: device, threads, workers.
        start: a checkpoint whose averaged weights replace the random ones.
        resume: continue after the last finished epoch in ``out``, where there is one.
    """

    out: Path
    machine: Machine = Machine()
    start: Path | None = None
    resume: bool = False


def fit(
    task: Task,
    options: FitOptions,
    out: Path,
    *,
    machine: Machine | None = None,
    resume: bool = False,
) -> nn.Module:
    """Train ``task.model`` and return the model with averaged weights, on the CPU.

    Args:
        task: the model, its batches and its loss.
        options: the optimisation.
        out: folder for ``last.pt``, ``curves.csv``, ``curves.svg`` and ``tensorboard/``.
        machine: device, threads, workers.
        resume: continue after the last finished epoch in ``out``, where there is one.

    Raises:
        UsageError: ``out`` holds a training and ``resume`` is false, the training in ``out`` has another model or
            other options, or the device is not available.
    """
    machine = machine or Machine()
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    if not resume and (out / CHECKPOINT).exists():
        raise UsageError(
            f"{out} holds a training already; add --resume to go on with it, or name another folder"
        )
    with _world(machine) as world:
        if task.steps < world.size:
            raise UsageError(
                f"{world.size} processes share {task.steps} batches; start fewer, or give smaller batches"
            )
        training = _Training(task, options, world)
        if resume and (out / CHECKPOINT).exists():
            training.load(out / CHECKPOINT)
        out.mkdir(parents=True, exist_ok=True)
        reporter = (
            Reporter(out, options.epochs, training.history) if world.rank == 0 else None
        )
        while training.epoch < options.epochs:
            means = training.run_epoch(machine.workers, reporter)
            if reporter is not None:
                figures = task.figures(training.averaged.module)
                reporter.finish({**means, **figures}, training.rate)
                training.save(out / CHECKPOINT)
        if reporter is not None:
            reporter.close()
    return training.averaged.module.cpu().eval()


class _Training:
    """A training under way: the model and its average, the optimiser and its schedule, the finished epochs.

    Attributes:
        steps: optimiser steps an epoch; every process takes as many.
        rate: learning rate of the last step.
        epoch: number of finished epochs.
        history: a row of figures for each of them.
    """

    def __init__(
        self,
        task: Task,
        options: FitOptions,
        world: _World,
    ) -> None:
        volumes = any(parameter.ndim == 5 for parameter in task.model.parameters())
        layout = torch.channels_last_3d if volumes else torch.channels_last
        task.model.to(device=world.device, memory_format=layout)  # type: ignore[call-overload]
        self.steps = task.steps // world.size
        self.rate = 0.0
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.averaged = averaged_model(task.model, options.ema)
        self._task = task
        self._options = options
        self._world = world
        self._objective = world.wrapped(_Objective(task))
        self._optimizer = torch.optim.AdamW(task.parameter_groups(options.weight_decay))
        self._schedule = scheduled(self._optimizer, options, self.steps)

    def run_epoch(self, workers: int, reporter: Reporter | None) -> dict[str, float]:
        """Train one epoch; return the means of what the loss reported."""
        seed = np.random.SeedSequence(
            [
                self._options.seed,
                self.epoch,
                self._world.rank,
            ]
        )
        torch.manual_seed(int(seed.generate_state(1)[0]))
        self._task.model.train()
        sums: Parts = {}
        for number, batch in enumerate(self._batches(workers), 1):
            for name, value in self._step(batch, number - 1).items():
                sums[name] = value + sums.get(name, 0.0)
            if reporter is not None:
                reporter.step(number, self.steps, sums)
        self.epoch += 1
        return {
            name: self._world.mean(total / self.steps) for name, total in sums.items()
        }

    def _batches(self, workers: int) -> DataLoader[Batch]:
        """Return this process's batches of the epoch: every n-th of the task's."""
        rank, size = self._world.rank, self._world.size
        return DataLoader(
            _Batches(self._task),
            batch_size=None,
            sampler=[
                (self.epoch, step) for step in range(rank, self.steps * size, size)
            ],
            num_workers=workers,
            pin_memory=self._world.device.type == "cuda",
            prefetch_factor=4 if workers else None,
        )

    def _step(self, batch: Batch, number: int) -> Parts:
        """Take one optimiser step of the epoch; return the loss and its parts."""
        device = self._world.device
        progress = (self.epoch + number / self.steps) / self._options.epochs
        batch = tuple(part.to(device, non_blocking=True) for part in batch)
        with torch.autocast(
            device.type,
            torch.bfloat16,
            enabled=self._options.precision == "bf16",
        ):
            loss, parts = self._objective(batch, progress)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(
            self._task.model.parameters(),
            self._options.clip_norm,
        )
        self._optimizer.step()
        self._task.after_step()
        self.averaged.update_parameters(self._task.model)
        group = self._optimizer.param_groups[0]
        self.rate = group["lr"] / group["times"]
        self._schedule.step()
        return {"loss": loss.detach(), **parts}

    def save(self, path: Path) -> None:
        """Write the checkpoint through a temporary file and a rename."""
        content = {
            "config": self._task.config,
            "settings": self._task.settings,
            "options": asdict(self._options),
            "epoch": self.epoch,
            "history": self.history,
            "model": self._task.model.state_dict(),
            "ema": self.averaged.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        partial = path.with_suffix(".partial")
        torch.save(content, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Continue a checkpoint's training; the schedule and the average's decay follow from the number of steps.

        Raises:
            UsageError: the checkpoint is of another model, or was trained with other options.
        """
        content = read_checkpoint(path)
        mine = {
            **self._task.config,
            **self._task.settings,
            **asdict(self._options),
        }
        theirs = {
            **content["config"],
            **content.get("settings", {}),
            **content.get("options", {}),
        }
        other = sorted(
            key for key in {*theirs, *mine} if theirs.get(key) != mine.get(key)
        )
        if other:
            raise UsageError(
                f"{path} was trained with another {', '.join(other)}; give the same or another output folder"
            )
        self.epoch = content["epoch"]
        self.history = content["history"]
        self._task.model.load_state_dict(content["model"])
        self._optimizer.load_state_dict(content["optimizer"])
        self._schedule = scheduled(
            self._optimizer,
            self._options,
            self.steps,
            self.epoch * self.steps,
        )
        self.averaged.module.load_state_dict(content["ema"])
        self.averaged.n_averaged.fill_(1 + self.epoch * self.steps)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ``fit`` onto the CPU, tensors and plain values only.

    Raises:
        UsageError: the file does not exist or is no checkpoint of this project.
    """
    if not path.is_file():
        raise UsageError(
            f"cannot read {path}: there is no such file; give a file of train"
        )
    content = read_pickle(path)
    if not isinstance(content, dict) or not {"config", "model"} <= content.keys():
        raise UsageError(
            f"{path} is no checkpoint of this project: it lacks 'config' or 'model'; give a file of train"
        )
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
        raise UsageError(
            "device cuda was asked for and PyTorch sees no GPU here; leave --device at auto or name cpu"
        )
    kind = (
        "cuda"
        if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
        else "cpu"
    )
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield _World(0, 1, torch.device(kind))
        return
    device = (
        torch.device(kind, int(os.environ["LOCAL_RANK"]))
        if kind == "cuda"
        else torch.device(kind)
    )
    if kind == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield _World(
            torch.distributed.get_rank(),
            size,
            device,
        )
    finally:
        torch.distributed.destroy_process_group()
