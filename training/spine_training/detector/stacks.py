"""Sagittal stacks as the volumes that detector exams are made of.

Frame: the volume frame of `truth`, mm along (superior -> inferior, anterior -> posterior, patient right -> left) from
the first voxel's centre. Its axes are the stack's own, however oblique the stack is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spine_engine.detection.slices import canvas_axes
from spine_engine.study import Stack
from spine_training.arrays import F32, F64, I64, U8

#: Pixels finer than this are averaged in blocks, as `spine_engine.detection.slices` does when it samples them: the
#: public exams have 1 mm voxels.
GRAIN_MM = 1.0
#: The white of the 8-bit volume: 0.2 % of the voxels (vessels, cerebrospinal fluid near a coil) may lie above.
WHITE_PERCENTILE = 99.8


@dataclass(frozen=True, slots=True, eq=False)
class StackVolume:
    """A stack as voxels.

    Attributes:
        pixels: `(row, column, lateral)` uint8.
        spacing_mm: between rows, columns and slices.
        frame: `(3, 3)`, rows are the LPS unit vectors (down, back, left) of the volume's axes.
        origin_mm: `(3,)` LPS centre of the first voxel.
    """

    pixels: U8
    spacing_mm: tuple[float, float, float]
    frame: F64
    origin_mm: F64

    def place(self, point_mm: F64) -> F64:
        """Return the volume mm (row, column, lateral) of an LPS point."""
        return np.asarray(self.frame @ (point_mm - self.origin_mm))

    def direction(self, vector: F64) -> F64:
        """Return the unit vector (row, column) of an LPS direction inside the slices."""
        inside = (self.frame @ vector)[:2]
        return np.asarray(inside / np.linalg.norm(inside))


def volume_from_stack(stack: Stack) -> StackVolume:
    """Turn a sagittal stack so that its axes run down, back and left, on an even lateral grid, in 8 bits.

    Slices keep their true places: where one is missing, its nearest neighbour stands for it.
    """
    down, back, across, which, signs = canvas_axes(stack)
    lateral, step_mm = _even_slices(stack)
    values = (
        stack.pixels[lateral] * stack.slope[lateral, None, None]
        + stack.intercept[lateral, None, None]
    )
    volume = np.moveaxis(
        values,
        (int(which[0]), int(which[1]), 0),
        (0, 1, 2),
    )
    spacing = np.array(
        [
            stack.spacing_mm[which[0] - 1],
            stack.spacing_mm[which[1] - 1],
            step_mm,
        ]
    )
    origin = _first_voxel(stack)
    for k, (axis, sign) in enumerate(zip(which, signs, strict=True)):
        if sign < 0:
            origin = origin + (volume.shape[k] - 1) * spacing[k] * stack.axes[axis]
            volume = np.flip(volume, k)
    if stack.axes[0] @ across < 0:
        origin = origin + (volume.shape[2] - 1) * spacing[2] * stack.axes[0]
        volume = np.flip(volume, 2)
    frame = np.stack([down, back, across])
    for k in range(2):
        count = max(1, round(GRAIN_MM / spacing[k]))
        volume = _block_mean(volume, k, count)
        origin = origin + (count - 1) / 2 * spacing[k] * frame[k]
        spacing[k] *= count
    row_mm, column_mm, lateral_mm = spacing.tolist()
    return StackVolume(
        _in_8_bits(volume),
        (row_mm, column_mm, lateral_mm),
        frame,
        origin,
    )


def _even_slices(stack: Stack) -> tuple[I64, float]:
    """Return the slice nearest to each point of an even grid along the normal, and the step (1 mm for one slice)."""
    positions = stack.positions_mm
    step_mm = stack.slice_spacing_mm or 1.0
    grid = (
        positions[0]
        + np.arange(round((positions[-1] - positions[0]) / step_mm) + 1) * step_mm
    )
    return np.abs(positions[None] - grid[:, None]).argmin(1), step_mm


def _first_voxel(stack: Stack) -> F64:
    """Return the LPS centre of the first voxel; slices that drift inside their plane lie as the middle one does."""
    middle = stack.origins_mm[len(stack.origins_mm) // 2]
    return np.asarray(
        middle + (stack.positions_mm[0] - middle @ stack.axes[0]) * stack.axes[0]
    )


def _block_mean(volume: F32, axis: int, count: int) -> F32:
    """Return the mean of every `count` neighbours along an axis; a rest at its end is dropped."""
    whole = volume.shape[axis] // count * count
    kept = np.moveaxis(volume, axis, 0)[:whole]
    blocks = kept.reshape(
        whole // count,
        count,
        *kept.shape[1:],
    ).mean(1, dtype=np.float32)
    return np.asarray(np.moveaxis(blocks, 0, axis))


def _in_8_bits(volume: F32) -> U8:
    low, white = float(volume.min()), float(np.percentile(volume, WHITE_PERCENTILE))
    scaled = (volume - low) * (255.0 / max(white - low, 1.0))
    return np.ascontiguousarray(np.clip(scaled, 0, 255).astype(np.uint8))
