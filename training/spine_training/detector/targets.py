"""The target planes of a slice: heat, direction and level of its discs, as the net should give them.

Planes: disc, body, direction (2), level coordinate u, then the weights of disc, body, direction and level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spine_engine.detection.spec import DetectorSpec
from spine_training.arrays import F32, F64

#: Widths of the targets: a disc is 30-35 mm long and 6-14 mm high, its heat keeps neighbours 30 mm apart separate.
DISC_SIGMA_MM, BODY_SIGMA_MM = 5.0, 7.0
#: Half width of the band along the column where the level bins are learnt.
BAND_MM = 16.0
#: Heat at 24 mm from the midline: beyond it a slice has passed the pedicles and says nothing of levels.
LEVEL_FLOOR = 0.13
#: Above the last labelled disc the next one is 0.92 of the last distance away (mean of the thoracolumbar exams).
ABOVE_TOP_SHARE = 0.92
#: S1 is 28-30 mm high (Panjabi et al., Spine 17 (1992) 299, and VB1's masks); its band ends where S1/S2 bends away.
SACRUM_STEP_MM, SACRUM_REACH_MM = 28.0, 38.0
#: Round a disc of unknown place, and above the last labelled disc, the heat loss is masked.
UNKNOWN_RADIUS_MM, UNKNOWN_CORRIDOR_MM = 18.0, 32.0
#: Above the last labelled disc the masks of discs and of bodies begin.
UNKNOWN_DISC_MM, UNKNOWN_BODY_MM = 10.0, 28.0
#: The level's weight above the last labelled disc, where the next one is only presumed.
ABOVE_TOP_WEIGHT = 0.7
#: A direction is learnt where a disc's heat and its share in the slice are at least these.
DIRECTION_HEAT, DIRECTION_SHARE = 0.1, 0.15
#: Number of planes.
PLANES = 9


@dataclass(frozen=True, slots=True)
class SliceColumn:
    """The column as one slice shows it, in canvas mm.

    Attributes:
        discs: `(n, 8)` row, column, lateral mm, direction (2), rank, known, weak; by rising rank.
        bodies: `(m, 4)` row, column, lateral mm, rank.
        shares: `(n,)` how far each disc lies in the slice, 0 to 1.
        body_shares: `(m,)` the same of the bodies.
        crop_mm: field of view: row from, to, column from, to.
    """

    discs: F64
    bodies: F64
    shares: F64
    body_shares: F64
    crop_mm: F64


def target_planes(
    column: SliceColumn, canvas: tuple[int, int], spec: DetectorSpec
) -> F32:
    """Return the planes `(9, H / stride, W / stride)` of a canvas `(H, W)`."""
    origin_mm = (spec.stride - 1) / 2 * spec.pixel_mm
    rows = np.arange(canvas[0] // spec.stride, dtype=np.float64)
    columns = np.arange(canvas[1] // spec.stride, dtype=np.float64)
    y = origin_mm + spec.output_pixel_mm * rows[:, None]
    x = origin_mm + spec.output_pixel_mm * columns
    top, bottom, left, right = column.crop_mm
    inside = (top <= y) & (y < bottom) & (left <= x) & (x < right)
    planes = np.zeros((PLANES, *inside.shape), np.float32)
    _draw_heat(planes, y, x, column, inside)
    u, weight = _levels(y, x, column)
    planes[4] = np.where(inside & (weight > 0), u, 0.0)
    planes[8] = np.where(
        inside & (weight > LEVEL_FLOOR),
        weight,
        0.0,
    )
    return planes


def _draw_heat(
    planes: F32,
    y: F64,
    x: F64,
    column: SliceColumn,
    inside: NDArray[np.bool_],
) -> None:
    """Draw heat and direction, and the weights of both: 0 where a disc may lie unlabelled."""
    along, across = _from_end(
        y,
        x,
        column.discs[-1],
        _upwards(column.discs),
    )
    beyond = np.abs(across) < UNKNOWN_CORRIDOR_MM
    planes[5] = ~(beyond & (along > UNKNOWN_DISC_MM))
    planes[6] = ~(beyond & (along > UNKNOWN_BODY_MM))
    for disc, share in zip(column.discs, column.shares, strict=True):
        if not disc[6]:
            squared = (y - disc[0]) ** 2 + (x - disc[1]) ** 2
            planes[5][squared < UNKNOWN_RADIUS_MM**2] = 0
            planes[6][squared < 4 * UNKNOWN_RADIUS_MM**2] = 0
            continue
        heat = inside * _gaussian(y, x, disc, DISC_SIGMA_MM)
        np.maximum(
            planes[0],
            heat * share,
            out=planes[0],
        )
        if share > DIRECTION_SHARE:
            near = heat > DIRECTION_HEAT
            planes[2:4, near] = disc[3:5, None]
            planes[7, near] = heat[near] * share
    for body, share in zip(column.bodies, column.body_shares, strict=True):
        heat = inside * _gaussian(y, x, body, BODY_SIGMA_MM)
        np.maximum(
            planes[1],
            heat * share,
            out=planes[1],
        )


def _levels(y: F64, x: F64, column: SliceColumn) -> tuple[F64, F64]:
    """Return the level coordinate u (0 at L5/S1, 1 at L4/L5, ...) along the column and past its ends, and a weight."""
    discs, shares = column.discs, column.shares
    lower = discs[:-1, :, None, None]
    step = discs[1:, :, None, None] - lower
    t = ((y - lower[:, 0]) * step[:, 0] + (x - lower[:, 1]) * step[:, 1]) / (
        step[:, 0] ** 2 + step[:, 1] ** 2
    )
    beside = (y - lower[:, 0] - t * step[:, 0]) ** 2 + (
        x - lower[:, 1] - t * step[:, 1]
    ) ** 2
    beside[(t < 0) | (t > 1)] = np.inf
    nearest = beside.argmin(0)
    t = np.take_along_axis(t, nearest[None], 0)[0]
    ends = np.stack([shares[:-1], shares[1:]])[:, nearest]
    share = np.where(
        (t > 0.1) & (t < 0.9),
        ends.min(0),
        np.where(t < 0.5, *ends),
    )
    weight = np.where(
        beside.min(0) < BAND_MM**2,
        share,
        0.0,
    )
    u = discs[nearest, 5] + t * (discs[nearest + 1, 5] - discs[nearest, 5])
    top, second = discs[-1], discs[-2]
    distance = np.hypot(*(top[:2] - second[:2]))
    above_mm = ABOVE_TOP_SHARE * distance / max(1.0, top[5] - second[5])
    along, across = _from_end(y, x, top, _upwards(discs))
    above = (
        (weight == 0)
        & (np.abs(across) < BAND_MM)
        & (along > 0)
        & (along < 1.5 * above_mm)
    )
    u = np.where(above, top[5] + along / above_mm, u)
    weight = np.where(
        above,
        ABOVE_TOP_WEIGHT * shares[-1],
        weight,
    )
    normal = np.array([discs[0, 4], -discs[0, 3]])
    along, across = _from_end(
        y,
        x,
        discs[0],
        normal if normal[0] >= 0 else -normal,
    )
    below = (
        (weight == 0)
        & (np.abs(across) < BAND_MM)
        & (along > 0)
        & (along < SACRUM_REACH_MM)
    )
    u = np.where(
        below,
        discs[0, 5] - along / SACRUM_STEP_MM,
        u,
    )
    return u, np.where(below, shares[0], weight)


def _gaussian(
    y: F64,
    x: F64,
    place: F64,
    sigma_mm: float,
) -> F64:
    """Return the heat round a place: a Gaussian, as the product of one along the rows and one along the columns."""
    along, across = y - place[0], x - place[1]
    return np.asarray(
        np.exp(-(along**2) / (2 * sigma_mm**2))
        * np.exp(-(across**2) / (2 * sigma_mm**2))
    )


def _upwards(discs: F64) -> F64:
    """Return the unit vector from the last disc but one to the last."""
    step = discs[-1, :2] - discs[-2, :2]
    return np.asarray(step / np.hypot(*step))


def _from_end(
    y: F64,
    x: F64,
    disc: F64,
    direction: F64,
) -> tuple[F64, F64]:
    """Return how far points lie from a disc along a unit direction, and across it."""
    dy, dx = y - disc[0], x - disc[1]
    return dy * direction[0] + dx * direction[1], dy * direction[1] - dx * direction[0]
