"""The numba kernels of detection. Each has a plain NumPy reference in ``reference`` and a test that they agree.

The kernels use one thread and release the interpreter's lock. All of them live in one file, and each is called with one
set of types: numba keeps one compiled copy for each set, and loading it is part of a worker's start.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from spine_engine.detection.spec import BODY, DIRECTION, DISC, FIRST_LEVEL

# Compiled in from other files: 10075a5b60af

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

REACH = 2
"""Pixels to each side that a peak is averaged over: 5x5 pixels of 4 mm, about twice the width of a disc's heat."""

PEAK_COLUMNS = 7
"""Number of columns before a peak's level bins: slice, channel, row, column, height, direction (row, column)."""


@njit(nogil=True, cache=True)
def resample_slice(
    out: F32,
    pixels: NDArray[np.uint16],
    start: F64,
    row_step: F64,
    column_step: F64,
    sub: F64,
) -> None:
    """Fill `out (H, W)` with bilinear samples of one slice, 0 outside it.

    Canvas pixel (r, c) is the mean over the sub-pixel offsets `sub (K, 2)` of the source at
    `start + r * row_step + c * column_step + sub[k]`, all in source pixels (row, column).
    """
    rows, columns = pixels.shape
    count = sub.shape[0]
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            y0 = start[0] + r * row_step[0] + c * column_step[0]
            x0 = start[1] + r * row_step[1] + c * column_step[1]
            if y0 < -0.5 or x0 < -0.5 or y0 > rows - 0.5 or x0 > columns - 0.5:
                out[r, c] = 0.0
                continue
            total = 0.0
            for k in range(count):
                y = min(max(y0 + sub[k, 0], 0.0), rows - 1.0)
                x = min(max(x0 + sub[k, 1], 0.0), columns - 1.0)
                i, j = min(int(y), max(rows - 2, 0)), min(int(x), max(columns - 2, 0))
                ty, tx = y - i, x - j
                i1, j1 = min(i + 1, rows - 1), min(j + 1, columns - 1)
                upper = (1.0 - tx) * pixels[i, j] + tx * pixels[i, j1]
                lower = (1.0 - tx) * pixels[i1, j] + tx * pixels[i1, j1]
                total += (1.0 - ty) * upper + ty * lower
            out[r, c] = total / count


@njit(nogil=True, cache=True)
def _add_row(
    line: F32,
    source: NDArray[np.uint16],
    flip: np.uint16,
    weight: np.float32,
    more: bool,
) -> None:
    """Write `weight` times a row of stored values into `line`; add it to what `line` holds if `more` is set."""
    low = np.float32(flip)
    if more:
        for c in range(len(line)):
            line[c] += weight * (
                np.float32(np.int32(np.uint16(source[c] ^ flip))) - low
            )
    else:
        for c in range(len(line)):
            line[c] = weight * (np.float32(np.int32(np.uint16(source[c] ^ flip))) - low)


@njit(nogil=True, cache=True)
def _add_taps(
    row: F32, line: F32, at: NDArray[np.uint32], weights: F32, loaded: F32, more: bool
) -> None:
    """Write `weights` times `line[at]` into `row`; add it to what `row` holds if `more` is set.

    The values are loaded first, because LLVM does not vectorise loops with such loads in them.
    """
    for b in range(len(loaded)):
        loaded[b] = line[at[b]]
    if more:
        for b in range(len(row)):
            row[b] += weights[b] * loaded[b]
    else:
        for b in range(len(row)):
            row[b] = weights[b] * loaded[b]


@njit(nogil=True, cache=True)
def _normalize(
    row: F32, gain: np.float32, offset: np.float32, clip: np.float32, gamma: np.float32
) -> None:
    """Apply `clip(gain * v + offset, 0, clip) ** gamma` in place; gamma 0.5 is a square root, twice as fast."""
    zero = np.float32(0.0)
    for b in range(len(row)):
        row[b] = min(max(gain * row[b] + offset, zero), clip)
    if gamma == np.float32(0.5):
        for b in range(len(row)):
            row[b] = np.sqrt(row[b])
    else:
        for b in range(len(row)):
            row[b] = row[b] ** gamma


@njit(nogil=True, cache=True)
def draw_slices(
    out: F32,
    pixels: NDArray[np.uint16],
    flip: np.uint16,
    chosen: I64,
    first: tuple[I64, I64],
    weights: tuple[F32, F32],
    covered: tuple[tuple[int, int], tuple[int, int]],
    tone: F32,
    bend: tuple[np.float32, np.float32],
) -> None:
    """Draw normalised slices on a grid along their rows and columns, where the grid lies on the picture.

    A slice becomes `R @ pixels @ C.T`, with few weights other than 0 in a row of `R` and `C`, then
    `clip(gain * v + offset, 0, clip) ** gamma`.

    Args:
        out: `(N, A, B)`, a drawing of each `chosen` slice, along the rows and columns of the pixels.
        pixels: `(S, H, W)` stored values, their bits read as unsigned.
        flip: the sign bit for int16, else 0.
        chosen: `(N,)` slices to draw.
        first: `(A,)` and `(B,)`, the first pixel of each grid row and column that has a weight.
        weights: `(T, A)` and `(T', B)`, the weights of that pixel and of those after it.
        covered: grid rows and columns `from, to` that lie on the picture.
        tone: `(N, 2)` gain and offset.
        bend: clip and gamma.
    """
    (top, bottom), (left, right) = covered
    line, loaded = (
        np.empty(pixels.shape[2], np.float32),
        np.empty(right - left, np.float32),
    )
    at = first[1][left:right].astype(np.uint32)
    for n in range(len(chosen)):
        for a in range(top, bottom):
            for t in range(len(weights[0])):
                _add_row(
                    line,
                    pixels[chosen[n], first[0][a] + t],
                    flip,
                    weights[0][t, a],
                    t > 0,
                )
            row = out[n, a, left:right]
            for t in range(len(weights[1])):
                _add_taps(row, line[t:], at, weights[1][t, left:right], loaded, t > 0)
            _normalize(row, tone[n, 0], tone[n, 1], bend[0], bend[1])


@njit(nogil=True, cache=True)
def _is_peak(heat: F32, y: int, x: int) -> bool:
    """Tell whether no pixel of the 5x5 neighbourhood exceeds this one; the first of equals is the peak."""
    own = heat[y, x]
    for i in range(max(y - REACH, 0), min(y + REACH + 1, heat.shape[0])):
        for j in range(max(x - REACH, 0), min(x + REACH + 1, heat.shape[1])):
            if i < y or (i == y and j < x):
                if not own > heat[i, j]:
                    return False
            elif not own >= heat[i, j]:
                return False
    return True


@njit(nogil=True, cache=True)
def _read_peak(out: F64, maps: F32, heat: int, y: int, x: int) -> None:
    """Write the place, height and votes of the peak at `(y, x)` into its row `out`, averaged by squared heat."""
    bins = out[PEAK_COLUMNS:]
    out[:] = 0.0
    total = scale = 0.0
    for i in range(max(y - REACH, 0), min(y + REACH + 1, maps.shape[1])):
        for j in range(max(x - REACH, 0), min(x + REACH + 1, maps.shape[2])):
            weight = np.float64(maps[heat, i, j]) ** 2
            total += weight
            out[2] += weight * (i - y)
            out[3] += weight * (j - x)
            if heat != DISC:
                continue
            out[5] += weight * maps[DIRECTION, i, j]
            out[6] += weight * maps[DIRECTION + 1, i, j]
            highest, mass = maps[FIRST_LEVEL, i, j], 0.0
            for b in range(1, len(bins)):
                highest = max(highest, maps[FIRST_LEVEL + b, i, j])
            for b in range(len(bins)):
                logit = np.float64(maps[FIRST_LEVEL + b, i, j]) - highest
                mass += np.exp(logit)
                bins[b] += weight * logit
            scale += weight * np.log(mass)
    total = max(total, 1e-12)
    for b in range(len(bins)):
        bins[b] = (bins[b] - scale) / total
    out[2], out[3] = y + out[2] / total, x + out[3] / total
    out[4] = maps[heat, y, x]
    out[5], out[6] = out[5] / total, out[6] / total


@njit(nogil=True, cache=True)
def find_peaks(maps: F32, floor: float) -> F64:
    """Find the peaks of the heat channels of `maps (N, K, h, w)`: pixels above `floor` that no neighbour exceeds.

    Returns:
        `(P, 7 + bins)`: slice, channel, row and column (averaged over 5x5 pixels by squared heat), height; for discs
        also, averaged likewise, direction (row, column) and log probabilities of the level bins, else 0. Peaks are
        sorted by slice, channel and row.
    """
    count, channels, height, width = maps.shape
    apart = REACH + 1  # two peaks are at least so far apart
    room = 2 * (-(-height // apart)) * (-(-width // apart))
    table = np.empty((count * room, PEAK_COLUMNS + channels - FIRST_LEVEL))
    found = 0
    for n in range(count):
        for channel in (DISC, BODY):
            heat = maps[n, channel]
            for y in range(height):
                for x in range(width):
                    if heat[y, x] > floor and _is_peak(heat, y, x):
                        _read_peak(table[found], maps[n], channel, y, x)
                        table[found, 0], table[found, 1] = n, channel
                        found += 1
    return table[:found].copy()


@njit(nogil=True, cache=True)
def join_peaks(places: F64, heights: F64, order: I64, reach_mm: float) -> I64:
    """Join peaks `(P, 2)` in `order`: each goes to the nearest cluster within `reach_mm`, or begins a new one.

    A cluster lies at the mean of its peaks weighted by `heights (P,)`; the older of two clusters as near wins.

    Returns:
        The cluster `(P,)` of each peak.
    """
    number = np.empty(len(order), np.int64)
    sums = np.zeros((len(order), 3))
    count = 0
    for p in order:
        nearest, least = count, reach_mm
        for k in range(count):
            distance = np.hypot(
                sums[k, 0] / sums[k, 2] - places[p, 0],
                sums[k, 1] / sums[k, 2] - places[p, 1],
            )
            if distance < least:
                nearest, least = k, distance
        count = max(count, nearest + 1)
        number[p] = nearest
        sums[nearest, 0] += heights[p] * places[p, 0]
        sums[nearest, 1] += heights[p] * places[p, 1]
        sums[nearest, 2] += heights[p]
    return number


@njit(nogil=True, cache=True)
def _log_add(a: float, b: float) -> float:
    """Return `log(exp(a) + exp(b))`."""
    high = max(a, b)
    return high if high == -np.inf else high + np.log1p(np.exp(min(a, b) - high))


@njit(nogil=True, cache=True)
def weigh_column(
    forward: F64,
    backward: F64,
    best: F64,
    came: I64,
    emit: F64,
    step: F64,
    between: F64,
) -> None:
    """Sum the scores of every way to label a column of n candidates, in place; see `labelling.Column` for the scores.

    Args:
        forward: `(n, ranks)`, holds `start + emit`; becomes the log score of all ways up to a candidate at a rank.
        backward: `(n, ranks)`, holds `end`; becomes the log score of all ways after that candidate.
        best: `(n, ranks)`, holds `start + emit`; becomes the score of the best way up to that candidate.
        came: `(n, ranks, 2)`, holds -1; becomes the candidate before it on the best way, and its rank.
        emit, step, between: see `labelling.Column`.
    """
    n, ranks = emit.shape
    for j in range(1, n):
        for i in range(j):
            for k in range(1, step.shape[2]):
                way = between[i, j] + step[i, j, k]
                for r in range(k, ranks):
                    forward[j, r] = _log_add(
                        forward[j, r], forward[i, r - k] + way + emit[j, r]
                    )
                    score = best[i, r - k] + way + emit[j, r]
                    if score > best[j, r]:
                        best[j, r] = score
                        came[j, r, 0], came[j, r, 1] = i, r - k
    for i in range(n - 2, -1, -1):
        for j in range(i + 1, n):
            for k in range(1, step.shape[2]):
                way = between[i, j] + step[i, j, k]
                for r in range(k, ranks):
                    backward[i, r - k] = _log_add(
                        backward[i, r - k], backward[j, r] + way + emit[j, r]
                    )
