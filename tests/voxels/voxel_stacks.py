"""Random posed stacks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spine_engine.study import Stack


def rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a random right-handed rotation matrix."""
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def random_stack(
    seed: int,
    *,
    shape: tuple[int, int, int] = (6, 14, 17),
    dtype: type[np.uint16] | type[np.int16] = np.uint16,
    sheared: bool = False,
    gap_after: int | None = None,
    plain_tone: bool = False,
    even: bool = False,
) -> Stack:
    """Return an oblique stack round the origin: uneven slices, maybe staggered in plane or with slices missing."""
    rng = np.random.default_rng(seed)
    slices, rows, columns = shape
    axes, spacing = rotation(rng), (0.9, 1.1)
    steps = np.full(slices, 3.1) if even else rng.uniform(2.6, 3.4, slices)
    if gap_after is not None:
        steps[gap_after + 1] += 7.0
    positions = np.cumsum(steps) - steps.sum() / 2
    corner = (
        -axes[1] * spacing[0] * (rows - 1) / 2
        - axes[2] * spacing[1] * (columns - 1) / 2
    )
    origins = corner + positions[:, None] * axes[0]
    if sheared:
        origins += rng.uniform(-2, 2, (slices, 2)) @ axes[1:]
    info = np.iinfo(dtype)
    slope = np.ones(slices) if plain_tone else rng.uniform(0.5, 2, slices)
    intercept = np.zeros(slices) if plain_tone else rng.uniform(-50, 50, slices)
    pixels = rng.integers(info.min, info.max, shape, endpoint=True).astype(dtype)
    return Stack(
        pixels,
        slope.astype(np.float32),
        intercept.astype(np.float32),
        origins,
        axes,
        spacing,
    )
