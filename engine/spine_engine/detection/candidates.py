"""From heat maps to disc candidates in patient mm: peaks in every slice, joined over slices and series.

Frame: patient LPS mm; the spine frame has rows (down, back, across), see `SpineFrame`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import dist

import numpy as np
from numpy.typing import NDArray

from spine_engine.detection.slices import Canvas
from spine_engine.detection.spec import BODY, DISC, DetectorSpec

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

PEAK_FLOOR = 0.08
"""Peaks below this are noise: on held-out exams a disc's best slice peaks at 0.5-0.95."""

JOIN_MM = 13.0
"""Peaks of one disc in neighbouring slices and series lie this near in the sagittal plane; discs are > 18 mm apart."""

MOST_CANDIDATES = 64
"""A whole spine has 24 discs; more than this is noise."""

TYPICAL_OF = 5
"""Five lumbar discs are nearly always in the picture: the median mass of the five heaviest is a disc of this study."""

MIN_SHARE = 0.12
"""Less than this share of a typical disc's mass is noise or a facet joint (0.05-0.15 held out; discs > 0.4)."""

CROWDED_MM, CROWDED_SHARE = 24.0, 0.6
"""No two lumbar discs are nearer than 24 mm: of two so near, one with less than 0.6 of the other's mass goes."""


@dataclass(frozen=True, eq=False)
class Peaks:
    """Local maxima of one heat channel over all slices of one series.

    Attributes:
        position_mm: `(P, 3)` LPS mm.
        height: `(P,)` heat at the peak.
        share_mm: `(P,)` lateral share of the peak's slice.
        direction: `(P, 3)` LPS vector anterior -> posterior along the disc (length = the net's certainty).
        log_level: `(P, bins)` log probabilities of the level bins round the peak.
        series: `(P,)` number of the series.
    """

    position_mm: F64
    height: F64
    share_mm: F64
    direction: F64
    log_level: F64
    series: NDArray[np.int64]

    def of_series(self, number: int) -> Peaks:
        """Those of one series."""
        return self.where(self.series == number)

    def where(self, kept: NDArray[np.bool_]) -> Peaks:
        """Those marked in `kept (P,)`."""
        return Peaks(
            self.position_mm[kept],
            self.height[kept],
            self.share_mm[kept],
            self.direction[kept],
            self.log_level[kept],
            self.series[kept],
        )


@dataclass(frozen=True, eq=False)
class Candidate:
    """One thing that may be a disc (or a vertebral body).

    Attributes:
        position_mm: `(3,)` LPS centre.
        peak: highest heat, mean over the series that see it.
        mass_mm: heat summed over slices times their lateral share, mean over all series: about 30 mm for a clear disc,
            a few mm for a facet joint that looks like one in a lateral slice.
        direction: `(3,)` LPS vector anterior -> posterior along the disc.
        log_level: `(bins,)` log probabilities of the level bins, summed over the series that see it.
    """

    position_mm: F64
    peak: float
    mass_mm: float
    direction: F64
    log_level: F64


def peaks_from_maps(heatmaps: Iterable[F32], canvas: Canvas, series: int, spec: DetectorSpec) -> tuple[Peaks, Peaks]:
    """Peaks of the discs and of the bodies in the maps of a canvas, averaged over 5x5 pixels by squared heat.

    Args:
        heatmaps: float32 `(N, K, h, w)`, some slices after the other until all of the canvas have come.
        canvas: where its slices lie.
        series: number of the series.
        spec: of the maps.
    """
    from spine_engine.detection.kernels import PEAK_COLUMNS, find_peaks  # numba: only a run should pay

    tables, seen = [], 0
    for maps in heatmaps:
        tables.append(find_peaks(maps, PEAK_FLOOR))
        tables[-1][:, 0] += seen
        seen += len(maps)
    table = np.concatenate(tables)
    slices = table[:, 0].astype(np.int64)
    mm = (table[:, 2:4] * spec.stride + (spec.stride - 1) / 2) * spec.pixel_mm
    plane = np.stack([canvas.down, canvas.back])
    every = Peaks(
        canvas.origins_mm[slices] + mm @ plane,
        table[:, 4],
        canvas.step_mm[slices],
        table[:, 5:PEAK_COLUMNS] @ plane,
        table[:, PEAK_COLUMNS:],
        np.full(len(table), series),
    )
    return every.where(table[:, 1] == DISC), every.where(table[:, 1] == BODY)


def joined(peaks: Sequence[Peaks]) -> Peaks:
    """All peaks in one table."""
    return Peaks(
        np.concatenate([p.position_mm for p in peaks]),
        np.concatenate([p.height for p in peaks]),
        np.concatenate([p.share_mm for p in peaks]),
        np.concatenate([p.direction for p in peaks]),
        np.concatenate([p.log_level for p in peaks]),
        np.concatenate([p.series for p in peaks]),
    )


def candidates_from_peaks(peaks: Peaks, frame: F64) -> list[Candidate]:
    """Join peaks into candidates, highest first into a cluster, each peak into the nearest cluster within `JOIN_MM`.

    Args:
        peaks: of all series of a study.
        frame: `(3, 3)` rows (down, back, across) of the spine, LPS.
    """
    from spine_engine.detection.kernels import join_peaks

    if not len(peaks.height):
        return []
    place = peaks.position_mm @ frame[:2].T
    order = np.lexsort((peaks.position_mm @ frame[2], place[:, 1], place[:, 0], -peaks.height))
    return _candidates(peaks, join_peaks(place, peaks.height, order, JOIN_MM))


def clear_candidates(candidates: Sequence[Candidate], frame: F64) -> list[Candidate]:
    """Candidates from the sacrum upwards, without those that are weak beside a stronger neighbour or weak at all.

    At most `MOST_CANDIDATES`, the heaviest, so that noise takes neither time nor memory without end.
    """
    if not candidates:
        return []
    typical = float(np.median(sorted((c.mass_mm for c in candidates), reverse=True)[:TYPICAL_OF]))
    places = (np.array([c.position_mm for c in candidates]) @ frame[:2].T).tolist()
    kept: list[tuple[Candidate, list[float]]] = []
    for candidate, place in sorted(
        zip(candidates, places, strict=True), key=lambda pair: (-pair[0].mass_mm, *pair[0].position_mm.tolist())
    ):
        if candidate.mass_mm < MIN_SHARE * typical:
            break
        strong = [other.mass_mm for other, there in kept if dist(place, there) < CROWDED_MM]
        if not strong or candidate.mass_mm >= CROWDED_SHARE * max(strong):
            kept.append((candidate, place))
        if len(kept) == MOST_CANDIDATES:
            break
    return [candidate for candidate, _ in sorted(kept, key=lambda pair: -pair[1][0])]


def _candidates(peaks: Peaks, number: NDArray[np.int64]) -> list[Candidate]:
    """Weighted means of the clusters `number (P,)`; level votes are averaged in a series, then summed over series."""
    series, own = np.unique(peaks.series, return_inverse=True)
    part = number * len(series) + own
    order = np.argsort(part, kind="stable")
    starts = np.flatnonzero(np.diff(part[order], prepend=-1))
    weight = (peaks.height**2 * peaks.share_mm)[:, None]
    columns = np.concatenate([peaks.position_mm, peaks.direction, peaks.log_level], axis=1) * weight
    columns = np.concatenate([columns, weight, (peaks.height * peaks.share_mm)[:, None]], axis=1)
    sums = np.add.reduceat(columns[order], starts)  # by cluster and series
    tops = np.maximum.reduceat(peaks.height[order], starts)
    clusters = np.flatnonzero(np.diff(part[order][starts] // len(series), prepend=-1))
    votes = np.add.reduceat(sums[:, 6:-2] / sums[:, -2:-1], clusters)
    views = np.diff(clusters, append=len(starts))
    peak = np.add.reduceat(tops, clusters) / views
    sums = np.add.reduceat(sums, clusters)
    means = sums[:, :6] / sums[:, -2:-1]
    mass = (sums[:, -1] / len(series)).tolist()
    return [
        Candidate(mean[:3], top, heavy, mean[3:], vote)
        for mean, top, heavy, vote in zip(means, peak.tolist(), mass, votes, strict=True)
    ]


__all__ = [
    "BODY",
    "DISC",
    "Candidate",
    "Peaks",
    "candidates_from_peaks",
    "clear_candidates",
    "joined",
    "peaks_from_maps",
]
