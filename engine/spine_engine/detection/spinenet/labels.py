"""Builds the inputs of the two labelling networks: the volume around a vertebra, the column of all probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spine_engine.detection.spinenet.beam import CLASS_NAMES
from spine_engine.detection.spinenet.joining import (
    LEFT_BOTTOM,
    LEFT_TOP,
    RIGHT_BOTTOM,
    RIGHT_TOP,
    Body,
)
from spine_engine.detection.spinenet.view import View

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

VOLUME_PX = 224
"""Rows and columns of the volume around a vertebra (arXiv 2205.01683)."""

VOLUME_SLICES = 16
"""Slices of the volume around a vertebra (arXiv 2205.01683)."""

VOLUME_EDGES = 3.0
"""Side of the volume's square, in lengths of the vertebra's longer edge (arXiv 2205.01683: three times its edge)."""

VOLUME_PERCENTILE = 95.0
"""Percentile of the volume that becomes 1 (arXiv 2205.01683)."""

TEMPERATURE = 10.0
"""Divisor of both networks' scores before the softmax (arXiv 2205.01683)."""

PAINTED = 0.25
"""Share of its height that a vertebra fills on each side of its centroid in the column (arXiv 2205.01683)."""

COLUMN_MULTIPLE = 256
"""Number whose multiple the column's rows, one a millimetre, are padded to (arXiv 2205.01683)."""


def log_softmax(scores: F64) -> F64:
    """Return the natural logarithm of the softmax over the last axis, at `TEMPERATURE`."""
    scaled = scores / TEMPERATURE
    shifted = scaled - scaled.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def volume_round(view: View, body: Body) -> F32:
    """Return the volume `(224, 224, 16)` float32 around a vertebra: rows, columns, slices from the patient's right.

    The box is a square of three times the vertebra's longer edge, turned so that the end plates lie level. Its samples
    are bilinear, 0 outside the picture; the slices that show the vertebra are blended linearly to 16, then
    `(v - min) / P95`.
    """
    from spine_engine.detection.kernels import resample_slice

    corners = view.in_plane(body.corners_mm)
    along = (
        corners[RIGHT_TOP]
        - corners[LEFT_TOP]
        + corners[RIGHT_BOTTOM]
        - corners[LEFT_BOTTOM]
    )
    along = along / np.linalg.norm(along)
    turned = np.array(
        [-along[1], along[0]]
    )  # a quarter turn from posterior is inferior
    step_mm = VOLUME_EDGES * max(body.height_mm, body.depth_mm) / VOLUME_PX
    first_mm = corners.mean(axis=0) - (along + turned) * step_mm * (VOLUME_PX - 1) / 2
    row_step = (turned * step_mm / view.spacing_mm)[::-1].copy()
    column_step = (along * step_mm / view.spacing_mm)[::-1].copy()
    planes = np.empty((body.last - body.first + 1, VOLUME_PX, VOLUME_PX), np.float32)
    for plane, number in zip(planes, range(body.first, body.last + 1), strict=True):
        start = ((first_mm - view.in_plane(view.origins_mm[number])) / view.spacing_mm)[
            ::-1
        ].copy()
        resample_slice(
            plane, view.pixels[number], start, row_step, column_step, np.zeros((1, 2))
        )
        plane *= view.slope[number]
        plane += view.intercept[number]
    blended = planes.reshape(len(planes), -1).T @ _blend(len(planes)).T
    volume = blended.reshape(VOLUME_PX, VOLUME_PX, VOLUME_SLICES)
    volume -= volume.min()
    high = np.percentile(volume, VOLUME_PERCENTILE)
    if high > 0:
        volume /= np.float32(high)
    return volume


def _blend(slices: int) -> F32:
    """Return the weights `(16, slices)` of linear interpolation; the first and last slice keep their places."""
    place = np.linspace(0, slices - 1, VOLUME_SLICES)
    weights = np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(slices)))
    return weights.astype(np.float32)


def context_column(
    view: View, bodies: Sequence[Body], probability: F64
) -> tuple[F32, NDArray[np.int64]]:
    """Paint the probabilities `(V, 24)` of a view's vertebrae over the picture's height.

    Returns:
        The column `(1, 1, H, 24)` float32, one row a millimetre from the picture's upper edge, and the row `(V,)` of
        each centroid.
    """
    top, bottom = view.rows_mm
    height = -(-int(np.ceil(bottom - top)) // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
    column = np.zeros((height, len(CLASS_NAMES)), np.float32)
    middle = np.arange(height) + 0.5
    rows = np.empty(len(bodies), np.int64)
    for number, body in enumerate(bodies):
        place = float(view.in_plane(body.center_mm)[1]) - top
        rows[number] = int(np.clip(place, 0, height - 1))
        column[np.abs(middle - place) <= max(PAINTED * body.height_mm, 0.5)] = (
            probability[number]
        )
    return column[None, None], rows
