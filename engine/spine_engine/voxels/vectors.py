"""Processor features that numba does not offer: vectors in registers, stores past the caches, prefetching.

The code is generated for any processor: LLVM chooses the instructions. These functions are frozen for speed; only the
kernels use them. After a change here touch the files of the kernels: numba's cache checks only a kernel's own file.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U16 = NDArray[np.uint16]

ir: Any = import_module("llvmlite.ir")  # they have no types
codegen: Any = import_module("numba.core.codegen")

LANES = 16 if "+avx512f" in codegen.get_host_cpu_features() else 8
"""Values per vector: as many as the processor can permute at once. The results do not depend on it."""

STREAM_ALIGN = 16
"""Alignment in bytes of values that are written past the caches."""

MOST_PIECES = 4
"""Largest number of pixel vectors that a vector of voxels along an axis is picked from."""


def _load(builder: Any, data: Any, at: Any, kind: Any) -> Any:
    """Load the vector that begins at ``data[at]``."""
    loaded = builder.load(builder.bitcast(builder.gep(data, [at]), kind.as_pointer()))
    loaded.align = 4
    return loaded


def _store(builder: Any, vector: Any, data: Any, at: Any) -> None:
    """Store a vector to ``data[at]`` and the following places."""
    builder.store(
        vector, builder.bitcast(builder.gep(data, [at]), vector.type.as_pointer())
    ).align = 4


def _stream(builder: Any, vector: Any, data: Any, at: Any) -> None:
    """Store a vector to ``data[at]`` past the caches: in quarters, so that LLVM does not merge it with ``_store``."""
    number, word = ir.IntType(64), ir.IntType(32)
    past_the_caches = builder.module.add_metadata([word(1)])
    for k in range(0, LANES, 4):
        lanes = ir.Constant(ir.VectorType(word, 4), list(range(k, k + 4)))
        quarter, address = (
            builder.shuffle_vector(vector, vector, lanes),
            builder.gep(data, [builder.add(at, number(k))]),
        )
        stored = builder.store(
            quarter, builder.bitcast(address, quarter.type.as_pointer())
        )
        stored.align = STREAM_ALIGN
        stored.set_metadata("nontemporal", past_the_caches)


def _splat(builder: Any, value: Any) -> Any:
    """Return a vector that repeats one value."""
    kind, words = ir.VectorType(value.type, LANES), ir.VectorType(ir.IntType(32), LANES)
    one = builder.insert_element(
        ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0)
    )
    return builder.shuffle_vector(one, one, ir.Constant(words, None))


def _picked(builder: Any, vector: Any, lanes: list[Any]) -> Any:
    """Return ``vector[lanes]``.

    LLVM recognises this pattern and makes it one permutation, where the processor has one, if the lanes come from a
    vector (not straight from memory) and the code is one block without a loop.
    """
    picked = ir.Constant(vector.type, ir.Undefined)
    for k, lane in enumerate(lanes):
        picked = builder.insert_element(
            picked, builder.extract_element(vector, lane), ir.IntType(32)(k)
        )
    return picked


def _along_intrinsic(pieces: int) -> Callable[..., Any]:
    """Return the code generator that picks a vector of voxels in each of two rows from ``pieces`` vectors of pixels."""
    number, word, fused = ir.IntType(64), ir.IntType(32), ("contract",)
    floats, words = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(word, LANES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line, index, fraction, out = (
            context.make_array(signature.args[k])(context, builder, arguments[k]).data
            for k in (0, 3, 4, 8)
        )
        _, start, gap, _, _, w, low, high, _, at, stride, streamed = arguments
        places, f = _load(builder, index, w, words), _load(builder, fraction, w, floats)
        inside = builder.and_(places, ir.Constant(words, [LANES - 1] * LANES))
        lanes = [builder.extract_element(inside, word(k)) for k in range(LANES)]

        def pixels(first: Any) -> Any:
            found: Any = None
            for piece in range(pieces):
                vector = _load(
                    builder, line, builder.add(first, number(piece * LANES)), floats
                )
                here = builder.icmp_unsigned(
                    ">=", places, ir.Constant(words, [piece * LANES] * LANES)
                )
                picked = _picked(builder, vector, lanes)
                found = builder.select(here, picked, found) if piece else picked
            return found

        def voxels(first: Any) -> Any:
            one, other = pixels(first), pixels(builder.add(first, number(1)))
            value = builder.fadd(
                one, builder.fmul(f, builder.fsub(other, one), flags=fused), flags=fused
            )
            lowest, highest = _splat(builder, low), _splat(builder, high)
            value = builder.select(
                builder.fcmp_ordered(">", value, lowest), value, lowest
            )
            return builder.select(
                builder.fcmp_ordered("<", value, highest), value, highest
            )

        rows = (
            (voxels(start), at),
            (voxels(builder.add(start, gap)), builder.add(at, stride)),
        )
        with builder.if_else(streamed) as branches:
            for branch, store in zip(branches, (_stream, _store), strict=True):
                with branch:
                    for values, to in rows:
                        store(builder, values, out, to)
        return context.get_dummy_value()

    def typed(
        _context: Any, line: Any, start: Any, gap: Any, index: Any, fraction: Any, w: Any, low: Any, high: Any,
        out: Any, at: Any, stride: Any, streamed: Any,
    ) -> Any:  # fmt: skip
        """``out[at + v] = clip((1 - f) line[start + i] + f line[start + i + 1])`` for a vector of v, where
        ``i = index[w + v] < LANES pieces`` and ``f = fraction[w + v]``; the same from ``line[start + gap :]`` into
        ``out[at + stride :]``."""
        return types.void(
            line, start, gap, index, fraction, w, low, high, out, at, stride, streamed
        ), generate

    return typed


def _turn_intrinsic(
    _context: Any, lines: Any, start: Any, width: Any, out: Any, at: Any, stride: Any
) -> Any:
    """Transpose the tile ``lines[start + row * width + column]`` in registers into ``out[at + column * stride + row]``.

    Each round swaps one bit of the row number with one of the column number.
    """
    row, number = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (
            context.make_array(signature.args[k])(context, builder, arguments[k]).data
            for k in (0, 3)
        )
        _, start, width, _, at, stride = arguments
        places = [
            builder.add(start, builder.mul(width, number(k))) for k in range(LANES)
        ]
        rows = [_load(builder, source, place, row) for place in places]
        for bit in (bit for bit in (8, 4, 2, 1) if bit < LANES):
            lower = [k if not k & bit else LANES + (k ^ bit) for k in range(LANES)]
            upper = [k | bit if not k & bit else LANES + k for k in range(LANES)]
            lower, upper = (
                ir.Constant(ir.VectorType(ir.IntType(32), LANES), mask)
                for mask in (lower, upper)
            )
            for k in (k for k in range(LANES) if not k & bit):
                one, other = rows[k], rows[k + bit]
                rows[k] = builder.shuffle_vector(one, other, lower)
                rows[k + bit] = builder.shuffle_vector(one, other, upper)
        for k in range(LANES):
            _store(
                builder,
                rows[k],
                target,
                builder.add(at, builder.mul(stride, number(k))),
            )
        return context.get_dummy_value()

    return types.void(lines, start, width, out, at, stride), generate


def _prefetch_intrinsic(_context: Any, pixels: Any, _index: Any) -> Any:
    """Prefetch the cache line of ``pixels[index]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(
            context, builder, arguments[0]
        ).data
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        read, keep, data_cache = word(0), word(3), word(1)
        builder.call(
            prefetch,
            [
                builder.bitcast(builder.gep(data, [arguments[1]]), byte),
                read,
                keep,
                data_cache,
            ],
        )
        return context.get_dummy_value()

    return types.void(pixels, types.uint64), generate


def _fence_intrinsic(_context: Any) -> Any:
    """Wait until all threads see the values that were written past the caches."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


def _cells_intrinsic(
    _context: Any,
    upper: Any,
    under: Any,
    back: Any,
    back_under: Any,
    near: Any,
    far: Any,
    words: Any,
    room: Any,
    w: Any,
) -> Any:
    """Load pairs of neighbouring pixels as 32-bit words for voxels ``w .. w + 3``.

    ``upper`` and ``under`` are read at ``near[w]``, ``back`` and ``back_under`` at ``far[w]``; they are written to
    ``words[w]``, ``words[room + w]`` and so on. This takes half the loads of single pixels and one store for four.
    """
    word, quad = ir.IntType(32), ir.VectorType(ir.IntType(32), 4)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [
            context.make_array(signature.args[k])(context, builder, arguments[k]).data
            for k in range(7)
        ]
        room, w = arguments[7:]
        places = [[builder.add(w, ir.IntType(64)(v)) for v in range(4)]] * 2
        places = [
            [
                builder.zext(
                    builder.load(builder.gep(arrays[4 + far], [place])), ir.IntType(64)
                )
                for place in places[far]
            ]
            for far in range(2)
        ]
        for k in range(4):
            cells = ir.Constant(quad, ir.Undefined)
            for v in range(4):
                pixel = builder.gep(arrays[k], [places[k // 2][v]])
                loaded = builder.load(builder.bitcast(pixel, word.as_pointer()))
                loaded.align = 2
                cells = builder.insert_element(cells, loaded, word(v))
            target = builder.gep(
                arrays[6], [builder.add(w, builder.mul(room, ir.IntType(64)(k)))]
            )
            builder.store(cells, builder.bitcast(target, quad.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(
        upper, under, back, back_under, near, far, words, room, w
    ), generate


load_cells = cast(Callable[..., None], intrinsic(_cells_intrinsic))
along_one, along_two, along_four = (
    cast(Callable[..., None], intrinsic(_along_intrinsic(pieces)))
    for pieces in (1, 2, MOST_PIECES)
)
turn = cast(
    Callable[[F32, np.uint64, np.uint64, F32, np.uint64, np.uint64], None],
    intrinsic(_turn_intrinsic),
)
prefetch = cast(
    Callable[[NDArray[Any], np.uint64], None], intrinsic(_prefetch_intrinsic)
)
fence = cast(Callable[[], None], intrinsic(_fence_intrinsic))
