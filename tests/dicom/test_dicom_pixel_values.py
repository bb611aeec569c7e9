"""Pixels of one frame: what can be decoded at all, and native values masked, sign-extended and inverted."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from raw_dicom import (
    BIG,
    EXPLICIT,
    IMPLICIT,
    NATIVE,
    RLE,
    dicom,
    encapsulated,
    image,
    image_of,
    mr,
    only_pixels,
    pixels_of,
)

from spine_engine.dicom import pixels
from spine_engine.dicom.elements import parse
from spine_engine.dicom.header import WANTED, read_image
from spine_engine.errors import Reason, StudyError

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
    assert (
        decodable(BitsAllocated=allocated, BitsStored=stored, HighBit=high) is expected
    )


@pytest.mark.parametrize(("rows", "columns"), [(0, 6), (8, 0), (None, 6)])
def test_a_matrix_of_nothing(rows: int | None, columns: int) -> None:
    assert decodable(Rows=rows, Columns=columns, PixelData=b"") is Reason.CORRUPT_PIXELS


@pytest.mark.parametrize("size", [1, 2])
def test_a_matrix_of_little(size: int) -> None:
    assert decodable(Rows=size, Columns=size, PixelData=b"") is None


READ = (
    "",
    ".1",
    ".2",
    ".1.99",
    ".5",
    *(f".4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
)
OTHERS = (
    ".1.98",
    ".4.52",
    ".4.92",
    ".4.100",
    ".4.102",
    ".4.103",
    ".4.106",
    ".4.110",
    ".6.1",
    ".7.1",
)


@pytest.mark.parametrize(
    ("end", "known"),
    [*((end, True) for end in READ), *((end, False) for end in OTHERS)],
)
def test_transfer_syntaxes(end: str, known: bool) -> None:
    syntax = "1.2.840.10008.1.2" + end
    data = dicom(mr(), syntax if syntax in NATIVE else EXPLICIT, said=syntax)
    header = read_image(parse(data, WANTED))
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
    np.testing.assert_array_equal(only_pixels(syntax, PixelData=data, **bits), values)


def test_bytes_in_big_endian_words_are_swapped() -> None:
    """PS3.5 8.1.1: pixels of one byte in OW lie two in a word; in OB, and in odd numbers, as they are."""
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    values = np.arange(48, dtype=np.uint8).reshape(8, 6)
    swapped = values.reshape(-1, 2)[:, ::-1].tobytes()
    np.testing.assert_array_equal(
        only_pixels(BIG, PixelData=("OW", swapped), **bits), values
    )
    np.testing.assert_array_equal(
        only_pixels(BIG, PixelData=("OB", values.tobytes()), **bits), values
    )
    odd = np.arange(45, dtype=np.uint8).reshape(9, 5)
    np.testing.assert_array_equal(
        only_pixels(BIG, PixelData=("OW", odd.tobytes()), Rows=9, Columns=5, **bits),
        odd,
    )


def test_frames_follow_one_another() -> None:
    frames = pixels_of(
        NumberOfFrames=3, PixelData=np.stack([image(i) for i in range(3)])
    )
    for i, found in enumerate(frames):
        np.testing.assert_array_equal(found, image(i))
    assert len(frames) == 3


@pytest.mark.parametrize(
    ("missing", "whole"), [(0, 3), (1, 2), (96, 2), (97, 1), (288, 0)]
)
def test_a_frame_that_is_not_wholly_there_is_corrupt(missing: int, whole: int) -> None:
    """Nothing is made up in its place; the frames before it stand."""
    data = np.stack([image(i) for i in range(3)]).tobytes()
    walked = parse(
        dicom(mr(NumberOfFrames=3, PixelData=data))[: -missing or None], WANTED
    )
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
    assert pixels_of(PixelData=bytes(94)) == [Reason.CORRUPT_PIXELS]
    assert pixels_of(PixelData=b"") == [Reason.CORRUPT_PIXELS]


@pytest.mark.parametrize(("length", "whole"), [(96, True), (95, False), (94, False)])
def test_what_follows_the_pixels_is_none(length: int, whole: bool) -> None:
    """A length that is too short is not made up for with other bytes of the file."""
    data = (
        dicom(mr(PixelData=None))
        + b"\xe0\x7f\x10\0OW\0\0"
        + struct.pack("<L", length)
        + image(0).tobytes()
        + bytes(99)
    )
    walked = parse(data, WANTED)
    assert walked.pixel_data is not None
    (found,) = pixels.frames(read_image(walked), walked.pixel_data)
    assert isinstance(found, np.ndarray) is whole


def test_more_pixels_than_declared_are_left_alone() -> None:
    np.testing.assert_array_equal(
        only_pixels(PixelData=image(1).tobytes() + bytes(500)), image(1)
    )


def test_native_pixels_of_undefined_length_are_corrupt() -> None:
    walked = parse(
        dicom(mr(PixelData=encapsulated(image(0).tobytes())), RLE, said=EXPLICIT),
        WANTED,
    )
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
def test_stored_bits(
    allocated: int, signed: bool, inverted: bool, stored: int, shift: int
) -> None:
    """Every value of the corners of the stored range, with other bits set all around them, as arithmetic says."""
    if stored + shift > allocated:
        stored = allocated - shift
    values = np.array(
        [
            0,
            1,
            (1 << stored) - 1,
            (1 << stored) - 2,
            1 << stored - 1,
            (1 << stored - 1) - 1,
        ]
    ) % (1 << stored)
    raw = np.resize(values << shift, 48).astype(np.uint64)
    dirt = ((1 << allocated) - 1) & ~(((1 << stored) - 1) << shift)
    raw[::2] |= np.uint64(dirt)
    data = raw.astype({8: np.uint8, 16: np.uint16, 32: np.uint32}[allocated])
    expected = np.resize(values, 48).astype(int)
    if signed:
        expected = np.where(
            expected >= 1 << stored - 1, expected - (1 << stored), expected
        )
    if inverted:
        expected = (-1 if signed else (1 << stored) - 1) - expected
    found = only_pixels(
        BitsAllocated=allocated, BitsStored=stored, HighBit=stored + shift - 1, PixelRepresentation=int(signed),
        PhotometricInterpretation="MONOCHROME1" if inverted else "MONOCHROME2",
        PixelData=("OB", data.tobytes()) if allocated == 8 else data,
    )  # fmt: skip
    assert found.dtype == (np.int16 if signed else np.uint16)
    np.testing.assert_array_equal(found.ravel(), expected)


@pytest.mark.parametrize(
    ("stored", "signed", "first", "last"),
    [(12, 0, 4095, 4048), (16, 0, 65535, 65488), (12, 1, -1, -48)],
)
def test_inversion_is_about_the_stored_range(
    stored: int, signed: int, first: int, last: int
) -> None:
    """Whatever values a picture holds: here 0 to 47 only."""
    found = only_pixels(
        PixelData=np.arange(48, dtype=np.uint16), BitsStored=stored, HighBit=stored - 1, PixelRepresentation=signed,
        PhotometricInterpretation="MONOCHROME1",
    )  # fmt: skip
    assert (found.ravel()[0], found.ravel()[-1]) == (first, last)
