"""Random changes of level grids during training: what scanners, protocols and the two sides of a patient vary.

Grids are ``(N, C, D, H, W)`` float32 in [0, 1], 0 where nothing was imaged; W runs from the patient's right to left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spine_training.grader.model import MIRRORED_HEADS


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """How often and how far grids are changed.

    Attributes:
        drop_channel: chance that one channel of a grid is emptied, as if the series were missing.
        gamma: largest |log2| of the exponent applied to a channel's intensities.
        gain: largest relative change of a channel's contrast.
        shift: largest brightness added.
        noise: largest standard deviation of white noise.
        bias: largest relative brightness change from one end of the grid to the other.
    """

    drop_channel: float = 0.12
    gamma: float = 0.4
    gain: float = 0.15
    shift: float = 0.05
    noise: float = 0.04
    bias: float = 0.15


def augment(
    grids: Tensor, grades: Tensor, narrowing: Tensor, options: AugmentOptions, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return changed copies of ``grids`` and, sides swapped where mirrored, of ``grades`` and ``narrowing``."""
    grids, grades, narrowing = mirror_some(grids, grades, narrowing, rng)
    return change_intensities(grids, options, rng), grades, narrowing


def mirror_some(
    grids: Tensor, grades: Tensor, narrowing: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Mirror half of the grids left to right and exchange their left and right grades and narrowings."""
    flip = torch.rand(len(grids), generator=rng) < 0.5
    mirrored = torch.where(flip[:, None, None, None, None], grids.flip(-1), grids)
    swapped = [torch.where(flip[:, None], each[:, list(MIRRORED_HEADS)], each) for each in (grades, narrowing)]
    return mirrored, swapped[0], swapped[1]


def change_intensities(grids: Tensor, options: AugmentOptions, rng: torch.Generator) -> Tensor:
    """Vary gamma, contrast, brightness, bias field and noise of each channel, and empty a channel now and then."""
    count, channels = grids.shape[:2]

    def uniform(*shape: int) -> Tensor:
        return (torch.rand(*shape, generator=rng) * 2 - 1).view(*shape, *[1] * (5 - len(shape)))

    covered = grids > 0
    changed = grids.clamp(0, 1) ** torch.exp2(uniform(count, channels) * options.gamma)
    slope = sum(
        uniform(count, channels) * torch.linspace(-0.5, 0.5, n).view([-1 if k == axis else 1 for k in range(5)])
        for axis, n in enumerate(grids.shape[2:], start=2)
    )
    changed = changed * (1 + options.gain * uniform(count, channels) + options.bias * slope)
    sigma = options.noise * torch.rand(count, channels, 1, 1, 1, generator=rng)
    changed = changed + options.shift * uniform(count, channels) + sigma * torch.randn(grids.shape, generator=rng)
    lost = torch.randint(channels, (count,), generator=rng)
    keep = torch.ones(count, channels)
    keep[torch.arange(count), lost] = (torch.rand(count, generator=rng) >= options.drop_channel).float()
    return torch.where(covered, changed.clamp(0, 1), 0.0) * keep[..., None, None, None]
