"""Lays out the outlines over a picture for SVG, in the patient's proportions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from spine_engine.report.content import Outline, Picture
from spine_engine.report.words import EDGE_NAMES, LEVEL_NAMES, percent

WIDTH: Final = 1000.0
"""Width of every drawing in its own units, so that lettering has the same size on all of them."""
_MARGIN: Final = 12.0
_ROOM: Final = 215.0
"""Width of a label such as "L4/L5 >99 %" at the font size of ``page.css``."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """An outline in the drawing's units, with its label and the label's place.

    ``anchor`` is SVG's ``text-anchor``.
    """

    source: str
    points: str
    label: str
    x: float
    y: float
    anchor: str


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """A drawing that covers a picture exactly; ``alt`` describes the picture's edges in words."""

    width: float
    height: float
    shapes: tuple[Shape, ...]
    alt: str


def overlay(picture: Picture) -> Overlay:
    """Return the outlines of a picture in units of a thousandth of its width, which are equal in x and y."""
    unit = WIDTH / (picture.width * picture.pixel_mm[1])
    across = picture.pixel_mm[1] * unit
    down = picture.pixel_mm[0] * unit
    return Overlay(
        width=WIDTH,
        height=round(picture.height * down, 1),
        shapes=tuple(_shape(outline, across, down) for outline in picture.outlines),
        alt=_alt(picture),
    )


def _shape(outline: Outline, across: float, down: float) -> Shape:
    corners = [(x * across, y * down) for x, y in outline.points]
    xs, ys = zip(*corners, strict=True)
    sure = outline.confidence
    right = max(xs) + _MARGIN + _ROOM <= WIDTH  # behind the spine, if there is room
    return Shape(
        source=outline.source,
        points=" ".join(f"{x:.1f},{y:.1f}" for x, y in corners),
        label=f"{LEVEL_NAMES[outline.level]} {'given' if sure is None else percent(sure)}",
        x=round(max(xs) + _MARGIN if right else max(min(xs) - _MARGIN, _ROOM), 1),
        y=round((min(ys) + max(ys)) / 2, 1),
        anchor="start" if right else "end",
    )


def _alt(picture: Picture) -> str:
    left, right, top, bottom = (EDGE_NAMES[edge] for edge in picture.edges)
    levels = ", ".join(LEVEL_NAMES[outline.level] for outline in picture.outlines)
    outlined = f" Outlined: {levels}." if levels else ""
    return (
        f"{picture.name}. {left} is on the left, {right} on the right, {top} at the top, {bottom} at the bottom."
        f"{outlined}"
    )
