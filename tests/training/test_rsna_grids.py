"""Grids of a set in RSNA's layout: the detector's levels, checked against readers' points; defects cost a study."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("timm_3d", reason="needs the train extra")
pytest.importorskip("torchio", reason="needs the train extra")
pytest.importorskip("pandas", reason="needs the train extra")

from spine_engine.anatomy import Level
from spine_engine.detection import DiscLevel
from spine_engine.errors import UsageError
from spine_engine.phantom import Protocol, draw_spine, write_studies
from spine_engine.phantom.rsna import study_seeds
from spine_training import commands
from spine_training.fit import read_checkpoint
from spine_training.grader.grids import BoxJitter, load_grids, make_grids
from spine_training.grader.model import WHOLE_STUDY, GraderConfig
from spine_training.grader.rsna_grids import RsnaSource, level_box, open_detector
from spine_training.metric import MISSING
from spine_training.places import DiscPlace
from spine_training.rsna import RsnaSet

CONFIG = GraderConfig()
JITTER = BoxJitter(boxes=1)
SMALL = Protocol(
    sagittal_matrix=160, axial_matrix=112, axial_slices=5, sagittal_slices=11
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three studies: one whole, one with missing labels and without its axial series, one without any label."""
    folder = tmp_path_factory.mktemp("rsna") / "set"
    for _ in write_studies(folder, 3, seed=5, protocol=SMALL):
        pass
    with (folder / "train.csv").open() as file:
        header, *rows = csv.reader(file)
    rows[1][header.index("left_subarticular_stenosis_l5_s1")] = ""
    rows[2][1:] = [""] * 25
    with (folder / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    with (folder / "train_series_descriptions.csv").open() as file:
        series = next(row["series_id"] for row in csv.DictReader(file) if row["study_id"] == rows[1][0]
                      and row["series_description"] == "Axial T2")  # fmt: skip
    shutil.rmtree(folder / "train_images" / rows[1][0] / series)
    return folder


def names(root):
    return tuple(study.study_id for study in RsnaSet.open(root).studies)


def in_order(root):
    with (root / "train.csv").open() as file:
        return [row["study_id"] for row in csv.DictReader(file)]


def test_grids_lie_on_the_discs_and_carry_the_grades(root, tmp_path):
    source = RsnaSource(root, names(root))
    assert len(list(make_grids(source, CONFIG, JITTER, tmp_path))) == 3
    whole, partly, _ = in_order(root)
    grids = load_grids(source, CONFIG, JITTER, tmp_path, [whole])
    spine = draw_spine(study_seeds(3, 5)[0])
    assert np.array_equal(grids.grades[0], spine.grades)
    assert np.isnan(grids.narrowing).all()
    assert grids.grid(0, 0, 2).any()
    usable = load_grids(source, CONFIG, JITTER, tmp_path)
    assert len(usable) == 2, "a study without labels is of no use"
    other = load_grids(source, CONFIG, JITTER, tmp_path, [partly])
    assert (other.grades == MISSING).sum() == 1
    assert not other.box_set(0)[:, CONFIG.channels.index("axial_t2")].any()


def test_a_whole_study_needs_no_detector(root, tmp_path):
    source = RsnaSource(root, names(root)[:1], detector=tmp_path / "none.onnx")
    list(make_grids(source, WHOLE_STUDY, JITTER, tmp_path))
    assert (tmp_path / next(tmp_path.iterdir()).name).is_dir()
    with pytest.raises(UsageError, match=r"none\.onnx"):
        open_detector(tmp_path / "none.onnx")


def disc(z, source="detector"):
    return DiscLevel(
        Level.L3_L4, np.array([0.0, 0.0, z]), np.eye(3), np.ones(3), 0.9, source
    )


def test_readers_overrule_a_detector_that_names_another_disc():
    level, tilted = Level.L3_L4, np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]])
    near, far = (
        DiscPlace(np.array([0.0, 0.0, 6.0]), tilted),
        DiscPlace(np.array([0.0, 0.0, 36.0]), tilted),
    )
    guessed = DiscPlace(np.array([0.0, 0.0, 36.0]), tilted, known=False)
    assert level_box(level, {level: disc(0.0)}, {level: near})[0].tolist() == [0, 0, 0]
    assert level_box(level, {level: disc(0.0)}, {level: far})[0].tolist() == [0, 0, 36]
    assert level_box(level, {level: disc(0.0)}, {level: guessed})[0].tolist() == [
        0,
        0,
        0,
    ]
    assert level_box(level, {level: disc(0.0)}, {})[0].tolist() == [0, 0, 0]
    assert level_box(level, {level: disc(0.0, "prior")}, {level: near})[0].tolist() == [
        0,
        0,
        6,
    ]
    assert np.isnan(level_box(level, {level: disc(0.0, "prior")}, {})).all()


def test_folds_hold_out_whole_studies():
    every = tuple(str(n) for n in range(200))
    training, held_out = RsnaSource(Path("."), every).split(2)
    assert sorted([*training.names, *held_out.names]) == sorted(every)
    assert 20 < len(held_out.names) < 60


@pytest.mark.slow
def test_the_command_trains_on_the_set_and_goes_on_only_when_asked(root, tmp_path):
    asked = [
        "grader",
        "--data",
        str(root),
        "--out",
        str(tmp_path / "run"),
        "--cache",
        str(tmp_path / "cache"),
    ]
    asked += [
        "--backbone",
        "narrow_conv_8",
        "--shape",
        "8",
        "12",
        "16",
        "--fold",
        "-1",
        "--batch",
        "4",
    ]
    asked += [
        "--device",
        "cpu",
        "--threads",
        "1",
        "--workers",
        "0",
        "--precision",
        "f32",
    ]
    first = CliRunner().invoke(commands.train, [*asked, "--epochs", "1"])
    assert first.exit_code == 0, first.output
    content = read_checkpoint(tmp_path / "run/last.pt")
    assert (
        content["settings"]["data"]
        == "2 labelled studies of the folder 'set', which is in RSNA 2024's layout"
    )
    assert content["config"]["shape"] == (8, 12, 16)
    again = CliRunner().invoke(commands.train, [*asked, "--epochs", "1"])
    assert isinstance(again.exception, UsageError)
    assert "add --resume" in str(again.exception)
    neither = CliRunner().invoke(
        commands.train, ["grader", "--out", str(tmp_path / "other")]
    )
    assert "either --data" in str(neither.exception)
    unknown = CliRunner().invoke(
        commands.train, [*asked, "--backbone", "coatnet_00_rw"]
    )
    assert "coatnet_0_rw" in str(unknown.exception)
