"""The whole column labelled at once: which candidate is which disc.

Ranks count upwards from the sacrum: 0 = L5/S1, 4 = L1/L2. Every candidate is left out or given a rank; ranks rise
along the column, by one between neighbours or by more where a disc was missed. A forward-backward pass over these
choices gives the best labelling and the posterior probability of every (candidate, rank).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spine_engine.detection.candidates import Candidate

F64 = NDArray[np.float64]

RANKS = 9
"""Ranks told apart: L5/S1 (0) to T9/T10 and above (8), the bins of the detector above the sacrum."""

FULL_MASS_SHARE = 0.6
"""A candidate with this share of a typical disc's mass counts in full; discs have 0.7-1.4, facet joints < 0.4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabellingOptions:
    """Weights of the evidence. Units: natural-log odds unless said otherwise.

    Attributes:
        level_weight, level_fade: of the detector's level log probabilities: ``level_weight`` at L5/S1, less by a factor
            of e every ``level_fade`` ranks up. Levels are counted from the sacrum, and a look at the upper lumbar spine
            is often one off in a long or a short one: in all 4 of 69 held-out exams that equal weights named wrongly
            the lowest disc's own level was right. Weights 0.6-1.2 that fade over 1-3 ranks name all 69 rightly.
        spacing_mm, spacing_sd: expected distance of neighbouring discs (33-41 mm in the training exams, 25-30 at T10)
            and the relative deviation from this patient's own.
        bend_sd_deg: expected angle between the line joining two discs and the mean of their normals (2-8 degrees in the
            training exams; a facet joint or a sacral disc beside the column gives 25 and more).
        max_step: most ranks between two neighbours that are kept.
        gap_cost: of each disc missed between two found ones.
        unseen_cost: of each lumbar disc that should lie inside the picture but was not found.
        floor: smallest probability a bin can have.
        alternative: another numbering is told from this probability on (of 32 held-out exams the one that was named
            wrongly gave the right numbering 0.42; the others gave a wrong one at most 0.06, and one of them 0.21).
        series_discs, series_belief: a series that alone names at least so many discs otherwise, with this posterior on
            average, disagrees: two discs can be a chance, and a series at 0.5 does not know.
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
        emit: `(n, RANKS)` of keeping each candidate at each rank.
        step: `(n, n, max_step + 1)` of candidate j following i (above it) by so many ranks.
        between: `(n, n)` of leaving out what lies between i and j.
        start, end: `(n, RANKS)` of a candidate being the lowest, the highest that is kept.
    """

    emit: F64
    step: F64
    between: F64
    start: F64
    end: F64


@dataclass(frozen=True, eq=False)
class Labelling:
    """Best labelling of candidates, lowest first: `ranks[i]` of candidate i or -1, the posterior `(n, RANKS)` of each,
    and the log score `total` of all labellings together.
    """

    ranks: NDArray[np.int64]
    posterior: F64
    total: float
    column: Column


@dataclass(frozen=True, eq=False)
class Shifted:
    """The same discs named `shift` ranks higher: the probability of that, and the best such labelling `(n,)`."""

    shift: int
    probability: float
    ranks: NDArray[np.int64]


def typical_spacing_mm(positions: F64, default_mm: float) -> float:
    """Median distance of neighbours 18-55 mm apart, pulled towards `default_mm` by two more votes."""
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1) if len(positions) > 1 else np.zeros(0)
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
        places: `(n, 2)` their places in the sagittal plane, mm (down, back).
        directions: `(n, 2)` their directions anterior -> posterior in that plane (any length).
        in_picture: which of the places `(k, 2)` lie well inside the picture.
        options: weights.
    """
    n = len(candidates)
    emit, leave = _emissions(candidates, options)
    spacing = typical_spacing_mm(places, options.spacing_mm)
    step = _transitions(places, spacing, options) + _bends(places, directions, options)[:, :, None]
    skipped = np.concatenate([[0.0], np.cumsum(leave)])  # cost of leaving out candidates [0, i)
    start, end = (_unseen(places, side, spacing, in_picture, options) for side in (-1, 1))
    start = start + skipped[:n, None]
    end = end + (skipped[n] - skipped[1:])[:, None]
    return labelled(Column(emit, step, np.triu(skipped[None, :n] - skipped[1:, None], 1), start, end))


def labelled(column: Column) -> Labelling:
    """Best labelling of a column, and the posterior over all labellings."""
    total, passing, ranks = _weighed(column)
    return Labelling(ranks, np.exp(passing - total), total, column)


def shifted(labelling: Labelling, shift: int) -> Shifted:
    """Return the labelling moved by `shift` ranks: every labelled disc keeps that rank, or is left out.

    Its probability is exact, the sum over all such labellings. The mean over discs of `posterior[rank + shift]` would
    also count labellings that move a part of the column, because a disc was missed inside it; those ask where a disc
    is, not what the column is called. A candidate that the best labelling left out is free: below the lowest disc it
    may become L5/S1.
    """
    column, ranks = labelling.column, labelling.ranks
    emit = column.emit.copy()
    for i in np.flatnonzero(ranks >= 0):
        emit[i, np.arange(RANKS) != ranks[i] + shift] = -np.inf
    total, _, best = _weighed(replace(column, emit=emit))
    return Shifted(shift, float(np.exp(total - labelling.total)), best)


def _emissions(candidates: Sequence[Candidate], options: LabellingOptions) -> tuple[F64, F64]:
    """Log scores of keeping each candidate at each rank `(n, RANKS)` and of leaving it out `(n,)`."""
    mass = np.array([c.mass_mm for c in candidates])
    whole = np.clip(mass / (FULL_MASS_SHARE * np.median(np.sort(mass)[-5:])), 0.0, 1.0)
    peak = np.clip(np.array([c.peak for c in candidates]) * whole, 0.02, 0.98)
    log_level = np.array([c.log_level for c in candidates])
    weight = options.level_weight * np.exp(-_expected_rank(log_level) / options.level_fade)
    log_level = np.maximum(log_level, np.log(options.floor) * 2)
    emit = weight[:, None] * log_level[:, 1:] + np.log(np.clip(2.0 * peak, 0.0, 0.98))[:, None]
    sacral = np.maximum(log_level[:, 0], np.log(0.1))
    leave = np.log(1.0 - np.clip(1.3 * peak, 0.02, 0.97)) + weight * sacral
    return emit, leave


def _expected_rank(log_level: F64) -> F64:
    """Mean rank `(n,)` under each candidate's own level bins, 0 for the sacrum too: how far it lies from there."""
    share = np.exp(log_level - log_level.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    return np.asarray(share @ np.maximum(np.arange(-1, RANKS), 0))


def _weighed(column: Column) -> tuple[float, F64, NDArray[np.int64]]:
    """Log score of all labellings, of those that keep each candidate at each rank `(n, RANKS)`, and the best one."""
    from spine_engine.detection.kernels import weigh_column  # numba: only a run should pay

    forward, backward = column.start + column.emit, column.end.copy()
    best, came = forward.copy(), np.full((*forward.shape, 2), -1)
    weigh_column(forward, backward, best, came, column.emit, column.step, column.between)
    ranks = np.full(len(best), -1)
    last, rank = divmod(int(np.argmax(best + column.end)), RANKS)
    while last >= 0:
        ranks[last] = rank
        last, rank = came[last, rank].tolist()
    return float(np.logaddexp.reduce(forward + column.end, axis=None)), forward + backward, ranks


def _transitions(places: F64, spacing: float, options: LabellingOptions) -> F64:
    """Log score `(n, n, max_step + 1)` of candidate j following i (above it) by `step` ranks."""
    steps = np.arange(1, options.max_step + 1)
    line = places[None, :, :] - places[:, None, :]
    distance = np.hypot(line[..., 0], line[..., 1])
    z = (distance[..., None] / (steps * spacing) - 1.0) / options.spacing_sd
    score = np.full((len(places), len(places), options.max_step + 1), -np.inf)
    score[:, :, 1:] = -0.5 * np.minimum(z * z, 60.0) - options.gap_cost * (steps - 1)
    score[np.tri(len(places), dtype=np.bool_)] = -np.inf
    return score


def _bends(places: F64, directions: F64, options: LabellingOptions) -> F64:
    """Log score `(n, n)` of the angle between the line from disc i up to disc j and the mean of their normals."""
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    unit = np.where(length > 0.1, directions / np.maximum(length, 1e-6), np.array([0.0, 1.0]))
    normals = np.stack([-unit[:, 1], unit[:, 0]], axis=1)  # up, where directions point back
    line = places[None, :, :] - places[:, None, :]
    mean = normals[None, :, :] + normals[:, None, :]
    cosine = (line * mean).sum(-1) / np.maximum(np.linalg.norm(line, axis=-1) * np.linalg.norm(mean, axis=-1), 1e-6)
    z = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))) / options.bend_sd_deg
    result: F64 = -0.5 * np.minimum(z * z, 30.0)
    return result


def _unseen(
    places: F64,
    side: int,
    spacing: float,
    in_picture: Callable[[F64], NDArray[np.bool_]],
    options: LabellingOptions,
) -> F64:
    """Cost `(n, RANKS)` of the discs that should be seen between each candidate, taken as the last on its `side`, and
    L5/S1 (-1) or L1/L2 (+1).
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
    seen = np.concatenate([np.zeros((len(places), 1)), np.cumsum(shown, axis=1)], axis=1)
    result: F64 = -options.unseen_cost * np.take(seen, missing, axis=1)
    return result
