"""Labels the whole column at once: decides which candidate is which disc.

Ranks count upwards from the sacrum: 0 = L5/S1, 4 = L1/L2. Every candidate is left out or gets a rank; ranks rise along
the column, by one between neighbours or by more where a disc was missed. A forward-backward pass over these choices
gives the best labelling and the posterior probability of every (candidate, rank).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spine_engine.detection.candidates import Candidate

F64 = NDArray[np.float64]

RANKS = 9
"""Number of ranks: L5/S1 (0) to T9/T10 and above (8), the detector's bins above the sacrum."""

FULL_MASS_SHARE = 0.6
"""Share of a typical disc's mass from which a candidate counts in full; discs have 0.7-1.4, facet joints < 0.4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabellingOptions:
    """Weights of the evidence, in natural-log odds unless stated otherwise.

    Attributes:
        level_weight, level_fade: weight of the detector's level log probabilities: ``level_weight`` at L5/S1, less by a
            factor of e every ``level_fade`` ranks up. Levels are counted from the sacrum, and the detector is often one
            level off in the upper part of a long or a short lumbar spine: equal weights named 4 of 69 held-out exams
            wrongly, and in all 4 the lowest disc's own level was right. Weights 0.6-1.2 that fade over 1-3 ranks name
            all 69 correctly.
        spacing_mm, spacing_sd: expected distance of neighbouring discs (33-41 mm in the training exams, 25-30 at T10)
            and the relative deviation from this patient's own.
        bend_sd_deg: expected angle between the line joining two discs and the mean of their normals (2-8 degrees in the
            training exams; a facet joint or a sacral disc beside the column gives 25 and more).
        max_step: largest number of ranks between two neighbouring labelled discs.
        gap_cost: cost of each disc missed between two detected ones.
        unseen_cost: cost of each lumbar disc that should lie inside the picture but was not detected.
        floor: smallest probability that a bin can have.
        alternative: smallest probability at which another numbering is reported (of 32 held-out exams the one that was
            named wrongly gave the right numbering 0.42; the others gave a wrong one at most 0.06, one of them 0.21).
        series_discs, series_belief: number of discs that a series alone must name differently, and the mean posterior
            it must have, to disagree: two discs can be chance, and a series at 0.5 does not know.
    """

    level_weight: float = 0.9
    level_fade: float = 2.0
    spacing_mm: float = 35.0
    spacing_sd: float = 0.14
    bend_sd_deg: float = 12.0
    max_step: int = 3
    gap_cost: float = 2.5
    unseen_cost: float = 1.5
    floor: float = 0.003
    alternative: float = 0.1
    series_discs: int = 3
    series_belief: float = 0.6


@dataclass(frozen=True, eq=False)
class Column:
    """Log scores of every way to label a column of n candidates, lowest first.

    Attributes:
        emit: `(n, RANKS)`, the score of keeping each candidate at each rank.
        step: `(n, n, max_step + 1)`, the score of candidate j following i (above it) by that many ranks.
        between: `(n, n)`, the score of leaving out the candidates between i and j.
        start, end: `(n, RANKS)`, the score of a candidate being the lowest, the highest labelled one.
    """

    emit: F64
    step: F64
    between: F64
    start: F64
    end: F64


@dataclass(frozen=True, eq=False)
class Labelling:
    """The best labelling of candidates, lowest first.

    Attributes:
        ranks: `(n,)`, the rank of each candidate, -1 for one that is left out.
        posterior: `(n, RANKS)`, the probability of each candidate at each rank.
        total: log score of all labellings together.
        column: the scores that were labelled.
    """

    ranks: NDArray[np.int64]
    posterior: F64
    total: float
    column: Column


@dataclass(frozen=True, eq=False)
class Shifted:
    """The same discs named `shift` ranks higher: its probability, and the ranks `(n,)` of the best such labelling."""

    shift: int
    probability: float
    ranks: NDArray[np.int64]


def typical_spacing_mm(positions: F64, default_mm: float) -> float:
    """Return the median distance of neighbours 18-55 mm apart; two more votes pull it towards `default_mm`."""
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    steps = steps[(steps > 18.0) & (steps < 55.0)]
    return float(np.median(np.concatenate([steps, [default_mm, default_mm]])))


def label_column(
    candidates: Sequence[Candidate],
    places: F64,
    directions: F64,
    in_picture: Callable[[F64], NDArray[np.bool_]],
    options: LabellingOptions,
) -> Labelling:
    """Label candidates that are sorted from the sacrum upwards.

    Args:
        candidates: lowest first, at least one.
        places: `(n, 2)`, the candidates' places in the sagittal plane, mm (down, back).
        directions: `(n, 2)`, the candidates' directions anterior -> posterior in that plane, of any length.
        in_picture: tells which places `(k, 2)` lie well inside the picture.
        options: weights of the evidence.
    """
    n = len(candidates)
    emit, leave = _emissions(candidates, options)
    spacing = typical_spacing_mm(places, options.spacing_mm)
    step = (
        _transitions(places, spacing, options)
        + _bends(places, directions, options)[:, :, None]
    )
    skipped = np.concatenate(
        [[0.0], np.cumsum(leave)]
    )  # cost of leaving out candidates [0, i)
    between = np.triu(skipped[None, :n] - skipped[1:, None], 1)
    start = _unseen(places, -1, spacing, in_picture, options) + skipped[:n, None]
    end = (
        _unseen(places, 1, spacing, in_picture, options)
        + (skipped[n] - skipped[1:])[:, None]
    )
    return labelled(Column(emit, step, between, start, end))


def labelled(column: Column) -> Labelling:
    """Return the best labelling of a column, and the posterior over all labellings."""
    total, kept_score, ranks = _weighed(column)
    return Labelling(ranks, np.exp(kept_score - total), total, column)


def shifted(labelling: Labelling, shift: int) -> Shifted:
    """Return the labelling moved by `shift` ranks: every labelled disc gets its moved rank or is left out.

    The probability is exact, the sum over all such labellings. The mean over discs of `posterior[rank + shift]` would
    also count labellings that move only a part of the column, because a disc was missed inside it; those differ in
    where a disc is, not in how the column is numbered. A candidate that the best labelling left out is free: below the
    lowest disc it may become L5/S1.
    """
    ranks = labelling.ranks
    emit = labelling.column.emit.copy()
    for i in np.flatnonzero(ranks >= 0):
        emit[i, np.arange(RANKS) != ranks[i] + shift] = -np.inf
    total, _, best = _weighed(replace(labelling.column, emit=emit))
    return Shifted(shift, float(np.exp(total - labelling.total)), best)


def _emissions(
    candidates: Sequence[Candidate], options: LabellingOptions
) -> tuple[F64, F64]:
    """Return the log scores of keeping each candidate at each rank `(n, RANKS)` and of leaving it out `(n,)`."""
    mass = np.array([c.mass_mm for c in candidates])
    typical_mass = np.median(np.sort(mass)[-5:])
    fullness = np.clip(mass / (FULL_MASS_SHARE * typical_mass), 0.0, 1.0)
    peak = np.clip(np.array([c.peak for c in candidates]) * fullness, 0.02, 0.98)
    log_level = np.array([c.log_level for c in candidates])
    weight = options.level_weight * np.exp(
        -_expected_rank(log_level) / options.level_fade
    )
    log_level = np.maximum(log_level, np.log(options.floor) * 2)
    emit = (
        weight[:, None] * log_level[:, 1:]
        + np.log(np.clip(2.0 * peak, 0.0, 0.98))[:, None]
    )
    sacral = np.maximum(log_level[:, 0], np.log(0.1))
    leave = np.log(1.0 - np.clip(1.3 * peak, 0.02, 0.97)) + weight * sacral
    return emit, leave


def _expected_rank(log_level: F64) -> F64:
    """Return the mean rank `(n,)` under each candidate's own level bins; the sacrum counts as 0."""
    share = np.exp(log_level - log_level.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    return np.asarray(share @ np.maximum(np.arange(-1, RANKS), 0))


def _weighed(column: Column) -> tuple[float, F64, NDArray[np.int64]]:
    """Return the log score of all labellings, the log score `(n, RANKS)` of those that keep each candidate at each
    rank, and the ranks `(n,)` of the best one.
    """
    from spine_engine.detection.kernels import (
        weigh_column,
    )  # numba: only a run should pay

    forward = column.start + column.emit
    backward = column.end.copy()
    best = forward.copy()
    came = np.full((*forward.shape, 2), -1)
    weigh_column(
        forward, backward, best, came, column.emit, column.step, column.between
    )
    ranks = np.full(len(best), -1)
    last, rank = divmod(int(np.argmax(best + column.end)), RANKS)
    while last >= 0:
        ranks[last] = rank
        last, rank = came[last, rank].tolist()
    total = float(np.logaddexp.reduce(forward + column.end, axis=None))
    return total, forward + backward, ranks


def _transitions(places: F64, spacing: float, options: LabellingOptions) -> F64:
    """Return the log score `(n, n, max_step + 1)` of candidate j following i (above it) by `step` ranks."""
    steps = np.arange(1, options.max_step + 1)
    line = places[None, :, :] - places[:, None, :]
    distance = np.hypot(line[..., 0], line[..., 1])
    z = (distance[..., None] / (steps * spacing) - 1.0) / options.spacing_sd
    score = np.full((len(places), len(places), options.max_step + 1), -np.inf)
    score[:, :, 1:] = -0.5 * np.minimum(z * z, 60.0) - options.gap_cost * (steps - 1)
    score[np.tri(len(places), dtype=np.bool_)] = -np.inf
    return score


def _bends(places: F64, directions: F64, options: LabellingOptions) -> F64:
    """Return the log score `(n, n)` of the angle between the line from disc i up to j and the mean of their normals."""
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    unit = np.where(
        length > 0.1, directions / np.maximum(length, 1e-6), np.array([0.0, 1.0])
    )
    normals = np.stack(
        [-unit[:, 1], unit[:, 0]], axis=1
    )  # up, where directions point back
    line = places[None, :, :] - places[:, None, :]
    mean = normals[None, :, :] + normals[:, None, :]
    lengths = np.linalg.norm(line, axis=-1) * np.linalg.norm(mean, axis=-1)
    cosine = (line * mean).sum(-1) / np.maximum(lengths, 1e-6)
    z = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))) / options.bend_sd_deg
    return np.asarray(-0.5 * np.minimum(z * z, 30.0))


def _unseen(
    places: F64,
    side: int,
    spacing: float,
    in_picture: Callable[[F64], NDArray[np.bool_]],
    options: LabellingOptions,
) -> F64:
    """Return the log score `(n, RANKS)` of the discs that the picture should show beyond each candidate.

    The candidate is taken as the last one on its `side`; the discs are those down to L5/S1 (-1) or up to L1/L2 (+1).
    """
    missing = np.arange(RANKS) if side < 0 else np.maximum(0, 4 - np.arange(RANKS))
    reach = np.arange(1, missing.max() + 1)[:, None]
    direction = np.full_like(places, [-float(side), 0.0])
    if side < 0:
        direction[:-1] = places[:-1] - places[1:]
    else:
        direction[1:] = places[1:] - places[:-1]
    direction /= np.maximum(np.hypot(*direction.T), 1.0)[:, None]
    expected = places[:, None] + direction[:, None] * spacing * reach
    shown = in_picture(expected.reshape(-1, 2)).reshape(len(places), -1)
    seen = np.concatenate(
        [np.zeros((len(places), 1)), np.cumsum(shown, axis=1)], axis=1
    )
    return np.asarray(-options.unseen_cost * np.take(seen, missing, axis=1))
