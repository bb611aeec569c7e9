"""Plain NumPy references of the kernels: slow, short, in float64. For tests only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def resample_slice(
    shape: tuple[int, int],
    pixels: NDArray[np.uint16] | NDArray[np.int16] | NDArray[np.bool_],
    start: F64,
    row_step: F64,
    column_step: F64,
    sub: F64,
) -> F32:
    """Reference of `kernels.resample_slice`."""
    size = np.array(pixels.shape)
    r, c = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    base = start + r[..., None] * row_step + c[..., None] * column_step
    inside = np.all((base >= -0.5) & (base <= size - 0.5), axis=-1)
    total = np.zeros(shape)
    for offset in sub:
        yx = np.clip(base + offset, 0.0, size - 1.0)
        ij = np.minimum(yx.astype(int), np.maximum(size - 2, 0))
        t = yx - ij
        i, j = np.moveaxis(ij, -1, 0)
        i1, j1 = np.moveaxis(np.minimum(ij + 1, size - 1), -1, 0)
        upper = (1 - t[..., 1]) * pixels[i, j] + t[..., 1] * pixels[i, j1]
        lower = (1 - t[..., 1]) * pixels[i1, j] + t[..., 1] * pixels[i1, j1]
        total += (1 - t[..., 0]) * upper + t[..., 0] * lower
    return np.where(inside, total / len(sub), 0.0).astype(np.float32)


def draw_slice(
    shape: tuple[int, int],
    pixels: NDArray[np.uint16] | NDArray[np.int16],
    place: tuple[F64, F64],
    counts: tuple[int, int],
    tone: tuple[float, float],
    limits: tuple[float, float],
) -> F64:
    """Reference of `kernels.draw_slices`, for one slice.

    With `place = (start, steps)` canvas pixel (r, c) is the mean of `counts` bilinear samples, a pixel apart, about
    `start + r * steps[0] + c * steps[1]`. The gain and offset of `tone` and the clip and gamma of `limits` follow.
    Pixels more than half a pixel off the slice are 0.
    """
    start, steps = place
    clip, gamma = limits
    offsets = (np.arange(n) - (n - 1) / 2 for n in counts)
    sub = np.stack(np.meshgrid(*offsets, indexing="ij"), -1).reshape(-1, 2)
    values = resample_slice(shape, pixels, start, steps[0], steps[1], sub)
    covered = resample_slice(
        shape,
        np.ones(pixels.shape, np.bool_),
        start,
        steps[0],
        steps[1],
        np.zeros((1, 2)),
    )
    return np.asarray(
        np.clip(tone[0] * values + tone[1], 0.0, clip) ** gamma * (covered > 0)
    )


def find_peaks(maps: F32, floor: float) -> F64:
    """Reference of `kernels.find_peaks`, slice by slice and peak by peak."""
    padded = np.pad(maps.astype(np.float64), ((0, 0), (0, 0), (2, 2), (2, 2)))
    peaks = []
    for n, channel, y, x in np.argwhere(maps[:, :2] > floor):
        window = padded[n, :, y : y + 5, x : x + 5]
        heat = window[channel].ravel()
        if not ((heat[12] > heat[:12]).all() and (heat[12] >= heat[13:]).all()):
            continue
        weight = heat**2 / (heat**2).sum()
        dy, dx = (o.ravel() - 2 for o in np.mgrid[:5, :5])
        logits = window[4:].reshape(-1, 25)
        log_level = (
            logits
            - np.log(np.exp(logits - logits.max(axis=0)).sum(axis=0))
            - logits.max(axis=0)
        )
        votes = (
            np.concatenate([window[2:4].reshape(2, 25), log_level])
            @ weight
            * (channel == 0)
        )
        peaks.append((n, channel, y + weight @ dy, x + weight @ dx, heat[12], *votes))
    return np.array(peaks).reshape(-1, 3 + maps.shape[1])


def join_peaks(
    places: F64, heights: F64, order: NDArray[np.int64], reach_mm: float
) -> NDArray[np.int64]:
    """Reference of `kernels.join_peaks`."""
    members: list[list[int]] = []
    for p in order.tolist():
        centers = [
            np.average(places[group], axis=0, weights=heights[group])
            for group in members
        ]
        gaps = [float(np.linalg.norm(center - places[p])) for center in centers]
        if gaps and min(gaps) < reach_mm:
            members[gaps.index(min(gaps))].append(p)
        else:
            members.append([p])
    number = np.empty(len(order), np.int64)
    for k, group in enumerate(members):
        number[group] = k
    return number


def weigh_column(
    emit: F64, step: F64, between: F64, start: F64, end: F64
) -> tuple[F64, F64, F64]:
    """Reference of `kernels.weigh_column`; returns `forward`, `backward` and `best`."""
    n, ranks = emit.shape
    rise = np.arange(ranks)[None, :] - np.arange(ranks)[:, None]
    allowed = (rise > 0) & (rise < step.shape[2])
    way = np.where(
        allowed,
        step[:, :, np.where(allowed, rise, 0)] + between[:, :, None, None],
        -np.inf,
    )
    way = way + emit[None, :, None, :]  # (from, to, rank from, rank to)
    forward = start + emit
    backward = end.copy()
    best = start + emit
    for j in range(1, n):
        reached = (forward[:j, :, None] + way[:j, j]).reshape(-1, ranks)
        forward[j] = np.logaddexp(forward[j], np.logaddexp.reduce(reached, axis=0))
        best[j] = np.maximum(
            best[j], (best[:j, :, None] + way[:j, j]).reshape(-1, ranks).max(axis=0)
        )
    for i in range(n - 2, -1, -1):
        going = (
            (way[i, i + 1 :] + backward[i + 1 :, None, :])
            .transpose(1, 0, 2)
            .reshape(ranks, -1)
        )
        backward[i] = np.logaddexp(backward[i], np.logaddexp.reduce(going, axis=1))
    return forward, backward, best
