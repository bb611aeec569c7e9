"""Phantom studies on disk: DICOM geometry and the RSNA layout."""

import csv
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.phantom import PhantomStudy, Protocol, draw_spine, render, write_studies, write_study

SERIES_OF = {"Spinal Canal": "Sagittal T2/STIR", "Foraminal": "Sagittal T1", "Subarticular": "Axial T2"}


@pytest.fixture(scope="module")
def study(small: Protocol) -> PhantomStudy:
    return render(draw_spine(3), seed=3, protocol=small)


def _slices(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(p) for p in sorted(folder.rglob("*.dcm"))]


@pytest.mark.parametrize("rle", [False, True])
def test_files_give_back_pixels_and_places(study: PhantomStudy, tmp_path: Path, rle: bool) -> None:
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


def test_headers_are_valid_and_plainly_synthetic(study: PhantomStudy, tmp_path: Path) -> None:
    for f in _slices(write_study(study, tmp_path)):
        assert f.Modality == "MR"
        assert f.SOPClassUID == "1.2.840.10008.5.1.4.1.1.4" == f.file_meta.MediaStorageSOPClassUID
        assert str(f.PatientName).startswith("PHANTOM^")
        assert (f.BitsStored, f.HighBit, f.PixelRepresentation) == (12, 11, 0)
        for uid in (f.StudyInstanceUID, f.SeriesInstanceUID, f.SOPInstanceUID, f.FrameOfReferenceUID):
            assert uid.startswith("2.25.")
            assert pydicom.uid.UID(uid).is_valid


def test_shuffling_renumbers_the_same_images(study: PhantomStudy, tmp_path: Path) -> None:
    plain, shuffled = write_study(study, tmp_path / "a"), write_study(study, tmp_path / "b", shuffled=True)
    by_uid = {f.SOPInstanceUID: f for f in _slices(plain)}
    moved = 0
    for f in _slices(shuffled):
        assert f.PixelData == by_uid[f.SOPInstanceUID].PixelData
        moved += f.InstanceNumber != by_uid[f.SOPInstanceUID].InstanceNumber
    assert moved > len(by_uid) / 2


def test_a_set_in_rsna_layout(small: Protocol, tmp_path: Path) -> None:
    ids = list(write_studies(tmp_path, 2, 5, protocol=small))
    with (tmp_path / "train.csv").open() as file:
        labels = {row.pop("study_id"): row for row in csv.DictReader(file)}
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert list(labels) == ids == list(truth)
    names = ("Normal/Mild", "Moderate", "Severe")
    for study_id in ids:
        assert len(labels[study_id]) == 25
        for level in LEVELS:
            for condition in CONDITIONS:
                known = truth[study_id]["levels"][level]["conditions"][condition]
                assert labels[study_id][f"{condition}_{level}"] == names[known["grade"]]
                assert sum(known["probabilities"]) == pytest.approx(1, abs=1e-5)
    with (tmp_path / "train_series_descriptions.csv").open() as file:
        roles = {(r["study_id"], r["series_id"]): r["series_description"] for r in csv.DictReader(file)}
    assert len(roles) == 6
    with (tmp_path / "train_label_coordinates.csv").open() as file:
        points = list(csv.DictReader(file))
    assert len(points) == 2 * 25
    for row in points:
        role = next(role for words, role in SERIES_OF.items() if words in row["condition"])
        assert roles[row["study_id"], row["series_id"]] == role
        path = tmp_path / "train_images" / row["study_id"] / row["series_id"] / f"{row['instance_number']}.dcm"
        image = pydicom.dcmread(path)
        across, down = (np.array(image.ImageOrientationPatient[i : i + 3], float) for i in (0, 3))
        point = np.array(image.ImagePositionPatient, float) + image.PixelSpacing[1] * float(row["x"]) * across
        point = point + image.PixelSpacing[0] * float(row["y"]) * down
        center = np.array(truth[row["study_id"]]["levels"][row["level"].replace("/", "_").lower()]["center_mm"])
        assert np.linalg.norm(point - center) < 45
        if row["condition"].startswith("Left"):
            assert point[0] > center[0]
        elif row["condition"].startswith("Right"):
            assert point[0] < center[0]


def test_sets_are_reproducible_and_begin_alike(small: Protocol, tmp_path: Path) -> None:
    one, two = (list(write_studies(tmp_path / n, k, 5, protocol=small)) for n, k in (("a", 1), ("b", 2)))
    assert two[0] == one[0]
    for path in sorted((tmp_path / "a" / "train_images").rglob("*.dcm")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
