"""The two numba kernels. Each has its plain NumPy twin in ``reference`` and a test that they agree.

A row of voxels is float32 throughout (integer times float32 would become float64), and is worked through in short loops
over few arrays: LLVM does not vectorise gathers, and gives up on loops over many arrays that might overlap. NaN marks a
voxel that is not covered, so there is no fastmath here. One thread; the interpreter's lock is released.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

_NAN = np.float32(np.nan)
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_HALF = np.float32(0.5)


@njit(nogil=True, cache=True)
def _clip_span(start: float, step: float, low: float, high: float, first: int, last: int) -> tuple[int, int]:
    """Narrow ``first .. last`` to the i with ``low <= start + i * step <= high``; one too many at an end is allowed."""
    if abs(step) < 1e-12:
        return (first, last) if low <= start <= high else (0, 0)
    enter, leave = (low - start) / step, (high - start) / step
    if step < 0:
        enter, leave = leave, enter
    if leave < first or enter > last:
        return (0, 0)
    return max(first, int(max(enter, 0.0))), min(last, int(min(leave, float(last))) + 2)


@njit(nogil=True, cache=True)
def _locate_slices(
    z0: np.float32, dz: np.float32, starts: NDArray[np.float32], pairs: NDArray[np.int32], rate: NDArray[np.float32],
    slices: NDArray[np.int32], t: NDArray[np.float32],
) -> None:  # fmt: skip
    """Find the two slices of each voxel and the weight of the second, NaN where no slice covers it.

    Walks along the segments with the voxels. Unsigned, for a signed index costs a test for counting from the end.
    """
    k, one = np.uint64(1), np.uint64(1)
    for w in range(len(t)):
        z = z0 + np.float32(w) * dz
        while z >= starts[k + one]:
            k += one
        while z < starts[k]:
            k -= one
        slices[0, w] = pairs[0, k]
        slices[1, w] = pairs[1, k]
        t[w] = (z - starts[k]) * rate[k]


@njit(nogil=True, cache=True)
def _locate_pixels(
    x0: np.float32, dx: np.float32, size: int, shift: NDArray[np.float32], fraction: NDArray[np.float32],
    index: NDArray[np.int32],
) -> None:  # fmt: skip
    """Split in-plane positions into pixel index and fraction, clamped to the edge; NaN half a pixel beyond it."""
    end, cap = np.float32(size - 1), np.int32(max(size - 2, 0))
    for w in range(len(fraction)):
        fraction[w] = x0 + np.float32(w) * dx
    for w in range(len(shift)):
        fraction[w] -= shift[w]
    for w in range(len(fraction)):
        x = fraction[w]
        inside = (x >= -_HALF) & (x <= end + _HALF)
        x = min(max(x, _ZERO), end)
        i = min(np.int32(x), cap)
        fraction[w] = x - np.float32(i) if inside else _NAN
        index[w] = i


@njit(nogil=True, cache=True)
def _load_pixels(
    pixels: NDArray[np.uint16], shape: tuple[int, int], slices: NDArray[np.int32], row: NDArray[np.int32],
    column: NDArray[np.int32], at: NDArray[np.int64], loaded: NDArray[np.uint16],
) -> None:  # fmt: skip
    """Load the 2 x 2 pixels round each voxel."""
    rows, columns = shape
    for w in range(len(at)):
        at[w] = (np.int64(slices[w]) * rows + np.int64(row[w])) * columns + np.int64(column[w])
    beside, below = np.uint64(columns > 1), np.uint64(columns if rows > 1 else 0)
    p00, p01, p10, p11 = loaded[0], loaded[1], loaded[2], loaded[3]
    for w in range(len(at)):
        i = np.uint64(at[w])
        p00[w] = pixels[i]
        p01[w] = pixels[i + beside]
        p10[w] = pixels[i + below]
        p11[w] = pixels[i + below + beside]


@njit(nogil=True, cache=True)
def _blend_pixels(
    loaded: NDArray[np.uint16], flip: np.uint16, a: NDArray[np.float32], b: NDArray[np.float32],
    value: NDArray[np.float32],
) -> None:  # fmt: skip
    """``value = (1-a)(1-b) P00 + (1-a) b P01 + a (1-b) P10 + a b P11``, a along rows and b along columns."""
    for w in range(len(value)):
        p00, p01 = np.float32(loaded[0, w] ^ flip), np.float32(loaded[1, w] ^ flip)
        p10, p11 = np.float32(loaded[2, w] ^ flip), np.float32(loaded[3, w] ^ flip)
        above = p00 + b[w] * (p01 - p00)
        value[w] = above + a[w] * (p10 + b[w] * (p11 - p10) - above)


def _pair_intrinsic(_context: Any, pixels: Any, _index: Any) -> Any:
    """Load ``pixels[index]`` (low half) and ``pixels[index + 1]`` (high half) as one 32-bit word: half the loads."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.gep(array.data, [arguments[1]])
        word = builder.load(builder.bitcast(address, context.get_value_type(types.uint32).as_pointer()))
        word.align = 2
        return word

    return types.uint32(pixels, types.uint64), generate


_load_pair = cast(Callable[[NDArray[np.uint16], np.uint64], np.uint32], intrinsic(_pair_intrinsic))


@njit(nogil=True, cache=True)
def _load_cell(
    pixels: NDArray[np.uint16], shape: tuple[int, int, int], cell: NDArray[np.int32], at: NDArray[np.int64],
    words: NDArray[np.uint32],
) -> None:  # fmt: skip
    """Load the 2 x 2 x 2 pixels round each voxel as four pairs; one pixel wide slices have no pairs."""
    slices, rows, columns = shape
    s, r, c = cell[0], cell[1], cell[2]
    for w in range(len(at)):
        at[w] = (np.int64(s[w]) * rows + np.int64(r[w])) * columns + np.int64(c[w])
    below, behind = np.uint64(columns), np.uint64(rows * columns if slices > 1 else 0)
    one, two, three, four = words[0], words[1], words[2], words[3]
    for w in range(len(at)):
        i = np.uint64(at[w])
        one[w] = _load_pair(pixels, i)
        two[w] = _load_pair(pixels, i + below)
        three[w] = _load_pair(pixels, i + behind)
        four[w] = _load_pair(pixels, i + behind + below)


@njit(nogil=True, cache=True)
def _blend_cell(
    words: NDArray[np.uint32], flip: np.uint32, fraction: NDArray[np.float32], gain: np.float32, offset: np.float32,
    value: NDArray[np.float32],
) -> None:  # fmt: skip
    """Trilinear values, ``gain`` and ``offset`` applied; fractions along slices, rows and columns."""
    t, a, b = fraction[0], fraction[1], fraction[2]
    mask, half = np.uint32(0xFFFF), np.uint32(16)
    for w in range(len(value)):
        p, q = words[0, w] ^ flip, words[1, w] ^ flip
        left, below = np.float32(np.int32(p & mask)), np.float32(np.int32(q & mask))
        above = left + b[w] * (np.float32(np.int32(p >> half)) - left)
        under = below + b[w] * (np.float32(np.int32(q >> half)) - below)
        near = above + a[w] * (under - above)
        p, q = words[2, w] ^ flip, words[3, w] ^ flip
        left, below = np.float32(np.int32(p & mask)), np.float32(np.int32(q & mask))
        above = left + b[w] * (np.float32(np.int32(p >> half)) - left)
        under = below + b[w] * (np.float32(np.int32(q >> half)) - below)
        far = above + a[w] * (under - above)
        value[w] = gain * (near + t[w] * (far - near)) + offset


@njit(nogil=True, cache=True)
def _write_row(
    value: NDArray[np.float32], clip: tuple[np.float32, np.float32], target: NDArray[np.float32],
    filled: NDArray[np.bool_],
) -> int:  # fmt: skip
    """Write the values that are numbers into voxels not yet filled; return how many."""
    count = np.int32(0)
    for w in range(len(value)):
        v = value[w]
        write = (not filled[w]) & (v == v)
        target[w] = min(max(v, clip[0]), clip[1]) if write else target[w]
        filled[w] |= write
        count += np.int32(write)
    return int(count)


@njit(nogil=True, cache=True)
def _uneven_row(
    start: tuple[np.float32, np.float32, np.float32], step: tuple[np.float32, np.float32, np.float32],
    pixels: NDArray[np.uint16], flip: np.uint16, tone: NDArray[np.float32], shift: NDArray[np.float32],
    segments: tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]], value: NDArray[np.float32],
) -> None:  # fmt: skip
    """Values of a row in a stack whose slices are uneven, staggered, or rescaled one by one: any stack at all."""
    n = len(value)
    slices, index, at = np.empty((2, n), np.int32), np.empty((2, n), np.int32), np.empty(n, np.int64)
    fraction, moved, side_value = np.empty((2, n), np.float32), np.empty((2, n), np.float32), np.empty(n, np.float32)
    t, loaded, shape = np.empty(n, np.float32), np.empty((4, n), np.uint16), pixels.shape[1:]
    _locate_slices(start[0], step[0], segments[0], segments[1], segments[2], slices, t)
    for side in range(2):
        for w in range(n):
            moved[0, w] = shift[0, slices[side, w]]
            moved[1, w] = shift[1, slices[side, w]]
        _locate_pixels(start[1], step[1], shape[0], moved[0], fraction[0], index[0])
        _locate_pixels(start[2], step[2], shape[1], moved[1], fraction[1], index[1])
        _load_pixels(pixels.reshape(-1), shape, slices[side], index[0], index[1], at, loaded)
        _blend_pixels(loaded, flip, fraction[0], fraction[1], side_value)
        for w in range(n):
            weight = _ONE - t[w] if side == 0 else t[w]
            one = weight * (tone[0, slices[side, w]] * side_value[w] + tone[1, slices[side, w]])
            value[w] = one if side == 0 else value[w] + one


@njit(nogil=True, cache=True)
def resample_stack(
    out: NDArray[np.float32],
    filled: NDArray[np.bool_],
    pixels: NDArray[np.uint16],
    flip: np.uint16,
    tone: NDArray[np.float32],
    shift: NDArray[np.float32],
    segments: tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]],
    pitch_mm: float,
    place: NDArray[np.float64],
    clip: tuple[np.float32, np.float32],
) -> int:
    """Trilinear values of one stack in the voxels not yet ``filled``; returns how many it filled.

    ``v = (1-t) (gain[s] B_s + offset[s]) + t (gain[s'] B_s' + offset[s'])``, clipped: ``B_s`` is the bilinear value in
    slice ``s`` at the voxel's place in that slice; ``s``, ``s'``, ``t`` come from the segment of slice positions. A
    voxel is covered when a segment holds it and it lies within half a pixel of both slices' outermost pixel centres.

    Args:
        out: ``(D, H, W)``; voxels that are not covered keep what they hold.
        filled: ``(D, H, W)``; true voxels are left alone, newly filled ones become true.
        pixels: ``(S, R, C)`` stored values, their bits read as unsigned.
        flip: bits that turn the stored values into unsigned order (int16), else 0.
        tone: ``(2, S)``, gain and offset from stored to output value, slice by slice.
        shift: ``(2, S)``, (row, column) place of each slice's first voxel against the first slice's, in pixels.
        segments: starts, (lower, upper) and rate, see ``placement.SliceSegments``.
        pitch_mm: distance of the slices where all are alike: even, straight behind each other, rescaled alike; else 0.
        place: ``(4, 3)``: (position mm, row, column) of voxel [0, 0, 0], and their steps along D, H and W.
        clip: bounds of the values written.
    """
    depth, height, width = out.shape
    slices, rows, columns = pixels.shape
    flat, flips = pixels.reshape(-1), np.uint32(flip) << np.uint32(16) | np.uint32(flip)
    cell, fraction, at = np.empty((3, width), np.int32), np.empty((3, width), np.float32), np.empty(width, np.int64)
    words, value, no_shift = np.empty((4, width), np.uint32), np.empty(width, np.float32), np.empty(0, np.float32)
    dz, dr, dc = place[3]
    step = (np.float32(dz), np.float32(dr), np.float32(dc))
    row_low, row_high = shift[0].min() - 0.5, shift[0].max() + rows - 0.5
    column_low, column_high = shift[1].min() - 0.5, shift[1].max() + columns - 0.5
    total = 0
    for d in range(depth):
        for h in range(height):
            z = place[0, 0] + d * place[1, 0] + h * place[2, 0]
            r = place[0, 1] + d * place[1, 1] + h * place[2, 1]
            c = place[0, 2] + d * place[1, 2] + h * place[2, 2]
            first, last = _clip_span(z, dz, segments[0][1], segments[0][-2], 0, width)
            first, last = _clip_span(r, dr, row_low, row_high, first, last)
            first, last = _clip_span(c, dc, column_low, column_high, first, last)
            n = last - first
            if n <= 0:
                continue
            start = (np.float32(z + first * dz), np.float32(r + first * dr), np.float32(c + first * dc))
            if pitch_mm > 0:
                pitch = np.float32(pitch_mm)
                _locate_pixels(start[0] / pitch, step[0] / pitch, slices, no_shift, fraction[0, :n], cell[0])
                _locate_pixels(start[1], step[1], rows, no_shift, fraction[1, :n], cell[1])
                _locate_pixels(start[2], step[2], columns, no_shift, fraction[2, :n], cell[2])
                _load_cell(flat, (slices, rows, columns), cell, at[:n], words)
                _blend_cell(words, flips, fraction, tone[0, 0], tone[1, 0], value[:n])
            else:
                _uneven_row(start, step, pixels, flip, tone, shift, segments, value[:n])
            total += _write_row(value[:n], clip, out[d, h, first:last], filled[d, h, first:last])
    return total


@njit(nogil=True, cache=True)
def scatter_stack(
    pooled: NDArray[np.float32],
    pixels: NDArray[np.uint16],
    flip: np.uint16,
    tone: NDArray[np.float32],
    place: NDArray[np.float64],
    clip: tuple[np.float32, np.float32],
    maximum: bool,
) -> None:
    """Drop every pixel into its voxel: ``voxel = floor((p - corner) / spacing)``, as Open3D's ``VoxelGrid`` does.

    Args:
        pooled: ``(D, H, W, 2)``: the sum (or the maximum) so far, and how many pixels fell in.
        pixels: ``(S, R, C)`` stored values.
        flip: bits that turn the stored values into unsigned order (int16), else 0.
        tone: ``(2, S)``, gain and offset from stored to output value, slice by slice.
        place: ``(S, 3, 3)``: per slice the (d, h, w) of its first pixel in voxels from the grid's corner, and the steps
            along its rows and columns.
        clip: bounds of the values pooled.
        maximum: keep the largest instead of the sum.
    """
    depth, height, width = pooled.shape[:3]
    for s in range(pixels.shape[0]):
        gain, offset = tone[0, s], tone[1, s]
        di, dj, dk = place[s, 2]
        for r in range(pixels.shape[1]):
            i0 = place[s, 0, 0] + r * place[s, 1, 0]
            j0 = place[s, 0, 1] + r * place[s, 1, 1]
            k0 = place[s, 0, 2] + r * place[s, 1, 2]
            first, last = _clip_span(i0, di, 0.0, depth, 0, pixels.shape[2])
            first, last = _clip_span(j0, dj, 0.0, height, first, last)
            first, last = _clip_span(k0, dk, 0.0, width, first, last)
            for c in range(first, last):
                i, j, k = i0 + c * di, j0 + c * dj, k0 + c * dk
                if i < 0 or j < 0 or k < 0 or i >= depth or j >= height or k >= width:
                    continue
                v = gain * np.float32(pixels[s, r, c] ^ flip) + offset
                v = min(max(v, clip[0]), clip[1])
                at = (np.uint64(i), np.uint64(j), np.uint64(k))
                best, count = pooled[at[0], at[1], at[2], 0], pooled[at[0], at[1], at[2], 1]
                if maximum:
                    v = v if count == 0 else max(best, v)
                else:
                    v += best
                pooled[at[0], at[1], at[2], 0] = v
                pooled[at[0], at[1], at[2], 1] = count + _ONE
