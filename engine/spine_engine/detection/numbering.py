"""Is the column named rightly? Every series asked alone, and the whole numbering moved up or down.

A *shift* of 1 gives every disc the name of the level above it: what was called L5/S1 becomes L4/L5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import Level
from spine_engine.detection.candidates import JOIN_MM, Candidate, Peaks, candidates_from_peaks, clear_candidates
from spine_engine.detection.labelling import RANKS, Labelling, LabellingOptions, Shifted, label_column, shifted
from spine_engine.detection.levels import PRIOR_SPACING_MM, Alternative, DiscLevel, Found, complete_levels
from spine_engine.detection.slices import Canvas
from spine_engine.errors import Warn

F64 = NDArray[np.float64]

PICTURE_MARGIN_MM = 10.0
"""A disc nearer than this to the picture's edge may be cut, so nobody expects to have seen it."""

MIN_PEAK = 0.12
"""A column whose best disc is below this is noise: the levels then come from the field of view."""

SACRUM_MM = 5.0
"""This far below L5/S1 the picture shows enough of the sacrum to count from; cropped exams had 8 or 30 mm left."""

SACRUM_UNSEEN = 0.85
"""What is left of the confidence where the sacrum lies outside the picture: of such cropped held-out exams 84 % of the
discs were named rightly, whatever their posterior (docs/decisions/0004)."""

CLEAR_PEAK = 0.4
"""Discs that peak lower are less sure than their posterior: held out, a disc's best slice peaks at 0.5-0.95."""


class Picture:
    """The part of the sagittal plane that the pictures of some stacks show."""

    def __init__(self, canvases: Sequence[Canvas], frame: F64) -> None:
        self.canvases, self.frame = canvases, frame

    def __call__(self, places: F64) -> NDArray[np.bool_]:
        """Which places `(k, 2)` (down, back) of the spine frame lie well inside the picture of any stack."""
        inside = np.zeros(len(places), np.bool_)
        for canvas in self.canvases:
            middle = canvas.origins_mm[len(canvas.origins_mm) // 2]
            points = places @ self.frame[:2] + (middle @ self.frame[2]) * self.frame[2] - middle
            row, column = points @ canvas.down / canvas.pixel_mm, points @ canvas.back / canvas.pixel_mm
            margin = PICTURE_MARGIN_MM / canvas.pixel_mm
            top, bottom, left, right = canvas.picture
            high = (top + margin < row) & (row < bottom - margin)
            inside |= high & (left + margin < column) & (column < right - margin)
        return inside


@dataclass(frozen=True, eq=False)
class NamedColumn:
    """Disc candidates from the sacrum upwards, how they are labelled, and the pictures that show them."""

    candidates: Sequence[Candidate]
    labelling: Labelling
    picture: Picture

    def found(self, ranks: NDArray[np.int64]) -> dict[int, Found]:
        """Discs by rank under the labelling `ranks (n,)`.

        Confidence = posterior of the rank, times how clear the disc is, times `SACRUM_UNSEEN` where that applies.
        """
        found: dict[int, Found] = {}
        seen = 1.0 if self._shows_sacrum(ranks) else SACRUM_UNSEEN
        for candidate, rank, posterior in zip(self.candidates, ranks.tolist(), self.labelling.posterior, strict=True):
            if rank >= 0:
                clear = float(np.clip(candidate.peak / CLEAR_PEAK, 0.0, 1.0))
                found[rank] = Found(candidate.position_mm, candidate.direction, float(posterior[rank]) * clear * seen)
        return found

    def _shows_sacrum(self, ranks: NDArray[np.int64]) -> bool:
        """Whether the sacrum, where the lowest labelled disc says it must be, lies in the picture."""
        kept = np.flatnonzero(ranks >= 0)
        if not len(kept):
            return False
        lowest = kept[0]
        below_mm = SACRUM_MM + ranks[lowest] * PRIOR_SPACING_MM
        place = self.picture.frame[:2] @ self.candidates[lowest].position_mm + [below_mm, 0.0]
        return bool(self.picture(place[None])[0])


def named_column(peaks: Peaks, canvases: Sequence[Canvas], frame: F64, options: LabellingOptions) -> NamedColumn | None:
    """Join the disc peaks of one or more series and label them; None when there is nothing but noise."""
    candidates = clear_candidates(candidates_from_peaks(peaks, frame), frame)
    if not candidates or max(c.peak for c in candidates) < MIN_PEAK:
        return None
    places = np.array([c.position_mm for c in candidates]) @ frame[:2].T
    directions = np.array([c.direction for c in candidates]) @ frame[:2].T
    picture = Picture(canvases, frame)
    return NamedColumn(candidates, label_column(candidates, places, directions, picture, options), picture)


def series_shift(column: NamedColumn, alone: NamedColumn, frame: F64, options: LabellingOptions) -> int:
    """Return by how many ranks one series `alone` names the discs of the whole study's `column` higher; 0 for none.

    It counts when the series sees at least `series_discs` of the discs, moves all of them alike, and believes its own
    names with at least `series_belief` on average: a short field of view that merely does not know says nothing.
    """
    shifts, beliefs = [], []
    places = np.array([c.position_mm for c in alone.candidates]) @ frame[:2].T
    for candidate, rank in zip(column.candidates, column.labelling.ranks.tolist(), strict=True):
        gaps = np.hypot(*(places - frame[:2] @ candidate.position_mm).T)
        near = int(np.argmin(gaps))
        own = int(alone.labelling.ranks[near])
        if rank >= 0 and own >= 0 and gaps[near] < JOIN_MM:
            shifts.append(own - rank)
            beliefs.append(float(alone.labelling.posterior[near, own]))
    if len(shifts) < options.series_discs or len(set(shifts)) > 1 or np.mean(beliefs) < options.series_belief:
        return 0
    return int(shifts[0])


def doubts(
    column: NamedColumn,
    alone: Sequence[NamedColumn],
    levels: Mapping[Level, DiscLevel],
    frame: F64,
    box_mm: tuple[float, float, float],
    options: LabellingOptions,
) -> tuple[Alternative | None, set[Warn]]:
    """Return the likeliest other numbering worth telling, and the warnings about it.

    A numbering is worth telling when the evidence of all series gives it at least `alternative`, or when a series
    alone names the column so (`series_disagree`). The doubt is one that the anatomy poses (`transitional_anatomy`), and
    not the field of view, when all the evidence leaves it open although both discs that may be L5/S1 lie in the
    picture, or because the lower half of the column votes for one numbering and the upper half for the other.

    Args:
        column: the study's.
        alone: each of its series labelled by itself; nothing when there is only one.
        levels: the five levels as they are given.
        frame: `(3, 3)` rows (down, back, across) of the spine, LPS.
        box_mm: size of the levels' boxes.
        options: thresholds.
    """
    warnings: set[Warn] = set()
    named = {series_shift(column, one, frame, options) for one in alone} - {0}
    if named:
        warnings.add(Warn.SERIES_DISAGREE)
    moved = [shifted(column.labelling, shift) for shift in sorted(named | {-1, 1})]
    told = [m for m in moved if m.probability > 0 and (m.probability >= options.alternative or m.shift in named)]
    if not told:
        return None, warnings
    best = max(told, key=lambda m: m.probability)
    other = complete_levels(column.found(best.ranks), frame, box_mm)
    if best.probability >= options.alternative:
        lowest = max((each[Level.L5_S1].center_mm @ frame[:2].T for each in (levels, other)), key=lambda p: float(p[0]))
        if column.picture(lowest[None])[0] or _halves_differ(column.labelling, best):
            warnings.add(Warn.TRANSITIONAL_ANATOMY)
    return Alternative(best.shift, round(best.probability, 6), other), warnings


def _halves_differ(labelling: Labelling, other: Shifted) -> bool:
    """Whether the level bins of the lower half of the labelled discs prefer one numbering, those of the upper half the
    other.
    """
    kept = np.flatnonzero(labelling.ranks >= 0)
    kept = kept[(labelling.ranks[kept] + other.shift >= 0) & (labelling.ranks[kept] + other.shift < RANKS)]
    emit, ranks = labelling.column.emit[kept], labelling.ranks[kept]
    places = np.arange(len(kept))
    votes = emit[places, ranks + other.shift] - emit[places, ranks]
    half = len(kept) // 2
    return half > 0 and bool((votes[:half].sum() > 0) != (votes[len(kept) - half :].sum() > 0))
