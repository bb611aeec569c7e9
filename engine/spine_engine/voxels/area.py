"""Resizes slices by area mean in their stored type, to the bit as OpenCV's ``resize`` does with ``INTER_AREA``.

OpenCV computes in float32 in a fixed order, and so do the kernels here: three ways, by the ratio of the sides.
"""

from __future__ import annotations

import math
import sys
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
Stored = NDArray[np.uint16] | NDArray[np.int16]

_SLIVER = 1e-3
"""Share of a pixel below which OpenCV leaves it out of a mean."""

_kernel = njit(nogil=True, cache=True)


def area_resize(pixels: Stored, shape: tuple[int, int]) -> Stored:
    """Return a slice ``(R, C)`` resized to ``shape`` by area mean, in its own type; itself where it has that shape.

    Where both sides shrink by whole factors a pixel is the mean of a block, rounded half up for blocks of 2 x 2 and
    half to even for others; where both shrink, the mean of the area it covers; where either grows, OpenCV's
    interpolation between neighbours for this mode.
    """
    if pixels.shape == shape:
        return pixels
    out: Stored = np.empty_like(pixels, shape=shape)
    down, right = (
        1.0 / (wanted / size) for wanted, size in zip(shape, pixels.shape, strict=True)
    )
    low, high = np.iinfo(pixels.dtype).min, np.iinfo(pixels.dtype).max
    if down < 1 or right < 1:
        row, row_share = _neighbours(pixels.shape[0], shape[0])
        column, column_share = _neighbours(pixels.shape[1], shape[1])
        _between(pixels, row, row_share, column, column_share, out, (low, high))
    elif _is_whole(down) and _is_whole(right):
        if round(down) == 2 and round(right) == 2:
            _halves(pixels, out)
        else:
            _blocks(pixels, round(down), round(right), out, (low, high))
    else:
        columns, weights, _ = _covered(pixels.shape[1], shape[1])
        _areas(
            pixels,
            *_covered(pixels.shape[0], shape[0]),
            columns,
            weights,
            out,
            (low, high),
        )
    return out


def _is_whole(scale: float) -> bool:
    return abs(scale - round(scale)) < sys.float_info.epsilon


@lru_cache(maxsize=64)
def _covered(size: int, wanted: int) -> tuple[I32, F32, I32]:
    """Return for each pixel of a shorter line its terms in the longer one: places and weights ``(terms, wanted)``, and
    how many each has ``(wanted,)``; the others weigh nothing."""
    scale = 1.0 / (wanted / size)
    terms: list[list[tuple[int, float]]] = []
    for n in range(wanted):
        begin = n * scale
        end = begin + scale
        width = min(scale, size - begin)
        last = min(math.floor(end), size - 1)
        first = min(math.ceil(begin), last)
        own: list[tuple[int, float]] = []
        if first - begin > _SLIVER:
            own.append((first - 1, (first - begin) / width))
        own += [(place, 1.0 / width) for place in range(first, last)]
        if end - last > _SLIVER:
            own.append((last, min(min(end - last, 1.0), width) / width))
        terms.append(own)
    counts = np.array([len(own) for own in terms], np.int32)
    places = np.zeros((counts.max(), wanted), np.int32)
    weights = np.zeros((counts.max(), wanted), np.float32)
    for n, own in enumerate(terms):
        for k, (place, weight) in enumerate(own):
            places[k, n], weights[k, n] = place, weight
    return places, weights, counts


@lru_cache(maxsize=64)
def _neighbours(size: int, wanted: int) -> tuple[I32, F32]:
    """Return for each pixel of a line of ``wanted`` its lower neighbour in one of ``size``, and the upper's weight."""
    inverse = wanted / size
    scale = 1.0 / inverse
    places = np.empty(wanted, np.int32)
    shares = np.empty(wanted, np.float32)
    for n in range(wanted):
        place = math.floor(n * scale)
        share = np.float32((n + 1) - (place + 1) * inverse)
        share = np.float32(0.0) if share <= 0 else share - np.float32(math.floor(share))
        if place >= size - 1:
            place, share = size - 1, np.float32(0.0)
        places[n], shares[n] = place, share
    return places, shares


@_kernel
def _rounded(value: np.float32, bounds: tuple[int, int]) -> int:
    """Return a value rounded half to even, within bounds."""
    return min(max(int(np.rint(value)), bounds[0]), bounds[1])


@_kernel
def _halves(pixels: Stored, out: Stored) -> None:
    """Write the mean of each 2 x 2 block, rounded half up."""
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            upper = np.int32(pixels[2 * r, 2 * c]) + np.int32(pixels[2 * r, 2 * c + 1])
            lower = np.int32(pixels[2 * r + 1, 2 * c]) + np.int32(
                pixels[2 * r + 1, 2 * c + 1]
            )
            out[r, c] = (upper + lower + 2) >> 2


@_kernel
def _blocks(
    pixels: Stored, down: int, right: int, out: Stored, bounds: tuple[int, int]
) -> None:
    """Write the mean of each block of ``down`` x ``right``, four terms added at a time, as OpenCV does."""
    share = np.float32(1.0) / np.float32(down * right)
    count = down * right
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            total = np.float32(0.0)
            four = np.int64(0)
            for k in range(count):
                four += np.int64(pixels[r * down + k // right, c * right + k % right])
                if k % 4 == 3 or k >= count - count % 4:
                    total += np.float32(four)
                    four = np.int64(0)
            out[r, c] = _rounded(total * share, bounds)


@_kernel
def _areas(
    pixels: Stored, rows: I32, row_weights: F32, row_counts: I32, columns: I32, weights: F32, out: Stored,
    bounds: tuple[int, int],
) -> None:  # fmt: skip
    """Write the weighted mean of each pixel's terms: along columns first, then down. Terms that weigh nothing change no
    bit of a sum."""
    width, most = out.shape[1], weights.shape[0]
    source = np.empty(pixels.shape[1], np.float32)
    line, total = np.empty(width, np.float32), np.empty(width, np.float32)
    for r in range(out.shape[0]):
        for j in range(row_counts[r]):
            row = pixels[rows[j, r]]
            for c in range(len(source)):
                source[c] = np.float32(row[c])
            for c in range(width):
                line[c] = source[np.uint32(columns[0, c])] * weights[0, c]
            for k in range(1, most):
                for c in range(width):
                    line[c] += source[np.uint32(columns[k, c])] * weights[k, c]
            share = row_weights[j, r]
            if j == 0:
                for c in range(width):
                    total[c] = share * line[c]
            else:
                for c in range(width):
                    total[c] += share * line[c]
        for c in range(width):
            out[r, c] = _rounded(total[c], bounds)


@_kernel
def _between(
    pixels: Stored,
    rows: I32,
    row_shares: F32,
    columns: I32,
    shares: F32,
    out: Stored,
    bounds: tuple[int, int],
) -> None:
    """Write each pixel between its neighbours: along columns first, then down."""
    one = np.float32(1.0)
    for r in range(out.shape[0]):
        upper, under = pixels[rows[r]], pixels[min(rows[r] + 1, pixels.shape[0] - 1)]
        b = row_shares[r]
        a = one - b
        for c in range(out.shape[1]):
            left = columns[c]
            right = min(left + 1, pixels.shape[1] - 1)
            q = shares[c]
            p = one - q
            above = np.float32(upper[left]) * p + np.float32(upper[right]) * q
            below = np.float32(under[left]) * p + np.float32(under[right]) * q
            out[r, c] = _rounded(above * a + below * b, bounds)
