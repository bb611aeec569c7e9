"""Stored pixel values of one frame: decoded, masked, sign-extended, MONOCHROME1 inverted.

imagecodecs decodes (it releases the interpreter lock); pydicom splits encapsulated fragments into frames where they are
more than one fragment of one frame. No decoder runs before the size that its own code stream declares has been compared
with the header's. Values that need no change stay where they are: a native slice is first copied into its stack.
"""

from __future__ import annotations

import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from spine_engine.dicom.elements import (
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    PixelData,
)
from spine_engine.dicom.header import ImageHeader
from spine_engine.dicom.whole import is_whole_jpeg, is_whole_jpeg_2000, without_padding
from spine_engine.errors import Reason, StudyError

NATIVE: Final = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED})
RLE: Final = "1.2.840.10008.1.2.5"


def _decode_lossless(frame: bytes) -> NDArray[Any]:
    """Decode lossless JPEG: by the faster decoder, or the one that knows more of the format."""
    try:
        array: NDArray[Any] = imagecodecs.ljpeg_decode(frame)
    except imagecodecs.LjpegError:
        array = imagecodecs.jpegsof3_decode(frame)
    return array


_DECODERS: Final[dict[str, Any]] = {
    "1.2.840.10008.1.2.4.50": imagecodecs.jpeg8_decode,  # JPEG baseline
    "1.2.840.10008.1.2.4.51": imagecodecs.jpeg8_decode,  # JPEG extended, 12 bits
    "1.2.840.10008.1.2.4.57": _decode_lossless,  # JPEG lossless
    "1.2.840.10008.1.2.4.70": _decode_lossless,  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_decode,
    "1.2.840.10008.1.2.4.81": imagecodecs.jpegls_decode,
    "1.2.840.10008.1.2.4.90": imagecodecs.jpeg2k_decode,
    "1.2.840.10008.1.2.4.91": imagecodecs.jpeg2k_decode,
    "1.2.840.10008.1.2.4.201": imagecodecs.htj2k_decode,
    "1.2.840.10008.1.2.4.202": imagecodecs.htj2k_decode,
    "1.2.840.10008.1.2.4.203": imagecodecs.htj2k_decode,
}
JPEG_2000: Final = frozenset(
    uid
    for uid, decode in _DECODERS.items()
    if decode in (imagecodecs.jpeg2k_decode, imagecodecs.htj2k_decode)
)
SUPPORTED: Final = NATIVE | {RLE} | set(_DECODERS)
_RLE_SLACK: Final = 64
"""Room for the padding that encoders leave after a segment, bytes."""

_VIEW_FACTOR: Final = 2
"""A view keeps the whole file in memory: a file of more than this many times its pixels has them copied out."""
_FRAGMENT: Final = struct.Struct("<4sL").unpack_from
_ITEM: Final = b"\xfe\xff\x00\xe0"
_SEQUENCE_END: Final = b"\xfe\xff\xdd\xe0"

Pixels = NDArray[np.uint16] | NDArray[np.int16]


def check_decodable(image: ImageHeader) -> None:
    """Raise ``StudyError`` when nothing here can decode the image's pixels."""
    if image.transfer_syntax not in SUPPORTED:
        raise StudyError(Reason.UNSUPPORTED_TRANSFER_SYNTAX)
    bits = (image.bits_allocated, image.bits_stored, image.high_bit)
    sound = (
        bits[0] in (8, 16, 32)
        and 1 <= bits[1] <= 16
        and bits[1] - 1 <= bits[2] < bits[0]
    )
    if not sound or min(image.rows, image.columns) < 1:
        raise StudyError(
            Reason.CORRUPT_PIXELS, f"bits {bits}, matrix {image.rows} x {image.columns}"
        )


def frames(image: ImageHeader, pixel_data: PixelData) -> Iterator[Pixels | StudyError]:
    """Yield the stored values ``(R, C)`` of each declared frame, or why that frame cannot be had.

    They may be a read-only view of ``pixel_data.buffer`` where that holds little else.
    """
    source = (
        _encapsulated(image, pixel_data)
        if pixel_data.encapsulated
        else _native(image, pixel_data)
    )
    count = 0
    try:
        for raw in source:
            if count == image.declared_frames:
                return
            yield raw if isinstance(raw, StudyError) else _stored_values(raw, image)
            count += 1
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - a damaged offset table or fragment list raises many kinds of errors
        pass
    for _ in range(count, image.declared_frames):
        yield StudyError(Reason.CORRUPT_PIXELS, "the pixel data is cut short")


def _native(image: ImageHeader, pixel_data: PixelData) -> Iterator[NDArray[Any]]:
    """Yield the raw frames of native pixel data; a frame that is not wholly there ends them."""
    pixels = image.rows * image.columns
    size = image.bits_allocated // 8
    big = image.transfer_syntax == EXPLICIT_BIG
    dtype = np.dtype(f"{'>' if big else '<'}u{size}")
    end = min(pixel_data.start + pixel_data.length, len(pixel_data.buffer))
    in_place = (
        len(pixel_data.buffer) <= _VIEW_FACTOR * pixels * size * image.declared_frames
    )
    for start in range(pixel_data.start, end, pixels * size):
        if start + pixels * size > end:
            return
        raw = np.frombuffer(pixel_data.buffer, dtype, pixels, start)
        if big and size == 1 and pixel_data.vr == b"OW" and pixels % 2 == 0:
            raw = raw.view("<u2").byteswap().view(dtype)
        yield (raw if in_place else raw.copy()).reshape(image.rows, image.columns)


def _encapsulated(
    image: ImageHeader, pixel_data: PixelData
) -> Iterator[NDArray[Any] | StudyError]:
    """Yield the decoded frames of encapsulated pixel data (PS3.5 A.4)."""
    if image.transfer_syntax in NATIVE:
        raise StudyError(Reason.CORRUPT_PIXELS)
    data = pixel_data.buffer[pixel_data.start : pixel_data.start + pixel_data.length]
    only = _only_fragment(data)
    for frame in (
        (only,)
        if only is not None
        else _frames_of_fragments(bytes(data), image.declared_frames)
    ):
        try:
            yield _decoded(frame, image)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - every codec has an error type of its own
            yield StudyError(Reason.CORRUPT_PIXELS, "a frame cannot be decoded")


def _only_fragment(data: memoryview) -> bytes | None:
    """Return the one fragment of ``data``, behind an offset table of at most one entry; None when it is otherwise."""
    if len(data) < 16:
        return None
    table_item, table_length = _FRAGMENT(data, 0)
    at = 8 + table_length
    if table_item != _ITEM or table_length not in (0, 4) or at + 8 > len(data):
        return None
    item, length = _FRAGMENT(data, at)
    stop = at + 8 + length
    if (
        item != _ITEM
        or stop + 4 > len(data)
        or bytes(data[stop : stop + 4]) != _SEQUENCE_END
    ):
        return None
    return bytes(data[at + 8 : stop])


def _frames_of_fragments(data: bytes, declared_frames: int) -> Iterator[bytes]:
    """Yield the encoded frames of any sequence of fragments."""
    from pydicom.encaps import (
        generate_frames,
    )  # here, because importing it takes longer than reading a study

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings may repeat header values
        yield from generate_frames(data, number_of_frames=declared_frames)


def _decoded(frame: bytes, image: ImageHeader) -> NDArray[Any]:
    """Decode one encapsulated frame to ``(R, C)``."""
    shape = (image.rows, image.columns)
    if image.transfer_syntax == RLE:
        size = image.bits_allocated // 8
        if struct.unpack_from("<L", frame)[0] != size:
            raise ValueError("segments and bits allocated disagree")
        pixels = shape[0] * shape[1]
        values = bytearray(pixels * size + _RLE_SLACK)
        if (
            len(imagecodecs.dicomrle_decode(frame, f"<u{size}", out=values))
            < pixels * size
        ):
            raise ValueError("too few pixels")
        return np.frombuffer(values, f"<u{size}", pixels).reshape(shape)
    frame = without_padding(frame)
    if _declared_shape(frame, image.transfer_syntax) != shape or not frame.endswith(
        b"\xff\xd9"
    ):
        raise ValueError("the code stream is cut short or of another size")
    jpeg_2000 = image.transfer_syntax in JPEG_2000
    if not (is_whole_jpeg_2000(frame) if jpeg_2000 else is_whole_jpeg(frame)):
        raise ValueError("the code stream ends before its pixels, or after")
    with _complaints_raised():
        array: NDArray[Any] = _DECODERS[image.transfer_syntax](frame)
    if array.shape != shape or array.dtype.kind not in "ui" or array.dtype.itemsize > 4:
        raise ValueError("not one sample a pixel")
    return array


@contextmanager
def _complaints_raised() -> Iterator[None]:
    """Raise what a decoder raises inside a callback, where Python could only print it: OpenJPH's errors."""
    complaints: list[Any] = []
    before = sys.unraisablehook
    sys.unraisablehook = complaints.append
    try:
        yield
    finally:
        sys.unraisablehook = before
    if complaints:
        raise ValueError("the decoder complains")


def _declared_shape(frame: bytes, transfer_syntax: str) -> tuple[int, int] | None:
    """Return (rows, columns) as a code stream of one component declares them; None where it is no such code stream.

    JPEG 2000 (PS3.5 A.4.4; ISO 15444-1 A.5.1) begins with SOC and SIZ, JPEG and JPEG-LS with SOI and have a SOF.
    """
    if transfer_syntax in JPEG_2000:
        if not frame.startswith(b"\xff\x4f\xff\x51"):
            return None
        width, height, left, top = struct.unpack_from(">4L", frame, 8)
        return (
            (height - top, width - left)
            if struct.unpack_from(">H", frame, 40)[0] == 1
            else None
        )
    if not frame.startswith(b"\xff\xd8"):
        return None
    at = 2
    while at + 9 < len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], struct.unpack_from(">H", frame, at + 2)[0]
        if marker == 0xF7 or (
            0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        ):
            rows, columns, components = struct.unpack_from(">HHB", frame, at + 5)
            return (rows, columns) if components == 1 else None
        at += 1 if marker == 0xFF else 2 + length
    return None


def _stored_values(raw: NDArray[Any], image: ImageHeader) -> Pixels:
    """Cut the stored bits out, extend the sign and invert MONOCHROME1 about the stored range (PS3.3 C.7.6.3.1)."""
    bits = image.bits_stored
    shift = image.high_bit + 1 - bits
    if raw.dtype == np.uint16 and not shift and not image.monochrome1:
        as_stored = raw.view(np.int16) if image.signed else raw
        if bits == 16 or _within(as_stored, bits - image.signed):
            return as_stored
    values = (raw >> shift if shift else raw).astype(np.uint16)
    if bits < 16:
        values &= (1 << bits) - 1
    if not image.signed:
        return (
            np.subtract((1 << bits) - 1, values, dtype=np.uint16)
            if image.monochrome1
            else values
        )
    signed = values.view(np.int16)
    if bits < 16:
        signed = (values ^ (1 << (bits - 1))).view(np.int16) - np.int16(1 << (bits - 1))
    return np.subtract(-1, signed, dtype=np.int16) if image.monochrome1 else signed


def _within(values: Pixels, bits: int) -> bool:
    """Tell whether all values are below ``2**bits`` and, where signed, not below ``-2**bits``."""
    return bool(
        values.max() < 1 << bits
        and (values.dtype == np.uint16 or values.min() >= -(1 << bits))
    )
