"""Draws pictures from pixels and geometry: the overview of a study, the grader's grids, and thumbnails.

Pictures are turned by geometry alone, whatever the order in which a file stores rows, columns and slices: sagittal and
coronal ones head up, sagittal ones anterior to the left, axial ones anterior up; axial and coronal ones have the
patient's right on the picture's left, as radiologists look at them. They are only flipped and transposed, never
interpolated; ``Picture.pixel_mm`` carries the patient's proportions.

An outline is the middle of a level's box, as high and as deep as a disc (``DISC_MM``): boxes of neighbouring levels are
four discs high and overlap, while people look for the disc. It marks the level's place; it is not a segmentation.
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
from spine_engine.report.cloud import ROLE_NAMES
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
"""Distance from the midline at which the neural foramina are shown: the middle of the pedicles, half the distance
between them (21 to 27 mm) plus half the width of one (9 mm at L1, 13 at L4, 18 at L5: Zindrick et al., Spine 12 (1987)
160), is 15 to 22 mm; on real exams 17 mm shows the root in its fat at all five levels."""

AXIAL_MM: Final = (-6.0, 0.0, 6.0)
"""Axial planes, mm below the disc's middle: the foramina just above the disc, the disc, and the lateral recesses where
the roots pass below it. A stack along a disc has three to six slices 4 mm apart."""

_SAGITTAL_PLANES: Final = (
    (-FORAMEN_MM, "right foramen"),
    (0.0, "middle"),
    (FORAMEN_MM, "left foramen"),
)

OVERVIEW_PX: Final = 640
"""Largest edge of an overview; of larger matrices every second (third, ...) row and column is shown. Those are
interpolated (lumbar sagittal acquisitions have 256 to 512 true columns), and two pictures of 1024 x 1024 would fill a
page of 1.5 MB."""

THUMBNAIL_PX: Final = 160
"""Largest edge of a thumbnail: about 15 kB."""

_PNG: Final[dict[str, Any]] = {"level": 1, "strategy": 3, "filter": 128}
"""PNG settings: run lengths of Paeth's prediction. The mid-sagittal slices of five exams and three phantoms take 1.1 ms
and 67 kB each; zlib's level 6 takes 6.7 ms for the same size, its level 4 with the default strategy 2.8 ms and 72."""

_DOWN_RIGHT: Final[dict[Plane, tuple[int, int, int, int]]] = {
    "sagittal": (2, -1, 1, 1),
    "axial": (1, 1, 0, 1),
    "coronal": (2, -1, 0, 1),
}
"""For each kind of plane the patient axis (0 x, 1 y, 2 z of LPS) and sign of the way down, then of the way right."""

_LETTERS: Final = (("R", "L"), ("A", "P"), ("F", "H"))
"""Letters of the low and the high end of each patient axis (LPS)."""


@dataclass(frozen=True, eq=False)
class _View:
    """A plane in the orientation in which it is shown.

    Attributes:
        pixels: ``(R, C)``, a view of the stored pixels.
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

    def picture(
        self, name: str, grey: Grey, outlines: tuple[Outline, ...] = ()
    ) -> Picture:
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


def overview(
    study: Study, levels: Mapping[Level, LevelResult], *, most_px: int = OVERVIEW_PX
) -> tuple[Picture, ...]:
    """Return the mid-sagittal slice of each sagittal T2 and T1 series, with outlines.

    That is the slice nearest to the discs' centres, or the middle one if no level has a place. The grey is the window
    that scales the graders' grids: ``voxels.robust_window`` of the series. No edge has more than ``most_px`` pixels.
    """
    return tuple(
        _mid_sagittal(series, ROLE_NAMES[role], levels, most_px)
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

    A sagittal channel shows the right foramen, the middle and the left foramen; an axial channel shows three planes
    along the disc. Sagittal T2 comes first, then T1, then axial T2. Channels that cover nothing of a level, planes
    without a voxel above 0, and levels without any plane are left out.

    Args:
        grids: ``(5, C, D, H, W)`` in 0..1, from ``level_grids``.
        coverage: ``(5, C)``, the share of each grid that its channel covers.
        entry: the grader's entry of the bundle's manifest.
        levels: the levels that the grids were cut along.
        middle_only: show only the middle plane of each channel.
    """
    shown: dict[Level, tuple[Picture, ...]] = {}
    for k, level in enumerate(LEVELS):
        axes = levels[level].axes if level in levels else None
        if axes is None:
            continue
        pictures: list[Picture] = []
        for role in ROLE_NAMES:
            channel = entry.channels.index(role) if role in entry.channels else None
            if channel is not None and coverage[k, channel] > 0:
                pictures += _grid_planes(
                    grids[k, channel],
                    role,
                    entry,
                    np.array(axes),
                    middle_only=middle_only,
                )
        if pictures:
            shown[level] = tuple(pictures)
    return shown


def thumbnail(stack: Stack, window: IntensityWindow) -> Picture:
    """Return the middle slice of a stack as a small picture, in which whole blocks of pixels are averaged."""
    plane = plane_of(stack)
    middle = _middle(stack)
    view = _slice_view(stack, middle, plane)
    grey = _grey(view.pixels, stack, middle, window)
    block = -(-max(grey.shape) // THUMBNAIL_PX)
    rows, columns = (max(1, size // block) for size in grey.shape)
    if block > 1:
        whole = grey[: rows * block, : columns * block].reshape(
            rows, min(block, grey.shape[0]), columns, -1
        )
        grey = np.rint(whole.mean(axis=(1, 3))).astype(np.uint8)
    small = _View(
        grey,
        view.origin_mm,
        view.down,
        view.right,
        _times(view.pixel_mm, block),
        view.edges,
    )
    return small.picture(
        f"{plane.capitalize()}, middle slice of {len(stack.pixels)}", grey
    )


def plane_of(stack: Stack) -> Plane:
    """Return the kind of plane that is nearest to a stack's slices."""
    kinds: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
    return kinds[int(np.abs(stack.axes[0]).argmax())]


def _mid_sagittal(
    series: Series, name: str, levels: Mapping[Level, LevelResult], most_px: int
) -> Picture:
    present = [level for level in LEVELS if level in levels]
    centers = [
        levels[level].center_mm
        for level in present
        if levels[level].center_mm is not None
    ]
    stack, s = _mid_slice(series.stacks, np.array(centers).reshape(-1, 3))
    view = _thinned(_slice_view(stack, s, "sagittal"), most_px)
    outlines = (_outline(view, level, levels[level]) for level in present)
    count = len(stack.pixels)
    from_right = s + 1 if stack.axes[0, 0] > 0 else count - s
    contrast = " (STIR)" if series.contrast == "stir" else ""
    grey = _grey(view.pixels, stack, s, robust_window(series.stacks))
    title = f"{name}{contrast}, slice {from_right} of {count} from the right"
    return view.picture(
        title, grey, tuple(outline for outline in outlines if outline is not None)
    )


def _mid_slice(stacks: Sequence[Stack], centers_mm: F64) -> tuple[Stack, int]:
    """Return the stack that holds most of the points ``(N, 3)``, and its slice nearest to them on average.

    Without points it is the middle slice of the stack with the most slices.
    """
    if not len(centers_mm):
        largest = max(stacks, key=lambda stack: len(stack.pixels))
        return largest, _middle(largest)

    def held_points(stack: Stack) -> int:
        place = (centers_mm - stack.center_mm) @ stack.axes[1:].T / stack.spacing_mm
        return int(
            (np.abs(place) <= np.array(stack.pixels.shape[1:]) / 2).all(axis=1).sum()
        )

    def distances_mm(stack: Stack) -> F64:
        return np.asarray(
            np.abs(stack.positions_mm[:, None] - centers_mm @ stack.axes[0]).mean(
                axis=1
            )
        )

    stack = min(
        stacks, key=lambda stack: (-held_points(stack), distances_mm(stack).min())
    )
    return stack, int(distances_mm(stack).argmin())


def _middle(stack: Stack) -> int:
    """Return the number of the middle slice; of two middle ones the one further left, back or up."""
    normal = stack.axes[0]
    upwards = normal[np.abs(normal).argmax()] > 0
    return (len(stack.pixels) - (0 if upwards else 1)) // 2


def _slice_view(stack: Stack, s: int, plane: Plane) -> _View:
    """Return slice ``s`` of a stack in the orientation of ``plane``; its in-plane axes are matched to the nearest."""
    _, down, right = stack.axes
    pixels = stack.pixels[s]
    below, _, beside, _ = _DOWN_RIGHT[plane]
    if abs(down[below]) + abs(right[beside]) < abs(down[beside]) + abs(right[below]):
        return _flipped(
            pixels.T, stack.origins_mm[s], right, down, stack.spacing_mm[::-1], plane
        )
    return _flipped(pixels, stack.origins_mm[s], down, right, stack.spacing_mm, plane)


def _flipped(
    pixels: NDArray[Any],
    origin_mm: F64,
    down: F64,
    right: F64,
    pixel_mm: tuple[float, float],
    plane: Plane,
) -> _View:
    """Return a plane with its rows and columns in the order in which ``plane`` is shown."""
    below, down_sign, beside, right_sign = _DOWN_RIGHT[plane]
    if down[below] * down_sign < 0:
        origin_mm = origin_mm + down * pixel_mm[0] * (pixels.shape[0] - 1)
        pixels = pixels[::-1]
        down = -down
    if right[beside] * right_sign < 0:
        origin_mm = origin_mm + right * pixel_mm[1] * (pixels.shape[1] - 1)
        pixels = pixels[:, ::-1]
        right = -right
    top_letter, bottom_letter = _LETTERS[below][::down_sign]
    left_letter, right_letter = _LETTERS[beside][::right_sign]
    return _View(
        pixels,
        origin_mm,
        down,
        right,
        pixel_mm,
        (left_letter, right_letter, top_letter, bottom_letter),
    )


def _thinned(view: _View, largest: int) -> _View:
    """Return every n-th row and column of a view, so that no edge has more than ``largest`` pixels."""
    step = -(-max(view.pixels.shape) // largest)
    if step == 1:
        return view
    pixels = view.pixels[::step, ::step]
    return _View(
        pixels,
        view.origin_mm,
        view.down,
        view.right,
        _times(view.pixel_mm, step),
        view.edges,
    )


def _times(pixel_mm: tuple[float, float], factor: int) -> tuple[float, float]:
    return (pixel_mm[0] * factor, pixel_mm[1] * factor)


def _grey(stored: NDArray[Any], stack: Stack, s: int, window: IntensityWindow) -> Grey:
    """Return stored values of slice ``s`` as grey: the window's low end becomes 0, its high end 255."""
    scale = 255.0 / (window.high - window.low)
    slope = float(stack.slope[s]) * scale
    intercept = (float(stack.intercept[s]) - window.low) * scale
    values = stored * np.float32(slope) + np.float32(intercept + 0.5)
    grey: Grey = np.clip(values, 0.0, 255.5, out=values).astype(np.uint8)
    return grey


def _outline(view: _View, level: Level, place: LevelResult) -> Outline | None:
    """Return the middle of a level's box where it cuts the view; None if it has no place or misses the picture."""
    if place.center_mm is None or place.axes is None or place.size_mm is None:
        return None
    depth, height, width = place.size_mm
    size = np.array([min(depth, DISC_MM[0]), min(height, DISC_MM[1]), width])
    points = box_section(
        np.array(place.center_mm),
        np.array(place.axes),
        size,
        view.origin_mm,
        view.down,
        view.right,
    )
    pixels = points / np.array(view.pixel_mm[::-1]) + 0.5
    shape = view.pixels.shape[::-1]
    if (
        len(points) < 3
        or (pixels.max(axis=0) <= 0).any()
        or (pixels.min(axis=0) >= shape).any()
    ):
        return None
    corners = tuple((x, y) for x, y in pixels.round(2).tolist())
    return Outline(
        level=level, points=corners, confidence=place.confidence, source=place.source
    )


_CORNERS: Final = np.array(
    [[i, j, k] for i in (-0.5, 0.5) for j in (-0.5, 0.5) for k in (-0.5, 0.5)]
)
_EDGES: Final = np.array(
    [(a, b) for a in range(8) for b in range(a + 1, 8) if (a ^ b).bit_count() == 1]
)


def box_section(
    center_mm: F64, axes: F64, size_mm: F64, origin_mm: F64, down: F64, right: F64
) -> F64:
    """Return the convex polygon in which a plane cuts a box, its corners in order; empty if the plane misses the box.

    Frame: patient LPS, mm. The result is ``(N, 2)``: mm to the right of ``origin_mm`` and below it, 3 <= N <= 6 or
    N = 0. ``axes`` has the box's directions as rows, ``size_mm`` its edges along them.
    """
    corners = center_mm + (_CORNERS * size_mm) @ axes - origin_mm
    away = corners @ np.cross(right, down)
    sides = np.sign(away)[_EDGES]
    begin, end = _EDGES[sides[:, 0] != sides[:, 1]].T
    share = away[begin] / (away[begin] - away[end])
    points = corners[begin] + share[:, None] * (corners[end] - corners[begin])
    flat = np.unique(np.stack([points @ right, points @ down], axis=1).round(6), axis=0)
    if len(flat) < 3:
        return np.empty((0, 2))
    x, y = (flat - flat.mean(axis=0)).T
    return np.asarray(flat[np.argsort(np.arctan2(y, x))])


def _grid_planes(
    grid: NDArray[np.float32],
    role: Role,
    entry: GraderEntry,
    axes: F64,
    *,
    middle_only: bool,
) -> list[Picture]:
    """Return the shown planes of one channel's grid ``(D, H, W)`` as pictures; ``axes`` is the disc's own frame."""
    height, depth, width = entry.grid.spacing_mm
    down, back, across = axes
    no_place = np.zeros(3)
    views = []
    if role is Role.AXIAL_T2:
        for below_mm in (0.0,) if middle_only else AXIAL_MM:
            voxels = grid[_voxel(entry, 0, below_mm if down[2] < 0 else -below_mm)]
            view = _flipped(voxels, no_place, back, across, (depth, width), "axial")
            views.append((view, _axial_words(below_mm)))
    else:
        for left_mm, words in (
            _SAGITTAL_PLANES[1:2] if middle_only else _SAGITTAL_PLANES
        ):
            voxels = grid[
                :, :, _voxel(entry, 2, left_mm if across[0] > 0 else -left_mm)
            ]
            view = _flipped(voxels, no_place, down, back, (height, depth), "sagittal")
            views.append((view, words))
    return [
        view.picture(
            f"{ROLE_NAMES[role]}, {words}",
            np.rint(view.pixels * np.float32(255.0)).astype(np.uint8),
        )
        for view, words in views
        if view.pixels.any()
    ]


def _axial_words(below_mm: float) -> str:
    if below_mm == 0:
        return "through the disc"
    return f"{abs(below_mm):.0f} mm {'below' if below_mm > 0 else 'above'} the disc's middle"


def _voxel(entry: GraderEntry, axis: int, away_mm: float) -> int:
    """Return the index along a grid's axis of the voxel ``away_mm`` from the disc's centre, within the grid."""
    grid = entry.grid
    place = (away_mm - grid.center_offset_mm[axis]) / grid.spacing_mm[axis] + (
        grid.shape[axis] - 1
    ) / 2
    return int(np.clip(np.rint(place), 0, grid.shape[axis] - 1))
