"""Which of several series plays a role, in the order of the rules, and what a series table changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from raw_dicom import AXIAL, read_files, series, slice_of

from spine_engine.dicom import RoleOverrides
from spine_engine.dicom.series import ReadSeries, assemble
from spine_engine.errors import UsageError, Warn
from spine_engine.study import Role, Study

T1 = {"EchoTime": 10, "RepetitionTime": 550}
STIR = {"EchoTime": 60, "RepetitionTime": 4000, "InversionTime": 160}


def read(path: str, count: int = 6, uid: str = "1.1", **changes: Any) -> ReadSeries:
    return ReadSeries(uid, path, [slice_of(i, **changes) for i in range(count)])


def winner(
    one: dict[str, Any], other: dict[str, Any], role: Role = Role.SAGITTAL_T2
) -> str:
    """The path of the series that plays ``role``, whichever is met first."""
    found = set()
    for given in ([one, other], [other, one]):
        study = assemble("1.2.3", [read(**fields) for fields in given], RoleOverrides())
        (playing,) = study.with_role(role)
        found.add(playing.path)
        (loser,) = (series for series in study.series if series.role is None)
        name = {Role.SAGITTAL_T1: "sagittal T1", Role.SAGITTAL_T2: "sagittal T2/STIR"}[
            role
        ]
        assert loser.evidence.endswith(f"; another series is the better {name}")
        assert loser.contrast in (
            ("t1",) if role is Role.SAGITTAL_T1 else ("t2", "stir")
        )
        assert "better" not in playing.evidence
    (path,) = found
    return path


# Each step: what makes the better series, against one that is better in all the later steps.
LADDER: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "levels",
        {"PixelSpacing": (10.0, 0.75)},
        {"PixelSpacing": (1.25, 0.75)},
    ),  # 70 mm high, or 8.75
    ("T2 before STIR", {}, STIR),
    ("slices", {"count": 7}, {"count": 6}),
    ("finer", {"PixelSpacing": (1.25, 0.74)}, {"PixelSpacing": (1.25, 0.75)}),
    ("no fat suppression", {}, {"ScanOptions": "FS"}),
    ("latest", {"AcquisitionDate": "20240102"}, {"AcquisitionDate": "20240101"}),
    ("last time", {"TemporalPositionIdentifier": 2}, {"TemporalPositionIdentifier": 1}),
    ("series number", {"SeriesNumber": 10}, {"SeriesNumber": 9}),
    ("path", {"path": "z"}, {"path": "b"}),
    ("UID", {"uid": "1.2"}, {"uid": "1.1"}),
]


@pytest.mark.parametrize(
    "step", range(len(LADDER)), ids=[name for name, _, _ in LADDER]
)
def test_an_earlier_rule_outranks_all_later_ones(step: int) -> None:
    _, good, bad = LADDER[step]
    better: dict[str, Any] = {}
    worse: dict[str, Any] = {}
    for name, winning, losing in LADDER[step + 1 :][::-1]:
        if name not in ("path", "UID"):
            worse |= winning
            better |= losing
    better, worse = {"path": "a", **better, **good}, {"path": "b", **worse, **bad}
    if step == len(LADDER) - 1:
        assert playing_uid(better, worse) == "1.2"
        return
    assert winner(better, worse) == better["path"]


def playing_uid(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Two series of one path are told apart by their slices: ``one`` has a copy too many."""
    first = read(**one | {"path": "a"})
    first.slices.append(slice_of(0, "copy"))
    study = assemble("1.2.3", [first, read(**other | {"path": "a"})], RoleOverrides())
    (playing,) = study.with_role(Role.SAGITTAL_T2)
    return "1.2" if "exact copies" in playing.evidence else "1.1"


def tall(rows: int, step_mm: float = 5.0) -> dict[str, Any]:
    """A series ``(rows - 1) * step_mm`` high."""
    return {"Rows": rows, "PixelSpacing": (step_mm, 0.75)}


@pytest.mark.parametrize(
    ("one", "other", "better"),
    [
        (tall(8), tall(7), "a"),  # 35 mm: one level, 30 mm: none
        (tall(15), tall(14), "a"),  # 70 and 65 mm
        (
            tall(37),
            tall(36),
            "a",
        ),  # 180 and 175 mm: five levels both, then the path; see below
        (tall(60), tall(37), "a"),  # beyond 200 mm nothing more is covered
    ],
)
def test_coverage_counts_whole_levels_up_to_200_mm(
    one: dict[str, Any], other: dict[str, Any], better: str
) -> None:
    finer = {"AcquisitionDate": "20240101"}
    same_levels = one["Rows"] > 30
    chosen = winner({"path": "a", **one}, {"path": "b", **other, **finer})
    assert chosen == ("b" if same_levels else better)


@pytest.mark.parametrize(("rows", "levels"), [(8, 1), (7, 0)])
def test_height_is_counted_along_the_body_whatever_the_storage(
    rows: int, levels: int
) -> None:
    """Transposed storage: columns run down the body."""
    transposed = {
        "ImageOrientationPatient": (0.0, 0.0, -1.0, 0.0, 1.0, 0.0),
        "Rows": 6,
        "Columns": rows,
        "PixelSpacing": (0.75, 5.0),
    }
    short = {
        "PixelSpacing": (0.75, 5.0),
        "AcquisitionDate": "20240101",
        "Columns": rows,
        "Rows": 6,
    }
    assert winner({"path": "a", **transposed}, {"path": "b", **short}) == (
        "a" if levels else "b"
    )


@pytest.mark.parametrize(("spacing", "chosen"), [(4.2, "a"), (4.1, "b")])
def test_height_includes_that_of_slices_one_above_the_other(
    spacing: float, chosen: str
) -> None:
    """Sagittal, 30 degrees aslant: seven rows span 0.866 of their length, five distances of 4 mm one half of theirs."""
    aslant = {
        "ImageOrientationPatient": (0.0, 1.0, 0.0, 0.5, 0.0, -(0.75**0.5)),
        "PixelSpacing": (spacing, 0.75),
    }
    upright = {"PixelSpacing": (4.9, 0.75), "AcquisitionDate": "20240101", "count": 7}
    assert winner({"path": "a", **aslant}, {"path": "b", **upright}) == chosen


def test_a_contrast_agent_speaks_against_a_t1_only() -> None:
    agent = {"ContrastBolusAgent": "GD", "AcquisitionDate": "20240101"}
    assert (
        winner({"path": "a", **T1}, {"path": "b", **T1, **agent}, Role.SAGITTAL_T1)
        == "a"
    )
    assert winner({"path": "a"}, {"path": "b", **agent}) == "b"


def test_fat_suppression_speaks_against_a_t2_only() -> None:
    suppressed = {"ScanOptions": "FS", "AcquisitionDate": "20240101"}
    assert (
        winner({"path": "a", **T1}, {"path": "b", **T1, **suppressed}, Role.SAGITTAL_T1)
        == "b"
    )
    assert winner({"path": "a"}, {"path": "b", **suppressed}) == "a"


def test_three_series_of_one_role_leave_two_without() -> None:
    study = assemble(
        "1",
        [read(name, SeriesNumber=n) for n, name in enumerate("abc")],
        RoleOverrides(),
    )
    assert [one.role for one in study.series] == [None, None, Role.SAGITTAL_T2]


def test_every_axial_t2_plays_its_role() -> None:
    given = [read(name, ImageOrientationPatient=AXIAL) for name in "abc"]
    assert [one.role for one in assemble("1", given, RoleOverrides()).series] == [
        Role.AXIAL_T2
    ] * 3


def test_an_axial_t1_or_stir_plays_none() -> None:
    given = [
        read("a", ImageOrientationPatient=AXIAL, **T1),
        read("b", ImageOrientationPatient=AXIAL, **STIR),
    ]
    study = assemble("1", given, RoleOverrides())
    assert [(one.role, one.contrast) for one in study.series] == [
        (None, "t1"),
        (None, "stir"),
    ]


@pytest.mark.parametrize(
    ("changes", "contrast"),
    [
        (STIR | {"SeriesDescription": "SAG T2"}, "stir"),
        ({"EchoTime": 45, "SeriesDescription": "SAG T2"}, "t2"),
        ({"EchoTime": 44.9, "SeriesDescription": "SAG T2"}, "pd"),
        ({"EchoTime": 45, "SeriesDescription": "SAG T1"}, "pd"),
        ({"EchoTime": 45, "SeriesDescription": "SAG"}, "pd"),
        (T1 | {"SeriesDescription": "SAG T2"}, "t1"),
        (
            {"EchoTime": None, "RepetitionTime": None, "SeriesDescription": "SAG STIR"},
            "stir",
        ),
        ({"EchoTime": 20, "RepetitionTime": 2000, "SeriesDescription": "SAG T2"}, "t2"),
        ({"EchoTime": 20, "RepetitionTime": 2000, "SeriesDescription": "SAG"}, None),
    ],
)
def test_text_tells_only_where_numbers_do_not(
    changes: dict[str, Any], contrast: str | None
) -> None:
    (series,) = assemble("1", [read("a", **changes)], RoleOverrides()).series
    assert series.contrast == contrast


@pytest.mark.parametrize(
    ("changes", "evidence"),
    [
        ({}, "sagittal (normal 1.00 0.00 0.00), TE 100 ms, TR 3500 ms: T2"),
        (T1, "sagittal (normal 1.00 0.00 0.00), TE 10 ms, TR 550 ms: T1"),
        (
            STIR,
            "sagittal (normal 1.00 0.00 0.00), TE 60 ms, TR 4000 ms, TI 160 ms: STIR",
        ),
        (
            {"EchoTime": 35.5},
            "sagittal (normal 1.00 0.00 0.00), TE 35.5 ms, TR 3500 ms: proton density",
        ),
        (
            {"EchoTime": 50, "SeriesDescription": "T2"},
            "sagittal (normal 1.00 0.00 0.00), TE 50 ms, TR 3500 ms, text says T2: T2",
        ),
        (
            {"EchoTime": None, "RepetitionTime": None, "SeriesDescription": "t1"},
            "sagittal (normal 1.00 0.00 0.00), no TE, TR or TI, text says T1: T1",
        ),
        (
            {"EchoTime": None, "RepetitionTime": None, "SeriesDescription": "tirm"},
            "sagittal (normal 1.00 0.00 0.00), no TE, TR or TI, text says STIR: STIR",
        ),
        (
            {"EchoTime": None},
            "sagittal (normal 1.00 0.00 0.00), TR 3500 ms, no telling text: contrast unknown",
        ),
        (
            {
                "ImageOrientationPatient": (
                    0.7071068,
                    0.7071068,
                    0.0,
                    -0.4082483,
                    0.4082483,
                    0.8164966,
                )
            },
            "oblique (normal 0.58 0.58 0.58), TE 100 ms, TR 3500 ms: T2",
        ),
        ({"ScanningSequence": "GR"}, "gradient echo"),
        ({"count": 4}, "4 slices a stack at most, 5 are needed"),
    ],
)
def test_the_evidence(changes: dict[str, Any], evidence: str) -> None:
    (series,) = assemble("1", [read("a", **changes)], RoleOverrides()).series
    assert series.evidence == evidence


# --- a series table ---------------------------------------------------------------------------------------------------


def stated(role: Role, count: int = 6, **changes: Any) -> Study:
    return assemble(
        "1.2.3", [read("s", count, **changes)], RoleOverrides({("1.2.3", "s"): role})
    )


@pytest.mark.parametrize(
    ("role", "changes", "plays", "contrast", "warned"),
    [
        (Role.SAGITTAL_T2, {}, Role.SAGITTAL_T2, "t2", False),
        (Role.SAGITTAL_T1, {}, Role.SAGITTAL_T1, "t1", True),
        (Role.SAGITTAL_T2, T1, Role.SAGITTAL_T2, "t2", True),
        (Role.SAGITTAL_T2, STIR, Role.SAGITTAL_T2, "stir", False),
        (Role.SAGITTAL_T1, STIR, Role.SAGITTAL_T1, "t1", True),
        (Role.SAGITTAL_T2, {"EchoTime": None}, Role.SAGITTAL_T2, "t2", False),
        (Role.AXIAL_T2, {}, Role.SAGITTAL_T2, "t2", True),
        (Role.AXIAL_T2, {"ImageOrientationPatient": AXIAL}, Role.AXIAL_T2, "t2", False),
        (
            Role.SAGITTAL_T2,
            {"ImageOrientationPatient": AXIAL},
            Role.AXIAL_T2,
            "t2",
            True,
        ),
        (Role.SAGITTAL_T1, {"ScanningSequence": "GR"}, Role.SAGITTAL_T1, "t1", False),
    ],
)
def test_what_a_table_says_of_a_series(
    role: Role, changes: dict[str, Any], plays: Role, contrast: str, warned: bool
) -> None:
    study = stated(role, **changes)
    (found,) = study.series
    assert (found.role, found.contrast) == (plays, contrast)
    assert (Warn.ROLE_OVERRIDDEN in study.warnings) is warned
    names = {
        Role.SAGITTAL_T1: "sagittal T1",
        Role.SAGITTAL_T2: "sagittal T2/STIR",
        Role.AXIAL_T2: "axial T2",
    }
    assert found.evidence.startswith(f"override says {names[role]}")
    if plays is not role and role is not Role.SAGITTAL_T1:
        plane = "sagittal" if plays is Role.SAGITTAL_T2 else "axial"
        assert f", but slices are {plane}; {plane} (normal" in found.evidence


@pytest.mark.parametrize(("count", "warned"), [(4, False), (5, True)])
def test_a_scout_of_another_plane_contradicts_no_table(
    count: int, warned: bool
) -> None:
    study = stated(Role.AXIAL_T2, count)
    assert (Warn.ROLE_OVERRIDDEN in study.warnings) is warned


def test_a_stated_plane_that_neither_the_normal_nor_the_text_tells_is_believed() -> (
    None
):
    oblique = (0.7071068, 0.7071068, 0.0, -0.4082483, 0.4082483, 0.8164966)
    study = stated(Role.AXIAL_T2, ImageOrientationPatient=oblique)
    assert study.series[0].role is Role.AXIAL_T2


@pytest.mark.parametrize(
    ("study", "uid", "found"),
    [
        ("1.2.3", "9.8.7", True),
        ("1.2.3", "7", True),
        ("1.2.3", "folder", True),
        ("parent", "folder", True),
        ("parent", "7", True),
        ("1.2.3", "8.7", False),
        ("other", "folder", False),
        ("1.2.3", "parent", False),
        ("", "folder", False),
    ],
)
def test_how_a_table_names_studies_and_series(
    study: str, uid: str, found: bool
) -> None:
    overrides = RoleOverrides({(study, uid): Role.AXIAL_T2})
    assert (
        overrides.role("1.2.3", "9.8.7", "x/parent/folder") is Role.AXIAL_T2
    ) is found


def test_the_study_uid_outranks_the_folder_and_the_series_folder_the_uid() -> None:
    both = {
        ("1.2.3", "9.8.7"): Role.SAGITTAL_T1,
        ("1.2.3", "folder"): Role.AXIAL_T2,
        ("p", "folder"): Role.SAGITTAL_T2,
    }
    assert RoleOverrides(both).role("1.2.3", "9.8.7", "p/folder") is Role.AXIAL_T2
    del both["1.2.3", "folder"]
    assert RoleOverrides(both).role("1.2.3", "9.8.7", "p/folder") is Role.SAGITTAL_T1
    both["1.2.3", "7"] = Role.AXIAL_T2
    assert RoleOverrides(both).role("1.2.3", "9.8.7", "p/folder") is Role.SAGITTAL_T1
    assert RoleOverrides().role("1.2.3", "9.8.7", "p/folder") is None


@pytest.mark.parametrize(
    ("words", "role"),
    [
        ("Sagittal T1", Role.SAGITTAL_T1),
        ("sagittal_t1", Role.SAGITTAL_T1),
        (" SAGITTAL  T2 ", Role.SAGITTAL_T2),
        ("Sagittal T2/STIR", Role.SAGITTAL_T2),
        ("sagittal-stir", Role.SAGITTAL_T2),
        ("Axial T2", Role.AXIAL_T2),
        ("axial t1", None),
        ("T2", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("column", ["series_description", "role"])
def test_the_words_of_a_table(
    tmp_path: Path, words: str, role: Role | None, column: str
) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        f"\ufeffseries_id,study_id,{column}\n s , 1.2.3 ,{words}\n", encoding="utf-8"
    )
    if role is None:
        with pytest.raises(
            UsageError, match=r"line 2 of the series table 't\.csv' names no role"
        ):
            RoleOverrides.from_csv(table)
        return
    assert RoleOverrides.from_csv(table).roles == {("1.2.3", "s"): role}


@pytest.mark.parametrize(
    "header", ["study_id,role", "series_id,role", "study_id,series_id,description", ""]
)
def test_a_table_that_lacks_a_column(tmp_path: Path, header: str) -> None:
    (tmp_path / "t.csv").write_text(header + "\n")
    with pytest.raises(
        UsageError,
        match=r"'t\.csv' lacks a column; it needs study_id, series_id and series_desc",
    ):
        RoleOverrides.from_csv(tmp_path / "t.csv")


def test_the_role_column_outranks_the_description(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "study_id,series_id,series_description,role\n1,2,Sagittal T1,axial t2\n"
    )
    assert RoleOverrides.from_csv(tmp_path / "t.csv").roles == {
        ("1", "2"): Role.AXIAL_T2
    }


def test_a_later_line_outranks_an_earlier_one_and_a_line_number_is_right(
    tmp_path: Path,
) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        "study_id,series_id,role\n1,2,sagittal t1\n1,2,axial t2\n1,3,what\n"
    )
    with pytest.raises(UsageError, match="line 4 "):
        RoleOverrides.from_csv(table)
    table.write_text("study_id,series_id,role\n1,2,sagittal t1\n1,2,axial t2\n")
    assert RoleOverrides.from_csv(table).roles == {("1", "2"): Role.AXIAL_T2}


@pytest.mark.parametrize("name", ["gone.csv", "folder"])
def test_a_table_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=f"cannot read the series table '{name}'"):
        RoleOverrides.from_csv(tmp_path / name)


def test_a_table_behind_a_link_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("study_id,series_id,role\n1,2,axial t2\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "t.csv")
    assert RoleOverrides.from_csv(tmp_path / "link.csv").roles == {
        ("1", "2"): Role.AXIAL_T2
    }


def test_tables_are_found_beside_and_inside_the_input_the_inner_one_counts(
    tmp_path: Path,
) -> None:
    head = "study_id,series_id,role\n"
    root = tmp_path / "in"
    root.mkdir()
    assert RoleOverrides.find(root).roles == {}
    (tmp_path / "train_series_descriptions.csv").write_text(
        head + "1,2,axial t2\n1,3,axial t2\n"
    )
    (root / "a_series_descriptions.csv").write_text(head + "1,2,sagittal t1\n")
    (root / "b_series_descriptions.csv").write_text(head + "1,2,sagittal t2\n")
    (root / "other.csv").write_text("nothing")
    (root / "deeper").mkdir()
    (root / "1").mkdir()
    (root / "deeper" / "c_series_descriptions.csv").write_text(head + "1,2,axial t2\n")
    found = RoleOverrides.find(root)
    assert found.roles == {("1", "2"): Role.SAGITTAL_T2, ("1", "3"): Role.AXIAL_T2}
    assert found.tables == tuple(
        f"{name}_series_descriptions.csv" for name in ("train", "a", "b")
    )
    assert found.left_out == {}


@pytest.mark.parametrize("place", ["beside", "inside"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"study_id,series_id\n1,2\n",
        b"study_id,series_id,role\n1,2,sideways\n",
        b"\xff\xfe",
        b"a\x00,b\n",
        b'"' * 140_000,
    ],
    ids=[
        "empty",
        "no role",
        "a strange role",
        "no text",
        "a null",
        "a field without an end",
    ],
)
def test_a_found_table_that_cannot_be_read_is_told_and_left_out(
    tmp_path: Path, place: str, content: bytes
) -> None:
    root = tmp_path / "in"
    (root / "1").mkdir(parents=True)
    (root / "good_series_descriptions.csv").write_text(
        "study_id,series_id,role\n1,2,axial t2\n"
    )
    name = "bad_series_descriptions.csv"
    ((tmp_path if place == "beside" else root) / name).write_bytes(content)
    found = RoleOverrides.find(root)
    assert found.roles == {("1", "2"): Role.AXIAL_T2}
    assert list(found.left_out) == [name]
    assert name in found.left_out[name]
    with pytest.raises(UsageError):
        RoleOverrides.from_csv((tmp_path if place == "beside" else root) / name)


@pytest.mark.parametrize("name", ["1", "7"])
def test_a_table_beside_the_input_counts_only_for_its_own_studies(
    tmp_path: Path, name: str
) -> None:
    root = tmp_path / "in"
    (root / name).mkdir(parents=True)
    table = tmp_path / "x_series_descriptions.csv"
    table.write_text("study_id,series_id,role\n1,2,axial t2\n")
    found = RoleOverrides.find(root)
    assert found.roles == ({("1", "2"): Role.AXIAL_T2} if name == "1" else {})
    assert list(found.left_out) == ([] if name == "1" else [table.name])
    assert RoleOverrides.find(root / name).roles == {}


def test_a_table_beside_the_input_counts_for_the_study_that_its_files_name(
    tmp_path: Path,
) -> None:
    root = tmp_path / "in"
    (tmp_path / "x_series_descriptions.csv").write_text(
        "study_id,series_id,role\n1.2.3,2,axial t2\n"
    )
    for path, data in series().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    assert RoleOverrides.find(root).roles == {("1.2.3", "2"): Role.AXIAL_T2}


def test_a_link_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.csv").write_text("study_id,series_id,role\n1,2,axial t2\n")
    root = tmp_path / "in"
    (root / "1").mkdir(parents=True)
    (root / "x_series_descriptions.csv").symlink_to(tmp_path / "elsewhere.csv")
    assert RoleOverrides.find(root).roles == {}


def test_a_table_is_used_when_files_are_read(tmp_path: Path) -> None:
    overrides = RoleOverrides({("1.2.3", "s"): Role.SAGITTAL_T1})
    files = {f"s/{name}": data for name, data in series().items()}
    (study,) = read_files(tmp_path, files, overrides=overrides).studies
    assert study.series[0].role is Role.SAGITTAL_T1
