"""Several slices at one position: exact copies are dropped, of different images the latest is used; both are said."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_dicom import dicom, image, mr, read_files, series, slice_of

from spine_engine.dicom.geometry import BuiltStack, Slice, build_stacks
from spine_engine.errors import Warn


def one_stack(*slices: Slice) -> BuiltStack:
    (built,), refused = build_stacks(slices)
    assert not refused
    return built


def at_zero(pixels: int, path: str = "", **changes: Any) -> Slice:
    """A slice at the position of slice 0."""
    return slice_of(
        0, path or f"p{pixels}", at_mm=0.0, PixelData=image(pixels), **changes
    )


REST = (slice_of(1), slice_of(2), slice_of(3))


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        (
            {
                "AcquisitionNumber": 1,
                "AcquisitionDate": "20250101",
                "InstanceNumber": 9,
            },
            {
                "AcquisitionNumber": 2,
                "AcquisitionDate": "20240101",
                "InstanceNumber": 1,
            },
        ),
        (
            {
                "AcquisitionDate": "20240101",
                "AcquisitionTime": "10",
                "InstanceNumber": 9,
            },
            {
                "AcquisitionDate": "20240101",
                "AcquisitionTime": "11",
                "InstanceNumber": 1,
            },
        ),
        ({"InstanceNumber": 9}, {"InstanceNumber": 10}),
        ({"path": "a"}, {"path": "b"}),
    ],
    ids=["acquisition", "time", "instance", "path"],
)
def test_the_latest_image_is_used(older: dict[str, Any], newer: dict[str, Any]) -> None:
    """By acquisition number, then by time of acquisition, then by instance number."""
    slices = (at_zero(50, **older), at_zero(60, **newer), *REST)
    for order in (slices, slices[::-1]):
        built = one_stack(*order)
        np.testing.assert_array_equal(built.stack.pixels[0], image(60))
        assert built.warnings == {Warn.DUP_POSITION}
        assert len(built.stack.pixels) == 4


def test_of_frames_of_one_file_the_last_is_used(tmp_path: Path) -> None:
    positions = (0, 4, 8, 12, 16, 8)
    groups = [
        {"PlanePositionSequence": [{"ImagePositionPatient": (-x, 0, 0)}]}
        for x in positions
    ]
    pixels = np.stack([image(i) for i in range(6)])
    one = dicom(
        mr(NumberOfFrames=6, PixelData=pixels, PerFrameFunctionalGroupsSequence=groups)
    )
    (study,) = read_files(tmp_path, {"one": one}).studies
    np.testing.assert_array_equal(study.series[0].stacks[0].pixels[2], image(5))


def test_the_evidence_names_the_images_and_the_one_that_is_used() -> None:
    built = one_stack(
        at_zero(50, AcquisitionNumber=3, InstanceNumber=7),
        at_zero(60, AcquisitionNumber=2),
        *REST,
    )
    assert built.notes == (
        "acquisition/instance 2/1 and 3/7 share position -10.00 mm, 3/7 kept",
    )


@pytest.mark.parametrize(("away_mm", "count"), [(0.0, 4), (0.04, 4), (0.06, 5)])
def test_a_position_is_a_twentieth_of_a_millimetre(away_mm: float, count: int) -> None:
    built = one_stack(slice_of(0), slice_of(9, at_mm=away_mm), *REST)
    assert len(built.stack.pixels) == count
    assert (Warn.DUP_POSITION in built.warnings) is (count == 4)


def test_positions_do_not_drift_together() -> None:
    """Each is compared with the first at its position: 0, 0.04 and 0.08 mm are two positions."""
    built = one_stack(*(slice_of(10 + i, at_mm=0.04 * i) for i in range(3)), *REST)
    assert len(built.stack.pixels) == 5


@pytest.mark.parametrize("copies", [1, 3])
def test_exact_copies_are_dropped_and_counted(copies: int) -> None:
    again = [slice_of(2, f"copy{i}", InstanceNumber=90 + i) for i in range(copies)]
    built = one_stack(slice_of(0), slice_of(1), slice_of(2), slice_of(3), *again)
    assert built.warnings == {Warn.DUP_FILE}
    assert built.notes == (f"{copies} exact copies dropped",)
    assert len(built.stack.pixels) == 4
    assert built.slices[2].path == f"copy{copies - 1}", "of equal ones the latest"


@pytest.mark.parametrize("change", [{"RescaleSlope": 2}, {"RescaleIntercept": 5}])
def test_the_same_stored_values_of_another_scale_are_another_image(
    change: dict[str, Any],
) -> None:
    built = one_stack(
        slice_of(0),
        slice_of(1),
        slice_of(2),
        slice_of(2, "x", InstanceNumber=9, **change),
    )
    assert built.warnings == {Warn.DUP_POSITION}
    assert built.slices[2].path == "x"


def test_copies_and_other_images_at_one_position() -> None:
    older, copy, newer = (
        at_zero(50, "older"),
        at_zero(50, "copy", InstanceNumber=3),
        at_zero(60, "newer", InstanceNumber=2),
    )
    for order in permutations((older, copy, newer)):
        built = one_stack(*order, *REST)
        assert built.warnings == {Warn.DUP_FILE, Warn.DUP_POSITION}
        assert built.slices[0].path == "copy", (
            "the latest of all, though an older copy of it is there"
        )
        assert built.notes == (
            "acquisition/instance 1/3 and 1/2 share position -10.00 mm, 1/3 kept",
            "1 exact copies dropped",
        )


def test_copies_at_several_positions_are_counted_together() -> None:
    again = [slice_of(i, f"copy{i}") for i in (0, 2, 3)]
    built = one_stack(slice_of(0), *REST, *again)
    assert built.notes == ("3 exact copies dropped",)


def test_at_most_four_shared_positions_are_named() -> None:
    slices = [slice_of(i) for i in range(6)]
    again = [
        slice_of(i, f"x{i}", InstanceNumber=50 + i, PixelData=image(70 + i))
        for i in range(6)
    ]
    built = one_stack(*slices, *again)
    assert len(built.notes) == 4
    assert [note.split()[1] for note in built.notes] == ["1/1", "1/2", "1/3", "1/4"]
    np.testing.assert_array_equal(
        built.stack.pixels, np.stack([image(70 + i) for i in range(6)])
    )


def test_a_study_says_both(tmp_path: Path) -> None:
    files = series() | {
        "copy": dicom(mr(5)),
        "other": dicom(mr(3, PixelData=image(99), InstanceNumber=40)),
    }
    (study,) = read_files(tmp_path, files).studies
    evidence = study.series[0].evidence
    assert (
        "acquisition/instance 1/4 and 1/40 share position 2.00 mm, 1/40 kept; 1 exact copies dropped"
        in evidence
    )
    assert study.series[0].slices == 8
    assert study.warnings[:2] == (Warn.DUP_POSITION, Warn.DUP_FILE)
