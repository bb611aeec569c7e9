"""The whole column labelled at once: which candidate is which disc.

Ranks count upwards from the sacrum: 0 = L5/S1, 4 = L1/L2. Every candidate is left out or given a rank; ranks rise
along the column, by one between neighbours or by more where a disc was missed. A forward-backward pass over these
choices gives the best labelling and the posterior probability of every (candidate, rank).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
        level_weight: of the detector's level log probabilities; discs of one exam err together, and 0.25-0.4 gave the
            confidence its lowest log loss on whole and cropped held-out exams (labels were the same from 0.15 to 0.6).
        spacing_mm, spacing_sd: expected distance of neighbouring discs (33-41 mm in the training exams, 25-30 at T10)
            and the relative deviation from this patient's own.
        bend_sd_deg: expected angle between the line joining two discs and the mean of their normals (2-8 degrees in the
            training exams; a facet joint or a sacral disc beside the column gives 25 and more).
        max_step: most ranks between two neighbours that are kept.
        gap_cost: of each disc missed between two found ones.
        unseen_cost: of each lumbar disc that should lie inside the picture but was not found.
        floor: smallest probability a bin can have.
    """

    level_weight: float = 0.3
    spacing_mm: float = 35.0
    spacing_sd: float = 0.14
    bend_sd_deg: float = 12.0
    max_step: int = 3
    gap_cost: float = 2.5
    unseen_cost: float = 1.5
    floor: float = 0.003


@dataclass(frozen=True, eq=False)
class Labelling:
    """Best labelling of candidates, lowest first: `ranks[i]` of candidate i or -1, and the posterior `(n, RANKS)`."""

    ranks: NDArray[np.int64]
    posterior: F64


def typical_spacing_mm(positions: F64, default_mm: float) -> float:
    """Median distance of neighbours 18-55 mm apart, pulled towards `default_mm` by two more votes."""
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1) if len(positions) > 1 else np.zeros(0)
    steps = steps[(steps > 18.0) & (steps < 55.0)]
    return float(np.median(np.concatenate([steps, [default_mm, default_mm]])))


def label_column(
    candidates: Sequence[Candidate],
    places: F64,
    directions: F64,
    in_picture: Callable[[F64], bool],
    options: LabellingOptions,
) -> Labelling:
    """Label candidates that are sorted from the sacrum upwards.

    Args:
        candidates: lowest first.
        places: `(n, 2)` their places in the sagittal plane, mm (down, back).
        directions: `(n, 2)` their directions anterior -> posterior in that plane (any length).
        in_picture: whether a place lies well inside the picture.
        options: weights.
    """
    n = len(candidates)
    if n == 0:
        return Labelling(np.zeros(0, np.int64), np.zeros((0, RANKS)))
    emit, leave = _emissions(candidates, options)
    spacing = typical_spacing_mm(places, options.spacing_mm)
    step = _transitions(places, spacing, options) + _bends(places, directions, options)[:, :, None]
    skipped = np.concatenate([[0.0], np.cumsum(leave)])  # cost of leaving out candidates [0, i)

    def unseen(side: int) -> F64:
        rows = [[_unseen(places, i, r, side, spacing, in_picture, options) for r in range(RANKS)] for i in range(n)]
        return np.array(rows)

    start, end = unseen(-1), unseen(1)
    start += skipped[:n, None]
    end += (skipped[n] - skipped[1:])[:, None]
    between = np.array([[skipped[j] - skipped[i + 1] if j > i else 0.0 for j in range(n)] for i in range(n)])
    posterior = _posterior(emit, step, between, start, end)
    return Labelling(_best(emit, step, between, start, end), posterior)


def _emissions(candidates: Sequence[Candidate], options: LabellingOptions) -> tuple[F64, F64]:
    """Log scores of keeping each candidate at each rank `(n, RANKS)` and of leaving it out `(n,)`."""
    mass = np.array([c.mass_mm for c in candidates])
    whole = np.clip(mass / (FULL_MASS_SHARE * np.median(np.sort(mass)[-5:])), 0.0, 1.0)
    peak = np.clip(np.array([c.peak for c in candidates]) * whole, 0.02, 0.98)
    log_level = np.maximum(np.array([c.log_level for c in candidates]), np.log(options.floor) * 2)
    emit = options.level_weight * log_level[:, 1:] + np.log(np.clip(2.0 * peak, 0.0, 0.98))[:, None]
    sacral = np.maximum(log_level[:, 0], np.log(0.1))
    leave = np.log(1.0 - np.clip(1.3 * peak, 0.02, 0.97)) + options.level_weight * sacral
    return emit, leave


def _transitions(places: F64, spacing: float, options: LabellingOptions) -> F64:
    """Log score `(n, n, max_step + 1)` of candidate j following i (above it) by `step` ranks."""
    n = len(places)
    score = np.full((n, n, options.max_step + 1), -np.inf)
    for i in range(n):
        for j in range(i + 1, n):
            distance = float(np.linalg.norm(places[j] - places[i]))
            for step in range(1, options.max_step + 1):
                z = (distance / (step * spacing) - 1.0) / options.spacing_sd
                score[i, j, step] = -0.5 * min(z * z, 60.0) - options.gap_cost * (step - 1)
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
    i: int,
    rank: int,
    side: int,
    spacing: float,
    in_picture: Callable[[F64], bool],
    options: LabellingOptions,
) -> float:
    """Cost of the discs between candidate i, taken as the last on its `side`, and L5/S1 (-1) or L1/L2 (+1)."""
    missing = rank if side < 0 else max(0, 4 - rank)
    if missing == 0:
        return 0.0
    neighbour = i - side
    if 0 <= neighbour < len(places):
        direction = places[i] - places[neighbour]
        direction = direction / max(float(np.linalg.norm(direction)), 1.0)
    else:
        direction = np.array([-float(side), 0.0])
    seen = sum(in_picture(places[i] + direction * spacing * k) for k in range(1, missing + 1))
    return -options.unseen_cost * seen


def _log_sum(values: F64) -> float:
    top = values.max()
    return float(top + np.log(np.exp(values - top).sum())) if np.isfinite(top) else -np.inf


def _posterior(emit: F64, step: F64, between: F64, start: F64, end: F64) -> F64:
    """Probability of every (candidate, rank) over all labellings, by forward-backward."""
    n, most = len(emit), step.shape[2] - 1
    forward, backward = start + emit, end.copy()
    for j in range(n):
        for r in range(RANKS):
            terms = [forward[j, r]]
            terms += [
                forward[i, r - k] + between[i, j] + step[i, j, k] + emit[j, r]
                for i in range(j)
                for k in range(1, min(most, r) + 1)
            ]
            forward[j, r] = _log_sum(np.array(terms))
    for i in range(n - 1, -1, -1):
        for r in range(RANKS):
            terms = [backward[i, r]]
            terms += [
                backward[j, r + k] + between[i, j] + step[i, j, k] + emit[j, r + k]
                for j in range(i + 1, n)
                for k in range(1, min(most, RANKS - 1 - r) + 1)
            ]
            backward[i, r] = _log_sum(np.array(terms))
    total = _log_sum((forward + end).ravel())
    result: F64 = np.exp(forward + backward - total)
    return result


def _best(emit: F64, step: F64, between: F64, start: F64, end: F64) -> NDArray[np.int64]:
    """The best labelling (Viterbi)."""
    n, most = len(emit), step.shape[2] - 1
    score = start + emit
    back = np.full((n, RANKS, 2), -1)
    for j in range(n):
        for r in range(RANKS):
            for i in range(j):
                for k in range(1, min(most, r) + 1):
                    value = score[i, r - k] + between[i, j] + step[i, j, k] + emit[j, r]
                    if value > score[j, r]:
                        score[j, r], back[j, r] = value, (i, r - k)
    ranks = np.full(n, -1)
    i, r = divmod(int(np.argmax(score + end)), RANKS)
    while i >= 0:
        ranks[i] = r
        i, r = back[i, r].tolist()
    return ranks
