"""What detection gives: five disc levels with a box in patient mm, always complete, each with its source.

Frame: patient LPS mm. `axes` rows are unit vectors (D, H, W): superior -> inferior along the disc's normal, anterior ->
posterior along the disc, patient right -> left; orthonormal and right-handed (D x H = W).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import Level
from spine_engine.errors import Warn
from spine_engine.results import AXIS_DECIMALS, PLACE_DECIMALS

F64 = NDArray[np.float64]
Source = Literal["detector", "interpolated", "prior"]

RANK_OF_LEVEL = {Level.L5_S1: 0, Level.L4_L5: 1, Level.L3_L4: 2, Level.L2_L3: 3, Level.L1_L2: 4}
"""Discs counted upwards from the sacrum."""

BODY_NAMES = ("l5", "l4", "l3", "l2", "l1", "t12", "t11", "t10", "t9")
"""Vertebral bodies counted upwards from the sacrum: body r lies above disc r."""

BOX_MM = (40.0, 96.0, 96.0)
"""Default box (D, H, W): half a body to each side of the disc, the canal and both foramina (46-56 mm apart) inside."""

LOW_CONFIDENCE = 0.5
"""Below an even chance the level is worth a warning."""


@dataclass(frozen=True, eq=False)
class DiscLevel:
    """One disc level: its centre `(3,)`, axes `(3, 3)` and box size `(3,)` in mm, and how far to trust it.

    Places are kept to the decimals of `studies.jsonl`, so that what is graded is what the file says.
    """

    level: Level
    center_mm: F64
    axes: F64
    size_mm: F64
    confidence: float
    source: Source

    def __post_init__(self) -> None:
        for name, decimals in (("center_mm", PLACE_DECIMALS), ("axes", AXIS_DECIMALS), ("size_mm", PLACE_DECIMALS)):
            object.__setattr__(self, name, np.round(getattr(self, name), decimals))


@dataclass(frozen=True, eq=False)
class Vertebra:
    """One vertebral body that was found: `name` such as "l4", its centre `(3,)` LPS mm and confidence 0..1."""

    name: str
    center_mm: F64
    confidence: float


@dataclass(frozen=True, eq=False)
class Alternative:
    """Another numbering of the same column: each disc `shift` levels higher, its probability 0..1, and its levels."""

    shift: int
    probability: float
    levels: Mapping[Level, DiscLevel]


@dataclass(frozen=True, eq=False)
class Detection:
    """All five levels, the vertebrae found, what was unusual (sorted); another numbering where one is worth telling."""

    levels: Mapping[Level, DiscLevel]
    vertebrae: tuple[Vertebra, ...]
    warnings: tuple[Warn, ...]
    alternative: Alternative | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """A labelled disc: centre and direction anterior -> posterior, LPS; confidence 0..1."""

    center_mm: F64
    direction: F64
    confidence: float


EXTRAPOLATED = 0.4
"""Share of the neighbour's confidence that a level outside the found ones keeps for each step away."""

INTERPOLATED = 0.7
"""Share of the weaker neighbour's confidence that a level between two found ones keeps."""

PRIOR_CONFIDENCE = 0.02
"""A level placed by the field of view alone is right in about one exam of fifty."""

PRIOR_SPACING_MM = 35.0
"""Mean distance of lumbar disc centres in the training exams: 33-41 mm."""

PRIOR_RANK_AT_CENTER = 2.4
"""In the training exams the middle of the picture lies between the discs L3/L4 (2) and L2/L3 (3)."""


def axes_from_direction(direction: F64, frame: F64) -> F64:
    """Orthonormal rows (D, H, W) of a disc from its direction anterior -> posterior and the spine frame.

    The frame has rows (down, back, across). W is its across; H is the direction made perpendicular to it; D = H x W.
    """
    across = frame[2]
    h = direction - (direction @ across) * across
    length = float(np.linalg.norm(h))
    h = h / length if length > 1e-6 else frame[1]
    d = np.cross(h, across)
    return np.stack([d, h, across])


def complete_levels(
    found: Mapping[int, Found], frame: F64, box_mm: tuple[float, float, float]
) -> dict[Level, DiscLevel]:
    """Five levels from the found discs by rank (0 = L5/S1; thoracic ones help): the missing are interpolated.

    Raises:
        ValueError: nothing was found.
    """
    if not found:
        raise ValueError("no disc to complete the levels from")
    levels: dict[Level, DiscLevel] = {}
    for level in Level:
        rank = RANK_OF_LEVEL[level]
        if rank in found:
            place, source = found[rank], "detector"
        else:
            place, source = _inferred(rank, found, frame), "interpolated"
        levels[level] = DiscLevel(
            level,
            place.center_mm,
            axes_from_direction(place.direction, frame),
            np.array(box_mm),
            round(float(np.clip(place.confidence, 0.0, 1.0)), 6),
            "detector" if source == "detector" else "interpolated",
        )
    return levels


def _inferred(rank: int, found: Mapping[int, Found], frame: F64) -> Found:
    """A disc between two found ones, or beyond the last, by spacing and the change of slope."""
    below = [r for r in found if r < rank]
    above = [r for r in found if r > rank]
    if below and above:
        low, high = max(below), min(above)
        t = (rank - low) / (high - low)
        a, b = found[low], found[high]
        confidence = INTERPOLATED * min(a.confidence, b.confidence)
        return Found((1 - t) * a.center_mm + t * b.center_mm, (1 - t) * a.direction + t * b.direction, confidence)
    ends = sorted(below, reverse=True) if below else sorted(above)
    last, steps = found[ends[0]], abs(rank - ends[0])
    sign = 1 if below else -1
    if len(ends) > 1:
        reach = (last.center_mm - found[ends[1]].center_mm) / abs(ends[0] - ends[1])
        length = float(np.clip(np.linalg.norm(reach), 25.0, 45.0))
        reach = reach / max(float(np.linalg.norm(reach)), 1e-6)
    else:
        reach, length = -sign * frame[0], PRIOR_SPACING_MM
    # the column follows the normal of the last disc about as much as the chord of the last two
    normal = np.cross(last.direction, frame[2])
    normal = normal / max(float(np.linalg.norm(normal)), 1e-6)
    reach = reach + normal * (1.0 if normal @ reach >= 0 else -1.0)
    reach = reach / float(np.linalg.norm(reach))
    return Found(last.center_mm + reach * length * steps, last.direction, last.confidence * EXTRAPOLATED**steps)


def prior_levels(center_mm: F64, frame: F64, box_mm: tuple[float, float, float]) -> dict[Level, DiscLevel]:
    """Five levels from the field of view alone: evenly spaced about the middle of the sagittal pictures."""
    levels: dict[Level, DiscLevel] = {}
    for level in Level:
        offset = (PRIOR_RANK_AT_CENTER - RANK_OF_LEVEL[level]) * PRIOR_SPACING_MM
        axes = axes_from_direction(frame[1], frame)
        place = center_mm + frame[0] * offset
        levels[level] = DiscLevel(level, place, axes, np.array(box_mm), PRIOR_CONFIDENCE, "prior")
    return levels
