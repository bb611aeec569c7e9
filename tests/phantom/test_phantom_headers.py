"""What a phantom's files say, element by element, and how they are named and numbered."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest

from spine_engine.dicom import RefusedFile, discover, read_unit
from spine_engine.phantom import (
    PhantomSeries,
    PhantomStudy,
    Protocol,
    draw_spine,
    write_study,
)
from spine_engine.phantom.dicom_out import numbered_slices
from spine_engine.phantom.render import render
from spine_engine.phantom.rsna import _pixel_of
from spine_engine.phantom.signal import Sequence
from spine_engine.study import Role, Stack

ORIGIN = (1.5, -2.25, 3.125)
AXES = np.array([[-1.0, 0, 0], [0, 0, -1], [0, 1, 0]])


def stack(slices: int = 3, first: float = 0.0) -> Stack:
    pixels = np.arange(slices * 4 * 6, dtype=np.uint16).reshape(slices, 4, 6) + 7
    one = np.ones(slices, np.float32)
    origins = np.array(ORIGIN) + (first + 4.4 * np.arange(slices))[:, None] * AXES[0]
    return Stack(pixels, one, 0 * one, origins, AXES, (1.25, 0.78125))


def study(contrast: str = "t2", *stacks: Stack, **times: float) -> PhantomStudy:
    """A study of one series; nothing is rendered."""
    sequence = Sequence(
        contrast=contrast, **({"tr_ms": 3500.5, "te_ms": 100.0} | times)
    )
    series = PhantomSeries(
        "sagittal_x",
        "Sagittal X",
        Role.SAGITTAL_T2,
        sequence,
        3.96,
        stacks or (stack(),),
    )
    return PhantomStudy("2.25.77", draw_spine(5), (series,))


def uid(*parts: str) -> str:
    """A UID from a hash of its parts (PS3.5 B.2: under 2.25)."""
    return f"2.25.{int.from_bytes(hashlib.sha256('|'.join(parts).encode()).digest()[:15], 'big')}"


def written(root: Path, made: PhantomStudy, **options: bool) -> list[pydicom.Dataset]:
    folder = write_study(made, root, **options)
    assert folder == root / made.study_id
    return [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]


EXPECTED = {
    "SpecificCharacterSet": "ISO_IR 192",
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
    "StudyDate": "20260101",
    "SeriesDate": "20260101",
    "AcquisitionDate": "20260101",
    "StudyTime": "120000",
    "AccessionNumber": "",
    "Modality": "MR",
    "Manufacturer": "PHANTOM",
    "StudyDescription": "MR LUMBAR SPINE PHANTOM",
    "SeriesDescription": "Sagittal X",
    "ManufacturerModelName": "spine-engine phantom",
    "PatientName": "PHANTOM^5",
    "PatientID": "PHANTOM-5",
    "PatientBirthDate": "",
    "PatientSex": "O",
    "PatientIdentityRemoved": "YES",
    "BodyPartExamined": "LSPINE",
    "ScanningSequence": "SE",
    "SequenceVariant": "SK",
    "ScanOptions": "",
    "MRAcquisitionType": "2D",
    "SliceThickness": 3.96,
    "RepetitionTime": 3500.5,
    "EchoTime": 100,
    "NumberOfAverages": 2,
    "ImagingFrequency": 63.87,
    "MagneticFieldStrength": 1.5,
    "EchoTrainLength": 18,
    "FlipAngle": 150,
    "ProtocolName": "sagittal_x_tse",
    "PatientPosition": "HFS",
    "StudyInstanceUID": "2.25.77",
    "SeriesInstanceUID": uid("2.25.77", "sagittal_x"),
    "StudyID": "1",
    "SeriesNumber": 1,
    "FrameOfReferenceUID": uid("2.25.77", "frame of reference"),
    "PositionReferenceIndicator": "",
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 12,
    "HighBit": 11,
    "PixelRepresentation": 0,
    "AcquisitionNumber": 1,
    "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],
    "Rows": 4,
    "Columns": 6,
    "PixelSpacing": [1.25, 0.78125],
}
EACH = {
    "SOPInstanceUID",
    "InstanceNumber",
    "ImagePositionPatient",
    "WindowCenter",
    "WindowWidth",
    "PixelData",
}


def test_every_element_of_a_file(tmp_path: Path) -> None:
    files = written(tmp_path, study())
    assert len(files) == 3
    for file in files:
        assert {element.keyword for element in file} == {*EXPECTED, *EACH}
        for keyword, value in EXPECTED.items():
            found = file[keyword].value
            assert (list(found) if isinstance(value, list) else found) == value, keyword
        meta = file.file_meta
        assert meta.MediaStorageSOPClassUID == file.SOPClassUID
        assert meta.MediaStorageSOPInstanceUID == file.SOPInstanceUID
        assert meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert meta.ImplementationClassUID == "2.25.251874017234880113"


def test_each_image_has_its_own_place_pixels_window_and_uid(tmp_path: Path) -> None:
    files = sorted(
        written(tmp_path, study()), key=lambda file: -file.ImagePositionPatient[0]
    )
    made = stack()
    for k, file in enumerate(files):
        assert list(file.ImagePositionPatient) == pytest.approx(
            [1.5 - 4.4 * k, -2.25, 3.125], abs=1e-6
        )
        np.testing.assert_array_equal(file.pixel_array, made.pixels[k])
        origin = [round(1.5 - 4.4 * k, 3), -2.25, 3.125]
        assert file.SOPInstanceUID == uid("2.25.77", "sagittal_x", f"{origin}")
        assert file.WindowCenter == round((7 + 24 * k + 11.5) * 1.5 + 1)
        assert file.WindowWidth == 23
    assert len(files) == 3


def test_an_even_picture_has_a_window_of_one(tmp_path: Path) -> None:
    even = replace(stack(1), pixels=np.full((1, 4, 6), 9, np.uint16))
    (file,) = written(tmp_path, study("t2", even))
    assert (file.WindowCenter, file.WindowWidth) == (14, 1)


@pytest.mark.parametrize(
    ("contrast", "times", "changes"),
    [
        (
            "t1",
            {"tr_ms": 550.0, "te_ms": 10.0},
            {"EchoTrainLength": 4, "ScanningSequence": "SE", "EchoTime": 10},
        ),
        (
            "t2",
            {},
            {"EchoTrainLength": 18, "ScanningSequence": "SE", "InversionTime": None},
        ),
        (
            "stir",
            {"ti_ms": 160.0},
            {
                "EchoTrainLength": 18,
                "ScanningSequence": ["SE", "IR"],
                "InversionTime": 160,
            },
        ),
    ],
)
def test_sequences(
    tmp_path: Path, contrast: str, times: dict[str, float], changes: dict[str, Any]
) -> None:
    for file in written(tmp_path, study(contrast, **times)):
        for keyword, value in changes.items():
            assert file.get(keyword) == value, keyword
        assert file.SequenceVariant == "SK"


def test_files_are_named_by_series_and_instance(tmp_path: Path) -> None:
    made = study("t2", stack(2), stack(2, 100.0))
    second = replace(made.series[0], name="sagittal_y", description="Sagittal Y")
    made = replace(made, series=(*made.series, second))
    files = written(tmp_path, made)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.dcm")}
    assert names == {
        f"2.25.77/{uid('2.25.77', name)}/{number}.dcm"
        for name in ("sagittal_x", "sagittal_y")
        for number in (1, 2, 3, 4)
    }
    assert {(file.SeriesDescription, file.SeriesNumber) for file in files} == {
        ("Sagittal X", 1),
        ("Sagittal Y", 2),
    }
    assert {file.FrameOfReferenceUID for file in files} == {
        uid("2.25.77", "frame of reference")
    }


def test_rle_files_hold_the_same_pixels_and_uids(tmp_path: Path) -> None:
    plain, packed = (
        written(tmp_path / "a", study()),
        written(tmp_path / "b", study(), rle=True),
    )
    assert {file.file_meta.TransferSyntaxUID for file in packed} == {
        "1.2.840.10008.1.2.5"
    }
    for one, other in zip(plain, packed, strict=True):
        assert one.SOPInstanceUID == other.SOPInstanceUID
        np.testing.assert_array_equal(one.pixel_array, other.pixel_array)


def numbers(study_id: str, shuffled: bool = False) -> list[int]:
    series = SimpleNamespace(name="sagittal_t1", stacks=(stack(4), stack(3, 50.0)))
    made: Any = SimpleNamespace(study_id=study_id)
    return [number for number, _, _ in numbered_slices(made, series, shuffled=shuffled)]


def test_instances_run_one_way_or_the_other() -> None:
    """About a third of the series run backwards, as RSNA's do; which, follows from the study."""
    up, down = list(range(1, 8)), list(range(7, 0, -1))
    found = [numbers(f"1.{i}") for i in range(200)]
    assert all(order in (up, down) for order in found)
    assert sum(order == down for order in found) == pytest.approx(72, abs=20)
    assert [numbers(f"1.{i}") == down for i in range(8)] == [
        order == down for order in found[:8]
    ]


def test_shuffled_instances_are_a_permutation_of_the_same() -> None:
    found = [numbers(f"1.{i}", shuffled=True) for i in range(5)]
    assert all(sorted(order) == list(range(1, 8)) for order in found)
    assert len({tuple(order) for order in found}) > 3
    assert numbers("1.0", shuffled=True) == found[0]


def test_slices_come_stack_by_stack() -> None:
    first, second = stack(2), stack(2, 50.0)
    made: Any = SimpleNamespace(study_id="1.2")
    series: Any = SimpleNamespace(name="x", stacks=(first, second))
    assert [(at is second, k) for _, at, k in numbered_slices(made, series)] == [
        (False, 0),
        (False, 1),
        (True, 0),
        (True, 1),
    ]


def test_the_reader_finds_in_the_files_what_was_rendered(tmp_path: Path) -> None:
    protocol = Protocol(
        sagittal=("t1", "stir"),
        sagittal_slices=5,
        sagittal_matrix=32,
        axial_slices=5,
        axial_matrix=24,
    )
    made = render(draw_spine(3), seed=3, protocol=protocol)
    write_study(made, tmp_path, shuffled=True)
    (unit,) = discover(tmp_path)
    assert not isinstance(unit, RefusedFile)
    (found,) = read_unit(tmp_path, unit).studies
    assert (found.study_id, found.reason, found.warnings) == (made.study_id, None, ())
    direct = made.as_study()
    assert direct.study_id == made.study_id
    assert [series.path for series in direct.series] == sorted(
        series.name for series in made.series
    )
    by_role = {series.role: series for series in found.series}
    assert by_role.keys() == set(Role)
    for series in direct.series:
        read = by_role[series.role]
        assert (read.contrast, read.slices) == (series.contrast, series.slices)
        assert len(read.stacks) == len(series.stacks)
        for one, other in zip(
            sorted(read.stacks, key=by_height),
            sorted(series.stacks, key=by_height),
            strict=True,
        ):
            np.testing.assert_array_equal(one.pixels, other.pixels)
            np.testing.assert_allclose(one.origins_mm, other.origins_mm, atol=1e-5)
            np.testing.assert_allclose(one.axes, other.axes, atol=1e-8)
            assert one.spacing_mm == pytest.approx(other.spacing_mm)


@pytest.mark.parametrize(
    ("point", "marked"),
    [
        (
            (1.5, -1.5, 2.0),
            (1, 0.96, 0.9),
        ),  # in the first stack's first plane, inside it
        (
            (1.5, 98.5, 2.0),
            (4, 0.96, 0.9),
        ),  # that plane is a hundred millimetres aside: the second stack, 1 mm off
        ((-2.9, -1.5, 2.0), (2, 0.96, 0.9)),
        ((-2.9, 98.5, 2.0), (5, 0.96, 0.9)),
        ((1.5, -1.5, 3.125), (1, 0.96, 0.0)),
        ((0.5, -2.25, 3.125), (1, 0.0, 0.0)),
    ],
)
def test_a_point_is_marked_on_the_slice_that_holds_it(
    point: tuple[float, ...], marked: tuple[float, ...]
) -> None:
    aside = stack(2, 1.0)
    aside = replace(aside, origins_mm=aside.origins_mm + np.array([0.0, 100.0, 0.0]))
    made = study("t2", stack(2), stack(1, 50.0), aside)
    found: Any = None
    for study_id in range(20):  # one whose instances run upwards
        made = replace(made, study_id=f"1.{study_id}")
        series = made.series[0]
        if next(iter(numbered_slices(made, series)))[0] == 1:
            found = _pixel_of(made, series, np.array(point), False)
            break
    assert found is not None
    assert found[0] == marked[0]
    assert found[1:] == pytest.approx(marked[1:], abs=1e-9)


def by_height(stack: Stack) -> float:
    return float(stack.center_mm[2])
