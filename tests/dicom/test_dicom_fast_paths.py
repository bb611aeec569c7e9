"""What makes reading quick changes nothing: each short cut against the way round it."""

from __future__ import annotations

import os
import random
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_builder import (
    EXPLICIT,
    IMPLICIT,
    RLE,
    T1,
    T2,
    datasets,
    enhanced,
    image,
    write,
    write_series,
)
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence

from spine_engine.dicom import (
    Limits,
    WorkUnit,
    discover,
    elements,
    files,
    pixels,
    read_unit,
)
from spine_engine.dicom.elements import ParsedFile, parse
from spine_engine.dicom.header import WANTED, read_image
from spine_engine.errors import StudyError


def with_nested(ds: Dataset, index: int) -> None:
    inner, outer = Dataset(), Dataset()
    inner.ReferencedSOPInstanceUID, inner.StudyInstanceUID = "1.2", "9.9.9"
    outer.ReferencedImageSequence = Sequence([inner, inner])
    ds.ReferencedImageSequence = Sequence([outer, inner])
    ds.add_new(0x00291010, "UN", bytes(40))
    ds.ImageComments = "y" * index


def seen(walked: ParsedFile) -> tuple[Any, ...]:
    place = walked.pixel_data and (
        walked.pixel_data.start,
        walked.pixel_data.length,
        walked.pixel_data.encapsulated,
    )
    return (
        str(walked.dataset),
        str(walked.meta),
        walked.transfer_syntax,
        place,
        str(walked.refusal),
    )


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, RLE, "1.2.840.10008.1.2.2"])
def test_the_quick_walk_sees_what_the_thorough_one_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    damage = random.Random(3)
    cases = []
    for path in write_series(tmp_path, T2.but(syntax=syntax, change=with_nested)):
        data = path.read_bytes()
        cases += [
            data,
            data.replace(b"\xe0\x7f\x10\0OW", b"\xe0\x7f\x10\0US"),
            data[:-2] + b"\xfe\xff\x0d\xe0US\2\0\0\0",
        ]
        cases.append(data.replace(b"\x08\0\x60\0CS", b"\xfe\xff\x0d\xe0CS"))
        for _ in range(60):
            broken = bytearray(
                data[: damage.choice((len(data), damage.randrange(140, len(data))))]
            )
            for _ in range(damage.choice((1, 3))):
                broken[damage.randrange(132, min(len(broken), 1300))] = damage.choice(
                    (0, 0xFE, 0xFF, 0x10, 0xE0)
                )
            cases.append(bytes(broken))
    quick = [seen(parse(data, WANTED)) for data in cases]
    monkeypatch.setattr(
        elements, "_SHORT_LENGTHS", 1 << 40
    )  # no limit is that high: every element goes the long way
    assert quick == [seen(parse(data, WANTED)) for data in cases]


def test_the_quick_walk_keeps_the_header_limit(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a", datasets(T2.but(extra={"ImageComments": "x" * 5_000}))[0]
    )
    assert (
        parse(path.read_bytes(), WANTED, Limits(header_bytes=4_000)).refusal is not None
    )


def item(value: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<L", len(value)) + value


END = b"\xfe\xff\xdd\xe0\0\0\0\0"


@pytest.mark.parametrize(
    ("data", "quick"),
    [
        (encapsulate([b"one frame!"], has_bot=False) + END, True),
        (encapsulate([b"one frame!"], has_bot=True) + END, True),
        (item(b"") + item(b"") + END, True),
        (encapsulate([b"two fragments!!!"], fragments_per_frame=2) + END, False),
        (encapsulate([b"first.", b"second"], has_bot=True) + END, False),
        (item(b"") + item(b"no end"), False),
        (item(b"") + item(b"cut short")[:-2], False),
        (item(b"") + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + END, False),
        (item(b"odd") + item(b"table.") + END, False),
        (b"", False),
    ],
    ids=[
        "no table",
        "table",
        "empty",
        "two fragments",
        "two frames",
        "no end",
        "cut",
        "undefined",
        "odd table",
        "none",
    ],
)
def test_a_fragment_that_is_a_frame_is_pydicoms_frame(data: bytes, quick: bool) -> None:
    found = pixels._only_fragment(memoryview(data))
    assert (found is not None) == quick
    if found is not None:
        assert list(generate_frames(data, number_of_frames=1)) == [found]


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dirty", [False, True])
def test_values_in_place_are_the_values(
    tmp_path: Path, bits: int, signed: bool, dirty: bool
) -> None:
    """The extremes of the stored range, with clean and with dirty unused bits, as arithmetic says they must be."""
    low, high = (
        (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    )
    wanted = np.resize(np.array([low, low + 1, 0, high - 1, high]), (32, 28))
    stored = (
        (wanted % (1 << bits) + (0x3000 if dirty and bits == 12 else 0))
        if dirty
        else wanted % (1 << 16)
    )
    ds = datasets(T2)[0]
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, int(signed)
    ds.PixelData = stored.astype("<u2").tobytes()
    walked = parse(write(tmp_path / "a", ds).read_bytes(), WANTED)
    assert walked.pixel_data is not None
    (values,) = pixels.frames(read_image(walked), walked.pixel_data)
    assert isinstance(values, np.ndarray)
    assert values.dtype == (np.int16 if signed else np.uint16)
    np.testing.assert_array_equal(values, wanted)


@pytest.mark.parametrize(("junk", "in_place"), [(0, True), (100_000, False)])
def test_a_view_never_keeps_a_large_file_for_a_few_pixels(
    tmp_path: Path, junk: int, in_place: bool
) -> None:
    (path,) = write_series(tmp_path, T2.but(offsets_mm=(0.0,), rows=128, columns=128))
    data = path.read_bytes() + bytes(junk)
    walked = parse(data, WANTED)
    assert walked.pixel_data is not None
    (values,) = pixels.frames(read_image(walked), walked.pixel_data)
    assert isinstance(values, np.ndarray)
    assert np.shares_memory(values, np.frombuffer(data, np.uint8)) == in_place
    np.testing.assert_array_equal(values, image(0, 128, 128))


def test_a_study_owns_its_pixels(tmp_path: Path) -> None:
    write_series(tmp_path, T2)
    (unit,) = (found for found in discover(tmp_path) if isinstance(found, WorkUnit))
    stack = read_unit(tmp_path, unit).studies[0].series[0].stacks[0]
    assert stack.pixels.flags.writeable
    assert stack.pixels.flags.owndata
    assert stack.axes.flags.writeable


@pytest.mark.parametrize("other_study", [False, True])
def test_each_file_is_opened_once_and_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_study: bool
) -> None:
    write_series(tmp_path, T2, [f"a{i}" for i in range(8)])
    write_series(
        tmp_path,
        T1.but(study="1.2.9" if other_study else "1.2.3"),
        [f"b{i}" for i in range(8)],
    )
    write(tmp_path / "c", enhanced(T1.but(uid="1.2.3.7")))
    (tmp_path / "d").write_bytes(b"no DICOM")
    (unit,) = (found for found in discover(tmp_path) if isinstance(found, WorkUnit))
    (tmp_path / "b0").unlink()
    opened: Counter[str] = Counter()
    really = os.open

    def counted(path: str, flags: int) -> int:
        opened[Path(path).name] += 1
        return really(path, flags)

    monkeypatch.setattr(files.os, "open", counted)
    before = open_descriptors()
    reading = read_unit(tmp_path, unit)
    assert len(reading.split) == (2 if other_study else 0)
    assert {file.path for file in reading.refused} == {"b0", "d"}
    assert opened == Counter(Path(file.path).name for file in unit.files)
    assert open_descriptors() == before


def test_files_opened_ahead_are_closed_when_reading_ends_early(tmp_path: Path) -> None:
    paths = [str(path) for path in write_series(tmp_path, T2)]
    before = open_descriptors()
    opened = files.open_ahead([*paths, str(tmp_path)])
    first = next(opened)
    assert not isinstance(first, StudyError)
    assert first.read() == Path(paths[0]).read_bytes()
    assert len(open_descriptors()) == len(before) + len(paths) - 1
    opened.close()  # type: ignore[attr-defined]
    assert open_descriptors() == before


def open_descriptors() -> set[str]:
    """The descriptors of this process, but for the one that lists them."""
    return {
        name
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{name}")
    }
