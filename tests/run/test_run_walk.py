"""The walk of one study, in this process: a fake bundle, made-up stacks, and a detection that is given."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

from spine_engine import walk
from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.bundle import Bundle, file_facts, write_manifest
from spine_engine.detection import Alternative, Detection, DetectorSpec, DiscLevel, finder
from spine_engine.dicom import FileEntry, UnitReading, WorkUnit
from spine_engine.errors import BundleError, Reason, StudyError, UsageError, Warn
from spine_engine.manifest import (
    SCHEMA,
    DetectorEntry,
    GraderEntry,
    GridEntry,
    Manifest,
    ModelEntry,
    Models,
    TensorEntry,
)
from spine_engine.options import RunOptions
from spine_engine.results import PRIOR_ROWS, ROW_ORDER, Status, study_line
from spine_engine.study import Role, Series, Stack, Study

UNIT = WorkUnit("a", (FileEntry("a/1", 1),), "1.2.3")
OPTIONS = RunOptions(backend="fake")


def model(path, inputs, outputs):
    listing = {"inputs": [dataclasses.asdict(inputs)], "outputs": [dataclasses.asdict(outputs)]}
    path.write_text(json.dumps(listing))
    return {**file_facts(path), "inputs": (inputs,), "outputs": (outputs,)}


TWO_STAGES = ("detector", "grader")
ALL_THREE = (*TWO_STAGES, "whole_study_grader")
WHOLE = ("whole_study_grader",)


def spinenet(folder):
    """The entries of SpineNet's three networks."""
    tensors = {
        "detector": ("patches", (None, 1, 224, 224), "maps", (None, 13, 224, 224)),
        "vertebra_appearance": ("volumes", (None, 1, 224, 224, 16), "scores", (None, 24)),
        "vertebra_context": ("columns", (None, 1, None, 24), "scores", (None, 1, None, 24)),
    }
    facts = {
        role: model(folder / f"{role}.onnx", TensorEntry(name=a, shape=b), TensorEntry(name=c, shape=d))
        for role, (a, b, c, d) in tensors.items()
    }
    entries = {role: ModelEntry(**each) for role, each in facts.items() if role != "detector"}
    channels = tuple(f"map_{n}" for n in range(13))
    return {**entries, "detector": DetectorEntry(**facts["detector"], decoder="vfr", output_channels=channels)}


def write_bundle(folder, decoder="level_heatmaps", roles=TWO_STAGES, channels=tuple(Role)):
    folder.mkdir()
    spec, grid = DetectorSpec(), GridEntry(shape=(4, 6, 6), spacing_mm=(8.0, 8.0, 8.0))
    slices = TensorEntry(name="slices", shape=(None, 1, None, None))
    maps = TensorEntry(name="heatmaps", shape=(None, spec.channels, None, None))
    image = TensorEntry(name="image", shape=(None, 3, *grid.shape))
    grades = TensorEntry(name="probabilities", shape=(None, 5, 3))
    wide = GridEntry(shape=(7, 5, 6), spacing_mm=(30.0, 30.0, 30.0))
    image_of_all = TensorEntry(name="image", shape=(1, len(channels), *wide.shape))
    grades_of_all = TensorEntry(name="probabilities", shape=(1, 25, 3))
    detector = DetectorEntry(
        **model(folder / "detector.onnx", slices, maps),
        decoder="level_heatmaps",
        output_channels=("disc", "body", "row", "column", *spec.bins),
        spec=spec,
    )
    grader = GraderEntry(
        **model(folder / "grader.onnx", image, grades),
        channels=(Role.SAGITTAL_T1, Role.SAGITTAL_T2, Role.AXIAL_T2),
        grid=grid,
        output_channels=tuple(CONDITIONS),
    )
    whole = GraderEntry(
        **model(folder / "whole.onnx", image_of_all, grades_of_all),
        channels=channels,
        grid=wide,
        output_channels=tuple(f"{condition}_{level}" for condition in CONDITIONS for level in LEVELS),
    )
    entries = {"detector": detector, "grader": grader, "whole_study_grader": whole}
    models = Models(**{role: entries[role] for role in roles} | (spinenet(folder) if decoder == "vfr" else {}))
    about = {"name": "fake", "version": "1", "licence": "-", "intended_use": "-", "training_data": (), "metrics": {}}
    write_manifest(folder, Manifest(schema=SCHEMA, models=models, **about))
    return Bundle.open(folder)


def stack(axes, slices, spacing):
    rng = np.random.default_rng(slices)
    pixels = rng.integers(0, 900, (slices, 60, 60), np.uint16)
    normal = np.asarray(axes, float)[0]
    middle = sum(np.asarray(axes, float)[k] * 4.0 * 59 / 2 for k in (1, 2))
    origins = np.array([(s - (slices - 1) / 2) * spacing * normal - middle for s in range(slices)])
    ones = np.ones(slices, np.float32)
    return Stack(pixels, ones, ones * 0, origins, np.asarray(axes, float), (4.0, 4.0))


SAGITTAL = stack([[1, 0, 0], [0, 0, -1], [0, 1, 0]], 20, 5.0)
AXIAL = stack([[0, 0, 1], [0, 1, 0], [1, 0, 0]], 50, 4.0)


def study(*roles, reason=None):
    series = [
        Series(f"s{n}", role, "it says so", (AXIAL if role is Role.AXIAL_T2 else SAGITTAL,), 20)
        for n, role in enumerate(roles)
    ]
    return Study("1.2.3", tuple(series), (Warn.GAP,), reason)


def detection(source="detector"):
    axes = np.array([[0, 0, -1.0], [0, 1, 0], [1, 0, 0]])
    size = np.array([32.0, 48, 48])
    levels = {
        level: DiscLevel(level, np.array([0.0, 0, 60 - 30 * n]), axes, size, 0.9, source)
        for n, level in enumerate(LEVELS)
    }
    return Detection(levels, (), (Warn.LOW_CONFIDENCE,))


@pytest.fixture
def walked(tmp_path, monkeypatch):
    walks = {}

    def go(given, found=None, *, roles=TWO_STAGES, detector=True, channels=tuple(Role)):
        key = (roles, detector, channels)
        if key not in walks:
            bundle = write_bundle(tmp_path / ("bundle" + str(len(walks) or "")), roles=roles, channels=channels)
            options = dataclasses.replace(OPTIONS, detector=detector)
            walks[key] = walk.plan_walk(tmp_path, bundle, options).factory()
        made = walks[key]
        go.walk = made

        def read(*_):
            if isinstance(given, BaseException):
                raise given
            return UnitReading((given,), (), ())

        def detect(*_):
            assert detector
            assert "detector" in roles
            if isinstance(found, BaseException):
                raise found
            return found or detection()

        monkeypatch.setattr(walk, "read_unit", read)
        monkeypatch.setattr(finder, "detect", detect)
        (result,) = made(UNIT).results
        return result

    return go


def test_a_whole_study_is_graded_at_every_level(walked):
    result = walked(study(Role.SAGITTAL_T1, Role.SAGITTAL_T2, Role.AXIAL_T2))
    assert (result.status, result.reason, result.not_assessed) == (Status.GRADED, None, ())
    assert result.warnings == (Warn.GAP, Warn.LOW_CONFIDENCE)
    assert all(row != prior for row, prior in zip(result.rows, PRIOR_ROWS, strict=True))
    assert [series.role for series in result.series] == ["sagittal_t1", "sagittal_t2", "axial_t2"]
    assert result.levels[LEVELS[1]].center_mm == (0.0, 0.0, 30.0)
    assert set(result.timings_ms) == {"read", "detect", "voxelize", "grade"}
    assert min(result.timings_ms.values()) >= 0
    assert len(pickle.dumps(result)) < 10_000  # no pixels travel


def test_the_same_study_gives_the_same_record_again(walked):
    first, again = (walked(study(Role.SAGITTAL_T2)) for _ in range(2))
    assert first.rows == again.rows


def test_what_no_series_shows_is_the_prior_and_is_named(walked):
    result = walked(study(Role.SAGITTAL_T1, Role.SAGITTAL_T2))
    assert result.status is Status.GRADED
    assert Warn.NO_AXIAL_T2 in result.warnings
    assert len(result.not_assessed) == 10
    assert all("subarticular" in name for name in result.not_assessed)
    for (condition, level), row, prior in zip(ROW_ORDER, result.rows, PRIOR_ROWS, strict=True):
        assert (row == prior) == (f"{condition}_{level}" in result.not_assessed)


def test_a_level_outside_the_pictures_is_not_graded(walked):
    found = detection()
    far = dataclasses.replace(found.levels[LEVELS[4]], center_mm=np.array([0.0, 0, -900]))
    levels = {**found.levels, LEVELS[4]: far}
    result = walked(study(Role.SAGITTAL_T1, Role.AXIAL_T2), dataclasses.replace(found, levels=levels))
    assert Warn.LEVEL_NOT_COVERED in result.warnings
    assert {name[-5:] for name in result.not_assessed} == {"l5_s1"}
    for level in LEVELS:
        levels[level] = dataclasses.replace(far, level=level)
    result = walked(study(Role.SAGITTAL_T1), dataclasses.replace(found, levels=levels))
    assert (result.status, result.reason) == (Status.PRIOR, Reason.GAP_AT_LEVEL)


@pytest.mark.parametrize(
    ("given", "found", "status", "reason"),
    [
        (study(reason=Reason.NO_SAGITTAL), None, Status.PRIOR, Reason.NO_SAGITTAL),
        (study(reason=Reason.NO_POSITION), None, Status.PRIOR, Reason.NO_POSITION),
        (study(reason=Reason.UID_COLLISION), None, Status.FAILED, Reason.UID_COLLISION),
        (study(reason=Reason.CORRUPT_PIXELS), None, Status.FAILED, Reason.CORRUPT_PIXELS),
        (study(Role.SAGITTAL_T2), detection("prior"), Status.PRIOR, Reason.NOT_LOCALIZED),
        (study(Role.SAGITTAL_T2), StudyError(Reason.NO_SAGITTAL), Status.PRIOR, Reason.NO_SAGITTAL),
        (study(Role.SAGITTAL_T2), MemoryError(), Status.FAILED, Reason.OUT_OF_MEMORY),
        (study(Role.SAGITTAL_T2), ValueError("DOE^JOHN"), Status.FAILED, Reason.INTERNAL_ERROR),
        (ValueError("DOE^JOHN"), None, Status.FAILED, Reason.INTERNAL_ERROR),
    ],
)
def test_what_stops_a_study_becomes_its_record(walked, given, found, status, reason):
    result = walked(given, found)
    assert (result.study_id, result.status, result.reason) == ("1.2.3", status, reason)
    assert result.rows == PRIOR_ROWS
    line = study_line(result)
    assert "DOE" not in line
    if reason is Reason.INTERNAL_ERROR:
        assert result.detail.startswith("ValueError at ")
    if found is not None and not isinstance(found, BaseException):
        assert json.loads(line)["levels"]["l1_l2"]["source"] == "prior"


WHOLE_STUDY = study(Role.SAGITTAL_T1, Role.SAGITTAL_T2, Role.AXIAL_T2)


@pytest.mark.parametrize(
    ("roles", "detector", "found"),
    [(ALL_THREE, True, "prior"), (ALL_THREE, False, None), (WHOLE, True, None), (WHOLE, False, None)],
)
def test_without_levels_the_whole_study_grader_grades_and_says_so(walked, roles, detector, found):
    result = walked(WHOLE_STUDY, found and detection(found), roles=roles, detector=detector)
    assert (result.status, result.reason, result.not_assessed) == (Status.GRADED, None, ())
    assert result.warnings == (Warn.GAP, Warn.LOW_CONFIDENCE, Warn.WHOLE_STUDY_GRADER)
    assert {level.source for level in result.levels.values()} == {"prior"}
    assert all(level.center_mm is not None for level in result.levels.values())
    assert len(set(result.rows)) == 25
    assert {"voxelize", "grade"} <= set(result.timings_ms)
    assert result.rows == walked(WHOLE_STUDY, detection("prior"), roles=ALL_THREE).rows  # whichever way it came to it


def test_with_levels_the_whole_study_grader_is_never_opened(walked):
    with_fallback = walked(WHOLE_STUDY, roles=ALL_THREE)
    assert set(walked.walk.devices) == {"detector", "grader"}
    assert with_fallback.rows == walked(WHOLE_STUDY).rows
    assert Warn.WHOLE_STUDY_GRADER not in with_fallback.warnings
    walked(WHOLE_STUDY, detection("prior"), roles=ALL_THREE)
    assert set(walked.walk.devices) == {"detector", "grader", "whole_study_grader"}


def test_models_that_the_run_does_without_are_never_opened(walked):
    walked(WHOLE_STUDY, roles=ALL_THREE, detector=False)
    assert set(walked.walk.devices) == {"whole_study_grader"}


def test_without_a_detector_and_without_a_whole_study_grader_the_rows_are_the_prior(walked):
    result = walked(WHOLE_STUDY, detector=False)
    assert (result.status, result.reason, result.rows) == (Status.PRIOR, Reason.NOT_LOCALIZED, PRIOR_ROWS)
    assert {level.source for level in result.levels.values()} == {"prior"}
    assert walked.walk.devices == {}
    assert walked(study(Role.AXIAL_T2), detector=False).reason is Reason.NO_SAGITTAL


def test_the_whole_study_grader_too_keeps_the_prior_where_no_series_shows_the_condition(walked):
    result = walked(study(Role.SAGITTAL_T1), detection("prior"), roles=ALL_THREE)
    assert result.status is Status.GRADED
    assert {Warn.NO_AXIAL_T2, Warn.NO_SAGITTAL_T2, Warn.WHOLE_STUDY_GRADER} <= set(result.warnings)
    for (condition, level), row, prior in zip(ROW_ORDER, result.rows, PRIOR_ROWS, strict=True):
        assert (row == prior) == ("foraminal" not in condition) == (f"{condition}_{level}" in result.not_assessed)
    blind = walked(study(Role.SAGITTAL_T1), detection("prior"), roles=ALL_THREE, channels=(Role.AXIAL_T2,))
    assert (blind.status, blind.reason, blind.rows) == (Status.PRIOR, Reason.NOT_LOCALIZED, PRIOR_ROWS)


def test_a_whole_study_grader_that_cannot_be_had_ends_the_run_and_is_no_fault_of_the_study(walked, tmp_path):
    walked(WHOLE_STUDY, roles=ALL_THREE)
    (tmp_path / "bundle" / "whole.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"whole\.onnx"):
        walked(WHOLE_STUDY, detection("prior"), roles=ALL_THREE)


def test_another_numbering_is_told_with_the_grades(walked):
    found = detection()
    moved = dict(zip(LEVELS, [found.levels[level] for level in (*LEVELS[1:], LEVELS[4])], strict=True))
    other = Alternative(1, 0.3141592, moved)
    result = walked(WHOLE_STUDY, dataclasses.replace(found, alternative=other))
    assert result.status is Status.GRADED
    record = json.loads(study_line(result))["alternative_levels"]
    assert (record["shift"], record["probability"]) == (1, 0.3142)
    assert record["levels"]["l1_l2"] == [0.0, 0.0, 30.0]
    assert list(record["levels"]) == list(LEVELS)
    assert json.loads(study_line(walked(WHOLE_STUDY)))["alternative_levels"] is None


def test_an_error_while_reading_an_unknown_study_is_left_to_the_run(walked, monkeypatch, tmp_path):
    write_bundle(tmp_path / "bundle")
    made = walk.StudyWalk(tmp_path, tmp_path / "bundle", Bundle.open(tmp_path / "bundle").digest, OPTIONS, None)
    monkeypatch.setattr(walk, "read_unit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made(WorkUnit("a", UNIT.files, None))


def test_series_descriptions_are_part_of_what_decides_the_results(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    root = tmp_path / "images"
    root.mkdir()
    assert walk.plan_walk(root, bundle, OPTIONS).series_descriptions == "none"
    table = tmp_path / "train_series_descriptions.csv"
    table.write_text("study_id,series_id,series_description\n1,2,Sagittal T1\n")
    found = walk.plan_walk(root, bundle, OPTIONS).series_descriptions
    given = dataclasses.replace(OPTIONS, series_descriptions=table)
    assert found == walk.plan_walk(root, bundle, given).series_descriptions != "none"
    with pytest.raises(UsageError, match="missing"):
        walk.plan_walk(root, bundle, dataclasses.replace(OPTIONS, series_descriptions=tmp_path / "missing.csv"))


def test_spinenets_three_networks_find_the_levels(tmp_path, monkeypatch):
    monkeypatch.setattr(walk, "read_unit", lambda *_: UnitReading((study(*Role),), (), ()))
    made = walk.plan_walk(tmp_path, write_bundle(tmp_path / "vfr", "vfr"), OPTIONS).factory()
    (result,) = made(UNIT).results
    assert set(made.devices) == {"detector", "vertebra_appearance", "vertebra_context", "grader"}
    assert result.status is Status.PRIOR  # noise shows no vertebra
    assert result.reason is Reason.NOT_LOCALIZED


def test_a_bundle_that_changed_since_is_refused(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="changed"):
        walk.StudyWalk(tmp_path, bundle.path, "0" * 64, OPTIONS, None)
