"""Reliability of probabilities: curves, expected calibration error, confusion.

The metric weighs a row by its true grade, so whoever minimises it predicts ``weight * P(grade)``, normalised, and not
``P(grade)``. Such probabilities can be asked two questions. *As the metric weighs them*: rows count 1 / 2 / 4 by their
true grade, and predictions are taken as they are. *Unweighted*: rows count alike, and the weights are divided out of
the predictions first. A model that is perfect in the metric's sense has error 0 in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from spine_engine.anatomy import SEVERITIES
from spine_training.arrays import F64, I64, Integers
from spine_training.metric import MISSING, SEVERITY_WEIGHTS

BINS: Final = 15
"""Bins of the expected calibration error, equally wide in confidence (Guo et al. 2017)."""

CUTS: Final = {"at_least_moderate": 1, "severe": 2}
"""The two cuts through the three grades: name and lowest grade above the cut. What is predicted there is the chance of
that grade or a worse one."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Rows whose predicted probability lies in ``[lower, upper)``; the last bin holds 1 too.

    What is predicted is the most probable grade or, at a cut of ``CUTS``, its grade or a worse one.

    Attributes:
        lower, upper: edges of the bin.
        rows: labelled rows in it.
        weight: sum of their weights.
        confidence: their weighted mean probability.
        observed: weighted share of them for which the prediction came true.
    """

    lower: float
    upper: float
    rows: int
    weight: float
    confidence: float
    observed: float


def unweighted(probabilities: F64) -> F64:
    """Divide the metric's weights 1 / 2 / 4 out of probabilities ``(..., 3)`` that were trained with them."""
    plain = probabilities / np.array(SEVERITY_WEIGHTS)
    return np.asarray(plain / plain.sum(-1, keepdims=True))


def reliability(
    probabilities: F64, grades: Integers, cut: int | None = None
) -> tuple[Bin, ...]:
    """Return the reliability curve as the metric weighs rows, without its empty bins.

    Args:
        probabilities: ``(..., 3)``, rows summing to 1.
        grades: ``(...)``, 0 / 1 / 2 or ``MISSING``; rows without a label are left out.
        cut: a value of ``CUTS``: judge the chance of this grade or a worse one; None: that of the most probable grade.
    """
    known = grades != MISSING
    return _curve(
        probabilities[known],
        grades[known],
        np.asarray(SEVERITY_WEIGHTS)[grades[known]],
        cut,
    )


def reliability_unweighted(
    probabilities: F64, grades: Integers, cut: int | None = None
) -> tuple[Bin, ...]:
    """Return the reliability curve of rows that count alike, the metric's weights divided out of the probabilities."""
    known = grades != MISSING
    return _curve(
        unweighted(probabilities[known]),
        grades[known],
        np.ones(known.sum()),
        cut,
    )


def expected_error(curve: tuple[Bin, ...]) -> float:
    """Return the expected calibration error of a curve: its weighted mean ``|confidence - observed|``."""
    return sum(b.weight * abs(b.confidence - b.observed) for b in curve) / sum(
        b.weight for b in curve
    )


def calibration_error(probabilities: F64, grades: Integers) -> float:
    """Return the expected calibration error as the metric weighs rows; arguments are those of ``reliability``."""
    return expected_error(reliability(probabilities, grades))


def calibration_error_unweighted(probabilities: F64, grades: Integers) -> float:
    """Return the expected calibration error of rows that count alike, the metric's weights divided out."""
    return expected_error(reliability_unweighted(probabilities, grades))


def confusion(probabilities: F64, grades: Integers) -> I64:
    """Count labelled rows by true grade (rows of the result) and most probable grade (columns), ``(3, 3)``."""
    known = grades != MISSING
    cells = grades[known] * len(SEVERITIES) + probabilities[known].argmax(axis=-1)
    return np.bincount(cells, minlength=len(SEVERITIES) ** 2).reshape(
        len(SEVERITIES), -1
    )


def _curve(
    probabilities: F64,
    grades: Integers,
    weights: F64,
    cut: int | None,
) -> tuple[Bin, ...]:
    """Bin rows ``(N, 3)`` by what they predict: their top probability, or that of the grades from ``cut`` on."""
    if cut is None:
        predicted = probabilities.max(axis=-1)
        came_true = probabilities.argmax(axis=-1) == grades
    else:
        predicted = probabilities[:, cut:].sum(axis=-1)
        came_true = grades >= cut
    places = np.minimum(
        (predicted * BINS).astype(int),
        BINS - 1,
    )
    rows = np.bincount(places, minlength=BINS)
    weight, sure, hits = (
        np.bincount(places, weights * x, BINS) for x in (1.0, predicted, came_true)
    )
    return tuple(
        Bin(
            lower=k / BINS,
            upper=(k + 1) / BINS,
            rows=int(rows[k]),
            weight=float(weight[k]),
            confidence=float(sure[k] / weight[k]),
            observed=float(hits[k] / weight[k]),
        )
        for k in np.flatnonzero(rows)
    )
