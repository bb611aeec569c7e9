"""From slices to stacks: each tolerance just inside and just outside, ties, and which of two slices is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from raw_dicom import AXIAL, SAGITTAL, image, slice_of

from spine_engine.dicom.geometry import (
    BuiltStack,
    Slice,
    build_stacks,
    contrast_groups,
    image_kind,
    place,
)
from spine_engine.errors import Reason, StudyError, Warn


def tilted(degrees: float) -> tuple[float, ...]:
    """An axial orientation tilted about the x axis."""
    a = np.deg2rad(degrees)
    return (1.0, 0.0, 0.0, 0.0, float(np.cos(a)), float(np.sin(a)))


def turned(degrees: float) -> tuple[float, ...]:
    """An axial orientation turned in its plane: the normal stays."""
    a = np.deg2rad(degrees)
    return (
        float(np.cos(a)),
        float(np.sin(a)),
        0.0,
        -float(np.sin(a)),
        float(np.cos(a)),
        0.0,
    )


def block(
    count: int, first: int = 0, step: float = 4.0, start: float = 0.0, **changes: Any
) -> list[Slice]:
    return [
        slice_of(first + i, at_mm=start + step * i, **changes) for i in range(count)
    ]


def stacks(slices: Sequence[Slice]) -> list[BuiltStack]:
    built, refused = build_stacks(slices)
    assert not refused
    return built


def sizes(slices: Sequence[Slice]) -> list[int]:
    return [len(one.slices) for one in stacks(slices)]


# --- one slice --------------------------------------------------------------------------------------------------------


def refused(**changes: Any) -> Reason | None:
    try:
        place(slice_of(**changes))
    except StudyError as error:
        return error.reason
    return None


@pytest.mark.parametrize(
    ("right", "down", "sound"),
    [
        ((0, 1, 0), (0, 0, -1), True),
        ((0, 1.0009, 0), (0, 0, -1), True),
        ((0, 1.0011, 0), (0, 0, -1), False),
        ((0, 0.9989, 0), (0, 0, -1), False),
        ((0, 1, 0), (0, 0, -1.0009), True),
        ((0, 1, 0), (0, 0, -1.0011), False),
        ((0, 1, 0), (0, 0.0009, -1), True),
        ((0, 1, 0), (0, 0.0011, -1), False),
        ((0, 1, 0), (0, -0.0011, -1), False),
        ((0, 0, 0), (0, 0, -1), False),
        ((0, 1, 0), (0, 1, 0), False),
    ],
)
def test_orientations_within_a_thousandth_are_renormalised(
    right: tuple[float, ...], down: tuple[float, ...], sound: bool
) -> None:
    changes = {
        "ImageOrientationPatient": (*map(float, right), *map(float, down)),
        "base_mm": (1, 2, 3),
        "at_mm": 0,
    }
    if not sound:
        assert refused(**changes) is Reason.BAD_ORIENTATION
        return
    axes = place(slice_of(**changes)).axes
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(
        axes[2], (0, 1, 0), atol=1e-12
    )  # rows keep their direction, columns are squared to them
    np.testing.assert_allclose(axes, [[-1, 0, 0], [0, 0, -1], [0, 1, 0]], atol=1e-3)


def test_axes_that_slices_share_cannot_be_written() -> None:
    axes = place(slice_of()).axes
    with pytest.raises(ValueError, match="read-only"):
        axes[0] = 0.0


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        (
            ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"),
            Reason.NO_ORIENTATION,
        ),
        (("ImagePositionPatient", "PixelSpacing"), Reason.NO_POSITION),
        (("PixelSpacing",), Reason.NO_PIXEL_SPACING),
    ],
)
def test_the_first_thing_that_is_missing_is_said(
    missing: tuple[str, ...], reason: Reason
) -> None:
    assert refused(**dict.fromkeys(missing)) is reason


def test_slices_without_a_place_are_counted_by_reason() -> None:
    lost = [
        slice_of(9, ImagePositionPatient=None),
        slice_of(9, PixelSpacing=None),
        slice_of(8, PixelSpacing=None),
    ]
    built, refused = build_stacks([*block(3), *lost])
    assert [len(one.slices) for one in built] == [3]
    assert refused == Counter({Reason.NO_PIXEL_SPACING: 2, Reason.NO_POSITION: 1})


# --- contrasts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "groups"),
    [
        ({"EchoTime": 10.0}, {"EchoTime": 11.0}, 1),
        ({"EchoTime": 10.0}, {"EchoTime": 11.01}, 2),
        ({"EchoTime": None}, {"EchoTime": None, "EchoNumbers": 1}, 2),
        ({"EchoTime": None, "EchoNumbers": 2}, {"EchoTime": None, "EchoNumbers": 1}, 2),
        ({"EchoNumbers": 2}, {"EchoNumbers": 1}, 1),
        ({"DiffusionBValue": 0.0}, {"DiffusionBValue": 50.0}, 2),
        ({"DiffusionBValue": 0.0}, {}, 1),
        ({"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}, 2),
        ({"InversionTime": 160}, {"InversionTime": 800}, 2),
        ({}, {"TemporalPositionIdentifier": 1}, 2),
        ({}, {"TemporalPositionIdentifier": 0}, 1),
        ({}, {"DiffusionBValue": 1.0}, 2),
        ({}, {"InversionTime": 1}, 2),
        ({}, {"InversionTime": 0}, 1),
        (
            {"ImageType": "ORIGINAL\\PRIMARY\\M"},
            {"ImageType": "ORIGINAL\\PRIMARY\\M\\ND"},
            1,
        ),
        (
            {"ImageType": "ORIGINAL\\PRIMARY\\M"},
            {"ImageType": "ORIGINAL\\PRIMARY\\WATER"},
            2,
        ),
        (
            {"SeriesDescription": "a"},
            {"SeriesDescription": "b", "RepetitionTime": 900},
            1,
        ),
    ],
)
def test_a_series_is_split_by_what_makes_another_contrast(
    one: dict[str, Any], other: dict[str, Any], groups: int
) -> None:
    found = contrast_groups([slice_of(0, **one), slice_of(1, **other)])
    assert len(found) == groups


def test_echo_times_that_drift_are_one_echo() -> None:
    times = (10.0, 10.8, 11.6, 20.0)
    found = contrast_groups([slice_of(i, EchoTime=te) for i, te in enumerate(times)])
    assert [len(group) for group in found] == [3, 1]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"EchoTime": 20.0, "DiffusionBValue": 9.0}, {"EchoTime": 90.0}),
        ({"TemporalPositionIdentifier": 5}, {"DiffusionBValue": 50.0}),
        ({"ImageType": "ORIGINAL\\PRIMARY\\WATER"}, {"TemporalPositionIdentifier": 5}),
        (
            {"ImageType": "ORIGINAL\\PRIMARY\\FAT"},
            {"ImageType": "ORIGINAL\\PRIMARY\\WATER"},
        ),
        ({"InversionTime": 160}, {"ImageType": "ORIGINAL\\PRIMARY\\WATER"}),
        ({"InversionTime": 160}, {"InversionTime": 800}),
    ],
    ids=["echo", "b-value", "time", "kind", "kind before inversion", "inversion"],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_groups_come_in_ascending_order(
    first: dict[str, Any], second: dict[str, Any], swapped: bool
) -> None:
    slices = [slice_of(0, **first), slice_of(1, **second)]
    groups = contrast_groups(slices[::-1] if swapped else slices)
    assert [[s.path for s in group] for group in groups] == [["000"], ["001"]]


KINDS = {
    "mosaic": ["MOSAIC"],
    "localizer": ["LOCALIZER", "SCOUT"],
    "projection": ["PROJECTION IMAGE", "PROJECTION", "MIP", "MNIP", "MAX_IP"],
    "reformat": ["MPR", "REFORMATTED", "CSA MPR", "CURVED"],
    "screen save": ["SCREEN SAVE", "CSA REPORT", "PROTOCOL", "SCREENSHOT"],
    "map": [
        "ADC",
        "FA",
        "EADC",
        "T2 MAP",
        "T1 MAP",
        "T2_STAR",
        "DIFFUSION MAP",
        "R2",
        "PERFUSION",
        "FIELD_MAP",
    ],
    "phase": [
        "P",
        "PHASE",
        "PHASE MAP",
        "PHASE_MAP",
        "I",
        "R",
        "REAL",
        "IMAGINARY",
        "VELOCITY",
        "VELOCITY MAP",
    ],
    "derived": ["DERIVED"],
    "water": ["WATER", "W"],
    "fat": ["FAT", "F"],
    "in phase": ["IN_PHASE", "IP", "IN PHASE"],
    "opposed phase": ["OPP_PHASE", "OP", "OUT_PHASE", "OPPOSED PHASE"],
    "slice": ["M", "ND", "NORM", "OTHER", ""],
}


@pytest.mark.parametrize(
    ("kind", "word"), [(kind, word) for kind, words in KINDS.items() for word in words]
)
def test_the_kind_of_an_image(kind: str, word: str) -> None:
    assert image_kind(("ORIGINAL", "PRIMARY", word, "ND")) == kind


def test_the_more_telling_word_names_the_kind() -> None:
    for first, second in zip(list(KINDS)[:-2], list(KINDS)[1:-1], strict=True):
        assert image_kind((KINDS[second][0], KINDS[first][0])) == first


# --- parallel slices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [tilted, turned])
@pytest.mark.parametrize(("degrees", "expected"), [(0.97, [8]), (1.03, [5, 3])])
def test_slices_within_a_degree_are_parallel(
    turn: Any, degrees: float, expected: list[int]
) -> None:
    """In their normals and in their rows. Every other slice is turned, so no jump divides them."""
    most = [
        slice_of(i, at_mm=4 * i, ImageOrientationPatient=AXIAL) for i in (0, 2, 4, 6, 7)
    ]
    rest = [
        slice_of(
            i,
            ImageOrientationPatient=turn(degrees),
            base_mm=(10, -60, 80 + 4 * i),
            at_mm=0,
        )
        for i in (1, 3, 5)
    ]
    assert sorted(sizes([*most, *rest]), reverse=True) == expected


def test_the_most_frequent_orientation_leads_and_the_nearest_leader_takes_a_slice() -> (
    None
):
    """At 0, 0.8 and 1.6 degrees: the five in the middle are within a degree of all, the others of them only."""
    slices = [
        slice_of(
            i, ImageOrientationPatient=tilted(degrees), base_mm=(0, 0, 3 * i), at_mm=0
        )
        for i, degrees in enumerate((0.8, 0.0, 0.8, 1.6, 0.8, 0.0, 0.8, 1.6, 0.8))
    ]
    assert sizes(slices) == [9]
    apart = [
        slice_of(
            i, ImageOrientationPatient=tilted(degrees), base_mm=(0, 0, 3 * i), at_mm=0
        )
        for i, degrees in enumerate((0.0, 0.0, 0.0, 1.2, 1.2, 0.7))
    ]
    assert sorted(sizes(apart)) == [3, 3]  # 0.7 is nearer to 1.2


def test_stacks_with_ids_are_apart() -> None:
    assert sizes([*block(3, StackID="1"), *block(4, 3, start=12.0, StackID="2")]) == [
        3,
        4,
    ]


def test_the_axes_of_a_stack_are_those_of_most_of_its_slices() -> None:
    slices = [
        slice_of(
            i,
            ImageOrientationPatient=tilted(0.02 if i in (1, 4) else 0.0),
            base_mm=(0, 0, 4 * i),
            at_mm=0,
        )
        for i in range(6)
    ]
    (one,) = stacks(slices)
    np.testing.assert_allclose(
        one.stack.axes, [[0, 0, 1], [0, 1, 0], [1, 0, 0]], atol=1e-12
    )


# --- one matrix, one spacing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"PixelSpacing": (1.2512, 0.75)}, True),
        ({"PixelSpacing": (1.2513, 0.75)}, False),
        ({"PixelSpacing": (1.25, 0.7507)}, True),
        ({"PixelSpacing": (1.25, 0.7508)}, False),
        ({"Rows": 7}, False),
        ({"Columns": 5}, False),
        ({"PixelRepresentation": 1}, False),
        ({"BitsStored": 13, "HighBit": 12}, True),
    ],
)
def test_the_largest_group_of_one_matrix_and_spacing_is_kept(
    change: dict[str, Any], same: bool
) -> None:
    (one,) = stacks([*block(5), *block(3, 5, start=20.0, **change)])
    assert len(one.slices) == (8 if same else 5)
    assert (Warn.MIXED_MATRIX in one.warnings) is not same
    assert one.notes == (
        () if same else ("3 slices of another matrix or spacing left out",)
    )


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ({"Rows": 7}, {"Rows": 8, "Columns": 5}),
        ({"Columns": 5}, {"Columns": 6}),
        ({"PixelRepresentation": 0}, {"PixelRepresentation": 1}),
        ({"PixelSpacing": (1.0, 0.9)}, {"PixelSpacing": (1.1, 0.8)}),
        ({"PixelSpacing": (1.0, 0.8)}, {"PixelSpacing": (1.0, 0.9)}),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_of_groups_of_one_size_the_larger_matrix_is_kept(
    smaller: dict[str, Any], larger: dict[str, Any], swapped: bool
) -> None:
    start = (1.0, 0.0) if swapped else (0.0, 1.0)
    (one,) = stacks(
        [*block(3, start=start[0], **smaller), *block(3, 3, start=start[1], **larger)]
    )
    assert [s.path for s in one.slices] == ["003", "004", "005"]


# --- side by side, and where the tilt changes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("along", "across", "expected"),
    [
        (0.0, 1.1, [4, 4]),
        (0.0, 0.9, [4]),
        (0.04, 1.1, [4, 4]),
        (0.06, 1.1, [8]),
        (2.0, 30.0, [8]),
        (0.0, -1.1, [4, 4]),
    ],
)
@pytest.mark.parametrize("direction", [0, 1])
def test_slices_side_by_side_are_blocks(
    along: float, across: float, expected: list[int], direction: int
) -> None:
    base = [0.0, 0.0, along]
    base[direction] += across
    here = block(4, ImageOrientationPatient=AXIAL, base_mm=(0, 0, 0))
    there = block(4, 4, ImageOrientationPatient=AXIAL, base_mm=tuple(base))
    assert sizes([*here, *there]) == expected


@pytest.mark.parametrize(
    ("counts", "tilt", "jump", "expected"),
    [
        ((3, 3), 0.06, "gap", [3, 3]),
        ((3, 3), 0.04, "gap", [6]),
        ((3, 3), 0.06, "aside", [3, 3]),
        ((3, 3), 0.06, "not aside", [6]),
        ((3, 3), 0.06, "no gap", [6]),
        ((2, 4), 0.06, "gap", [6]),
        ((4, 2), 0.06, "gap", [6]),
        ((2, 3), 0.06, "gap", [5]),
        ((4, 5), 0.5, "gap", [5, 4]),
    ],
)
def test_blocks_of_a_tilt_of_their_own(
    counts: tuple[int, int], tilt: float, jump: str, expected: list[int]
) -> None:
    """Blocks of at least three, a jump apart: more than 1.5 usual distances along, or more than 1 mm aside."""
    along, aside = {
        "gap": (6.1, 0.0),
        "no gap": (5.9, 0.0),
        "aside": (4.0, 1.1),
        "not aside": (4.0, 0.9),
    }[jump]
    first, second = counts
    lower = [
        slice_of(i, ImageOrientationPatient=AXIAL, base_mm=(0, 0, 4 * i), at_mm=0)
        for i in range(first)
    ]
    start = 4 * (first - 1) + along
    upper = [
        slice_of(
            first + i,
            ImageOrientationPatient=tilted(tilt),
            base_mm=(aside, 0, start + 4 * i),
            at_mm=0,
        )
        for i in range(second)
    ]
    assert sizes([*lower, *upper]) == expected


@pytest.mark.parametrize(
    ("moved", "first"),
    [((0, 0, 9), "003"), ((9, 0, 0), "003"), ((0, 9, 0), "003"), ((9, 0, -9), "000")],
)
def test_stacks_come_from_the_top_then_from_the_left_then_from_the_back(
    moved: tuple[int, ...], first: str
) -> None:
    here = block(3, ImageOrientationPatient=AXIAL, base_mm=(0, 0, 0), StackID="1")
    there = block(3, 3, ImageOrientationPatient=AXIAL, base_mm=moved, StackID="2")
    for slices in ([*here, *there], [*there, *here]):
        assert stacks(slices)[0].slices[0].path == first
    swapped = block(3, ImageOrientationPatient=AXIAL, base_mm=(0, 0, 0), StackID="2")
    swapped += block(3, 3, ImageOrientationPatient=AXIAL, base_mm=moved, StackID="1")
    assert stacks(swapped)[0].slices[0].path == first


# --- order, gaps ------------------------------------------------------------------------------------------------------


def test_slices_ascend_along_the_normal_with_their_own_values() -> None:
    positions = (8.0, 0.0, 20.0, 4.0, 16.0)
    slices = [
        slice_of(i, at_mm=p, RescaleSlope=i + 1, RescaleIntercept=-i)
        for i, p in enumerate(positions)
    ]
    (one,) = stacks(slices)
    order = [1, 3, 0, 4, 2]
    np.testing.assert_array_equal(one.stack.pixels, np.stack([image(i) for i in order]))
    np.testing.assert_array_equal(one.stack.slope, [i + 1 for i in order])
    np.testing.assert_array_equal(one.stack.intercept, [-i for i in order])
    assert one.stack.slope.dtype == one.stack.intercept.dtype == np.float32
    np.testing.assert_allclose(
        one.stack.origins_mm, [[10 - positions[i], -60, 80] for i in order]
    )
    np.testing.assert_allclose(one.stack.axes, [[-1, 0, 0], [0, 0, -1], [0, 1, 0]])
    assert one.stack.spacing_mm == (1.25, 0.75)
    assert [s.path for s in one.slices] == [f"{i:03d}" for i in order]
    assert SAGITTAL[3:] == (0, 0, -1)


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ((4, 4, 4, 4), set()),
        ((4, 4, 6.0, 4), {Warn.UNEVEN}),
        ((4, 4, 6.01, 4), {Warn.GAP}),
        ((4, 4, 4.39, 4), set()),
        ((4, 4, 4.41, 4), {Warn.UNEVEN}),
        ((4, 4, 3.59, 4), {Warn.UNEVEN}),
        ((4, 3.5, 8, 4, 4), {Warn.GAP, Warn.UNEVEN}),
        ((0.3, 0.3, 0.345, 0.3), set()),
        ((0.3, 0.3, 0.355, 0.3), {Warn.UNEVEN}),
        ((4, 12), {Warn.UNEVEN}),
        ((4, 4, 12), {Warn.GAP}),
        ((40,), set()),
    ],
)
def test_gaps_and_uneven_distances(
    distances: tuple[float, ...], expected: set[Warn]
) -> None:
    positions = np.concatenate([[0.0], np.cumsum(distances)])
    (one,) = stacks([slice_of(i, at_mm=float(p)) for i, p in enumerate(positions)])
    assert one.warnings == expected
    np.testing.assert_allclose(np.diff(one.stack.positions_mm), distances, atol=1e-5)
