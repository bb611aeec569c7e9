"""What is taken from a header: each attribute, its default, and which of several sources wins."""

from __future__ import annotations

from typing import Any

import pytest
from raw_dicom import BIG, IMPLICIT, SAGITTAL, dicom, image_of, mr

from spine_engine.dicom.elements import parse
from spine_engine.dicom.header import (
    WANTED,
    FrameHeader,
    check_is_image,
    read_image,
    study_uid,
)
from spine_engine.errors import Reason, StudyError


def frame_of(**changes: Any) -> FrameHeader:
    return image_of(**changes).frames[0]


@pytest.mark.parametrize(
    ("attribute", "changes", "value"),
    [
        ("series_uid", {}, "1.2.3.1"),
        ("series_uid", {"SeriesInstanceUID": None}, ""),
        (
            "patient",
            {"PatientBirthDate": "19600102"},
            ("PATIENT", "19600102", "DOE^JANE"),
        ),
        ("patient", {"PatientID": None, "PatientName": None}, ("", "", "")),
        ("modality", {"Modality": "mr"}, "MR"),
        ("modality", {"Modality": None}, ""),
        ("rows", {}, 8),
        ("columns", {}, 6),
        ("rows", {"Rows": None}, 0),
        ("samples_per_pixel", {"SamplesPerPixel": 3}, 3),
        ("samples_per_pixel", {"SamplesPerPixel": None}, 1),
        ("bits_allocated", {"BitsAllocated": 8, "BitsStored": 8}, 8),
        ("bits_allocated", {"BitsAllocated": None}, 16),
        ("bits_stored", {"BitsStored": None}, 16),
        ("bits_stored", {"BitsStored": None, "BitsAllocated": 8}, 8),
        ("high_bit", {}, 11),
        ("high_bit", {"HighBit": 15}, 15),
        ("high_bit", {"HighBit": None}, 11),
        ("high_bit", {"HighBit": None, "BitsStored": 10}, 9),
        ("signed", {}, False),
        ("signed", {"PixelRepresentation": 1}, True),
        ("signed", {"PixelRepresentation": None}, False),
        ("monochrome1", {}, False),
        ("monochrome1", {"PhotometricInterpretation": "monochrome1 "}, True),
        ("declared_frames", {}, 1),
        ("declared_frames", {"NumberOfFrames": 0}, 1),
        ("declared_frames", {"NumberOfFrames": 3}, 3),
        ("frame_of_reference", {"FrameOfReferenceUID": "1.7"}, "1.7"),
        ("frame_of_reference", {}, ""),
        ("scanning_sequence", {"ScanningSequence": "SE\\ ir "}, ("SE", "IR")),
        ("scanning_sequence", {"ScanningSequence": None}, ()),
        (
            "scanning_sequence",
            {"ScanningSequence": None, "EchoPulseSequence": "SPIN"},
            ("SE",),
        ),
        (
            "scanning_sequence",
            {"ScanningSequence": None, "EchoPulseSequence": "GRADIENT"},
            ("GR",),
        ),
        (
            "scanning_sequence",
            {"ScanningSequence": None, "EchoPulseSequence": "both"},
            ("SE", "GR"),
        ),
        (
            "scanning_sequence",
            {"ScanningSequence": None, "EchoPulseSequence": "OTHER"},
            (),
        ),
        (
            "scanning_sequence",
            {"ScanningSequence": "SE", "EchoPulseSequence": "GRADIENT"},
            ("SE",),
        ),
        ("contrast_agent", {}, False),
        ("contrast_agent", {"ContrastBolusAgent": "GD"}, True),
        ("contrast_agent", {"ContrastBolusAgent": "  "}, False),
        (
            "texts",
            {"ProtocolName": "t2 Sag", "SequenceName": "*se2d1"},
            ("WORDS", "T2 SAG", "*SE2D1"),
        ),
        ("texts", {"SeriesDescription": None}, ("", "", "")),
        ("series_number", {"SeriesNumber": 7}, 7),
        ("series_number", {"SeriesNumber": None}, 0),
        ("acquisition_number", {"AcquisitionNumber": 8}, 8),
        ("acquisition_number", {"AcquisitionNumber": None}, 0),
        ("instance_number", {"InstanceNumber": 9}, 9),
        ("instance_number", {"InstanceNumber": "x"}, 0),
    ],
)
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", IMPLICIT, BIG])
def test_what_a_file_says_once(
    syntax: str, attribute: str, changes: dict[str, Any], value: object
) -> None:
    assert getattr(image_of(syntax, **changes), attribute) == value


@pytest.mark.parametrize("option", ["FS", "FAT_SAT", "SPIR", "SPAIR", "SFS"])
@pytest.mark.parametrize("keyword", ["ScanOptions", "SequenceName"])
def test_fat_suppression_is_told_by_options(option: str, keyword: str) -> None:
    assert image_of(**{keyword: f"PFP\\{option.lower()}"}).fat_suppressed
    assert not image_of(**{keyword: f"PFP\\X{option}"}).fat_suppressed


@pytest.mark.parametrize(
    ("attribute", "changes", "value"),
    [
        ("index", {}, 0),
        ("position_mm", {}, (10.0, -60.0, 80.0)),
        ("position_mm", {"ImagePositionPatient": (1, 2)}, None),
        ("position_mm", {"ImagePositionPatient": (1, 2, 3, 4)}, None),
        ("position_mm", {"ImagePositionPatient": "1\\2\\NaN"}, None),
        ("position_mm", {"ImagePositionPatient": "1\\2\\inf"}, None),
        ("position_mm", {"ImagePositionPatient": "1\\2\\1e12"}, None),
        ("position_mm", {"ImagePositionPatient": "1\\2\\-1e12"}, None),
        ("position_mm", {"ImagePositionPatient": "1\\2\\1e5"}, (1.0, 2.0, 1e5)),
        ("position_mm", {"ImagePositionPatient": "1\\2\\-100001"}, None),
        ("spacing_mm", {"PixelSpacing": "100\\100"}, (100.0, 100.0)),
        ("spacing_mm", {"PixelSpacing": "0.5\\101"}, None),
        ("spacing_mm", {"PixelSpacing": "1e7\\1e7"}, None),
        ("position_mm", {"ImagePositionPatient": "1\\2\\x"}, None),
        ("position_mm", {"ImagePositionPatient": "1\\\\3"}, None),
        ("position_mm", {"ImagePositionPatient": " 1 \\ 2 \\ 3 "}, (1.0, 2.0, 3.0)),
        (
            "position_mm",
            {
                "ImagePositionPatient": "0" * 60
                + "1\\"
                + "0" * 60
                + "2\\"
                + "0" * 60
                + "3"
            },
            (1.0, 2.0, 3.0),
        ),
        ("position_mm", {"ImagePositionPatient": ""}, None),
        ("orientation", {}, SAGITTAL),
        ("orientation", {"ImageOrientationPatient": "0\\1\\0\\0\\0"}, None),
        ("spacing_mm", {}, (1.25, 0.75)),
        ("spacing_mm", {"PixelSpacing": "0.5"}, None),
        ("spacing_mm", {"PixelSpacing": (0.5, 0.0)}, None),
        ("spacing_mm", {"PixelSpacing": (-0.5, 0.5)}, None),
        ("spacing_mm", {"PixelSpacing": (0.5, 0.5, 0.5)}, None),
        ("spacing_mm", {"PixelSpacing": (0.001, 0.5)}, (0.001, 0.5)),
        ("slope", {}, 1.0),
        ("slope", {"RescaleSlope": 2.5}, 2.5),
        ("slope", {"RescaleSlope": 0}, 1.0),
        ("slope", {"RescaleSlope": -1}, -1.0),
        ("slope", {"RescaleSlope": "x"}, 1.0),
        ("intercept", {}, 0.0),
        ("intercept", {"RescaleIntercept": -7.5}, -7.5),
        ("echo_time_ms", {"EchoTime": 98.5}, 98.5),
        ("echo_time_ms", {"EchoTime": None}, None),
        ("echo_time_ms", {"EffectiveEchoTime": 77.0}, 77.0),
        ("repetition_time_ms", {"RepetitionTime": 4000}, 4000.0),
        ("repetition_time_ms", {"RepetitionTime": None}, None),
        ("inversion_time_ms", {"InversionTime": 160}, 160.0),
        ("inversion_time_ms", {"InversionTime": 160, "InversionTimes": 220.0}, 220.0),
        ("inversion_time_ms", {}, None),
        ("echo_number", {"EchoNumbers": 2}, 2),
        ("echo_number", {}, None),
        ("b_value", {"DiffusionBValue": 800.0}, 800.0),
        ("b_value", {}, None),
        ("temporal", {"TemporalPositionIdentifier": 3}, 3),
        ("temporal", {"TemporalPositionIdentifier": 3, "TemporalPositionIndex": 5}, 5),
        ("temporal", {}, None),
        ("stack_id", {"StackID": "B "}, "B"),
        ("stack_id", {}, ""),
        ("image_type", {"ImageType": "original\\Primary "}, ("ORIGINAL", "PRIMARY")),
        ("image_type", {"FrameType": "DERIVED\\X"}, ("DERIVED", "X")),
        ("image_type", {"ImageType": None}, ()),
        (
            "acquired",
            {"AcquisitionDate": "20240102", "AcquisitionTime": "101112.5"},
            "20240102101112.5",
        ),
        (
            "acquired",
            {"AcquisitionDate": "20240102", "FrameAcquisitionDateTime": "20230101"},
            "20230101",
        ),
        ("acquired", {}, ""),
    ],
)
def test_what_a_file_says_of_its_slice(
    attribute: str, changes: dict[str, Any], value: object
) -> None:
    assert getattr(frame_of(**changes), attribute) == value


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", IMPLICIT, BIG])
def test_binary_numbers_have_the_order_of_the_file(syntax: str) -> None:
    image = image_of(
        syntax,
        EffectiveEchoTime=77.25,
        TemporalPositionIndex=70_000,
        Rows=258,
        PixelData=b"",
    )
    assert (image.frames[0].echo_time_ms, image.frames[0].temporal, image.rows) == (
        77.25,
        70_000,
        258,
    )


def test_numbers_may_come_in_another_vr() -> None:
    """Writers do: an explicit VR outranks the dictionary's."""
    assert image_of(EchoTime=("FL", b"\0\0\xc0\x42")).frames[0].echo_time_ms == 96.0
    assert image_of(Rows=("SS", b"\x20\0")).rows == 32
    assert image_of(InstanceNumber=("SL", b"\xff\xff\xff\xff")).instance_number == -1


# --- functional groups ------------------------------------------------------------------------------------------------


def group(**values: Any) -> list[dict[str, Any]]:
    """The items of functional groups sequences: one group with each value in a sequence of its own."""
    sequence = {
        "EffectiveEchoTime": "MREchoSequence",
        "ImagePositionPatient": "PlanePositionSequence",
        "StackID": "FrameContentSequence",
        "RepetitionTime": "MRTimingAndRelatedParametersSequence",
        "InversionTimes": "MRModifierSequence",
        "RescaleSlope": "PixelValueTransformationSequence",
        "DiffusionBValue": "MRDiffusionSequence",
        "FrameType": "MRImageFrameTypeSequence",
        "PixelSpacing": "PixelMeasuresSequence",
        "ImageOrientationPatient": "PlaneOrientationSequence",
    }
    return [
        {sequence[keyword]: [{keyword: value}] for keyword, value in values.items()}
    ]


def test_a_frames_own_group_outranks_the_shared_one_and_that_the_data_set() -> None:
    image = image_of(
        NumberOfFrames=3,
        PerFrameFunctionalGroupsSequence=[
            *group(EffectiveEchoTime=10.0),
            *group(StackID="2"),
        ],
        SharedFunctionalGroupsSequence=group(
            EffectiveEchoTime=20.0, RepetitionTime=2000
        ),
    )
    assert [frame.echo_time_ms for frame in image.frames] == [10.0, 20.0, 20.0]
    assert [frame.stack_id for frame in image.frames] == ["", "2", ""]
    assert [frame.repetition_time_ms for frame in image.frames] == [2000.0] * 3
    assert [frame.index for frame in image.frames] == [0, 1, 2]
    assert [frame.spacing_mm for frame in image.frames] == [(1.25, 0.75)] * 3


def test_every_functional_group_is_read() -> None:
    values = {
        "EffectiveEchoTime": 91.0,
        "ImagePositionPatient": (1, 2, 3),
        "StackID": "9",
        "RepetitionTime": 3100,
        "InversionTimes": 150.0,
        "RescaleSlope": 3,
        "DiffusionBValue": 500.0,
        "FrameType": "ORIGINAL\\A",
        "PixelSpacing": (0.5, 0.25),
        "ImageOrientationPatient": (1, 0, 0, 0, 1, 0),
    }
    frame = image_of(SharedFunctionalGroupsSequence=group(**values)).frames[0]
    assert (frame.echo_time_ms, frame.repetition_time_ms, frame.inversion_time_ms) == (
        91,
        3100,
        150,
    )
    assert (frame.position_mm, frame.orientation) == ((1, 2, 3), (1, 0, 0, 0, 1, 0))
    assert (frame.stack_id, frame.slope, frame.b_value, frame.spacing_mm) == (
        "9",
        3,
        500,
        (0.5, 0.25),
    )
    assert frame.image_type == ("ORIGINAL", "A")


def test_a_frames_time_is_its_own_else_that_of_the_file() -> None:
    own = [
        {"FrameContentSequence": [{"FrameAcquisitionDateTime": "20240505"}]},
        {"FrameContentSequence": []},
    ]
    image = image_of(
        NumberOfFrames=2,
        AcquisitionDate="20240101",
        AcquisitionTime="0930",
        PerFrameFunctionalGroupsSequence=own,
        SharedFunctionalGroupsSequence=group(RepetitionTime=2000),
    )
    assert [frame.acquired for frame in image.frames] == ["20240505", "202401010930"]


def test_only_the_first_item_of_a_group_counts() -> None:
    groups = [
        {
            "MREchoSequence": [
                {"EffectiveEchoTime": 10.0},
                {"EffectiveEchoTime": 20.0, "RepetitionTime": 7},
            ]
        }
    ]
    frame = image_of(PerFrameFunctionalGroupsSequence=groups).frames[0]
    assert (frame.echo_time_ms, frame.repetition_time_ms) == (10, 3500)


def test_only_the_first_shared_group_counts() -> None:
    groups = [*group(RepetitionTime=1), *group(EffectiveEchoTime=2.0)]
    frame = image_of(SharedFunctionalGroupsSequence=groups).frames[0]
    assert (frame.repetition_time_ms, frame.echo_time_ms) == (1, 100)


def test_frames_without_groups_share_everything() -> None:
    image = image_of(NumberOfFrames=3)
    assert [frame.index for frame in image.frames] == [0, 1, 2]
    assert {frame.position_mm for frame in image.frames} == {(10.0, -60.0, 80.0)}


def test_one_frame_with_groups_is_one_frame() -> None:
    assert (
        len(
            image_of(
                PerFrameFunctionalGroupsSequence=[
                    *group(StackID="1"),
                    *group(StackID="2"),
                ]
            ).frames
        )
        == 1
    )


# --- which files are images -------------------------------------------------------------------------------------------


def reason_of(meta_class: str = "", **changes: Any) -> Reason | None:
    try:
        check_is_image(parse(dicom(mr(**changes), meta_class=meta_class), WANTED))
    except StudyError as error:
        return error.reason
    return None


@pytest.mark.parametrize(
    "sop_class",
    [
        "1.2.840.10008.1.3.10",
        "1.2.840.10008.5.1.4.1.1.88.33",
        "1.2.840.10008.5.1.4.1.1.88.59",
        "1.2.840.10008.5.1.4.1.1.11.1",
        "1.2.840.10008.5.1.4.1.1.66",
        "1.2.840.10008.5.1.4.1.1.66.4",
        "1.2.840.10008.5.1.4.1.1.104.1",
        "1.2.840.10008.5.1.4.1.1.4.2",
        "1.2.840.10008.5.1.4.1.1.9.1.1",
        "1.2.840.10008.5.1.4.1.1.481.3",
    ],
)
def test_objects_that_hold_no_image(sop_class: str) -> None:
    assert reason_of(SOPClassUID=sop_class) is Reason.NOT_AN_IMAGE
    assert reason_of(meta_class=sop_class, SOPClassUID=None) is Reason.NOT_AN_IMAGE
    assert reason_of(meta_class=sop_class) is None, (
        "the data set's own class outranks the meta information's"
    )


@pytest.mark.parametrize(
    "modality",
    [
        "SR",
        "PR",
        "KO",
        "SEG",
        "DOC",
        "REG",
        "FID",
        "PLAN",
        "RTSTRUCT",
        "RTPLAN",
        "RTDOSE",
        "ECG",
        "HD",
        "AU",
        "sr",
    ],
)
def test_modalities_that_hold_no_image(modality: str) -> None:
    assert reason_of(Modality=modality) is Reason.NOT_AN_IMAGE


@pytest.mark.parametrize("modality", ["MR", "CT", "OT", "US", None])
def test_modalities_that_may_hold_one(modality: str | None) -> None:
    assert reason_of(Modality=modality) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, Reason.CORRUPT_FILE),
        (
            {"Modality": "mr", "ImagePositionPatient": None, "Rows": None},
            Reason.CORRUPT_FILE,
        ),
        ({"Modality": "OT", "ImagePositionPatient": None}, Reason.CORRUPT_FILE),
        ({"Modality": "OT", "Rows": None}, Reason.CORRUPT_FILE),
        (
            {"Modality": "OT", "Rows": None, "ImagePositionPatient": None},
            Reason.NOT_AN_IMAGE,
        ),
        (
            {"Modality": None, "Rows": None, "ImagePositionPatient": None},
            Reason.NOT_AN_IMAGE,
        ),
    ],
)
def test_a_file_without_pixels(changes: dict[str, Any], reason: Reason) -> None:
    assert reason_of(PixelData=None, **changes) is reason


@pytest.mark.parametrize(
    ("uid", "key"), [("1" * 64, "1" * 64), ("1" * 65, ""), ("", ""), (" 1.2 ", "1.2")]
)
def test_study_uids_have_at_most_64_characters(uid: str, key: str) -> None:
    assert study_uid(parse(dicom(mr(StudyInstanceUID=uid)), WANTED)) == key


def test_text_of_any_bytes_is_text() -> None:
    walked = parse(dicom(mr(PatientName=b"\xff\xfe\x80^\xc3 \0")), WANTED)
    assert read_image(walked).patient[2] == "ÿþ\x80^Ã"
