"""Each limit refuses its file before memory is taken, and says so; the rest of the study is used."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from dicom_builder import EXPLICIT, T2, datasets, enhanced, write, write_series

from spine_engine.dicom import Limits, UnitReading, WorkUnit, discover, read_unit
from spine_engine.dicom.elements import parse
from spine_engine.dicom.files import read_file
from spine_engine.dicom.header import WANTED, check_is_image, read_image
from spine_engine.errors import Reason, StudyError


def read(root: Path, limits: Limits) -> UnitReading:
    (unit,) = (found for found in discover(root) if isinstance(found, WorkUnit))
    return read_unit(root, unit, limits=limits)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(file_bytes=5_000),
        Limits(element_bytes=2_900),
        Limits(header_bytes=2_900),
        Limits(matrix=40),
        Limits(frames=3),
        Limits(frame_bytes=3_000),
    ],
    ids=["file", "element", "header", "matrix", "frames", "frame"],
)
def test_limit_refuses_one_file(tmp_path: Path, limits: Limits) -> None:
    write_series(tmp_path, T2)
    large = datasets(T2.but(uid="1.2.3.9", rows=48, columns=48))[0]
    large.NumberOfFrames = 4
    large.PixelData = large.PixelData * 4
    large.add_new(0x00291010, "OB", bytes(3_000))
    write(tmp_path / "large.dcm", large)
    reading = read(tmp_path, limits)
    assert [(file.path, file.reason) for file in reading.refused] == [
        ("large.dcm", Reason.TOO_LARGE)
    ]
    slices = {
        series.path: series.slices
        for series in reading.studies[0].series
        if series.reason is None
    }
    assert slices == {".": 8}


def test_the_same_file_is_read_within_the_limits(tmp_path: Path) -> None:
    write_series(
        tmp_path,
        T2.but(change=lambda ds, i: ds.add_new(0x00291010, "OB", bytes(3_000))),
    )
    reading = read(tmp_path, Limits())
    assert reading.refused == ()
    assert reading.studies[0].series[0].slices == 8


def test_a_declared_giant_takes_no_memory(tmp_path: Path) -> None:
    (path,) = write_series(
        tmp_path, T2.but(offsets_mm=(0.0,), extra={"Rows": 65000, "Columns": 65000})
    )
    data = read_file(path)
    tracemalloc.start()
    with pytest.raises(StudyError) as caught:
        read_image(parse(data, WANTED))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.reason is Reason.TOO_LARGE
    assert peak < 1_000_000


def test_more_sequence_items_than_frames_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "e.dcm", enhanced(T2), EXPLICIT)
    with pytest.raises(StudyError) as caught:
        check_is_image(parse(path.read_bytes(), WANTED, Limits(frames=7)))
    assert caught.value.reason is Reason.TOO_LARGE
