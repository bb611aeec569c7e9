"""Pixels and geometry into pictures for people: the overview of a study, what the grader saw, and thumbnails.

Pictures are turned by geometry alone, whatever the order in which a file stores rows, columns and slices: sagittal and
coronal ones head up, sagittal ones anterior to the left, axial ones anterior up; axial and coronal ones have the
patient's right on the picture's left, as radiologists look at them. They are only flipped and transposed, never
interpolated; ``Picture.pixel_mm`` carries the patient's proportions.

An outline is the middle of a level's box, as high and as deep as a disc (``DISC_MM``): boxes of neighbouring levels are
four discs high and overlap, and people look for the disc. It marks the place that was found; it is no segmentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import LEVELS, Level
from spine_engine.bundle.manifest import GraderEntry
from spine_engine.report.content import Outline, Picture
from spine_engine.results import LevelResult
from spine_engine.study import Role, Series, Stack, Study
from spine_engine.voxels import IntensityWindow, robust_window

F64 = NDArray[np.float64]
Grey = NDArray[np.uint8]
Plane = Literal["sagittal", "axial", "coronal"]

DISC_MM: Final = (12.0, 40.0)
"""Height and depth of an outline: lumbar discs are 8 to 14 mm high, and the end plates 33 to 36 mm deep (Panjabi et
al., Spine 17 (1992) 299); a little more, so that the line runs beside the disc and does not hide its edge."""

FORAMEN_MM: Final = 17.0
"""How far to each side of the midline the neural foramina are shown: the middle of the pedicles, half the distance
between them (21 to 27 mm) plus half the width of one (9 mm at L1, 13 at L4, 18 at L5: Zindrick et al., Spine 12 (1987)
160) is 15 to 22 mm; on real exams 17 mm shows the root in its fat at all five levels."""

AXIAL_MM: Final = (-6.0, 0.0, 6.0)
"""Axial planes, mm below the disc's middle: the foramina just above the disc, the disc, and the lateral recesses where
the roots pass below it. A stack along a disc has three to six slices 4 mm apart."""

_SAGITTAL_PLANES: Final = ((-FORAMEN_MM, "right foramen"), (0.0, "middle"), (FORAMEN_MM, "left foramen"))

OVERVIEW_PX: Final = 640
"""Of larger matrices every second (third, ...) row and column is shown: they are interpolated ones (lumbar sagittal
acquisitions have 256 to 512 true columns), and two pictures of 1024 x 1024 would fill a page of 1.5 MB."""

THUMBNAIL_PX: Final = 160
"""Largest edge of a thumbnail, in pixels: about 15 kB."""

_PNG: Final[dict[str, Any]] = {"level": 1, "strategy": 3, "filter": 128}
"""Run lengths of Paeth's prediction. On the mid-sagittal slices of five exams and three phantoms: 1.1 ms and 67 kB
each; zlib's level 6 takes 6.7 ms for as many bytes, its level 4 with the default strategy 2.8 ms for 72 kB."""

_ROLE_WORDS: Final = {
    Role.SAGITTAL_T2: "Sagittal T2",
    Role.SAGITTAL_T1: "Sagittal T1",
    Role.AXIAL_T2: "Axial T2",
}

_DOWN_RIGHT: Final[dict[Plane, tuple[int, int, int, int]]] = {
    "sagittal": (2, -1, 1, 1),
    "axial": (1, 1, 0, 1),
    "coronal": (2, -1, 0, 1),
}
"""For each kind of plane the patient axis (0 x, 1 y, 2 z of LPS) and sign of the way down, then of the way right."""

_LETTERS: Final = (("R", "L"), ("A", "P"), ("F", "H"))
"""What lies at the low and at the high end of each patient axis (LPS)."""


@dataclass(frozen=True, eq=False)
class _View:
    """A plane as it is shown.

    Attributes:
        pixels: ``(R, C)``, a view of what was turned.
        origin_mm: ``(3,)`` LPS, the centre of the pixel in the upper left corner.
        down, right: ``(3,)`` unit vectors, LPS.
        pixel_mm: height and width of a pixel.
        edges: letters to the left, right, top and bottom.
    """

    pixels: NDArray[Any]
    origin_mm: F64
    down: F64
    right: F64
    pixel_mm: tuple[float, float]
    edges: tuple[str, str, str, str]

    def picture(self, name: str, grey: Grey, outlines: tuple[Outline, ...] = ()) -> Picture:
        """Return ``grey``, of the shape of ``pixels``, as a picture."""
        height, width = grey.shape
        png = imagecodecs.png_encode(np.ascontiguousarray(grey), **_PNG)
        return Picture(
            name=name,
            png=bytes(png),
            width=width,
            height=height,
            pixel_mm=self.pixel_mm,
            edges=self.edges,
            outlines=outlines,
        )


def overview(study: Study, levels: Mapping[Level, LevelResult], *, most_px: int = OVERVIEW_PX) -> tuple[Picture, ...]:
    """Return the mid-sagittal slice of the sagittal T2 and of the T1 series, as far as there are any, with outlines.

    That is the slice nearest to the discs' centres; where no level has a place, the middle one. The grey is the window
    that the graders' grids are scaled with: ``voxels.robust_window`` of the series. No edge has more than ``most_px``.
    """
    return tuple(
        _mid_sagittal(series, _ROLE_WORDS[role], levels, most_px)
        for role in (Role.SAGITTAL_T2, Role.SAGITTAL_T1)
        for series in study.with_role(role)
        if series.stacks
    )


def crops(
    grids: NDArray[np.float32],
    coverage: F64,
    entry: GraderEntry,
    levels: Mapping[Level, LevelResult],
    *,
    middle_only: bool = False,
) -> dict[Level, tuple[Picture, ...]]:
    """Return planes of the grids that the grader saw, voxel for voxel: a pixel is ``round(255 * voxel)``.

    For each sagittal channel the right foramen, the middle and the left foramen; for an axial channel three planes
    along the disc. Sagittal T2 comes first, then T1, then axial T2. A channel that covers nothing of a level is left
    out, and so are planes without a voxel above 0, and levels of which nothing is left.

    Args:
        grids: ``(5, C, D, H, W)`` in 0..1, as ``grading.level_grids`` gives them.
        coverage: ``(5, C)``, the share of each grid that its channel covers.
        entry: what the bundle says of the grader.
        levels: the levels that the grids were cut along.
        middle_only: leave out all planes but the one in the middle of each channel.
    """
    shown: dict[Level, tuple[Picture, ...]] = {}
    for k, level in enumerate(LEVELS):
        axes = levels[level].axes if level in levels else None
        if axes is None:
            continue
        pictures = [
            picture
            for role in _ROLE_WORDS
            if role in entry.channels and coverage[k, (channel := entry.channels.index(role))] > 0
            for picture in _grid_planes(grids[k, channel], role, entry, np.array(axes), middle_only=middle_only)
        ]
        if pictures:
            shown[level] = tuple(pictures)
    return shown


def thumbnail(stack: Stack, window: IntensityWindow) -> Picture:
    """Return the middle slice of a stack, small: whole blocks of pixels are averaged into one."""
    plane = plane_of(stack)
    middle = _middle(stack)
    view = _slice_view(stack, middle, plane)
    grey = _grey(view.pixels, stack, middle, window)
    block = -(-max(grey.shape) // THUMBNAIL_PX)
    rows, columns = (max(1, size // block) for size in grey.shape)
    if block > 1:
        whole = grey[: rows * block, : columns * block].reshape(rows, min(block, grey.shape[0]), columns, -1)
        grey = np.rint(whole.mean(axis=(1, 3))).astype(np.uint8)
    small = _View(grey, view.origin_mm, view.down, view.right, _times(view.pixel_mm, block), view.edges)
    return small.picture(f"{plane.capitalize()}, middle slice of {len(stack.pixels)}", grey)


def plane_of(stack: Stack) -> Plane:
    """Return the kind of plane that lies nearest to a stack's slices."""
    kinds: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
    return kinds[int(np.abs(stack.axes[0]).argmax())]


def _mid_sagittal(series: Series, name: str, levels: Mapping[Level, LevelResult], most_px: int) -> Picture:
    centers = np.array([levels[k].center_mm for k in LEVELS if k in levels and levels[k].center_mm is not None])
    stack, s = _mid_slice(series.stacks, centers.reshape(-1, 3))
    view = _thinned(_slice_view(stack, s, "sagittal"), most_px)
    outlines = tuple(
        outline for level in LEVELS if level in levels if (outline := _outline(view, level, levels[level])) is not None
    )
    count = len(stack.pixels)
    from_right = s + 1 if stack.axes[0, 0] > 0 else count - s
    contrast = " (STIR)" if series.contrast == "stir" else ""
    grey = _grey(view.pixels, stack, s, robust_window(series.stacks))
    return view.picture(f"{name}{contrast}, slice {from_right} of {count} from the right", grey, outlines)


def _mid_slice(stacks: Sequence[Stack], centers_mm: F64) -> tuple[Stack, int]:
    """Return the stack that holds most of the points ``(N, 3)``, and its slice nearest to them on average; without
    points the middle of the stack with the most slices."""
    if not len(centers_mm):
        largest = max(stacks, key=lambda stack: len(stack.pixels))
        return largest, _middle(largest)

    def held(stack: Stack) -> int:
        place = (centers_mm - stack.center_mm) @ stack.axes[1:].T / stack.spacing_mm
        return int((np.abs(place) <= np.array(stack.pixels.shape[1:]) / 2).all(axis=1).sum())

    def distances(stack: Stack) -> F64:
        away: F64 = np.abs(stack.positions_mm[:, None] - centers_mm @ stack.axes[0]).mean(axis=1)
        return away

    stack = min(stacks, key=lambda stack: (-held(stack), distances(stack).min()))
    return stack, int(distances(stack).argmin())


def _middle(stack: Stack) -> int:
    """Return the number of the middle slice; of two the one further left, back or up, in whatever order they are."""
    normal = stack.axes[0]
    upwards = normal[np.abs(normal).argmax()] > 0
    return (len(stack.pixels) - (0 if upwards else 1)) // 2


def _slice_view(stack: Stack, s: int, plane: Plane) -> _View:
    """Return slice ``s`` of a stack as a plane of the kind ``plane`` is shown; in-plane axes by the nearest one."""
    _, down, right = stack.axes
    pixels, spacing_mm = stack.pixels[s], stack.spacing_mm
    below, _, beside, _ = _DOWN_RIGHT[plane]
    if abs(down[below]) + abs(right[beside]) < abs(down[beside]) + abs(right[below]):
        pixels, down, right, spacing_mm = pixels.T, right, down, (spacing_mm[1], spacing_mm[0])
    return _flipped(pixels, stack.origins_mm[s], down, right, spacing_mm, plane)


def _flipped(
    pixels: NDArray[Any], origin_mm: F64, down: F64, right: F64, pixel_mm: tuple[float, float], plane: Plane
) -> _View:
    """Return a plane with its rows and columns in the order in which ``plane`` is shown."""
    below, down_sign, beside, right_sign = _DOWN_RIGHT[plane]
    if down[below] * down_sign < 0:
        origin_mm = origin_mm + down * pixel_mm[0] * (pixels.shape[0] - 1)
        pixels, down = pixels[::-1], -down
    if right[beside] * right_sign < 0:
        origin_mm = origin_mm + right * pixel_mm[1] * (pixels.shape[1] - 1)
        pixels, right = pixels[:, ::-1], -right
    top, bottom = _LETTERS[below][::down_sign]
    left, far = _LETTERS[beside][::right_sign]
    return _View(pixels, origin_mm, down, right, pixel_mm, (left, far, top, bottom))


def _thinned(view: _View, largest: int) -> _View:
    """Return every n-th row and column of a view, so that no edge has more than ``largest`` pixels."""
    step = -(-max(view.pixels.shape) // largest)
    if step == 1:
        return view
    pixels = view.pixels[::step, ::step]
    return _View(pixels, view.origin_mm, view.down, view.right, _times(view.pixel_mm, step), view.edges)


def _times(pixel_mm: tuple[float, float], factor: int) -> tuple[float, float]:
    return (pixel_mm[0] * factor, pixel_mm[1] * factor)


def _grey(stored: NDArray[Any], stack: Stack, s: int, window: IntensityWindow) -> Grey:
    """Return stored values of slice ``s`` as grey: the window's low end is 0, its high end 255."""
    scale = 255.0 / (window.high - window.low)
    slope, intercept = float(stack.slope[s]) * scale, (float(stack.intercept[s]) - window.low) * scale
    values = stored * np.float32(slope) + np.float32(intercept + 0.5)
    grey: Grey = np.clip(values, 0.0, 255.5, out=values).astype(np.uint8)
    return grey


def _outline(view: _View, level: Level, found: LevelResult) -> Outline | None:
    """Return the middle of a level's box where it cuts the view; None where it has no place or misses the picture."""
    if found.center_mm is None or found.axes is None or found.size_mm is None:
        return None
    depth, height, width = found.size_mm
    size = np.array([min(depth, DISC_MM[0]), min(height, DISC_MM[1]), width])
    points = box_section(np.array(found.center_mm), np.array(found.axes), size, view.origin_mm, view.down, view.right)
    pixels = points / np.array(view.pixel_mm[::-1]) + 0.5
    shape = view.pixels.shape[::-1]
    if len(points) < 3 or (pixels.max(axis=0) <= 0).any() or (pixels.min(axis=0) >= shape).any():
        return None
    corners = tuple((x, y) for x, y in pixels.round(2).tolist())
    return Outline(level=level, points=corners, confidence=found.confidence, source=found.source)


_CORNERS: Final = np.array([[i, j, k] for i in (-0.5, 0.5) for j in (-0.5, 0.5) for k in (-0.5, 0.5)])
_EDGES: Final = np.array([(a, b) for a in range(8) for b in range(a + 1, 8) if (a ^ b).bit_count() == 1])


def box_section(center_mm: F64, axes: F64, size_mm: F64, origin_mm: F64, down: F64, right: F64) -> F64:
    """Return the convex polygon in which a plane cuts a box, its corners in order round it; empty where it misses.

    Frame: patient LPS, mm. The result is ``(N, 2)``: mm to the right of ``origin_mm`` and below it, 3 <= N <= 6 or
    N = 0. ``axes`` has the box's directions as rows, ``size_mm`` its edges along them.
    """
    corners = center_mm + (_CORNERS * size_mm) @ axes - origin_mm
    away = corners @ np.cross(right, down)
    one, other = _EDGES[np.sign(away[_EDGES[:, 0]]) != np.sign(away[_EDGES[:, 1]])].T
    if not len(one):
        return np.empty((0, 2))
    share = away[one] / (away[one] - away[other])
    points = corners[one] + share[:, None] * (corners[other] - corners[one])
    flat = np.unique(np.stack([points @ right, points @ down], axis=1).round(6), axis=0)
    if len(flat) < 3:
        return np.empty((0, 2))
    x, y = (flat - flat.mean(axis=0)).T
    polygon: F64 = flat[np.argsort(np.arctan2(y, x))]
    return polygon


def _grid_planes(
    grid: NDArray[np.float32], role: Role, entry: GraderEntry, axes: F64, *, middle_only: bool
) -> list[Picture]:
    """Return the planes of one channel's grid ``(D, H, W)`` that are shown, from the disc's own frame ``axes``."""
    height, depth, width = entry.grid.spacing_mm
    down, back, across = axes
    no_place = np.zeros(3)
    pictures = []
    if role is Role.AXIAL_T2:
        for below_mm in (0.0,) if middle_only else AXIAL_MM:
            voxels = grid[_voxel(entry, 0, below_mm if down[2] < 0 else -below_mm)]
            view = _flipped(voxels, no_place, back, across, (depth, width), "axial")
            pictures.append((view, _axial_words(below_mm)))
    else:
        for left_mm, words in _SAGITTAL_PLANES[1:2] if middle_only else _SAGITTAL_PLANES:
            voxels = grid[:, :, _voxel(entry, 2, left_mm if across[0] > 0 else -left_mm)]
            view = _flipped(voxels, no_place, down, back, (height, depth), "sagittal")
            pictures.append((view, words))
    return [
        view.picture(f"{_ROLE_WORDS[role]}, {words}", np.rint(view.pixels * np.float32(255.0)).astype(np.uint8))
        for view, words in pictures
        if view.pixels.any()
    ]


def _axial_words(below_mm: float) -> str:
    if below_mm == 0:
        return "through the disc"
    return f"{abs(below_mm):.0f} mm {'below' if below_mm > 0 else 'above'} the disc's middle"


def _voxel(entry: GraderEntry, axis: int, away_mm: float) -> int:
    """Return the index along a grid's axis of what lies ``away_mm`` from the disc's centre; at most the last voxel."""
    grid = entry.grid
    place = (away_mm - grid.center_offset_mm[axis]) / grid.spacing_mm[axis] + (grid.shape[axis] - 1) / 2
    return int(np.clip(np.rint(place), 0, grid.shape[axis] - 1))
