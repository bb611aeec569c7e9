"""The oriented bounding box of a study's sagittal points, as Open3D's ``get_oriented_bounding_box`` chooses it.

Its axes are the principal axes of the corners of the points' convex hull. Only points that can be corners are looked
at: those of each slice's own outline, in its first and last copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

_FLAT = 1e-12
"""Share of the cloud's size by which a point must lie outside a face to be a corner: rounding of float64."""


@dataclass(frozen=True, eq=False)
class OrientedBox:
    """A box: its unit axes as rows ``(3, 3)``, its centre ``(3,)`` and half its edges ``(3,)``, LPS mm."""

    axes: F64
    center_mm: F64
    half_mm: F64


def oriented_box(points_mm: F64) -> OrientedBox | None:
    """Return the box of points ``(N, 3)`` along the principal axes of their convex hull's corners; None where they are
    flat."""
    corners = points_mm[hull_corners(points_mm)]
    if len(corners) < 4:
        return None
    _, axes = np.linalg.eigh(np.cov(corners.T, bias=True))
    local = corners @ axes
    low, high = local.min(axis=0), local.max(axis=0)
    return OrientedBox(axes.T, axes @ ((low + high) / 2), (high - low) / 2)


def hull_corners(points: F64) -> NDArray[np.intp]:
    """Return the numbers of the points ``(N, 3)`` that are corners of their convex hull; none where they are flat.

    Quickhull: the point farthest outside any face becomes a corner, and the faces that it sees make way for faces
    between it and their rim, until no point is outside.
    """
    size = float(np.ptp(points, axis=0).max()) if len(points) else 0.0
    faces = _first_faces(points, _FLAT * size)
    if not len(faces):
        return np.empty(0, np.intp)
    left = np.arange(len(points))
    while True:
        normals, offsets = _planes(points, faces)
        outside = points[left] @ normals.T - offsets
        reach = outside.max(axis=1)
        if reach.max(initial=0.0) <= _FLAT * size * 10:
            return np.unique(faces)
        farthest = int(reach.argmax())
        seen = outside[farthest] > _FLAT * size
        edges = {
            (int(a), int(b))
            for face in faces[seen]
            for a, b in zip(face, np.roll(face, -1), strict=True)
        }
        rim = [(a, b, int(left[farthest])) for a, b in edges if (b, a) not in edges]
        faces = np.concatenate([faces[~seen], np.array(rim)])
        left = left[reach > 0]


def _first_faces(points: F64, least: float) -> NDArray[Any]:
    """Return the four faces of a tetrahedron of far points, seen from outside counter-clockwise; none where flat."""
    if len(points) < 4:
        return np.empty((0, 3), np.intp)
    a = int(points[:, 0].argmin())
    b = int(np.linalg.norm(points - points[a], axis=1).argmax())
    along = points[b] - points[a]
    c = int(np.linalg.norm(np.cross(points - points[a], along), axis=1).argmax())
    normal = np.cross(along, points[c] - points[a])
    heights = (points - points[a]) @ normal
    d = int(np.abs(heights).argmax())
    length = float(np.linalg.norm(normal))
    if length <= 0 or abs(float(heights[d])) / length <= least:
        return np.empty((0, 3), np.intp)
    if heights[d] > 0:
        b, c = c, b
    return np.array([(a, b, c), (a, d, b), (b, d, c), (c, d, a)])


def _planes(points: F64, faces: NDArray[Any]) -> tuple[F64, F64]:
    """Return the outward unit normals of faces and how far their planes lie along them."""
    first, second, third = (points[faces[:, k]] for k in range(3))
    normals = np.cross(second - first, third - first)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    normals /= np.where(lengths > 0, lengths, 1.0)
    return normals, (normals * first).sum(axis=1)
