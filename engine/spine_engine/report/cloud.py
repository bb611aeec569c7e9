"""Turns a study into a point cloud: the pixels of its series at their true places in the patient, without the air.

Frame: patient LPS, millimetres. A point is a pixel's centre, as ``Stack`` defines it: ``origins_mm[s]``, ``r`` rows of
``spacing_mm[0]`` along ``axes[1]`` and ``c`` columns of ``spacing_mm[1]`` along ``axes[2]`` further (DICOM PS3.3
C.7.6.2.1.1). Nothing is interpolated, no slice thickness is assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.study import Role, Series, Stack, Study
from spine_engine.voxels.window import (
    BACKGROUND_FRACTION,
    IntensityWindow,
    robust_window,
)

ROLE_NAMES: Final = {
    Role.SAGITTAL_T2: "Sagittal T2",
    Role.SAGITTAL_T1: "Sagittal T1",
    Role.AXIAL_T2: "Axial T2",
}
"""Names of the roles, in the order in which a study's series are shown."""

Colour = tuple[int, int, int]

ROLE_COLOURS: Final[dict[Role, Colour]] = {
    Role.SAGITTAL_T2: (88, 180, 245),
    Role.SAGITTAL_T1: (245, 167, 66),
    Role.AXIAL_T2: (79, 208, 138),
}
MORE_COLOURS: Final[tuple[Colour, ...]] = ((221, 143, 230), (232, 224, 112))
"""Sky blue, orange, bluish green; for more axial series purple and yellow, in turn: Okabe and Ito's palette for all
kinds of colour vision ("Color Universal Design", 2008), lightened for a dark ground."""

AIR: Final = BACKGROUND_FRACTION
"""Value up to which pixels are left out: the share of the window that the window itself takes for air. The darkest
tissue, such as cortical bone, is left out too, because intensity alone cannot tell it from air."""

PROBE: Final = 1 << 16
"""Number of pixels that give the share of a study that is not air: within 1 % on real exams and phantoms."""

_GOLDEN: Final = (math.sqrt(5) - 1) / 2
"""Share of a step by which each row begins further, which spreads a sample evenly (a Fibonacci lattice)."""


@dataclass(frozen=True, eq=False)
class Cloud:
    """Points of a study, sorted by series, then by stack, slice, row and column.

    Attributes:
        points_mm: ``(N, 3)`` float32, pixel centres, LPS mm.
        values: ``(N,)`` float32, 0..1 by the robust window of the series.
        series: ``(N,)`` uint8, the index of the point's series in ``names``.
        names: the series by role, without any text of the headers: "Sagittal T2", "Axial T2 (2)".
        colours: the colour of each series, red, green and blue of 0..255.
    """

    points_mm: NDArray[np.float32]
    values: NDArray[np.float32]
    series: NDArray[np.uint8]
    names: tuple[str, ...]
    colours: tuple[Colour, ...]


def study_cloud(study: Study, *, limit: int | None = None) -> Cloud:
    """Return the pixels of the series that have a role, without air (see ``AIR``).

    Args:
        study: the study.
        limit: largest number of points; None takes all. A regular lattice of pixels is taken of every slice, about as
            dense on every square millimetre of every slice. The same study gives the same points.

    Raises:
        ValueError: ``limit`` is not positive.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be positive, got {limit}")
    all_series = shown_series(study)
    windows = [robust_window(series.stacks) for series in all_series]
    stacks = [
        (number, stack)
        for number, series in enumerate(all_series)
        for stack in series.stacks
    ]
    steps = [1] * len(stacks)
    if limit is not None:
        probe_mm2 = (
            sum(stack.pixels.size * _pixel_mm2(stack) for _, stack in stacks) / PROBE
        )
        tissue_mm2 = 0.0
        for number, stack in stacks:
            step = _step(stack, probe_mm2)
            pixels, _ = _tissue(stack, windows[number], step, number)
            tissue_mm2 += len(pixels) * step * _pixel_mm2(stack)
        steps = [_step(stack, tissue_mm2 / limit) for _, stack in stacks]
    points = [np.empty((0, 3), np.float32)]
    values = [np.empty(0, np.float32)]
    numbers = [np.empty(0, np.uint8)]
    for (number, stack), step in zip(stacks, steps, strict=True):
        pixels, stack_values = _tissue(stack, windows[number], step, number)
        points.append(_centers(stack, pixels))
        values.append(stack_values)
        numbers.append(np.full(len(pixels), number, np.uint8))
    cloud = Cloud(
        points_mm=np.concatenate(points),
        values=np.concatenate(values),
        series=np.concatenate(numbers),
        names=_names(all_series),
        colours=_colours(all_series),
    )
    return (
        cloud if limit is None or len(cloud.values) <= limit else _trimmed(cloud, limit)
    )


def shown_series(study: Study) -> list[Series]:
    """Return the series that have a role and stacks: sagittal T2, sagittal T1, then the axial ones."""
    return [
        series
        for role in ROLE_NAMES
        for series in study.with_role(role)
        if series.stacks
    ]


def _names(all_series: list[Series]) -> tuple[str, ...]:
    names: list[str] = []
    for series in all_series:
        assert series.role is not None
        name = ROLE_NAMES[series.role]
        if series.contrast == "stir":
            name = name.replace("T2", "STIR")
        taken = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({taken + 1})" if taken else name)
    return tuple(names)


def _colours(all_series: list[Series]) -> tuple[Colour, ...]:
    """Return a colour for each series: the colour of its role, more colours for more axial series."""
    colours: list[Colour] = []
    for series in all_series:
        assert series.role is not None
        more = len(colours) - len(ROLE_COLOURS)
        taken = ROLE_COLOURS[series.role] in colours
        colours.append(
            MORE_COLOURS[more % len(MORE_COLOURS)]
            if taken
            else ROLE_COLOURS[series.role]
        )
    return tuple(colours)


def _pixel_mm2(stack: Stack) -> float:
    return math.prod(stack.spacing_mm)


def _step(stack: Stack, spread_mm2: float) -> int:
    """Return the smallest step that takes at most one pixel of a stack from every ``spread_mm2``."""
    return max(1, math.ceil(spread_mm2 / _pixel_mm2(stack)))


def _tissue(
    stack: Stack, window: IntensityWindow, step: int, turn: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return every ``step``-th pixel of a stack that is not air (flat indices), and the pixels' values 0..1.

    Series of the same planes differ in ``turn``, so that their points do not hide each other.
    """
    slices, rows, columns = stack.pixels.shape
    flat = _lattice(slices * rows, columns, step, turn)
    slope = stack.slope.astype(np.float64) / (window.high - window.low)
    shift = (stack.intercept.astype(np.float64) - window.low) / (
        window.high - window.low
    )
    of_slice = flat // (rows * columns)
    values = stack.pixels.reshape(-1)[flat] * slope[of_slice] + shift[of_slice]
    tissue = values > AIR
    return flat[tissue], np.minimum(values[tissue], 1.0).astype(np.float32)


def _lattice(rows: int, columns: int, step: int, turn: int) -> NDArray[np.int64]:
    """Return every ``step``-th pixel of an image (flat indices, ascending), evenly spread over it."""
    if step == 1:
        return np.arange(rows * columns)
    stride = next(
        n
        for n in range(max(1, round(_GOLDEN * step)), 2 * step)
        if math.gcd(n, step) == 1
    )
    first = (np.arange(rows) * stride + turn * step // 3) % step
    column = first[:, None] + np.arange(0, columns, step)
    flat = np.arange(rows)[:, None] * columns + column
    return flat[column < columns]


def _centers(stack: Stack, flat: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the centres ``(N, 3)`` of pixels given by flat index, LPS mm."""
    _, rows, columns = stack.pixels.shape
    of_row, column = np.divmod(flat, columns)
    of_slice, row = np.divmod(of_row, rows)
    centers = stack.origins_mm[of_slice]
    centers += row[:, None] * (stack.axes[1] * stack.spacing_mm[0])
    centers += column[:, None] * (stack.axes[2] * stack.spacing_mm[1])
    return centers.astype(np.float32)


def _trimmed(cloud: Cloud, limit: int) -> Cloud:
    """Return ``limit`` evenly spaced points of a cloud."""
    chosen = np.arange(limit) * len(cloud.values) // limit
    return Cloud(
        cloud.points_mm[chosen],
        cloud.values[chosen],
        cloud.series[chosen],
        cloud.names,
        cloud.colours,
    )
