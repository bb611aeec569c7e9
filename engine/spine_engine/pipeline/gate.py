"""Whether a study may be graded at all: is it a lumbar spine as its headers place it, and are its pictures legible?

The evidence is in the pictures and in what the detector found in them; texts of the headers say nothing here. The
thresholds were chosen on real exams and phantoms, docs/gate.md has the figures (``spine-engine bench gate``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import LEVELS
from spine_engine.detection import Detection
from spine_engine.errors import Reason
from spine_engine.study import Source, Stack

Locate = Callable[[Sequence[tuple[Stack, ...]]], Detection]
"""Finds the levels in the stacks of the sagittal series."""

MIN_SMOOTHNESS: Final = 0.4
"""Correlation of a pixel with its neighbour: 0 in noise, 0.8 and more in exams, 0.55 in slices with noise added."""

MIN_ORDER: Final = 0.45
"""How much more alike neighbouring slices are than others, as a share of what the others differ by: at least 0.6 in
real exams and phantoms, 0.3 in 99 of 100 stacks whose slices were dealt at random."""

ALIKE: Final = 0.97
"""Slices that are this alike, such as copies of one, have no order to speak of."""

FEWEST_SLICES: Final = 7
"""Slices from which their order can be told."""

MIN_DISCS: Final = 3
"""Discs that were found by themselves: real exams show at least four."""

DISC_DISTANCE_MM: Final = (22.0, 55.0)
"""Mean distance of neighbouring lumbar discs; 25 to 45 mm in the exams, and half of that in a neck."""

MIN_CONFIDENCE: Final = 0.24
"""Mean confidence of the five levels below which another body part is likelier."""

SURE: Final = 0.995
"""Mean confidence of the five levels of nearly every sound study that is the right way up: below it other ways up are
tried, and one that reaches it is the right one."""

_THUMBNAIL: Final = 32


def refusal(
    sagittal: Sequence[tuple[Stack, ...]], detection: Detection, locate: Locate
) -> Reason | None:
    """Return why a study must not be graded: ``poor_quality``, ``not_lumbar``, or None.

    Args:
        sagittal: the stacks of each sagittal series.
        detection: the levels that were found in them.
        locate: finds levels; asked again, of turned pictures, only where the levels are not sure.
    """
    stacks = [stack for stacks in sagittal for stack in stacks]
    if any(smoothness(stack) < MIN_SMOOTHNESS or is_dealt(stack) for stack in stacks):
        return Reason.POOR_QUALITY
    if not looks_lumbar(detection) or is_turned(sagittal, detection, locate):
        return Reason.NOT_LUMBAR
    return None


def smoothness(stack: Stack) -> float:
    """Return the correlation of each pixel of a stack's middle slice with the next in its row and its column."""
    image = stack.pixels[len(stack.pixels) // 2].astype(np.float64)
    pairs = ((image[:, :-1], image[:, 1:]), (image[:-1], image[1:]))
    return min(_correlation(first, second) for first, second in pairs)


def is_dealt(stack: Stack) -> bool:
    """Whether the slices of a stack lie in no order: neighbours are no more alike than others."""
    if len(stack.pixels) < FEWEST_SLICES:
        return False
    rows, columns = (
        np.linspace(0, size, _THUMBNAIL + 1).astype(int)[:-1]
        for size in stack.pixels.shape[1:]
    )
    thumbnails = np.add.reduceat(
        np.add.reduceat(stack.pixels.astype(np.float64), rows, axis=1), columns, axis=2
    ).reshape(len(stack.pixels), -1)
    with np.errstate(invalid="ignore"):
        alike = np.nan_to_num(np.corrcoef(thumbnails), nan=1.0)
    apart = np.abs(np.subtract.outer(*[np.arange(len(alike))] * 2))
    neighbours, others = alike[apart == 1].mean(), alike[apart > 1].mean()
    return bool(others < ALIKE and neighbours - others < MIN_ORDER * (1 - others))


def looks_lumbar(detection: Detection) -> bool:
    """Whether enough discs were found, as far from each other as lumbar ones, and with some confidence."""
    levels = [detection.levels[level] for level in LEVELS]
    found = [level.source == Source.DETECTOR for level in levels]
    distances = [
        float(np.linalg.norm(lower.center_mm - upper.center_mm))
        for (upper, lower), both in zip(pairwise(levels), pairwise(found), strict=True)
        if all(both)
    ]
    least, most = DISC_DISTANCE_MM
    return (
        sum(found) >= MIN_DISCS
        and (not distances or least <= sum(distances) / len(distances) <= most)
        and _confidence(detection) >= MIN_CONFIDENCE
    )


def is_turned(
    sagittal: Sequence[tuple[Stack, ...]], detection: Detection, locate: Locate
) -> bool:
    """Whether the levels are sure only with the pictures upside down, or turned by a quarter or a half."""
    if _confidence(detection) >= SURE:
        return False
    for turn in TURNS:
        turned = locate([tuple(map(turn, stacks)) for stacks in sagittal])
        as_many = len(turned.vertebrae) >= len(detection.vertebrae) - 1
        if as_many and _confidence(turned) > SURE:
            return True
    return False


def _upside_down(stack: Stack) -> Stack:
    return _with_pixels(stack, stack.pixels[:, ::-1])


def _half_turned(stack: Stack) -> Stack:
    return _with_pixels(stack, stack.pixels[:, ::-1, ::-1])


def _quarter_turned(stack: Stack) -> Stack:
    row_mm, column_mm = stack.spacing_mm
    turned = _with_pixels(stack, np.rot90(stack.pixels, axes=(1, 2)))
    return replace(turned, spacing_mm=(column_mm, row_mm))


def _quarter_turned_back(stack: Stack) -> Stack:
    return _half_turned(_quarter_turned(stack))


def _with_pixels(stack: Stack, pixels: NDArray[Any]) -> Stack:
    return replace(stack, pixels=np.ascontiguousarray(pixels))


TURNS: Final = (_half_turned, _upside_down, _quarter_turned, _quarter_turned_back)


def _confidence(detection: Detection) -> float:
    return float(np.mean([detection.levels[level].confidence for level in LEVELS]))


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first * first).sum() * (second * second).sum()))
    return float((first * second).sum()) / scale if scale > 0 else 1.0
