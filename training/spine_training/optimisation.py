"""The optimisation's parts: parameter groups, the schedule of learning rates, the averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Tensors = tuple[Tensor, ...] | list[Tensor]

START_SHARE: Final = 0.01
"""The share of an epoch by which the warm-up is ahead, so that the first step's learning rate is not zero."""

EARLY_AVERAGES: Final = 9
"""The first weights hardly enter the average: the n-th update keeps at most n / (n + 9) of it."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The optimisation; every checkpoint stores it, and a resumed training must ask for the same.

    Attributes:
        epochs: passes over the batches of a task.
        learning_rate: peak; linear warm-up over ``warmup_epochs``, then a cosine to zero.
        ema: decay of the averaged weights, a step.
        clip_norm: largest norm of the gradient.
        precision: number format of the forward pass; ``bf16`` keeps weights and losses in float32.
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
            raise ValueError(
                f"want epochs >= 1 and learning_rate > 0, got {self.epochs} and {self.learning_rate}"
            )

    def share_of_peak(self, epoch: float) -> float:
        """Return the share of the peak learning rate at a fractional epoch."""
        warm = min(self.warmup_epochs, self.epochs / 2)
        if epoch < warm:
            return min((epoch + START_SHARE) / warm, 1.0)
        falling = max(self.epochs - warm, 1e-9)
        return (1 + math.cos(math.pi * (epoch - warm) / falling)) / 2


def plain_groups(
    named: Sequence[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Return AdamW's groups: weights decay; biases and norms (below two dimensions) do not."""
    return [
        {
            "params": [p for _, p in named if p.ndim >= 2],
            "weight_decay": weight_decay,
            "times": 1.0,
        },
        {
            "params": [p for _, p in named if p.ndim < 2],
            "weight_decay": 0.0,
            "times": 1.0,
        },
    ]


def scheduled(
    optimizer: torch.optim.Optimizer,
    options: FitOptions,
    steps: int,
    done: int = 0,
) -> LambdaLR:
    """Return the schedule of an optimiser's learning rates, ready for the step after ``done`` ones.

    Nothing of it needs to be stored: it depends on the number of steps alone.

    Args:
        optimizer: ``times`` of each group multiplies the common learning rate.
        options: peak, warm-up and length.
        steps: optimiser steps an epoch.
        done: optimiser steps so far.
    """
    for group in optimizer.param_groups:
        peak = options.learning_rate * group["times"]
        group.update(lr=peak, initial_lr=peak)
    return LambdaLR(
        optimizer,
        lambda step: options.share_of_peak(step // steps + step % steps / steps),
        last_epoch=done - 1,
    )


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential moving average of a model's weights and running statistics, which begins with the model.

    ``update_parameters`` takes the weights after a step in; ``n_averaged`` is the number of steps and one.
    """
    averaged = AveragedModel(
        model,
        multi_avg_fn=_average_with(decay),
        use_buffers=True,
    )
    averaged.update_parameters(model)
    return averaged.eval()


def _average_with(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Return torch's average for a decay that begins lower; whole numbers (counts of batches) are copied."""

    def average(averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            reached = int(count) / (int(count) + EARLY_AVERAGES)
            get_ema_multi_avg_fn(min(decay, reached))(averaged, current, count)  # type: ignore[no-untyped-call]
        else:
            for kept, new in zip(averaged, current, strict=True):
                kept.copy_(new)

    return average
