"""The official metric of the RSNA 2024 lumbar-spine challenge, on arrays.

Rows weigh 1 / 2 / 4 by their true severity. The metric is the mean of four numbers: the weighted log loss of canal,
foraminal (left and right pooled) and subarticular (pooled) rows, and the binary log loss of "any severe canal in the
study", whose prediction is the largest predicted ``severe`` of the five levels and whose weight is the largest row
weight. A row without a label does not exist: it has no part in the largest ``severe`` either, and a study without any
canal label has no such row. Probabilities are clipped at the resolution of float64, as in scikit-learn's ``log_loss``,
which the challenge calls. Source: its evaluation page. Floors of the training labels: uniform 0.9994, weighted prior
0.7900.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from spine_engine.anatomy import CONDITIONS, LEVELS, SEVERITIES, Condition, prior
from spine_training.arrays import F64, Integers

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

PARTS: Final = (*GROUPS, "any_severe_canal")
"""The four numbers whose mean is the metric, in this order wherever they are an axis."""

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, kw_only=True)
class Score:
    """The official metric and its four parts."""

    metric: float
    canal: float
    foraminal: float
    subarticular: float
    any_severe_canal: float


def official_metric(probabilities: F64, grades: Integers) -> Score:
    """Score predictions as the challenge does.

    Args:
        probabilities: ``(studies, 5 levels, 5 conditions, 3)``; rows are normalised here, as the challenge does.
        grades: ``(studies, 5 levels, 5 conditions)``, 0 / 1 / 2 or ``MISSING``.

    Raises:
        ValueError: the shapes disagree, a probability is negative or not finite, a row is all zeros, a grade is out of
            range, or one of the three groups has no label at all.
    """
    losses, weights = study_sums(probabilities, grades)
    return score_of_sums(
        losses.sum(axis=0),
        weights.sum(axis=0),
    )


def score_of_sums(losses: F64, weights: F64) -> Score:
    """Return the score of weighted losses ``(4,)`` and weights ``(4,)`` summed over studies, in the order of ``PARTS``.

    Raises:
        ValueError: a part has no weight.
    """
    for part, weight in zip(PARTS, weights, strict=True):
        if weight == 0:
            raise ValueError(
                f"no labelled row for {part.replace('_', ' ')}: the metric is not defined"
            )
    parts = losses / weights
    return Score(
        metric=float(parts.mean()),
        **dict(zip(PARTS, map(float, parts), strict=True)),
    )


def study_sums(probabilities: F64, grades: Integers) -> tuple[F64, F64]:
    """Return every study's weighted losses and weights for the four parts: two arrays ``(studies, 4)``.

    A part's score is the sum of its losses over the sum of its weights, so the score of any choice of studies, a
    bootstrap's among them, follows from these. Arguments and errors are those of ``official_metric``; a study without a
    label of a part has weight 0 there.
    """
    losses, weights = row_losses(probabilities, grades)
    part_losses = [
        (losses * weights)[..., list(heads)].sum(axis=(1, 2))
        for heads in GROUPS.values()
    ]
    part_weights = [
        weights[..., list(heads)].sum(axis=(1, 2)) for heads in GROUPS.values()
    ]
    canal, severe = GROUPS["canal"][0], len(SEVERITIES) - 1
    labelled = grades[..., canal] != MISSING
    any_severe = (grades[..., canal] == severe).any(axis=1)
    rows = probabilities[..., canal, severe] / probabilities[..., canal, :].sum(axis=-1)
    predicted = np.clip(
        np.where(labelled, rows, 0.0).max(axis=1),
        _EPS,
        1 - _EPS,
    )
    binary = -np.log(np.where(any_severe, predicted, 1 - predicted))
    weight = weights[..., canal].max(axis=1)
    return np.stack([*part_losses, binary * weight], axis=1), np.stack(
        [*part_weights, weight], axis=1
    )


def row_losses(probabilities: F64, grades: Integers) -> tuple[F64, F64]:
    """Return each row's log loss and weight (0 without a label), both ``(studies, 5 levels, 5 conditions)``.

    Arguments and errors are those of ``official_metric``.
    """
    _check(probabilities, grades)
    labelled = grades != MISSING
    rows = probabilities / probabilities.sum(-1, keepdims=True)
    weights = np.where(
        labelled,
        np.asarray(SEVERITY_WEIGHTS)[grades],
        0.0,
    )
    chosen = np.take_along_axis(
        rows,
        np.where(labelled, grades, 0)[..., None],
        axis=-1,
    )[..., 0]
    return -np.log(np.clip(chosen, _EPS, 1 - _EPS)), weights


def prior_probabilities(studies: int) -> F64:
    """Return the weighted prior for every row, ``(studies, 5 levels, 5 conditions, 3)``: the floor to beat."""
    table = np.array(
        [[prior(condition, level) for condition in CONDITIONS] for level in LEVELS]
    )
    return np.broadcast_to(table, (studies, *table.shape)).copy()


def _check(probabilities: F64, grades: Integers) -> None:
    expected = (*grades.shape, len(SEVERITIES))
    if (
        grades.shape[1:] != (len(LEVELS), len(CONDITIONS))
        or probabilities.shape != expected
        or not len(grades)
    ):
        got = f"probabilities {probabilities.shape} and grades {grades.shape}"
        raise ValueError(
            f"got {got}; want (S, 5, 5, 3) and (S, 5, 5) with at least one study"
        )
    if not np.isfinite(probabilities).all() or probabilities.min() < 0:
        raise ValueError("probabilities must be finite and not negative")
    if probabilities.sum(axis=-1).min() == 0:
        raise ValueError("the three probabilities of a row must not all be 0")
    if grades.min() < MISSING or grades.max() >= len(SEVERITIES):
        raise ValueError(
            f"grades must be 0, 1, 2 or {MISSING} where missing, got {grades.min()} .. {grades.max()}"
        )
