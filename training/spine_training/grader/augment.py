"""Random changes of grids during training, as scanners, protocols, planes and the sides of a patient vary.

Grids are ``(C, D, H, W)`` float32 in [0, 1], 0 where nothing was imaged; W runs from the patient's right to left. The
changes are TorchIO's. Each channel is an image of its own, so that all share one motion and each has its own contrast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torchio
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """Chance and size of the changes of grids; a chance of 0 leaves a change out.

    Attributes:
        mirror: chance that a grid is mirrored left to right and its sides' grades exchanged.
        drop_channel: chance that one channel of a grid is emptied, as if the series were missing.
        affine: chance of a motion: up to ``rotation_deg`` and ``shift_mm`` about and along each axis, and of another
            size by up to ``scale``.
        anisotropy: chance that the channels lose resolution along an axis, as thick slices do.
        gamma: chance of another intensity curve, an exponent of up to ``exp(log_gamma)``.
        bias_field: chance of a coil's slow brightness changes.
        ghosting: chance of the echoes that motion leaves along an axis.
        noise: chance of white noise, of a standard deviation of up to ``noise_sd``.
    """

    mirror: float = 0.5
    drop_channel: float = 0.12
    affine: float = 0.25
    anisotropy: float = 0.1
    gamma: float = 0.5
    bias_field: float = 0.15
    ghosting: float = 0.1
    noise: float = 0.5
    rotation_deg: float = 5.0
    shift_mm: float = 1.5
    scale: float = 0.08
    log_gamma: float = 0.28
    noise_sd: float = 0.04


NOTHING = AugmentOptions(
    mirror=0,
    drop_channel=0,
    affine=0,
    anisotropy=0,
    gamma=0,
    bias_field=0,
    ghosting=0,
    noise=0,
)
"""Grids as they are."""


def augment(
    grid: Tensor,
    labels: Sequence[Tensor],
    mirrored_heads: Sequence[int],
    spacing_mm: tuple[float, float, float],
    options: AugmentOptions,
    seed: int,
) -> tuple[Tensor, list[Tensor]]:
    """Return a changed copy of ``grid`` and its ``labels`` (each ``(heads,)``), sides exchanged where it was mirrored.

    The same ``seed`` gives the same change; the caller's random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draw = torch.rand(2)
        if draw[0] < options.mirror:
            grid = grid.flip(-1)
            labels = [label[list(mirrored_heads)] for label in labels]
        moved = _applied(_moves(options), grid, spacing_mm)
        tinted = _applied(
            _contrasts(options),
            moved,
            spacing_mm,
        ).clamp(0, 1)
        changed = torch.where(
            moved > 0, tinted, 0.0
        )  # holes, where nothing was imaged, stay empty
        if draw[1] < options.drop_channel:
            changed = changed.clone()
            changed[torch.randint(len(changed), ())] = 0
    return changed, list(labels)


@lru_cache(maxsize=4)
def _moves(options: AugmentOptions) -> torchio.Compose:
    affine = torchio.RandomAffine(
        scales=options.scale,
        degrees=options.rotation_deg,
        translation=options.shift_mm,
        p=options.affine,
    )
    thick = torchio.RandomAnisotropy(
        axes=(0, 1, 2),
        downsampling=(1.3, 2.5),
        p=options.anisotropy,
    )
    return torchio.Compose([affine, thick])


@lru_cache(maxsize=4)
def _contrasts(options: AugmentOptions) -> torchio.Compose:
    return torchio.Compose(
        [
            torchio.RandomGamma(
                log_gamma=(-options.log_gamma, options.log_gamma),
                p=options.gamma,
            ),
            torchio.RandomBiasField(
                coefficients=0.2,
                order=2,
                p=options.bias_field,
            ),
            torchio.RandomGhosting(
                num_ghosts=(2, 6),
                intensity=(0.1, 0.4),
                p=options.ghosting,
            ),
            torchio.RandomNoise(
                std=(0, options.noise_sd),
                p=options.noise,
            ),
        ]
    )


def _applied(
    transform: torchio.Compose,
    grid: Tensor,
    spacing_mm: tuple[float, float, float],
) -> Tensor:
    affine = np.diag([*spacing_mm, 1.0])
    image: Any = torchio.ScalarImage
    images = {
        f"channel_{c}": image(
            tensor=grid[c : c + 1],
            affine=affine,
        )
        for c in range(len(grid))
    }
    changed: Any = transform(torchio.Subject(images))
    return torch.cat([changed[name].data for name in images]).float()
