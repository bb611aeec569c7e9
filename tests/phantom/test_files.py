"""Phantom studies on disk: DICOM geometry and the RSNA layout."""

import csv
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pydicom
import pytest

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.phantom import (
    PhantomStudy,
    Protocol,
    draw_spine,
    render,
    write_studies,
    write_study,
)

# Where a reader marks each condition: the series, and (down, back, left) from the disc's centre in mm.
POINTS = {
    "Spinal Canal Stenosis": ("Sagittal T2/STIR", (0, 24, 0)),
    "Left Neural Foraminal Narrowing": ("Sagittal T1", (-7, 20, 17)),
    "Right Neural Foraminal Narrowing": ("Sagittal T1", (-7, 20, -17)),
    "Left Subarticular Stenosis": ("Axial T2", (2, 20, 9)),
    "Right Subarticular Stenosis": ("Axial T2", (2, 20, -9)),
}


COARSE = Protocol(
    sagittal_slices=5, sagittal_matrix=48, sagittal_fov_mm=240, axial_slices=2, axial_matrix=32, axial_fov_mm=140,
    tilt_deg=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def study() -> PhantomStudy:
    return render(draw_spine(3), seed=3, protocol=COARSE)


@pytest.fixture(scope="module")
def rsna_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A set of two studies in RSNA's layout, and the ids in the order in which they were written."""
    root = tmp_path_factory.mktemp("set")
    return root, list(write_studies(root, 2, 5, protocol=COARSE))


def _slices(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(p) for p in sorted(folder.rglob("*.dcm"))]


@pytest.mark.parametrize("rle", [False, True])
def test_files_give_back_pixels_and_places(
    study: PhantomStudy, tmp_path: Path, rle: bool
) -> None:
    folder = write_study(study, tmp_path, shuffled=True, rle=rle)
    files = _slices(folder)
    stacks = [(s, t) for s in study.series for t in s.stacks]
    assert len(files) == sum(len(t.pixels) for _, t in stacks)
    assert len({f.SOPInstanceUID for f in files}) == len(files)
    for series, stack in stacks:
        for k, origin in enumerate(stack.origins_mm):
            match = [
                f for f in files
                if f.SeriesDescription == series.description and np.allclose(f.ImagePositionPatient, origin, atol=1e-4)
                and np.allclose(f.ImageOrientationPatient, [*stack.axes[2], *stack.axes[1]], atol=1e-6)
            ]  # fmt: skip
            assert len(match) == 1
            assert (match[0].pixel_array == stack.pixels[k]).all()
            assert np.allclose(match[0].PixelSpacing, stack.spacing_mm)
            assert float(match[0].EchoTime) == series.sequence.te_ms


def test_headers_are_valid_and_plainly_synthetic(
    study: PhantomStudy, tmp_path: Path
) -> None:
    for f in _slices(write_study(study, tmp_path)):
        assert f.Modality == "MR"
        assert (
            f.SOPClassUID
            == "1.2.840.10008.5.1.4.1.1.4"
            == f.file_meta.MediaStorageSOPClassUID
        )
        assert str(f.PatientName).startswith("PHANTOM^")
        assert (f.BitsStored, f.HighBit, f.PixelRepresentation) == (12, 11, 0)
        for uid in (
            f.StudyInstanceUID,
            f.SeriesInstanceUID,
            f.SOPInstanceUID,
            f.FrameOfReferenceUID,
        ):
            assert uid.startswith("2.25.")
            assert pydicom.uid.UID(uid).is_valid


def test_shuffling_renumbers_the_same_images(
    study: PhantomStudy, tmp_path: Path
) -> None:
    plain, shuffled = (
        write_study(study, tmp_path / "a"),
        write_study(study, tmp_path / "b", shuffled=True),
    )
    by_uid = {f.SOPInstanceUID: f for f in _slices(plain)}
    moved = 0
    for f in _slices(shuffled):
        assert f.PixelData == by_uid[f.SOPInstanceUID].PixelData
        moved += f.InstanceNumber != by_uid[f.SOPInstanceUID].InstanceNumber
    assert moved > len(by_uid) / 2


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@lru_cache
def headers(folder: Path) -> list[pydicom.Dataset]:
    """The images of a series, named by their instance numbers."""
    images = {
        path.stem: pydicom.dcmread(path, stop_before_pixels=True)
        for path in folder.glob("*.dcm")
    }
    assert all(int(name) == image.InstanceNumber for name, image in images.items())
    return list(images.values())


def test_a_set_in_rsna_layout(rsna_set: tuple[Path, list[str]]) -> None:
    root, ids = rsna_set
    assert sorted(path.name for path in root.iterdir()) == [
        "train.csv",
        "train_images",
        "train_label_coordinates.csv",
        "train_series_descriptions.csv",
        "truth.json",
    ]
    labels = rows_of(root / "train.csv")
    truth = json.loads((root / "truth.json").read_text())
    assert [row["study_id"] for row in labels] == ids == list(truth)
    assert list(labels[0]) == [
        "study_id",
        *(f"{condition}_{level}" for condition in CONDITIONS for level in LEVELS),
    ]
    names = ("Normal/Mild", "Moderate", "Severe")
    grades = set()
    for row in labels:
        for level in LEVELS:
            for condition in CONDITIONS:
                known = truth[row["study_id"]]["levels"][level]["conditions"][condition]
                assert row[f"{condition}_{level}"] == names[known["grade"]]
                grades.add(known["grade"])
                assert sum(known["probabilities"]) == pytest.approx(1, abs=1e-5)
                assert sum(known["best_prediction"]) == pytest.approx(1, abs=1e-5)
    assert len(grades) > 1
    series = rows_of(root / "train_series_descriptions.csv")
    assert list(series[0]) == ["study_id", "series_id", "series_description"]
    assert {(row["study_id"], row["series_description"]) for row in series} == {
        (study_id, name)
        for study_id in ids
        for name in ("Sagittal T1", "Sagittal T2/STIR", "Axial T2")
    }
    folders = {
        (path.parent.name, path.name) for path in (root / "train_images").glob("*/*")
    }
    assert folders == {(row["study_id"], row["series_id"]) for row in series}


@pytest.mark.parametrize("numbers", ["in order", "shuffled"])
def test_points_lie_where_a_reader_marks_them(
    rsna_set: tuple[Path, list[str]], tmp_path: Path, numbers: str
) -> None:
    """Each on the slice of its series that lies nearest, and there at its very place."""
    root, ids = rsna_set
    if numbers == "shuffled":
        root, ids = (
            tmp_path,
            list(write_studies(tmp_path, 1, 5, protocol=COARSE, shuffled=True)),
        )
    truth = json.loads((root / "truth.json").read_text())
    roles = {
        row["series_id"]: row["series_description"]
        for row in rows_of(root / "train_series_descriptions.csv")
    }
    points = rows_of(root / "train_label_coordinates.csv")
    assert list(points[0]) == [
        "study_id",
        "series_id",
        "instance_number",
        "condition",
        "level",
        "x",
        "y",
    ]
    found = sorted((row["study_id"], row["condition"], row["level"]) for row in points)
    levels = ("L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1")
    assert found == sorted(
        (study_id, condition, level)
        for study_id in ids
        for condition in POINTS
        for level in levels
    )
    for row in points:
        role, offset = POINTS[row["condition"]]
        assert roles[row["series_id"]] == role
        folder = root / "train_images" / row["study_id"] / row["series_id"]
        known = truth[row["study_id"]]["levels"][row["level"].replace("/", "_").lower()]
        wanted = np.array(known["center_mm"]) + np.array(offset) @ np.array(
            known["axes"]
        )
        number, away = int(row["instance_number"]), {}
        for image in headers(folder):
            across, down = (
                np.array(image.ImageOrientationPatient[i : i + 3], float)
                for i in (0, 3)
            )
            origin = np.array(image.ImagePositionPatient, float)
            away[image.InstanceNumber] = abs(
                float((wanted - origin) @ np.cross(across, down))
            )
            if image.InstanceNumber == number:
                marked = origin + image.PixelSpacing[1] * float(row["x"]) * across
                marked = marked + image.PixelSpacing[0] * float(row["y"]) * down
        assert np.linalg.norm(marked - wanted) == pytest.approx(away[number], abs=0.02)
        assert away[number] <= min(away.values()) + 1e-3
        assert len(row["x"].split(".")[1]) == len(row["y"].split(".")[1]) == 3


def test_sets_are_reproducible_and_begin_alike(
    rsna_set: tuple[Path, list[str]], tmp_path: Path
) -> None:
    root, ids = rsna_set
    assert list(write_studies(tmp_path, 1, 5, protocol=COARSE)) == ids[:1]
    files = sorted((tmp_path / "train_images").rglob("*.dcm"))
    assert len(files) == 20
    for path in files:
        assert path.read_bytes() == (root / path.relative_to(tmp_path)).read_bytes()
    assert json.loads((tmp_path / "truth.json").read_text()).keys() == {ids[0]}


def test_a_set_is_written_study_by_study(tmp_path: Path) -> None:
    writing = write_studies(
        tmp_path / "set",
        3,
        6,
        protocol=Protocol(sagittal=("t1",), sagittal_matrix=16, axial="none"),
    )
    assert not (tmp_path / "set").exists()
    first = next(writing)
    assert [path.name for path in (tmp_path / "set" / "train_images").iterdir()] == [
        first
    ]
    writing.close()


def test_conditions_of_series_that_are_not_scanned_have_no_points(
    tmp_path: Path,
) -> None:
    only_t1 = Protocol(sagittal=("t1",), sagittal_matrix=16, axial="none")
    (study_id,) = write_studies(tmp_path, 1, 6, protocol=only_t1, shuffled=True)
    points = rows_of(tmp_path / "train_label_coordinates.csv")
    assert {row["condition"] for row in points} == {
        f"{s} Neural Foraminal Narrowing" for s in ("Left", "Right")
    }
    assert {row["study_id"] for row in points} == {study_id}
    assert len(points) == 10
