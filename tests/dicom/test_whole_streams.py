"""Code streams that end before their pixels, or after, are found without decoding; whole ones pass, padded or not."""

import struct

import imagecodecs
import numpy as np
import pytest

from spine_engine.dicom import pixels
from spine_engine.dicom.whole import is_whole_jpeg, is_whole_jpeg_2000, without_padding

PICTURE = (
    900 * np.outer(np.sin(np.linspace(0, 9, 90)), np.cos(np.linspace(0, 7, 70)))
    + np.random.default_rng(0).normal(1000, 20, (90, 70))
).clip(0, 4095).astype(np.uint16)  # fmt: skip
EIGHT_BITS = (PICTURE >> 4).astype(np.uint8)
JPEG = {
    "lossless 16": imagecodecs.ljpeg_encode(PICTURE, bitspersample=16),
    "lossless 8": imagecodecs.ljpeg_encode(EIGHT_BITS, bitspersample=8),
    **{
        f"predictor {n}": imagecodecs.jpeg_encode(PICTURE, lossless=True, predictor=n)
        for n in range(1, 8)
    },
    "baseline": imagecodecs.jpeg8_encode(EIGHT_BITS, level=95),
    "baseline, coarse": imagecodecs.jpeg8_encode(EIGHT_BITS, level=20),
    "extended": imagecodecs.jpeg8_encode(PICTURE, level=95, bitspersample=12),
}
JPEG_2000 = {
    "reversible": imagecodecs.jpeg2k_encode(
        PICTURE, codecformat="j2k", reversible=True, level=0
    ),
    "high throughput": imagecodecs.htj2k_encode(PICTURE),
}
EVERY = [(name, stream, is_whole_jpeg) for name, stream in JPEG.items()] + [
    (name, stream, is_whole_jpeg_2000) for name, stream in JPEG_2000.items()
]


@pytest.mark.parametrize(
    ("name", "stream", "is_whole"), EVERY, ids=[name for name, *_ in EVERY]
)
def test_a_whole_stream_passes_and_one_cut_anywhere_does_not(name, stream, is_whole):
    assert is_whole(bytes(stream))
    for share in (0.3, 0.6, 0.9, 0.99):
        assert not is_whole(bytes(stream)[: int(len(stream) * share)] + b"\xff\xd9"), (
            share
        )


@pytest.mark.parametrize("name", JPEG)
def test_a_hole_and_left_over_codes_are_found(name):
    stream = bytearray(JPEG[name])
    first, last = int(len(stream) * 0.6), int(len(stream) * 0.8)
    assert not is_whole_jpeg(
        bytes(stream[:first]) + bytes(last - first) + bytes(stream[last:])
    )
    assert not is_whole_jpeg(bytes(stream[:-2]) + b"\x00\x00\xff\xd9")


@pytest.mark.parametrize(
    "padding", [b"", b"\xff", b"\x00", b" ", b"\xff" * 7, b"\x00\xff\x00"]
)
def test_padding_is_no_part_of_a_stream(padding):
    for _, stream, is_whole in EVERY:
        assert without_padding(bytes(stream) + padding) == bytes(stream)
        assert is_whole(without_padding(bytes(stream) + padding))


def by_hand(scan, interval=0, rows=4, columns=4):
    """A lossless JPEG whose only code is one bit, 0, for a pixel like its neighbour."""
    table = bytes([0]) + bytes([1, *[0] * 15]) + bytes([0])
    parts = [
        (0xC3, struct.pack(">BHHB", 8, rows, columns, 1) + bytes([1, 0x11, 0])),
        (0xC4, table),
        *([(0xDD, struct.pack(">H", interval))] if interval else []),
        (0xDA, bytes([1, 1, 0, 1, 0, 0])),
    ]
    header = b"".join(
        bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body
        for marker, body in parts
    )
    return b"\xff\xd8" + header + scan + b"\xff\xd9"


@pytest.mark.parametrize(
    ("scan", "interval", "whole"),
    [
        (b"\x00\x00", 0, True),
        (b"\x00", 0, False),
        (b"\x00\x00\x00", 0, False),
        (b"\x80\x00", 0, False),  # 1 begins no code
        (b"\x00\xff\xd0\x00", 8, True),
        (b"\x00\xff\xd0\x00", 0, False),
        (b"\x00\xff\xd0\x00\x00", 8, False),
        (b"\x00\x00\xff\xd0", 8, False),
        (b"\x00\xff\xd0\x00\xff\xd1\x00", 8, False),
        (b"\x00\xff\xd0\x00\xff\xd1\x00", 6, True),  # 6, 6 and 4 pixels
    ],
)
def test_codes_are_counted_from_restart_to_restart(scan, interval, whole):
    assert is_whole_jpeg(by_hand(scan, interval)) is whole


def test_what_cannot_be_counted_passes():
    progressive = bytearray(by_hand(b""))
    progressive[3] = 0xC2
    assert is_whole_jpeg(bytes(progressive))
    assert is_whole_jpeg(imagecodecs.jpegls_encode(PICTURE))


def test_a_last_tile_part_without_a_length_goes_to_the_end():
    stream = bytearray(JPEG_2000["reversible"])
    at = stream.find(b"\xff\x90")
    stream[at + 6 : at + 10] = bytes(4)
    assert is_whole_jpeg_2000(bytes(stream))
    assert not is_whole_jpeg_2000(bytes(stream[:-2]))


def test_what_a_decoder_complains_of_in_a_callback_is_raised():
    class Complaining:
        def __del__(self):
            raise RuntimeError("ojph error")

    with pytest.raises(ValueError, match="complains"), pixels._complaints_raised():
        Complaining()
