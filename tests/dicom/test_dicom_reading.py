"""Reading a unit: clocks, memory, several studies in one, patients that contradict each other, losses."""

from __future__ import annotations

import hashlib
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from raw_dicom import (
    EXPLICIT,
    RLE,
    dicom,
    encapsulated,
    image,
    mr,
    read_files,
    rle16,
    series,
)

from spine_engine.dicom import (
    InputFile,
    Limits,
    RefusedFile,
    UnitReading,
    WorkUnit,
    read_unit,
    reading,
)
from spine_engine.dicom.discovery import printable_uid
from spine_engine.errors import Reason, StudyError, Warn
from spine_engine.study import Role, Study


def only(read: UnitReading) -> Study:
    assert read.split == ()
    (study,) = read.studies
    return study


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that moves one second whenever the header of a file is parsed."""
    time = SimpleNamespace(now=100.0)
    time.monotonic = lambda: time.now
    parse = reading.parse

    def slowly(*arguments: Any) -> Any:
        time.now += 1.0
        return parse(*arguments)

    monkeypatch.setattr(reading, "time", time)
    monkeypatch.setattr(reading, "parse", slowly)
    return time


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("study_s", "reason"), [(8.0, None), (7.0, None), (6.9, Reason.TIMEOUT)]
)
def test_the_time_of_a_study(
    tmp_path: Path, clock: SimpleNamespace, study_s: float, reason: Reason | None
) -> None:
    """The last of eight files begins after seven seconds."""
    study = only(read_files(tmp_path, series(), Limits(study_s=study_s)))
    assert study.reason is reason
    assert (study.series == ()) is (reason is not None)


def test_the_study_ends_in_the_middle_of_its_last_file(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    study = only(read_files(tmp_path, series(), Limits(study_s=7.5)))
    assert (study.reason, study.series[0].slices) == (None, 7)
    assert "1 slices dropped (timeout 1)" in study.series[0].evidence


@pytest.mark.parametrize(("file_s", "slices"), [(1.0, 8), (0.9, 0)])
def test_the_time_of_a_file(
    tmp_path: Path, clock: SimpleNamespace, file_s: float, slices: int
) -> None:
    read = read_files(tmp_path, series(), Limits(file_s=file_s))
    (one,) = only(read).series
    assert one.slices == slices
    assert one.reason is (None if slices else Reason.TIMEOUT)
    assert [file.reason for file in read.refused] == [Reason.TIMEOUT] * (8 - slices)


def test_time_is_counted_for_each_file_anew(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    assert (
        only(read_files(tmp_path, series(), Limits(file_s=1.0, study_s=300.0)))
        .series[0]
        .slices
        == 8
    )


def frames_file(count: int = 6, **changes: Any) -> bytes:
    groups = [
        {"PlanePositionSequence": [{"ImagePositionPatient": (-4 * i, 0, 0)}]}
        for i in range(count)
    ]
    pixels = {"PixelData": np.stack([image(i) for i in range(count)])} | changes
    return dicom(
        mr(NumberOfFrames=count, PerFrameFunctionalGroupsSequence=groups, **pixels)
    )


def test_frames_beyond_the_time_are_lost_and_the_others_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    frames = reading.pixels.frames

    def slowly(*arguments: Any) -> Any:
        for values in frames(*arguments):
            clock.now += 1.0
            yield values

    monkeypatch.setattr(reading.pixels, "frames", slowly)
    read = read_files(tmp_path, {"one": frames_file()}, Limits(file_s=5.0))
    (one,) = only(read).series
    assert one.slices == 4  # one second for the header, one for each frame
    assert "2 slices dropped (timeout 2)" in one.evidence
    assert read.refused == ()


def test_a_study_out_of_time_is_still_told_from_another(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    files = series() | {f"z{i}": dicom(mr(i, StudyInstanceUID="9.9")) for i in range(3)}
    read = read_files(tmp_path, files, Limits(study_s=2.5))
    assert read.studies == ()
    assert [(part.study_id, len(part.files)) for part in read.split] == [
        ("1.2.3", 8),
        ("9.9", 3),
    ]


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_that_runs_out_costs_the_study_its_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    frames = reading.pixels.frames

    def until_full(*arguments: Any) -> Any:
        decoded.append(1)
        if len(decoded) == 3:
            raise MemoryError
        return frames(*arguments)

    monkeypatch.setattr(reading.pixels, "frames", until_full)
    read = read_files(tmp_path, series())
    assert (only(read).reason, only(read).series, only(read).warnings) == (
        Reason.OUT_OF_MEMORY,
        (),
        (),
    )
    assert len(decoded) == 3, "the rest is only identified"
    assert read.refused == ()


@pytest.mark.parametrize("limits", [Limits(study_files=4), Limits(study_bytes=5_000)])
def test_nothing_more_is_decoded_of_a_study_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: Limits
) -> None:
    decoded: list[int] = []
    frames = reading.pixels.frames

    def counted(*arguments: Any) -> Any:
        decoded.append(1)
        return frames(*arguments)

    monkeypatch.setattr(reading.pixels, "frames", counted)
    assert only(read_files(tmp_path, series(), limits)).reason is Reason.TOO_LARGE
    assert len(decoded) == (4 if limits.study_files == 4 else 5_000 // len(dicom(mr())))


def test_what_was_decoded_of_a_study_given_up_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[weakref.ref[Any]] = []
    alive: list[int] = []
    frames, identify = reading.pixels.frames, reading._identify

    def watched(*arguments: Any) -> Any:
        for values in frames(*arguments):
            own = np.array(values)
            decoded.append(weakref.ref(own))
            yield own

    def counted(*arguments: Any) -> Any:
        alive.append(sum(one() is not None for one in decoded))
        return identify(*arguments)

    monkeypatch.setattr(reading.pixels, "frames", watched)
    monkeypatch.setattr(reading, "_identify", counted)
    assert (
        only(read_files(tmp_path, series(), Limits(study_files=4))).reason
        is Reason.TOO_LARGE
    )
    assert len(decoded) == 4
    assert alive == [0, 0, 0]


# --- patients ---------------------------------------------------------------------------------------------------------

A = {"PatientID": "A", "PatientName": "DOE^JANE", "PatientBirthDate": "19600102"}
NOBODY = {"PatientID": None, "PatientName": None}


@pytest.mark.parametrize(
    ("one", "other", "collide"),
    [
        (A, A, False),
        (A, A | {"PatientID": "B"}, True),
        (A, A | {"PatientBirthDate": "19600103"}, True),
        (
            A | {"PatientID": None},
            A | {"PatientID": None, "PatientBirthDate": "1960"},
            True,
        ),
        (
            NOBODY | {"PatientBirthDate": "19600102"},
            NOBODY | {"PatientBirthDate": "19610102"},
            True,
        ),
        (
            A,
            A | {"PatientName": "ROE^RICHARD"},
            False,
        ),  # one ID: the name was corrected
        (A, A | {"PatientID": None, "PatientName": "ROE^RICHARD"}, False),
        (
            A | {"PatientID": None},
            A | {"PatientID": None, "PatientName": "ROE^RICHARD"},
            True,
        ),
        (
            A | {"PatientID": ""},
            A | {"PatientID": "", "PatientName": "doe jane^^"},
            False,
        ),
        (
            A | {"PatientID": None},
            A | {"PatientID": None, "PatientName": "DOE_J-A.N.E"},
            False,
        ),
        (
            A | {"PatientID": None},
            A | {"PatientID": None, "PatientName": "DOE^JANET"},
            True,
        ),
        (A, NOBODY, False),
        (NOBODY, NOBODY, False),
        (A, A | {"PatientBirthDate": None}, False),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_files_of_one_study_that_name_two_patients(
    tmp_path: Path,
    one: dict[str, Any],
    other: dict[str, Any],
    collide: bool,
    reverse: bool,
) -> None:
    first, second = (other, one) if reverse else (one, other)
    files = {f"a{name}": data for name, data in series(5, **first).items()}
    files |= {
        f"b{name}": data
        for name, data in series(5, SeriesInstanceUID="1.2.3.9", **second).items()
    }
    study = only(read_files(tmp_path, files))
    assert study.reason is (Reason.UID_COLLISION if collide else None)
    assert (study.series == ()) is collide


def test_a_study_too_large_is_that_before_all(tmp_path: Path) -> None:
    files = series() | {"z": dicom(mr(9, PatientID="OTHER"))}
    assert (
        only(read_files(tmp_path, files, Limits(study_files=8))).reason
        is Reason.TOO_LARGE
    )


# --- several studies --------------------------------------------------------------------------------------------------


def test_a_unit_of_several_studies_is_split(tmp_path: Path) -> None:
    files = {f"{i}": dicom(mr(i)) for i in range(3)}
    files |= {
        "5": dicom(mr(3, StudyInstanceUID="not a uid")),
        "4": dicom(mr(3, StudyInstanceUID="9.9")),
    }
    files |= {
        "6": dicom(mr(4)),
        "x": b"no DICOM",
        "y": dicom(mr(5, StudyInstanceUID=None)),
    }
    files["2"] = files["2"][
        :-5
    ]  # its pixels are cut short: that is found out when its own unit is read
    read = read_files(tmp_path, files)
    assert read.studies == ()
    assert [[file.path for file in part.files] for part in read.split] == [
        ["0", "1", "2", "6"],
        ["4"],
        ["5"],
    ]
    assert [part.key for part in read.split] == [
        ".#" + hashlib.sha256(uid.encode()).hexdigest()[:12]
        for uid in ("1.2.3", "9.9", "not a uid")
    ]
    hashed = "uid-" + hashlib.sha256(b"not a uid").hexdigest()[:32]
    assert [part.study_id for part in read.split] == ["1.2.3", "9.9", hashed]
    assert read.refused == (
        RefusedFile("x", Reason.NOT_AN_IMAGE),
        RefusedFile("y", Reason.CORRUPT_FILE),
    )


def test_files_are_taken_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, uid in (("c", "1"), ("b", "1"), ("a", "2")):
        (tmp_path / name).write_bytes(dicom(mr(StudyInstanceUID=uid)))
    unit = WorkUnit(".", tuple(InputFile(name, 1) for name in "cba"))
    parts = read_unit(tmp_path, unit).split
    assert [(part.study_id, [file.path for file in part.files]) for part in parts] == [
        ("2", ["a"]),
        ("1", ["b", "c"]),
    ]


def test_files_that_are_only_identified_are_read_at_their_beginning(
    tmp_path: Path,
) -> None:
    """A study id farther behind is not met: the file counts as one without."""
    files = {"a": dicom(mr(0)), "b": dicom(mr(1, StudyInstanceUID="9.9"))}
    files["c"] = dicom(mr(2, ImageComments="x" * 3_000))
    files["d"] = dicom(mr(3, StudyInstanceUID="9.9", PatientComments="x" * 3_000))
    read = read_files(tmp_path, files, Limits(peek_bytes=2_000))
    assert [[file.path for file in part.files] for part in read.split] == [
        ["a", "c"],
        ["b"],
    ]
    assert read.refused == (RefusedFile("d", Reason.CORRUPT_FILE),)


@pytest.mark.parametrize(
    ("uid", "plain"),
    [
        ("1.2.840", True),
        ("a_B-9.z", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("", False),
        ("a b", False),
    ],
)
def test_ids_that_are_safe_to_print(uid: str, plain: bool) -> None:
    hashed = "uid-" + hashlib.sha256(uid.encode()).hexdigest()[:32]
    assert printable_uid(uid) == (uid if plain else hashed)


# --- series -----------------------------------------------------------------------------------------------------------


def test_a_series_in_several_folders_is_one_at_the_first(tmp_path: Path) -> None:
    files = {f"{'ba'[i % 2]}/{i}": dicom(mr(i)) for i in range(8)}
    (one,) = only(read_files(tmp_path, files)).series
    assert (one.path, one.slices) == ("a", 8)


def test_images_without_a_series_uid_are_a_series_a_folder(tmp_path: Path) -> None:
    files = {
        f"{folder}{i}": dicom(mr(i, SeriesInstanceUID=None))
        for folder in ("", "x/", "x/y/")
        for i in range(5)
    }
    study = only(read_files(tmp_path, files))
    assert [(one.path, one.slices) for one in study.series] == [
        (".", 5),
        ("x", 5),
        ("x/y", 5),
    ]


def test_a_file_without_a_study_uid_is_corrupt(tmp_path: Path) -> None:
    read = read_files(tmp_path, series() | {"x": dicom(mr(9, StudyInstanceUID=None))})
    assert read.refused == (RefusedFile("x", Reason.CORRUPT_FILE),)
    assert Warn.SLICE_DROPPED not in only(read).warnings


def test_an_object_without_pixels_costs_its_series_nothing(tmp_path: Path) -> None:
    files = series() | {
        "x": dicom(mr(9, Modality="SR", PixelData=None)),
        "y": dicom(mr(9, PixelData=None)),
    }
    read = read_files(tmp_path, files)
    assert read.refused == (
        RefusedFile("x", Reason.NOT_AN_IMAGE),
        RefusedFile("y", Reason.CORRUPT_FILE),
    )
    assert "1 slices dropped (corrupt_file 1)" in only(read).series[0].evidence


@pytest.mark.parametrize(
    "error", [ValueError, IndexError, OverflowError, reading.struct.error]
)
def test_a_header_that_no_one_foresaw_is_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise error("?")

    monkeypatch.setattr(reading, "read_image", fail)
    read = read_files(tmp_path, {"a": dicom(mr())})
    assert (read.studies, read.refused) == (
        (),
        (RefusedFile("a", Reason.CORRUPT_FILE),),
    )


def test_what_plays_no_role_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(reading.pixels, "frames", never)
    colour = {
        f"c{i}": dicom(mr(i, SamplesPerPixel=3, SeriesInstanceUID="1.2.3.4"))
        for i in range(3)
    }
    other = {"ct": frames_file(4, Modality="CT", SeriesInstanceUID="1.2.3.5")}
    study = only(read_files(tmp_path, colour | other))
    told = sorted((one.evidence, one.slices, one.reason) for one in study.series)
    assert told == [("colour images", 3, None), ("not MR", 4, None)]


def test_a_file_is_refused_when_none_of_its_frames_is_good(tmp_path: Path) -> None:
    bad = encapsulated(*[b"\1\0\0\0" + bytes(60)] * 6)
    groups = [
        {"PlanePositionSequence": [{"ImagePositionPatient": (-4 * i, 0, 0)}]}
        for i in range(6)
    ]
    header = {"NumberOfFrames": 6, "PerFrameFunctionalGroupsSequence": groups}
    read = read_files(tmp_path, {"one": dicom(mr(PixelData=bad, **header), RLE)})
    assert read.refused == (RefusedFile("one", Reason.CORRUPT_PIXELS),)
    assert "6 slices dropped (corrupt_pixels 6)" in only(read).series[0].evidence
    good = encapsulated(
        *[b"\1\0\0\0" + bytes(60)] * 4, rle16(image(4)), rle16(image(5))
    )
    read = read_files(tmp_path, {"one": dicom(mr(PixelData=good, **header), RLE)})
    assert read.refused == ()
    (one,) = only(read).series
    assert (one.slices, "4 slices dropped (corrupt_pixels 4)" in one.evidence) == (
        2,
        True,
    )


def test_frames_that_nothing_decodes_are_all_counted(tmp_path: Path) -> None:
    header = {"NumberOfFrames": 6, "PixelData": encapsulated(b"video!")}
    read = read_files(
        tmp_path, {"one": dicom(mr(**header), RLE, said="1.2.840.10008.1.2.4.102")}
    )
    assert read.refused == (RefusedFile("one", Reason.UNSUPPORTED_TRANSFER_SYNTAX),)
    assert "(unsupported_transfer_syntax 6)" in only(read).series[0].evidence


def test_an_enhanced_file_gives_the_stack_of_its_frames(tmp_path: Path) -> None:
    (one,) = only(read_files(tmp_path, {"one": frames_file()})).series
    np.testing.assert_array_equal(
        one.stacks[0].pixels, np.stack([image(i) for i in range(6)])
    )
    assert (one.role, one.slices) == (Role.SAGITTAL_T2, 6)


def test_a_unit_without_studies_tells_its_files(tmp_path: Path) -> None:
    read = read_files(tmp_path, {"b": b"no DICOM", "a": dicom(mr())[:200]})
    assert (read.studies, read.split) == ((), ())
    assert read.refused == (
        RefusedFile("a", Reason.CORRUPT_FILE),
        RefusedFile("b", Reason.NOT_AN_IMAGE),
    )


def test_a_study_error_says_its_reason_and_its_detail() -> None:
    assert str(StudyError(Reason.TOO_LARGE, "a file")) == "too_large: a file"
    assert str(StudyError(Reason.TOO_LARGE)) == "too_large"
    assert EXPLICIT == "1.2.840.10008.1.2.1"
