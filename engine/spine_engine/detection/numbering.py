"""Checks the numbering of the column: labels every series alone, and moves the whole numbering up or down.

A *shift* of 1 gives every disc the name of the level above it: L5/S1 becomes L4/L5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import Level
from spine_engine.detection.candidates import (
    JOIN_MM,
    Candidate,
    Peaks,
    candidates_from_peaks,
    clear_candidates,
)
from spine_engine.detection.labelling import (
    RANKS,
    Labelling,
    LabellingOptions,
    Shifted,
    label_column,
    shifted,
)
from spine_engine.detection.levels import (
    PRIOR_SPACING_MM,
    Alternative,
    DiscLevel,
    Found,
    complete_levels,
)
from spine_engine.detection.slices import Canvas
from spine_engine.errors import Warn

F64 = NDArray[np.float64]

PICTURE_MARGIN_MM = 10.0
"""Distance from the picture's edge below which a disc may be cut, so that its absence costs nothing."""

MIN_PEAK = 0.12
"""Peak of its best disc below which a column is noise: the levels then come from the field of view."""

SACRUM_MM = 5.0
"""Distance below L5/S1 at which the picture shows enough of the sacrum to count from; cropped exams had 8 or 30 mm."""

SACRUM_UNSEEN = 0.85
"""Share of the confidence that is left where the sacrum lies outside the picture: 84 % of the discs of such cropped
held-out exams were named correctly, whatever their posterior (docs/decisions/0004)."""

CLEAR_PEAK = 0.4
"""Peak below which a disc is less certain than its posterior: held out, a disc's best slice peaks at 0.5-0.95."""


class Picture:
    """The part of the sagittal plane that the pictures of some stacks show."""

    def __init__(self, canvases: Sequence[Canvas], frame: F64) -> None:
        self.canvases = canvases
        self.frame = frame

    def __call__(self, places: F64) -> NDArray[np.bool_]:
        """Tell which places `(k, 2)` (down, back) of the spine frame lie well inside the picture of any stack."""
        inside = np.zeros(len(places), np.bool_)
        for canvas in self.canvases:
            middle = canvas.origins_mm[len(canvas.origins_mm) // 2]
            points = (
                places @ self.frame[:2]
                + (middle @ self.frame[2]) * self.frame[2]
                - middle
            )
            row = points @ canvas.down / canvas.pixel_mm
            column = points @ canvas.back / canvas.pixel_mm
            margin = PICTURE_MARGIN_MM / canvas.pixel_mm
            top, bottom, left, right = canvas.picture
            inside_rows = (top + margin < row) & (row < bottom - margin)
            inside |= inside_rows & (left + margin < column) & (column < right - margin)
        return inside


@dataclass(frozen=True, eq=False)
class NamedColumn:
    """Disc candidates from the sacrum upwards, their labelling, and the pictures that show them."""

    candidates: Sequence[Candidate]
    labelling: Labelling
    picture: Picture

    def found(self, ranks: NDArray[np.int64]) -> dict[int, Found]:
        """Return the discs by rank under the labelling `ranks (n,)`.

        Confidence is the posterior of the rank times the disc's clarity, times `SACRUM_UNSEEN` if the sacrum is unseen.
        """
        discs: dict[int, Found] = {}
        sacrum = 1.0 if self._shows_sacrum(ranks) else SACRUM_UNSEEN
        for candidate, rank, posterior in zip(
            self.candidates, ranks.tolist(), self.labelling.posterior, strict=True
        ):
            if rank >= 0:
                clarity = float(np.clip(candidate.peak / CLEAR_PEAK, 0.0, 1.0))
                confidence = float(posterior[rank]) * clarity * sacrum
                discs[rank] = Found(
                    candidate.position_mm, candidate.direction, confidence
                )
        return discs

    def _shows_sacrum(self, ranks: NDArray[np.int64]) -> bool:
        """Tell whether the picture shows the sacrum where the lowest labelled disc places it."""
        labelled = np.flatnonzero(ranks >= 0)
        if not len(labelled):
            return False
        lowest = labelled[0]
        below_mm = SACRUM_MM + ranks[lowest] * PRIOR_SPACING_MM
        place = self.picture.frame[:2] @ self.candidates[lowest].position_mm + [
            below_mm,
            0.0,
        ]
        return bool(self.picture(place[None])[0])


def named_column(
    peaks: Peaks, canvases: Sequence[Canvas], frame: F64, options: LabellingOptions
) -> NamedColumn | None:
    """Join the disc peaks of one or more series and label them; None if there is only noise."""
    candidates = clear_candidates(candidates_from_peaks(peaks, frame), frame)
    if not candidates or max(c.peak for c in candidates) < MIN_PEAK:
        return None
    places = np.array([c.position_mm for c in candidates]) @ frame[:2].T
    directions = np.array([c.direction for c in candidates]) @ frame[:2].T
    picture = Picture(canvases, frame)
    labelling = label_column(candidates, places, directions, picture, options)
    return NamedColumn(candidates, labelling, picture)


def series_shift(
    column: NamedColumn, alone: NamedColumn, frame: F64, options: LabellingOptions
) -> int:
    """Return by how many ranks one series `alone` names the discs of the whole study's `column` higher; 0 for none.

    A shift counts if the series sees at least `series_discs` of the discs, moves all of them alike, and its own names
    have a posterior of at least `series_belief` on average: a short field of view that does not know is no evidence.
    """
    shifts = []
    beliefs = []
    places = np.array([c.position_mm for c in alone.candidates]) @ frame[:2].T
    for candidate, rank in zip(
        column.candidates, column.labelling.ranks.tolist(), strict=True
    ):
        gaps = np.hypot(*(places - frame[:2] @ candidate.position_mm).T)
        nearest = int(np.argmin(gaps))
        rank_alone = int(alone.labelling.ranks[nearest])
        if rank >= 0 and rank_alone >= 0 and gaps[nearest] < JOIN_MM:
            shifts.append(rank_alone - rank)
            beliefs.append(float(alone.labelling.posterior[nearest, rank_alone]))
    if (
        len(shifts) < options.series_discs
        or len(set(shifts)) > 1
        or np.mean(beliefs) < options.series_belief
    ):
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
    """Return the likeliest other numbering that should be reported, and the warnings about it.

    A numbering is reported if the evidence of all series gives it at least `alternative`, or if a series alone numbers
    the column that way (`series_disagree`). The anatomy is in doubt (`transitional_anatomy`), not the field of view, if
    the evidence leaves the numbering open although both discs that may be L5/S1 lie in the picture, or if the lower
    half of the column votes for one numbering and the upper half for the other.

    Args:
        column: the study's column.
        alone: the column of each series labelled by itself; empty if there is only one series.
        levels: the five levels of the study.
        frame: `(3, 3)` rows (down, back, across) of the spine, LPS.
        box_mm: size of the levels' boxes.
        options: thresholds.
    """
    warnings: set[Warn] = set()
    series_shifts = {
        series_shift(column, series_column, frame, options) for series_column in alone
    } - {0}
    if series_shifts:
        warnings.add(Warn.SERIES_DISAGREE)
    numberings = [
        shifted(column.labelling, shift) for shift in sorted(series_shifts | {-1, 1})
    ]
    reported = [
        other
        for other in numberings
        if other.probability > 0
        and (other.probability >= options.alternative or other.shift in series_shifts)
    ]
    if not reported:
        return None, warnings
    best = max(reported, key=lambda other: other.probability)
    other_levels = complete_levels(column.found(best.ranks), frame, box_mm)
    if best.probability >= options.alternative:
        sacral_discs = [
            numbered[Level.L5_S1].center_mm @ frame[:2].T
            for numbered in (levels, other_levels)
        ]
        lowest = max(sacral_discs, key=lambda place: float(place[0]))
        if column.picture(lowest[None])[0] or _halves_differ(column.labelling, best):
            warnings.add(Warn.TRANSITIONAL_ANATOMY)
    return Alternative(best.shift, round(best.probability, 6), other_levels), warnings


def _halves_differ(labelling: Labelling, other: Shifted) -> bool:
    """Tell whether the lower half of the labelled discs prefers one numbering and the upper half the other, by their
    level bins.
    """
    moved_ranks = labelling.ranks + other.shift
    discs = np.flatnonzero(
        (labelling.ranks >= 0) & (moved_ranks >= 0) & (moved_ranks < RANKS)
    )
    emit = labelling.column.emit
    votes = emit[discs, moved_ranks[discs]] - emit[discs, labelling.ranks[discs]]
    half = len(discs) // 2
    return half > 0 and bool(
        (votes[:half].sum() > 0) != (votes[len(discs) - half :].sum() > 0)
    )
