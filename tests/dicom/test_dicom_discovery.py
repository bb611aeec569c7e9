"""Finding studies: layouts, streaming, joining, splitting."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from dicom_builder import AXIAL_T2, T1, T2, read_all, write_series

from spine_engine.dicom import (
    InputFile,
    Limits,
    RefusedFile,
    WorkUnit,
    discover,
    discovery,
    read_unit,
)
from spine_engine.errors import Reason, UsageError
from spine_engine.study import Role

THREE = (T1, T2, AXIAL_T2)
SMALL = {"offsets_mm": (0.0, 4.0, 8.0, 12.0, 16.0)}


def write_study(root: Path, study: str, nested: bool = True) -> None:
    for k, spec in enumerate(THREE):
        spec = spec.but(study=study, uid=f"{study}.{k}", patient=study, **SMALL)
        folder = root / study / str(k) if nested else root
        write_series(folder, spec, [f"{study}_{k}_{i}.dcm" for i in range(5)])


def units_of(root: Path) -> list[WorkUnit]:
    return [found for found in discover(root) if isinstance(found, WorkUnit)]


def test_rsna_layout_gives_one_unit_a_study(tmp_path: Path) -> None:
    for study in ("10", "9", "200"):
        write_study(tmp_path, study)
    units = units_of(tmp_path)
    assert [unit.key for unit in units] == ["10/0", "200/0", "9/0"]
    assert [unit.study_id for unit in units] == ["10", "200", "9"]
    assert [len(unit.files) for unit in units] == [15, 15, 15]
    assert units[0].files[0] == InputFile(
        "10/0/10_0_0.dcm", (tmp_path / "10/0/10_0_0.dcm").stat().st_size
    )


@pytest.mark.parametrize("layout", ["flat", "flat-per-patient", "deep"])
def test_every_layout_gives_the_same_studies(tmp_path: Path, layout: str) -> None:
    for study in ("5.1", "5.2"):
        if layout == "flat":
            write_study(tmp_path, study, nested=False)
        elif layout == "flat-per-patient":
            write_study(tmp_path / f"patient_{study}", study, nested=False)
        else:
            write_study(tmp_path / f"patient_{study}" / "2024" / "MR", study)
    studies, refused = read_all(tmp_path)
    assert sorted(study.study_id for study in studies) == ["5.1", "5.2"]
    assert refused == []
    for study in studies:
        assert {series.role for series in study.series} == set(Role)
        assert study.reason is None


def test_several_studies_in_a_folder_are_split_not_decoded(tmp_path: Path) -> None:
    for study in ("5.1", "5.2", "5.3"):
        write_study(tmp_path, study, nested=False)
    (unit,) = units_of(tmp_path)
    reading = read_unit(tmp_path, unit)
    assert reading.studies == ()
    assert len(reading.split) == 3
    assert len({part.key for part in reading.split}) == 3
    assert sorted(part.study_id or "" for part in reading.split) == [
        "5.1",
        "5.2",
        "5.3",
    ]
    assert all(part.key.startswith(".#") for part in reading.split)
    assert sorted(file.path for part in reading.split for file in part.files) == [
        file.path for file in unit.files
    ]


def test_two_studies_of_one_patient_side_by_side_are_two_units(tmp_path: Path) -> None:
    for k, (study, spec) in enumerate(
        (("5.1", T1), ("5.1", T2), ("5.2", T1), ("5.2", T2))
    ):
        write_series(
            tmp_path / "patient" / f"series{k}",
            spec.but(study=study, uid=f"{study}.{k}"),
        )
    assert [unit.key for unit in units_of(tmp_path)] == [
        "patient/series0",
        "patient/series2",
    ]


def test_first_unit_comes_before_the_last_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for study in ("1.1", "1.2", "1.3", "1.4"):
        write_study(tmp_path, study)
    listed: list[str] = []
    scandir = os.scandir

    def spy(path: object) -> object:
        listed.append(str(path))
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(discovery.os, "scandir", spy)
    first = next(iter(discover(tmp_path)))
    assert isinstance(first, WorkUnit)
    assert not any("1.3" in path or "1.4" in path for path in listed)


def test_files_beside_folders_are_a_unit_of_their_own(tmp_path: Path) -> None:
    write_series(tmp_path, T1)
    write_series(tmp_path / "more", T2)
    (unit,) = units_of(tmp_path)  # one study: joined
    assert len(unit.files) == 16
    write_series(tmp_path / "z", T2.but(study="9.9", uid="9.9.1"))
    assert [unit.key for unit in units_of(tmp_path)] == [".", "z"]


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "a", T2)
    write_series(tmp_path / "b", T1.but(study="9.9"))
    scandir = os.scandir

    def deny(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(discovery.os, "scandir", deny)
    found = list(discover(tmp_path))
    assert [unit.key for unit in found if isinstance(unit, WorkUnit)] == ["a"]
    assert RefusedFile("b", Reason.UNREADABLE) in found


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_series(tmp_path, T2)[0]
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert read_all(tmp_path)[1] == [RefusedFile("001.dcm", Reason.UNREADABLE)]


def test_input_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the input folder"):
        next(discover(tmp_path / "nowhere"))


def test_empty_input(tmp_path: Path) -> None:
    assert list(discover(tmp_path)) == []


def test_digest_follows_the_files(tmp_path: Path) -> None:
    unit = WorkUnit("a", (InputFile("a/1", 5), InputFile("a/2", 6)))
    assert unit.digest == WorkUnit("elsewhere", unit.files).digest
    assert (
        unit.digest != WorkUnit("a", (InputFile("a/1", 5), InputFile("a/2", 7))).digest
    )
    assert (
        unit.digest != WorkUnit("a", (InputFile("a/1", 5), InputFile("a/3", 6))).digest
    )


def test_units_and_readings_travel_between_processes(tmp_path: Path) -> None:
    write_study(tmp_path, "1.1")
    (unit,) = units_of(tmp_path)
    assert pickle.loads(pickle.dumps(unit)) == unit
    reading = pickle.loads(pickle.dumps(read_unit(tmp_path, unit)))
    assert len(reading.studies[0].series) == 3


def test_each_file_is_opened_once_more_than_peeked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path, "1.1")
    (unit,) = units_of(tmp_path)
    opened: list[str] = []
    plain_open = os.open

    def spy(path: object, *rest: int, **named: int) -> int:
        opened.append(str(path))
        return plain_open(path, *rest, **named)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(os, "open", spy)
    read_unit(tmp_path, unit)
    assert sorted(path for path in opened if path.endswith(".dcm")) == sorted(
        str(tmp_path / f.path) for f in unit.files
    )


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    write_series(tmp_path / "s", T2)
    os.rename(
        tmp_path / "s" / "004.dcm", os.fsencode(tmp_path / "s") + b"/\xff\xfe.dcm"
    )
    (unit,) = units_of(tmp_path)
    assert len(unit.digest) == 64
    assert read_unit(tmp_path, unit).studies[0].series[0].slices == 8


def test_a_study_of_too_many_files_or_bytes(tmp_path: Path) -> None:
    write_study(tmp_path, "1.1")
    (unit,) = units_of(tmp_path)
    for limits in (Limits(study_files=10), Limits(study_bytes=10_000)):
        (study,) = read_unit(tmp_path, unit, limits=limits).studies
        assert (study.study_id, study.reason, study.series) == (
            "1.1",
            Reason.TOO_LARGE,
            (),
        )


def test_a_study_that_takes_too_long(tmp_path: Path) -> None:
    write_study(tmp_path, "1.1")
    (unit,) = units_of(tmp_path)
    (study,) = read_unit(tmp_path, unit, limits=Limits(study_s=-1.0)).studies
    assert study.reason is Reason.TIMEOUT


def test_a_file_that_takes_too_long(tmp_path: Path) -> None:
    write_study(tmp_path, "1.1")
    (unit,) = units_of(tmp_path)
    (study,) = read_unit(tmp_path, unit, limits=Limits(file_s=-1.0)).studies
    assert {series.reason for series in study.series} == {Reason.TIMEOUT}


def test_many_studies_in_one_folder_are_not_too_large(tmp_path: Path) -> None:
    """The study limits count files of one study, not of one folder."""
    for study in ("1.1", "1.2"):
        write_study(tmp_path, study, nested=False)
    (unit,) = units_of(tmp_path)
    assert len(read_unit(tmp_path, unit, limits=Limits(study_files=7)).split) == 2
