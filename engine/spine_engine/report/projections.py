"""Draws where the slices of a study lie: three drawings in patient mm, from the side, the front and the feet.

The drawings have one scale. Each slice is the parallelogram that its picture fills, seen from far away. A slice that is
seen rather from its edge is drawn as its middle line, because the outlines of neighbours would cross and hide gaps and
tilts. Nothing is moved: gaps, tilts and overlaps are those of ImagePositionPatient and ImageOrientationPatient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.report.pictures import Plane, plane_of
from spine_engine.report.stack_words import tilt_of
from spine_engine.study import Stack

F64 = NDArray[np.float64]
Rectangle = tuple[float, float, float, float]

GRID_MM: Final = 50.0
"""Distance of the thin lines behind the slices: a lumbar level is 30 to 40 mm high."""

_LETTER: Final = 0.7
"""Width of a letter in heights: the largest average of common sans-serif fonts."""

_FONT: Final = 0.0125
"""Height of lettering in widths of the three drawings together: 13 px if they are 1,100 px wide."""


@dataclass(frozen=True, kw_only=True)
class StackLines:
    """The slices of one stack: an SVG path in mm, and the number of the series."""

    series: int
    path: str


@dataclass(frozen=True, kw_only=True)
class Label:
    """A label: ``x`` is its begin or, by SVG's ``anchor``, its end; ``y`` is its middle height."""

    series: int
    x: float
    y: float
    text: str
    anchor: str


@dataclass(frozen=True, kw_only=True)
class Projection:
    """One drawing; lengths in mm, x to the right and y down, in patient coordinates with a sign.

    Attributes:
        name: the direction that the drawing is seen from.
        edges: the letters to the left, right, top and bottom.
        box: left, top, width and height of the drawing.
        grid: path of the lines every ``GRID_MM``.
        font: height of the lettering.
        lines, labels: the stacks and their names.
    """

    name: str
    edges: tuple[str, str, str, str]
    box: Rectangle
    grid: str
    font: float
    lines: tuple[StackLines, ...]
    labels: tuple[Label, ...]


@dataclass(frozen=True)
class _Seen:
    """A direction to look from.

    Attributes:
        name: its name.
        faces: the kind of slices that face it.
        edges: the letters to the left, right, top and bottom.
        across, down: patient axis and sign of x and of y.
    """

    name: str
    faces: Plane
    edges: tuple[str, str, str, str]
    across: tuple[int, int]
    down: tuple[int, int]

    def flat(self, points: F64) -> F64:
        """Project points ``(..., 3)`` on the drawing, ``(..., 2)``."""
        x, x_sign = self.across
        y, y_sign = self.down
        return np.stack([points[..., x] * x_sign, points[..., y] * y_sign], axis=-1)


_FROM: Final = (
    _Seen("From the left", "sagittal", ("A", "P", "H", "F"), (1, 1), (2, -1)),
    _Seen("From the front", "coronal", ("R", "L", "H", "F"), (0, 1), (2, -1)),
    _Seen("From the feet", "axial", ("R", "L", "A", "P"), (0, 1), (1, 1)),
)


def projections(
    series: Sequence[tuple[str, Sequence[Stack]]],
) -> tuple[Projection, ...]:
    """Return the three drawings of a study's stacks, all to one scale; none if there is no stack.

    Args:
        series: the name of each series, a letter or two, and its stacks; series without stacks keep their number.
    """
    corners = [[slice_corners(stack) for stack in stacks] for _, stacks in series]
    stack_points = [points.reshape(-1, 3) for stacks in corners for points in stacks]
    if not stack_points:
        return ()
    points = np.concatenate(stack_points)
    low = points.min(axis=0)
    high = points.max(axis=0)
    size = high - low
    font = max(_FONT * float(size[1] + 2 * size[0]), 1.0)
    return tuple(_drawing(seen, series, corners, (low, high), font) for seen in _FROM)


def slice_corners(stack: Stack) -> F64:
    """Return the outer corners ``(S, 4, 3)`` of each slice's picture, in order around it, LPS mm."""
    rows, columns = stack.pixels.shape[1:]
    down = stack.axes[1] * stack.spacing_mm[0]
    right = stack.axes[2] * stack.spacing_mm[1]
    ways = np.array(
        [
            [-0.5, -0.5],
            [-0.5, columns - 0.5],
            [rows - 0.5, columns - 0.5],
            [rows - 0.5, -0.5],
        ]
    )
    return np.asarray(stack.origins_mm[:, None] + ways @ np.stack([down, right]))


def _drawing(
    seen: _Seen,
    series: Sequence[tuple[str, Sequence[Stack]]],
    corners: Sequence[Sequence[F64]],
    bounds: tuple[F64, F64],
    font: float,
) -> Projection:
    low, high = np.sort(np.stack([seen.flat(end) for end in bounds]), axis=0)
    lines: list[StackLines] = []
    letters = _Lettering(font)
    for number, (name, stacks) in enumerate(series):
        seen_corners = [seen.flat(points) for points in corners[number]]
        names: dict[str, tuple[F64, Stack]] = {}
        for place, (stack, points) in enumerate(zip(stacks, seen_corners, strict=True)):
            if plane_of(stack) != seen.faces:
                points = _middle_lines(points)
            lines.append(StackLines(series=number, path=_path(points)))
            names[stack_name(name, place, len(stacks))] = (points, stack)
        _name_stacks(letters, number, name, names, seen)
    left, top = low - np.array([1.6, 2.8]) * font
    right, bottom = high + 1.6 * font
    left = min([left, *(x0 - 2.2 * font for x0, _, _, _ in letters.taken)])
    right = max([right, *(x1 + 2.2 * font for _, _, x1, _ in letters.taken)])
    box = tuple(
        round(float(value), 1) for value in (left, top, right - left, bottom - top)
    )
    return Projection(
        name=seen.name,
        edges=seen.edges,
        box=(box[0], box[1], box[2], box[3]),
        grid=_grid((left, top, right, bottom)),
        font=round(font, 2),
        lines=tuple(lines),
        labels=tuple(letters.labels),
    )


def stack_name(series: str, place: int, of: int) -> str:
    """Return the name of a stack: its series' name, followed by a, b, c .. if the series has several stacks."""
    return series if of == 1 else series + lettered(place)


def lettered(number: int) -> str:
    """Return a, b .. z, aa, ab .. for 0, 1 .."""
    letters = ""
    number += 1
    while number:
        number, place = divmod(number - 1, 26)
        letters = chr(ord("a") + place) + letters
    return letters


def _name_stacks(
    letters: _Lettering,
    series: int,
    name: str,
    stacks: Mapping[str, tuple[F64, Stack]],
    seen: _Seen,
) -> None:
    """Put each stack's name before its middle slice if that is a lying line, above it if that is an upright one.

    Slices are lying lines from the side, where the stacks along lumbar discs spread. Several stacks seen as areas lie
    over each other and share the series' name. From the side axial stacks show their tilt.
    """
    areas = [
        own_name for own_name, (points, _) in stacks.items() if points.shape[1] > 2
    ]
    for own_name, (points, stack) in stacks.items():
        low = points.min(axis=(0, 1))
        above = float(low[1]) - 0.8 * letters.font
        middle = points[len(points) // 2]
        wide, tall = np.ptp(middle, axis=0)
        if own_name in areas:
            if own_name == areas[0]:
                letters.put(
                    series, own_name if len(areas) == 1 else name, float(low[0]), above
                )
        elif wide > tall:
            tilted = seen.faces == "sagittal" and plane_of(stack) == "axial"
            degrees = f" {tilt_of(stack).degrees:.0f}°" if tilted else ""
            left_end = float(middle[middle[:, 0].argmin(), 1])
            letters.put(
                series,
                own_name + degrees,
                float(low[0]) - 0.5 * letters.font,
                left_end,
                leftwards=True,
            )
        else:
            letters.put(
                series,
                own_name,
                float(low[0] + points[..., 0].max()) / 2 - 0.3 * letters.font,
                above,
            )


class _Lettering:
    """Labels that do not cover each other: a label that would is moved along its line."""

    def __init__(self, font: float) -> None:
        self.font = font
        self.labels: list[Label] = []
        self.taken: list[Rectangle] = []

    def put(
        self, series: int, text: str, x: float, y: float, *, leftwards: bool = False
    ) -> None:
        """Add a label that begins at ``x`` (or ends there if ``leftwards``), or at the first free place further on."""
        width = _LETTER * self.font * len(text)
        half = 0.65 * self.font
        step = 0.5 * self.font * (-1 if leftwards else 1)
        left = x - width if leftwards else x
        while any(
            x0 < left + width and left < x1 and y0 < y + half and y - half < y1
            for x0, y0, x1, y1 in self.taken
        ):
            left += step
        self.taken.append((left, y - half, left + width, y + half))
        anchor = left + width if leftwards else left
        self.labels.append(
            Label(
                series=series,
                x=round(anchor, 1),
                y=round(y, 1),
                text=text,
                anchor="end" if leftwards else "start",
            )
        )


def _middle_lines(points: F64) -> F64:
    """Return the line ``(S, 2, 2)`` through the middle of each parallelogram ``(S, 4, 2)``, along its longer edges."""
    edges = [points[0, 1] - points[0, 0], points[0, 3] - points[0, 0]]
    across, along = sorted(edges, key=lambda edge: float(edge @ edge))
    starts = points[:, 0] + across / 2
    return np.stack([starts, starts + along], axis=1)


def _path(points: F64) -> str:
    """Return slices ``(S, corners, 2)``, all of one shape, as one SVG path, which is closed unless they are lines."""
    steps = "".join(_step("l", step) for step in np.diff(points[0], axis=0))
    close = "z" if points.shape[1] > 2 else ""
    return "".join(_step("M", corner) + steps + close for corner in points[:, 0])


def _step(command: str, to: F64) -> str:
    x, y = (f"{value + 0.0:.1f}".removesuffix(".0") for value in to.round(1).tolist())
    return f"{command}{x} {y}"


def _grid(box: Rectangle) -> str:
    left, top, right, bottom = box
    columns = (
        np.arange(np.ceil(left / GRID_MM), np.floor(right / GRID_MM) + 1) * GRID_MM
    )
    rows = np.arange(np.ceil(top / GRID_MM), np.floor(bottom / GRID_MM) + 1) * GRID_MM
    upright = [f"M{x:.0f} {top:.1f}V{bottom:.1f}" for x in columns.tolist()]
    lying = [f"M{left:.1f} {y:.0f}H{right:.1f}" for y in rows.tolist()]
    return "".join(upright + lying)
