"""One folder with everything that goes wrong: the run ends, the sound study is graded, each thing has its outcome."""

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest

from spine_engine.phantom import Protocol, draw_spine, render, write_study

acceptance = pytest.importorskip("spine_bench.acceptance")

pytestmark = pytest.mark.slow

QUICK = Protocol(sagittal_matrix=192, axial_matrix=128)


def phantom(root: Path, seed: int) -> Path:
    return write_study(render(draw_spine(seed), seed=seed, protocol=QUICK), root)


def change(folder: Path, **values) -> None:
    """Set, or with None delete, elements in every file below ``folder``."""
    for path in folder.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        for keyword, value in values.items():
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value)
        dataset.save_as(path)


def few_slices(study: Path, count: int) -> None:
    """Leave ``count`` neighbouring slices of each series."""
    for series in (path for path in study.iterdir() if path.is_dir()):
        files = sorted(
            series.glob("*.dcm"),
            key=lambda path: int(pydicom.dcmread(path).InstanceNumber),
        )
        for path in files[count:]:
            path.unlink()


def huge_header(path: Path) -> None:
    """A header that declares 65,000 x 65,000 pixels over a few bytes of them."""
    dataset = pydicom.dcmread(path)
    dataset.Rows = dataset.Columns = 65_000
    dataset.PixelData = struct.pack("<8H", *range(8))
    dataset.save_as(path)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile") / "in"
    root.mkdir()
    names = {"sound": phantom(root, 1).name}

    scouts = phantom(root, 2)
    few_slices(scouts, 3)
    names["scouts"] = scouts.name

    placeless = phantom(root, 3)
    change(placeless, ImageOrientationPatient=None, ImagePositionPatient=None)
    names["placeless"] = placeless.name

    one, two = phantom(root, 4), phantom(root, 5)
    change(one, StudyInstanceUID="1.2.3.4", PatientID="A")
    change(two, StudyInstanceUID="1.2.3.4", PatientID="B")
    for series in list(two.iterdir()):
        shutil.move(series, one / f"b-{series.name}")
    two.rmdir()
    names["two patients"] = "1.2.3.4"

    damaged = phantom(root, 6)
    files = sorted(damaged.rglob("*.dcm"))
    huge_header(files[0])
    files[1].write_bytes(files[1].read_bytes()[:700])
    files[2].write_bytes(files[2].read_bytes()[:-5000])
    names["damaged"] = damaged.name

    (root / "empty.dcm").touch()
    (root / "notes.txt").write_text("nothing to see")
    (root / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    os.mkfifo(root / "pipe.dcm")
    (root / "loop").symlink_to(root)
    (root / "nowhere").symlink_to(root / "gone")
    with (root / "sparse.dcm").open("wb") as file:
        file.truncate(1 << 40)
    locked = root / "locked"
    locked.mkdir()
    (locked / "x.dcm").write_bytes(b"x")
    locked.chmod(0)

    output = root.parent / "out"
    record = acceptance.run(root, output)
    locked.chmod(0o700)
    lines = {line["study_id"]: line for line in acceptance.study_lines(output)}
    return (
        record,
        {what: lines.get(name) for what, name in names.items()},
        acceptance.predictions(output),
        output,
    )


@pytest.mark.parametrize(
    ("study", "status", "reason"),
    [
        ("sound", "graded", None),
        ("scouts", "prior", "no_sagittal"),
        ("placeless", "prior", "no_orientation"),
        ("two patients", "failed", "uid_collision"),
        ("damaged", "graded", None),
    ],
)
def test_every_study_has_its_outcome(outcome, study, status, reason):
    line = outcome[1][study]
    assert line is not None
    assert (line["status"], line["reason"]) == (status, reason)


def test_every_study_has_its_25_rows(outcome):
    record, lines, rows, _ = outcome
    assert record["studies"]["total"] == len(lines) == 5
    assert len(rows) == 125
    for row, values in rows.items():
        assert np.isclose(values.sum(), 1, atol=1e-9), row


def test_the_damaged_study_says_that_slices_were_dropped(outcome):
    assert "slice_dropped" in outcome[1]["damaged"]["warnings"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.dcm", "not_an_image"),
        ("notes.txt", "not_an_image"),
        ("DICOMDIR", "not_an_image"),
        ("pipe.dcm", "not_a_regular_file"),
        ("loop", "not_a_regular_file"),
        ("nowhere", "not_a_regular_file"),
        ("sparse.dcm", "too_large"),
    ],
)
def test_every_other_file_is_counted(outcome, name, reason):
    refused = {
        entry["path"]: entry["reason"] for entry in outcome[0]["refused_examples"]
    }
    assert refused.get(name) == reason


def test_the_giant_and_the_cut_files_are_not_used(outcome):
    damaged = outcome[1]["damaged"]
    inside = outcome[3].parent / "in" / damaged["study_id"]
    written = sum(1 for _ in inside.rglob("*.dcm"))
    assert sum(series["slices"] for series in damaged["series"]) == written - 3
    refused = [
        entry["reason"]
        for entry in outcome[0]["refused_examples"]
        if damaged["study_id"] in entry["path"]
    ]
    assert sorted(refused) == ["corrupt_file", "corrupt_pixels", "too_large"]


def test_nothing_of_the_patient_is_in_the_results(outcome):
    _, lines, _, output = outcome
    file = next((output.parent / "in" / lines["sound"]["study_id"]).rglob("*.dcm"))
    name = str(pydicom.dcmread(file).PatientName)
    assert name
    written = [path for path in output.iterdir() if path.is_file()]
    assert {"predictions.csv", "studies.jsonl", "run.json", "ledger.sqlite"} <= {
        path.name for path in written
    }
    for path in written:
        assert name.encode() not in path.read_bytes(), path.name
    assert json.loads((output / "run.json").read_text())["note"].startswith(
        "Research use only"
    )
