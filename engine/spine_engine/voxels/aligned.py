"""The numba kernel for grids along a stack's own axes, which interpolates one axis after the other.

This kernel is frozen for speed: callers use ``voxelize`` and need not read it. The general kernel loads eight pixels a
voxel. This one first blends whole rows of pixels across the other axes, as contiguous vectors; then it interpolates
along a row, one vector of voxels at a time, picked from a few vectors in registers. It has the same reference as the
general kernel. ``contract`` allows fused multiply-adds and nothing else.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from spine_engine.voxels.placement import GridLine
from spine_engine.voxels.vectors import (
    F32,
    LANES,
    MOST_PIECES,
    STREAM_ALIGN,
    U16,
    along_four,
    along_one,
    along_two,
    fence,
    prefetch,
    turn,
)

# Compiled in from other files: 51ca9351bd14

I32 = NDArray[np.int32]
Picks = tuple[I32, I32, F32, int]
Tone = tuple[np.uint16, np.float32, np.float32]
Bounds = tuple[np.float32, np.float32]
Size = tuple[int, int, int]

_ONE = np.float32(1.0)
_BLOCK = 8
"""Rows blended before the first of them is read again: reading parts of what was just written has to wait."""
_CACHE_LINE = 32
"""Pixels per cache line of 64 bytes."""
_STREAM_BYTES = 1 << 20
"""Size from which grids are written past the caches, which cannot hold them: a quarter less time for an axial stack."""

_kernel = njit(nogil=True, cache=True, fastmath={"contract"})
_inlined = njit(nogil=True, cache=True, fastmath={"contract"}, forceinline=True)


@_inlined
def _taps(axis: GridLine) -> tuple[I32, F32]:
    """Return the pixel below each voxel along an axis and the fraction beyond it; a pixel above exists unless the
    fraction is 0."""
    first, step, voxels, pixels = axis
    below, beyond = np.empty(voxels, np.int32), np.empty(voxels, np.float32)
    for v in range(voxels):
        x = min(max(first + v * step, 0.0), pixels - 1.0)
        below[v] = min(int(x), max(pixels - 2, 0))
        beyond[v] = np.float32(x - below[v])
    return below, beyond


@_inlined
def _picks(axis: GridLine) -> tuple[int, int, Picks]:
    """Return the first pixel that an axis needs, the number of pixels, and the axis's voxels in whole vectors.

    The voxels are: the first pixel of each vector, counted from the first of all; each voxel's pixel, counted from
    there; the fraction beyond that pixel; and the number of pixel vectors that a vector of voxels is picked from.
    """
    below, beyond = _taps(axis)
    n, one, other = axis[2], below[0], below[axis[2] - 1]
    first, last = min(one, other), min(max(one, other) + 1, axis[3] - 1)
    room, pieces = (n + LANES - 1) // LANES * LANES, 1
    starts, index, fraction = (
        np.zeros(room, np.int32),
        np.zeros(room, np.int32),
        np.zeros(room, np.float32),
    )
    for w in range(0, n, LANES):
        end = min(w + LANES, n)
        start = min(below[w], below[end - 1])
        starts[w : w + LANES] = start - first
        for v in range(w, end):
            index[v], fraction[v] = below[v] - start, beyond[v]
            pieces = max(pieces, index[v] // LANES + 1)
    return first, last - first + 1, (starts, index, fraction, pieces)


@_inlined
def _blend_two(
    flat: U16,
    one: int,
    behind: int,
    t: np.float32,
    rescale: Tone,
    out: F32,
    at: int,
    n: int,
) -> None:
    """Blend ``n`` pixels of a row and of the row ``behind`` it, and tone the result."""
    (sign_bit, gain, offset), to = rescale, np.uint64(at)
    a, b, p, q = np.uint64(one), np.uint64(one + behind), gain * (_ONE - t), gain * t
    for w in range(n):
        x = np.uint64(w)
        out[to + x] = p * np.float32(flat[a + x] ^ sign_bit) + (
            q * np.float32(flat[b + x] ^ sign_bit) + offset
        )


@_inlined
def _blend_four(
    flat: U16,
    one: int,
    behind: int,
    t: np.float32,
    under: int,
    u: np.float32,
    rescale: Tone,
    out: F32,
    at: int,
    n: int,
) -> None:
    """Blend ``n`` pixels of a row, of the row ``behind`` it, and of the rows ``under`` both, and tone the result."""
    (sign_bit, gain, offset), to = rescale, np.uint64(at)
    a, b, c, d = (
        np.uint64(one),
        np.uint64(one + behind),
        np.uint64(one + under),
        np.uint64(one + under + behind),
    )
    p, q, r, s = (
        gain * (_ONE - t) * (_ONE - u),
        gain * t * (_ONE - u),
        gain * (_ONE - t) * u,
        gain * t * u,
    )
    for w in range(n):
        x = np.uint64(w)
        upper = p * np.float32(flat[a + x] ^ sign_bit) + (
            q * np.float32(flat[b + x] ^ sign_bit) + offset
        )
        out[to + x] = r * np.float32(flat[c + x] ^ sign_bit) + (
            s * np.float32(flat[d + x] ^ sign_bit) + upper
        )


@_inlined
def _rows(
    line: F32, base: int, gap: int, count: int, starts: I32, index: I32, fraction: F32, pieces: int, clip: Bounds,
    n: int, out: F32, at: int, stride: int, streamed: bool,
) -> None:  # fmt: skip
    """Interpolate along ``count`` lines into rows of ``n`` voxels.

    The lines begin at ``line[base]``, ``gap`` apart; the rows begin at ``out[at]``, ``stride`` apart. Two rows share
    the work of finding their pixels; an odd one is computed with its neighbour.
    """
    (low, high), whole = clip, n // LANES * LANES if pieces <= MOST_PIECES else 0
    gap, stride = (gap, stride) if count > 1 else (0, 0)
    over, down = np.uint64(gap), np.uint64(stride)
    for j in range(0, count, 2):
        i = max(min(j, count - 2), 0)
        begin, row = base + i * gap, at + i * stride
        for w in range(0, whole, LANES):
            start, to = np.uint64(begin + starts[w]), np.uint64(row + w)
            if pieces == 1:
                along_one(
                    line,
                    start,
                    over,
                    index,
                    fraction,
                    np.uint64(w),
                    low,
                    high,
                    out,
                    to,
                    down,
                    streamed,
                )
            elif pieces == 2:
                along_two(
                    line,
                    start,
                    over,
                    index,
                    fraction,
                    np.uint64(w),
                    low,
                    high,
                    out,
                    to,
                    down,
                    streamed,
                )
            else:
                along_four(
                    line,
                    start,
                    over,
                    index,
                    fraction,
                    np.uint64(w),
                    low,
                    high,
                    out,
                    to,
                    down,
                    streamed,
                )
        for w in range(whole, n):
            for k, v in ((begin, row), (begin + gap, row + stride)):
                one, other = (
                    line[k + starts[w] + index[w]],
                    line[k + starts[w] + index[w] + 1],
                )
                out[v + w] = min(max(one + fraction[w] * (other - one), low), high)


@_inlined
def _ask_for(flat: U16, one: int, other: int, n: int) -> None:
    """Prefetch ``n`` pixels of two rows: rows are too short for the processor to predict the next one."""
    for x in range(0, n, _CACHE_LINE):
        prefetch(flat, np.uint64(one + x))
        prefetch(flat, np.uint64(other + x))


@_inlined
def _resample_along(
    out: F32, start: int, strides: Size, flat: U16, read: Size, steps: tuple[int, int], rescale: Tone, outer: GridLine,
    inner: GridLine, n: int, picks: Picks, clip: Bounds, streamed: bool,
) -> None:  # fmt: skip
    """Fill rows of voxels along rows of pixels: blend four rows of pixels for each, and interpolate the blend."""
    (first, lead, width), (starts, index, fraction, pieces) = read, picks
    (below, beyond), (rows, weights) = _taps(outer), _taps(inner)
    room = width + (MOST_PIECES + 1) * LANES
    lines = np.zeros(_BLOCK * room, np.float32)
    turns = int(
        1 / min(max(abs(outer[1]), 0.01), 1.0)
    )  # so many planes share two slices, and the asking for the next
    for o in range(outer[2]):
        t, base, behind = (
            beyond[o],
            first + below[o] * steps[0],
            steps[0] if beyond[o] > 0 else 0,
        )
        coming = below[min(o + turns, outer[2] - 1)] + (1 if outer[1] > 0 else 0)
        coming = first + min(coming, outer[3] - 1) * steps[0]
        for block in range(0, inner[2], _BLOCK):
            end = min(block + _BLOCK, inner[2])
            for i in range(
                end, min(end + _BLOCK, inner[2])
            ):  # in the second cache by now, wanted in the first
                row = base + (rows[i] + 1) * steps[1]
                _ask_for(flat, row, row + behind, width)
            for i in range(block, end):
                row, under, line = (
                    rows[i] * steps[1],
                    steps[1] if weights[i] > 0 else 0,
                    (i - block) * room,
                )
                if (o + i) % turns == 0:
                    _ask_for(flat, coming + row, coming + row + under, width)
                _blend_four(
                    flat,
                    base + row,
                    behind,
                    t,
                    under,
                    weights[i],
                    rescale,
                    lines,
                    line,
                    width,
                )
            _rows(
                lines, lead, room, end - block, starts, index, fraction, pieces, clip, n, out,
                start + o * strides[0] + block * strides[1], strides[1], streamed,
            )  # fmt: skip


@_inlined
def _resample_across(
    out: F32, start: int, strides: Size, flat: U16, read: Size, steps: tuple[int, int], rescale: Tone, outer: GridLine,
    inner: GridLine, n: int, picks: Picks, clip: Bounds, streamed: bool,
) -> None:  # fmt: skip
    """Fill rows of voxels across rows of pixels: interpolate a plane along the pixels, turn it, then along its rows."""
    (first, lead, width), (starts, index, fraction, pieces) = read, picks
    below, beyond = _taps(outer)
    top, rows, (heads, lanes, weights, parts) = _picks(inner)
    room, wide = width + (MOST_PIECES + 1) * LANES, len(index)
    deep, unbounded = (
        (rows + LANES - 1) // LANES * LANES,
        (np.float32(-np.inf), np.float32(np.inf)),
    )
    lines, flat_plane = (
        np.zeros(_BLOCK * room, np.float32),
        np.zeros(deep * wide, np.float32),
    )
    turned = np.zeros(wide * deep + (MOST_PIECES + 1) * LANES, np.float32)
    for o in range(outer[2]):
        t, behind, base = (
            beyond[o],
            steps[0] if beyond[o] > 0 else 0,
            first + top * steps[1],
        )
        here, coming = (
            base + below[o] * steps[0],
            base + below[min(o + 1, outer[2] - 1)] * steps[0],
        )
        for block in range(0, rows, _BLOCK):
            end = min(block + _BLOCK, rows)
            for k in range(block, end):
                _blend_two(
                    flat,
                    here + k * steps[1],
                    behind,
                    t,
                    rescale,
                    lines,
                    (k - block) * room,
                    width,
                )
            _rows(
                lines, lead, room, end - block, starts, index, fraction, pieces, unbounded, wide, flat_plane,
                block * wide, wide, False,
            )  # fmt: skip
        for k in range(0, deep, LANES):
            for c in range(0, wide, LANES):
                one, other = np.uint64(k * wide + c), np.uint64(c * deep + k)
                turn(flat_plane, one, np.uint64(wide), turned, other, np.uint64(deep))
        for c in range(0, n, _BLOCK):
            end = min(c + _BLOCK, n)
            for k in range(
                c * rows // n, end * rows // n
            ):  # a share of the next plane's pixels
                _ask_for(
                    flat, coming + k * steps[1], coming + k * steps[1] + behind, width
                )
            _rows(
                turned, c * deep, deep, end - c, heads, lanes, weights, parts, clip, inner[2], out,
                start + o * strides[0] + c * strides[2], strides[2], streamed,
            )  # fmt: skip


@_kernel
def resample_aligned(
    out: F32,
    start: int,
    strides: Size,
    flat: U16,
    steps: tuple[int, int],
    sign_bit: int,
    rescale: F32,
    outer: GridLine,
    inner: GridLine,
    column: GridLine,
    clip: Bounds,
) -> None:
    """Write the trilinear values of an even stack into a box of voxels along its axes.

    Args:
        out: the grid, flat.
        start: index in ``out`` of the box's first voxel.
        strides: distance in ``out`` of neighbours along the outer, inner and column axis; the last or the middle is 1.
        flat: stored values, their bits read as unsigned.
        steps: distance in ``flat`` of neighbours along the outer and inner axis; along columns it is 1.
        sign_bit: bits that turn the stored values into unsigned order (int16), else 0.
        rescale: ``(2, S)``, gain and offset, the same for all slices.
        outer, inner, column: the box's axes, see ``placement.GridLine``; ``column`` lies along rows of pixels.
        clip: bounds of the written values.
    """
    first, count, picks = _picks(column)
    width = min((count + LANES - 1) // LANES * LANES, column[3])
    lead = max(first + width - column[3], 0)
    read, toning = (
        (first - lead, lead, width),
        (np.uint16(sign_bit), rescale[0, 0], rescale[1, 0]),
    )
    aligned = (
        out.ctypes.data // 4 | start | strides[0] | max(strides[1], strides[2])
    ) % (STREAM_ALIGN // 4) == 0
    streamed = aligned and 4 * out.size >= _STREAM_BYTES
    if strides[2] == 1:
        _resample_along(
            out, start, strides, flat, read, steps, toning, outer, inner, column[2], picks, clip, streamed
        )  # fmt: skip
    else:
        _resample_across(
            out, start, strides, flat, read, steps, toning, outer, inner, column[2], picks, clip, streamed
        )  # fmt: skip
    if streamed:
        fence()
