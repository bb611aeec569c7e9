"""Counting the codes of a JPEG's scan (ISO 10918-1 F.1.2, H.1.2); see ``whole``."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
I16 = NDArray[np.int16]


@njit(nogil=True, cache=True)
def count_bits(
    codes: U8, most: int, dc: I16, dc_long: I16, ac: I16, ac_long: I16, count: int
) -> int:
    """Return how many bits the codes of ``count`` pixels or blocks take; more than ``most`` where they do not end well.

    Args:
        codes: entropy-coded bytes without stuffing, with 8 more behind them.
        most: how many bits they are.
        dc, dc_long, ac, ac_long: ``(1024,)`` and ``(65536,)`` lookups; ``ac`` is empty for lossless JPEG.
        count: how many pixels (lossless) or blocks of 8 x 8 there are.
    """
    at = 0
    for _ in range(count):
        left = 64
        while left > 0:
            if at > most:
                return at
            byte = at >> 3
            word = np.uint32(codes[byte]) << 24 | np.uint32(codes[byte + 1]) << 16
            word |= np.uint32(codes[byte + 2]) << 8 | np.uint32(codes[byte + 3])
            ahead = (word << np.uint32(at & 7)) & np.uint32(0xFFFFFFFF)
            first = left == 64
            found = (dc if first else ac)[ahead >> np.uint32(22)]
            if found < 0:
                found = (dc_long if first else ac_long)[ahead >> np.uint32(16)]
                if found < 0:
                    return most + 1
            symbol = found & 255
            at += found >> 8
            if first:
                left = 63 if ac.size else 0
                at += 0 if symbol == 16 else symbol
            elif symbol & 15:
                left -= (symbol >> 4) + 1
                at += symbol & 15
            else:
                left = left - 16 if symbol == 0xF0 else 0
    return at if left == 0 else most + 1
