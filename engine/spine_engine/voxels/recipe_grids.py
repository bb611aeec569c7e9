"""Makes the grids of recipes that pool scattered points, straight from the stored pixels; no cloud is held in memory.

Frame: patient LPS mm. Inside, grids have the axes x, y, z, each ascending; the recipe's own axes come last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.errors import Reason, StudyError
from spine_engine.study import Role, StoredSlice, Study
from spine_engine.voxels.oriented_box import OrientedBox, oriented_box
from spine_engine.voxels.recipe import GridRecipe, Margins

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

MAX_VOXELS: Final = 1 << 26
"""Most voxels of a channel before the second resize: a box of 400 mm edges at 1 mm."""

MAX_THICKNESS_MM: Final = 200
"""Thickest slice that is read: localizers have 10 mm, thick slabs 100."""

LOW_PERCENT, HIGH_PERCENT = 1.0, 99.0
"""Percentiles of a channel that become 0 and 1 in the intensity ``percentiles``."""

_SIGNED_PLUS: Final = 0x8001
"""Added to stored values where some may be negative: the lowest becomes 1, and 0 is left for empty voxels."""


@dataclass(frozen=True, eq=False)
class SlicePoints:
    """One slice as points, line by line: the arguments of the kernels in ``recipe_kernels``, which describe them."""

    values: NDArray[np.uint16]
    steps: tuple[int, int]
    signed: bool
    lines: F64
    along: F64
    shift: F64
    copies: int


@dataclass(frozen=True, eq=False)
class StudyPoints:
    """The points of a study by channel, for any number of grids.

    Attributes:
        recipe: how they were made.
        channels: the slices of each channel that give at least one point.
        without_thickness: how many slices have no SliceThickness, and counted as one copy.
    """

    recipe: GridRecipe
    channels: tuple[tuple[SlicePoints, ...], ...]
    without_thickness: int

    @property
    def present(self) -> NDArray[np.bool_]:
        """Whether each channel has any slice ``(C,)``."""
        return np.array([bool(channel) for channel in self.channels])


def study_points(study: Study, recipe: GridRecipe) -> StudyPoints:
    """Gather the slices of a study that a recipe's channels take, resized and placed as it says.

    Raises:
        StudyError: a slice is thicker than any scanner makes them.
        ValueError: the recipe does not scatter points.
    """
    if recipe.is_native or recipe.channels is None:
        raise ValueError(f"the recipe {recipe.name} scatters no points")
    channels: list[tuple[SlicePoints, ...]] = []
    without = 0
    for kind in recipe.channels:
        every = recipe.series == "every-of-kind"
        chosen = [
            series
            for series in study.series
            if (series.kind if every else series.role) is kind
        ]
        slices = [one for series in chosen for one in series.stored]
        without += sum(one.thickness_mm is None for one in slices)
        points = (
            _points(one, kind, recipe) for one in slices if _copies(one, recipe) > 0
        )
        channels.append(tuple(points))
    return StudyPoints(
        recipe, tuple(channels), without if recipe.thickening != "none" else 0
    )


def whole_grid(points: StudyPoints, out: F32 | None = None) -> F32:
    """Return the grid of a whole study ``(C, *shape)`` float32, by a recipe whose box is the cloud's.

    Args:
        points: the study's points.
        out: ``(C, *shape)`` float32, C-contiguous, to be filled and returned.

    Raises:
        StudyError: the study has no point.
    """
    everywhere = np.array([[-math.inf] * 3, [math.inf] * 3])
    return _grid(points, everywhere, out)


def level_grid(
    points: StudyPoints, upper_mm: F64, lower_mm: F64, out: F32 | None = None
) -> F32:
    """Return the grid of a level ``(C, *shape)`` float32, by a recipe whose box lies about two vertebral centres.

    Args:
        points: the study's points.
        upper_mm, lower_mm: ``(3,)``, the centres of the vertebrae above and below the disc.
        out: as for ``whole_grid``.

    Raises:
        StudyError: no point of the study lies in the box.
    """
    assert points.recipe.margins is not None
    return _grid(points, level_box(upper_mm, lower_mm, points.recipe.margins), out)


def level_box(upper_mm: F64, lower_mm: F64, margins: Margins) -> F64:
    """Return the axis-aligned box about two vertebral centres: smallest and largest x, y, z ``(2, 3)``, mm.

    Raises:
        StudyError: the two are one, or lie beside each other along x.
    """
    between = upper_mm - lower_mm
    distance = float(np.sqrt(between @ between))
    if not 0 < distance < math.inf:
        raise StudyError(Reason.NOT_LOCALIZED, "two vertebral centres are the same")
    along = between / distance
    first = np.array([1.0, 0.0, 0.0]) - along[0] * along
    length = float(np.sqrt(first @ first))
    if length < 1e-9:
        raise StudyError(
            Reason.NOT_LOCALIZED, "two vertebral centres lie beside each other"
        )
    first = first / length * distance
    second = np.cross(first, along)
    beside = [
        end + sign * step
        for end in (upper_mm, lower_mm)
        for step in (first, second)
        for sign in (1, -1)
    ]
    ten = np.array([upper_mm, lower_mm, *beside])
    low, high = ten.min(axis=0), ten.max(axis=0)
    front, back = sorted((float(upper_mm[1]), float(lower_mm[1])))
    widened = margins.x * (high[0] - low[0])
    return np.array(
        [
            [low[0] - widened, front - margins.front * (front - low[1]), low[2]],
            [high[0] + widened, back + margins.back * (high[1] - back), high[2]],
        ]
    )


def _copies(one: StoredSlice, recipe: GridRecipe) -> int:
    """Return how many times the points of a slice are repeated.

    Raises:
        StudyError: its thickness is none that a scanner makes.
    """
    if recipe.thickening == "none":
        return 1
    thickness = 1 if one.thickness_mm is None else int(one.thickness_mm)
    if thickness > MAX_THICKNESS_MM:
        raise StudyError(
            Reason.TOO_LARGE, f"slices of {thickness} mm, at most {MAX_THICKNESS_MM}"
        )
    return max(thickness + recipe.extra_copies, 0)


def _points(one: StoredSlice, kind: Role, recipe: GridRecipe) -> SlicePoints:
    """Return a slice as points: ``(position + right * column) + down * row``, in just this order of terms."""
    from spine_engine.voxels.area import area_resize

    stored = one.stored
    rows, columns = stored.shape
    values = (
        stored
        if recipe.slice_shape is None
        else area_resize(stored, recipe.slice_shape)
    )
    right = np.array(one.orientation[:3]) * one.spacing_mm[0]
    down = np.array(one.orientation[3:]) * one.spacing_mm[1]
    column = np.arange(values.shape[1]) * (columns / values.shape[1])
    row = np.arange(values.shape[0]) * (rows / values.shape[0])
    along_columns = np.array(one.position_mm)[:, None] + right[:, None] * column
    along_rows = down[:, None] * row
    if recipe.thickening == "slice-normal":
        shift = np.cross(one.orientation[:3], one.orientation[3:])
        shift /= np.sqrt(shift @ shift)
    else:
        shift = np.array([0.0, 0.0, 1.0] if kind is Role.AXIAL_T2 else [1.0, 0.0, 0.0])
    # z runs along memory: lines are taken along whichever of rows and columns rises less through it.
    ways = np.array([1 << 20, 1 << 10, 1])
    by_column = bool(np.abs(down) @ ways < np.abs(right) @ ways)
    line_terms, terms = (
        (along_columns, along_rows) if by_column else (along_rows, along_columns)
    )
    return SlicePoints(
        values=np.ascontiguousarray(values).view(np.uint16).reshape(-1),
        steps=(1, values.shape[1]) if by_column else (values.shape[1], 1),
        signed=values.dtype == np.int16,
        lines=np.ascontiguousarray(line_terms),
        along=np.ascontiguousarray(terms),
        shift=np.ascontiguousarray(shift, np.float64),
        copies=_copies(one, recipe),
    )


def _grid(points: StudyPoints, box: F64, out: F32 | None) -> F32:
    """Return the grid of the points in a box, smallest and largest x, y, z ``(2, 3)``."""
    from spine_engine.voxels import recipe_kernels as kernels

    recipe = points.recipe
    assert recipe.channels is not None
    extent = np.array([[math.inf] * 3, [-math.inf] * 3])
    runs: list[list[tuple[SlicePoints, NDArray[np.int32]]]] = [
        [] for _ in points.channels
    ]
    cropping = recipe.axial_crop == "sagittal-box"
    # The axial channels come last where the sagittal ones crop them.
    last = [cropping and kind is Role.AXIAL_T2 for kind in recipe.channels]
    for number in sorted(range(len(runs)), key=last.__getitem__):
        sagittal = None
        if last[number]:
            sagittal = _box_of([pair for channel in runs for pair in channel])
        for p in points.channels[number]:
            found = np.empty((p.lines.shape[1], p.copies, 2), np.int32)
            lines, along, shift, within = _also_within(sagittal, p, box)
            if kernels.crop_slice(
                p.values,
                p.steps,
                lines,
                along,
                shift,
                within,
                recipe.drop_zeros,
                found,
                extent,
            ):
                runs[number].append((p, found))
    if not np.isfinite(extent).all():
        raise StudyError(
            Reason.GAP_AT_LEVEL if recipe.of_levels else Reason.NOT_A_VOLUME,
            "no point in the box",
        )
    return _Pooling(recipe, extent, runs).grid(out)


def _box_of(
    runs: Sequence[tuple[SlicePoints, NDArray[np.int32]]],
) -> OrientedBox | None:
    """Return the oriented bounding box of the points of slices; None where there are none, or in one plane."""
    from spine_engine.voxels import recipe_kernels as kernels

    corners = [np.empty((0, 3))]
    for p, found in runs:
        lines, along = kernels.outline(found[:, 0]).T
        places = (p.lines[:, lines] + p.along[:, along]).T
        corners += [places, places + (p.copies - 1) * p.shift]
    return oriented_box(np.concatenate(corners))


def _also_within(
    box: OrientedBox | None, p: SlicePoints, bounds: F64
) -> tuple[F64, F64, F64, F64]:
    """Return the terms of a slice's coordinates, the shift of its copies and the bounds of a crop; with an oriented box
    also along its axes."""
    if box is None:
        return p.lines, p.along, p.shift, bounds
    turned = box.axes @ p.lines - (box.axes @ box.center_mm)[:, None]
    return (
        np.concatenate([p.lines, turned]),
        np.concatenate([p.along, box.axes @ p.along]),
        np.concatenate([p.shift, box.axes @ p.shift]),
        np.concatenate([bounds, [-box.half_mm, box.half_mm]], axis=1),
    )


class _Pooling:
    """One grid on its way: its voxels' frame, and the runs of points of each channel."""

    def __init__(
        self,
        recipe: GridRecipe,
        extent: F64,
        runs: Sequence[Sequence[tuple[SlicePoints, NDArray[np.int32]]]],
    ) -> None:
        assert recipe.shape is not None
        self.recipe = recipe
        self.runs = runs
        self.order = tuple(_PATIENT_AXIS[direction] for direction in recipe.axes)
        self.final = tuple(recipe.shape[self.order.index(axis)] for axis in range(3))
        size = extent[1] - extent[0]
        if recipe.voxel_mm is None:
            self.shape = self.final
            with np.errstate(divide="ignore"):
                rate = np.where(size > 0, (np.array(self.final) - 1) / size, 0.0)
            self.frame = np.array([extent[0], rate])
        else:
            origin = extent[0] - recipe.voxel_mm / 2
            self.frame = np.array([origin, [1 / recipe.voxel_mm] * 3])
            last = np.floor((extent[1] - origin) / recipe.voxel_mm)
            if math.prod((last + 1).tolist()) > MAX_VOXELS:
                raise StudyError(
                    Reason.TOO_LARGE,
                    f"a box of {' x '.join(f'{edge:.0f}' for edge in size)} mm",
                )
            self.shape = tuple(int(n) + 1 for n in last)
        self.strides = np.array(
            [self.shape[1] * self.shape[2], self.shape[2], 1], np.int32
        )
        signed = any(p.signed for channel in runs for p, _ in channel)
        self.plus = _SIGNED_PLUS if signed else 0 if recipe.drop_zeros else 1
        # Codes that are the stored values themselves are rounded while they are scaled, in one go.
        self.in_codes = (
            self.plus == 0
            and recipe.sampling == "scatter-max"
            and recipe.resize == "none"
        )
        self.in_codes = self.in_codes and recipe.intensity in ("tensor", "channel")

    def grid(self, out: F32 | None) -> F32:
        """Return the finished grid."""
        recipe = self.recipe
        assert recipe.shape is not None
        shape = (len(self.runs), *recipe.shape)
        if out is not None and (
            out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous
        ):
            raise ValueError(
                f"out must be {shape} float32 and C-contiguous, got {out.shape} {out.dtype}"
            )
        plain = self.order == (0, 1, 2) and _ASCENDING.issuperset(recipe.axes)
        values, extremes = self._values(out if plain else None)
        _scale(values, extremes, recipe, in_codes=self.in_codes)
        if plain:
            return values
        turned = values.transpose(0, *(axis + 1 for axis in self.order))
        for axis, direction in enumerate(recipe.axes, 1):
            if direction not in _ASCENDING:
                turned = np.flip(turned, axis)
        target = np.empty(shape, np.float32) if out is None else out
        target[...] = turned
        return target

    def _values(self, out: F32 | None) -> tuple[F32, F32]:
        """Return the pooled values ``(C, x, y, z)`` of the recipe's size, before they are scaled, and each channel's
        smallest and largest ``(C, 2)``."""
        from spine_engine.voxels import recipe_kernels as kernels

        resized = self.recipe.resize != "none"
        wanted = (len(self.runs), *self.final)
        fresh = (
            out is None and not resized
        )  # such memory is all 0 and is not touched where no point falls
        values = (
            np.zeros(wanted, np.float32)
            if fresh
            else np.empty(wanted, np.float32)
            if out is None
            else out
        )
        extremes = np.zeros((len(values), 2), np.float32)
        for number, (channel, runs) in enumerate(zip(values, self.runs, strict=True)):
            if not fresh and (not runs or not resized):
                channel.fill(0.0)
            if runs and resized:
                small = np.zeros(self.shape, np.float32)
                self._pool(runs, small.reshape(-1))
                extremes[number] = kernels.resize(small, channel)
            elif runs:
                extremes[number] = self._pool(runs, channel.reshape(-1))
        return values, extremes

    def _pool(
        self, runs: Sequence[tuple[SlicePoints, NDArray[np.int32]]], grid: F32
    ) -> tuple[np.float32, np.float32]:
        """Fill one channel's voxels, all 0 so far, with what their points come to; return the extremes of that."""
        from spine_engine.voxels import recipe_kernels as kernels

        recipe, nearest = self.recipe, self.recipe.rounding == "half-even"
        if recipe.sampling == "scatter-mean":
            self._mean(runs, grid, nearest)
            return grid.min(), grid.max()
        largest = 0.0
        for p, found in runs:
            signs = (0x8000, self.plus - 0x8000) if p.signed else (0, self.plus)
            code = kernels.largest_of_slice(
                p.values, p.steps, signs, recipe.drop_zeros, p.lines, p.along, p.shift, found, self.frame, nearest,
                self.strides, grid,
            )  # fmt: skip
            largest = max(largest, float(code))
        codes = np.arange(int(largest) + 1)
        table = _as_float16((codes - self.plus).astype(np.float32), recipe)
        table[0] = 0.0
        smallest = table[int(kernels.smallest_code(grid))]
        if not self.in_codes and (self.plus or (table != codes).any()):
            kernels.look_up(grid, table)
        return (
            (grid.min(), grid.max())
            if self.plus == _SIGNED_PLUS
            else (smallest, table[-1])
        )

    def _mean(
        self,
        runs: Sequence[tuple[SlicePoints, NDArray[np.int32]]],
        grid: F32,
        nearest: bool,
    ) -> None:
        from spine_engine.voxels import recipe_kernels as kernels

        total, count = np.zeros(grid.size), np.zeros(grid.size, np.int32)
        bits = np.arange(1 << 16, dtype=np.uint16)
        for p, found in runs:
            stored = bits.view(np.int16) if p.signed else bits
            table = _as_float16(stored.astype(np.float32), self.recipe)
            kernels.sums_of_slice(
                p.values, p.steps, table, self.recipe.drop_zeros, p.lines, p.along, p.shift, found, self.frame, nearest,
                self.strides, total, count,
            )  # fmt: skip
        grid[...] = total / np.maximum(count, 1)


_PATIENT_AXIS: Final = {
    "left": 0,
    "right": 0,
    "back": 1,
    "front": 1,
    "up": 2,
    "down": 2,
}
_ASCENDING: Final = frozenset({"left", "back", "up"})
"""Directions along which patient coordinates grow."""


def _as_float16(values: F32, recipe: GridRecipe) -> F32:
    """Return values rounded as the recipe says."""
    if not recipe.float16_values:
        return values
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def _scale(values: F32, extremes: F32, recipe: GridRecipe, *, in_codes: bool) -> None:
    """Scale pooled values ``(C, x, y, z)``, whose extremes by channel are ``(C, 2)``, in place, as the recipe says.

    ``in_codes``: they are the stored ones, not yet rounded as the recipe says; the extremes are.
    """
    from spine_engine.voxels import recipe_kernels as kernels

    if recipe.intensity == "tensor":
        low, high = extremes[:, 0].min(), extremes[:, 1].max()
        parts = [(values, low, high)]
    elif recipe.intensity == "channel":
        parts = [
            (channel, *ends) for channel, ends in zip(values, extremes, strict=True)
        ]
    else:
        _scale_by_statistics(values, recipe)
        return
    for part, low, high in parts:
        if np.isfinite(high - low) and high > low:
            rounded = in_codes and recipe.float16_values
            kernels.scale(
                part.reshape(-1),
                low,
                np.float32(high - low),
                rounded,
                recipe.float16_grid,
            )
        elif high > low:
            raise StudyError(
                Reason.CORRUPT_PIXELS, "stored values beyond the range of float16"
            )


def _scale_by_statistics(values: F32, recipe: GridRecipe) -> None:
    """Scale each channel by its percentiles or its mean and deviation, in place."""
    for channel in values:
        if recipe.intensity == "percentiles":
            low, high = np.percentile(channel, [LOW_PERCENT, HIGH_PERCENT])
            scaled = np.clip((channel - low) / max(high - low, 1e-9), 0.0, 1.0)
        else:
            scaled = (channel - channel.mean(dtype=np.float64)) / max(
                float(channel.std(dtype=np.float64)), 1e-9
            )
        channel[...] = scaled.astype(np.float16) if recipe.float16_grid else scaled
