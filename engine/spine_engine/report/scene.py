"""Builds the scene that the browser's 3-D view shows of a study, small enough for its page, and the view's own code.

Frame: patient LPS, millimetres. Series are named by their role; a scene holds no path and no text of a header.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import Level
from spine_engine.report.cloud import Cloud, shown_series, study_cloud
from spine_engine.report.words import LEVEL_NAMES, percent
from spine_engine.results import LevelResult
from spine_engine.study import Role, Series, Stack, Study
from spine_engine.voxels.window import IntensityWindow, robust_window

POINTS: Final = 25_000
"""Number of points in a scene: enough to show where each series lies, some 60 kB in a page."""

QUANTUM_MM: Final = 0.1
"""Resolution of positions: a seventh of the finest pixels of lumbar MR or less."""

SLICE_PIXELS: Final = {Role.SAGITTAL_T2: 400, Role.SAGITTAL_T1: 400, Role.AXIAL_T2: 256}
"""Largest number of pixels along the longer side of a scene's slices: 0.7-1.4 mm a pixel."""

JPEG_QUALITY: Final = 85
"""JPEG quality of a scene's slices, which only show where things are: 5-30 kB each; as PNG they were three times larger
and slower. The page itself holds the exact pictures that people read."""

BOX_CORNERS: Final = np.array(
    [[d, h, w] for d in (-0.5, 0.5) for h in (-0.5, 0.5) for w in (-0.5, 0.5)]
)
"""The corners of a box about its centre, in shares of its sides along its three axes, the last axis fastest."""

SOURCE_WORDS: Final = {"interpolated": "interpolated", "prior": "by the field of view"}
"""Words beside a level that the detector did not see."""

Point = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class SceneSeries:
    """A series: its name, its colour (``#rrggbb``), the number of its points, and the frames of its stacks.

    A frame is the eight corners of a stack's first and last slice, in the order of ``BOX_CORNERS``.
    """

    name: str
    colour: str
    points: int
    frames: tuple[tuple[Point, ...], ...]


@dataclass(frozen=True, kw_only=True)
class SceneBox:
    """A level's box: its eight corners in the order of ``BOX_CORNERS``, and the confidence of its place."""

    level: Level
    name: str
    confidence: float | None
    source: str
    corners: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class SceneSlice:
    """One slice as a picture at its place.

    Attributes:
        name: "Sagittal T2, middle slice", "Axial T2 at L4/L5".
        axial: whether the slice belongs to an axial series.
        jpeg: 8-bit grey by the window of the series, perhaps coarser than the slice.
        corners: the picture's upper left, upper right and lower left corner, LPS mm: outer edges, not pixel centres.
    """

    name: str
    axial: bool
    jpeg: bytes
    corners: tuple[Point, Point, Point]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A study in space.

    Attributes:
        series: the series; the points of each follow those of the one before.
        boxes: the boxes of the levels that have a place.
        slices: the middle sagittal slice and the axial slices at the discs.
        origin_mm, quantum_mm: a point lies at ``origin_mm + quantum_mm * (a, b, c)``.
        cloud: zlib; all ``a``, all ``b``, all ``c`` (uint16, little-endian, each as the difference to the one before,
            modulo 65536), then all values (uint8, 255 the brightest).
    """

    series: tuple[SceneSeries, ...]
    boxes: tuple[SceneBox, ...]
    slices: tuple[SceneSlice, ...]
    origin_mm: Point
    quantum_mm: float
    cloud: bytes

    @property
    def points(self) -> int:
        """The number of points."""
        return sum(series.points for series in self.series)

    @property
    def data(self) -> str:
        """The scene as JSON for a data block of a page: plain ASCII without ``<``, ``>`` and ``&``."""
        record: dict[str, Any] = {
            "series": [
                {
                    "name": series.name,
                    "colour": series.colour,
                    "points": series.points,
                    "frames": [_flat(frame) for frame in series.frames],
                }
                for series in self.series
            ],
            "boxes": [
                {
                    "label": f"{box.name} {confidence_words(box.confidence)}",
                    "said": SOURCE_WORDS.get(box.source, ""),
                    "source": box.source,
                    "corners": _flat(box.corners),
                }
                for box in self.boxes
            ],
            "slices": [
                {
                    "axial": image.axial,
                    "jpeg": _base64(image.jpeg),
                    "corners": _flat(image.corners),
                }
                for image in self.slices
            ],
            "origin_mm": self.origin_mm,
            "quantum_mm": self.quantum_mm,
            "cloud": _base64(self.cloud),
        }
        text = json.dumps(record, allow_nan=False, separators=(",", ":"))
        return (
            text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        )

    @property
    def code(self) -> str:
        """The view's script, see ``viewer_code``."""
        return viewer_code()


def study_scene(study: Study, levels: Mapping[Level, LevelResult]) -> Scene:
    """Return the scene of a study and its levels; levels without a place get no box."""
    cloud = study_cloud(study, limit=POINTS)
    counts = np.bincount(cloud.series, minlength=len(cloud.names)).tolist()
    shown = shown_series(study)
    series = tuple(
        SceneSeries(
            name=name, colour="#{:02x}{:02x}{:02x}".format(*cloud.colours[number]), points=counts[number],
            frames=tuple(_points(frame_of(stack)) for stack in shown[number].stacks),
        )
        for number, name in enumerate(cloud.names)
    )  # fmt: skip
    origin_mm, quantum_mm, packed = _packed(cloud)
    return Scene(
        series=series,
        boxes=tuple(_boxes(levels)),
        slices=tuple(_slices(shown, cloud.names, levels)),
        origin_mm=origin_mm,
        quantum_mm=quantum_mm,
        cloud=packed,
    )


@cache
def viewer_code() -> str:
    """Return the 3-D view's script (an ES module, gzip) in base64; ``viewer/`` holds its source and how to build it."""
    return _base64(
        (files("spine_engine.report") / "viewer" / "viewer.js.gz").read_bytes()
    )


def confidence_words(confidence: float | None, source: str = "") -> str:
    """Return the confidence of a level's place, in short: ">99 %", "41 %, interpolated", "given"."""
    if confidence is None:
        return "given"
    source_words = SOURCE_WORDS.get(source)
    return percent(confidence).replace("\u202f", " ") + (
        f", {source_words}" if source_words else ""
    )


def box_corners(level: LevelResult) -> NDArray[np.float64] | None:
    """Return the corners ``(8, 3)`` of a level's box in the order of ``BOX_CORNERS``, LPS mm; None without a place."""
    middle = level.center_mm if level.box_center_mm is None else level.box_center_mm
    if middle is None or level.axes is None or level.size_mm is None:
        return None
    return np.asarray(middle + (BOX_CORNERS * level.size_mm) @ np.array(level.axes))


def level_boxes(
    levels: Mapping[Level, LevelResult],
) -> dict[Level, NDArray[np.float64]]:
    """Return the corners ``(8, 3)`` of the boxes of the levels that have a place, from the top, LPS mm."""
    corners = {level: box_corners(levels[level]) for level in Level if level in levels}
    return {level: box for level, box in corners.items() if box is not None}


def frame_of(stack: Stack) -> NDArray[np.float64]:
    """Return the corners ``(8, 3)`` of a stack's first and last slice, outer pixel edges, LPS mm."""
    rows, columns = stack.pixels.shape[1:]
    down = stack.axes[1] * stack.spacing_mm[0]
    right = stack.axes[2] * stack.spacing_mm[1]
    return np.array(
        [
            origin + r * down + c * right
            for origin in stack.origins_mm[[0, -1]]
            for r in (-0.5, rows - 0.5)
            for c in (-0.5, columns - 0.5)
        ]
    )


def _packed(cloud: Cloud) -> tuple[Point, float, bytes]:
    """Return the origin, quantum and bytes of a cloud, see ``Scene``."""
    points = cloud.points_mm.astype(np.float64)
    low = np.floor(points.min(axis=0)) if len(points) else np.zeros(3)
    extent_mm = float((points - low).max()) if len(points) else 0.0
    quantum_mm = max(QUANTUM_MM, extent_mm / np.iinfo(np.uint16).max)
    places = np.round((points - low) / quantum_mm).astype("<u2").T
    steps = np.diff(places, axis=1, prepend=np.zeros((3, 1), "<u2"))
    values = np.round(cloud.values * 255).astype(np.uint8)
    return (
        _point(low),
        quantum_mm,
        zlib.compress(steps.astype("<u2").tobytes() + values.tobytes(), 6),
    )


def _boxes(levels: Mapping[Level, LevelResult]) -> Iterator[SceneBox]:
    for level, corners in level_boxes(levels).items():
        yield SceneBox(
            level=level,
            name=LEVEL_NAMES[level],
            confidence=None
            if (sure := levels[level].confidence) is None
            else round(sure, 4),
            source=levels[level].source,
            corners=_points(corners),
        )


def _slices(
    shown: Sequence[Series], names: Sequence[str], levels: Mapping[Level, LevelResult]
) -> Iterator[SceneSlice]:
    """Yield the middle slice of the first sagittal series, and for each level the axial slice at its disc."""
    window = cache(lambda number: robust_window(shown[number].stacks))
    if shown and shown[0].role is not Role.AXIAL_T2:
        yield _slice(
            f"{names[0]}, middle slice",
            shown[0],
            window(0),
            *middle_slice(shown[0], levels),
        )
    axial = {
        number: disc_slices(series, levels)
        for number, series in enumerate(shown)
        if series.role is Role.AXIAL_T2
    }
    for level in Level:
        for number, slices in axial.items():
            if level in slices:
                yield _slice(
                    f"{names[number]} at {LEVEL_NAMES[level]}",
                    shown[number],
                    window(number),
                    *slices[level],
                )
                break


def middle_slice(
    series: Series, levels: Mapping[Level, LevelResult]
) -> tuple[Stack, int]:
    """Return the slice of a series (its stack and its number there) nearest to the middle of the discs.

    Without discs it is the slice nearest to the middle of the stacks.
    """
    centers = [
        np.array(level.center_mm)
        for level in levels.values()
        if level.center_mm is not None
    ]
    return _nearest(
        series.stacks,
        np.mean(centers or [stack.center_mm for stack in series.stacks], axis=0),
    )


def disc_slices(
    series: Series, levels: Mapping[Level, LevelResult]
) -> dict[Level, tuple[Stack, int]]:
    """Return for each level the slice of a series (its stack and its number there) at the disc's centre.

    Levels that the series does not cover are left out.
    """
    slices: dict[Level, tuple[Stack, int]] = {}
    for level, place in levels.items():
        if place.center_mm is not None and series.stacks:
            center = np.array(place.center_mm)
            stack, index = _nearest(series.stacks, center)
            if _holds(stack, index, center):
                slices[level] = (stack, index)
    return slices


def _nearest(stacks: Sequence[Stack], point: NDArray[np.float64]) -> tuple[Stack, int]:
    """Return the slice (its stack and its number there) whose plane lies nearest to a point.

    Slices whose picture holds the point come first.
    """

    def order(candidate: tuple[Stack, int]) -> tuple[bool, float]:
        stack, index = candidate
        return not _within(stack, index, point), _distance_mm(stack, index, point)

    nearest = [
        (stack, int(np.argmin(np.abs(stack.positions_mm - stack.axes[0] @ point))))
        for stack in stacks
    ]
    return min(nearest, key=order)


def _distance_mm(stack: Stack, index: int, point: NDArray[np.float64]) -> float:
    return abs(float((point - stack.origins_mm[index]) @ stack.axes[0]))


def _within(stack: Stack, index: int, point: NDArray[np.float64]) -> bool:
    """Tell whether a point, projected on a slice's plane, lies in its picture."""
    place = (
        stack.axes[1:]
        @ (point - stack.origins_mm[index])
        / np.asarray(stack.spacing_mm)
    )
    return bool(
        np.all((place >= -0.5) & (place <= np.asarray(stack.pixels.shape[1:]) - 0.5))
    )


def _holds(stack: Stack, index: int, point: NDArray[np.float64]) -> bool:
    """Tell whether a point lies in a slice: within its picture, at most one slice distance from its plane."""
    return _distance_mm(stack, index, point) <= stack.slice_spacing_mm and _within(
        stack, index, point
    )


def _slice(
    name: str, series: Series, window: IntensityWindow, stack: Stack, index: int
) -> SceneSlice:
    """Return a slice as a small picture of averaged blocks of pixels, with the corners of the averaged part."""
    assert series.role is not None
    image = (
        stack.pixels[index].astype(np.float32) * stack.slope[index]
        + stack.intercept[index]
    )
    block = -(-max(image.shape) // SLICE_PIXELS[series.role])
    rows, columns = (size // block for size in image.shape)
    image = (
        image[: rows * block, : columns * block]
        .reshape(rows, block, columns, block)
        .mean(axis=(1, 3))
    )
    share = np.clip((image - window.low) / (window.high - window.low), 0, 1)
    grey = np.round(share * 255).astype(np.uint8)
    down = stack.axes[1] * stack.spacing_mm[0]
    right = stack.axes[2] * stack.spacing_mm[1]
    corner = stack.origins_mm[index] - (down + right) / 2
    return SceneSlice(
        name=name,
        axial=series.role is Role.AXIAL_T2,
        jpeg=bytes(imagecodecs.jpeg8_encode(grey, level=JPEG_QUALITY)),
        corners=(
            _point(corner),
            _point(corner + columns * block * right),
            _point(corner + rows * block * down),
        ),
    )


def _points(points: Any) -> tuple[Point, ...]:
    return tuple(_point(point) for point in points)


def _point(point: Any) -> Point:
    x, y, z = (round(float(value), 2) for value in point)
    return x, y, z


def _flat(points: Sequence[Point]) -> list[float]:
    """Return the coordinates of points in one list."""
    return [value for point in points for value in point]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
