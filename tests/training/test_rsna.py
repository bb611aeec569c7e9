"""Data in RSNA's layout: tables, marks in patient mm, studies as the engine reads them, discs from the marks."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="the training extra is not installed")
pydicom = pytest.importorskip("pydicom")

from spine_engine.anatomy import CONDITIONS, LEVELS, Condition, Level  # noqa: E402
from spine_engine.detection.slices import spine_frame  # noqa: E402
from spine_engine.errors import StudyError, UsageError  # noqa: E402
from spine_engine.phantom import Protocol  # noqa: E402
from spine_engine.phantom.rsna import write_studies  # noqa: E402
from spine_engine.study import Role  # noqa: E402
from spine_training.folds import fold_of_study  # noqa: E402
from spine_training.metric import MISSING  # noqa: E402
from spine_training.places import POINT_OFFSET_MM, level_places  # noqa: E402
from spine_training.rsna import LabelPoint, RsnaSet  # noqa: E402

SMALL = Protocol(sagittal_matrix=128, axial_matrix=96, sagittal_slices=11)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("rsna") / "set"
    list(write_studies(root, 2, 4, protocol=SMALL, shuffled=True))
    return root


@pytest.fixture
def root(written, tmp_path):
    """A copy whose files may be damaged."""
    shutil.copytree(written, tmp_path / "set")
    return tmp_path / "set"


def edit(path, change):
    """Change the rows of a CSV, given as lists, in place."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(change(rows))


def truth_of(root, study_id):
    return json.loads((root / "truth.json").read_text())[study_id]["levels"]


def test_grades_are_those_that_were_read(written):
    rsna = RsnaSet.open(written)
    assert [study.study_id for study in rsna.studies] == sorted(
        json.loads((written / "truth.json").read_text())
    )
    for study in rsna.studies:
        levels = truth_of(written, study.study_id)
        expected = [
            [
                levels[level]["conditions"][condition]["grade"]
                for condition in CONDITIONS
            ]
            for level in LEVELS
        ]
        assert study.grades.tolist() == expected
        assert study.grades.dtype == np.int64
        assert len(study.marks) == 25


def test_points_lie_where_the_reader_pointed(written):
    rsna = RsnaSet.open(written)
    for study in rsna.studies:
        points = rsna.points_mm(study.study_id)
        assert len(points) == 25
        levels = truth_of(written, study.study_id)
        for point in points:
            disc = levels[point.level]
            offset = np.array(disc["axes"]) @ (
                point.position_mm - np.array(disc["center_mm"])
            )
            away = offset - POINT_OFFSET_MM[point.condition]
            # a mark lies in the nearest slice, up to half of 4.4 mm away, exact inside it
            assert np.linalg.norm(away) < 3.0
        sides = {
            p.condition: p.position_mm[0] for p in points if p.level is Level.L3_L4
        }
        assert (
            sides[Condition.LEFT_SUBARTICULAR_STENOSIS]
            > sides[Condition.RIGHT_SUBARTICULAR_STENOSIS]
        )


def test_a_study_is_read_with_the_roles_of_the_table(root):
    rsna = RsnaSet.open(root)
    study = rsna.read(rsna.studies[0].study_id)
    assert study.study_id == rsna.studies[0].study_id
    assert {s.role for s in study.series} == set(Role)
    swap = {"Sagittal T1": "Sagittal T2/STIR", "Sagittal T2/STIR": "Sagittal T1"}
    table = root / "train_series_descriptions.csv"
    edit(table, lambda rows: [[*row[:2], swap.get(row[2], row[2])] for row in rows])
    swapped = RsnaSet.open(root).read(study.study_id)
    before, after = ({s.path: s.role for s in x.series} for x in (study, swapped))
    assert before.keys() == after.keys()
    assert sum(before[path] is not after[path] for path in before) == 2


def test_opening_reads_no_image(root):
    for path in root.rglob("*.dcm"):
        path.write_bytes(b"")
    assert len(RsnaSet.open(root).studies) == 2


def test_studies_without_images_are_counted(root):
    gone = RsnaSet.open(root).studies[0].study_id
    shutil.rmtree(root / "train_images" / gone)
    rsna = RsnaSet.open(root)
    assert rsna.without_images == 1
    assert gone not in [study.study_id for study in rsna.studies]
    with pytest.raises(UsageError, match="no labelled study"):
        rsna.read(gone)


def test_an_empty_grade_is_missing(root):
    edit(
        root / "train.csv",
        lambda rows: [rows[0], [rows[1][0], "", *rows[1][2:]], *rows[2:]],
    )
    with (root / "train.csv").open(newline="") as file:
        (_, first, *_), (study_id, *_), *_ = csv.reader(file)
    condition = next(c for c in CONDITIONS if first.startswith(c))
    place = (
        LEVELS.index(first.removeprefix(f"{condition}_")),
        CONDITIONS.index(condition),
    )
    grades = RsnaSet.open(root).labels(study_id).grades
    assert grades[place] == MISSING
    assert (grades == MISSING).sum() == 1


def test_a_mark_finds_its_file_by_number_when_names_say_something_else(root):
    rsna = RsnaSet.open(root)
    study_id = rsna.studies[0].study_id
    before = rsna.points_mm(study_id)
    for folder in (root / "train_images" / study_id).iterdir():
        names = sorted(folder.iterdir())
        for path in names:
            path.rename(path.with_suffix(".old"))
        for k, path in enumerate(
            names
        ):  # 0.dcm, 1.dcm, ...: numbers, but not the instances'
            path.with_suffix(".old").rename(folder / f"{k}.dcm")
    after = RsnaSet.open(root).points_mm(study_id)
    assert np.allclose([p.position_mm for p in before], [p.position_mm for p in after])


def test_marks_that_cannot_be_placed_are_left_out(root):
    rsna = RsnaSet.open(root)
    study = rsna.studies[0]
    images = root / "train_images" / study.study_id
    marks = [m for m in study.marks if m.condition is Condition.SPINAL_CANAL_STENOSIS]
    gone, bare = (
        marks[0],
        next(m for m in marks if m.instance_number != marks[0].instance_number),
    )
    (images / gone.series_id / f"{gone.instance_number}.dcm").unlink()
    path = images / bare.series_id / f"{bare.instance_number}.dcm"
    header = pydicom.dcmread(path)
    del header.ImagePositionPatient
    header.save_as(path)
    lost = [m for m in study.marks if (m.series_id, m.instance_number) in
            {(x.series_id, x.instance_number) for x in (gone, bare)}]  # fmt: skip
    assert len(rsna.points_mm(study.study_id)) == 25 - len(lost) < 25
    edit(
        root / "train_label_coordinates.csv",
        lambda rows: [rows[0], *[[*row[:6], "1e4"] for row in rows[1:]]],
    )
    assert RsnaSet.open(root).points_mm(study.study_id) == ()


@pytest.mark.parametrize(
    "name",
    ["train.csv", "train_series_descriptions.csv", "train_label_coordinates.csv"],
)
def test_a_missing_table_is_named(root, name):
    (root / name).unlink()
    with pytest.raises(UsageError, match=name):
        RsnaSet.open(root)


@pytest.mark.parametrize(
    ("table", "change", "said"),
    [
        (
            "train.csv",
            lambda rows: [rows[0], [rows[1][0], "Mild", *rows[1][2:]], *rows[2:]],
            "grade 'Mild'",
        ),
        ("train.csv", lambda rows: [rows[0], rows[1], rows[1]], "twice"),
        ("train.csv", lambda rows: [row[:-1] for row in rows], "lacks the column"),
        ("train.csv", lambda rows: [[*row, "x"] for row in rows], "names no condition"),
        (
            "train_label_coordinates.csv",
            lambda rows: [rows[0], [*rows[1][:4], "L6/S1", "1", "1"]],
            "L6/S1",
        ),
        (
            "train_label_coordinates.csv",
            lambda rows: [rows[0], [*rows[1][:3], "Spondylolysis", *rows[1][4:]]],
            "Spondy",
        ),
        (
            "train_label_coordinates.csv",
            lambda rows: [rows[0], rows[1], [*rows[2][:5], "left", "1"]],
            "line 3",
        ),
        (
            "train_series_descriptions.csv",
            lambda rows: [rows[0], [*rows[1][:2], "Coronal"]],
            "names no role",
        ),
    ],
)
def test_a_table_that_is_not_rsnas_is_an_error_of_one_line(root, table, change, said):
    edit(root / table, change)
    with pytest.raises(UsageError, match=said) as caught:
        RsnaSet.open(root)
    assert "\n" not in str(caught.value)


def test_a_folder_of_two_studies_is_refused(root):
    rsna = RsnaSet.open(root)
    one, two = (root / "train_images" / study.study_id for study in rsna.studies)
    series = next(two.iterdir())
    shutil.copytree(series, one / series.name)
    with pytest.raises(StudyError, match="2 studies"):
        rsna.read(one.name)


def test_places_come_back_from_the_points_of_a_phantom(written):
    rsna = RsnaSet.open(written)
    for labels in rsna.studies:
        study = rsna.read(labels.study_id)
        sagittal = [
            s.stacks[0]
            for s in study.series
            if s.role in (Role.SAGITTAL_T1, Role.SAGITTAL_T2)
        ]
        places = level_places(rsna.points_mm(labels.study_id), spine_frame(sagittal))
        assert list(places) == list(LEVELS)
        levels = truth_of(written, labels.study_id)
        for level, place in places.items():
            assert np.linalg.norm(place.center_mm - levels[level]["center_mm"]) < 4.0
            assert place.axes[1] @ np.array(levels[level]["axes"][1]) > np.cos(
                np.deg2rad(12.0)
            )
            assert np.allclose(place.axes @ place.axes.T, np.eye(3))


FRAME = np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])  # down, back, left


def column_points(levels):
    """Points of a straight column, discs 35 mm apart."""
    return [
        LabelPoint(
            c,
            level,
            "s",
            (np.array([35.0 * LEVELS.index(level), 0, 0]) + offset) @ FRAME,
        )
        for level in levels
        for c, offset in POINT_OFFSET_MM.items()
    ]


def test_a_level_without_points_lies_between_its_neighbours_and_none_beyond_the_ends():
    places = level_places(column_points([Level.L2_L3, Level.L4_L5]), FRAME)
    assert list(places) == [Level.L2_L3, Level.L3_L4, Level.L4_L5]
    assert [place.known for place in places.values()] == [True, False, True]
    assert np.allclose(places[Level.L3_L4].center_mm, np.array([70.0, 0, 0]) @ FRAME)
    assert level_places([], FRAME) == {}


def test_one_misplaced_point_does_not_move_the_disc():
    points = column_points(LEVELS[:4])
    wild = LabelPoint(
        points[6].condition, points[6].level, "s", points[6].position_mm + 30.0
    )
    places = level_places([*points[:6], wild, *points[7:]], FRAME)
    for k, level in enumerate(LEVELS[:4]):
        assert np.allclose(
            places[level].center_mm, np.array([35.0 * k, 0, 0]) @ FRAME, atol=0.1
        )


def test_a_study_keeps_its_fold_whoever_else_is_there():
    assert [fold_of_study(x) for x in ("100206310", "1012284084", "a")] == [4, 4, 0]
    counts = np.bincount([fold_of_study(str(i)) for i in range(2000)], minlength=5)
    assert counts.min() > 340
