"""The report of ``spine-engine evaluate``, computed from arrays, and the comparison of two predictions.

Intervals are percentiles of a bootstrap over studies: a study is drawn with all its rows, because they belong to one
patient and one reader. Every part of the metric is a ratio of two sums over studies, so a thousand resamples are one
matrix product of how often each study was drawn with its sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from spine_engine.anatomy import CONDITIONS, LEVELS, SEVERITIES
from spine_training.arrays import F64, I64
from spine_training.evaluation.reliability import (
    CUTS,
    Bin,
    calibration_error,
    calibration_error_unweighted,
    confusion,
    expected_error,
    reliability,
    reliability_unweighted,
)
from spine_training.metric import (
    GROUPS,
    MISSING,
    PARTS,
    Score,
    official_metric,
    prior_probabilities,
    row_losses,
    study_sums,
)

FIGURES: Final = ("metric", *PARTS)
"""The metric and its four parts, in the order of their columns in a bootstrap."""

COVERAGE: Final = (2.5, 97.5)
"""Percentiles of the 95 % interval."""

_CHUNK: Final = 250
"""Resamples drawn at once: with RSNA's 1,975 studies their counts are 4 MB."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One condition at one level: weighted log loss (None without a label), and labels per grade."""

    condition: str
    level: str
    log_loss: float | None
    labels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """One thing predicted: its reliability curve and error, as the metric weighs rows and unweighted."""

    calibration_error: float
    calibration_error_unweighted: float
    reliability: tuple[Bin, ...]
    reliability_unweighted: tuple[Bin, ...]


@dataclass(frozen=True, kw_only=True)
class GroupReport(Curves):
    """One condition group: the curves of its most probable grade, and more.

    ``confusion`` counts rows: ``[true grade][most probable grade]``. ``cuts`` holds the curves of each of ``CUTS``.
    """

    confusion: tuple[tuple[int, ...], ...]
    cuts: dict[str, Curves]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The scores, calibration and confusion of predictions.

    Attributes:
        studies, labels: number of scored studies and labelled rows.
        scores: the metric and its parts, each with its interval.
        prior, uniform: scores of the weighted prior and of 1/3, 1/3, 1/3 on the same truth.
        calibration_error: error of all rows, weighed 1 / 2 / 4 as the metric weighs them.
        calibration_error_unweighted: error of all rows alike, the weights divided out of the probabilities.
        groups: report of each condition group.
        cells: figures of each condition and level, in the order of ``predictions.csv``.
    """

    studies: int
    labels: int
    scores: dict[str, Estimate]
    prior: Score
    uniform: Score
    calibration_error: float
    calibration_error_unweighted: float
    groups: dict[str, GroupReport]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First score minus second, with its interval; negative where the first is better.

    ``first_better`` is the share of resamples in which the first has the lower loss; a tie counts half.
    """

    first: float
    second: float
    difference: Estimate
    first_better: float


def evaluate_arrays(
    probabilities: F64,
    grades: I64,
    *,
    resamples: int,
    seed: int,
) -> Report:
    """Return the report of predictions ``(S, 5, 5, 3)`` on grades ``(S, 5, 5)``.

    Raises:
        ValueError: as ``official_metric``.
    """
    studies = len(grades)
    score, prior = (
        official_metric(rows, grades)
        for rows in (probabilities, prior_probabilities(studies))
    )
    drawn = _resampled(
        *study_sums(probabilities, grades),
        resamples,
        seed,
    )
    scores = {
        name: _estimate(getattr(score, name), drawn[:, k])
        for k, name in enumerate(FIGURES)
    }
    return Report(
        studies=studies,
        labels=int((grades != MISSING).sum()),
        scores=scores,
        prior=prior,
        uniform=official_metric(
            np.full_like(probabilities, 1 / len(SEVERITIES)),
            grades,
        ),
        calibration_error=calibration_error(probabilities, grades),
        calibration_error_unweighted=calibration_error_unweighted(
            probabilities, grades
        ),
        groups={
            name: _group(
                probabilities[..., list(heads), :],
                grades[..., list(heads)],
            )
            for name, heads in GROUPS.items()
        },
        cells=tuple(_cells(probabilities, grades)),
    )


def compare_arrays(
    first: F64,
    second: F64,
    grades: I64,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Difference]:
    """Compare two predictions ``(S, 5, 5, 3)`` on the same grades: per figure, drawing the same studies for both.

    Raises:
        ValueError: as ``official_metric``.
    """
    scores = [
        official_metric(probabilities, grades) for probabilities in (first, second)
    ]
    sums = [study_sums(probabilities, grades) for probabilities in (first, second)]
    drawn = [_resampled(losses, weights, resamples, seed) for losses, weights in sums]
    gaps = drawn[0] - drawn[1]
    values = [[getattr(score, name) for name in FIGURES] for score in scores]
    better = (gaps < 0).mean(axis=0) + 0.5 * (gaps == 0).mean(axis=0)
    return {
        name: Difference(
            first=values[0][k],
            second=values[1][k],
            difference=_estimate(
                values[0][k] - values[1][k],
                gaps[:, k],
            ),
            first_better=float(better[k]),
        )
        for k, name in enumerate(FIGURES)
    }


def _resampled(
    losses: F64,
    weights: F64,
    resamples: int,
    seed: int,
) -> F64:
    """Return the figures ``(<= resamples, 5)`` of drawn studies, without draws in which a part had no label."""
    rng, studies = np.random.default_rng(seed), len(losses)
    parts = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        counts = rng.multinomial(
            studies,
            np.full(studies, 1 / studies),
            size=size,
        ).astype(np.float64)
        drawn = counts @ weights
        usable = (drawn > 0).all(axis=1)
        parts.append(
            _figures(
                (counts @ losses)[usable],
                drawn[usable],
            )
        )
    return np.concatenate(parts)


def _figures(losses: F64, weights: F64) -> F64:
    """Return ``FIGURES`` ``(n, 5)`` of summed losses and weights ``(n, 4)``."""
    parts = losses / weights
    return np.concatenate(
        [parts.mean(axis=1, keepdims=True), parts],
        axis=1,
    )


def _estimate(value: float, drawn: F64) -> Estimate:
    low, high = np.percentile(drawn, COVERAGE)
    return Estimate(
        value=float(value),
        low=float(low),
        high=float(high),
    )


def _group(probabilities: F64, grades: I64) -> GroupReport:
    return GroupReport(
        confusion=tuple(
            tuple(map(int, row)) for row in confusion(probabilities, grades)
        ),
        cuts={
            name: Curves(**_curves(probabilities, grades, cut))
            for name, cut in CUTS.items()
        },
        **_curves(probabilities, grades, None),
    )


def _curves(probabilities: F64, grades: I64, cut: int | None) -> dict[str, Any]:
    """Return the fields of ``Curves``."""
    weighted, plain = (
        reliability(probabilities, grades, cut),
        reliability_unweighted(probabilities, grades, cut),
    )
    return {
        "calibration_error": expected_error(weighted),
        "calibration_error_unweighted": expected_error(plain),
        "reliability": weighted,
        "reliability_unweighted": plain,
    }


def _cells(probabilities: F64, grades: I64) -> Iterator[Cell]:
    losses, weights = row_losses(probabilities, grades)
    loss, weight = (losses * weights).sum(axis=0), weights.sum(axis=0)
    for c, condition in enumerate(CONDITIONS):
        for v, level in enumerate(LEVELS):
            yield Cell(
                condition=str(condition),
                level=str(level),
                log_loss=float(loss[v, c] / weight[v, c]) if weight[v, c] else None,
                labels=tuple(
                    int((grades[:, v, c] == grade).sum())
                    for grade in range(len(SEVERITIES))
                ),
            )
