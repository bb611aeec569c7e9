"""What the inspect page takes of a study: order, words, groups, pictures, and what is left out of a long page."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from spine_engine.errors import Reason, Warn
from spine_engine.report import inspect_page as page_module
from spine_engine.report.inspect_page import InspectedStudy, inspect_page, inspected
from spine_engine.report.stack_words import gaps_of, tilt_of
from spine_engine.study import Role, Series, Stack, Study

SAGITTAL = np.array([[-1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
AXIAL = np.array([[0, 0, 1.0], [0, 1, 0], [1, 0, 0]])


def stack(
    positions: tuple[float, ...] = (0, 4, 8), axes: Any = SAGITTAL, rows: int = 30, columns: int = 20, value: int = 0,
    spacing: tuple[float, float] = (2.0, 1.5),
) -> Stack:  # fmt: skip
    count = len(positions)
    one = np.ones(count, np.float32)
    pixels = np.full((count, rows, columns), value, np.uint16)
    pixels[:, : rows // 2] += 100
    origins = np.array(positions, float)[:, None] * axes[0]
    return Stack(pixels, one, 0 * one, origins, axes, spacing)


def series(
    role: Role | None = Role.SAGITTAL_T2, *stacks: Stack, **fields: Any
) -> Series:
    return Series(
        fields.pop("path", "p"),
        role,
        fields.pop("evidence", "why"),
        stacks,
        3,
        **fields,
    )


def of(*given: Series, **fields: Any) -> InspectedStudy:
    return inspected(Study("1.2.3", given, **fields))


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_series_come_by_role_and_keep_their_order() -> None:
    given = [
        series(None, evidence="none 1"),
        series(Role.AXIAL_T2, stack(axes=AXIAL), evidence="axial 1"),
        series(Role.SAGITTAL_T1, stack(), evidence="t1"),
        series(Role.AXIAL_T2, stack(axes=AXIAL), evidence="axial 2"),
        series(Role.SAGITTAL_T2, stack(), evidence="t2"),
        series(None, evidence="none 2"),
    ]
    found = of(*given).series
    assert [(one.name, one.evidence) for one in found] == [
        ("1", "t2"),
        ("2", "t1"),
        ("3", "axial 1"),
        ("4", "axial 2"),
        ("5", "none 1"),
        ("6", "none 2"),
    ]


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ([], "none"),
        ([None], "none"),
        ([Role.SAGITTAL_T1], "Sagittal T1"),
        ([Role.AXIAL_T2, Role.SAGITTAL_T1, Role.AXIAL_T2, Role.SAGITTAL_T2, None],
         "Sagittal T2/STIR, Sagittal T1, 2 × Axial T2"),
    ],
)  # fmt: skip
def test_the_roles_of_a_study_in_one_line(roles: list[Role | None], words: str) -> None:
    found = of(*(series(role) for role in roles))
    assert (found.roles, found.series_count) == (words, len(roles))


@pytest.mark.parametrize(
    ("role", "contrast", "words", "has_role"),
    [
        (Role.SAGITTAL_T2, "t2", "Sagittal T2", True),
        (Role.SAGITTAL_T2, "stir", "Sagittal T2 (STIR)", True),
        (Role.SAGITTAL_T1, "t1", "Sagittal T1", True),
        (Role.AXIAL_T2, "t2", "Axial T2", True),
        (None, "stir", "No role", False),
        (None, None, "No role", False),
    ],
)
def test_the_role_of_a_series(
    role: Role | None, contrast: str | None, words: str, has_role: bool
) -> None:
    (found,) = of(series(role, contrast=contrast)).series
    assert (found.role, found.has_role) == (words, has_role)


def test_what_is_said_of_a_study_and_of_a_series() -> None:
    study = of(
        series(None, path="secret", reason=Reason.NO_POSITION),
        warnings=(Warn.GAP, Warn.UNEVEN),
        reason=Reason.NO_SAGITTAL,
    )
    assert study.study_id == "1.2.3"
    assert study.reason is not None
    assert (study.reason[0], study.reason[1].title) == (
        Reason.NO_SAGITTAL,
        "No sagittal series",
    )
    assert [code for code, _ in study.warnings] == [Warn.GAP, Warn.UNEVEN]
    (one,) = study.series
    assert one.refused is not None
    assert one.refused[0] is Reason.NO_POSITION
    assert (one.slices, one.stacks, one.groups, one.path, one.description) == (
        3,
        0,
        (),
        None,
        None,
    )
    assert of(series(None)).series[0].refused is None
    assert of(series(None)).reason is None


def test_stacks_that_are_alike_are_one_group_with_a_row_each() -> None:
    stacks = [
        stack((0, 4, 8)),
        stack((20, 24), rows=31),
        stack((40, 44.5)),
        stack((50,)),
        stack((60, 64), spacing=(2.0, 1.51)),
        stack((70, 74), columns=21),
    ]
    (one,) = of(series(Role.SAGITTAL_T2, *stacks)).series
    assert one.stacks == 6
    assert [group.words for group in one.groups] == [
        "3 sagittal stacks of 30 × 20 pixels of 2.00 × 1.50 mm",
        "1 sagittal stack of 31 × 20 pixels of 2.00 × 1.50 mm",
        "1 sagittal stack of 30 × 20 pixels of 2.00 × 1.51 mm",
        "1 sagittal stack of 30 × 21 pixels of 2.00 × 1.50 mm",
    ]
    assert [
        (row.name, row.slices, row.apart_mm, row.gaps, row.tilt)
        for row in one.groups[0].rows
    ] == [
        ("1a", 3, "4.00", "none", "none"),
        ("1c", 2, "4.50", "none", "none"),
        ("1d", 1, "–", "a single slice", "none"),
    ]
    assert [row.name for row in one.groups[1].rows] == ["1b"]


def test_a_group_shows_the_middle_one_of_its_stacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[Stack] = []
    windows: list[Any] = []
    really = page_module.thumbnail

    def thumbnail(one: Stack, window: Any) -> Any:
        shown.append(one)
        windows.append(window)
        return really(one, window)

    monkeypatch.setattr(page_module, "thumbnail", thumbnail)
    seen: list[int] = []
    window_of = page_module.robust_window
    monkeypatch.setattr(
        page_module,
        "robust_window",
        lambda stacks: (seen.append(len(stacks)), window_of(stacks))[1],
    )
    stacks = [stack((10.0 * i, 10.0 * i + 4), value=100 * i) for i in range(4)]
    of(series(Role.SAGITTAL_T2, *stacks, stack(rows=31, value=900)))
    assert [any(one is given for given in stacks[2:3]) for one in shown] == [
        True,
        False,
    ]
    assert len({id(window) for window in windows}) == 1, (
        "one window for all the stacks of a series"
    )
    assert seen == [5]


def test_the_drawings_hold_every_stack_under_the_numbers_of_the_list() -> None:
    study = of(
        series(None, stack()), series(Role.SAGITTAL_T2, stack((0, 4)), stack((20, 24)))
    )
    assert [line.series for line in study.drawings[0].lines] == [0, 0, 1]
    assert [label.text for label in study.drawings[1].labels] == ["1a", "1b", "2"]


# --- a long page ------------------------------------------------------------------------------------------------------


def test_a_thousand_studies_are_listed_and_the_others_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page_module, "MAX_BYTES", 10_000)
    page = text_of(
        inspect_page(((Study(f"9.{i}.9", ()), None) for i in range(1002)), {})
    )
    assert "9.999.9" in page
    assert "9.1000.9" not in page
    assert "2 more studies are not listed" in page
    assert "1,002 studies in this folder" in page


def test_studies_are_shown_in_full_while_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A study without series takes 3,500 bytes: three make 10,500."""
    assert inspected(Study("1", ())).size == 3500
    for room, shown in ((10_501, 3), (10_500, 2), (7_001, 2), (7_000, 1), (100, 1)):
        monkeypatch.setattr(page_module, "MAX_BYTES", room)
        html = inspect_page(((Study(f"{i}", ()), None) for i in range(5)), {})
        assert html.count('<section class="study"') == shown
        assert html.count('<th scope="row">') == 5


def test_room_that_is_gone_stays_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small study after one too large is not shown: the page says it shows the first ones."""
    monkeypatch.setattr(page_module, "MAX_BYTES", 8_000)
    large = Study("2", tuple(series(None, path=f"{i}") for i in range(20)))
    html = inspect_page(
        [(Study("1", ()), None), (large, None), (Study("3", ()), None)], {}
    )
    assert re.findall(r'id="study-(\d)"', html) == ["1"]
    assert "of the first 1:" in text_of(html)


def test_the_page_has_room_for_about_a_megabyte() -> None:
    """Nothing but numbers: 300 studies of 3,500 bytes would be 1,050,000."""
    html = inspect_page(((Study(f"{i}", ()), None) for i in range(310)), {})
    assert html.count('<section class="study"') == 299


def test_refusals_are_sorted_and_counted_with_what_to_do() -> None:
    page = text_of(inspect_page([], {"unreadable": 2, "corrupt_file": 1_234}))
    assert "0 studies in this folder" in page
    corrupt, unreadable = page.index("corrupt_file 1,234"), page.index("unreadable 2")
    assert corrupt < unreadable
    assert "Copy the file again from its source" in page
    assert "Files and folders not read" not in text_of(inspect_page([], {}))


def test_refusals_are_looked_at_after_the_last_study() -> None:
    refused: dict[str, int] = {}

    def studies() -> Any:
        yield Study("1", ()), None
        refused["too_large"] = 1

    assert "too_large 1" in text_of(inspect_page(studies(), refused))


def test_a_study_met_again_is_marked_at_its_second_place_only() -> None:
    ids = ["1", "2", "1"]
    page = inspect_page([(Study(one, ()), None) for one in ids], {})
    parts = page.split('<section class="study"')[1:]
    assert ["also has files in a folder shown above" in part for part in parts] == [
        False,
        False,
        True,
    ]


# --- gaps and tilts in words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        ((0, 4, 8, 14, 18), "uneven: 4.0 to 6.0 mm apart"),
        ((0, 4, 8, 14.01, 18), "1 gap: 6.0 mm between slices 2 and 3 from the right"),
        ((0, 4, 8, 12.39, 16.39), "none"),
        ((0, 4, 8, 12.41, 16.41), "uneven: 4.0 to 4.4 mm apart"),
        ((0, 0.3, 0.6, 0.94, 1.24), "none"),
        ((0, 0.3, 0.6, 0.96, 1.26), "uneven: 0.3 to 0.4 mm apart"),
    ],
)
def test_gaps_by_the_readers_limits(positions: tuple[float, ...], words: str) -> None:
    assert gaps_of(stack(positions)) == words


@pytest.mark.parametrize(
    ("degrees", "words"), [(0.49, "none"), (0.51, "1°, front edge lower")]
)
def test_a_tilt_of_half_a_degree_is_one(degrees: float, words: str) -> None:
    a = np.radians(degrees)
    axes = np.array(
        [[0, -np.sin(a), np.cos(a)], [0, np.cos(a), np.sin(a)], [1.0, 0, 0]]
    )
    assert tilt_of(stack(axes=axes)).words == words
