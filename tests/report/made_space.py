"""Small studies in space: oblique series with uneven slices, and levels with boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import LEVELS, Level
from spine_engine.results import LevelResult
from spine_engine.study import Role, Series, Stack, Study

SAGITTAL = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
"""Rows: to the patient's left, down, back."""

AXIAL = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
"""Rows: up, back, to the patient's left."""


def tilted(axes: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return axes turned by some ten degrees about a random axis (Rodrigues)."""
    rng = np.random.default_rng(seed)
    x, y, z = rng.normal(size=3)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) / np.linalg.norm([x, y, z])
    turn = np.eye(3) + np.sin(0.18) * cross + (1 - np.cos(0.18)) * cross @ cross
    return axes @ turn.T


def oblique(
    seed: int,
    axes: NDArray[np.float64],
    *,
    shape=(7, 40, 36),
    center=(4.0, -30.0, 12.0),
    pixel=(1.3, 1.1),
):
    """Return an oblique stack with uneven slices, sheared in plane, rescaled slice by slice: a bright ball in noise."""
    rng = np.random.default_rng(seed)
    axes = tilted(axes, seed)
    slices, rows, columns = shape
    positions = np.cumsum(rng.uniform(2.6, 5.4, slices))
    positions -= positions.mean()
    corner = (
        center
        - axes[1] * pixel[0] * (rows - 1) / 2
        - axes[2] * pixel[1] * (columns - 1) / 2
    )
    origins = (
        corner
        + positions[:, None] * axes[0]
        + rng.uniform(-1, 1, (slices, 2)) @ axes[1:]
    )
    slope, intercept = (
        rng.uniform(0.8, 1.2, slices).astype(np.float32),
        rng.uniform(-9, 9, slices).astype(np.float32),
    )
    place = np.indices(shape) - (np.array(shape) - 1).reshape(3, 1, 1, 1) / 2
    radius = np.sqrt(
        (place**2 / (np.array(shape).reshape(3, 1, 1, 1) / 2) ** 2).sum(axis=0)
    )
    pixels = np.where(
        radius < 0.8, 300 + 900 * rng.random(shape), 40 * rng.random(shape)
    ).astype(np.uint16)
    return Stack(pixels, slope, intercept, origins, axes, pixel)


def a_series(
    role: Role | None,
    *stacks: Stack,
    contrast: str | None = None,
    path: str = "DOE_JANE/t2",
) -> Series:
    """Return a series of stacks."""
    slices = sum(len(stack.pixels) for stack in stacks)
    return Series(path, role, "<b>evidence</b>", stacks, slices, contrast)


def a_study(*series: Series) -> Study:
    """Return a study of series; by default of a sagittal T2, a sagittal T1 and two axial T2 series of three stacks."""
    if not series:
        series = (
            a_series(
                Role.AXIAL_T2,
                *(
                    oblique(n, AXIAL, shape=(4, 30, 30), center=(0, -30, z))
                    for n, z in axial()
                ),
            ),
            a_series(None, oblique(8, AXIAL)),
            a_series(Role.SAGITTAL_T1, oblique(2, SAGITTAL)),
            a_series(Role.SAGITTAL_T2, oblique(1, SAGITTAL)),
            a_series(Role.AXIAL_T2, oblique(6, AXIAL, shape=(5, 24, 28))),
        )
    return Study("1.2.840.77", series)


def axial() -> Sequence[tuple[int, float]]:
    """Return seed and height of the stacks of the first axial series."""
    return ((3, -12.0), (4, 14.0), (5, 40.0))


def some_levels(
    sources: Sequence[str] = (
        "detector",
        "interpolated",
        "detector",
        "prior",
        "detector",
    ),
):
    """Return five levels on a leaning column, each with a box of its own tilt."""
    levels: dict[Level, LevelResult] = {}
    for n, (level, source) in enumerate(zip(LEVELS, sources, strict=True)):
        axes = tilted(np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]]), 20 + n)
        levels[level] = LevelResult(
            center_mm=(4.0, -30.0 + n, 40.0 - 13.0 * n),
            axes=tuple(tuple(row) for row in axes.tolist()),  # type: ignore[arg-type]
            size_mm=(12.0, 30.0, 34.0),
            confidence=0.997 - 0.1 * n,
            source=source,
        )
    return levels
