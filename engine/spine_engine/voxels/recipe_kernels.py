"""The numba kernels of recipes: which points of a slice lie in a box, and how voxels pool them.

A slice is taken line by line: rows or columns, whichever run shorter ways through the grid's memory. Its point ``n`` of
line ``m`` lies at ``(lines[:, m] + along[:, n]) + copy * shift``: those terms, added in that order, are what the
pipelines compute, to the last bit, so there is no fused arithmetic here. Along a line each coordinate rises or falls
throughout, rounding included: what lies in a box is one run of a line, and a run's ends are its extremes.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from spine_engine.voxels.vectors import prefetch

# Compiled in from other files: 6599bb7aa0a1

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
U16 = NDArray[np.uint16]

_kernel = njit(nogil=True, cache=True, error_model="numpy")
_inlined = njit(nogil=True, cache=True, error_model="numpy", forceinline=True)

_BLOCK = 1024
"""Voxels that are looked at together: a page of memory."""

_LINE = 16
"""Voxels of a cache line."""

_SMALLEST_HALF = np.float32(2.0**-14)
"""Smallest normal float16: below it, float16 has steps of 2^-24, as float32 has above a half."""


@_inlined
def _run(
    line: float,
    along: F64,
    moved: float,
    low: float,
    high: float,
    first: int,
    last: int,
) -> tuple[int, int]:
    """Narrow ``first <= n < last`` to the n whose coordinate lies in ``low .. high``, both included."""
    begin, end = (line + along[first]) + moved, (line + along[last - 1]) + moved
    rising = end >= begin
    if min(begin, end) >= low and max(begin, end) <= high:
        return first, last
    if max(begin, end) < low or min(begin, end) > high:
        return first, first
    # The first n that is not before the box, then the first that is behind it.
    enter, leave = first, last
    step = last
    while enter < step:
        middle = (enter + step) // 2
        place = (line + along[middle]) + moved
        if (place < low) if rising else (place > high):
            enter = middle + 1
        else:
            step = middle
    step = enter
    while step < leave:
        middle = (step + leave) // 2
        place = (line + along[middle]) + moved
        if (place <= high) if rising else (place >= low):
            step = middle + 1
        else:
            leave = middle
    return enter, leave


@_kernel
def crop_slice(
    values: U16, steps: tuple[int, int], lines: F64, along: F64, shift: F64, box: F64, drop_zeros: bool, runs: I32,
    extent: F64,
) -> bool:  # fmt: skip
    """Find the runs of each line and copy that lie in a box, less zeros at their ends, and widen ``extent`` to them.

    Args:
        values: ``(L * N,)``, the bits of the stored values.
        steps: from one line, and from one point, to the next in ``values``.
        lines, along: ``(K, L)`` and ``(K, N)``, terms of the points' coordinates: x, y, z, and any others.
        shift: ``(K,)``, mm from one copy to the next.
        box: ``(2, K)``, smallest and largest coordinates, both included.
        drop_zeros: zeros are no points.
        runs: ``(L, copies, 2)``, to be written: the first point and the one behind the last.
        extent: ``(2, 3)``, smallest and largest coordinates so far.

    Returns:
        Whether any point lies in the box.
    """
    copies = runs.shape[1]
    found = False
    for m in range(lines.shape[1]):
        first, last = 0, along.shape[1]
        for k in range(len(shift)):
            if shift[k] == 0.0 and first < last:
                first, last = _run(
                    lines[k, m], along[k], 0.0, box[0, k], box[1, k], first, last
                )
        before = (-1, -1)
        trimmed = (0, 0)
        for copy in range(copies):
            begin, end = first, last
            for k in range(len(shift)):
                if shift[k] != 0.0 and begin < end:
                    begin, end = _run(
                        lines[k, m],
                        along[k],
                        copy * shift[k],
                        box[0, k],
                        box[1, k],
                        begin,
                        end,
                    )
            if (begin, end) != before:
                before = (begin, end)
                if drop_zeros:
                    while begin < end and values[m * steps[0] + begin * steps[1]] == 0:
                        begin += 1
                    while (
                        begin < end and values[m * steps[0] + (end - 1) * steps[1]] == 0
                    ):
                        end -= 1
                trimmed = (begin, end)
            begin, end = trimmed
            runs[m, copy, 0], runs[m, copy, 1] = begin, end
            if begin >= end:
                continue
            found = True
            for k in range(3):
                one = (lines[k, m] + along[k, begin]) + copy * shift[k]
                other = (lines[k, m] + along[k, end - 1]) + copy * shift[k]
                extent[0, k] = min(extent[0, k], one, other)
                extent[1, k] = max(extent[1, k], one, other)
    return found


@_kernel
def outline(runs: I32) -> I32:
    """Return the corners (line, point) of the convex hull of the runs of a slice's lines ``(L, 2)``, ``(N, 2)``."""
    ends = np.empty((2 * len(runs), 2), np.int32)
    count = 0
    for m in range(len(runs)):
        if runs[m, 0] < runs[m, 1]:
            ends[count, 0], ends[count, 1] = m, runs[m, 0]
            ends[count + 1, 0], ends[count + 1, 1] = m, runs[m, 1] - 1
            count += 2
    corners = np.empty((2 * count + 2, 2), np.int32)
    kept = 0
    # Once up and once down the lines: of the points so far, a corner stays while the next one lies to its left.
    for way in range(2):
        start = kept
        for k in range(count):
            point = ends[k if way == 0 else count - 1 - k]
            while kept - start > 1:
                a, b = corners[kept - 2], corners[kept - 1]
                if (
                    np.int64(b[0] - a[0]) * (point[1] - a[1])
                    - np.int64(b[1] - a[1]) * (point[0] - a[0])
                    > 0
                ):
                    break
                kept -= 1
            corners[kept, 0], corners[kept, 1] = point[0], point[1]
            kept += 1
    return corners[:kept].copy()


@_inlined
def _add_places(
    line: float, along: F64, moved: float, origin: float, scale: float, nearest: bool, stride: int, first: int,
    last: int, at: I32,
) -> None:  # fmt: skip
    """Add to ``at`` the part of an axis in the places of voxels: ``scale`` voxels a mm from ``origin``."""
    stride32 = np.int32(stride)
    if nearest:
        for n in range(first, last):
            place = np.int32(np.rint((((line + along[n]) + moved) - origin) * scale))
            at[n] = np.int32(at[n] + np.int32(place * stride32))
    else:
        for n in range(first, last):
            place = np.int32(np.floor((((line + along[n]) + moved) - origin) * scale))
            at[n] = np.int32(at[n] + np.int32(place * stride32))


@_inlined
def _places(
    m: int, copy: int, lines: F64, along: F64, shift: F64, frame: F64, nearest: bool, strides: I32, first: int,
    last: int, still: I32, at: I32,
) -> None:  # fmt: skip
    """Write the places of a run's voxels into ``at``; ``still`` holds the part of the axes that copies do not move."""
    for n in range(first, last):
        at[n] = still[n]
    for k in range(3):
        if shift[k] != 0.0:
            moved = copy * shift[k]
            _add_places(
                lines[k, m],
                along[k],
                moved,
                frame[0, k],
                frame[1, k],
                nearest,
                strides[k],
                first,
                last,
                at,
            )


@_inlined
def _still_places(
    m: int,
    runs: I32,
    lines: F64,
    along: F64,
    shift: F64,
    frame: F64,
    nearest: bool,
    strides: I32,
    still: I32,
) -> tuple[int, int]:
    """Write the part of the axes that copies do not move, for all runs of a line; return where those begin and end."""
    first, last = still.shape[0], 0
    for copy in range(runs.shape[1]):
        if runs[m, copy, 0] < runs[m, copy, 1]:
            first, last = min(first, runs[m, copy, 0]), max(last, runs[m, copy, 1])
    for n in range(first, last):
        still[n] = 0
    for k in range(3):
        if shift[k] == 0.0:
            _add_places(
                lines[k, m],
                along[k],
                0.0,
                frame[0, k],
                frame[1, k],
                nearest,
                strides[k],
                first,
                last,
                still,
            )
    return first, last


@_inlined
def _fetch(grid: F32, at: I32, before: I32, first: int, last: int, alone: bool) -> None:
    """Ask for the cache lines of a run's voxels, unless they are those of the copy before, ``before``."""
    if not alone and abs(at[first] - before[first]) < _LINE:
        return
    apart = abs(at[last - 1] - at[first]) // (last - first) + 1
    for n in range(first, last, max(_LINE // apart, 1)):
        prefetch(grid, np.uint64(at[n]))


@_kernel
def largest_of_slice(
    values: U16, steps: tuple[int, int], signs: tuple[int, int], drop_zeros: bool, lines: F64, along: F64, shift: F64,
    runs: I32, frame: F64, nearest: bool, strides: I32, grid: F32,
) -> np.int32:  # fmt: skip
    """Put the points of a slice into their voxels, each of which keeps its largest code; return the largest of all.

    Args:
        values, steps, drop_zeros, lines, along, shift, runs: as for ``crop_slice``, which has filled ``runs``.
        signs: what turns the bits of a value into its code, a positive number: exclusive or, then plus.
        frame: ``(2, 3)``: where voxel 0 begins, and voxels a mm.
        nearest: the voxel is the nearest whole number, half to even; otherwise the whole number below.
        strides: ``(3,)``, of x, y and z in ``grid``.
        grid: ``(n,)`` float32, a channel's voxels; 0 where empty.
    """
    length, copies = along.shape[1], runs.shape[1]
    still, at = np.empty(length, np.int32), np.empty((2, copies, length), np.int32)
    codes = np.empty((2, length), np.float32)
    zero, flip, plus = np.int32(0), np.int32(signs[0]), np.int32(signs[1])
    largest = zero
    # The voxels of a line are fetched into the caches while the points of the line before are put into theirs.
    for m in range(lines.shape[1] + 1):
        now, before = m % 2, (m + 1) % 2
        if m < lines.shape[1]:
            begin, end = _still_places(
                m, runs, lines, along, shift, frame, nearest, strides, still
            )
            for n in range(begin, end):
                value = np.int32(values[m * steps[0] + n * steps[1]])
                code = np.int32(np.int32(value ^ flip) + plus)
                code = zero if drop_zeros and value == 0 else code
                largest = max(largest, code)
                codes[now, n] = np.float32(code)
            for copy in range(copies):
                first, last = runs[m, copy, 0], runs[m, copy, 1]
                if first < last:
                    line_at = at[now, copy]
                    _places(
                        m,
                        copy,
                        lines,
                        along,
                        shift,
                        frame,
                        nearest,
                        strides,
                        first,
                        last,
                        still,
                        line_at,
                    )
                    _fetch(
                        grid, line_at, at[now, max(copy - 1, 0)], first, last, copy == 0
                    )
        for copy in range(copies if m > 0 else 0):
            line_at, line_codes = at[before, copy], codes[before]
            for n in range(runs[m - 1, copy, 0], runs[m - 1, copy, 1]):
                voxel = np.uint32(line_at[n])
                grid[voxel] = max(grid[voxel], line_codes[n])
    return largest


@_kernel
def sums_of_slice(
    values: U16, steps: tuple[int, int], table: F32, drop_zeros: bool, lines: F64, along: F64, shift: F64, runs: I32,
    frame: F64, nearest: bool, strides: I32, total: F64, count: I32,
) -> None:  # fmt: skip
    """Add the points of a slice to the sums and counts of their voxels; see ``largest_of_slice``.

    Args:
        table: ``(65536,)``, what the bits of a value count as.
        total, count: ``(n,)``, of a channel's voxels.
    """
    length = along.shape[1]
    still, at = np.empty(length, np.int32), np.empty(length, np.int32)
    for m in range(lines.shape[1]):
        _still_places(m, runs, lines, along, shift, frame, nearest, strides, still)
        for copy in range(runs.shape[1]):
            first, last = runs[m, copy, 0], runs[m, copy, 1]
            if first < last:
                _places(
                    m,
                    copy,
                    lines,
                    along,
                    shift,
                    frame,
                    nearest,
                    strides,
                    first,
                    last,
                    still,
                    at,
                )
                for n in range(first, last):
                    value = values[m * steps[0] + n * steps[1]]
                    if not (drop_zeros and value == 0):
                        total[at[n]] += table[value]
                        count[at[n]] += 1


@_inlined
def _half(value: np.float32) -> np.float32:
    """Return a value of 0 or more rounded to float16, half to even, as a float32."""
    bits = np.float32(value).view(np.uint32)
    odd = (bits >> np.uint32(13)) & np.uint32(1)
    normal = np.uint32((bits + np.uint32(0xFFF) + odd) & np.uint32(0xFFFFE000)).view(
        np.float32
    )
    small = (value + np.float32(0.5)) - np.float32(0.5)
    half: np.float32 = normal if value >= _SMALLEST_HALF else small
    return half


@_kernel
def smallest_code(grid: F32) -> np.float32:
    """Return the smallest number of a grid of numbers of 0 or more."""
    smallest: np.float32 = grid[0]
    for n in range(len(grid)):
        smallest = min(smallest, grid[n])
        if smallest == np.float32(0.0):
            break
    return smallest


@_kernel
def look_up(grid: F32, table: F32) -> None:
    """Replace the codes of a grid, whole numbers from 0 on, by what stands for them in ``table``, in place."""
    empty = table[0]
    for n in range(len(grid)):
        code = grid[n]
        if code != np.float32(0.0):
            grid[n] = table[np.int32(code)]
        elif empty != np.float32(0.0):
            grid[n] = empty


@_inlined
def _occupied(part: F32) -> bool:
    """Return whether any value is not 0."""
    bits = np.uint32(0)
    for n in range(len(part)):
        bits = np.uint32(bits | np.float32(part[n]).view(np.uint32))
    return bool(bits != np.uint32(0))


@_kernel
def scale(
    grid: F32, low: np.float32, width: np.float32, values_to_half: bool, to_half: bool
) -> None:
    """Replace each value by ``(value - low) / width``, which is to be 0 or more, in place.

    ``values_to_half`` rounds values of 0 or more to float16 first, ``to_half`` the result. Blocks of zeros that stay
    zeros are only read: memory that was never written costs next to nothing.
    """
    zeros_stay = low == np.float32(0.0)
    for begin in range(0, len(grid), _BLOCK):
        part = grid[begin : begin + _BLOCK]
        if zeros_stay and not _occupied(part):
            continue
        if values_to_half and to_half:
            for n in range(len(part)):
                part[n] = _half((_half(part[n]) - low) / width)
        elif to_half:
            for n in range(len(part)):
                part[n] = _half((part[n] - low) / width)
        else:
            for n in range(len(part)):
                value = part[n]
                part[n] = ((_half(value) if values_to_half else value) - low) / width


@_inlined
def _shares(size: int, wanted: int, below: I32, share: F64) -> None:
    """Write for each of ``wanted`` voxels its lower neighbour of ``size`` and the upper one's share."""
    for n in range(wanted):
        place = min(max((n + 0.5) * size / wanted - 0.5, 0.0), size - 1.0)
        low = min(int(place), max(size - 2, 0))
        below[n], share[n] = low, place - low


@_kernel
def resize(grid: F32, out: F32) -> tuple[np.float32, np.float32]:
    """Resize a grid of whole numbers ``(a, b, c)`` to the shape of ``out``, trilinearly; return the extremes of that.

    Voxel ``n`` of ``N`` reads at ``(n + 0.5) * size / N - 0.5``, clamped to the outermost voxels' centres; nothing is
    smoothed. With sides that are powers of two the arithmetic is exact up to the last rounding to float32: stored
    values have 16 bits, and each of three axes adds the digits of a fraction of ``2 N``.
    """
    (a, b, c), (wide, deep, high) = grid.shape, out.shape
    below_a, below_b, below_c = (
        np.empty(wide, np.int32),
        np.empty(deep, np.int32),
        np.empty(high, np.int32),
    )
    share_a, share_b, share_c = np.empty(wide), np.empty(deep), np.empty(high)
    _shares(a, wide, below_a, share_a)
    _shares(b, deep, below_b, share_b)
    _shares(c, high, below_c, share_c)
    plane, row = np.empty((b, c)), np.empty(c + 1)
    smallest, largest = np.float32(np.inf), np.float32(-np.inf)
    for i in range(wide):
        near, far, t = grid[below_a[i]], grid[min(below_a[i] + 1, a - 1)], share_a[i]
        for j in range(b):
            for k in range(c):
                first = np.float64(near[j, k])
                plane[j, k] = first + (np.float64(far[j, k]) - first) * t
        for j in range(deep):
            low, under = below_b[j], min(below_b[j] + 1, b - 1)
            t = share_b[j]
            for k in range(c):
                row[k] = plane[low, k] + (plane[under, k] - plane[low, k]) * t
            row[c] = row[c - 1]
            target = out[i, j]
            for k in range(high):
                n = below_c[k]
                value = np.float32(row[n] + (row[n + 1] - row[n]) * share_c[k])
                target[k] = value
            for k in range(high):
                smallest, largest = min(smallest, target[k]), max(largest, target[k])
    return smallest, largest
