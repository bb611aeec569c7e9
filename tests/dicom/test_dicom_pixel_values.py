"""Pixels of one frame: what can be decoded, masked, sign-extended and inverted, and what is cut short."""

from __future__ import annotations

import struct
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from raw_dicom import (
    BIG,
    EXPLICIT,
    IMPLICIT,
    J2K,
    NATIVE,
    RLE,
    dicom,
    encapsulated,
    image,
    image_of,
    item,
    mr,
    rle,
    rle16,
    sequence_end,
)

from spine_engine.dicom import pixels
from spine_engine.dicom.elements import walk
from spine_engine.dicom.header import WANTED, read_image
from spine_engine.errors import Reason, StudyError

JPEG8, JPEG12, LOSSLESS, SV1 = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70))
JPEG_LS = "1.2.840.10008.1.2.4.80"


def read(syntax: str = EXPLICIT, **changes: Any) -> list[NDArray[Any] | Reason]:
    """The pixels of each declared frame of a file, or why there are none."""
    walked = walk(dicom(mr(**changes), syntax), WANTED)
    assert walked.pixel_data is not None
    found = pixels.frames(read_image(walked), walked.pixel_data)
    return [one.reason if isinstance(one, StudyError) else np.array(one) for one in found]


def one(syntax: str = EXPLICIT, **changes: Any) -> NDArray[Any]:
    (values,) = read(syntax, **changes)
    assert isinstance(values, np.ndarray), values
    return values


# --- what can be decoded ----------------------------------------------------------------------------------------------


def decodable(**changes: Any) -> Reason | None:
    try:
        pixels.check_decodable(image_of(**changes))
    except StudyError as error:
        return error.reason
    return None


@pytest.mark.parametrize(
    ("bits", "sound"),
    [
        ((16, 12, 11), True),
        ((8, 8, 7), True),
        ((16, 16, 15), True),
        ((32, 16, 15), True),
        ((32, 12, 31), True),
        ((16, 12, 15), True),
        ((16, 1, 0), True),
        ((12, 12, 11), False),
        ((1, 1, 0), False),
        ((24, 12, 11), False),
        ((64, 16, 15), False),
        ((16, 0, 0), False),
        ((32, 17, 16), False),
        ((16, 12, 10), False),
        ((16, 12, 16), False),
        ((8, 8, 8), False),
    ],
)
def test_bits(bits: tuple[int, int, int], sound: bool) -> None:
    allocated, stored, high = bits
    expected = None if sound else Reason.CORRUPT_PIXELS
    assert decodable(BitsAllocated=allocated, BitsStored=stored, HighBit=high) is expected


@pytest.mark.parametrize(("rows", "columns"), [(0, 6), (8, 0), (None, 6)])
def test_a_matrix_of_nothing(rows: int | None, columns: int) -> None:
    assert decodable(Rows=rows, Columns=columns, PixelData=b"") is Reason.CORRUPT_PIXELS


@pytest.mark.parametrize("size", [1, 2])
def test_a_matrix_of_little(size: int) -> None:
    assert decodable(Rows=size, Columns=size, PixelData=b"") is None


READ = ("", ".1", ".2", ".1.99", ".5", *(f".4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)))
OTHERS = (".1.98", ".4.52", ".4.92", ".4.100", ".4.102", ".4.103", ".4.106", ".4.110", ".6.1", ".7.1")


@pytest.mark.parametrize(("end", "known"), [*((end, True) for end in READ), *((end, False) for end in OTHERS)])
def test_transfer_syntaxes(end: str, known: bool) -> None:
    syntax = "1.2.840.10008.1.2" + end
    data = dicom(mr(), syntax if syntax in NATIVE else EXPLICIT, said=syntax)
    header = read_image(walk(data, WANTED))
    assert (header.transfer_syntax, header.rows) == (syntax, 8)
    if known:
        assert pixels.check_decodable(header) is None
        return
    with pytest.raises(StudyError) as caught:
        pixels.check_decodable(header)
    assert caught.value.reason is Reason.UNSUPPORTED_TRANSFER_SYNTAX


# --- native -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
@pytest.mark.parametrize("allocated", [8, 16, 32])
def test_words_of_any_size_and_order(syntax: str, allocated: int) -> None:
    kind = {8: np.uint8, 16: np.uint16, 32: np.uint32}[allocated]
    stored = min(allocated, 12)
    values = (image(2) % (1 << stored)).astype(kind)
    data = ("OB", values.tobytes()) if allocated == 8 else values
    bits = {"BitsAllocated": allocated, "BitsStored": stored, "HighBit": stored - 1}
    np.testing.assert_array_equal(one(syntax, PixelData=data, **bits), values)


def test_bytes_in_big_endian_words_are_swapped() -> None:
    """PS3.5 8.1.1: pixels of one byte in OW lie two in a word; in OB, and in odd numbers, as they are."""
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    values = np.arange(48, dtype=np.uint8).reshape(8, 6)
    swapped = values.reshape(-1, 2)[:, ::-1].tobytes()
    np.testing.assert_array_equal(one(BIG, PixelData=("OW", swapped), **bits), values)
    np.testing.assert_array_equal(one(BIG, PixelData=("OB", values.tobytes()), **bits), values)
    odd = np.arange(45, dtype=np.uint8).reshape(9, 5)
    np.testing.assert_array_equal(one(BIG, PixelData=("OW", odd.tobytes()), Rows=9, Columns=5, **bits), odd)


def test_frames_follow_one_another() -> None:
    frames = read(NumberOfFrames=3, PixelData=np.stack([image(i) for i in range(3)]))
    for i, found in enumerate(frames):
        np.testing.assert_array_equal(found, image(i))
    assert len(frames) == 3


@pytest.mark.parametrize(("missing", "whole"), [(0, 3), (1, 2), (96, 2), (97, 1), (288, 0)])
def test_a_frame_that_is_not_wholly_there_is_corrupt(missing: int, whole: int) -> None:
    """Nothing is made up in its place; the frames before it stand."""
    data = np.stack([image(i) for i in range(3)]).tobytes()
    walked = walk(dicom(mr(NumberOfFrames=3, PixelData=data))[: -missing or None], WANTED)
    assert walked.pixel_data is not None
    frames = list(pixels.frames(read_image(walked), walked.pixel_data))
    for i, found in enumerate(frames):
        if i < whole:
            np.testing.assert_array_equal(found, image(i))
        else:
            assert isinstance(found, StudyError)
            assert found.reason is Reason.CORRUPT_PIXELS
    assert len(frames) == 3


def test_a_length_that_is_too_short_for_the_matrix() -> None:
    assert read(PixelData=bytes(94)) == [Reason.CORRUPT_PIXELS]
    assert read(PixelData=b"") == [Reason.CORRUPT_PIXELS]


@pytest.mark.parametrize(("length", "whole"), [(96, True), (95, False), (94, False)])
def test_what_follows_the_pixels_is_none(length: int, whole: bool) -> None:
    """A length that is too short is not made up for with other bytes of the file."""
    data = (
        dicom(mr(PixelData=None)) + b"\xe0\x7f\x10\0OW\0\0" + struct.pack("<L", length) + image(0).tobytes() + bytes(99)
    )
    walked = walk(data, WANTED)
    assert walked.pixel_data is not None
    (found,) = pixels.frames(read_image(walked), walked.pixel_data)
    assert isinstance(found, np.ndarray) is whole


def test_more_pixels_than_declared_are_left_alone() -> None:
    np.testing.assert_array_equal(one(PixelData=image(1).tobytes() + bytes(500)), image(1))


def test_native_pixels_of_undefined_length_are_corrupt() -> None:
    walked = walk(dicom(mr(PixelData=encapsulated(image(0).tobytes())), RLE, said=EXPLICIT), WANTED)
    assert walked.pixel_data is not None
    assert walked.pixel_data.encapsulated
    (found,) = pixels.frames(read_image(walked), walked.pixel_data)
    assert isinstance(found, StudyError)
    assert found.reason is Reason.CORRUPT_PIXELS


# --- stored values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allocated", [8, 16, 32])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("stored", [1, 7, 8, 10, 12, 15, 16])
@pytest.mark.parametrize("shift", [0, 3])
def test_stored_bits(allocated: int, signed: bool, inverted: bool, stored: int, shift: int) -> None:
    """Every value of the corners of the stored range, with other bits set all around them, as arithmetic says."""
    if stored + shift > allocated:
        stored = allocated - shift
    values = np.array([0, 1, (1 << stored) - 1, (1 << stored) - 2, 1 << stored - 1, (1 << stored - 1) - 1]) % (
        1 << stored
    )
    raw = np.resize(values << shift, 48).astype(np.uint64)
    dirt = ((1 << allocated) - 1) & ~(((1 << stored) - 1) << shift)
    raw[::2] |= np.uint64(dirt)
    data = raw.astype({8: np.uint8, 16: np.uint16, 32: np.uint32}[allocated])
    expected = np.resize(values, 48).astype(int)
    if signed:
        expected = np.where(expected >= 1 << stored - 1, expected - (1 << stored), expected)
    if inverted:
        expected = (-1 if signed else (1 << stored) - 1) - expected
    found = one(
        BitsAllocated=allocated, BitsStored=stored, HighBit=stored + shift - 1, PixelRepresentation=int(signed),
        PhotometricInterpretation="MONOCHROME1" if inverted else "MONOCHROME2",
        PixelData=("OB", data.tobytes()) if allocated == 8 else data,
    )  # fmt: skip
    assert found.dtype == (np.int16 if signed else np.uint16)
    np.testing.assert_array_equal(found.ravel(), expected)


# --- encapsulated -----------------------------------------------------------------------------------------------------


def coded(syntax: str, values: NDArray[Any]) -> bytes:
    encode: dict[str, Any] = {
        RLE: rle16,
        J2K: lambda a: imagecodecs.jpeg2k_encode(a, level=0, codecformat="j2k", bitspersample=12),
        JPEG_LS: imagecodecs.jpegls_encode,
        SV1: lambda a: imagecodecs.ljpeg_encode(a, bitspersample=12),
    }
    return bytes(encode[syntax](values))


STREAMS = (J2K, JPEG_LS, SV1)


@pytest.mark.parametrize("syntax", [RLE, *STREAMS])
@pytest.mark.parametrize("table", [False, True])
def test_frames_of_fragments(syntax: str, table: bool) -> None:
    frames = [coded(syntax, image(i, 16, 12)) for i in range(3)]
    size = {"Rows": 16, "Columns": 12}
    np.testing.assert_array_equal(one(syntax, PixelData=encapsulated(frames[0], table=table), **size), image(0, 16, 12))
    found = read(syntax, PixelData=encapsulated(*frames, table=table), NumberOfFrames=3, **size)
    assert len(found) == 3
    for i, values in enumerate(found):
        np.testing.assert_array_equal(values, image(i, 16, 12))


@pytest.mark.parametrize("syntax", [RLE, *STREAMS])
def test_one_frame_in_several_fragments(syntax: str) -> None:
    frame = coded(syntax, image(4, 16, 12))
    frame += b"\0" * (len(frame) % 2)
    data = item(b"") + item(frame[:20]) + item(frame[20:40]) + item(frame[40:]) + sequence_end()
    np.testing.assert_array_equal(one(syntax, PixelData=data, Rows=16, Columns=12), image(4, 16, 12))


@pytest.mark.parametrize("syntax", STREAMS)
def test_a_code_stream_without_its_end_is_not_decoded(syntax: str) -> None:
    """A decoder would fill the rest with something: a stream ends with FF D9 (ISO 10918-1, 14495-1, 15444-1)."""
    whole = coded(syntax, image(4, 16, 12))
    assert whole.endswith(b"\xff\xd9")
    size = {"Rows": 16, "Columns": 12}
    for end in (b"", b"\0", b"\0\0\0"):
        np.testing.assert_array_equal(one(syntax, PixelData=encapsulated(whole + end), **size), image(4, 16, 12))
    for cut in (whole[:-2], whole[:-1], whole[:-2] + b"\0\0", whole[: len(whole) // 2], whole + b"\x01\x01"):
        assert read(syntax, PixelData=encapsulated(cut), **size) == [Reason.CORRUPT_PIXELS]


@pytest.mark.parametrize("syntax", STREAMS)
@pytest.mark.parametrize(("rows", "columns"), [(16, 13), (15, 12), (17, 12), (12, 16)])
def test_a_code_stream_of_another_size_is_not_decoded(
    syntax: str, rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded before its size was compared")

    monkeypatch.setitem(pixels._DECODERS, syntax, never)
    data = encapsulated(coded(syntax, image(4, 16, 12)))
    assert read(syntax, PixelData=data, Rows=rows, Columns=columns) == [Reason.CORRUPT_PIXELS]


def segment(marker: int, body: bytes = b"") -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def sof(marker: int, rows: int = 300, columns: int = 200, components: int = 1) -> bytes:
    return segment(marker, struct.pack(">BHHB", 12, rows, columns, components) + bytes(3 * components))


@pytest.mark.parametrize("marker", [0xF7, 0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF])
def test_the_size_stands_in_the_frame_header(marker: int) -> None:
    stream = b"\xff\xd8" + segment(0xE0, bytes(14)) + segment(0xC4, bytes(30)) + sof(marker)
    assert pixels._declared_shape(stream) == (300, 200)
    assert pixels._declared_shape(b"\xff\xd8\xff" + stream[2:]) == (300, 200), "a marker may follow fill bytes"
    assert pixels._declared_shape(b"\xff\xd8" + sof(marker, components=3)) is None


@pytest.mark.parametrize("marker", [0xC4, 0xC8, 0xCC, 0xDB, 0xDA, 0xF8, 0xE1])
def test_other_markers_are_stepped_over(marker: int) -> None:
    assert pixels._declared_shape(b"\xff\xd8" + sof(marker, 1, 1) + sof(0xC3)) == (300, 200)
    assert pixels._declared_shape(b"\xff\xd8" + sof(marker, 1, 1)) is None


@pytest.mark.parametrize("stream", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\xff\xd8" + bytes(40), sof(0xC3)[:9]])
def test_streams_that_declare_nothing(stream: bytes) -> None:
    assert pixels._declared_shape(stream) is None


@pytest.mark.parametrize(("components", "shape"), [(1, (300, 200)), (3, None)])
def test_a_jpeg_2000_size_is_counted_from_its_offset(components: int, shape: tuple[int, int] | None) -> None:
    """ISO 15444-1 A.5.1: Xsiz and Ysiz include XOsiz and YOsiz."""
    siz = struct.pack(">HHH8LH", 0xFF51, 41, 0, 207, 305, 7, 5, 207, 305, 0, 0, components)
    assert pixels._declared_shape(b"\xff\x4f" + siz + bytes(9)) == shape
    assert pixels._declared_shape(b"jP2 boxes" + b"\xff\x4f" + siz + bytes(9)) == shape


def test_a_colour_stream_is_no_slice() -> None:
    colour = imagecodecs.jpeg2k_encode(np.zeros((16, 12, 3), np.uint8), level=0, codecformat="j2k")
    assert read(J2K, PixelData=encapsulated(colour), Rows=16, Columns=12) == [Reason.CORRUPT_PIXELS]


# --- RLE --------------------------------------------------------------------------------------------------------------


def test_rle_of_each_depth() -> None:
    eight = (image(3) & 255).astype(np.uint8)
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    np.testing.assert_array_equal(one(RLE, PixelData=encapsulated(rle(eight.tobytes())), **bits), eight)
    zeros = bytes(48)
    wide = rle(zeros, zeros, (image(3) >> 8).astype(np.uint8).tobytes(), eight.tobytes())
    np.testing.assert_array_equal(one(RLE, PixelData=encapsulated(wide), BitsAllocated=32), image(3))


@pytest.mark.parametrize("planes", [1, 3, 4])
def test_rle_of_another_depth_than_the_header_says(planes: int) -> None:
    assert read(RLE, PixelData=encapsulated(rle(*[bytes(48)] * planes))) == [Reason.CORRUPT_PIXELS]


@pytest.mark.parametrize("missing", [1, 24, 48])
def test_rle_of_too_few_pixels(missing: int) -> None:
    high, low = bytes(48), image(2).astype(np.uint8).tobytes()
    assert read(RLE, PixelData=encapsulated(rle(high, low[:-missing]))) == [Reason.CORRUPT_PIXELS]


def test_one_bad_frame_costs_that_frame() -> None:
    frames = [rle16(image(0)), rle(bytes(48)), rle16(image(2))]
    first, bad, last = read(RLE, PixelData=encapsulated(*frames, table=True), NumberOfFrames=3)
    np.testing.assert_array_equal(first, image(0))
    assert bad is Reason.CORRUPT_PIXELS
    np.testing.assert_array_equal(last, image(2))


def test_fewer_frames_than_declared() -> None:
    first, *rest = read(RLE, PixelData=encapsulated(rle16(image(0))), NumberOfFrames=3)
    np.testing.assert_array_equal(first, image(0))
    assert rest == [Reason.CORRUPT_PIXELS] * 2


def test_a_decoder_out_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pixels.imagecodecs, "dicomrle_decode", exhausted)
    with pytest.raises(MemoryError):
        read(RLE, PixelData=encapsulated(rle16(image(0))))


# --- truncation -------------------------------------------------------------------------------------------------------

FILES = {syntax: dicom(mr(5, PixelData=encapsulated(coded(syntax, image(5)))), syntax) for syntax in (RLE, *STREAMS)}
FILES |= {syntax: dicom(mr(5), syntax) for syntax in (EXPLICIT, IMPLICIT, BIG, "1.2.840.10008.1.2.1.99")}


@settings(max_examples=50, deadline=None)
@given(syntax=st.sampled_from(sorted(FILES)), share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_gives_its_pixels_or_none(syntax: str, share: float) -> None:
    """No crash and never other pixels, whatever the encoding."""
    data = FILES[syntax]
    try:
        walked = walk(data[: int(share * len(data))], WANTED)
        header = read_image(walked)
        if walked.dataset.damaged or walked.pixel_data is None:
            return
        pixels.check_decodable(header)
        found = list(pixels.frames(header, walked.pixel_data))
    except StudyError:
        return
    for values in found:
        if not isinstance(values, StudyError):
            np.testing.assert_array_equal(values, image(5))
