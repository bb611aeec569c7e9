"""Joins the vertebrae of patches, slices and stacks: polygons that overlap are the same vertebra.

Polygons `(V, 4, 2)` are mm in the slice plane (anterior -> posterior, superior -> inferior), corners in the order
right-top, right-bottom, left-bottom, left-top of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spine_engine.detection.spinenet.decode import Polygons
from spine_engine.detection.spinenet.view import View

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

JOIN_IOU = 0.2
"""Overlap above which the polygons of two slices are one vertebra (arXiv 2205.01683)."""

MERGE_IOU = 0.05
"""Overlap above which two vertebrae of a stack are one (arXiv 2205.01683)."""

MIN_SLICES = 2
"""Number of slices that must show a vertebra (arXiv 2205.01683)."""

RIGHT_TOP, RIGHT_BOTTOM, LEFT_BOTTOM, LEFT_TOP = range(4)


@dataclass(frozen=True, eq=False)
class Body:
    """One vertebra of a stack.

    Attributes:
        corners_mm: `(4, 3)` LPS, the mean of its polygons: posterior-top, posterior-bottom, anterior-bottom,
            anterior-top.
        first, last: the first and the last slice of the view that show it, from the patient's right.
    """

    corners_mm: F64
    first: int
    last: int

    @property
    def center_mm(self) -> F64:
        """The middle of the corners `(3,)`, LPS mm."""
        return np.asarray(self.corners_mm.mean(axis=0))

    @property
    def height_mm(self) -> float:
        """The mean length of the anterior and posterior edge."""
        edges = (
            self.corners_mm[[RIGHT_BOTTOM, LEFT_BOTTOM]]
            - self.corners_mm[[RIGHT_TOP, LEFT_TOP]]
        )
        return float(np.linalg.norm(edges, axis=1).mean())

    @property
    def depth_mm(self) -> float:
        """The mean length of the upper and lower edge."""
        edges = (
            self.corners_mm[[RIGHT_TOP, RIGHT_BOTTOM]]
            - self.corners_mm[[LEFT_TOP, LEFT_BOTTOM]]
        )
        return float(np.linalg.norm(edges, axis=1).mean())


def without_doubles(polygons: Polygons) -> Polygons:
    """Drop the polygons of a slice that another patch shows better: with more corners seen, then with more heat.

    Averaging the maps where patches overlap would lose a vertebra that one of them cuts: its heat would sink below the
    threshold. It would also cost 13 more resampled maps a slice.
    """
    from spine_engine.detection.spinenet.kernels import overlaps

    if not len(polygons.corners):
        return polygons
    middle = polygons.corners.mean(axis=1)
    order = np.lexsort((middle[:, 0], middle[:, 1], -polygons.heat, -polygons.seen))
    shared = overlaps(polygons.corners, polygons.corners) > JOIN_IOU
    unique: list[int] = []
    for index in order.tolist():
        if not shared[index, unique].any():
            unique.append(index)
    return Polygons(
        polygons.corners[unique], polygons.seen[unique], polygons.heat[unique]
    )


def groups_from_polygons(polygons: F64, slices: I64) -> list[I64]:
    """Join the polygons `(V, 4, 2)` of the slices `(V,)` into vertebrae; return the indices of each one's polygons.

    Slice by slice, every polygon goes to the vertebra whose latest polygon it overlaps most. Vertebrae seen in one
    slice are dropped; remaining ones that overlap are merged.
    """
    from spine_engine.detection.spinenet.kernels import overlaps

    groups: list[list[int]] = []
    for number in np.unique(slices):
        own = np.flatnonzero(slices == number)
        shared = overlaps(polygons[[group[-1] for group in groups]], polygons[own])
        free = set(range(len(own)))
        taken: set[int] = set()
        for flat in np.argsort(-shared, axis=None, kind="stable").tolist():
            group, polygon = divmod(flat, len(own))
            if shared[group, polygon] <= JOIN_IOU:
                break
            if group not in taken and polygon in free:
                taken.add(group)
                free.remove(polygon)
                groups[group].append(int(own[polygon]))
        groups.extend([int(own[polygon])] for polygon in sorted(free))
    vertebrae = [np.array(group) for group in groups if len(group) >= MIN_SLICES]
    return _merged(vertebrae, polygons)


def _merged(groups: list[I64], polygons: F64) -> list[I64]:
    """Merge the two vertebrae whose mean polygons overlap most, until none do."""
    from spine_engine.detection.spinenet.kernels import overlaps

    while len(groups) > 1:
        means = np.array([polygons[group].mean(axis=0) for group in groups])
        shared = np.triu(overlaps(means, means), 1)
        first, second = divmod(int(shared.argmax()), len(groups))
        if shared[first, second] <= MERGE_IOU:
            break
        groups[first] = np.sort(np.concatenate([groups[first], groups.pop(second)]))
    return groups


def bodies_from_slices(view: View, seen: list[Polygons]) -> list[Body]:
    """Return the vertebrae of a view, from above, given the polygons of each slice (points of the picture)."""
    slices = np.repeat(
        np.arange(len(seen)), [len(polygons.corners) for polygons in seen]
    )
    if not len(slices):
        return []
    placed = np.concatenate(
        [view.placed(number, polygons.corners) for number, polygons in enumerate(seen)]
    )
    groups = groups_from_polygons(view.in_plane(placed), slices)
    bodies = [
        Body(placed[g].mean(axis=0), int(slices[g].min()), int(slices[g].max()))
        for g in groups
    ]
    return sorted(bodies, key=lambda body: view.in_plane(body.center_mm)[::-1].tolist())
