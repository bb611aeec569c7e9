"""Each limit acts one step beyond its number and not one step before, whatever the encoding."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_dicom import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    J2K,
    RLE,
    dataset,
    dicom,
    element,
    encapsulated,
    image,
    item,
    mr,
    read_files,
    rle16,
    series,
)

from spine_engine.dicom import Limits, RefusedFile, WorkUnit, discover
from spine_engine.dicom import files as files_module
from spine_engine.dicom.elements import parse
from spine_engine.dicom.files import read_file
from spine_engine.dicom.header import WANTED, check_is_image, read_image
from spine_engine.errors import Reason, StudyError

SYNTAXES = (EXPLICIT, IMPLICIT, BIG, DEFLATED, RLE, J2K)


def outcome(data: bytes, **limits: int) -> Reason | None:
    """Why a file is refused under limits, None when its header is read."""
    try:
        walked = parse(data, WANTED, Limits(**limits))
        check_is_image(walked)
        read_image(walked, Limits(**limits))
    except StudyError as error:
        return error.reason
    return None


def stored(syntax: str, **changes: Any) -> bytes:
    """A slice in a transfer syntax; what its encapsulated pixels are does not matter to the header."""
    if syntax in (RLE, J2K):
        changes.setdefault("PixelData", encapsulated(b"any frame!"))
    return dicom(mr(**changes), syntax)


def test_the_limits_are_those_of_the_documentation() -> None:
    limits = Limits()
    assert limits.file_bytes == 2 * 1024**3
    assert limits.header_bytes == 64 * 1024**2
    assert limits.element_bytes == 64 * 1024**2
    assert limits.nesting == 64
    assert limits.matrix == 16_384
    assert limits.frames == 10_000
    assert limits.frame_bytes == 256 * 1024**2
    assert limits.study_bytes == 4 * 1024**3
    assert limits.study_files == 20_000
    assert limits.inflate_ratio == 200
    assert limits.peek_bytes == 256 * 1024
    assert (limits.file_s, limits.study_s) == (30.0, 300.0)


# --- header -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    ("inside", "outside", "changes"),
    [
        ({"matrix": 8}, {"matrix": 7}, {"Rows": 8, "Columns": 6}),
        ({"matrix": 8}, {"matrix": 7}, {"Rows": 6, "Columns": 8}),
        ({"frames": 3}, {"frames": 2}, {"NumberOfFrames": 3}),
        ({"frame_bytes": 96}, {"frame_bytes": 95}, {}),  # 8 x 6 pixels of 2 bytes
        (
            {"frame_bytes": 96},
            {"frame_bytes": 95},
            {"BitsAllocated": 8, "BitsStored": 8},
        ),  # decoded to 2 bytes
        ({"frame_bytes": 192}, {"frame_bytes": 191}, {"BitsAllocated": 32}),
        ({"frame_bytes": 288}, {"frame_bytes": 287}, {"SamplesPerPixel": 3}),
        ({"frame_bytes": 96}, {"frame_bytes": 95}, {"SamplesPerPixel": 0}),
    ],
    ids=[
        "rows",
        "columns",
        "frames",
        "frame",
        "8 bits",
        "32 bits",
        "colour",
        "no samples",
    ],
)
def test_declared_sizes(
    syntax: str,
    inside: dict[str, int],
    outside: dict[str, int],
    changes: dict[str, int],
) -> None:
    data = stored(syntax, **changes)
    assert outcome(data, **inside) is None
    assert outcome(data, **outside) is Reason.TOO_LARGE


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_default_matrix_and_frame(syntax: str) -> None:
    assert outcome(stored(syntax, Rows=16_384, PixelData=b"")) is None
    assert outcome(stored(syntax, Rows=16_385, PixelData=b"")) is Reason.TOO_LARGE
    assert outcome(stored(syntax, Rows=16_384, Columns=8_192, PixelData=b"")) is None
    assert (
        outcome(stored(syntax, Rows=16_384, Columns=8_193, PixelData=b""))
        is Reason.TOO_LARGE
    )
    assert outcome(stored(syntax, NumberOfFrames=10_001)) is Reason.TOO_LARGE


def test_the_default_number_of_frames() -> None:
    assert outcome(stored(RLE, NumberOfFrames=10_000)) is None


@pytest.mark.parametrize("last", ["short", "long"])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG, RLE])
def test_header(syntax: str, last: str) -> None:
    """The header ends where the pixel data begins, counted from the beginning of the file."""
    changes: dict[str, Any] = {"00291010": ("OB", bytes(200))} if last == "long" else {}
    data = stored(syntax, **changes)
    ends = data.index(struct.pack(">HH" if syntax == BIG else "<HH", 0x7FE0, 0x0010))
    assert outcome(data, header_bytes=ends) is None
    assert outcome(data, header_bytes=ends - 1) is Reason.TOO_LARGE


def test_a_header_is_counted_as_it_is_inflated() -> None:
    ends = dataset(mr()).index(b"\xe0\x7f\x10\x00")
    assert outcome(dicom(mr(), DEFLATED), header_bytes=ends) is None
    assert outcome(dicom(mr(), DEFLATED), header_bytes=ends - 1) is Reason.TOO_LARGE


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("vr", ["OB", "LO"])
def test_element(syntax: str, vr: str) -> None:
    data = stored(syntax, **{"00291010": (vr, bytes(98))})
    assert outcome(data, element_bytes=98) is None
    assert outcome(data, element_bytes=97) is Reason.TOO_LARGE


def test_an_element_of_an_item_counts_as_any_other() -> None:
    data = dicom(mr(ReferencedImageSequence=[{"00291010": ("OB", bytes(98))}]))
    assert outcome(data, element_bytes=200) is None
    assert outcome(data, element_bytes=97) is Reason.TOO_LARGE


def test_pixels_are_no_element() -> None:
    assert outcome(dicom(mr(Rows=100, Columns=100)), element_bytes=100) is None


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize(("nesting", "limits"), [(64, {}), (3, {"nesting": 3})])
def test_nesting(
    order: str, explicit: bool, undefined: bool, nesting: int, limits: dict[str, int]
) -> None:
    if order == ">" and not explicit:
        order = "<"  # there is no implicit big endian
    syntax = BIG if order == ">" else EXPLICIT if explicit else IMPLICIT
    for depth, expected in ((nesting, None), (nesting + 1, Reason.TOO_LARGE)):
        inner = b""
        for _ in range(depth):
            inner = sequence(inner, order, explicit, undefined)
        head, pixels = (
            dataset(mr(PixelData=None), syntax),
            dataset({"PixelData": image(0)}, syntax),
        )
        assert outcome(dicom({}, syntax) + head + inner + pixels, **limits) is expected


def sequence(inner: bytes, order: str, explicit: bool, undefined: bool) -> bytes:
    """RequestAttributesSequence (0040,0275) of one item."""
    if undefined:
        one = struct.pack(order + "HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner
        one += struct.pack(order + "HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    else:
        one = item(inner, order)
    return element(0x00400275, "SQ", one, order, explicit, undefined=undefined)


def test_items_of_a_sequence() -> None:
    groups = [
        {"PlanePositionSequence": [{"ImagePositionPatient": (0, 0, i)}]}
        for i in range(3)
    ]
    data = dicom(mr(PerFrameFunctionalGroupsSequence=groups))
    assert outcome(data, frames=3) is None
    assert outcome(data, frames=2) is Reason.TOO_LARGE


@pytest.mark.parametrize("over", [0, 1])
def test_inflation(over: int) -> None:
    """What grows by the limit's factor is read, what grows by more is not."""
    data = dicom(mr(PixelData=bytes(20_000), Rows=100, Columns=100), DEFLATED)
    small, large = (
        len(data) - data.index(b"1.2.840.10008.1.2.1.99") - 22,
        len(dataset(mr(PixelData=bytes(20_000)))),
    )
    factor = (
        large // small + 1 - over
    )  # the smallest that is enough, or the largest that is not
    assert factor > 10
    assert outcome(data, inflate_ratio=factor) is (Reason.TOO_LARGE if over else None)


def test_inflated_data_count_as_a_file() -> None:
    large = len(dataset(mr(PixelData=bytes(20_000), Rows=100, Columns=100)))
    data = dicom(mr(PixelData=bytes(20_000), Rows=100, Columns=100), DEFLATED)
    assert outcome(data, file_bytes=large + 1) is None
    assert outcome(data, file_bytes=large - 1) is Reason.TOO_LARGE


def test_deflated_data_that_do_not_inflate() -> None:
    data = dicom(mr(), DEFLATED)
    assert (
        outcome(data[: data.index(b"1.2.840.10008.1.2.1.99") + 22] + b"\xff" * 40)
        is Reason.CORRUPT_FILE
    )


# --- files ------------------------------------------------------------------------------------------------------------


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(dicom(mr()))
    size = path.stat().st_size
    assert read_file(path, Limits(file_bytes=size)) == dicom(mr())
    with pytest.raises(StudyError) as caught:
        read_file(path, Limits(file_bytes=size - 1))
    assert caught.value.reason is Reason.TOO_LARGE
    (found,) = discover(tmp_path, Limits(file_bytes=size))
    assert isinstance(found, WorkUnit)
    assert list(discover(tmp_path, Limits(file_bytes=size - 1))) == [
        RefusedFile("a", Reason.TOO_LARGE)
    ]


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    assert read_file(tmp_path / "a", first_bytes=10) == bytes(range(10))
    assert read_file(tmp_path / "a", first_bytes=1000) == bytes(range(100))


def test_a_read_that_comes_in_pieces_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system may answer with less than was asked for."""
    (tmp_path / "a").write_bytes(bytes(range(200)) * 3)
    really = files_module.os.read
    monkeypatch.setattr(
        files_module.os,
        "read",
        lambda descriptor, count: really(descriptor, min(count, 7)),
    )
    assert read_file(tmp_path / "a") == bytes(range(200)) * 3
    assert read_file(tmp_path / "a", first_bytes=33) == bytes(range(33))


def test_a_file_that_shrank_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(50))
    opened = next(files_module.open_ahead([str(tmp_path / "a")]))
    assert isinstance(opened, files_module.OpenFile)
    (tmp_path / "a").write_bytes(bytes(20))
    with pytest.raises(StudyError) as caught:
        opened.read()
    assert caught.value.reason is Reason.UNREADABLE


def test_a_file_that_cannot_be_read_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(bytes(50))

    def fail(descriptor: int, count: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files_module.os, "read", fail)
    with pytest.raises(StudyError) as caught:
        read_file(tmp_path / "a")
    assert caught.value.reason is Reason.UNREADABLE


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b""), Reason.NOT_AN_IMAGE),
        (lambda path: path.mkdir(), Reason.UNREADABLE),
        (lambda path: path.symlink_to("/etc/hostname"), Reason.NOT_A_REGULAR_FILE),
        (lambda path: files_module.os.mkfifo(path), Reason.NOT_A_REGULAR_FILE),
        (lambda path: None, Reason.UNREADABLE),
    ],
    ids=["empty", "folder", "link", "FIFO", "gone"],
)
def test_what_is_no_ordinary_file_is_not_read(
    tmp_path: Path, make: Callable[[Path], Any], reason: Reason
) -> None:
    make(tmp_path / "a")
    with pytest.raises(StudyError) as caught:
        read_file(tmp_path / "a")
    assert caught.value.reason is reason


# --- studies ----------------------------------------------------------------------------------------------------------


def reason_of(root: Path, files: dict[str, bytes], **limits: int) -> Reason | None:
    (study,) = read_files(root, files, Limits(**limits)).studies
    return study.reason


def test_files_of_a_study(tmp_path: Path) -> None:
    assert reason_of(tmp_path, series(), study_files=8) is None
    assert reason_of(tmp_path, series(), study_files=7) is Reason.TOO_LARGE


def test_bytes_of_a_study_as_files(tmp_path: Path) -> None:
    files = series()
    total = sum(map(len, files.values()))
    assert reason_of(tmp_path, files, study_bytes=total) is None
    assert reason_of(tmp_path, files, study_bytes=total - 1) is Reason.TOO_LARGE


@pytest.mark.parametrize("way", ["deflated", "RLE", "frames"])
def test_bytes_of_a_study_as_decoded_pixels(tmp_path: Path, way: str) -> None:
    """Two bytes a pixel, however little of a disk they take."""
    big = {"Rows": 64, "Columns": 64, "PixelData": np.zeros((64, 64), np.uint16)}
    if way == "deflated":
        files = {f"{i}": dicom(mr(i, **big), DEFLATED) for i in range(5)}
    elif way == "RLE":
        runs = b"".join(b"\x81\0" for _ in range(32))  # 32 runs of 128 zeros
        frame = np.array([2, 64, 128, *[0] * 13], "<u4").tobytes() + runs + runs
        files = {
            f"{i}": dicom(mr(i, **big | {"PixelData": encapsulated(frame)}), RLE)
            for i in range(5)
        }
    else:
        groups = [
            {"PlanePositionSequence": [{"ImagePositionPatient": (4 * i, 0, 0)}]}
            for i in range(5)
        ]
        five = big | {
            "NumberOfFrames": 5,
            "PixelData": np.zeros((5 * 64, 64), np.uint16),
        }
        files = {
            "one": dicom(mr(**five, PerFrameFunctionalGroupsSequence=groups), DEFLATED)
        }
    decoded = 5 * 64 * 64 * 2
    assert sum(map(len, files.values())) < decoded / 3
    assert reason_of(tmp_path, files, study_bytes=decoded) is None
    assert reason_of(tmp_path, files, study_bytes=decoded - 1) is Reason.TOO_LARGE


def test_an_rle_slice_of_the_helper_is_what_it_says(tmp_path: Path) -> None:
    files = {
        f"{i}": dicom(mr(i, PixelData=encapsulated(rle16(image(i)))), RLE)
        for i in range(5)
    }
    (study,) = read_files(tmp_path, files).studies
    np.testing.assert_array_equal(
        study.series[0].stacks[0].pixels, np.stack([image(i) for i in range(5)])
    )
