"""Turns heat maps into disc candidates in patient mm: finds peaks in every slice, joins them over slices and series.

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
"""Peaks with less heat than this are noise: on held-out exams a disc's best slice peaks at 0.5-0.95."""

JOIN_MM = 13.0
"""Largest distance in the sagittal plane between peaks of one disc; neighbouring discs are more than 18 mm apart."""

MOST_CANDIDATES = 64
"""Largest number of candidates per study: a whole spine has 24 discs, so more candidates than this are noise."""

TYPICAL_OF = 5
"""Number of heaviest candidates whose median mass is a typical disc's: five lumbar discs are nearly always visible."""

MIN_SHARE = 0.12
"""Smallest share of a typical disc's mass that a disc has (discs > 0.4; noise and facet joints 0.05-0.15 held out)."""

CROWDED_MM = 24.0
"""Smallest distance between two lumbar discs."""

CROWDED_SHARE = 0.6
"""Share of its neighbour's mass below which a candidate nearer than ``CROWDED_MM`` is dropped."""


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
        """Return the peaks of one series."""
        return self.where(self.series == number)

    def where(self, selected: NDArray[np.bool_]) -> Peaks:
        """Return the peaks that the mask `selected (P,)` marks."""
        return Peaks(
            self.position_mm[selected],
            self.height[selected],
            self.share_mm[selected],
            self.direction[selected],
            self.log_level[selected],
            self.series[selected],
        )


@dataclass(frozen=True, eq=False)
class Candidate:
    """A place in the patient that may be a disc (or a vertebral body).

    Attributes:
        position_mm: `(3,)` LPS centre.
        peak: highest heat, mean over the series that show it.
        mass_mm: heat summed over slices times their lateral share, mean over all series: about 30 mm for a clear disc,
            a few mm for a facet joint that looks like a disc in a lateral slice.
        direction: `(3,)` LPS vector anterior -> posterior along the disc.
        log_level: `(bins,)` log probabilities of the level bins, summed over the series that show it.
    """

    position_mm: F64
    peak: float
    mass_mm: float
    direction: F64
    log_level: F64


def peaks_from_maps(
    heatmaps: Iterable[F32], canvas: Canvas, series: int, spec: DetectorSpec
) -> tuple[Peaks, Peaks]:
    """Return the disc peaks and the body peaks of a canvas, averaged over 5x5 pixels by squared heat.

    Args:
        heatmaps: float32 `(N, K, h, w)` batches of the detector's maps, in the order of the canvas's slices.
        canvas: where the slices lie.
        series: number of the series.
        spec: what the maps hold.
    """
    from spine_engine.detection.kernels import (
        PEAK_COLUMNS,
        find_peaks,
    )  # numba: only a run should pay

    tables = []
    slices_done = 0
    for maps in heatmaps:
        peaks = find_peaks(maps, PEAK_FLOOR)
        peaks[:, 0] += slices_done
        tables.append(peaks)
        slices_done += len(maps)
    table = np.concatenate(tables)
    slices = table[:, 0].astype(np.int64)
    mm = (table[:, 2:4] * spec.stride + (spec.stride - 1) / 2) * spec.pixel_mm
    plane = np.stack([canvas.down, canvas.back])
    both_kinds = Peaks(
        canvas.origins_mm[slices] + mm @ plane,
        table[:, 4],
        canvas.step_mm[slices],
        table[:, 5:PEAK_COLUMNS] @ plane,
        table[:, PEAK_COLUMNS:],
        np.full(len(table), series),
    )
    return both_kinds.where(table[:, 1] == DISC), both_kinds.where(table[:, 1] == BODY)


def joined(peaks: Sequence[Peaks]) -> Peaks:
    """Return all peaks in one table."""
    return Peaks(
        np.concatenate([p.position_mm for p in peaks]),
        np.concatenate([p.height for p in peaks]),
        np.concatenate([p.share_mm for p in peaks]),
        np.concatenate([p.direction for p in peaks]),
        np.concatenate([p.log_level for p in peaks]),
        np.concatenate([p.series for p in peaks]),
    )


def candidates_from_peaks(peaks: Peaks, frame: F64) -> list[Candidate]:
    """Join peaks into candidates: from the highest down, each goes to the nearest cluster within `JOIN_MM`.

    Args:
        peaks: the peaks of all series of a study.
        frame: `(3, 3)` rows (down, back, across) of the spine, LPS.
    """
    from spine_engine.detection.kernels import join_peaks

    if not len(peaks.height):
        return []
    place = peaks.position_mm @ frame[:2].T
    order = np.lexsort(
        (peaks.position_mm @ frame[2], place[:, 1], place[:, 0], -peaks.height)
    )
    return _candidates(peaks, join_peaks(place, peaks.height, order, JOIN_MM))


def clear_candidates(candidates: Sequence[Candidate], frame: F64) -> list[Candidate]:
    """Return the candidates from the sacrum upwards, without the weak ones and those weak beside a stronger neighbour.

    At most the `MOST_CANDIDATES` heaviest are returned, which bounds time and memory on noise.
    """
    if not candidates:
        return []
    masses = sorted((candidate.mass_mm for candidate in candidates), reverse=True)
    typical_mass = float(np.median(masses[:TYPICAL_OF]))
    places = (np.array([c.position_mm for c in candidates]) @ frame[:2].T).tolist()
    heaviest_first = sorted(
        zip(candidates, places, strict=True),
        key=lambda pair: (-pair[0].mass_mm, *pair[0].position_mm.tolist()),
    )
    clear: list[tuple[Candidate, list[float]]] = []
    for candidate, place in heaviest_first:
        if (
            candidate.mass_mm < MIN_SHARE * typical_mass
            or len(clear) == MOST_CANDIDATES
        ):
            break
        neighbours = [
            other.mass_mm for other, there in clear if dist(place, there) < CROWDED_MM
        ]
        if not neighbours or candidate.mass_mm >= CROWDED_SHARE * max(neighbours):
            clear.append((candidate, place))
    return [candidate for candidate, _ in sorted(clear, key=lambda pair: -pair[1][0])]


def _candidates(peaks: Peaks, number: NDArray[np.int64]) -> list[Candidate]:
    """Return a candidate for each cluster, given each peak's cluster `number (P,)`.

    Places and directions are weighted means; level votes are averaged in a series, then summed over series.
    """
    series, series_index = np.unique(peaks.series, return_inverse=True)
    part = number * len(series) + series_index
    order = np.argsort(part, kind="stable")
    starts = np.flatnonzero(np.diff(part[order], prepend=-1))
    weight = (peaks.height**2 * peaks.share_mm)[:, None]
    columns = (
        np.concatenate([peaks.position_mm, peaks.direction, peaks.log_level], axis=1)
        * weight
    )
    columns = np.concatenate(
        [columns, weight, (peaks.height * peaks.share_mm)[:, None]], axis=1
    )
    sums = np.add.reduceat(columns[order], starts)  # by cluster and series
    tops = np.maximum.reduceat(peaks.height[order], starts)
    clusters = np.flatnonzero(np.diff(part[order][starts] // len(series), prepend=-1))
    votes = np.add.reduceat(sums[:, 6:-2] / sums[:, -2:-1], clusters)
    series_seen = np.diff(clusters, append=len(starts))
    heights = np.add.reduceat(tops, clusters) / series_seen
    sums = np.add.reduceat(sums, clusters)
    means = sums[:, :6] / sums[:, -2:-1]
    mass = sums[:, -1] / len(series)
    rows = zip(means, heights.tolist(), mass.tolist(), votes, strict=True)
    return [
        Candidate(mean[:3], peak, mass_mm, mean[3:], vote)
        for mean, peak, mass_mm, vote in rows
    ]
