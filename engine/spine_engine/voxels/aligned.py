"""The numba kernel for grids along a stack's own axes: interpolated one axis after the other.

The general kernel loads eight pixels a voxel. Here each pixel row is interpolated along its columns once, planes of
such rows are mixed along the outer axis, and rows of the mix along the inner axis: contiguous, vectorised passes. Its
twin is the same ``reference`` as the general kernel's. ``contract`` allows fused multiply-adds and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Axis = tuple[NDArray[np.int32], F32]

_ZERO = np.float32(0.0)
_LOW_HALF, _HIGH_HALF = np.uint32(0xFFFF), np.uint32(16)
_TILE = 16
"""Planes whose rows lie across the grid's are turned in tiles of this edge: one vector of 512 bits, or two of 256."""

ir: Any = import_module("llvmlite.ir")  # it has no types

_kernel = njit(nogil=True, cache=True, fastmath={"contract"})
_inlined = njit(nogil=True, cache=True, fastmath={"contract"}, forceinline=True)


def _pair_intrinsic(_context: Any, pixels: Any, _index: Any) -> Any:
    """Load ``pixels[index]`` (low half) and ``pixels[index + 1]`` (high half) as one 32-bit word."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.gep(data, [arguments[1]])
        loaded = builder.load(builder.bitcast(address, ir.IntType(32).as_pointer()))
        loaded.align = 2
        return loaded

    return types.uint32(pixels, types.uint64), generate


def _turn_intrinsic(_context: Any, lines: Any, start: Any, width: Any, out: Any, at: Any, stride: Any) -> Any:
    """Write the tile ``lines[start + row * width + column]`` to ``out[at + column * stride + row]``, turned in
    registers: four rounds, each of which swaps one bit of the row number with one of the column number."""
    row, number = ir.VectorType(ir.FloatType(), _TILE), ir.IntType(64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (context.make_array(signature.args[k])(context, builder, arguments[k]).data for k in (0, 3))
        _, start, width, _, at, stride = arguments
        rows = []
        for k in range(_TILE):
            address = builder.gep(source, [builder.add(start, builder.mul(width, number(k)))])
            rows.append(builder.load(builder.bitcast(address, row.as_pointer())))
            rows[-1].align = 4
        for bit in (8, 4, 2, 1):
            lower = [k if not k & bit else _TILE + (k ^ bit) for k in range(_TILE)]
            upper = [k | bit if not k & bit else _TILE + k for k in range(_TILE)]
            lower, upper = (ir.Constant(ir.VectorType(ir.IntType(32), _TILE), mask) for mask in (lower, upper))
            for k in (k for k in range(_TILE) if not k & bit):
                one, other = rows[k], rows[k + bit]
                rows[k] = builder.shuffle_vector(one, other, lower)
                rows[k + bit] = builder.shuffle_vector(one, other, upper)
        for k in range(_TILE):
            address = builder.gep(target, [builder.add(at, builder.mul(stride, number(k)))])
            builder.store(rows[k], builder.bitcast(address, row.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(lines, start, width, out, at, stride), generate


_load_pair = cast(Callable[[NDArray[np.uint16], np.uint64], np.uint32], intrinsic(_pair_intrinsic))
_turn = cast(Callable[[F32, np.uint64, np.uint64, F32, np.uint64, np.uint64], None], intrinsic(_turn_intrinsic))


@_inlined
def _columns(
    flat: NDArray[np.uint16], base: int, at: NDArray[np.int32], fraction: F32, flips: np.uint32, gain: np.float32,
    offset: np.float32, words: NDArray[np.uint32], plane: F32, start: int,
) -> None:  # fmt: skip
    """Interpolate one row of pixels along its columns into ``plane[start :]``."""
    first, to = np.uint64(base), np.uint64(start)
    for w in range(len(at)):
        words[w] = _load_pair(flat, first + np.uint64(at[w]))
    for w in range(len(at)):
        p = words[w] ^ flips
        left = np.float32(np.int32(p & _LOW_HALF))
        v = left + fraction[w] * (np.float32(np.int32(p >> _HIGH_HALF)) - left)
        plane[to + np.uint64(w)] = gain * v + offset


@_inlined
def _mix(
    plane: F32, one: int, other: int, t: np.float32, low: np.float32, high: np.float32, out: F32, at: int, n: int
) -> None:
    """``out[at : at + n] = clip((1 - t) plane[one :] + t plane[other :])``."""
    a, b, to = np.uint64(one), np.uint64(other), np.uint64(at)
    for w in range(n):
        v = plane[a + np.uint64(w)]
        out[to + np.uint64(w)] = min(max(v + t * (plane[b + np.uint64(w)] - v), low), high)


@_inlined
def _turn_lines(lines: F32, tall: int, wide: int, room: int, out: F32, at: int, stride: int) -> None:
    """Write ``tall`` lines of ``wide`` values, ``room`` apart, as ``wide`` rows, ``stride`` apart."""
    for c in range(0, wide, _TILE):
        for i in range(0, tall, _TILE):
            if i + _TILE <= tall and c + _TILE <= wide:
                first, to = i * room + c, at + c * stride + i
                _turn(lines, np.uint64(first), np.uint64(room), out, np.uint64(to), np.uint64(stride))
            else:
                for v in range(c, min(c + _TILE, wide)):
                    for j in range(i, min(i + _TILE, tall)):
                        out[at + v * stride + j] = lines[j * room + v]


@_kernel
def resample_aligned(
    out: F32,
    strides: tuple[int, int, int],
    start: int,
    flat: NDArray[np.uint16],
    steps: tuple[int, int],
    flip: int,
    tone: F32,
    outer: Axis,
    inner: Axis,
    column: Axis,
    rows: NDArray[np.int32],
    clip: tuple[np.float32, np.float32],
) -> None:
    """Trilinear values of an even stack in a box of voxels along its axes.

    Args:
        out: the grid, flat; the box's first voxel is ``out[start]``.
        strides: distance in ``out`` of neighbours along the outer, inner and column axis; the last or the middle is 1.
        start: see ``out``.
        flat: stored values, their bits read as unsigned.
        steps: distance in ``flat`` of neighbours along the outer and inner axis; along columns it is 1.
        flip: bits that turn the stored values into unsigned order (int16), else 0.
        tone: ``(2, S)``, gain and offset, the same for all slices.
        outer, inner, column: for each voxel along the axis the pixel below it and the fraction beyond; a pixel above is
            there unless the fraction is 0. ``inner`` counts in ``rows``.
        rows: the pixels along the inner axis that are needed, ascending.
        clip: bounds of the values written.
    """
    n, room, turned = len(column[0]), (len(column[0]) + _TILE - 1) // _TILE * _TILE, strides[1] == 1 and strides[2] != 1
    area, flips = len(rows) * room, np.uint32(flip * 0x10001)
    planes, mixed = np.zeros(2 * area, np.float32), np.empty(area, np.float32)
    lines = np.empty(len(inner[0]) * room if turned else 0, np.float32)
    words, held = np.empty(n, np.uint32), np.full(2, -1, np.int64)
    lowest, highest, last = np.float32(-np.inf), np.float32(np.inf), len(rows) - 1
    for o in range(len(outer[0])):
        below = int(outer[0][o])
        for source in range(below, below + (2 if outer[1][o] > 0 else 1)):
            if held[source & 1] != source:
                held[source & 1] = source
                for k in range(len(rows)):
                    base = source * steps[0] + rows[k] * steps[1]
                    to = (source & 1) * area + k * room
                    _columns(flat, base, column[0], column[1], flips, tone[0, 0], tone[1, 0], words, planes, to)
        one, other = (below & 1) * area, ((below + 1) & 1) * area
        _mix(planes, one, other if outer[1][o] > 0 else one, outer[1][o], lowest, highest, mixed, 0, area)
        at, tall = start + o * strides[0], len(inner[0])
        for i in range(tall):
            k = inner[0][i]
            one, other = k * room, min(k + 1, last) * room
            if turned:
                _mix(mixed, one, other, inner[1][i], clip[0], clip[1], lines, i * room, room)
            else:
                _mix(mixed, one, other, inner[1][i], clip[0], clip[1], out, at + i * strides[1], n)
        if turned:
            _turn_lines(lines, tall, n, room, out, at, strides[2])
