"""Bundles with recipes, from DICOM files to rows: the model's own answer on the reference's grids, in every row."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

import recipe_plainly as plain
from pydicom.dataset import FileDataset, FileMetaDataset
from recipe_bundles import answer, write_recipe_bundle

from spine_engine import Engine, StudyPipeline, read_study
from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.errors import UsageError
from spine_engine.options import RunOptions
from spine_engine.pipeline import study_pipeline
from spine_engine.pipeline.centers import detected_centers
from spine_engine.results import study_from_line, study_line

STUDY = "1.2.3"
MR_CLASS = "1.2.840.10008.5.1.4.1.1.4"
SAGITTAL = (0.0, 0.9992, -0.04, 0.0, -0.04, -0.9992)
AXIAL = (0.9992, 0.04, 0.0, -0.04, 0.9992, 0.0)
SERIES = {
    "1": {
        "orientation": SAGITTAL,
        "te": 10,
        "tr": 550,
        "thickness": "4.0",
        "text": "Sagittal T1",
    },
    "2": {
        "orientation": AXIAL,
        "te": 100,
        "tr": 3500,
        "thickness": "3.5",
        "text": "Axial T2",
    },
    "3": {
        "orientation": SAGITTAL,
        "te": 100,
        "tr": 3500,
        "thickness": "4.0",
        "text": "Sagittal T2/STIR",
    },
}
SIDE = 64
CENTERS = [(1.0 + n, 10.0 + 2.5 * n, 90.0 - 36.0 * n) for n in range(6)]


def write_study(
    root: Path, *, left_out: tuple[str, ...] = (), change=lambda name, n, ds: None
) -> Path:
    """Write a study of three series of eight images in RSNA's layout, with its series table."""
    rows = ["study_id,series_id,series_description"]
    for name, facts in SERIES.items():
        if name in left_out:
            continue
        rows.append(f"{STUDY},{name},{facts['text']}")
        rng = np.random.default_rng(int(name))
        right, down = (
            np.array(facts["orientation"][:3]),
            np.array(facts["orientation"][3:]),
        )
        normal = np.cross(right, down)
        for n in range(8):
            meta = FileMetaDataset()
            meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
            meta.MediaStorageSOPClassUID = MR_CLASS
            meta.MediaStorageSOPInstanceUID = f"9.{name}.{n}"
            ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
            ds.SOPClassUID = MR_CLASS
            ds.Modality, ds.ImageType, ds.ScanningSequence = (
                "MR",
                ["ORIGINAL", "PRIMARY", "M"],
                "SE",
            )
            ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = (
                STUDY,
                f"9.{name}",
                f"9.{name}.{n}",
            )
            ds.EchoTime, ds.RepetitionTime = facts["te"], facts["tr"]
            spacing = 4.5 if name != "2" else 26.0
            place = normal * spacing * (n - 3.5) - (right + down) * 3.0 * SIDE / 2
            ds.ImagePositionPatient = [round(float(v), 4) for v in place]
            ds.ImageOrientationPatient = list(facts["orientation"])
            ds.PixelSpacing, ds.SliceThickness, ds.InstanceNumber = (
                [3.0, 3.0],
                facts["thickness"],
                n + 1,
            )
            ds.Rows = ds.Columns = SIDE
            ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
            ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = (
                16,
                12,
                11,
                0,
            )
            pixels = rng.integers(0, 3000, (SIDE, SIDE)).astype(np.uint16)
            pixels[rng.random((SIDE, SIDE)) < 0.2] = 0
            ds.PixelData = pixels.tobytes()
            change(name, n, ds)
            path = root / STUDY / name / f"{n + 1}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            ds.save_as(path, enforce_file_format=True)
    (root / "train_series_descriptions.csv").write_text("\n".join(rows))
    return root


def given(root: Path):
    """Return the study as the reference takes it, read with pydicom alone."""
    import pydicom

    channels = []
    for name in SERIES:
        slices = []
        for path in sorted((root / STUDY / name).glob("*.dcm")):
            ds = pydicom.dcmread(path)
            slices.append(
                {
                    "values": ds.pixel_array,
                    "position": [float(v) for v in ds.ImagePositionPatient],
                    "orientation": [float(v) for v in ds.ImageOrientationPatient],
                    "spacing": [float(v) for v in ds.PixelSpacing],
                    "thickness": float(ds.SliceThickness)
                    if "SliceThickness" in ds
                    else None,
                }
            )
        channels.append(slices)
    return channels


def enlarged(image):
    """Return an image of 64 x 64 resized to 256 x 256: OpenCV's area mode repeats pixels where sides grow fourfold."""
    return image.repeat(4, axis=0).repeat(4, axis=1)


def write_centers(path: Path, *studies: str) -> Path:
    lines = ["study_id,level,x,y,z"]
    for study in studies or (STUDY,):
        names = ("L1", "L2", "L3", "L4", "L5", "S1")
        lines += [
            f"{study},{name},{x},{y},{z}"
            for name, (x, y, z) in zip(names, CENTERS, strict=True)
        ]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(root: Path, bundle: Path, output: Path, **options):
    chosen = RunOptions(precision="f32", workers=1, **options)
    return Engine.open(bundle, options=chosen).run(root, output).finish()


def probabilities(output: Path):
    """Return the rows of the one study ``(condition, level, 3)``."""
    lines = (output / "predictions.csv").read_text().splitlines()[1:]
    return np.array(
        [[float(v) for v in line.split(",")[1:]] for line in lines]
    ).reshape(5, 5, 3)


def record(output: Path):
    (line,) = (output / "studies.jsonl").read_text().splitlines()
    return json.loads(line)


def of_levels(channels, centers):
    clouds = plain.cloud(channels)
    places = [np.array(place) for place in centers]
    grids = [
        plain.scaled(plain.level_values(clouds, a, b)) for a, b in pairwise(places)
    ]
    return answer(np.stack(grids), 5, 1).transpose(1, 0, 2)


def of_whole(channels):
    grid = plain.scaled(plain.whole_values(plain.cloud(channels, resize=enlarged)))
    return answer(grid[None], 25, 2).reshape(5, 5, 3)


@pytest.fixture(scope="module")
def levels_bundle(tmp_path_factory):
    return write_recipe_bundle(
        tmp_path_factory.mktemp("levels") / "b", level="rsna2024-level-128"
    )


@pytest.fixture(scope="module")
def whole_bundle(tmp_path_factory):
    return write_recipe_bundle(
        tmp_path_factory.mktemp("whole") / "b", whole="rsna2024-whole-256"
    )


def test_a_whole_study_gets_the_models_answer_on_the_references_grid(
    tmp_path, whole_bundle
):
    root = write_study(tmp_path / "in")
    run(root, whole_bundle, tmp_path / "out")
    np.testing.assert_allclose(
        probabilities(tmp_path / "out"), of_whole(given(root)), atol=2e-5
    )
    assert record(tmp_path / "out")["not_assessed"] == []


def test_levels_get_the_models_answer_between_given_centres(tmp_path, levels_bundle):
    root = write_study(tmp_path / "in")
    run(
        root, levels_bundle, tmp_path / "out", centers=write_centers(tmp_path / "c.csv")
    )
    np.testing.assert_allclose(
        probabilities(tmp_path / "out"), of_levels(given(root), CENTERS), atol=2e-5
    )
    said = record(tmp_path / "out")
    assert (said["status"], said["not_assessed"]) == ("graded", [])
    for level, a, b in zip(LEVELS, CENTERS[:-1], CENTERS[1:], strict=True):
        entry = said["levels"][level]
        assert (entry["source"], entry["confidence"]) == ("given", None)
        np.testing.assert_allclose(entry["center_mm"], (np.array(a) + b) / 2, atol=1e-3)
        low, high = plain.level_bounds(np.array(a), np.array(b))
        np.testing.assert_allclose(
            entry["box_mm"]["center"], (low + high) / 2, atol=1e-3
        )
        np.testing.assert_allclose(
            entry["box_mm"]["size"], (high - low)[::-1], atol=1e-3
        )
        assert entry["box_mm"]["axes"] == [[0, 0, -1], [0, 1, 0], [1, 0, 0]]
    assert said["vertebrae"]["s1"] == {"center_mm": list(CENTERS[5]), "source": "given"}


def test_a_series_that_is_missing_leaves_every_row_the_models_own(
    tmp_path, levels_bundle
):
    root = write_study(tmp_path / "in", left_out=("2",))
    run(
        root, levels_bundle, tmp_path / "out", centers=write_centers(tmp_path / "c.csv")
    )
    channels = given(root)
    np.testing.assert_allclose(
        probabilities(tmp_path / "out"), of_levels(channels, CENTERS), atol=2e-5
    )
    said = record(tmp_path / "out")
    assert said["not_assessed"] == []
    assert said["warnings"] == ["no_axial_t2"]


@pytest.mark.slow
def test_a_file_without_thickness_counts_once_with_a_warning(tmp_path, whole_bundle):
    def lose(name, n, ds):
        if name == "1":
            del ds.SliceThickness

    root = write_study(tmp_path / "in", change=lose)
    run(root, whole_bundle, tmp_path / "out")
    np.testing.assert_allclose(
        probabilities(tmp_path / "out"), of_whole(given(root)), atol=2e-5
    )
    assert "no_slice_thickness" in record(tmp_path / "out")["warnings"]


def test_a_series_that_counts_otherwise_than_its_role_is_told(tmp_path, whole_bundle):
    root = write_study(tmp_path / "in")
    table = root / "train_series_descriptions.csv"
    table.write_text(table.read_text().replace("3,Sagittal T2/STIR", "3,Axial T2"))
    run(root, whole_bundle, tmp_path / "out")
    told = {series["path"]: series for series in record(tmp_path / "out")["series"]}[
        f"{STUDY}/3"
    ]
    assert told["role"] == "sagittal_t2"
    assert told["evidence"].endswith("; counts as axial_t2 in the grid")


def test_a_level_without_any_point_refuses_the_study_as_a_whole(
    tmp_path, levels_bundle
):
    root = write_study(tmp_path / "in")
    path = write_centers(tmp_path / "c.csv")
    path.write_text(
        path.read_text().replace("S1,6.0,22.5,-90.0", "S1,6.0,22.5,-9000.0")
    )
    centers = path.read_text().replace("L5,5.0,20.0,-54.0", "L5,5.0,20.0,-8000.0")
    path.write_text(centers)
    run(root, levels_bundle, tmp_path / "out", centers=path)
    said = record(tmp_path / "out")
    assert (said["status"], said["reason"], len(said["not_assessed"])) == (
        "prior",
        "gap_at_level",
        25,
    )


def test_studies_that_are_not_in_the_table_are_located_as_usual(
    tmp_path, levels_bundle, monkeypatch
):
    monkeypatch.setattr(study_pipeline, "refusal", lambda *_: None)
    study = read_study(write_study(tmp_path / "in"))
    options = RunOptions(centers=write_centers(tmp_path / "c.csv", "1.2.4"))
    with StudyPipeline.open(levels_bundle, options) as pipeline:
        result = pipeline.grade(study)
    assert result.status == "graded"
    assert "given" not in {level.source for level in result.levels.values()}


def test_other_centres_are_another_run(tmp_path, levels_bundle):
    from spine_engine.errors import OutputError

    root = write_study(tmp_path / "in")
    path = write_centers(tmp_path / "c.csv")
    run(root, levels_bundle, tmp_path / "out", centers=path)
    assert run(root, levels_bundle, tmp_path / "out", centers=path).resumed == 1
    path.write_text(path.read_text().replace("10.0", "11.0"))
    with pytest.raises(OutputError, match="centres"):
        run(root, levels_bundle, tmp_path / "out", centers=path)
    with pytest.raises(OutputError, match="this run has none"):
        run(root, levels_bundle, tmp_path / "out")


def test_a_record_of_given_centres_is_read_back(tmp_path, levels_bundle):
    root = write_study(tmp_path / "in")
    options = RunOptions(precision="f32", centers=write_centers(tmp_path / "c.csv"))
    with StudyPipeline.open(levels_bundle, options) as pipeline:
        result = pipeline.grade(read_study(root))
    again = study_from_line(study_line(result), result.rows)
    assert study_line(again) == study_line(result)
    assert again.vertebrae.keys() == result.vertebrae.keys()


@pytest.mark.slow
def test_phantoms_are_graded_between_the_vertebrae_that_detection_found(
    tmp_path, levels_bundle
):
    from spine_engine.phantom.samples import phantom_samples

    (sample,) = phantom_samples(1, start=3)
    with StudyPipeline.open(levels_bundle, RunOptions(precision="f32")) as pipeline:
        detection = pipeline.locate(sample.study)
        centers = detected_centers(detection, named=False)
        grids = pipeline.grids(sample.study, detection)
        result = pipeline.grade(sample.study)
    wanted = answer(grids, 5, 1)
    graded = [
        [list(result.probabilities(c, level).values()) for c in CONDITIONS]
        for level in LEVELS
    ]
    np.testing.assert_allclose(graded, wanted, atol=2e-5)
    assert {str(entry.source) for entry in result.vertebrae.values()} <= {
        "body",
        "between_discs",
        "beyond_disc",
    }
    assert result.vertebrae["s1"].source == "beyond_disc"
    for place, entry in zip(centers.places_mm, result.vertebrae.values(), strict=True):
        np.testing.assert_allclose(entry.center_mm, place)
    assert all(entry.source == "detector" for entry in result.levels.values())


def test_centres_are_refused_for_a_bundle_that_cuts_no_vertebrae(
    tmp_path, whole_bundle
):
    path = write_centers(tmp_path / "c.csv")
    for bundle in (None, whole_bundle):
        with pytest.raises(UsageError, match="cut between vertebrae"):
            StudyPipeline.open(bundle, RunOptions(centers=path))
