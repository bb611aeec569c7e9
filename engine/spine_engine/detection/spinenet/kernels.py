"""The numba kernels of SpineNet's decode: cubic patches, peaks of connected components, overlap of polygons.

The plain NumPy reference of the first stands beside it; the tests compare the others with SciPy and with plain loops.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

_SHARPNESS = -0.5
"""The value with which Keys' cubic kernel reproduces parabolas exactly (IEEE Trans. ASSP 29 (1981) 1153)."""


def cubic_taps(size: int, count: int) -> tuple[I64, F32]:
    """Return pixels (clamped) and weights, both `(count, 4)`, of `count` samples spread evenly over `size` pixels.

    Sample i lies at pixel `(i + 0.5) * size / count - 0.5`: the outer edges of samples and pixels coincide.
    """
    place = (np.arange(count) + 0.5) * size / count - 0.5
    base = np.floor(place).astype(np.int64)
    distance = np.abs(place[:, None] - base[:, None] - np.arange(-1, 3))
    a = _SHARPNESS
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * a * distance - 4 * a
    weights = np.where(distance <= 1, near, far)
    return np.clip(base[:, None] + np.arange(-1, 3), 0, size - 1), weights.astype(
        np.float32
    )


@njit(nogil=True, cache=True)
def resample_cubic(
    out: F32,
    pixels: NDArray[np.uint16],
    row_taps: I64,
    row_weights: F32,
    column_taps: I64,
    column_weights: F32,
) -> None:
    """Fill `out (H, W)` with cubic samples of the patch `pixels (R, C)`, kept within the patch's own range.

    Taps and weights are those of `cubic_taps`, for rows and for columns. Columns first, then rows.
    """
    rows, columns = pixels.shape
    height, width = out.shape
    lines = np.empty((rows, width), np.float32)
    low, high = pixels[0, 0], pixels[0, 0]
    for r in range(rows):
        for c in range(columns):
            low, high = min(low, pixels[r, c]), max(high, pixels[r, c])
        for j in range(width):
            total = np.float32(0.0)
            for k in range(4):
                total += column_weights[j, k] * np.float32(pixels[r, column_taps[j, k]])
            lines[r, j] = total
    floor, ceiling = np.float32(low), np.float32(high)
    for i in range(height):
        first, second, third, fourth = row_taps[i]
        w0, w1, w2, w3 = row_weights[i]
        for j in range(width):
            value = (
                w0 * lines[first, j]
                + w1 * lines[second, j]
                + w2 * lines[third, j]
                + w3 * lines[fourth, j]
            )
            out[i, j] = min(max(value, floor), ceiling)


def resample_cubic_reference(
    pixels: NDArray[np.uint16],
    row_taps: I64,
    row_weights: F32,
    column_taps: I64,
    column_weights: F32,
) -> F64:
    """Reference of `resample_cubic`, in float64; returns `(H, W)`."""
    lines = (pixels[:, column_taps] * column_weights.astype(np.float64)).sum(axis=-1)
    samples: F64 = (lines[row_taps] * row_weights.astype(np.float64)[..., None]).sum(
        axis=1
    )
    return np.clip(samples, float(pixels.min()), float(pixels.max()))


@njit(nogil=True, cache=True)
def label_components(
    heat: F32, threshold: float, labels: I32, stack: I32, tops: I32
) -> int:
    """Label the connected components of the pixels above a threshold; return how many there are.

    Pixels that touch at an edge or a corner are connected. Components are numbered from 1 by their first pixel in
    raster order; NaN is above nothing.

    Args:
        heat: `(H, W)`.
        threshold: exclusive.
        labels: `(H, W)`, output: 0 or the number of the component.
        stack: scratch space of at least `H * W`.
        tops: at least `H * W`, output: flat index of each component's highest pixel, the first of equals.
    """
    height, width = heat.shape
    labels[:] = 0
    limit = np.float32(threshold)
    count = 0
    for r in range(height):
        for c in range(width):
            if not heat[r, c] > limit or labels[r, c] != 0:
                continue
            count += 1
            labels[r, c] = count
            stack[0] = r * width + c
            depth = 1
            top, best = stack[0], heat[r, c]
            while depth > 0:
                depth -= 1
                here = stack[depth]
                y, x = here // width, here % width
                if heat[y, x] > best or (heat[y, x] == best and here < top):
                    top, best = here, heat[y, x]
                for v in range(max(y - 1, 0), min(y + 2, height)):
                    for u in range(max(x - 1, 0), min(x + 2, width)):
                        if heat[v, u] > limit and labels[v, u] == 0:
                            labels[v, u] = count
                            stack[depth] = v * width + u
                            depth += 1
            tops[count - 1] = top
    return count


@njit(nogil=True, cache=True)
def _cross(p: F64, q: F64, x: float, y: float) -> float:
    """Return twice the signed area of the triangle p, q, (x, y)."""
    return float((q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0]))


@njit(nogil=True, cache=True)
def _doubled_area(polygon: F64, count: int) -> float:
    total = 0.0
    for i in range(count):
        j = (i + 1) % count
        total += polygon[i, 0] * polygon[j, 1] - polygon[j, 0] * polygon[i, 1]
    return total


@njit(nogil=True, cache=True)
def _overlap(a: F64, b: F64) -> float:
    """Return the intersection over union of two convex quadrilaterals: `a` is clipped by each edge of `b`."""
    part, next_part = np.empty((16, 2)), np.empty((16, 2))
    part[:4] = a
    count = 4
    for e in range(4):
        p, q = b[e], b[(e + 1) % 4]
        kept = 0
        for i in range(count):
            j = (i + 1) % count
            here, there = (
                _cross(p, q, part[i, 0], part[i, 1]),
                _cross(p, q, part[j, 0], part[j, 1]),
            )
            if here >= 0:
                next_part[kept] = part[i]
                kept += 1
            if (here > 0 and there < 0) or (here < 0 and there > 0):
                t = here / (here - there)
                next_part[kept] = part[i] + t * (part[j] - part[i])
                kept += 1
        part, next_part, count = next_part, part, kept
        if count == 0:
            return 0.0
    shared = _doubled_area(part, count)
    union = _doubled_area(a, 4) + _doubled_area(b, 4) - shared
    return shared / union if union > 0 else 0.0


@njit(nogil=True, cache=True)
def overlaps(a: F64, b: F64) -> F64:
    """Return the intersection over union of every pair: `(N, 4, 2)` and `(M, 4, 2)` -> `(N, M)`.

    The quadrilaterals must be convex and wind as x turns to y (see `decode.is_vertebra`).
    """
    result = np.zeros((len(a), len(b)))
    for i in range(len(a)):
        for j in range(len(b)):
            apart = False
            for d in range(2):
                apart |= (
                    a[i, :, d].max() <= b[j, :, d].min()
                    or b[j, :, d].max() <= a[i, :, d].min()
                )
            if not apart:
                result[i, j] = _overlap(a[i], b[j])
    return result
