"""Detection of the five lumbar disc levels from the sagittal series of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spine_engine.detection.candidates import (
    Peaks,
    candidates_from_peaks,
    joined,
    peaks_from_maps,
)
from spine_engine.detection.labelling import LabellingOptions
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
from spine_engine.detection.numbering import doubts, named_column
from spine_engine.detection.slices import (
    Canvas,
    canvas_from_stack,
    field_of_view_center,
    in_fixed_order,
    series_range,
    slices_of_pair,
    spine_frame,
)
from spine_engine.detection.spec import DetectorSpec
from spine_engine.errors import Reason, StudyError, Warn
from spine_engine.study import Stack

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


BATCH = 4
"""Slices that engine builders are told to expect in a call, where calls of several studies are joined."""

BODY_MM = 12.0
"""A vertebral body lies this near to the middle between its two discs; bodies are 25 mm high and more."""


class SliceBackend(Protocol):
    """The one method of a backend that detection uses (see `spine_engine.backends`)."""

    def run(self, inputs: Mapping[str, F32]) -> Mapping[str, F32]:
        """`{"slices": (N, 1, H, W)} -> {"heatmaps": (N, K, h, w)}`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionOptions:
    """How detection decides.

    Attributes:
        box_mm: the box around each level (D, H, W).
        labelling: the weights of the labelling.
        every_slice: several series are each looked at whole, and do not share the slices out between them.
    """

    box_mm: tuple[float, float, float] = BOX_MM
    labelling: LabellingOptions = field(default_factory=LabellingOptions)
    every_slice: bool = False


def detect(
    series: Sequence[Sequence[Stack]],
    backend: SliceBackend,
    spec: DetectorSpec | None = None,
    options: DetectionOptions | None = None,
) -> Detection:
    """Find the five disc levels of a study.

    Slices of every sagittal stack go through the detector: all of a lone series, every second of two that show the
    spine between them (``PAIR_STEP_MM``). Peaks are joined over slices and series in patient mm and the column is
    labelled as a whole; each series is also labelled alone, to see whether they agree. The result does not depend on
    the order of the series or of their stacks.

    Args:
        series: the stacks of each sagittal series (T1, T2, STIR, ...).
        backend: a loaded detector.
        spec: what the detector takes and gives.
        options: box size, labelling weights, slices.

    Raises:
        StudyError: there is no sagittal stack.
    """
    spec, options = spec or DetectorSpec(), options or DetectionOptions()
    ordered = _some(in_fixed_order(series))
    discs, bodies = [], []
    views: list[list[Canvas]] = [[] for _ in ordered]
    shared = len(ordered) > 1 and not options.every_slice
    for number, stacks in enumerate(ordered):
        low, high = series_range(stacks, spec)
        for stack in stacks:
            chosen = slices_of_pair(stack.positions_mm, number) if shared else None
            canvas = canvas_from_stack(stack, low, high, spec, chosen)
            some_discs, some_bodies = peaks_from_maps(_maps_of(canvas, backend), canvas, number, spec)
            discs.append(some_discs)
            bodies.append(some_bodies)
            views[number].append(canvas)
    frame = spine_frame([stack for stacks in ordered for stack in stacks])
    return _decode(joined(discs), joined(bodies), views, frame, options) or undetected(ordered, options)


def _some(series: list[list[Stack]]) -> list[list[Stack]]:
    if not series:
        raise StudyError(Reason.NO_SAGITTAL, "levels need at least one sagittal stack")
    return series


def _maps_of(canvas: Canvas, backend: SliceBackend) -> Iterator[F32]:
    """Yield the heat maps `(1, K, h, w)` of a canvas, slice by slice.

    Batches of four take 8 % less time, but runtimes keep a plan for every shape, and memory then grew by more than a
    tenth from 8 studies to 32 (docs/decisions/0013).

    Raises:
        StudyError: the model's numbers are not finite.
    """
    slices = canvas.slices[:, None]
    for n in range(len(slices)):
        maps = backend.run({"slices": slices[n : n + 1]})["heatmaps"]
        if not np.isfinite(maps).all():
            raise StudyError(Reason.INTERNAL_ERROR, "the detector gave numbers that are not finite")
        yield maps


def _decode(
    discs: Peaks, bodies: Peaks, views: Sequence[Sequence[Canvas]], frame: F64, options: DetectionOptions
) -> Detection | None:
    """Candidates, labelling, levels, and what may be said against the numbering; None where nothing was found."""
    canvases = [canvas for view in views for canvas in view]
    column = named_column(discs, canvases, frame, options.labelling)
    found = column.found(column.labelling.ranks) if column else {}
    if column is None or not any(rank <= 4 for rank in found):
        return None
    levels = complete_levels(found, frame, options.box_mm)
    alone = []
    if len(views) > 1:
        named = (named_column(discs.of_series(n), view, frame, options.labelling) for n, view in enumerate(views))
        alone = [one for one in named if one is not None]
    alternative, warnings = doubts(column, alone, levels, frame, options.box_mm, options.labelling)
    if any(entry.source == "interpolated" for entry in levels.values()):
        warnings.add(Warn.LEVEL_INTERPOLATED)
    if any(entry.confidence < LOW_CONFIDENCE for entry in levels.values()):
        warnings.add(Warn.LOW_CONFIDENCE)
    return Detection(levels, _vertebrae(bodies, found, frame), tuple(sorted(warnings)), alternative)


def _vertebrae(bodies: Peaks, found: Mapping[int, Found], frame: F64) -> tuple[Vertebra, ...]:
    """Bodies whose centre lies between two labelled neighbouring discs, from above."""
    named: list[Vertebra] = []
    candidates = candidates_from_peaks(bodies, frame)
    places = np.array([c.position_mm for c in candidates]).reshape(-1, 3) @ frame[:2].T
    for rank in sorted(found, reverse=True):
        if rank + 1 not in found or rank >= len(BODY_NAMES) or not candidates:
            continue
        middle = (found[rank].center_mm + found[rank + 1].center_mm) / 2
        gaps = np.hypot(*(places - frame[:2] @ middle).T)
        nearest = int(np.argmin(gaps))
        if gaps[nearest] < BODY_MM:
            best = candidates[nearest]
            confidence = min(found[rank].confidence, found[rank + 1].confidence) * min(1.0, best.peak / 0.4)
            named.append(Vertebra(BODY_NAMES[rank], best.position_mm, round(confidence, 6)))
    return tuple(named)


def undetected(series: Sequence[Sequence[Stack]], options: DetectionOptions | None = None) -> Detection:
    """Place the five levels by the field of view alone, flagged: the levels of a study in which nothing was found.

    Args:
        series: the stacks of each sagittal series.
        options: box size.

    Raises:
        StudyError: there is no sagittal stack.
    """
    box_mm = (options or DetectionOptions()).box_mm
    stacks = [stack for stacks in _some(in_fixed_order(series)) for stack in stacks]
    levels = prior_levels(field_of_view_center(stacks), spine_frame(stacks), box_mm)
    return Detection(levels, (), (Warn.LOW_CONFIDENCE,))
