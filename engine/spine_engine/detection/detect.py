"""Detection of the five lumbar disc levels from the sagittal series of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from spine_engine.detection.candidates import (
    Candidate,
    Peaks,
    candidates_from_peaks,
    clear_candidates,
    joined,
    peaks_from_maps,
)
from spine_engine.detection.labelling import Labelling, LabellingOptions, label_column
from spine_engine.detection.levels import (
    BODY_NAMES,
    BOX_MM,
    LOW_CONFIDENCE,
    Detection,
    Found,
    Vertebra,
    complete_levels,
    prior_levels,
)
from spine_engine.detection.slices import Canvas, canvas_from_stack, series_range
from spine_engine.detection.spec import BODY, DISC, DetectorSpec
from spine_engine.errors import Reason, StudyError, Warn
from spine_engine.study import Stack

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

PICTURE_MARGIN_MM = 10.0
"""A disc nearer than this to the picture's edge may be cut, so nobody expects to have seen it."""

MIN_PEAK = 0.12
"""A column whose best disc is below this is noise: the levels then come from the field of view."""


class SliceBackend(Protocol):
    """The one method of a backend that detection uses (see `spine_engine.backends`)."""

    def run(self, inputs: Mapping[str, F32]) -> Mapping[str, F32]:
        """`{"slices": (N, 1, H, W)} -> {"heatmaps": (N, K, h, w)}`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionOptions:
    """How detection decides: the box around each level (D, H, W mm) and the weights of the labelling."""

    box_mm: tuple[float, float, float] = BOX_MM
    labelling: LabellingOptions = field(default_factory=LabellingOptions)


def detect(
    series: Sequence[Sequence[Stack]],
    backend: SliceBackend,
    spec: DetectorSpec | None = None,
    options: DetectionOptions | None = None,
) -> Detection:
    """Find the five disc levels of a study.

    Every slice of every sagittal stack goes through the detector; peaks are joined over slices and series in patient mm
    and the column is labelled as a whole. The result does not depend on the order of the series or of their stacks.

    Args:
        series: the stacks of each sagittal series (T1, T2, STIR, ...).
        backend: a loaded detector.
        spec: what the detector takes and gives.
        options: box size and labelling weights.

    Raises:
        StudyError: there is no sagittal stack.
    """
    spec, options = spec or DetectorSpec(), options or DetectionOptions()
    ordered = _in_fixed_order(series)
    if not ordered:
        raise StudyError(Reason.NO_SAGITTAL, "detection needs at least one sagittal stack")
    discs, bodies, canvases = [], [], []
    for number, stacks in enumerate(ordered):
        low, high = series_range(stacks, spec)
        for stack in stacks:
            canvas = canvas_from_stack(stack, low, high, spec)
            maps = _maps_of(canvas, backend)
            discs.append(peaks_from_maps(maps, canvas, DISC, number, spec))
            bodies.append(peaks_from_maps(maps, canvas, BODY, number, spec))
            canvases.append(canvas)
    frame = spine_frame(canvases)
    return _decode(joined(discs), joined(bodies), canvases, frame, options)


def _maps_of(canvas: Canvas, backend: SliceBackend) -> F32:
    """Return the heat maps ``(S, K, h, w)`` of a canvas, one slice a call.

    Runtimes keep a plan for every shape they have met. With the number of slices in the shape a worker's memory grew
    from 203 to 443 MB over 60 series; without it, it stays at 195 MB, for 7 % more time.
    """
    slices = canvas.slices[:, None]
    return np.concatenate([backend.run({"slices": slices[s : s + 1]})["heatmaps"] for s in range(len(slices))])


def _in_fixed_order(series: Sequence[Sequence[Stack]]) -> list[list[Stack]]:
    """Series and their stacks sorted by place and content."""

    def key(stack: Stack) -> tuple[object, ...]:
        middle = stack.pixels[len(stack.pixels) // 2]
        place = (*stack.origins_mm[0].tolist(), *stack.axes.ravel().tolist(), *stack.spacing_mm, *stack.pixels.shape)
        return (*place, crc32(middle.tobytes()))

    kept = [sorted(stacks, key=key) for stacks in series if len(stacks)]
    return sorted(kept, key=lambda stacks: [key(s) for s in stacks])


def spine_frame(canvases: Sequence[Canvas]) -> F64:
    """Rows (down, back, across) shared by all sagittal stacks, orthonormal: the mean across, superior -> inferior made
    perpendicular to it.
    """
    across = np.sum([c.across * len(c.slices) for c in canvases], axis=0)
    across = across / np.linalg.norm(across)
    down = np.sum([c.down for c in canvases], axis=0)
    down = down - (down @ across) * across
    down = down / np.linalg.norm(down)
    return np.stack([down, np.cross(across, down), across])


def _decode(
    discs: Peaks, bodies: Peaks, canvases: Sequence[Canvas], frame: F64, options: DetectionOptions
) -> Detection:
    """Candidates, labelling, levels."""
    candidates = clear_candidates(candidates_from_peaks(discs, frame), frame)
    if not candidates or max(c.peak for c in candidates) < MIN_PEAK:
        return _prior(canvases, frame, options)
    places = np.array([c.position_mm for c in candidates]) @ frame[:2].T
    directions = np.array([c.direction for c in candidates]) @ frame[:2].T
    labelling = label_column(candidates, places, directions, _Picture(canvases, frame), options.labelling)
    found = _found(candidates, labelling)
    if not any(rank <= 4 for rank in found):
        return _prior(canvases, frame, options)
    levels = complete_levels(found, frame, options.box_mm)
    warnings: set[Warn] = set()
    if any(entry.source == "interpolated" for entry in levels.values()):
        warnings.add(Warn.LEVEL_INTERPOLATED)
    if any(entry.confidence < LOW_CONFIDENCE for entry in levels.values()):
        warnings.add(Warn.LOW_CONFIDENCE)
    return Detection(levels, _vertebrae(bodies, found, frame), tuple(sorted(warnings)))


def _found(candidates: Sequence[Candidate], labelling: Labelling) -> dict[int, Found]:
    """Labelled discs by rank; confidence = posterior of the rank times how clear the disc is."""
    found: dict[int, Found] = {}
    for candidate, rank, posterior in zip(candidates, labelling.ranks.tolist(), labelling.posterior, strict=True):
        if rank >= 0:
            clear = float(np.clip(candidate.peak / 0.4, 0.0, 1.0))
            found[rank] = Found(candidate.position_mm, candidate.direction, float(posterior[rank]) * clear)
    return found


def _vertebrae(bodies: Peaks, found: Mapping[int, Found], frame: F64) -> tuple[Vertebra, ...]:
    """Bodies whose centre lies between two labelled neighbouring discs, from above."""
    named: list[Vertebra] = []
    candidates = candidates_from_peaks(bodies, frame)
    for rank in sorted(found, reverse=True):
        if rank + 1 not in found or rank >= len(BODY_NAMES):
            continue
        middle = (found[rank].center_mm + found[rank + 1].center_mm) / 2
        near = [(float(np.linalg.norm((c.position_mm - middle) @ frame[:2].T)), c) for c in candidates]
        near = [item for item in near if item[0] < 12.0]
        if near:
            best = min(near, key=lambda item: item[0])[1]
            confidence = min(found[rank].confidence, found[rank + 1].confidence) * min(1.0, best.peak / 0.4)
            named.append(Vertebra(BODY_NAMES[rank], best.position_mm, round(confidence, 6)))
    return tuple(named)


class _Picture:
    """Whether a place (down, back) of the spine frame lies well inside the picture of any stack."""

    def __init__(self, canvases: Sequence[Canvas], frame: F64) -> None:
        self.canvases, self.frame = canvases, frame

    def __call__(self, place: F64) -> bool:
        for canvas in self.canvases:
            middle = canvas.origins_mm[len(canvas.origins_mm) // 2]
            point = place[0] * self.frame[0] + place[1] * self.frame[1]
            point = point + (middle @ self.frame[2]) * self.frame[2] - middle
            pixel = canvas.pixel_mm
            row, column = float(point @ canvas.down) / pixel, float(point @ canvas.back) / pixel
            margin = PICTURE_MARGIN_MM / pixel
            top, bottom, left, right = canvas.picture
            if top + margin < row < bottom - margin and left + margin < column < right - margin:
                return True
        return False


def _prior(canvases: Sequence[Canvas], frame: F64, options: DetectionOptions) -> Detection:
    """Nothing usable was found: the middle of the field of view decides, flagged."""
    centers = []
    for canvas in canvases:
        top, bottom, left, right = canvas.picture
        middle = (canvas.origins_mm[0] + canvas.origins_mm[-1]) / 2
        offset = (top + bottom) / 2 * canvas.down + (left + right) / 2 * canvas.back
        centers.append(middle + offset * canvas.pixel_mm)
    center = np.mean(centers, axis=0)
    return Detection(prior_levels(center, frame, options.box_mm), (), (Warn.LOW_CONFIDENCE,))
