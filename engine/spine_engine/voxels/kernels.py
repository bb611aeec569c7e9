"""The numba kernels for any pose. Each has a plain NumPy reference in ``reference`` and a test that they agree.

These kernels are frozen for speed: callers use ``voxelize`` and need not read them.

A row of voxels is float32 throughout (integer times float32 would become float64). It is computed in short loops over
few arrays: the voxels' places (vectorised), loads (scalar: gathers are slower), blend (vectorised). LLVM leaves loops
scalar that have many arrays that might overlap, signed indices that might count from the end, or integers implicitly
widened to 64 bits. ``contract`` allows fused multiply-adds and nothing else. The kernels use one thread and release the
interpreter's lock. Kernels that call each other share this file, because numba's cache checks only a kernel's own file.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from spine_engine.voxels.placement import EVEN, STAGGERED, UNEVEN
from spine_engine.voxels.vectors import F32, LANES, U16, load_cells, prefetch

# Compiled in from other files: 01bd05cb0580

U32 = NDArray[np.uint32]
RowLine = tuple[float, float]
"""The place on an axis of the stack where a row of voxels begins, and the row's step."""
Bounds = tuple[np.float32, np.float32]
Size = tuple[int, int, int]
Segments = tuple[F32, NDArray[np.int32], F32]

_AHEAD, _ASK_EVERY = 3, 8
"""Planes of voxels between prefetching pixels and reading them, and voxels along a row that share one prefetch. Without
it, pixels arrive one cache line at a time, and waiting took a quarter of the time."""

_ZERO, _ONE, _HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
_LOW_HALF, _HIGH_HALF = np.uint32(0xFFFF), np.uint32(16)

_kernel = njit(nogil=True, cache=True, fastmath={"contract"})
_inlined = njit(nogil=True, cache=True, fastmath={"contract"}, forceinline=True)
"""Compiles pieces of a kernel, which take whole arrays and counts: each array view costs two atomic operations a row.
"""


@_inlined
def _span(
    line: RowLine, low: float, high: float, first: int, last: int
) -> tuple[int, int]:
    """Narrow ``first <= w < last`` to the w with ``low <= start + w * step <= high``."""
    start, step = line
    one, other = start + first * step, start + (last - 1) * step
    if low <= min(one, other) and max(one, other) <= high:
        return first, last
    if max(one, other) < low or min(one, other) > high:
        return first, first
    one, other = (low - start) / step, (high - start) / step
    enter, leave = min(one, other), max(one, other)
    first, last = max(first, math.ceil(enter)), min(last, math.floor(leave) + 1)
    return first, max(first, last)


@_inlined
def _locate(
    z: RowLine,
    r: RowLine,
    c: RowLine,
    shape: Size,
    first: int,
    n: int,
    fraction: F32,
    at: U32,
) -> None:
    """Split the positions of ``n`` voxels in slices, rows and columns, clamped to the stack, into the index of the
    pixel below and the fractions beyond it."""
    z0, r0, c0 = (
        np.float32(z[0] + first * z[1]),
        np.float32(r[0] + first * r[1]),
        np.float32(c[0] + first * c[1]),
    )
    dz, dr, dc = np.float32(z[1]), np.float32(r[1]), np.float32(c[1])
    z_end, r_end, c_end = (
        np.float32(shape[0] - 1),
        np.float32(shape[1] - 1),
        np.float32(shape[2] - 1),
    )
    z_cap, r_cap, c_cap = (
        np.int32(max(shape[0] - 2, 0)),
        np.int32(max(shape[1] - 2, 0)),
        np.int32(max(shape[2] - 2, 0)),
    )
    area, columns = np.uint32(shape[1] * shape[2]), np.uint32(shape[2])
    for w in range(n):
        step = np.float32(np.int32(w))
        x, y, u = z0 + step * dz, r0 + step * dr, c0 + step * dc
        x, y, u = (
            min(max(x, _ZERO), z_end),
            min(max(y, _ZERO), r_end),
            min(max(u, _ZERO), c_end),
        )
        i, j, k = (
            min(np.int32(x), z_cap),
            min(np.int32(y), r_cap),
            min(np.int32(u), c_cap),
        )
        fraction[0, w], fraction[1, w], fraction[2, w] = (
            x - np.float32(i),
            y - np.float32(j),
            u - np.float32(k),
        )
        at[w] = np.uint32(i) * area + np.uint32(j) * columns + np.uint32(k)


@_inlined
def _blend(
    words: U32, flips: np.uint32, fraction: F32, gain: np.float32, offset: np.float32, clip: Bounds, out: F32, at: int,
    n: int,
) -> None:  # fmt: skip
    """Write the trilinear values of the loaded cells, toned and clipped, into ``out[at : at + n]``; ``fraction`` runs
    along slices, rows and columns."""
    (low, high), start, room = clip, np.uint64(at), len(words) // 4
    second, third, fourth = np.uint64(room), np.uint64(2 * room), np.uint64(3 * room)
    for w in range(n):
        t, a, b = fraction[0, w], fraction[1, w], fraction[2, w]
        p, q = words[w] ^ flips, words[second + np.uint64(w)] ^ flips
        left, below = (
            np.float32(np.int32(p & _LOW_HALF)),
            np.float32(np.int32(q & _LOW_HALF)),
        )
        above = left + b * (np.float32(np.int32(p >> _HIGH_HALF)) - left)
        under = below + b * (np.float32(np.int32(q >> _HIGH_HALF)) - below)
        here = above + a * (under - above)
        p, q = words[third + np.uint64(w)] ^ flips, words[fourth + np.uint64(w)] ^ flips
        left, below = (
            np.float32(np.int32(p & _LOW_HALF)),
            np.float32(np.int32(q & _LOW_HALF)),
        )
        above = left + b * (np.float32(np.int32(p >> _HIGH_HALF)) - left)
        under = below + b * (np.float32(np.int32(q >> _HIGH_HALF)) - below)
        there = above + a * (under - above)
        out[start + np.uint64(w)] = min(
            max(gain * (here + t * (there - here)) + offset, low), high
        )


@_inlined
def _load_row(flat: U16, under: U16, near: U32, far: U32, words: U32, n: int) -> None:
    """Load the cells of ``n`` voxels whose two slices may lie anywhere."""
    for w in range(0, n, 4):
        load_cells(
            flat,
            under,
            flat,
            under,
            near,
            far,
            words,
            np.uint64(len(words) // 4),
            np.uint64(w),
        )


@_inlined
def _walk(
    z: RowLine,
    first: int,
    n: int,
    segments: Segments,
    slices: NDArray[np.int32],
    t: F32,
    hit: NDArray[np.bool_],
) -> None:
    """Find the two slices of each voxel, the weight of the second, and whether it is covered at all, walking along the
    segments with the voxels."""
    starts, pairs, rate = segments
    z0, dz = np.float32(z[0] + first * z[1]), np.float32(z[1])
    k, one = np.uint64(1), np.uint64(1)
    for w in range(n):
        x = z0 + np.float32(np.int32(w)) * dz
        while x >= starts[k + one]:
            k += one
        while x < starts[k]:
            k -= one
        slices[0, w] = pairs[0, k]
        slices[1, w] = pairs[1, k]
        hit[w] = rate[k] == rate[k]
        t[0, w] = (x - starts[k]) * rate[k] if hit[w] else _ZERO


@_inlined
def _uneven_row(
    z: RowLine, r: RowLine, c: RowLine, first: int, n: int, flat: U16, under: U16, size: Size,
    segments: Segments, fraction: F32, near: U32, far: U32, slices: NDArray[np.int32], hit: NDArray[np.bool_],
    words: U32,
) -> None:  # fmt: skip
    """Load the cells of a row in a stack of uneven slices that lie straight behind each other."""
    area = np.uint32(size[1] * size[2])
    _locate((0.0, 0.0), r, c, (1, size[1], size[2]), first, n, fraction, near)
    _walk(z, first, n, segments, slices, fraction, hit)
    for w in range(n):
        far[w] = near[w] + np.uint32(slices[1, w]) * area
        near[w] += np.uint32(slices[0, w]) * area
    _load_row(flat, under, near, far, words, n)


@_inlined
def _sided_row(
    z: RowLine, r: RowLine, c: RowLine, first: int, n: int, flat: U16, under: U16, size: Size,
    flips: np.uint32, rescale: F32, shift: F32, segments: Segments, fraction: F32, near: U32, slices: NDArray[np.int32],
    hit: NDArray[np.bool_], words: U32, part: F32, value: F32,
) -> None:  # fmt: skip
    """Compute the values of a row in any stack: each of a voxel's two slices has its own place and rescale."""
    area, columns, unbounded = (
        np.uint32(size[1] * size[2]),
        np.uint32(size[2]),
        (np.float32(-np.inf), np.float32(np.inf)),
    )
    r0, c0 = np.float32(r[0] + first * r[1]), np.float32(c[0] + first * c[1])
    dr, dc = np.float32(r[1]), np.float32(c[1])
    r_end, c_end = np.float32(size[1] - 1), np.float32(size[2] - 1)
    r_cap, c_cap = np.int32(max(size[1] - 2, 0)), np.int32(max(size[2] - 2, 0))
    _walk(z, first, n, segments, slices, fraction, hit)
    for side in range(2):
        for w in range(n):
            s = np.uint64(slices[side, w])
            fraction[1, w], fraction[2, w] = shift[0, s], shift[1, s]
        for w in range(n):
            step = np.float32(np.int32(w))
            y, u = r0 + step * dr - fraction[1, w], c0 + step * dc - fraction[2, w]
            hit[w] &= (
                (y >= -_HALF)
                & (y <= r_end + _HALF)
                & (u >= -_HALF)
                & (u <= c_end + _HALF)
            )
            y, u = min(max(y, _ZERO), r_end), min(max(u, _ZERO), c_end)
            j, k = min(np.int32(y), r_cap), min(np.int32(u), c_cap)
            fraction[1, w], fraction[2, w] = y - np.float32(j), u - np.float32(k)
            near[w] = (
                np.uint32(slices[side, w]) * area
                + np.uint32(j) * columns
                + np.uint32(k)
            )
        _load_row(flat, under, near, near, words, n)
        _blend(words, flips, fraction, _ONE, _ZERO, unbounded, part, 0, n)
        for w in range(n):
            s, t = np.uint64(slices[side, w]), fraction[0, w]
            one = (t if side else _ONE - t) * (rescale[0, s] * part[w] + rescale[1, s])
            value[w] = value[w] + one if side else one


@_inlined
def _clear(out: F32, at: int, n: int) -> None:
    start = np.uint64(at)
    for w in range(n):
        out[start + np.uint64(w)] = _ZERO


@_inlined
def _write_row(
    value: F32, hit: NDArray[np.bool_], clip: Bounds, fresh: bool, out: F32, filled: NDArray[np.bool_], keep: bool,
    at: int, n: int,
) -> int:  # fmt: skip
    """Write the voxels that are hit into ``out[at : at + n]``; return how many those were.

    In a row that is not fresh, only voxels that are not yet filled are written.
    """
    (low, high), start, count = clip, np.uint64(at), np.int32(0)
    if not fresh:
        for w in range(n):
            hit[w] &= not filled[start + np.uint64(w)]
    for w in range(n):
        v = min(max(value[w], low), high)
        out[start + np.uint64(w)] = v if hit[w] else out[start + np.uint64(w)]
        count += np.int32(hit[w])
    if keep:
        for w in range(n):
            filled[start + np.uint64(w)] |= hit[w]
    return int(count)


@_inlined
def _ahead(
    place: NDArray[np.float64], size: Size, pitch: float, kind: int
) -> np.uint64:
    """Return the distance from a voxel's pixel to the leading corner of the pixels read ``_AHEAD`` planes further."""
    ahead = 0
    for axis in range(3):
        move = _AHEAD * place[1, axis] / (pitch if axis == 0 else 1.0)
        leading = (
            int(np.rint(move))
            + (1 if move > 0 else 0)
            - (1 if axis == 0 and kind == STAGGERED else 0)
        )
        ahead += leading * (
            size[1] * size[2] if axis == 0 else size[2] if axis == 1 else 1
        )
    return np.uint64(ahead)


@_kernel
def resample_stack(
    out: F32,
    filled: NDArray[np.bool_],
    fresh: bool,
    flat: U16,
    size: Size,
    sign_bit: int,
    rescale: F32,
    shift: F32,
    segments: Segments,
    kind: int,
    place: NDArray[np.float64],
    clip: Bounds,
) -> int:
    """Write the trilinear values of one stack into the voxels not yet ``filled``; return how many it filled.

    ``v = (1-t) (gain[s] B_s + offset[s]) + t (gain[s'] B_s' + offset[s'])``, clipped: ``B_s`` is the bilinear value in
    slice ``s`` at the voxel's place in that slice; ``s``, ``s'``, ``t`` come from the segment of slice positions. A
    voxel is covered if a segment holds it and it lies within half a pixel of both slices' outermost pixel centres.

    Args:
        out: ``(D, H, W)``; voxels that are not covered keep their values.
        filled: ``(D, H, W)``; true voxels are left alone, newly filled ones become true. Empty: no marks are kept.
        fresh: nothing is filled yet, whatever ``out`` and ``filled`` hold: voxels that are not covered become 0.
        flat: stored values ``(S R C,)``, their bits read as unsigned; one more where slices are one pixel wide.
        size: ``(S, R, C)``; up to 2 ** 32 pixels.
        sign_bit: bits that turn the stored values into unsigned order (int16), else 0.
        rescale: ``(2, S)``, gain and offset from stored to output value, slice by slice.
        shift: ``(2, S)``, (row, column) place of each slice's first voxel against the first slice's, in pixels.
        segments: starts, (lower, upper) and rate, see ``placement.SliceSegments``.
        kind: likeness of the slices: ``placement.EVEN``, ``UNEVEN`` or ``STAGGERED``.
        place: ``(4, 3)``: (position, row, column) of voxel [0, 0, 0], and the steps along D, H and W; the position
            counts slices if they are even, else mm from the first slice.
        clip: bounds of the written values.
    """
    depth, height, width = out.shape
    room = (width + LANES - 1) // LANES * LANES
    fraction, near, far = (
        np.empty((3, room), np.float32),
        np.zeros(room, np.uint32),
        np.zeros(room, np.uint32),
    )
    words, slices, hit = (
        np.empty(4 * room, np.uint32),
        np.empty((2, room), np.int32),
        np.empty(room, np.bool_),
    )
    part, value = np.empty(room, np.float32), np.empty(room, np.float32)
    under = flat[size[2] if size[1] > 1 else 0 :]
    behind = size[1] * size[2] if size[0] > 1 and kind == EVEN else 0
    back, back_under = flat[behind:], under[behind:]
    voxels, marks, keep, flips = (
        out.reshape(-1),
        filled.reshape(-1),
        filled.size > 0,
        np.uint32(sign_bit * 0x10001),
    )
    gain, offset, unbounded = (
        rescale[0, 0],
        rescale[1, 0],
        (np.float32(-np.inf), np.float32(np.inf)),
    )
    z_low, z_high = (
        (-0.5, size[0] - 0.5)
        if kind == EVEN
        else (float(segments[0][1]), float(segments[0][-2]))
    )
    r_low, r_high = float(shift[0].min()) - 0.5, float(shift[0].max()) + size[1] - 0.5
    c_low, c_high = float(shift[1].min()) - 0.5, float(shift[1].max()) + size[2] - 0.5
    ahead, total = _ahead(place, size, (z_high - z_low) / size[0], kind), 0
    for d in range(depth):
        for h in range(height):
            z = (place[0, 0] + d * place[1, 0] + h * place[2, 0], place[3, 0])
            r = (place[0, 1] + d * place[1, 1] + h * place[2, 1], place[3, 1])
            c = (place[0, 2] + d * place[1, 2] + h * place[2, 2], place[3, 2])
            first, last = _span(z, z_low, z_high, 0, width)
            first, last = _span(r, r_low, r_high, first, last)
            first, last = _span(c, c_low, c_high, first, last)
            row, begin = (d * height + h) * width, first // LANES * LANES
            # whole vectors: an odd end costs more than the lanes it saves
            n = (last - begin + LANES - 1) // LANES * LANES if last > first else 0
            if kind == EVEN:
                _locate(z, r, c, size, begin, n, fraction, near)
                for w in range(0, n, 4):
                    load_cells(
                        flat,
                        under,
                        back,
                        back_under,
                        near,
                        near,
                        words,
                        np.uint64(room),
                        np.uint64(w),
                    )
            elif kind == UNEVEN:
                _uneven_row(
                    z, r, c, begin, n, flat, under, size, segments, fraction, near, far, slices, hit, words
                )  # fmt: skip
            else:
                _sided_row(
                    z, r, c, begin, n, flat, under, size, flips, rescale, shift, segments, fraction, near, slices, hit,
                    words, part, value,
                )  # fmt: skip
            for w in range(0, n, _ASK_EVERY):
                prefetch(flat, np.uint64(near[w]) + ahead)
            written = min(n, width - begin)
            if kind == EVEN and fresh:
                _blend(
                    words,
                    flips,
                    fraction,
                    gain,
                    offset,
                    clip,
                    voxels,
                    row + begin,
                    written,
                )
                if last - first < width:
                    _clear(voxels, row, first)
                    _clear(voxels, row + last, width - last)
                for w in range(width if keep else 0):
                    marks[np.uint64(row) + np.uint64(w)] = first <= w < last
                total += last - first
                continue
            if kind != STAGGERED:
                _blend(words, flips, fraction, gain, offset, unbounded, value, 0, n)
            for w in range(n):
                inside = first <= w + begin < last
                hit[w] = inside if kind == EVEN else hit[w] & inside
            if fresh:
                _clear(voxels, row, width)
                for w in range(width if keep else 0):
                    marks[np.uint64(row) + np.uint64(w)] = False
            total += _write_row(
                value, hit, clip, fresh, voxels, marks, keep, row + begin, written
            )
    return total


@_kernel
def scatter_stack(
    pooled: F32, shape: Size, pixels: U16, sign_bit: int, rescale: F32, place: NDArray[np.float64],
    clip: Bounds, maximum: bool,
) -> None:  # fmt: skip
    """Add every pixel to its voxel, ``voxel = floor((p - corner) / spacing)``, as Open3D's ``VoxelGrid`` does.

    Args:
        pooled: ``(2 (D H W + 1),)``: for each voxel the sum (or the maximum) so far and the number of its pixels; a
            last pair for the pixels beside the grid.
        shape: ``(D, H, W)``; fewer than 2 ** 31 voxels.
        pixels: ``(S, R, C)`` stored values.
        sign_bit: bits that turn the stored values into unsigned order (int16), else 0.
        rescale: ``(2, S)``, gain and offset from stored to output value, slice by slice.
        place: ``(S, 3, 3)``: per slice the (d, h, w) of its first pixel in voxels from the grid's corner, and the steps
            along its rows and columns.
        clip: bounds of the pooled values.
        maximum: pool the largest value instead of the sum.
    """
    depth, height, width = shape
    slices, rows, columns = pixels.shape
    at, value, flips, beside = (
        np.empty(columns, np.uint32),
        np.empty(columns, np.float32),
        np.uint16(sign_bit),
        np.int32(depth * height * width),
    )
    flat, low, high = pixels.reshape(-1), clip[0], clip[1]
    tall, wide = np.int32(height), np.int32(width)
    for s in range(slices):
        gain, offset = rescale[0, s], rescale[1, s]
        di, dj, dk = place[s, 2]
        for r in range(rows):
            i0 = place[s, 0, 0] + r * place[s, 1, 0]
            j0 = place[s, 0, 1] + r * place[s, 1, 1]
            k0 = place[s, 0, 2] + r * place[s, 1, 2]
            first, last = _span((i0, di), 0.0, float(depth), 0, columns)
            first, last = _span((j0, dj), 0.0, float(height), first, last)
            first, last = _span((k0, dk), 0.0, float(width), first, last)
            n, start = last - first, np.uint64((s * rows + r) * columns + first)
            for c in range(n):
                step = np.float64(np.int32(c + first))
                x, y, z = i0 + step * di, j0 + step * dj, k0 + step * dk
                inside = (
                    (x >= 0)
                    & (y >= 0)
                    & (z >= 0)
                    & (x < depth)
                    & (y < height)
                    & (z < width)
                )
                voxel = (np.int32(x) * tall + np.int32(y)) * wide + np.int32(z)
                at[c] = np.uint32(voxel if inside else beside)
            for c in range(n):
                prefetch(
                    pooled, np.uint64(2) * np.uint64(at[c])
                )  # each pixel's voxel is a cache line of its own
            for c in range(n):
                v = gain * np.float32(flat[start + np.uint64(c)] ^ flips) + offset
                value[c] = min(max(v, low), high)
            for c in range(n):
                k, v = np.uint64(2) * np.uint64(at[c]), value[c]
                best, count = pooled[k], pooled[k + np.uint64(1)]
                if maximum:
                    pooled[k] = v if count == 0 else max(best, v)
                else:
                    pooled[k] = best + v
                pooled[k + np.uint64(1)] = count + _ONE


@_kernel
def settle(pooled: F32, out: F32, mean: bool) -> int:
    """Write the pooled values (divided by their counts for the mean) to ``out (D, H, W)``; return how many voxels hold
    a pixel. The others become 0, and ``pooled`` is cleared for the next grid.
    """
    voxels, filled = out.reshape(-1), np.int64(0)
    for w in range(len(voxels)):
        best, count = pooled[2 * w], pooled[2 * w + 1]
        voxels[w] = best / max(count, _ONE) if mean else best
        filled += np.int64(count > _ZERO)
    pooled[:] = _ZERO
    return int(filled)
