"""The training loop of the level grader: AdamW, cosine, averaged weights, a checkpoint every epoch."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from spine_training.grader.augment import AugmentOptions, augment
from spine_training.grader.data import CropSet
from spine_training.grader.loss import grading_loss, narrowing_loss
from spine_training.grader.model import Grader, GraderConfig, load_grader

CHECKPOINT = "last.pt"
CURVES = "curves.csv"
CUTPOINT_LEARNING_RATE = 10.0
"""Times the common rate: the cut-points must travel from 2 to about 8 apart within a short training."""

EXACT_SHARE = 0.8
"""Share of the training in which the exact narrowing still counts; calibration is left to the last fifth."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How the grader is trained; stored in every checkpoint, and a resumed training must ask for the same.

    ``exact_weight`` is the weight, in the beginning, of the error of the exactly known narrowing; it fades to 0 before
    the end, where the noisy reader's grades alone decide, as calibrated probabilities need it.
    """

    epochs: int = 24
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup_epochs: float = 1.0
    ema: float = 0.998
    clip_norm: float = 5.0
    exact_weight: float = 4.0
    seed: int = 0
    bf16: bool = True
    augment: AugmentOptions = field(default_factory=AugmentOptions)


def train(
    crops: CropSet,
    config: GraderConfig,
    options: TrainOptions,
    out: Path,
    *,
    start: Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[int, Grader, dict[str, float]], None] | None = None,
) -> Grader:
    """Train a grader and return the one with averaged weights.

    Every random draw of an epoch depends on the seed and the epoch alone, so a training that is resumed from the last
    finished epoch goes on as if it had never stopped.

    Args:
        crops: level grids and their grades.
        config: the model.
        options: the optimisation.
        out: folder for ``last.pt`` and ``curves.csv``.
        start: a checkpoint whose averaged weights to begin with, instead of random ones.
        resume: go on from ``out``/last.pt where there is one.
        on_epoch: called after each epoch with its number, the averaged grader and the epoch's figures.

    Raises:
        ValueError: ``resume`` finds a checkpoint of another model or of other options.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    grader = Grader(config).to(memory_format=torch.channels_last_3d)
    if start is not None:
        grader.load_state_dict(load_grader(start).state_dict())
    average = Grader(config).eval()
    average.load_state_dict(grader.state_dict())
    optimizer = torch.optim.AdamW(_parameter_groups(grader, options))
    first = _resume(out / CHECKPOINT, grader, average, optimizer, options) if resume else 0
    for epoch in range(first, options.epochs):
        began = time.perf_counter()
        loss = _epoch(grader, average, optimizer, crops, options, epoch)
        figures = {"loss": loss, "seconds": time.perf_counter() - began}
        _save(out / CHECKPOINT, grader, average, optimizer, options, epoch)
        _append_curve(out / CURVES, epoch, figures)
        if on_epoch is not None:
            on_epoch(epoch, average, figures)
    return average


def _epoch(
    grader: Grader,
    average: Grader,
    optimizer: torch.optim.Optimizer,
    crops: CropSet,
    options: TrainOptions,
    epoch: int,
) -> float:
    seed = np.random.SeedSequence([options.seed, epoch]).generate_state(1)[0]
    rng = torch.Generator().manual_seed(int(seed))
    torch.manual_seed(int(seed))
    order = torch.randperm(len(crops), generator=rng).numpy()
    steps = math.ceil(len(order) / options.batch)
    grades = crops.grades_of_epoch(epoch)
    total = 0.0
    grader.train()
    for step in range(steps):
        chosen = np.sort(order[step * options.batch : (step + 1) * options.batch])
        if len(chosen) < 2:
            continue  # batch norm needs two
        grids = torch.from_numpy(crops.grids[chosen].astype(np.float32))
        truth = torch.from_numpy(crops.narrowing[chosen]).float()
        grids, target, narrowing = augment(grids, torch.from_numpy(grades[chosen]), truth, options.augment, rng)
        _set_rate(optimizer, options, epoch + step / steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            latents = grader.latents(grids.contiguous(memory_format=torch.channels_last_3d))
        loss = grading_loss(grader.grade(latents), target)
        exact = options.exact_weight * _fade(options, epoch + step / steps)
        cutpoints = torch.stack([link.cutpoints for link in grader.links()])
        objective = loss + exact * narrowing_loss(latents, cutpoints, narrowing)
        optimizer.zero_grad(set_to_none=True)
        objective.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(grader.parameters(), options.clip_norm)
        optimizer.step()
        grader.order_cutpoints()
        _average(average, grader, min(options.ema, (1 + epoch * steps + step) / (10 + epoch * steps + step)))
        total += float(loss.detach()) * len(chosen)
    return total / len(order)


@torch.no_grad()
def _average(average: Grader, grader: Grader, decay: float) -> None:
    for kept, new in zip(average.state_dict().values(), grader.state_dict().values(), strict=True):
        if kept.dtype.is_floating_point:
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)


def _parameter_groups(grader: Grader, options: TrainOptions) -> list[dict[str, Any]]:
    cutpoints = [p for name, p in grader.named_parameters() if name.endswith("cutpoints")]
    plain = [p for name, p in grader.named_parameters() if p.ndim < 2 and not name.endswith("cutpoints")]
    decayed = [p for p in grader.parameters() if p.ndim >= 2]
    return [
        {"params": decayed, "weight_decay": options.weight_decay, "times": 1.0},
        {"params": plain, "weight_decay": 0.0, "times": 1.0},
        {"params": cutpoints, "weight_decay": 0.0, "times": CUTPOINT_LEARNING_RATE},
    ]


def _fade(options: TrainOptions, epoch: float) -> float:
    """Return a factor that falls from 1 to 0 in the first ``EXACT_SHARE`` of the training."""
    return max(0.0, 1.0 - epoch / (EXACT_SHARE * options.epochs))


def _set_rate(optimizer: torch.optim.Optimizer, options: TrainOptions, epoch: float) -> None:
    """Set the learning rate at a fractional epoch: linear warm-up, then a cosine to zero."""
    if epoch < options.warmup_epochs:
        rate = (epoch + 0.01) / options.warmup_epochs
    else:
        done = (epoch - options.warmup_epochs) / max(options.epochs - options.warmup_epochs, 1e-9)
        rate = (1 + math.cos(math.pi * done)) / 2
    for group in optimizer.param_groups:
        group["lr"] = options.learning_rate * min(rate, 1.0) * group["times"]


def _save(
    path: Path, grader: Grader, average: Grader, optimizer: torch.optim.Optimizer, options: TrainOptions, epoch: int
) -> None:
    content = {
        "config": asdict(grader.config),
        "options": asdict(options),
        "epoch": epoch,
        "model": grader.state_dict(),
        "ema": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, path)


def _resume(
    path: Path, grader: Grader, average: Grader, optimizer: torch.optim.Optimizer, options: TrainOptions
) -> int:
    """Load the last finished epoch into the three objects; return the number of the next one."""
    if not path.exists():
        return 0
    content = torch.load(path, map_location="cpu", weights_only=True)
    if GraderConfig.from_dict(content["config"]) != grader.config or content["options"] != asdict(options):
        raise ValueError(f"{path.name} was trained with other settings; give the same ones or another --out")
    grader.load_state_dict(content["model"])
    average.load_state_dict(content["ema"])
    optimizer.load_state_dict(content["optimizer"])
    return int(content["epoch"]) + 1


def _append_curve(path: Path, epoch: int, figures: dict[str, float]) -> None:
    new = epoch == 0 or not path.exists()
    with path.open("w" if new else "a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["epoch", *figures])
        writer.writerow([epoch, *(f"{value:.5f}" for value in figures.values())])
