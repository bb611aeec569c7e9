"""The numba kernel that draws a slice onto its canvas, and its plain NumPy twin, which a test compares it with."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@njit(nogil=True, cache=True)
def resample_slice(out: F32, pixels: NDArray[np.uint16], start: F64, row_step: F64, column_step: F64, sub: F64) -> None:
    """Fill `out (H, W)` with bilinear samples of one slice, 0 outside it.

    Canvas pixel (r, c) is the mean over the sub-pixel offsets `sub (K, 2)` of the source at
    `start + r * row_step + c * column_step + sub[k]`, all in source pixels (row, column).
    """
    rows, columns = pixels.shape
    count = sub.shape[0]
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            y0 = start[0] + r * row_step[0] + c * column_step[0]
            x0 = start[1] + r * row_step[1] + c * column_step[1]
            if y0 < -0.5 or x0 < -0.5 or y0 > rows - 0.5 or x0 > columns - 0.5:
                out[r, c] = 0.0
                continue
            total = 0.0
            for k in range(count):
                y = min(max(y0 + sub[k, 0], 0.0), rows - 1.0)
                x = min(max(x0 + sub[k, 1], 0.0), columns - 1.0)
                i, j = min(int(y), max(rows - 2, 0)), min(int(x), max(columns - 2, 0))
                ty, tx = y - i, x - j
                i1, j1 = min(i + 1, rows - 1), min(j + 1, columns - 1)
                upper = (1.0 - tx) * pixels[i, j] + tx * pixels[i, j1]
                lower = (1.0 - tx) * pixels[i1, j] + tx * pixels[i1, j1]
                total += (1.0 - ty) * upper + ty * lower
            out[r, c] = total / count


def resample_slice_reference(
    shape: tuple[int, int], pixels: NDArray[np.uint16], start: F64, row_step: F64, column_step: F64, sub: F64
) -> F32:
    """NumPy twin of `resample_slice`."""
    rows, columns = pixels.shape
    r, c = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    base = start + r[..., None] * row_step + c[..., None] * column_step
    inside = np.all((base >= -0.5) & (base <= np.array([rows, columns]) - 0.5), axis=-1)
    total = np.zeros(shape)
    for offset in sub:
        yx = np.clip(base + offset, 0.0, np.array([rows, columns]) - 1.0)
        ij = np.minimum(yx.astype(int), np.maximum(np.array([rows, columns]) - 2, 0))
        t = yx - ij
        next_ij = np.minimum(ij + 1, np.array([rows, columns]) - 1)
        (i, j), (i1, j1) = np.moveaxis(ij, -1, 0), np.moveaxis(next_ij, -1, 0)
        upper = (1 - t[..., 1]) * pixels[i, j] + t[..., 1] * pixels[i, j1]
        lower = (1 - t[..., 1]) * pixels[i1, j] + t[..., 1] * pixels[i1, j1]
        total += (1 - t[..., 0]) * upper + t[..., 0] * lower
    return np.where(inside, total / len(sub), 0.0).astype(np.float32)
