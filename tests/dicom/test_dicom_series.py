"""From series to study: what a series is refused for, what a study is refused for, and what is said about both."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from raw_dicom import AXIAL, slice_of

from spine_engine.dicom import RoleOverrides
from spine_engine.dicom.geometry import Slice
from spine_engine.dicom.series import ReadSeries, assemble
from spine_engine.errors import Reason, Warn
from spine_engine.study import Role, Series, Study

T1 = {"EchoTime": 10, "RepetitionTime": 550}


def slices(count: int = 6, first: int = 0, **changes: Any) -> list[Slice]:
    return [slice_of(first + i, **changes) for i in range(count)]


def read(
    path: str, found: list[Slice] | None = None, uid: str = "", **fields: Any
) -> ReadSeries:
    return ReadSeries(
        uid or f"1.2.3.{path}", path, slices() if found is None else found, **fields
    )


def lost(path: str, *reasons: Reason) -> ReadSeries:
    """A series of which nothing is left."""
    return ReadSeries(f"1.2.3.{path}", path, [], len(reasons), Counter(reasons))


def study_of(*series: ReadSeries, stated: dict[str, Role] | None = None) -> Study:
    roles = {("1.2.3", path): role for path, role in (stated or {}).items()}
    return assemble("1.2.3", series, RoleOverrides(roles))


def only(*series: ReadSeries, stated: dict[str, Role] | None = None) -> Series:
    (found,) = study_of(*series, stated=stated).series
    return found


# --- the reason of a series -------------------------------------------------------------------------------------------

POSITION, SPACING, ORIENTATION = (
    Reason.NO_POSITION,
    Reason.NO_PIXEL_SPACING,
    Reason.NO_ORIENTATION,
)
PIXELS, FILE = Reason.CORRUPT_PIXELS, Reason.CORRUPT_FILE


@pytest.mark.parametrize(
    ("reasons", "carried", "counted"),
    [
        ((POSITION,), POSITION, "1 slices dropped (no_position 1)"),
        (
            (POSITION, SPACING, POSITION),
            POSITION,
            "3 slices dropped (no_position 2, no_pixel_spacing 1)",
        ),
        (
            (SPACING, POSITION, SPACING),
            SPACING,
            "3 slices dropped (no_position 1, no_pixel_spacing 2)",
        ),
        (
            (PIXELS, FILE, FILE, FILE, PIXELS),
            FILE,
            "5 slices dropped (corrupt_pixels 2, corrupt_file 3)",
        ),
        (
            (SPACING, POSITION),
            POSITION,
            "2 slices dropped (no_position 1, no_pixel_spacing 1)",
        ),
        ((FILE, PIXELS), PIXELS, "2 slices dropped (corrupt_pixels 1, corrupt_file 1)"),
        (
            (Reason.TIMEOUT, Reason.TOO_LARGE),
            Reason.TOO_LARGE,
            "2 slices dropped (too_large 1, timeout 1)",
        ),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_series_carries_the_most_frequent_reason(
    reasons: tuple[Reason, ...], carried: Reason, counted: str, reverse: bool
) -> None:
    """Of equally frequent ones the first in the list of reasons."""
    series = only(lost("a", *(reasons[::-1] if reverse else reasons)))
    assert series.reason is carried
    assert series.evidence == f"no stack of slices at different positions; {counted}"
    assert (series.role, series.stacks, series.slices, series.path) == (
        None,
        (),
        0,
        "a",
    )


def test_reasons_of_reading_and_of_geometry_are_counted_together() -> None:
    found = [slice_of(i, ImagePositionPatient=None) for i in range(2)]
    series = only(read("a", found, failures=Counter({PIXELS: 1})))
    assert series.reason is POSITION
    assert "3 slices dropped (no_position 2, corrupt_pixels 1)" in series.evidence


def test_one_sound_slice_is_no_volume_whatever_else_was_lost() -> None:
    series = only(read("a", slices(1), failures=Counter({PIXELS: 5})))
    assert series.reason is Reason.NOT_A_VOLUME
    assert "5 slices dropped (corrupt_pixels 5)" in series.evidence


def test_two_slices_are_a_stack() -> None:
    series = only(read("a", slices(2)))
    assert (series.reason, len(series.stacks), series.slices) == (None, 1, 2)


def test_what_could_never_play_a_role_is_not_refused() -> None:
    series = only(read("a", [], images=7, unread=["not MR", "colour images", "not MR"]))
    assert (series.reason, series.evidence, series.slices) == (None, "colour images", 7)
    assert (
        study_of(read("a", [], images=7, unread=["not MR"])).warnings[0]
        is Warn.NO_SAGITTAL_T1
    )


def test_a_single_localizer_is_no_refusal_unless_a_table_names_it() -> None:
    scout = read("a", slices(1, ImageType="ORIGINAL\\PRIMARY\\LOCALIZER"), images=1)
    assert (only(scout).reason, only(scout).evidence, only(scout).slices) == (
        None,
        "localizer images",
        1,
    )
    stated = only(scout, stated={"a": Role.SAGITTAL_T2})
    assert (stated.reason, stated.slices) == (Reason.NOT_A_VOLUME, 0)


# --- the reason of a study --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("series", "reason"),
    [
        ([read("a")], None),
        ([read("a", slices(**T1))], None),
        ([read("a"), lost("b", POSITION)], None),
        ([lost("a", POSITION)], POSITION),
        ([lost("a", POSITION), lost("b", POSITION)], POSITION),
        ([lost("a", PIXELS), lost("b", PIXELS)], PIXELS),
        ([lost("a", POSITION), lost("b", ORIENTATION)], Reason.NO_GEOMETRY),
        ([lost("a", SPACING), lost("b", Reason.BAD_ORIENTATION)], Reason.NO_GEOMETRY),
        (
            [lost("a", POSITION), lost("b", ORIENTATION), lost("c", SPACING)],
            Reason.NO_GEOMETRY,
        ),
        ([lost("a", POSITION), lost("b", PIXELS)], Reason.NO_SAGITTAL),
        ([lost("a", PIXELS), lost("b", FILE)], Reason.NO_SAGITTAL),
        ([lost("a", POSITION), lost("b", Reason.NOT_A_VOLUME)], Reason.NO_SAGITTAL),
        (
            [lost("a", POSITION), read("b", slices(ImageOrientationPatient=AXIAL))],
            Reason.NO_SAGITTAL,
        ),
        (
            [lost("a", POSITION), read("b", [], images=1, unread=["not MR"])],
            Reason.NO_SAGITTAL,
        ),
        ([read("a", slices(ImageOrientationPatient=AXIAL))], Reason.NO_SAGITTAL),
        ([], Reason.NO_SAGITTAL),
    ],
)
def test_a_study_cannot_be_graded_because(
    series: list[ReadSeries], reason: Reason | None
) -> None:
    assert study_of(*series).reason is reason


# --- parts, order, warnings -------------------------------------------------------------------------------------------


def test_series_come_by_path_then_by_uid() -> None:
    given = [
        read("b"),
        read("a", uid="2"),
        read("a", slices(**T1), uid="1"),
        lost("aa", POSITION),
    ]
    study = study_of(*given)
    assert [one.path for one in study.series] == ["a", "a", "aa", "b"]
    assert [one.contrast for one in study.series] == ["t1", "t2", None, "t2"]


def test_a_series_of_two_planes_is_two_the_long_ones_first() -> None:
    found = [*slices(5), *slices(3, 10, ImageOrientationPatient=AXIAL)]
    long, short = study_of(read("a", found)).series
    assert (long.role, long.slices, short.role, short.slices) == (
        Role.SAGITTAL_T2,
        5,
        None,
        3,
    )
    assert short.evidence == "3 slices a stack at most, 5 are needed"


def test_planes_of_equal_length_come_by_name() -> None:
    coronal = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
    found = [
        *slices(5),
        *slices(5, 10, ImageOrientationPatient=coronal),
        *slices(5, 20, ImageOrientationPatient=AXIAL),
    ]
    words = [one.evidence.split()[0] for one in study_of(read("a", found)).series]
    assert words == ["axial", "coronal", "sagittal"]


def test_stacks_whose_plane_nobody_knows_come_first() -> None:
    oblique = (0.7071068, 0.7071068, 0.0, -0.4082483, 0.4082483, 0.8164966)
    found = [*slices(5), *slices(5, 10, ImageOrientationPatient=oblique)]
    words = [one.evidence.split()[0] for one in study_of(read("a", found)).series]
    assert words == ["oblique", "sagittal"]


def test_stacks_of_one_plane_belong_together() -> None:
    blocks = [
        slice_of(
            10 * k + i,
            ImageOrientationPatient=AXIAL,
            base_mm=(0, 0, -40 * k + 4 * i),
            at_mm=0,
            StackID=str(k),
        )
        for k in range(3)
        for i in range(5)
    ]
    series = only(read("a", blocks))
    assert (series.role, len(series.stacks), series.slices) == (Role.AXIAL_T2, 3, 15)


def test_a_stack_too_short_takes_no_role_unless_a_table_names_its_series() -> None:
    assert only(read("a", slices(4))).role is None
    assert only(read("a", slices(5))).role is Role.SAGITTAL_T2
    assert (
        only(read("a", slices(2)), stated={"a": Role.SAGITTAL_T1}).role
        is Role.SAGITTAL_T1
    )


def test_a_table_gives_no_role_to_a_lone_slice() -> None:
    found = [*slices(6), slice_of(20, ImageOrientationPatient=AXIAL)]
    study = study_of(read("a", found), stated={"a": Role.AXIAL_T2})
    assert [(one.role, one.slices) for one in study.series] == [
        (Role.SAGITTAL_T2, 6),
        (None, 1),
    ]


def test_dropped_slices_are_said_where_they_were_lost() -> None:
    study = study_of(read("a", failures=Counter({FILE: 2})), read("b", slices(**T1)))
    assert Warn.SLICE_DROPPED in study.warnings
    assert study.series[0].evidence.endswith("; 2 slices dropped (corrupt_file 2)")
    assert "dropped" not in study.series[1].evidence
    assert Warn.SLICE_DROPPED not in study_of(read("a")).warnings
    assert Warn.SLICE_DROPPED not in study_of(read("a"), lost("b", FILE)).warnings, (
        "that series is refused as a whole"
    )


def test_warnings_are_those_of_the_series_that_are_used() -> None:
    gap = [slice_of(i, at_mm=4 * i + 8 * (i > 4)) for i in range(8)]
    assert Warn.GAP in study_of(read("a", gap)).warnings
    better = [slice_of(i) for i in range(9)]
    assert Warn.GAP not in study_of(read("a", gap), read("b", better)).warnings


@pytest.mark.parametrize(
    ("frames", "warned"),
    [
        (("1.1", "1.2"), True),
        (("1.1", "1.1"), False),
        (("1.1", None), False),
        ((None, None), False),
    ],
)
def test_frames_of_reference(
    frames: tuple[str | None, str | None], warned: bool
) -> None:
    one = read("a", slices(FrameOfReferenceUID=frames[0]))
    other = read("b", slices(**T1, FrameOfReferenceUID=frames[1]))
    assert (Warn.FRAME_OF_REFERENCE in study_of(one, other).warnings) is warned


def test_the_frame_of_reference_of_a_series_without_a_role_does_not_matter() -> None:
    scout = read("b", slices(3, FrameOfReferenceUID="1.9"))
    assert (
        Warn.FRAME_OF_REFERENCE
        not in study_of(read("a", slices(FrameOfReferenceUID="1.1")), scout).warnings
    )


def test_evidence_tells_everything_in_one_line() -> None:
    found = [*slices(6), slice_of(2, "copy"), *slices(2, 20, Rows=4)]
    series = only(read("a", found, failures=Counter({PIXELS: 1})))
    assert series.evidence == (
        "sagittal (normal 1.00 0.00 0.00), TE 100 ms, TR 3500 ms: T2; 1 slices dropped (corrupt_pixels 1); "
        "1 exact copies dropped; 2 slices of another matrix or spacing left out"
    )


def test_the_record_of_a_series() -> None:
    series = only(read("x/y", slices(6)))
    assert (series.path, series.role, series.contrast, series.reason) == (
        "x/y",
        Role.SAGITTAL_T2,
        "t2",
        None,
    )
    assert series.slices == 6
    (stack,) = series.stacks
    np.testing.assert_allclose(stack.positions_mm, [-10 + 4 * i for i in range(6)])
    assert study_of(read("x/y")).study_id == "1.2.3"
