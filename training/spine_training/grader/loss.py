"""The graders' loss: cumulative-link likelihood, weighted and grouped as the official metric is."""

from __future__ import annotations

import numpy as np
import torch
from spacecutter.losses import cumulative_link_loss
from torch import Tensor

from spine_engine.anatomy import CONDITIONS
from spine_engine.phantom.severity import READER_THRESHOLDS
from spine_training.metric import GROUPS, MISSING, SEVERITY_WEIGHTS


def grading_loss(probabilities: Tensor, grades: Tensor) -> Tensor:
    """Return the mean over the three condition groups of the 1/2/4-weighted negative log likelihood.

    Args:
        probabilities: ``(N, heads, 3)`` float32, from the cumulative-link heads; condition major, level minor.
        grades: ``(N, heads)`` int64, 0 / 1 / 2, or ``MISSING`` for a row that must not count.

    Returns:
        A scalar; zero, with a gradient of zero, when no row of the batch has a label.
    """
    known = grades != MISSING
    target = grades.clamp(min=0)
    rows = cumulative_link_loss(
        probabilities.flatten(0, 1),
        target.flatten()[:, None],
        reduction="none",
        class_weights=np.asarray(SEVERITY_WEIGHTS),
    ).view_as(grades)
    weights = torch.tensor(SEVERITY_WEIGHTS, device=rows.device)[target] * known
    losses, weights = (
        (x * known).unflatten(1, (len(CONDITIONS), -1)) for x in (rows, weights)
    )
    groups = [
        losses[:, list(conditions)].sum()
        / weights[:, list(conditions)].sum().clamp(min=1.0)
        for conditions in GROUPS.values()
    ]
    return torch.stack(groups).mean()


def narrowing_loss(latents: Tensor, cutpoints: Tensor, narrowing: Tensor) -> Tensor:
    """Return the mean absolute error of the narrowing that latents imply; unknown narrowing does not count.

    A phantom's narrowing is known exactly. On the scale where the reader's two thresholds are a head's two cut-points,
    each latent is a narrowing; every grid then teaches, also those far from a threshold.

    Args:
        latents: ``(N, heads)``.
        cutpoints: ``(heads, 2)``; they set the scale and are not trained by this.
        narrowing: ``(N, heads)`` in [0, 1], NaN where only a grade is known.
    """
    low, high = cutpoints.detach().T
    scale = (high - low) / (READER_THRESHOLDS[1] - READER_THRESHOLDS[0])
    known = ~narrowing.isnan()
    error = (
        (latents - low) / scale + READER_THRESHOLDS[0] - narrowing.nan_to_num()
    ) * known
    mean: Tensor = error.abs().sum() / known.sum().clamp(min=1)
    return mean
