"""Pixels behind a code stream: frames and fragments, sizes and ends that streams declare, RLE, and cuts anywhere."""

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
    RLE,
    dicom,
    encapsulated,
    image,
    item,
    mr,
    only_pixels,
    pixels_of,
    rle,
    rle16,
    sequence_end,
)

from spine_engine.dicom import pixels
from spine_engine.dicom.elements import parse
from spine_engine.dicom.header import WANTED, read_image
from spine_engine.errors import Reason, StudyError

SV1 = "1.2.840.10008.1.2.4.70"
JPEG_LS = "1.2.840.10008.1.2.4.80"


def coded(syntax: str, values: NDArray[Any]) -> bytes:
    encode: dict[str, Any] = {
        RLE: rle16,
        J2K: lambda a: imagecodecs.jpeg2k_encode(
            a, level=0, codecformat="j2k", bitspersample=12
        ),
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
    np.testing.assert_array_equal(
        only_pixels(syntax, PixelData=encapsulated(frames[0], table=table), **size),
        image(0, 16, 12),
    )
    found = pixels_of(
        syntax, PixelData=encapsulated(*frames, table=table), NumberOfFrames=3, **size
    )
    assert len(found) == 3
    for i, values in enumerate(found):
        np.testing.assert_array_equal(values, image(i, 16, 12))


@pytest.mark.parametrize("syntax", [RLE, *STREAMS])
def test_one_frame_in_several_fragments(syntax: str) -> None:
    frame = coded(syntax, image(4, 16, 12))
    frame += b"\0" * (len(frame) % 2)
    data = (
        item(b"")
        + item(frame[:20])
        + item(frame[20:40])
        + item(frame[40:])
        + sequence_end()
    )
    np.testing.assert_array_equal(
        only_pixels(syntax, PixelData=data, Rows=16, Columns=12), image(4, 16, 12)
    )


@pytest.mark.parametrize(
    ("entries", "alone"), [(0, True), (1, True), (2, False), (3, False)]
)
def test_a_fragment_behind_a_table_of_several_frames_is_not_taken_alone(
    entries: int, alone: bool
) -> None:
    data = item(bytes(4 * entries)) + item(b"frame!") + sequence_end()
    assert pixels._only_fragment(memoryview(data)) == (b"frame!" if alone else None)


@pytest.mark.parametrize("syntax", STREAMS)
def test_a_code_stream_without_its_end_is_not_decoded(syntax: str) -> None:
    """A decoder would fill the rest with something: a stream ends with FF D9 (ISO 10918-1, 14495-1, 15444-1)."""
    whole = coded(syntax, image(4, 16, 12))
    assert whole.endswith(b"\xff\xd9")
    size = {"Rows": 16, "Columns": 12}
    for end in (b"", b"\0", b"\0\0\0"):
        np.testing.assert_array_equal(
            only_pixels(syntax, PixelData=encapsulated(whole + end), **size),
            image(4, 16, 12),
        )
    for cut in (
        whole[:-2],
        whole[:-1],
        whole[:-2] + b"\0\0",
        whole[: len(whole) // 2],
        whole + b"\x01\x01",
    ):
        assert pixels_of(syntax, PixelData=encapsulated(cut), **size) == [
            Reason.CORRUPT_PIXELS
        ]


@pytest.mark.parametrize("syntax", STREAMS)
@pytest.mark.parametrize(("rows", "columns"), [(16, 13), (15, 12), (17, 12), (12, 16)])
def test_a_code_stream_of_another_size_is_not_decoded(
    syntax: str, rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded before its size was compared")

    monkeypatch.setitem(pixels._DECODERS, syntax, never)
    data = encapsulated(coded(syntax, image(4, 16, 12)))
    assert pixels_of(syntax, PixelData=data, Rows=rows, Columns=columns) == [
        Reason.CORRUPT_PIXELS
    ]


JPEG = "1.2.840.10008.1.2.4.70"


def segment(marker: int, body: bytes = b"") -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def sof(marker: int, rows: int = 300, columns: int = 200, components: int = 1) -> bytes:
    return segment(
        marker,
        struct.pack(">BHHB", 12, rows, columns, components) + bytes(3 * components),
    )


@pytest.mark.parametrize(
    "marker",
    [
        0xF7,
        0xC0,
        0xC1,
        0xC2,
        0xC3,
        0xC5,
        0xC6,
        0xC7,
        0xC9,
        0xCA,
        0xCB,
        0xCD,
        0xCE,
        0xCF,
    ],
)
def test_the_size_stands_in_the_frame_header(marker: int) -> None:
    stream = (
        b"\xff\xd8" + segment(0xE0, bytes(14)) + segment(0xC4, bytes(30)) + sof(marker)
    )
    assert pixels._declared_shape(stream, JPEG) == (300, 200)
    assert pixels._declared_shape(b"\xff\xd8\xff" + stream[2:], JPEG) == (300, 200), (
        "a marker may follow fill bytes"
    )
    assert pixels._declared_shape(b"\xff\xd8" + sof(marker, components=3), JPEG) is None


@pytest.mark.parametrize("marker", [0xC4, 0xC8, 0xCC, 0xDB, 0xDA, 0xF8, 0xE1])
def test_other_markers_are_stepped_over(marker: int) -> None:
    assert pixels._declared_shape(
        b"\xff\xd8" + sof(marker, 1, 1) + sof(0xC3), JPEG
    ) == (300, 200)
    assert pixels._declared_shape(b"\xff\xd8" + sof(marker, 1, 1), JPEG) is None


@pytest.mark.parametrize(
    "stream",
    [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\xff\xd8" + bytes(40), sof(0xC3)[:9]],
)
def test_streams_that_declare_nothing(stream: bytes) -> None:
    assert pixels._declared_shape(stream, JPEG) is None


@pytest.mark.parametrize(("components", "shape"), [(1, (300, 200)), (3, None)])
def test_a_jpeg_2000_size_is_counted_from_its_offset(
    components: int, shape: tuple[int, int] | None
) -> None:
    """ISO 15444-1 A.5.1: Xsiz and Ysiz include XOsiz and YOsiz."""
    siz = struct.pack(
        ">HHH8LH", 0xFF51, 41, 0, 207, 305, 7, 5, 207, 305, 0, 0, components
    )
    assert pixels._declared_shape(b"\xff\x4f" + siz + bytes(9), J2K) == shape
    assert pixels._declared_shape(b"\xff\xd8" + siz + bytes(9), J2K) is None, (
        "a JPEG 2000 header inside a JPEG"
    )
    assert (
        pixels._declared_shape(b"jP2 boxes" + b"\xff\x4f" + siz + bytes(9), J2K) is None
    ), "a JP2 file, which DICOM has not"


def test_a_colour_stream_is_no_slice() -> None:
    colour = imagecodecs.jpeg2k_encode(
        np.zeros((16, 12, 3), np.uint8), level=0, codecformat="j2k"
    )
    assert pixels_of(J2K, PixelData=encapsulated(colour), Rows=16, Columns=12) == [
        Reason.CORRUPT_PIXELS
    ]


# --- RLE --------------------------------------------------------------------------------------------------------------


def test_rle_of_each_depth() -> None:
    eight = (image(3) & 255).astype(np.uint8)
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    np.testing.assert_array_equal(
        only_pixels(RLE, PixelData=encapsulated(rle(eight.tobytes())), **bits), eight
    )
    zeros = bytes(48)
    wide = rle(
        zeros, zeros, (image(3) >> 8).astype(np.uint8).tobytes(), eight.tobytes()
    )
    np.testing.assert_array_equal(
        only_pixels(RLE, PixelData=encapsulated(wide), BitsAllocated=32), image(3)
    )


@pytest.mark.parametrize("planes", [1, 3, 4])
def test_rle_of_another_depth_than_the_header_says(planes: int) -> None:
    assert pixels_of(RLE, PixelData=encapsulated(rle(*[bytes(48)] * planes))) == [
        Reason.CORRUPT_PIXELS
    ]


def test_rle_of_two_bytes_where_the_header_says_one() -> None:
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    for planes in (2, 3):
        assert pixels_of(
            RLE, PixelData=encapsulated(rle(*[bytes(48)] * planes)), **bits
        ) == [Reason.CORRUPT_PIXELS]
        zero = encapsulated(rle(bytes(48), segments=planes))
        assert pixels_of(RLE, PixelData=zero, **bits) == [Reason.CORRUPT_PIXELS]


@pytest.mark.parametrize("missing", [1, 24, 48])
def test_rle_of_too_few_pixels(missing: int) -> None:
    high, low = bytes(48), image(2).astype(np.uint8).tobytes()
    assert pixels_of(RLE, PixelData=encapsulated(rle(high, low[:-missing]))) == [
        Reason.CORRUPT_PIXELS
    ]


def test_one_bad_frame_costs_that_frame() -> None:
    frames = [rle16(image(0)), rle(bytes(48)), rle16(image(2))]
    first, bad, last = pixels_of(
        RLE, PixelData=encapsulated(*frames, table=True), NumberOfFrames=3
    )
    np.testing.assert_array_equal(first, image(0))
    assert bad is Reason.CORRUPT_PIXELS
    np.testing.assert_array_equal(last, image(2))


def test_fewer_frames_than_declared() -> None:
    first, *rest = pixels_of(
        RLE, PixelData=encapsulated(rle16(image(0))), NumberOfFrames=3
    )
    np.testing.assert_array_equal(first, image(0))
    assert rest == [Reason.CORRUPT_PIXELS] * 2


def test_a_decoder_out_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pixels.imagecodecs, "dicomrle_decode", exhausted)
    with pytest.raises(MemoryError):
        pixels_of(RLE, PixelData=encapsulated(rle16(image(0))))


# --- truncation -------------------------------------------------------------------------------------------------------

FILES = {
    syntax: dicom(mr(5, PixelData=encapsulated(coded(syntax, image(5)))), syntax)
    for syntax in (RLE, *STREAMS)
}
FILES |= {
    syntax: dicom(mr(5), syntax)
    for syntax in (EXPLICIT, IMPLICIT, BIG, "1.2.840.10008.1.2.1.99")
}


@settings(max_examples=50, deadline=None)
@given(syntax=st.sampled_from(sorted(FILES)), share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_gives_its_pixels_or_none(
    syntax: str, share: float
) -> None:
    """No crash and never other pixels, whatever the encoding."""
    data = FILES[syntax]
    try:
        walked = parse(data[: int(share * len(data))], WANTED)
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
