"""Shows a sagittal stack as a radiologist looks at it, and places its pixels in the patient.

Frame: patient LPS mm. Points of the picture are `(x, y)` pixels, x along the columns (anterior -> posterior), y along
the rows (superior -> inferior); whole numbers are pixel centres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spine_engine.detection.slices import canvas_axes, chosen_slices
from spine_engine.study import Stack

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class View:
    """The slices of one stack, turned and flipped, from the patient's right to the left.

    Attributes:
        pixels: stored values `(S, H, W)`, C-contiguous; rows superior -> inferior, columns anterior -> posterior.
        slope, intercept: `(S,)` the modality rescale of each slice.
        origins_mm: `(S, 3)` LPS centre of pixel [0, 0] of each slice.
        down, back: unit LPS vectors along rows and columns.
        spacing_mm: `(2,)` between columns (x) and between rows (y).
    """

    pixels: NDArray[np.integer[Any]]
    slope: F32
    intercept: F32
    origins_mm: F64
    down: F64
    back: F64
    spacing_mm: F64

    def placed(self, number: int, points: F64) -> F64:
        """Return the points `(..., 2)` of slice `number` in the patient, LPS mm `(..., 3)`."""
        mm = points * self.spacing_mm
        return np.asarray(
            self.origins_mm[number] + mm[..., :1] * self.back + mm[..., 1:] * self.down
        )

    def in_plane(self, points_mm: F64) -> F64:
        """Project LPS points `(..., 3)` on one plane for all slices: mm `(..., 2)` along `back` and `down`."""
        return points_mm @ np.stack([self.back, self.down]).T

    @property
    def rows_mm(self) -> tuple[float, float]:
        """The upper and lower edge of the pictures along `down`, mm in the plane of `in_plane`."""
        tops = self.origins_mm @ self.down - self.spacing_mm[1] / 2
        return float(tops.min()), float(
            tops.max() + self.pixels.shape[1] * self.spacing_mm[1]
        )


def view_from_stack(stack: Stack) -> View:
    """Turn a sagittal stack so that superior is up, anterior left and the patient's right first."""
    down, back, across, which, signs = canvas_axes(stack)
    chosen = chosen_slices(stack.positions_mm)
    if across @ stack.axes[0] < 0:
        chosen = chosen[::-1]
    pixels = stack.pixels[chosen]
    origins = stack.origins_mm[chosen]
    for axis, sign in zip(which, signs, strict=True):
        if sign < 0:
            pixels = np.flip(pixels, axis=axis)
            origins = (
                origins
                + (pixels.shape[axis] - 1)
                * stack.spacing_mm[axis - 1]
                * stack.axes[axis]
            )
    if which[0] == 2:
        pixels = pixels.transpose(0, 2, 1)
    spacing = np.array([stack.spacing_mm[which[1] - 1], stack.spacing_mm[which[0] - 1]])
    return View(
        np.ascontiguousarray(pixels),
        stack.slope[chosen],
        stack.intercept[chosen],
        origins,
        down,
        back,
        spacing,
    )
