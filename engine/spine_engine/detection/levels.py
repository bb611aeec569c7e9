"""Results of detection: always five disc levels, each with a box in patient mm and its source.

Frame: patient LPS mm. `axes` rows are unit vectors (D, H, W): superior -> inferior along the disc's normal, anterior ->
posterior along the disc, patient right -> left; orthonormal and right-handed (D x H = W).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import Level
from spine_engine.errors import Warn
from spine_engine.study import AXIS_DECIMALS, PLACE_DECIMALS, Source

F64 = NDArray[np.float64]

RANK_OF_LEVEL = {
    Level.L5_S1: 0,
    Level.L4_L5: 1,
    Level.L3_L4: 2,
    Level.L2_L3: 3,
    Level.L1_L2: 4,
}
"""Rank of each level's disc, counted upwards from the sacrum."""

BODY_NAMES = ("l5", "l4", "l3", "l2", "l1", "t12", "t11", "t10", "t9")
"""Names of the vertebral bodies, counted upwards from the sacrum: body r lies above disc r."""

BOX_MM = (40.0, 96.0, 96.0)
"""Default box (D, H, W): half a body on each side of the disc, the canal and both foramina (46-56 mm apart) inside."""

LOW_CONFIDENCE = 0.5
"""Confidence below which a level is warned of: an even chance."""


@dataclass(frozen=True, eq=False)
class DiscLevel:
    """One disc level: its centre `(3,)`, axes `(3, 3)` and box size `(3,)` in mm, and its confidence 0..1.

    Places are rounded to the decimals of `studies.jsonl`, so that the graded box is the recorded one.
    """

    level: Level
    center_mm: F64
    axes: F64
    size_mm: F64
    confidence: float
    source: Source

    def __post_init__(self) -> None:
        for name, decimals in (
            ("center_mm", PLACE_DECIMALS),
            ("axes", AXIS_DECIMALS),
            ("size_mm", PLACE_DECIMALS),
        ):
            object.__setattr__(self, name, np.round(getattr(self, name), decimals))


@dataclass(frozen=True, eq=False)
class Vertebra:
    """One detected vertebral body: `name` such as "l4", its centre `(3,)` LPS mm and confidence 0..1."""

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
    """All five levels, the detected vertebrae, the sorted warnings, and another numbering if one is likely enough."""

    levels: Mapping[Level, DiscLevel]
    vertebrae: tuple[Vertebra, ...]
    warnings: tuple[Warn, ...]
    alternative: Alternative | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """A disc that has a rank: its centre and direction anterior -> posterior, LPS mm; confidence 0..1."""

    center_mm: F64
    direction: F64
    confidence: float


EXTRAPOLATED = 0.4
"""Share of the neighbour's confidence that a level beyond the detected ones keeps for each step away."""

INTERPOLATED = 0.7
"""Share of the weaker neighbour's confidence that a level between two detected ones keeps."""

PRIOR_CONFIDENCE = 0.02
"""Confidence of a level placed by the field of view alone: it is right in about one exam of fifty."""

PRIOR_SPACING_MM = 35.0
"""Distance of lumbar disc centres where none was detected; 33-41 mm in the training exams."""

PRIOR_RANK_AT_CENTER = 2.4
"""Rank at the middle of the picture: between the discs L3/L4 (2) and L2/L3 (3) in the training exams."""


def axes_from_direction(direction: F64, frame: F64) -> F64:
    """Return the orthonormal rows (D, H, W) of a disc from its direction anterior -> posterior and the spine frame.

    The frame has rows (down, back, across). W is across; H is the direction made perpendicular to W; D = H x W.
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
    """Return the five levels of the discs that are `found`, by rank (0 = L5/S1); missing ones are interpolated.

    Thoracic discs help to place the missing ones.

    Raises:
        ValueError: there is no disc.
    """
    if not found:
        raise ValueError("no disc to complete the levels from")
    levels: dict[Level, DiscLevel] = {}
    for level in Level:
        rank = RANK_OF_LEVEL[level]
        disc = found[rank] if rank in found else _inferred(rank, found, frame)
        levels[level] = DiscLevel(
            level,
            disc.center_mm,
            axes_from_direction(disc.direction, frame),
            np.array(box_mm),
            round(float(np.clip(disc.confidence, 0.0, 1.0)), 6),
            Source.DETECTOR if rank in found else Source.INTERPOLATED,
        )
    return levels


def _inferred(rank: int, found: Mapping[int, Found], frame: F64) -> Found:
    """Return a disc between two detected ones, or beyond the last, by spacing and the change of slope."""
    below = [r for r in found if r < rank]
    above = [r for r in found if r > rank]
    if below and above:
        low = max(below)
        high = min(above)
        t = (rank - low) / (high - low)
        center_mm = (1 - t) * found[low].center_mm + t * found[high].center_mm
        direction = (1 - t) * found[low].direction + t * found[high].direction
        return Found(
            center_mm,
            direction,
            INTERPOLATED * min(found[low].confidence, found[high].confidence),
        )
    ends = sorted(below, reverse=True) if below else sorted(above)
    last = found[ends[0]]
    steps = abs(rank - ends[0])
    reach = -frame[0] if below else frame[0]
    length = PRIOR_SPACING_MM
    if len(ends) > 1:
        reach = (last.center_mm - found[ends[1]].center_mm) / abs(ends[0] - ends[1])
        length = float(np.clip(np.linalg.norm(reach), 25.0, 45.0))
        reach = reach / max(float(np.linalg.norm(reach)), 1e-6)
    # The column follows the normal of the last disc about as much as the chord of the last two.
    normal = np.cross(last.direction, frame[2])
    normal = normal / max(float(np.linalg.norm(normal)), 1e-6)
    reach = reach + normal * (1.0 if normal @ reach >= 0 else -1.0)
    reach = reach / float(np.linalg.norm(reach))
    return Found(
        last.center_mm + reach * length * steps,
        last.direction,
        last.confidence * EXTRAPOLATED**steps,
    )


def prior_levels(
    center_mm: F64, frame: F64, box_mm: tuple[float, float, float]
) -> dict[Level, DiscLevel]:
    """Place the five levels by the field of view alone: evenly spaced about the middle of the sagittal pictures."""
    levels: dict[Level, DiscLevel] = {}
    for level in Level:
        offset = (PRIOR_RANK_AT_CENTER - RANK_OF_LEVEL[level]) * PRIOR_SPACING_MM
        axes = axes_from_direction(frame[1], frame)
        disc_center_mm = center_mm + frame[0] * offset
        levels[level] = DiscLevel(
            level,
            disc_center_mm,
            axes,
            np.array(box_mm),
            PRIOR_CONFIDENCE,
            Source.PRIOR,
        )
    return levels
