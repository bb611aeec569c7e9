"""Detects the five lumbar disc levels in the sagittal series of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from spine_engine.backends.base import Model
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
from spine_engine.detection.numbering import NamedColumn, doubts, named_column
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
from spine_engine.study import Source, Stack

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


BATCH = 4
"""Typical number of slices in a joined call of several studies, which engine builders optimise for."""

BODY_MM = 12.0
"""Largest distance of a vertebral body from the middle between its two discs; bodies are 25 mm high and more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionOptions:
    """Options of detection.

    Attributes:
        box_mm: the box around each level (D, H, W).
        labelling: the weights of the labelling.
        every_slice: show the detector every slice of several series, instead of sharing the slices between them.
    """

    box_mm: tuple[float, float, float] = BOX_MM
    labelling: LabellingOptions = field(default_factory=LabellingOptions)
    every_slice: bool = False


def detect(
    series: Sequence[Sequence[Stack]],
    backend: Model,
    spec: DetectorSpec | None = None,
    options: DetectionOptions | None = None,
) -> Detection:
    """Find the five disc levels of a study.

    The detector sees slices of every sagittal stack: all of a lone series, every second of several (``PAIR_STEP_MM``).
    Peaks are joined over slices and series in patient mm, and the column is labelled as a whole; each series is also
    labelled alone, to see whether they agree. The result does not depend on the order of the series or of their stacks.

    Args:
        series: the stacks of each sagittal series (T1, T2, STIR, ...).
        backend: a loaded detector.
        spec: input and output of the detector.
        options: box size, labelling weights, slices.

    Raises:
        StudyError: there is no sagittal stack.
    """
    spec = spec or DetectorSpec()
    options = options or DetectionOptions()
    ordered = _not_empty(in_fixed_order(series))
    discs = []
    bodies = []
    views: list[list[Canvas]] = [[] for _ in ordered]
    shared = len(ordered) > 1 and not options.every_slice
    for number, stacks in enumerate(ordered):
        low, high = series_range(stacks, spec)
        for stack in stacks:
            chosen = slices_of_pair(stack.positions_mm, number) if shared else None
            canvas = canvas_from_stack(stack, low, high, spec, chosen)
            canvas_discs, canvas_bodies = peaks_from_maps(
                _maps_of(canvas, backend), canvas, number, spec
            )
            discs.append(canvas_discs)
            bodies.append(canvas_bodies)
            views[number].append(canvas)
    frame = spine_frame([stack for stacks in ordered for stack in stacks])
    return _decode(joined(discs), joined(bodies), views, frame, options) or undetected(
        ordered, options
    )


def _not_empty(series: list[list[Stack]]) -> list[list[Stack]]:
    if not series:
        raise StudyError(Reason.NO_SAGITTAL, "levels need at least one sagittal stack")
    return series


def _maps_of(canvas: Canvas, backend: Model) -> Iterator[F32]:
    """Yield the heat maps `(1, K, h, w)` of a canvas, slice by slice.

    Batches of four take 8 % less time, but runtimes keep a plan for every shape: memory grew by more than a tenth from
    8 studies to 32 (docs/decisions/0013).

    Raises:
        StudyError: the model's output is not finite.
    """
    slices = canvas.slices[:, None]
    for n in range(len(slices)):
        maps = backend.run({"slices": slices[n : n + 1]})["heatmaps"]
        if not np.isfinite(maps).all():
            raise StudyError(
                Reason.INTERNAL_ERROR, "the detector gave numbers that are not finite"
            )
        yield maps


def _decode(
    discs: Peaks,
    bodies: Peaks,
    views: Sequence[Sequence[Canvas]],
    frame: F64,
    options: DetectionOptions,
) -> Detection | None:
    """Turn the peaks of a study into levels, vertebrae and warnings; None if no lumbar disc was found."""
    canvases = [canvas for view in views for canvas in view]
    column = named_column(discs, canvases, frame, options.labelling)
    if column is None:
        return None
    found = column.found(column.labelling.ranks)
    if not any(rank <= 4 for rank in found):
        return None
    levels = complete_levels(found, frame, options.box_mm)
    series_columns: list[NamedColumn] = []
    if len(views) > 1:
        named = (
            named_column(discs.of_series(n), view, frame, options.labelling)
            for n, view in enumerate(views)
        )
        series_columns = [
            series_column for series_column in named if series_column is not None
        ]
    alternative, warnings = doubts(
        column, series_columns, levels, frame, options.box_mm, options.labelling
    )
    if any(level.source == Source.INTERPOLATED for level in levels.values()):
        warnings.add(Warn.LEVEL_INTERPOLATED)
    if any(level.confidence < LOW_CONFIDENCE for level in levels.values()):
        warnings.add(Warn.LOW_CONFIDENCE)
    return Detection(
        levels, _vertebrae(bodies, found, frame), tuple(sorted(warnings)), alternative
    )


def _vertebrae(
    bodies: Peaks, discs: Mapping[int, Found], frame: F64
) -> tuple[Vertebra, ...]:
    """Return the bodies whose centre lies between two neighbouring discs that have a rank, from above."""
    vertebrae: list[Vertebra] = []
    candidates = candidates_from_peaks(bodies, frame)
    places = np.array([c.position_mm for c in candidates]).reshape(-1, 3) @ frame[:2].T
    for rank in sorted(discs, reverse=True):
        if rank + 1 not in discs or rank >= len(BODY_NAMES) or not candidates:
            continue
        middle = (discs[rank].center_mm + discs[rank + 1].center_mm) / 2
        gaps = np.hypot(*(places - frame[:2] @ middle).T)
        nearest = int(np.argmin(gaps))
        if gaps[nearest] < BODY_MM:
            body = candidates[nearest]
            confidence = min(discs[rank].confidence, discs[rank + 1].confidence) * min(
                1.0, body.peak / 0.4
            )
            vertebrae.append(
                Vertebra(BODY_NAMES[rank], body.position_mm, round(confidence, 6))
            )
    return tuple(vertebrae)


def undetected(
    series: Sequence[Sequence[Stack]], options: DetectionOptions | None = None
) -> Detection:
    """Place the five levels by the field of view alone, with a warning: the result if no lumbar disc was found.

    Args:
        series: the stacks of each sagittal series.
        options: box size.

    Raises:
        StudyError: there is no sagittal stack.
    """
    box_mm = (options or DetectionOptions()).box_mm
    stacks = [
        stack for stacks in _not_empty(in_fixed_order(series)) for stack in stacks
    ]
    levels = prior_levels(field_of_view_center(stacks), spine_frame(stacks), box_mm)
    return Detection(levels, (), (Warn.LOW_CONFIDENCE,))
