"""Masked losses of the detector on the target planes of `augment.sample`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

#: Positive pixels are rare (a disc covers 0.3 % of a slice): heat errors weigh `1 + PEAK_WEIGHT * target`.
PEAK_WEIGHT = 30.0
WEIGHTS = {
    "disc": 1.0,
    "body": 0.5,
    "direction": 0.5,
    "level": 0.5,
}


def _heat_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    weight = weight * (1.0 + PEAK_WEIGHT * target)
    loss = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    floor = functional.binary_cross_entropy(
        target, target, reduction="none"
    )  # entropy of a soft target
    return ((loss - floor) * weight).sum() / weight.sum().clamp_min(1.0)


def level_bins(u: Tensor, count: int) -> Tensor:
    """Return soft bin targets `(N, count, H, W)` of level coordinates `u (N, H, W)`: bin 0 is u <= -1, 1 is u = 0."""
    position = (u + 1.0).clamp(0.0, count - 1.0)
    centers = torch.arange(
        count,
        dtype=u.dtype,
        device=u.device,
    ).view(1, -1, 1, 1)
    return (1.0 - (position.unsqueeze(1) - centers).abs()).clamp_min(0.0)


def detector_loss(output: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the total loss, and its parts without gradient.

    Args:
        output: `(N, 4 + bins, h, w)` float32 logits of the net.
        target: `(N, 9, h, w)` planes of `augment.sample`.
    """
    disc = _heat_loss(
        output[:, 0],
        target[:, 0],
        target[:, 5],
    )
    body = _heat_loss(
        output[:, 1],
        target[:, 1],
        target[:, 6],
    )
    weight = target[:, 7]
    direction = (
        (output[:, 2:4] - target[:, 2:4]).abs().sum(1) * weight
    ).sum() / weight.sum().clamp_min(1.0)
    weight = target[:, 8]
    bins = level_bins(target[:, 4], output.shape[1] - 4)
    log_p = functional.log_softmax(output[:, 4:], dim=1)
    level = (-(bins * log_p).sum(1) * weight).sum() / weight.sum().clamp_min(1.0)
    hit = (log_p.argmax(1) == bins.argmax(1)).float()
    right = (hit * weight).sum() / weight.sum().clamp_min(1.0)
    parts = {
        "disc": disc,
        "body": body,
        "direction": direction,
        "level": level,
    }
    total = torch.stack([WEIGHTS[k] * v for k, v in parts.items()]).sum()
    return total, {k: v.detach() for k, v in parts.items()} | {
        "level_right": right.detach()
    }
