"""Decodes the maps of SpineNet's detector into the vertebrae of a patch: corners that agree on a centroid.

Maps `(N, 13, H, W)` (arXiv 2007.02606, 2205.01683): 0-3 heat of the corners right-top, right-bottom, left-bottom,
left-top in the picture, 4 heat of the centroid, 5-8 x and 9-12 y displacement from each corner to its centroid, in
patch pixels. Points are `(x, y)` patch pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

MAPS = 13
CORNERS = 4
CENTROID = 4
ARROW_X = 5
ARROW_Y = 9

THRESHOLD = 0.6
"""Heat above which a pixel belongs to a landmark (arXiv 2205.01683)."""

VOTE_PX = 10.0
"""Largest distance of a corner's vote from its centroid: 12 mm, a third of the distance between lumbar vertebrae, where
the neighbours' votes fall. The papers name no limit; without one no corner would ever count as missing."""

MAX_PEAKS = 64
"""Largest number of peaks of a map that count, the highest first: a patch shows at most 24 vertebrae, and noise would
cost hours."""


@dataclass(frozen=True, eq=False)
class Polygons:
    """The vertebrae of one picture: corners in the order right-top, right-bottom, left-bottom, left-top.

    Attributes:
        corners: `(V, 4, 2)` points (x, y).
        seen: `(V,)`, the number of corners seen: 4, or 3 and one restored.
        heat: `(V,)`, the mean heat of the corners seen.
    """

    corners: F64
    seen: NDArray[np.int64]
    heat: F64


def is_vertebra(corners: F64) -> NDArray[np.bool_]:
    """Tell which quadrilaterals `(V, 4, 2)` are convex and wind right-top, right-bottom, left-bottom, left-top."""
    edge = np.roll(corners, -1, axis=1) - corners
    after = np.roll(edge, -1, axis=1)
    turn = edge[..., 0] * after[..., 1] - edge[..., 1] * after[..., 0]
    return np.asarray((turn > 0).all(axis=1))


def polygons_from_maps(maps: F32) -> list[Polygons]:
    """Decode the maps `(N, 13, H, W)` of N patches: the vertebrae of each, by their centroids in raster order."""
    from spine_engine.detection.spinenet.kernels import (
        label_components,
    )  # numba: only a run should pay

    height, width = maps.shape[2:]
    labels = np.empty((height, width), np.int32)
    stack, tops = np.empty((2, height * width), np.int32)
    decoded = []
    for patch in maps:
        peaks = []
        for heat in patch[: CENTROID + 1]:
            count = label_components(heat, THRESHOLD, labels, stack, tops)
            peaks.append(_highest(heat.ravel(), tops[:count].astype(np.int64)))
        decoded.append(_grouped(patch.reshape(MAPS, -1), peaks, width))
    return decoded


def _highest(heat: F32, peaks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return at most `MAX_PEAKS` of the flat indices `peaks`, the highest ones in the order given."""
    if len(peaks) <= MAX_PEAKS:
        return peaks
    highest = np.argsort(-heat[peaks], kind="stable")[:MAX_PEAKS]
    return peaks[np.sort(highest)]


def _grouped(maps: F32, peaks: list[NDArray[np.int64]], width: int) -> Polygons:
    """Group corners into vertebrae: every centroid takes its nearest vote of each corner type.

    A vote counts for its nearest centroid only. A missing corner lies as far beyond the centroid as the opposite corner
    lies before it.

    Args:
        maps: `(13, H * W)`.
        peaks: flat indices of the peaks of the four corner maps and the centroid map.
        width: W.
    """
    centroids = _points(peaks[CENTROID], width)
    corners = np.full((len(centroids), CORNERS, 2), np.nan)
    arrows = np.full_like(corners, np.nan)
    heat = np.full(corners.shape[:2], np.nan)
    for kind in range(CORNERS):
        spots = _points(peaks[kind], width)
        arrow = maps[[ARROW_X + kind, ARROW_Y + kind]][:, peaks[kind]].T.astype(
            np.float64
        )
        chosen = _nearest_votes(spots + arrow, centroids)
        has_vote = chosen >= 0
        votes = chosen[has_vote]
        corners[has_vote, kind] = spots[votes]
        arrows[has_vote, kind] = arrow[votes]
        heat[has_vote, kind] = maps[kind, peaks[kind][votes]]
    seen = np.isfinite(heat).sum(axis=1)
    for kind in range(CORNERS):
        missing = np.isnan(heat[:, kind])
        corners[missing, kind] = (
            centroids[missing] + arrows[missing, (kind + 2) % CORNERS]
        )
    valid = seen >= CORNERS - 1
    valid[valid] = is_vertebra(corners[valid])
    return Polygons(
        corners[valid], seen[valid], np.nansum(heat[valid], axis=1) / seen[valid]
    )


def _points(flat: NDArray[np.int64], width: int) -> F64:
    return np.stack([flat % width, flat // width], axis=1).astype(np.float64)


def _nearest_votes(votes: F64, centroids: F64) -> NDArray[np.int64]:
    """Return the index of the nearest vote `(K, 2)` of each centroid `(C, 2)`, -1 if none lies within `VOTE_PX`.

    The first of equally near votes wins.
    """
    if not len(votes) or not len(centroids):
        return np.full(len(centroids), -1)
    squared = ((votes[:, None] - centroids) ** 2).sum(axis=-1)
    squared[~(squared <= VOTE_PX**2)] = np.inf
    numbers = np.arange(len(centroids))
    nearest_centroid = np.argmin(squared, axis=1)
    squared[numbers != nearest_centroid[:, None]] = np.inf
    nearest_vote = np.argmin(squared, axis=0)
    return np.where(np.isfinite(squared[nearest_vote, numbers]), nearest_vote, -1)
