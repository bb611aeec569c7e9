"""Columns made by hand: peaks and pictures as a net and a scanner would give them, without either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spine_engine.detection import Detection, DetectionOptions
from spine_engine.detection.candidates import Candidate, Peaks, joined
from spine_engine.detection.detect import _decode
from spine_engine.detection.slices import Canvas

FRAME = np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])
"""Rows down, back, across of an upright patient, LPS."""

LATERAL_MM = (-8.0, -4.0, 0.0, 4.0, 8.0)
"""Where the slices lie; a disc's heat falls by a fifth from one to the next: its mass is 15.2 mm times its heat."""

BINS = 10
"""The sacrum, L5/S1 .. T10/T11, and what lies above."""


@dataclass(frozen=True)
class Seen:
    """One disc or body as the net sees it: mm behind and above the origin, heat, and what the net takes it for."""

    z: float
    belief: Mapping[int, float]  # rank (-1: the sacrum) -> probability
    heat: float = 0.8
    y: float = 0.0
    tilt_deg: float = 0.0  # posterior end down
    slices: int = 5


def log_level(belief: Mapping[int, float]) -> np.ndarray:
    """Log probabilities of the ten bins; what is not mentioned shares nothing."""
    shares = np.array([max(belief.get(rank, 0.0), 1e-4) for rank in range(-1, 9)])
    return np.log(shares / shares.sum())


def sure(rank: int) -> dict[int, float]:
    """A net that is as sure as nets are."""
    return {rank - 1: 0.03, rank: 0.94, rank + 1: 0.03}


def at(rank: int, *, spacing_mm: float = 38.0, **changes) -> Seen:
    """The disc of a rank in a straight upright column: L5/S1 at z = -76, L3/L4 at 0."""
    return Seen(**{"z": spacing_mm * (rank - 2), "belief": sure(rank)} | changes)


def peaks(things: Sequence[Seen], series: int = 0) -> Peaks:
    """The peaks of some things in five slices of one series, brightest in the middle one."""
    rows = [
        (thing, x, thing.heat * (1 - abs(x) / 20))
        for thing in things
        for x in sorted(LATERAL_MM, key=abs)[: thing.slices]
    ]
    tilt = np.deg2rad([thing.tilt_deg for thing, *_ in rows])
    return Peaks(
        np.array([(x, thing.y, thing.z) for thing, x, _ in rows]).reshape(-1, 3),
        np.array([height for *_, height in rows]),
        np.full(len(rows), 4.0),
        np.stack([0 * tilt, np.cos(tilt), -np.sin(tilt)], axis=1).reshape(-1, 3),
        np.array([log_level(thing.belief) for thing, *_ in rows]).reshape(-1, BINS),
        np.full(len(rows), series),
    )


def picture(top_mm: float, bottom_mm: float) -> Canvas:
    """A sagittal picture from `top_mm` down to `bottom_mm`, 200 mm deep, without pixels."""
    origins = np.array([(x, -100.0, top_mm) for x in LATERAL_MM])
    covered = (0.0, (top_mm - bottom_mm) / 2, 0.0, 100.0)
    empty = np.zeros((5, 0, 0), np.float32)
    return Canvas(
        empty, origins, FRAME[0], FRAME[1], FRAME[2], covered, np.full(5, 4.0), 2.0
    )


def decoded(
    *series: Sequence[Seen],
    bodies: Sequence[Seen] = (),
    top_mm: float = 200.0,
    bottom_mm: float = -160.0,
    options: DetectionOptions | None = None,
) -> Detection | None:
    """What the decoder makes of the discs of each series; every series shows the same picture."""
    discs = joined([peaks(things, number) for number, things in enumerate(series)])
    views = [[picture(top_mm, bottom_mm)] for _ in series]
    return _decode(discs, peaks(bodies), views, FRAME, options or DetectionOptions())


def candidate(
    z: float = 0.0,
    *,
    y: float = 0.0,
    x: float = 0.0,
    peak: float = 0.8,
    mass: float = 12.0,
    belief: Mapping[int, float] | None = None,
    direction: Sequence[float] = (0.0, 1.0, 0.0),
) -> Candidate:
    """One candidate of a column."""
    return Candidate(
        np.array([x, y, z]),
        peak,
        mass,
        np.array(direction, float),
        log_level(belief or sure(0)),
    )
