"""The official metric of the RSNA 2024 lumbar-spine challenge, on arrays.

Rows weigh 1 / 2 / 4 by their true severity. The metric is the mean of four numbers: the weighted log loss of canal,
foraminal (left and right pooled) and subarticular (pooled) rows, and the binary log loss of "any severe canal in the
study", whose prediction is the largest predicted ``severe`` of the five levels and whose weight is the largest row
weight. Source: the challenge's evaluation page; floors of the training labels: uniform 0.9994, weighted prior 0.7900.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import CONDITIONS, LEVELS, SEVERITIES, Condition, prior

MISSING: Final = -1
"""The grade of a row without a label; such rows count nowhere."""

SEVERITY_WEIGHTS: Final = (1.0, 2.0, 4.0)

GROUPS: Final[dict[str, tuple[int, ...]]] = {
    "canal": (CONDITIONS.index(Condition.SPINAL_CANAL_STENOSIS),),
    "foraminal": (
        CONDITIONS.index(Condition.LEFT_NEURAL_FORAMINAL_NARROWING),
        CONDITIONS.index(Condition.RIGHT_NEURAL_FORAMINAL_NARROWING),
    ),
    "subarticular": (
        CONDITIONS.index(Condition.LEFT_SUBARTICULAR_STENOSIS),
        CONDITIONS.index(Condition.RIGHT_SUBARTICULAR_STENOSIS),
    ),
}
"""The three condition groups of the metric, as indices into ``CONDITIONS``."""

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, kw_only=True)
class Score:
    """The official metric and its four parts."""

    metric: float
    canal: float
    foraminal: float
    subarticular: float
    any_severe_canal: float


def official_metric(probabilities: NDArray[np.float64], grades: NDArray[np.integer]) -> Score:
    """Score predictions as the challenge does.

    Args:
        probabilities: ``(studies, 5 levels, 5 conditions, 3)``; rows are normalised here, as the challenge does.
        grades: ``(studies, 5 levels, 5 conditions)``, 0 / 1 / 2 or ``MISSING``.

    Raises:
        ValueError: the shapes disagree, a probability is negative or not finite, a grade is out of range, or one of
            the three groups has no label at all.
    """
    expected = (*grades.shape, len(SEVERITIES))
    if grades.shape[1:] != (len(LEVELS), len(CONDITIONS)) or probabilities.shape != expected:
        got = f"probabilities {probabilities.shape} and grades {grades.shape}"
        raise ValueError(f"got {got}; want (S, 5, 5, 3) and (S, 5, 5)")
    if not np.isfinite(probabilities).all() or probabilities.min() < 0:
        raise ValueError("probabilities must be finite and not negative")
    if grades.min() < MISSING or grades.max() >= len(SEVERITIES):
        raise ValueError(f"grades must be 0, 1, 2 or {MISSING} where missing, got {grades.min()} .. {grades.max()}")
    known = grades != MISSING
    rows = probabilities / probabilities.sum(-1, keepdims=True)
    weights = np.where(known, np.asarray(SEVERITY_WEIGHTS)[grades], 0.0)
    chosen = np.take_along_axis(rows, np.where(known, grades, 0)[..., None], axis=-1)[..., 0]
    losses = -np.log(np.clip(chosen, _EPS, 1 - _EPS))
    parts = {
        name: _weighted_mean(losses[..., list(heads)], weights[..., list(heads)], name)
        for name, heads in GROUPS.items()
    }
    canal = GROUPS["canal"][0]
    severe = len(SEVERITIES) - 1
    any_severe = (grades[..., canal] == severe).any(axis=1)
    predicted = np.clip(np.where(known[..., canal], rows[..., canal, severe], 0.0).max(axis=1), _EPS, 1 - _EPS)
    binary = -np.log(np.where(any_severe, predicted, 1 - predicted))
    any_loss = _weighted_mean(binary, weights[..., canal].max(axis=1), "any severe canal")
    return Score(metric=float(np.mean([*parts.values(), any_loss])), any_severe_canal=any_loss, **parts)


def prior_probabilities(studies: int) -> NDArray[np.float64]:
    """Return the weighted prior for every row, ``(studies, 5 levels, 5 conditions, 3)``: the floor to beat."""
    table = np.array([[prior(condition, level) for condition in CONDITIONS] for level in LEVELS])
    return np.broadcast_to(table, (studies, *table.shape)).copy()


def _weighted_mean(values: NDArray[np.float64], weights: NDArray[np.float64], name: str) -> float:
    total = float(weights.sum())
    if total == 0:
        raise ValueError(f"no labelled row for {name}: the metric is not defined")
    return float((values * weights).sum() / total)
