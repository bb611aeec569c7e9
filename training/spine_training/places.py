"""Places of a study's discs, from the points that readers set on its conditions.

RSNA's points lie in the canal, the foramina and the recesses, each at a typical offset from the middle of the disc. The
offsets are known in the disc's own frame, and the frame follows from the neighbouring discs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from spine_engine.anatomy import LEVELS, Level
from spine_engine.detection.levels import axes_from_direction
from spine_engine.phantom.rsna import READER_POINTS
from spine_training.arrays import F64
from spine_training.rsna import LabelPoint

POINT_OFFSET_MM: Final = {
    condition: offset for condition, (_, offset) in READER_POINTS.items()
}
"""The point of each condition from the disc's centre, mm (down, back, left) in the disc's frame: a disc is 34-36 mm
deep, the canal 15 mm, the foramina's exits are 34 mm apart, above the disc."""

L5_S1_TILT_DEG: Final = 13.0
"""Tilt of the disc L5/S1 (its back higher) beyond the normal of the line to L4/L5, the only one it has:
17 degrees (standard deviation 3) in VB1, 16 (9) in SPIDER, 9 (3) in the phantoms. The other discs are within 2-5
degrees of the normal of the line through their neighbours."""

ROUNDS: Final = 3
"""Centres and frames follow from each other; a third round moves the centres by less than 0.1 mm."""


@dataclass(frozen=True, slots=True, eq=False)
class DiscPlace:
    """One disc: ``center_mm (3,)`` LPS and ``axes (3, 3)``, rows (down, back, left) as of ``DiscLevel``.

    ``known`` is False for a disc without points, which lies between two that have some.
    """

    center_mm: F64
    axes: F64
    known: bool = True


def level_places(points: Sequence[LabelPoint], frame: F64) -> dict[Level, DiscPlace]:
    """Return the places of the discs that have points, and of those between them, from above.

    Args:
        points: points of one study.
        frame: rows (down, back, left) of the study's sagittal stacks, as the engine's ``spine_frame`` gives them.
    """
    by_level = {level: [p for p in points if p.level is level] for level in LEVELS}
    levels = [level for level in LEVELS if by_level[level]]
    axes = dict.fromkeys(levels, frame)
    centers: dict[Level, F64] = {}
    for _ in range(ROUNDS):
        centers = {level: _center(by_level[level], axes[level]) for level in levels}
        axes = _axes(centers, frame)
    places = {level: DiscPlace(centers[level], axes[level]) for level in levels}
    for upper, lower in pairwise(levels):
        places |= _between(places, upper, lower, frame)
    return {level: places[level] for level in LEVELS if level in places}


def _center(points: Sequence[LabelPoint], axes: F64) -> F64:
    """Return the disc's centre: the median of the centres that its points imply, axis by axis."""
    centers = [
        axes @ p.position_mm - np.array(POINT_OFFSET_MM[p.condition]) for p in points
    ]
    return np.asarray(np.median(centers, axis=0) @ axes)


def _axes(centers: Mapping[Level, F64], frame: F64) -> dict[Level, F64]:
    """Return the discs' frames: a disc's normal is that of the line through its neighbours above and below."""
    levels = list(centers)
    if len(levels) < 2:
        return dict.fromkeys(levels, frame)
    steps = [centers[b] - centers[a] for a, b in pairwise(levels)]
    chords = [step / np.linalg.norm(step) for step in steps]
    down = {
        level: chords[max(k - 1, 0)]
        + chords[min(k, len(chords) - 1)]  # the same chord twice at an end
        for k, level in enumerate(levels)
    }
    axes = {}
    for level, along in down.items():
        back = np.cross(frame[2], along)
        back = back / np.linalg.norm(back)
        if level is Level.L5_S1:
            back = back - np.tan(np.deg2rad(L5_S1_TILT_DEG)) * np.cross(back, frame[2])
        axes[level] = axes_from_direction(back, frame)
    return axes


def _between(
    places: Mapping[Level, DiscPlace],
    upper: Level,
    lower: Level,
    frame: F64,
) -> dict[Level, DiscPlace]:
    """Return the levels without points between two that have some, evenly spaced."""
    a, b = places[upper], places[lower]
    first, last = LEVELS.index(upper), LEVELS.index(lower)
    missing: dict[Level, DiscPlace] = {}
    for k in range(first + 1, last):
        t = (k - first) / (last - first)
        direction = (1 - t) * a.axes[1] + t * b.axes[1]
        center = (1 - t) * a.center_mm + t * b.center_mm
        missing[LEVELS[k]] = DiscPlace(
            center,
            axes_from_direction(direction, frame),
            known=False,
        )
    return missing
