"""Cuts a sagittal slice into the square patches that SpineNet's detector takes, and maps points back to the slice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spine_engine.detection.spinenet.view import View

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

PATCH_PX = 224
"""Edge of a patch, in the detector's input pixels (arXiv 2205.01683)."""

PATCH_MM = 260.0
"""Edge of a patch in the patient, mm (arXiv 2205.01683, 2007.02606)."""

STRIDE = 0.6
"""Distance from one patch to the next, as a share of the patch's edge (arXiv 2205.01683)."""

PERCENTILES = (0.5, 99.5)
"""Percentiles of a patch whose distance becomes 1 (arXiv 2205.01683)."""

EPSILON = 1e-9
"""Value added to that distance, so that an even patch becomes 0 (arXiv 2205.01683)."""

MIN_NEW_MM = 5.0
"""Smallest part of the picture that a last patch must add: a vertebra whose edge lies in less is cut anyway, and a
260 mm picture would need four patches for a rounding error of one pixel."""


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """The places of the patches in a picture.

    Attributes:
        starts: `(P, 2)` column and row of each patch's first pixel.
        size: `(2,)` columns and rows of a patch, which is square in mm.
    """

    starts: I64
    size: I64

    def to_picture(self, number: int, points: F64) -> F64:
        """Map points `(..., 2)` (x, y) of patch `number`, in its 224 pixels, to the picture."""
        return np.asarray(
            self.starts[number] + (points + 0.5) * self.size / PATCH_PX - 0.5
        )


def patch_grid(view: View) -> PatchGrid:
    """Lay square patches over the pictures of a view, each as wide as `PATCH_MM` or the picture's shorter side."""
    columns_rows = np.array(view.pixels.shape[:0:-1])
    edge_mm = min(PATCH_MM, float((columns_rows * view.spacing_mm).min()))
    size = np.clip((edge_mm / view.spacing_mm + 1e-6).astype(np.int64), 1, columns_rows)
    axes = zip(
        columns_rows.tolist(), size.tolist(), view.spacing_mm.tolist(), strict=True
    )
    columns, rows = (_starts(*axis) for axis in axes)
    starts = np.array([(column, row) for row in rows for column in columns])
    return PatchGrid(starts, size)


def _starts(length: int, size: int, spacing_mm: float) -> list[int]:
    """Return the first pixels of the patches along one axis; the last patch is flush with the end."""
    starts = list(range(0, length - size, max(int(STRIDE * size), 1))) or [0]
    last = length - size
    if (last - starts[-1]) * spacing_mm >= MIN_NEW_MM:
        starts.append(last)
    return starts


def patches_from_slice(view: View, number: int, grid: PatchGrid) -> F32:
    """Cut one slice of a view into patches `(P, 1, 224, 224)` float32: cubic samples, `(p - min) / spread`.

    Stored values do as well as rescaled ones: the division cancels the rescale of a slice, all but its sign.
    """
    from spine_engine.detection.spinenet.kernels import (
        cubic_taps,
        resample_cubic,
    )  # numba: only a run should pay

    picture = view.pixels[number]
    columns, rows = grid.size.tolist()
    row_taps, row_weights = cubic_taps(rows, PATCH_PX)
    column_taps, column_weights = cubic_taps(columns, PATCH_PX)
    patches = np.empty((len(grid.starts), 1, PATCH_PX, PATCH_PX), np.float32)
    for patch, (column, row) in zip(patches[:, 0], grid.starts.tolist(), strict=True):
        part = picture[row : row + rows, column : column + columns]
        resample_cubic(patch, part, row_taps, row_weights, column_taps, column_weights)
        if view.slope[number] < 0:
            np.negative(patch, out=patch)
        low, high = np.percentile(patch, PERCENTILES)
        patch -= patch.min()
        patch /= np.float32(abs(high - low) + EPSILON)
    return patches
