"""Whether a code stream is whole: it ends where its own structure says, neither before nor after.

Decoders make up pixels for what is missing, and leave what is too much, without a word. Here nothing is decoded:
Huffman codes are only counted (ISO 10918-1 F.1.2, H.1.2), tile-parts of JPEG 2000 only measured (ISO 15444-1 A.4.2).
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

I16 = NDArray[np.int16]
Table = tuple[I16, I16]

_COUNTED_FRAMES: Final = {0xC0: False, 0xC1: False, 0xC3: True}
"""SOF0 and SOF1, sequential Huffman; SOF3, lossless Huffman. Of others the end is not known without decoding."""
_AC: Final = 0x10
"""Marks the class of a table of AC codes in its name."""
_NO_CODES: Final = (np.empty(0, np.int16), np.empty(0, np.int16))
_RESTART: Final = re.compile(rb"\xff[\xd0-\xd7]")
_BEYOND: Final = b"\xff" * 8
_EOI: Final = b"\xff\xd9"
_PADDING: Final = b"\x00\xff "
"""What writers put behind the last marker to fill a fragment."""


def without_padding(frame: bytes) -> bytes:
    """Return a code stream without the bytes that fill its fragment."""
    return frame.rstrip(_PADDING)


def is_whole_jpeg(frame: bytes) -> bool:
    """Tell whether the scan of a JPEG of one component holds just the codes of its pixels.

    True as well where that cannot be counted: progressive and arithmetic JPEG, JPEG-LS, several scans.
    """
    tables: dict[int, Table] = {}
    lossless: bool | None = None
    size = (0, 0)
    interval = 0
    at = 2
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        (length,) = struct.unpack_from(">H", frame, at + 2)
        body = frame[at + 4 : at + 2 + length]
        at += 2 + length
        if marker in _COUNTED_FRAMES:
            lossless = _COUNTED_FRAMES[marker]
            size = struct.unpack_from(">HH", body, 1)
        elif marker == 0xC4:
            tables |= _tables(body)
        elif marker == 0xDD:
            (interval,) = struct.unpack(">H", body)
        elif marker == 0xDA:
            if lossless is None or body[0] != 1:
                return True
            dc = tables[body[2] >> 4]
            ac = _NO_CODES if lossless else tables[_AC | body[2] & 15]
            side = 1 if lossless else 8
            count = -(-size[0] // side) * -(-size[1] // side)
            return _holds(frame[at : -len(_EOI)], (*dc, *ac), count, interval)
    return lossless is None


def _holds(
    scan: bytes, tables: tuple[I16, I16, I16, I16], count: int, interval: int
) -> bool:
    """Tell whether a scan holds the codes of ``count`` pixels or blocks, ``interval`` between two restart markers."""
    from spine_engine.dicom.kernels import (
        count_bits,
    )  # numba takes longer to load than most studies to read

    parts = _RESTART.split(scan) if interval else [scan]
    if len(parts) != (-(-count // interval) if interval else 1):
        return False
    for n, part in enumerate(parts):
        if part.count(b"\xff") != part.count(b"\xff\x00"):  # another marker
            return False
        codes = part.replace(b"\xff\x00", b"\xff")
        padded = np.frombuffer(codes + _BEYOND, np.uint8)
        inside = min(interval, count - n * interval) if interval else count
        used = int(count_bits(padded, 8 * len(codes), *tables, inside))
        if not 8 * len(codes) - 8 < used <= 8 * len(codes):
            return False
    return True


@lru_cache(maxsize=64)
def _tables(body: bytes) -> dict[int, Table]:
    """Return the Huffman tables of a DHT segment by class and name, as its bytes have them (ISO 10918-1 C.2).

    A table is two lookups to ``length << 8 | symbol``, -1 where no code begins so: from the next 10 bits, which nearly
    all codes fit into, and from the next 16.
    """
    tables: dict[int, Table] = {}
    at = 0
    while at + 17 <= len(body):
        full = np.full(1 << 16, -1, np.int16)
        name = body[at]
        counts = body[at + 1 : at + 17]
        at += 17
        code = 0
        for length, count in enumerate(counts, 1):
            for symbol in body[at : at + count]:
                first = code << (16 - length)
                full[first : first + (1 << (16 - length))] = length << 8 | symbol
                code += 1
            at += count
            code <<= 1
        short = full[:: 1 << 6].copy()
        short[(short >> 8) > 10] = -1
        tables[name] = (short, full)
    return tables


def is_whole_jpeg_2000(frame: bytes) -> bool:
    """Tell whether the tile-parts of a JPEG 2000 code stream follow one another up to its end marker."""
    at = 2
    while at + 4 <= len(frame) and frame[at : at + 2] != b"\xff\x90":
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    while at + 12 <= len(frame) and frame[at : at + 2] == b"\xff\x90":
        (length,) = struct.unpack_from(">L", frame, at + 6)
        if length == 0:  # the last one, up to the end
            return frame.endswith(_EOI)
        at += length
    return frame[at:] == _EOI
