"""Discs from readers' points, and points from pixels, where the numbers can be worked out."""

import numpy as np
import pytest

pytest.importorskip("pandas", reason="the training extra is not installed")
pydicom = pytest.importorskip("pydicom")

from spine_engine.anatomy import Condition, Level  # noqa: E402
from spine_training.places import level_places  # noqa: E402
from spine_training.rsna import LabelPoint, RsnaSet  # noqa: E402

FRAME = np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])  # down, back, left
CANAL = (0.0, 24.0, 0.0)
"""Readers point 24 mm behind the disc's middle where they grade the canal."""


def point(level, down, back, left=0.0):
    """A reader's point on the canal of a disc at a place (down, back, left)."""
    place = (np.array([down, back, left]) + CANAL) @ FRAME
    return LabelPoint(Condition.SPINAL_CANAL_STENOSIS, level, "s", place)


def test_the_frame_of_a_disc_is_that_of_the_line_through_its_neighbours():
    """A column that leans back by 45 degrees between its first two discs and stands upright below."""
    points = [
        point(Level.L1_L2, 0, 0),
        point(Level.L2_L3, 30, 30),
        point(Level.L3_L4, 72.4, 30),
    ]
    axes = {level: place.axes for level, place in level_places(points, FRAME).items()}
    angle = {
        level: np.degrees(np.arctan2(rows[1] @ FRAME[0], rows[1] @ FRAME[1]))
        for level, rows in axes.items()
    }
    assert angle[Level.L1_L2] == pytest.approx(-45, abs=8)
    assert angle[Level.L2_L3] == pytest.approx(-22.5, abs=6)
    assert angle[Level.L3_L4] == pytest.approx(0, abs=6)
    for rows in axes.values():
        assert rows @ rows.T == pytest.approx(np.eye(3))
        assert rows[2] == pytest.approx(FRAME[2])


def test_l5_s1_is_tilted_thirteen_degrees_more_its_back_higher():
    points = [
        point(level, 35.0 * k, 0)
        for k, level in enumerate((Level.L3_L4, Level.L4_L5, Level.L5_S1))
    ]
    axes = {level: place.axes for level, place in level_places(points, FRAME).items()}
    assert axes[Level.L4_L5][1] @ FRAME[0] == pytest.approx(0, abs=0.06)
    assert np.degrees(np.arcsin(-axes[Level.L5_S1][1] @ FRAME[0])) == pytest.approx(
        13, abs=3
    )


def test_a_single_disc_has_the_frame_of_the_pictures():
    (place,) = level_places([point(Level.L2_L3, 10, 20, 3)], FRAME).values()
    assert place.axes == pytest.approx(FRAME)
    assert place.center_mm == pytest.approx(np.array([10, 20, 3]) @ FRAME)
    assert place.known


def test_two_missing_levels_lie_at_thirds():
    found = level_places([point(Level.L1_L2, 0, 0), point(Level.L4_L5, 90, 0)], FRAME)
    assert [(str(level), place.known) for level, place in found.items()] == [
        ("l1_l2", True), ("l2_l3", False), ("l3_l4", False), ("l4_l5", True),
    ]  # fmt: skip
    assert found[Level.L2_L3].center_mm == pytest.approx(
        np.array([30, 0, 0]) @ FRAME, abs=0.5
    )
    assert found[Level.L3_L4].center_mm == pytest.approx(
        np.array([60, 0, 0]) @ FRAME, abs=0.5
    )


# -- pixels ------------------------------------------------------------------------------------------------------------


HEADER = "study_id,series_id,instance_number,condition,level,x,y\n"


@pytest.fixture
def a_set(tmp_path):
    """A set of one study of one picture, 30 rows and 40 columns, rows 2 mm and columns 0.5 mm apart."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    folder = tmp_path / "train_images" / "7" / "1"
    folder.mkdir(parents=True)
    header = pydicom.Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3"
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = (
        "1.2.840.10008.5.1.4.1.1.4"
    )
    header.InstanceNumber, header.Rows, header.Columns = 3, 30, 40
    header.ImagePositionPatient, header.ImageOrientationPatient = (
        [10, 20, 30],
        [0, 1, 0, 0, 0, -1],
    )
    header.PixelSpacing = [2.0, 0.5]
    header.save_as(folder / "3.dcm", enforce_file_format=True)
    names = [f"{condition}_{level}" for level in Level for condition in Condition]
    (tmp_path / "train.csv").write_text(
        ",".join(["study_id", *names])
        + "\n"
        + ",".join(["7", *["Moderate"] * 25])
        + "\n"
    )
    (tmp_path / "train_series_descriptions.csv").write_text(
        "study_id,series_id,series_description\n7,1,Sagittal T1\n"
    )

    def mark(x, y, instance="3"):
        (tmp_path / "train_label_coordinates.csv").write_text(
            f"{HEADER}7,1,{instance},Spinal Canal Stenosis,L4/L5,{x},{y}\n"
        )
        return RsnaSet.open(tmp_path).points_mm("7")

    mark.root, mark.file, mark.header = tmp_path, folder / "3.dcm", header
    return mark


def test_x_is_a_column_and_y_a_row_in_the_spacing_of_each(a_set):
    """PixelSpacing is the distance of rows, then of columns (PS3.3 10.7.1.3)."""
    (found,) = a_set(7, 4)
    assert found.position_mm.tolist() == [10.0, 20.0 + 7 * 0.5, 30.0 - 4 * 2.0]
    assert (found.condition, found.level, found.series_id) == (
        Condition.SPINAL_CANAL_STENOSIS,
        Level.L4_L5,
        "1",
    )


@pytest.mark.parametrize(
    ("x", "y", "held"),
    [
        (-0.5, 0, True), (-0.51, 0, False), (39.5, 0, True), (39.51, 0, False),
        (0, -0.5, True), (0, -0.51, False), (0, 29.5, True), (0, 29.51, False),
    ],
)  # fmt: skip
def test_a_mark_lies_in_the_picture_up_to_half_a_pixel_beyond_the_last_centre(
    a_set, x, y, held
):
    assert len(a_set(x, y)) == held


@pytest.mark.parametrize(
    ("name", "value", "usable"),
    [
        ("ImageOrientationPatient", [0, 1, 0, 0, 0, -0.99], False),
        ("ImageOrientationPatient", [0, 1, 0, 0, 0.0008, -1], True),
        ("ImageOrientationPatient", [0, 1, 0, 0, 0.0012, -1], False),
        ("PixelSpacing", [0.0, 1.0], False),
        ("PixelSpacing", [1.0, -1.0], False),
        ("InstanceNumber", 4, False),
        ("InstanceNumber", None, True),
    ],
)
def test_a_picture_without_usable_geometry_or_of_another_number_places_nothing(
    a_set, name, value, usable
):
    if value is None:
        delattr(a_set.header, name)
    else:
        setattr(a_set.header, name, value)
    a_set.header.save_as(a_set.file, enforce_file_format=True)
    if name == "InstanceNumber" and value == 4:
        assert len(a_set(1, 1)) == 1, (
            "the file that bears the name counts where no other has the number"
        )
        return
    assert len(a_set(1, 1)) == usable


def test_the_grades_of_a_table_are_found_by_their_columns_whatever_their_order(a_set):
    table = a_set.root / "train.csv"
    header, row = (line.split(",") for line in table.read_text().splitlines())
    cells = dict(zip(header, row, strict=True))
    cells["left_subarticular_stenosis_l5_s1"], cells["spinal_canal_stenosis_l1_l2"] = (
        "Severe",
        " Normal/Mild ",
    )
    cells["right_neural_foraminal_narrowing_l2_l3"] = ""
    names = sorted(cells, reverse=True)
    table.write_text(
        "\ufeff"
        + ",".join(names)
        + "\n"
        + ",".join(cells[name] for name in names)
        + "\n"
    )
    a_set(1, 1)
    grades = RsnaSet.open(a_set.root).labels("7").grades
    assert (grades[4, 1], grades[0, 4], grades[1, 2]) == (2, 0, -1)
    assert (grades == 1).sum() == 22


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            "7,1,3,Spinal Canal Stenosis,L4/L5,nan,1",
            "line 2 .* has the x 'nan', not a number",
        ),
        ("7,1,inf,Spinal Canal Stenosis,L4/L5,1,1", "has the instance_number 'inf'"),
        ("7,1,3,Spinal Canal Stenosis,L4/L5,1,", "has the y '', not a number"),
        (
            "7,1,3,spinal canal stenosis,L4/L5,1,1",
            "has the condition 'spinal canal stenosis'",
        ),
    ],
)
def test_a_mark_that_is_none_is_named(a_set, row, said):
    from spine_engine.errors import UsageError

    a_set(1, 1)
    (a_set.root / "train_label_coordinates.csv").write_text(HEADER + row + "\n")
    with pytest.raises(UsageError, match=said):
        RsnaSet.open(a_set.root)
