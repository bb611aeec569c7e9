"""Tells which tissue lies at a point of the phantom: the implicit shapes, as numba kernels.

``tissue_at`` returns ``(first, second, share)``: the point is ``share`` of ``second`` and the rest of ``first``.
Shapes are written in the spine's coordinates: ``s`` down the centre curve, ``h`` to the back, ``w`` to the left, mm.
Severity acts in the space behind the body: its front wall (disc) and back wall (ligament, facet) approach each other
at the canal, recesses and foramina, each on its own side; the sac, roots and fat between them shrink.
None of these kernels is cached by itself: ``sampling`` caches the one that calls them, under a stamp of this source.
"""

from __future__ import annotations

from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from spine_engine.phantom.profiles import (
    NOISE_SIZE,
    PLANE_SHAPE,
    PLANE_START_MM,
    PLANE_STEP_MM,
    SOFT_STEP_MM,
    Column,
)
from spine_engine.phantom.signal import Tissue
from spine_engine.phantom.spine import CURVE_STEP_MM

Float32Array = NDArray[np.float32]
Mix = tuple[int, int, float]

AIR, FAT, MUSCLE, MARROW = (
    int(Tissue.AIR),
    int(Tissue.FAT),
    int(Tissue.MUSCLE),
    int(Tissue.MARROW),
)
CORTEX, NUCLEUS, ANNULUS, CSF = (
    int(Tissue.CORTEX),
    int(Tissue.NUCLEUS),
    int(Tissue.ANNULUS),
    int(Tissue.CSF),
)
NERVE, LIGAMENT, VESSEL, BOWEL = (
    int(Tissue.NERVE),
    int(Tissue.LIGAMENT),
    int(Tissue.VESSEL),
    int(Tissue.BOWEL),
)
SKIN, URINE, VEIN = int(Tissue.SKIN), int(Tissue.URINE), int(Tissue.VEIN)

CANAL_FRONT_MM: Final = 5.0
CANAL_BACK_MM: Final = 4.5
"""How far the disc and the ligaments advance into the canal at narrowing 1 (of about 16 mm)."""
RECESS_FRONT_MM: Final = 3.6
RECESS_BACK_MM: Final = 4.4
FORAMEN_FRONT_MM: Final = 4.2
FORAMEN_BACK_MM: Final = 4.4

_ROOTS: Final = np.array(
    [
        [-0.60, 0.15], [-0.45, 0.42], [-0.27, 0.60], [-0.09, 0.52], [0.10, 0.66], [0.26, 0.50],
        [0.44, 0.50], [0.62, 0.20], [-0.72, -0.25], [0.71, -0.22], [0.33, 0.22], [-0.30, 0.26],
    ],
    np.float32,
)  # fmt: skip
"""Cauda equina: where its roots lie in the sac, in half widths and half depths; most lie dorsally when supine."""


@numba.njit(nogil=True, error_model="numpy", inline="always")
def noise_at(lattice: Float32Array, x: float, y: float, z: float) -> float:
    """Return trilinear value noise: unit lattice spacing, period ``NOISE_SIZE``, standard normal at the nodes."""
    fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
    i, j, k = (
        int(fx) & (NOISE_SIZE - 1),
        int(fy) & (NOISE_SIZE - 1),
        int(fz) & (NOISE_SIZE - 1),
    )
    u, v, t = x - fx, y - fy, z - fz
    i1, j1, k1 = (
        (i + 1) & (NOISE_SIZE - 1),
        (j + 1) & (NOISE_SIZE - 1),
        (k + 1) & (NOISE_SIZE - 1),
    )
    a = lattice[i, j, k] * (1 - t) + lattice[i, j, k1] * t
    b = lattice[i, j1, k] * (1 - t) + lattice[i, j1, k1] * t
    c = lattice[i1, j, k] * (1 - t) + lattice[i1, j, k1] * t
    d = lattice[i1, j1, k] * (1 - t) + lattice[i1, j1, k1] * t
    value: float = (a * (1 - v) + b * v) * (1 - u) + (c * (1 - v) + d * v) * u
    return value


@numba.njit(nogil=True, error_model="numpy", inline="always")
def plane_at(plane: Float32Array, y: float, z: float) -> tuple[float, float]:
    """Return (s, h) of a point of the midsagittal plane, bilinear in the table."""
    fz = min(max((z - PLANE_START_MM[0]) / PLANE_STEP_MM, 0.0), PLANE_SHAPE[0] - 1.001)
    fy = min(max((y - PLANE_START_MM[1]) / PLANE_STEP_MM, 0.0), PLANE_SHAPE[1] - 1.001)
    i, j = int(fz), int(fy)
    u, v = fz - i, fy - j
    s = (plane[i, j, 0] * (1 - v) + plane[i, j + 1, 0] * v) * (1 - u) + (
        plane[i + 1, j, 0] * (1 - v) + plane[i + 1, j + 1, 0] * v
    ) * u
    h = (plane[i, j, 1] * (1 - v) + plane[i, j + 1, 1] * v) * (1 - u) + (
        plane[i + 1, j, 1] * (1 - v) + plane[i + 1, j + 1, 1] * v
    ) * u
    return s, h


@numba.njit(nogil=True, error_model="numpy", inline="always")
def _hill(u: float) -> float:
    """Return 1 at 0, falling smoothly to 0 at |u| = 1."""
    v = 1 - u * u
    return v * v if v > 0 else 0.0


@numba.njit(nogil=True, error_model="numpy", inline="always")
def _row(along: Float32Array, s: float, start_mm: float) -> int:
    last: int = along.shape[0] - 1
    return min(max(int((s - start_mm) / CURVE_STEP_MM + 0.5), 0), last)


@numba.njit(nogil=True, error_model="numpy", inline="always")
def outline_at(
    soft: Float32Array, x: float, z: float
) -> tuple[float, float, float, float]:
    """Return y of the back muscles' surface, the back's skin, the inner abdominal wall, the belly's skin, mm."""
    f = min(max((z - PLANE_START_MM[0]) / SOFT_STEP_MM, 0.0), soft.shape[0] - 1.001)
    i = int(f)
    u = f - i
    drop = x * x * 0.0022
    back = soft[i, 0] * (1 - u) + soft[i + 1, 0] * u - drop
    back_skin = soft[i, 1] * (1 - u) + soft[i + 1, 1] * u - drop
    belly = soft[i, 2] * (1 - u) + soft[i + 1, 2] * u + 1.2 * drop
    belly_skin = soft[i, 3] * (1 - u) + soft[i + 1, 3] * u + 1.2 * drop
    return back, back_skin, belly, belly_skin


@numba.njit(nogil=True, error_model="numpy")
def shell_at(
    x: float,
    y: float,
    streak: float,
    back: float,
    back_skin: float,
    belly: float,
    belly_skin: float,
) -> Mix:
    """Return the tissue outside the muscles' surface and the abdominal cavity: skin, fat, belly wall."""
    if y > back_skin - 1.6 or y < belly_skin + 1.6:
        return SKIN, SKIN, 0.0
    if y > back + 1.2 or y < belly:
        return FAT, LIGAMENT, 0.25 if abs(streak) < 0.035 else 0.0
    if y > back:
        return LIGAMENT, FAT, 0.2
    return (FAT if abs(x) < 3 else MUSCLE), FAT, 0.15


@numba.njit(nogil=True, error_model="numpy")
def tissue_at(
    x: float, y: float, z: float, fine: float, coarse: float, streak: float, belly: float,
    along: Float32Array, start_mm: float, plane: Float32Array, scalars: Float32Array,
) -> Mix:  # fmt: skip
    """Return the tissue mix at a canonical point inside the shell, mm; the noises are those of its texture."""
    s, h = plane_at(plane, y, z)
    row = along[_row(along, s, start_mm)]
    across = x - row[Column.X]
    s += across * row[Column.LEAN]
    row = along[_row(along, s, start_mm)]
    w = across * row[Column.COS_TURN] + h * row[Column.SIN_TURN]
    h = h * row[Column.COS_TURN] - across * row[Column.SIN_TURN]
    beside = min(0.4 * max(abs(w) - 30.0, 0.0), 22.0)
    if h < -row[Column.A] - 3.0 - 0.8 * coarse - beside:
        return _front(x, y, z, h, w, fine, coarse, row, scalars)
    return _column(s, h, w, fine, coarse, streak, row, along, start_mm, scalars[0])


@numba.njit(nogil=True, error_model="numpy")
def _front(
    x: float, y: float, z: float, h: float, w: float, fine: float, coarse: float,
    row: Float32Array, scalars: Float32Array,
) -> Mix:  # fmt: skip
    """Return the tissue in front of the spine: great vessels, bowel, organs, fat."""
    a = row[Column.A]
    radius = row[Column.AORTA]
    if row[Column.SACRUM] < 5:
        spread = 0.0 if radius > 8.5 else (9.0 - radius) * 4.5
        dh = h + a + radius + 5
        dw = w - 8 - spread
        d = np.sqrt(dw * dw + dh * dh)
        if d < radius:
            return (VESSEL, MUSCLE, 0.3) if d > radius - 1.3 else (VESSEL, VEIN, 0.12)
        dw = w + 12 + spread
        dh = (dh + 2) * 1.3
        if dw * dw + dh * dh < (radius + 1) * (radius + 1):
            return VESSEL, VEIN, 0.3
    if h > -a - 7 - 2.5 * coarse + 0.14 * max(abs(w) - 22, 0.0):
        return FAT, MUSCLE, min(max(0.1 + 0.1 * coarse, 0.0), 1.0)
    radius = scalars[6]
    if radius > 0:
        d = (x - scalars[3]) ** 2 + 1.3 * (y - scalars[4]) ** 2 + (z - scalars[5]) ** 2
        if d < radius * radius:
            return URINE, URINE, 0.0
        if d < (radius + 3) ** 2:
            return MUSCLE, FAT, 0.1
    value = (
        coarse
        + 0.12 * fine
        + 1.4 * (scalars[1] - 0.7)
        + min(0.02 * max(-x - 25.0, 0.0), 0.8)
    )
    haze = 0.15 + 0.45 * scalars[2]
    if value > 1.7:
        return BOWEL, AIR, min((value - 1.7) * 4, 0.9)
    if value > -0.3:
        return BOWEL, FAT, min(max(haze, 0.9 - 3 * (value + 0.3)), 0.9)
    return FAT, BOWEL, min(max(0.6 * haze - 0.08 * coarse, 0.0), 0.6)


@numba.njit(nogil=True, error_model="numpy")
def _column(
    s: float, h: float, w: float, fine: float, coarse: float, streak: float,
    row: Float32Array, along: Float32Array, start_mm: float, muscle_fat: float,
) -> Mix:  # fmt: skip
    """Return the tissue of bodies, discs, the space behind them, posterior elements and muscles."""
    b = row[Column.B]
    a = row[Column.WALL]
    side = abs(w)
    left = w > 0
    q = (w / b) ** 2
    face = a * np.sqrt(np.sqrt(1 - q)) - 1.6 * _hill(w / 9.0) if q < 1 else 0.0
    recess = row[Column.RECESS_LEFT] if left else row[Column.RECESS_RIGHT]
    foramen = row[Column.FORAMEN_LEFT] if left else row[Column.FORAMEN_RIGHT]
    canal = row[Column.CANAL]
    front = face
    if q < 1.2:
        front += CANAL_FRONT_MM * canal * _hill(w / 11.0)
        front += RECESS_FRONT_MM * recess * _hill((side - 9.0) / 5.0)
        front += FORAMEN_FRONT_MM * foramen * _hill((side - 17.5) / 9.0)
    if h < front and q < 1.2:
        girth = np.sqrt(q + (h / row[Column.A]) ** 2) if h < 0 else np.sqrt(q)
        inside = (
            (1 - girth) * row[Column.A] if h < 0 else min(face - h, (1 - girth) * b)
        )
        if h < 0 and inside < -2.2:
            return _lateral(s, h, side, fine, coarse, streak, row, muscle_fat)
        return _body(s, h, w, inside, front - face, fine, coarse, row)
    depth, wide = row[Column.CANAL_DEPTH], row[Column.CANAL_WIDTH]
    # The back wall is a roof: deepest in the middle, lower towards the facets.
    roof = a + depth - 0.26 * side
    facet = a + 0.66 * depth
    back = roof if side < wide else min(roof, facet)
    back -= CANAL_BACK_MM * canal * (_hill(w / 15.0) if side < 15 else 0.0)
    back -= RECESS_BACK_MM * recess * _hill((side - 9.0) / 5.5)
    back -= FORAMEN_BACK_MM * foramen * _hill((side - 17.5) / 9.0)
    if h > 0.3 * a and h < back:
        if side < wide:
            return _canal(s, h, w, front, back, recess, fine, row)
        if side < wide + 9.5 + coarse - 0.012 * (h - 0.5 * (front + back)) ** 2:
            return _foramen(s, h, side, front, back, foramen, fine, coarse, row)
    # Behind the canal nothing is graded: warp it so that no two vertebrae look alike.
    s, h, side = s + 1.4 * coarse, h - 0.7 * coarse, abs(side + 0.5 * coarse)
    if h > facet - 6 and side < wide + 18:
        return _posterior(
            s,
            h,
            side,
            back,
            roof,
            facet,
            fine,
            coarse,
            streak,
            row,
            along,
            start_mm,
            muscle_fat,
        )
    return _lateral(s, h, side, fine, coarse, streak, row, muscle_fat)


@numba.njit(nogil=True, error_model="numpy")
def _body(
    s: float,
    h: float,
    w: float,
    inside: float,
    bulge: float,
    fine: float,
    coarse: float,
    row: Float32Array,
) -> Mix:
    """Return the tissue of a vertebral body, its endplates, the disc, or the disc's bulge behind them."""
    a, b = row[Column.A], row[Column.B]
    from_disc = s - row[Column.DISC_S]
    away = abs(from_disc)
    crown = 1 - (h / a) ** 2 - (w / b) ** 2
    half = row[Column.DISC_HALF] * (0.86 + 0.30 * max(crown, 0.0)) * (1 - 0.12 * h / a)
    if from_disc > 0:
        half += row[Column.SCHMORL] * _hill((h + 0.1 * a) / 6.0) * _hill(w / 7.0)
    if inside < 0:
        # Beyond the body: annulus and disc material on its way out, ligament on its surface.
        if bulge > 0.3 or (away < half + 1.5 and inside > -1.6):
            return ANNULUS, LIGAMENT, 0.35 if inside > -1.0 else 0.15
        return FAT, LIGAMENT, 0.6 if inside > -1.0 else 0.1
    if away < half:
        if inside < 1.2:
            return LIGAMENT, ANNULUS, 0.4
        soft = min(max((inside - 3.5) / 4.0, 0.0), 1.0) * min(
            max((half - away) / 1.5, 0.0), 1.0
        )
        cleft = 1 - 0.35 * _hill(from_disc / 1.6)
        return (
            ANNULUS,
            NUCLEUS,
            max(soft * row[Column.HYDRATION] * cleft, 0.12 + 0.04 * fine),
        )
    if away < half + 0.95 or inside < 0.85:
        return CORTEX, MARROW, 0.15
    vein = abs(s - row[Column.BODY_S]) < 2.4 * h / a + 0.4 * coarse
    if vein and h > 0.2 * a and abs(w) < 4 and row[Column.SACRUM] < 1:
        return MARROW, VEIN, 0.5
    share = min(
        max(0.12 + 0.13 * coarse + 0.05 * fine + 0.5 * (row[Column.MARROW] - 1), 0.0),
        0.6,
    )
    if away < half + 5.0 and row[Column.HYDRATION] < 0.25:
        share += 0.25
    return MARROW, FAT, share


@numba.njit(nogil=True, error_model="numpy")
def _canal(
    s: float,
    h: float,
    w: float,
    front: float,
    back: float,
    recess: float,
    fine: float,
    row: Float32Array,
) -> Mix:
    """Return the tissue of the canal: sac with cord or roots, epidural fat, the traversing root in the recess."""
    a, depth, wide = row[Column.WALL], row[Column.CANAL_DEPTH], row[Column.CANAL_WIDTH]
    side = abs(w)
    canal = row[Column.CANAL]
    sac = row[Column.SAC]
    near = a - 1.6 + CANAL_FRONT_MM * canal + 0.8 + (1 - sac) * depth * 0.25
    pad = 1.6 * _hill((s - row[Column.DISC_S] - 2) / 11.0) * (1 - canal)
    far = a + depth - CANAL_BACK_MM * canal - 1.6 - pad - (1 - sac) * depth * 0.4
    middle, half = (near + far) / 2, max((far - near) / 2, 0.6)
    width = (0.80 * wide * (1 - 0.30 * canal) - 2.6 * recess) * (0.35 + 0.65 * sac)
    e = (w / width) ** 2 + ((h - middle) / half) ** 2
    if sac > 0.02 and e < 1 and h > front + 0.5 and h < back - 0.7:
        if e > 0.86:
            return CSF, LIGAMENT, 0.4
        cord = row[Column.CORD]
        if (
            cord > 0.4
            and (w / (cord * 1.12)) ** 2
            + ((h - middle - 0.1 * half) / (cord * 0.9)) ** 2
            < 1
        ):
            return NERVE, CSF, 0.05
        crowd = 0.08 + 0.62 * canal
        for k in range(_ROOTS.shape[0]):
            dw = w - _ROOTS[k, 0] * width
            dh = h - middle - _ROOTS[k, 1] * half
            if dw * dw + dh * dh < 0.62:
                return NERVE, CSF, 0.15
        return CSF, NERVE, crowd
    if side > 5 and row[Column.PEDICLE] > -22 and row[Column.SACRUM] < 40:
        gap = max(back - front, 0.2)
        rh = min(1.9, 0.42 * gap)
        if ((side - 8.7) / 2.0) ** 2 + (
            (h - front - min(2.6, 0.5 * gap)) / rh
        ) ** 2 < 1:
            return NERVE, LIGAMENT, 0.3 * recess
    if h < front + 0.7 or h > back - 0.6:
        return LIGAMENT, FAT, 0.2
    if side > 5:
        return FAT, LIGAMENT, min(0.15 + 0.9 * recess * _hill((side - 9) / 8.0), 0.95)
    return (
        FAT,
        LIGAMENT,
        min(0.15 + 0.05 * fine + (0.7 * canal if h < middle else 0.3 * canal), 0.9),
    )


@numba.njit(nogil=True, error_model="numpy")
def _foramen(
    s: float, h: float, side: float, front: float, back: float, narrow: float, fine: float, coarse: float,
    row: Float32Array,
) -> Mix:  # fmt: skip
    """Return the tissue between the pedicles: the exiting root in fat, high in the foramen, or the pedicle itself."""
    wide = row[Column.CANAL_WIDTH]
    pedicle = row[Column.PEDICLE] - 0.05 * (h - 0.5 * (front + back) + 1) ** 2 + 1.0
    if row[Column.SACRUM] > 20:
        return MARROW, FAT, 0.15
    if pedicle > 0:
        edge = min(pedicle, side - wide, wide + 9 - side)
        if edge > 0:
            return (CORTEX, MARROW, 0.1) if edge < 0.9 else (MARROW, FAT, 0.1)
        if side > wide + 9:
            return FAT, MUSCLE, 0.3
    gap = max(back - front, 0.2)
    rh = min(2.7, 0.40 * gap)
    drop = 0.25 * (side - wide)
    ds = (s - row[Column.ROOT_S] - drop) / (3.1 - 0.8 * narrow)
    dh = (h - front - 0.5 * gap) / rh
    if ds * ds + dh * dh < 1:
        return NERVE, LIGAMENT, 0.25 * narrow
    if fine > 1.5:
        return VESSEL, FAT, 0.5
    share = 0.06 + 0.9 * narrow * _hill((side - 17) / 15.0) + 0.10 * abs(fine)
    return FAT, LIGAMENT, min(share, 0.95)


@numba.njit(nogil=True, error_model="numpy")
def _posterior(
    s: float, h: float, side: float, back: float, roof: float, facet: float, fine: float, coarse: float,
    streak: float, row: Float32Array, along: Float32Array, start_mm: float, muscle_fat: float,
) -> Mix:  # fmt: skip
    """Return the tissue behind the canal: flavum, laminae, facets, spinous processes and the tissue between them."""
    wide = row[Column.CANAL_WIDTH]
    depth = h - back
    sacral = row[Column.SACRUM] > 0
    if side < wide + 2 and h < roof + 7.5:
        tilted = along[_row(along, s - 0.5 * max(h - roof, 0.0), start_mm)][
            Column.LAMINA
        ]
        if tilted > 0 and h > roof - 0.2:
            edge = min(tilted, h - roof, roof + 6.5 - h)
            return (CORTEX, MARROW, 0.25) if edge < 1.0 else (MARROW, FAT, 0.15)
        if h < roof + 3.4:
            return LIGAMENT, ANNULUS, 0.4
    joint = row[Column.FACET]
    if side > wide - 4 and side < wide + 15 and h < facet + 16 and depth > 0:
        girth = ((side - wide - 4.5) / 9.5) ** 2 + ((h - facet - 5.0) / 9.5) ** 2
        if joint > 0 and girth < 1:
            line = h - facet - 4.0 - 0.75 * (side - wide)
            if abs(line) < 0.7 and joint > 4:
                return CSF, LIGAMENT, 0.5
            end = max(1 - joint / 13.0, 0.0)
            edge = min((1 - girth - end**3) * 5.0, depth)
            if edge > 0:
                return (
                    (CORTEX, MARROW, 0.35)
                    if abs(line) < 1.8 or edge < 1.0
                    else (MARROW, FAT, 0.15)
                )
        pars = facet + 9.5 - 0.06 * (row[Column.PEDICLE] - 4.0) ** 2 - h
        if row[Column.PEDICLE] > -6 and pars > 0:
            return (
                (CORTEX, MARROW, 0.35) if min(depth, pars) < 1.0 else (MARROW, FAT, 0.1)
            )
    if side < 4.2:
        behind = h - roof - 5.0
        length = row[Column.SPINOUS_LENGTH]
        if behind > -1 and behind < length:
            spine = along[_row(along, s - 0.35 * behind, start_mm)][Column.SPINOUS]
            round_off = 0.02 * (behind - 0.45 * length) ** 2
            edge = min(
                min(spine - round_off, 3.4 + 0.05 * behind - side), length - behind
            )
            if edge > 0:
                return (CORTEX, MARROW, 0.4) if edge < 0.8 else (MARROW, FAT, 0.15)
            return LIGAMENT, FAT, min(max(0.55 + 0.25 * streak, 0.0), 1.0)
        if behind >= length and behind < length + 2.5:
            return LIGAMENT, LIGAMENT, 0.0
    if sacral and h < roof + 9:
        return MARROW, FAT, 0.2
    share = muscle_fat + (0.04 + 0.36 * muscle_fat) * (
        0.8 * streak + 0.3 * fine + 0.5 * coarse
    )
    share += 0.55 * _hill(side / 10.0) + 0.45 * _hill((h - facet - 13.0) / 9.0) * max(
        0.5 + coarse, 0.0
    )
    return MUSCLE, FAT, min(max(share, 0.03), 1.0)


@numba.njit(nogil=True, error_model="numpy")
def _lateral(
    s: float,
    h: float,
    side: float,
    fine: float,
    coarse: float,
    streak: float,
    row: Float32Array,
    muscle_fat: float,
) -> Mix:
    """Return the tissue beside the spine: psoas, transverse processes, sacral wings, back muscles, fat."""
    a, b = row[Column.A], row[Column.B]
    wing = row[Column.SACRUM]
    if wing > b and side < wing and h < a + 16 - 0.15 * side:
        edge = min(wing - side, a + 16 - 0.15 * side - h)
        return (CORTEX, MARROW, 0.1) if edge < 1.2 else (MARROW, FAT, 0.12)
    r = row[Column.PSOAS]
    d = np.sqrt((side - b - 0.72 * r) ** 2 + (0.85 * (h - 3)) ** 2)
    if d < r:
        return MUSCLE, FAT, min(max(0.4 * muscle_fat + 0.08 * streak, 0.02), 1.0)
    if (
        row[Column.PEDICLE] > 1.5
        and side < b + 14
        and abs(h - a - 6 - 0.15 * (side - b)) < 4.5
    ):
        return (
            (CORTEX, MARROW, 0.2)
            if abs(h - a - 6 - 0.15 * (side - b)) > 3.2
            else (MARROW, FAT, 0.1)
        )
    seam = h - a - 9 + 0.10 * (side - b) - 2.0 * coarse
    if abs(seam) < 1.0:
        return FAT, MUSCLE, 0.3
    share = muscle_fat + (0.04 + 0.36 * muscle_fat) * (
        0.8 * streak + 0.3 * fine + 0.5 * coarse
    )
    if seam > 0:
        return MUSCLE, FAT, min(max(share, 0.03), 1.0)
    if (
        row[Column.SACRUM] == 0
        and r < 15
        and (side - 60 - 4 * coarse) ** 2 / 600 + (h + 6) ** 2 / 750 < 1
    ):
        return BOWEL, MUSCLE, 0.4
    lumborum = (side - b - 1.5 * r - 14) ** 2 / 330 + (
        h - a + 6 - 2 * coarse
    ) ** 2 / 110
    if lumborum < 1 and d > r + 1.2:
        return MUSCLE, FAT, min(max(share, 0.03), 1.0)
    return FAT, MUSCLE, min(max(0.10 + 0.10 * coarse, 0.0), 0.6)
