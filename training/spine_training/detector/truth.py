"""Disc and vertebra truth from segmentation masks.

Frame of this module: the *volume frame*, index-like millimetres with axes (row: superior -> inferior,
column: anterior -> posterior, lateral: patient right -> left). A point is `(row_mm, column_mm, lateral_mm)`.

Levels are numbered upwards from the sacrum: the *rank* of a disc is 0 for L5/S1, 1 for L4/L5, ... 5 for T12/L1; a
vertebral body has rank 0 for L5, 1 for L4, ... so that body `r` lies between disc `r` (below) and disc `r + 1` (above).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from spine_training.arrays import F64, U8

#: Mask value of each vertebral body (the data folder's README): 1..5 = L1..L5, 6 = S1, 7 = T12, 8 = T11, 9 = T10.
BODY_RANK_OF_LABEL = {
    5: 0,
    4: 1,
    3: 2,
    2: 3,
    1: 4,
    7: 5,
    8: 6,
    9: 7,
}
SACRUM_LABEL = 6
#: SPIDER slice masks.
SPIDER_DISC, SPIDER_CANAL = 29, 150
#: A real mask of one body has > 8,000 voxels (1 ml = 1000); anything below this is a fragment.
MIN_BODY_VOXELS = 3000
#: Half of the L5/S1 disc's height; VB1's six masked exams give 4-6 mm.
HALF_L5_S1_HEIGHT_MM = 5.0

#: L5/S1 runs 6 to 34 degrees steeper than L4/L5 in the 36 exams where both are masked. A fitted endplate that runs this
#: much less steep has failed: so do four of 33, by 9-23 degrees; held-out nets put those discs 7-11 mm away.
MOST_KYPHOTIC_DEG = 5.0


@dataclass(frozen=True, slots=True)
class Disc:
    """One intervertebral disc: centre and unit direction anterior -> posterior inside the sagittal plane (row, column).

    `known` is False where the level exists but no mask gives its place: losses are masked round it.
    `weak` marks an L5/S1 disc placed from the lower endplate of L5 alone.
    """

    rank: int
    center_mm: F64
    direction: F64
    known: bool = True
    weak: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """The truth of one exam: discs by rising rank, vertebral bodies `(rank, center_mm)`."""

    discs: tuple[Disc, ...]
    bodies: tuple[tuple[int, F64], ...]


def _axis_cells(
    points_mm: F64,
    axis: F64,
    origin_mm: F64,
    side: int,
) -> dict[tuple[int, int], float]:
    """Return the extreme projection on `axis` (side +1: largest, -1: smallest) of each 2 mm cell across the axis."""
    u, v = _frame_across(axis)
    d = points_mm - origin_mm
    height = d @ axis
    cells = np.floor(np.stack([d @ u, d @ v], 1) / 2.0).astype(int)
    best: dict[tuple[int, int], float] = {}
    for (a, b), h in zip(cells.tolist(), (side * height).tolist(), strict=True):
        if h > best.get((a, b), -1e9):
            best[(a, b)] = h
    return {k: side * h for k, h in best.items()}


def _frame_across(axis: F64) -> tuple[F64, F64]:
    """Return two unit vectors across `axis`: one in the sagittal plane (anterior -> posterior), one lateral."""
    u = np.array([0.0, 1.0, 0.0])
    u -= (u @ axis) * axis
    u /= np.linalg.norm(u)
    return u, np.cross(axis, u)


def _fit_surface(
    cells: dict[tuple[int, int], float], axis: F64, origin_mm: F64
) -> tuple[F64, F64]:
    """Return centre and sagittal direction of a height map over cells: a plane fit without outliers beyond 3 mm."""
    u, v = _frame_across(axis)
    uv = (np.array(list(cells.keys()), float) + 0.5) * 2.0
    h = np.array(list(cells.values()))
    keep = np.ones(len(h), bool)
    coef = np.zeros(3)
    for _ in range(3):
        design = np.stack(
            [
                uv[keep, 0],
                uv[keep, 1],
                np.ones(keep.sum()),
            ],
            1,
        )
        coef = np.linalg.lstsq(design, h[keep], rcond=None)[0]
        keep = np.abs(uv @ coef[:2] + coef[2] - h) < 3.0
    mid = uv.mean(0)
    center = origin_mm + u * mid[0] + v * mid[1] + axis * (mid @ coef[:2] + coef[2])
    direction = u + coef[0] * axis
    plane = direction[:2] / np.linalg.norm(direction[:2])
    return center, plane


def disc_between(upper_mm: F64, lower_mm: F64) -> tuple[F64, F64]:
    """Return centre and direction of the disc between two bodies, given as voxel points `(n, 3)` mm.

    The centre is the middle of the two facing endplates, averaged over the 2 mm cells where both exist.
    """
    origin = (upper_mm.mean(0) + lower_mm.mean(0)) / 2
    axis = lower_mm.mean(0) - upper_mm.mean(0)
    axis /= np.linalg.norm(axis)
    bottom = _axis_cells(upper_mm, axis, origin, 1)
    top = _axis_cells(lower_mm, axis, origin, -1)
    both = {k: (bottom[k] + top[k]) / 2 for k in bottom.keys() & top.keys()}
    return _fit_surface(both, axis, origin)


def disc_below(
    body_mm: F64,
    disc_above_mm: F64,
    half_height_mm: float = HALF_L5_S1_HEIGHT_MM,
) -> tuple[F64, F64]:
    """Return the weak place of the disc under a body whose lower neighbour has no mask: its endplate, moved down."""
    origin = body_mm.mean(0)
    axis = origin - disc_above_mm
    axis /= np.linalg.norm(axis)
    for _ in range(3):  # the endplate's own normal replaces the body's axis
        center, direction = _fit_surface(
            _axis_cells(body_mm, axis, origin, 1),
            axis,
            origin,
        )
        tilted = np.array([direction[1], -direction[0], 0.0])
        axis = tilted * np.sign(tilted @ axis)
    return center + axis * half_height_mm, direction


def _lowest_disc(body_mm: F64, above: Disc) -> Disc:
    """Return L5/S1 from L5 alone: under its lower endplate, or of unknown place where that endplate's fit failed."""
    center, direction = disc_below(body_mm, above.center_mm)
    turn = np.arcsin(
        direction[0] * above.direction[1] - direction[1] * above.direction[0]
    )
    if np.rad2deg(turn) > MOST_KYPHOTIC_DEG:
        return Disc(
            0,
            2 * body_mm.mean(0) - above.center_mm,
            above.direction,
            known=False,
            weak=True,
        )
    return Disc(0, center, direction, weak=True)


def body_above(disc: Disc, below: Disc) -> F64:
    """Return the centre of the body above a column's topmost disc: half a step further from the disc `below`."""
    step = (disc.center_mm - below.center_mm) / (disc.rank - below.rank)
    return np.asarray(disc.center_mm + step / 2)


def column_from_bodies(labels: U8) -> Column:
    """Return the truth of one 1 mm volume of vertebral-body labels `(row, column, lateral)`."""
    points: dict[int, F64] = {}
    for label, rank in BODY_RANK_OF_LABEL.items():
        index = np.argwhere(labels == label)
        if len(index) >= MIN_BODY_VOXELS:
            points[rank] = index.astype(float)
    sacrum = np.argwhere(labels == SACRUM_LABEL).astype(float)
    discs: dict[int, Disc] = {}
    for rank in sorted(points):
        if rank - 1 in points:
            center, direction = disc_between(points[rank], points[rank - 1])
            discs[rank] = Disc(rank, center, direction)
    if 0 in points and len(sacrum) >= MIN_BODY_VOXELS:
        center, direction = disc_between(points[0], sacrum)
        discs[0] = Disc(0, center, direction)
    elif 0 in points and 1 in discs:
        discs[0] = _lowest_disc(points[0], discs[1])
    return Column(
        _with_gaps(discs),
        tuple((r, p.mean(0)) for r, p in sorted(points.items())),
    )


def _with_gaps(known: dict[int, Disc]) -> tuple[Disc, ...]:
    """Return discs by rank, an interpolated one with `known=False` for each rank missing between two others."""
    ranks = sorted(known)
    discs: list[Disc] = []
    for rank in range(ranks[0], ranks[-1] + 1):
        if rank in known:
            discs.append(known[rank])
            continue
        below = max(r for r in ranks if r < rank)
        above = min(r for r in ranks if r > rank)
        t = (rank - below) / (above - below)
        a, b = known[below], known[above]
        direction = (1 - t) * a.direction + t * b.direction
        center = (1 - t) * a.center_mm + t * b.center_mm
        discs.append(
            Disc(
                rank,
                center,
                direction / np.linalg.norm(direction),
                known=False,
            )
        )
    return tuple(discs)


def disc_middle(disc_mm: F64, direction: F64) -> tuple[F64, F64]:
    """Return centre and direction of a disc, given as voxel points `(n, 3)` mm and a rough `direction`.

    The middle of its two faces, averaged over the 2 mm cells between them, as `disc_between` has it. The centroid of
    all points lies further forward, because lumbar discs are thicker in front: by 0.8 mm at L1/L2, 2.4 mm at L5/S1.
    """
    origin = disc_mm.mean(0)
    axis = np.array([direction[1], -direction[0], 0.0])
    upper, lower = (
        _axis_cells(disc_mm, axis, origin, -1),
        _axis_cells(disc_mm, axis, origin, 1),
    )
    return _fit_surface(
        {k: (upper[k] + lower[k]) / 2 for k in upper},
        axis,
        origin,
    )


def column_from_spider(masks: U8, spacing_mm: tuple[float, float, float]) -> Column:
    """Return the truth of one SPIDER patient from semantic masks `(row, column, slice)`; the lowest disc is L5/S1.

    Disc components of all slices are joined by their in-plane overlap; a disc has to appear in three slices at least.
    """
    disc = masks == SPIDER_DISC
    canal = np.argwhere(masks == SPIDER_CANAL)
    lateral_mm = float(np.median(canal[:, 2])) * spacing_mm[2]
    votes = disc.sum(2)
    parts, count = ndimage.label(votes >= min(3, masks.shape[2]))
    places: list[tuple[F64, F64]] = []
    for part in range(1, count + 1):
        inside = parts == part
        if votes[inside].sum() < 100 or np.ptp(np.nonzero(inside)[1]) < 12:
            continue
        points = np.argwhere(disc & inside[..., None]) * np.array(spacing_mm)
        direction = np.linalg.eigh(np.cov(points[:, :2].T))[1][:, -1]
        center, direction = disc_middle(
            points,
            direction * np.sign(direction[1]),
        )
        places.append((np.array([center[0], center[1], lateral_mm]), direction))
    places.sort(key=lambda item: -item[0][0])
    discs = tuple(
        Disc(rank, center, direction) for rank, (center, direction) in enumerate(places)
    )
    bodies = [
        (r, (discs[r].center_mm + discs[r + 1].center_mm) / 2)
        for r in range(len(discs) - 1)
    ]
    if len(discs) > 1:
        bodies.append((len(discs) - 1, body_above(discs[-1], discs[-2])))
    return Column(discs, tuple(bodies))
