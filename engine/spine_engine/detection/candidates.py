"""From heat maps to disc candidates in patient mm: peaks in every slice, joined over slices and series.

Frame: patient LPS mm; the spine frame has rows (down, back, across), see `SpineFrame`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spine_engine.detection.slices import Canvas
from spine_engine.detection.spec import BODY, DIRECTION, DISC, LEVELS, DetectorSpec

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

PEAK_FLOOR = 0.08
"""Peaks below this are noise: on held-out exams a disc's best slice peaks at 0.5-0.95."""

JOIN_MM = 13.0
"""Peaks of one disc in neighbouring slices and series lie this near in the sagittal plane; discs are > 18 mm apart."""

REACH = 2
"""A peak is read from 5x5 pixels of 4 mm, about twice the width of a disc's heat."""

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
        own = self.series == number
        return Peaks(
            self.position_mm[own],
            self.height[own],
            self.share_mm[own],
            self.direction[own],
            self.log_level[own],
            self.series[own],
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


def log_softmax(logits: F64) -> F64:
    """Log softmax over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: F64 = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _local_maxima(heat: F32) -> tuple[NDArray[np.int64], F32]:
    """Indices `(P, 3)` (slice, row, column) of pixels above `PEAK_FLOOR` that no pixel of their 5x5 neighbourhood
    exceeds (ties go to the first), and those neighbourhoods `(P, 25)`, 0 outside the map.
    """
    index = np.argwhere(heat > PEAK_FLOOR)
    padded = np.pad(heat, ((0, 0), (REACH, REACH), (REACH, REACH)))
    dy, dx = (o.ravel() for o in np.mgrid[: 2 * REACH + 1, : 2 * REACH + 1])
    around = padded[index[:, :1], index[:, 1:2] + dy, index[:, 2:] + dx]
    middle = around.shape[1] // 2
    own = around[:, middle : middle + 1]
    top = (own > around[:, :middle]).all(axis=1) & (own >= around[:, middle + 1 :]).all(axis=1)
    return index[top], around[top]


def peaks_from_maps(heatmaps: F32, canvas: Canvas, channel: int, series: int, spec: DetectorSpec) -> Peaks:
    """Peaks of one heat channel in the maps `(S, K, h, w)` of a canvas, averaged over 5x5 pixels by squared heat."""
    index, around = _local_maxima(heatmaps[:, channel])
    weight = around.astype(np.float64) ** 2
    weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)
    dy, dx = (o.ravel() - REACH for o in np.mgrid[: 2 * REACH + 1, : 2 * REACH + 1])
    center = np.stack([index[:, 1] + weight @ dy, index[:, 2] + weight @ dx], axis=1)
    mm = (center * spec.stride + (spec.stride - 1) / 2) * spec.pixel_mm
    rows = np.clip(index[:, 1:2] + dy, 0, heatmaps.shape[2] - 1)
    columns = np.clip(index[:, 2:] + dx, 0, heatmaps.shape[3] - 1)
    window = heatmaps[index[:, :1], :, rows, columns].astype(np.float64)  # (P, 25, K)
    vector = (window[..., DIRECTION] * weight[..., None]).sum(axis=1)
    log_level = (log_softmax(window[..., LEVELS]) * weight[..., None]).sum(axis=1)
    plane = np.stack([canvas.down, canvas.back])
    return Peaks(
        canvas.origins_mm[index[:, 0]] + mm @ plane,
        around[:, around.shape[1] // 2].astype(np.float64),
        canvas.step_mm[index[:, 0]],
        vector @ plane,
        log_level,
        np.full(len(index), series),
    )


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
    place = peaks.position_mm @ frame[:2].T
    order = np.lexsort((peaks.position_mm @ frame[2], place[:, 1], place[:, 0], -peaks.height))
    members: list[list[int]] = []
    sums = np.zeros((len(order), 3))  # of height * (down, back, 1), a row for each cluster
    for index in order.tolist():
        known = sums[: len(members)]
        distance = np.hypot(*(known[:, :2] / known[:, 2:] - place[index]).T)
        number = int(np.argmin(distance)) if len(members) else 0
        if not len(members) or distance[number] >= JOIN_MM:
            number = len(members)
            members.append([])
        members[number].append(index)
        sums[number] += peaks.height[index] * np.array([place[index, 0], place[index, 1], 1.0])
    total = max(1, len(np.unique(peaks.series)))
    return [_candidate(peaks, np.array(sorted(group)), total) for group in members]


def clear_candidates(candidates: Sequence[Candidate], frame: F64) -> list[Candidate]:
    """Candidates from the sacrum upwards, without those that are weak beside a stronger neighbour or weak at all."""
    if not candidates:
        return []
    masses = sorted((c.mass_mm for c in candidates), reverse=True)
    typical = float(np.median(masses[:TYPICAL_OF]))
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (-c.mass_mm, *c.position_mm.tolist())):
        if candidate.mass_mm < MIN_SHARE * typical:
            continue
        gaps = [float(np.linalg.norm((candidate.position_mm - c.position_mm) @ frame[:2].T)) for c in kept]
        strong = [c.mass_mm for c, gap in zip(kept, gaps, strict=True) if gap < CROWDED_MM]
        if strong and candidate.mass_mm < CROWDED_SHARE * max(strong):
            continue
        kept.append(candidate)
    return sorted(kept, key=lambda c: float(-c.position_mm @ frame[0]))


def _candidate(peaks: Peaks, group: NDArray[np.int64], total_series: int) -> Candidate:
    """Weighted means of a cluster; the level votes are averaged inside a series, then summed over series."""
    weight = peaks.height[group] ** 2 * peaks.share_mm[group]
    series = np.unique(peaks.series[group])
    log_level = np.zeros(peaks.log_level.shape[1])
    tops = []
    for number in series:
        inside = peaks.series[group] == number
        log_level += np.average(peaks.log_level[group][inside], axis=0, weights=weight[inside])
        tops.append(float(peaks.height[group][inside].max()))
    return Candidate(
        np.average(peaks.position_mm[group], axis=0, weights=weight),
        float(np.mean(tops)),
        float((peaks.height[group] * peaks.share_mm[group]).sum()) / total_series,
        np.average(peaks.direction[group], axis=0, weights=weight),
        log_level,
    )


__all__ = [
    "BODY",
    "DISC",
    "Candidate",
    "Peaks",
    "candidates_from_peaks",
    "clear_candidates",
    "joined",
    "log_softmax",
    "peaks_from_maps",
]
