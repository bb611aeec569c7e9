"""Tabulates the anatomy for the rendering kernels: everything that depends on the position along the spine.

``along`` holds one row every ``CURVE_STEP_MM`` of arc length with the columns of ``Column``; ``plane`` maps a point of
the midsagittal plane to (s, h); ``soft`` holds the outlines of the body. All in the canonical frame, mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import CONDITIONS, LEVELS, Condition
from spine_engine.phantom.spine import CURVE_STEP_MM, FIRST_DISC, PhantomSpine

# Compiled in from other files: 366f960a3b20

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]

PLANE_STEP_MM: Final = 4.0
PLANE_START_MM: Final = (-260.0, -220.0)
PLANE_SHAPE: Final = (132, 112)
"""Nodes of the (z, y) lookup table of the midsagittal plane."""
SOFT_STEP_MM: Final = 4.0

NOISE_SIZE: Final = 32
"""Edge of the periodic lattice that textures are interpolated from."""


class Column(IntEnum):
    """The columns of ``along``."""

    DISC_S = 0  # arc length of the nearest disc's centre
    DISC_HALF = 1  # its half height
    HYDRATION = 2
    SCHMORL = 3
    A = 4  # half depth of body or disc before the curve
    B = 5  # half width
    X = 6  # lateral position of the centre curve
    LEAN = 7
    COS_TURN = 8
    SIN_TURN = 9
    CANAL_WIDTH = 10  # half width of the bony canal
    CANAL_DEPTH = 11
    CANAL = 12  # narrowing of the canal, fading away from the disc
    RECESS_RIGHT = 13
    RECESS_LEFT = 14
    FORAMEN_RIGHT = 15
    FORAMEN_LEFT = 16
    PEDICLE = 17  # mm inside the pedicles' range, negative outside
    LAMINA = 18
    SPINOUS = 19
    FACET = 20
    ROOT_S = 21  # arc length of the nearest exiting root
    PSOAS = 22
    CORD = 23  # radius of cord or conus
    SACRUM = 24  # half width of the sacral wings, 0 above
    SPINOUS_LENGTH = 25
    BODY_S = 26  # arc length of the nearest body's middle
    MARROW = 27
    SAC = 28  # 1 where there is a thecal sac, fading to 0 below S2
    AORTA = 29
    WALL = 30  # half depth behind the curve: the front wall of the canal


COLUMNS: Final = len(Column)


@dataclass(frozen=True, eq=False)
class Field:
    """The tables that the rendering kernels read.

    Attributes:
        along, plane, soft: see the module's docstring.
        lattice: standard normal noise ``(32, 32, 32)``.
        scalars: fat share of muscles, bowel's share of the abdomen, its haze, bladder's centre (3) and radius.
    """

    along: Float32Array
    plane: Float32Array
    soft: Float32Array
    lattice: Float32Array
    scalars: Float32Array


def field_of(spine: PhantomSpine) -> Field:
    """Tabulate a phantom for rendering; this takes about 15 ms."""
    curve = spine.curve
    shape = spine.shape
    plane = np.empty((*PLANE_SHAPE, 2), np.float32)
    _fill_plane(curve.y, curve.z, curve.tilt, curve.start_mm, CURVE_STEP_MM, plane)
    rng = np.random.default_rng([shape.texture_seed, 3])
    lattice = rng.standard_normal((NOISE_SIZE,) * 3, dtype=np.float32)
    bowel, haze, fill = rng.uniform(0, 1, 3)
    bladder = (
        curve.frame_at(float(curve.tops[12]))[0]
        + rng.normal(0, 6, 3)
        - [0.0, 62.0, 18.0]
    )
    radius = 18 + 26 * fill if fill > 0.35 else 0.0
    scalars = np.array([shape.muscle_fat, bowel, haze, *bladder, radius], np.float32)
    return Field(
        _along(spine).astype(np.float32), plane, _soft(spine), lattice, scalars
    )


def _along(spine: PhantomSpine) -> FloatArray:
    curve = spine.curve
    shape = spine.shape
    s = curve.s
    middles = (curve.tops + curve.bottoms) / 2
    disc = np.argmin(np.abs(s[:, None] - curve.discs), axis=1)
    body = np.argmin(np.abs(s[:, None] - middles), axis=1)
    waist = np.clip(
        1 - ((s - middles[body]) / (shape.body_height[body] / 2)) ** 2, 0, 1
    )
    conus = middles[5] + shape.conus_mm
    columns = {
        Column.DISC_S: curve.discs[disc],
        Column.DISC_HALF: shape.disc_height[disc] / 2,
        Column.HYDRATION: shape.hydration[disc],
        Column.SCHMORL: shape.schmorl_mm[disc],
        Column.A: np.interp(s, middles, shape.half_depth) * (1 - 0.085 * waist),
        Column.WALL: np.interp(s, middles, shape.half_depth) * (1 - 0.02 * waist),
        Column.B: np.interp(s, middles, shape.half_width) * (1 - 0.13 * waist),
        Column.X: curve.x,
        Column.LEAN: curve.lean,
        Column.COS_TURN: np.cos(curve.turn),
        Column.SIN_TURN: np.sin(curve.turn),
        Column.CANAL_WIDTH: np.interp(s, middles, shape.canal_half_width),
        Column.CANAL_DEPTH: np.interp(s, middles, shape.canal_depth),
        Column.PSOAS: np.interp(
            s, middles[[4, 6, 8, 9, 10, 12]], [2, 12, 19, 20, 17, 12]
        ),
        Column.CORD: 4.6 * np.clip((conus - s) / 28, 0, 1) ** 0.6,
        Column.SAC: np.clip((middles[11] + 12 - s) / 20, 0, 1),
        Column.SACRUM: np.interp(
            s, [curve.tops[10] - 2, *middles[10:]], [0, 52, 45, 34, 24, 12]
        ),
        Column.BODY_S: middles[body],
        Column.MARROW: shape.marrow[body],
        Column.AORTA: np.interp(s, [middles[8], middles[8] + 14], [9, 5.5]),
        **_posterior(spine, s, body, disc),
    }
    out = np.zeros((len(s), COLUMNS))
    for column, values in columns.items():
        out[:, column] = values
    _add_narrowing(out, spine, s)
    return out


def _add_narrowing(out: FloatArray, spine: PhantomSpine, s: FloatArray) -> None:
    """Spread each level's narrowings over the millimetres around its disc, flat in the middle."""
    narrowing = spine.canonical_narrowing
    reach = {
        Column.CANAL: (Condition.SPINAL_CANAL_STENOSIS, 0.0, 11.0),
        Column.RECESS_RIGHT: (Condition.RIGHT_SUBARTICULAR_STENOSIS, 3.0, 12.0),
        Column.RECESS_LEFT: (Condition.LEFT_SUBARTICULAR_STENOSIS, 3.0, 12.0),
        Column.FORAMEN_RIGHT: (Condition.RIGHT_NEURAL_FORAMINAL_NARROWING, -5.0, 15.0),
        Column.FORAMEN_LEFT: (Condition.LEFT_NEURAL_FORAMINAL_NARROWING, -5.0, 15.0),
    }
    for column, (condition, below_disc_mm, half_mm) in reach.items():
        for level in range(len(LEVELS)):
            away = (
                np.abs(s - spine.curve.discs[FIRST_DISC + level] - below_disc_mm)
                / half_mm
            )
            ramp = np.clip((1 - away) / 0.55, 0, 1)
            window = ramp * ramp * (3 - 2 * ramp)
            out[:, column] = np.maximum(
                out[:, column], narrowing[level, CONDITIONS.index(condition)] * window
            )


def _posterior(
    spine: PhantomSpine, s: FloatArray, body: NDArray[np.int64], disc: NDArray[np.int64]
) -> dict[Column, FloatArray]:
    """Return the ranges of pedicles, laminae, spinous processes, facets and roots as signed distances, mm."""
    curve = spine.curve
    top = curve.tops[body]
    height = spine.shape.body_height[body]
    lamina = np.minimum(s - (top + 0.30 * height), top + 0.98 * height - s)
    spinous = np.minimum(s - (top + 0.28 * height), top + 1.02 * height - s)
    center = curve.discs[disc]
    above = np.clip(disc, 0, 13)
    middles = (curve.tops + curve.bottoms) / 2
    return {
        Column.PEDICLE: np.minimum(s - (top + 0.04 * height), top + 0.50 * height - s),
        Column.LAMINA: np.where(body >= 10, 3.0, lamina),
        Column.SPINOUS: spinous * np.where(body >= 10, 0.6, 1.0),
        Column.FACET: np.where(
            disc >= 10, -9.0, np.minimum(s - (center - 15), center + 11 - s)
        ),
        Column.ROOT_S: curve.bottoms[above] - 0.30 * spine.shape.body_height[above],
        Column.SPINOUS_LENGTH: np.interp(
            s, middles[[0, 4, 6, 8, 9, 10, 11]], [20, 26, 31, 30, 24, 11, 6]
        ),
    }


def _soft(spine: PhantomSpine) -> Float32Array:
    """Return y, mm, of four outlines for each z: back muscles, skin of the back, inner abdominal wall, belly skin."""
    curve = spine.curve
    shape = spine.shape
    z = PLANE_START_MM[0] + SOFT_STEP_MM * np.arange(PLANE_SHAPE[0])
    order = np.argsort(curve.z)
    line = np.interp(z, curve.z[order], curve.y[order])
    sacrum = float(np.interp(curve.tops[10], curve.s, curve.z))
    reach = np.interp(
        z, [sacrum - 60, sacrum - 15, sacrum + 25, sacrum + 120], [24, 34, 56, 62]
    )
    kernel = np.hanning(23)
    back = np.convolve(
        np.pad(line + reach, 11, mode="edge"), kernel / kernel.sum(), mode="valid"
    )
    fat = shape.back_fat_mm * np.interp(
        z, [sacrum - 70, sacrum - 10, sacrum + 60, sacrum + 140], [2.6, 2.0, 1.0, 0.7]
    )
    wide = np.hanning(61)
    smooth = np.convolve(np.pad(line, 30, mode="edge"), wide / wide.sum(), mode="valid")
    inner = smooth - 17 - shape.front_mm * (1 + 0.12 * np.sin((z - sacrum) / 60))
    front = inner - shape.front_fat_mm * (1 + 0.3 * np.cos((z - sacrum - 30) / 70))
    return np.stack([back, back + fat, inner, front], axis=1).astype(np.float32)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fill_plane(
    y: FloatArray,
    z: FloatArray,
    tilt: FloatArray,
    start_mm: float,
    step_mm: float,
    plane: Float32Array,
) -> None:
    """Store (s, h) of every node: find the closest point of the curve, refined below the curve's sampling step."""
    for i in range(plane.shape[0]):
        node_z = PLANE_START_MM[0] + PLANE_STEP_MM * i
        for j in range(plane.shape[1]):
            node_y = PLANE_START_MM[1] + PLANE_STEP_MM * j
            best, best_k = 1e18, 0
            for k in range(0, y.shape[0], 4):
                d = (node_y - y[k]) ** 2 + (node_z - z[k]) ** 2
                if d < best:
                    best, best_k = d, k
            for k in range(max(best_k - 4, 0), min(best_k + 5, y.shape[0])):
                d = (node_y - y[k]) ** 2 + (node_z - z[k]) ** 2
                if d < best:
                    best, best_k = d, k
            sin, cos = np.sin(tilt[best_k]), np.cos(tilt[best_k])
            dy, dz = node_y - y[best_k], node_z - z[best_k]
            along = dy * sin - dz * cos
            plane[i, j, 0] = start_mm + step_mm * best_k + min(max(along, -40.0), 40.0)
            plane[i, j, 1] = dy * cos + dz * sin
