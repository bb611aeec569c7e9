"""Finds the five disc levels of a study by SpineNet's three networks: find, join, name, and let the series vote.

Frame: patient LPS mm; the spine frame has rows (down, back, across).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from spine_engine.backends.base import Model
from spine_engine.detection.detect import DetectionOptions, undetected
from spine_engine.detection.levels import (
    LOW_CONFIDENCE,
    RANK_OF_LEVEL,
    Detection,
    Found,
    Vertebra,
    complete_levels,
)
from spine_engine.detection.slices import in_fixed_order, spine_frame
from spine_engine.detection.spinenet.beam import CLASS_NAMES, named_column
from spine_engine.detection.spinenet.decode import MAPS, Polygons, polygons_from_maps
from spine_engine.detection.spinenet.joining import (
    LEFT_BOTTOM,
    LEFT_TOP,
    RIGHT_BOTTOM,
    RIGHT_TOP,
    Body,
    bodies_from_slices,
    without_doubles,
)
from spine_engine.detection.spinenet.labels import (
    context_column,
    log_softmax,
    volume_round,
)
from spine_engine.detection.spinenet.patches import (
    PATCH_PX,
    PatchGrid,
    patch_grid,
    patches_from_slice,
)
from spine_engine.detection.spinenet.view import View, view_from_stack
from spine_engine.errors import Reason, StudyError, Warn
from spine_engine.study import Source, Stack

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

AGREE_MM = 10.0
"""Distance in the sagittal plane below which two discs are one: lumbar discs lie 33-41 mm apart, detections err 1-5."""

DISPUTED = 0.5
"""Share of its confidence that a level keeps if another series numbers the column otherwise: one of two is wrong."""

PITCH_HEIGHTS = 1.3
"""Distance from one body's centre to the next, in body heights: discs are a quarter to two fifths as high (Panjabi et
al., Spine 17 (1992) 299). At twice that distance, rounded, there is room for a missed vertebra."""


@dataclass(frozen=True, eq=False)
class _Column:
    """The column of one stack: its discs by rank (0 = L5/S1), its vertebrae by name, and its cost per vertebra."""

    found: Mapping[int, Found]
    vertebrae: Mapping[str, Vertebra]
    cost: float


def detect_vertebra_field(
    series: Sequence[Sequence[Stack]],
    field_net: Model,
    appearance_net: Model,
    context_net: Model,
    options: DetectionOptions | None = None,
) -> Detection:
    """Find the five disc levels of a study by SpineNet V2's method (arXiv 2205.01683, 2007.02606).

    Every stack of every sagittal series is labelled alone: the papers label one volume at a time, and two stacks of a
    series may show different stations of the spine. Where the stacks agree, their discs are averaged; where they do
    not, the stack with the lower cost per vertebra wins, and the result carries the warning `series_disagree`. The
    result does not depend on the order of the series or of their stacks. Memory is bounded: the networks take one
    patch, volume or column a call, which also keeps a runtime from storing a plan for every batch size it meets.

    Args:
        series: the stacks of each sagittal series (T1, T2, STIR, ...).
        field_net, appearance_net, context_net: the loaded networks.
        options: the box around each level; the labelling weights are not used here.

    Raises:
        StudyError: there is no sagittal stack, or a network gives an output of another name or shape, or one that is
            not finite.
    """
    options = options or DetectionOptions()
    stacks = [stack for stacks in in_fixed_order(series) for stack in stacks]
    views = [view_from_stack(stack) for stack in stacks]
    columns = [
        _column_of(view, field_net, appearance_net, context_net) for view in views
    ]
    named = [column for column in columns if column is not None and column.found]
    if not any(
        rank in column.found for column in named for rank in RANK_OF_LEVEL.values()
    ):
        return undetected(series, options)
    frame = spine_frame(stacks)
    found, vertebrae, warnings = _joined(named, frame)
    levels = complete_levels(found, frame, options.box_mm)
    if any(level.source == Source.INTERPOLATED for level in levels.values()):
        warnings.add(Warn.LEVEL_INTERPOLATED)
    if any(level.confidence < LOW_CONFIDENCE for level in levels.values()):
        warnings.add(Warn.LOW_CONFIDENCE)
    return Detection(levels, vertebrae, tuple(sorted(warnings)))


def _column_of(
    view: View, field_net: Model, appearance_net: Model, context_net: Model
) -> _Column | None:
    """Find and name the vertebrae of one view; None if it shows none."""
    grid = patch_grid(view)
    polygons = [
        _seen(view, number, grid, field_net) for number in range(len(view.pixels))
    ]
    bodies = bodies_from_slices(view, polygons)
    if not bodies:
        return None
    volumes = (volume_round(view, body)[None, None] for body in bodies)
    shape = (1, len(CLASS_NAMES))
    scores = np.concatenate(
        [
            _answer(appearance_net, "volumes", volume, "scores", shape)
            for volume in volumes
        ]
    )
    column, rows = context_column(
        view, bodies, np.exp(log_softmax(scores.astype(np.float64)))
    )
    refined = _answer(context_net, "columns", column, "scores", column.shape)[
        0, 0, rows
    ]
    missed = [_missed_between(upper, lower) for upper, lower in pairwise(bodies)]
    naming = named_column(log_softmax(refined.astype(np.float64)), missed)
    vertebrae = {
        name: Vertebra(name, body.center_mm, round(float(probability), 6))
        for name, body, probability in zip(
            naming.names, bodies, naming.probability, strict=True
        )
    }
    discs = {}
    for number, (upper, lower) in enumerate(pairwise(bodies)):
        upper_class, rank = naming.classes[number : number + 2].tolist()
        if upper_class == rank + 1:
            discs[rank] = _disc_between(
                upper, lower, float(naming.probability[number : number + 2].min())
            )
    return _Column(discs, vertebrae, naming.cost / len(bodies))


def _seen(view: View, number: int, grid: PatchGrid, net: Model) -> Polygons:
    """Return the vertebrae of one slice as points of the picture, each once."""
    patches = patches_from_slice(view, number, grid)
    shape = (1, MAPS, PATCH_PX, PATCH_PX)
    by_patch = []
    for index in range(len(patches)):
        maps = _answer(net, "patches", patches[index : index + 1], "maps", shape)
        (polygons,) = polygons_from_maps(maps)
        by_patch.append(
            Polygons(
                grid.to_picture(index, polygons.corners), polygons.seen, polygons.heat
            )
        )
    return without_doubles(
        Polygons(
            np.concatenate([polygons.corners for polygons in by_patch]),
            np.concatenate([polygons.seen for polygons in by_patch]),
            np.concatenate([polygons.heat for polygons in by_patch]),
        )
    )


def _answer(
    net: Model, given: str, array: F32, wanted: str, shape: tuple[int, ...]
) -> F32:
    """Run a network and return its output ``wanted``; refuse an output of another name or shape, or not finite."""
    outputs = net.run({given: array})
    if wanted not in outputs or outputs[wanted].shape != shape:
        got = ", ".join(
            f"{name} {tuple(output.shape)}" for name, output in outputs.items()
        )
        detail = f"the network that takes {given} {array.shape} gave {got or 'nothing'}, want {wanted} {shape}"
        raise StudyError(Reason.INTERNAL_ERROR, detail)
    if not np.isfinite(outputs[wanted]).all():
        raise StudyError(
            Reason.INTERNAL_ERROR,
            f"the network that takes {given} gave numbers that are not finite",
        )
    return outputs[wanted]


def _missed_between(upper: Body, lower: Body) -> int:
    """Return for how many vertebrae there is room between two."""
    apart_mm = float(np.linalg.norm(upper.center_mm - lower.center_mm))
    return max(
        round(2 * apart_mm / (PITCH_HEIGHTS * (upper.height_mm + lower.height_mm))) - 1,
        0,
    )


def _disc_between(upper: Body, lower: Body, confidence: float) -> Found:
    """Place the disc between two neighbouring vertebrae: halfway between their facing edges, along the edges' mean."""
    above = upper.corners_mm[[RIGHT_BOTTOM, LEFT_BOTTOM]]
    below = lower.corners_mm[[RIGHT_TOP, LEFT_TOP]]
    edges = np.stack([above[0] - above[1], below[0] - below[1]])
    direction = (edges / np.linalg.norm(edges, axis=1, keepdims=True)).mean(axis=0)
    return Found((above.mean(axis=0) + below.mean(axis=0)) / 2, direction, confidence)


def _joined(
    columns: Sequence[_Column], frame: F64
) -> tuple[dict[int, Found], tuple[Vertebra, ...], set[Warn]]:
    """Join the columns: average those that agree with the cheapest; leave out the others and warn.

    Two columns agree if every disc that both show has the same rank in both. One that disagrees is left out whole,
    because its other discs are numbered by the same mistake. Columns without a lumbar disc come last, whatever their
    cost.
    """
    highest_rank = max(RANK_OF_LEVEL.values())
    best, *others = sorted(
        columns, key=lambda column: (min(column.found) > highest_rank, column.cost)
    )
    agreeing = [best, *(column for column in others if _agree(best, column, frame))]
    share = 1.0 if len(agreeing) == len(columns) else DISPUTED
    joined: dict[int, Found] = {}
    for rank in sorted({rank for column in agreeing for rank in column.found}):
        discs = [column.found[rank] for column in agreeing if rank in column.found]
        joined[rank] = Found(
            np.mean([disc.center_mm for disc in discs], axis=0),
            np.mean([disc.direction for disc in discs], axis=0),
            share * float(np.mean([disc.confidence for disc in discs])),
        )
    vertebrae = []
    for name in {name for column in agreeing for name in column.vertebrae}:
        bodies = [
            column.vertebrae[name] for column in agreeing if name in column.vertebrae
        ]
        center_mm = np.mean([body.center_mm for body in bodies], axis=0)
        confidence = share * float(np.mean([body.confidence for body in bodies]))
        vertebrae.append(Vertebra(name, center_mm, round(confidence, 6)))
    vertebrae.sort(key=lambda body: (float(body.center_mm @ frame[0]), body.name))
    return joined, tuple(vertebrae), set() if share == 1.0 else {Warn.SERIES_DISAGREE}


def _agree(column: _Column, other: _Column, frame: F64) -> bool:
    """Tell whether two columns give every disc that both show the same rank; they may show different parts."""
    for rank, disc in column.found.items():
        for other_rank, other_disc in other.found.items():
            near = (
                np.linalg.norm((disc.center_mm - other_disc.center_mm) @ frame[:2].T)
                < AGREE_MM
            )
            if near != (rank == other_rank):
                return False
    return True
