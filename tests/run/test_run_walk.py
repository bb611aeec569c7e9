"""The walk of one study, in this process: a fake bundle, made-up stacks, and a detection that is given."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from walk_fakes import (
    ALL_THREE,
    OPTIONS,
    UNIT,
    WHOLE,
    WHOLE_STUDY,
    Walks,
    detection,
    study,
    write_bundle,
)

from spine_engine import walk
from spine_engine.anatomy import LEVELS
from spine_engine.bundle import Bundle
from spine_engine.detection import Alternative
from spine_engine.dicom import UnitReading, WorkUnit
from spine_engine.errors import BundleError, Reason, StudyError, UsageError, Warn
from spine_engine.results import PRIOR_ROWS, ROW_ORDER, Status, study_line
from spine_engine.study import Role


@pytest.fixture
def walked(tmp_path, monkeypatch):
    return Walks(tmp_path, monkeypatch)


def test_a_whole_study_is_graded_at_every_level(walked):
    result = walked(study(Role.SAGITTAL_T1, Role.SAGITTAL_T2, Role.AXIAL_T2))
    assert (result.status, result.reason, result.not_assessed) == (Status.GRADED, None, ())
    assert result.warnings == (Warn.GAP, Warn.LOW_CONFIDENCE)
    assert sum(row != prior for row, prior in zip(result.rows, PRIOR_ROWS, strict=True)) == 25
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
    assert sum("subarticular" in name for name in result.not_assessed) == 10
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


@pytest.mark.parametrize(
    ("roles", "detector", "found"),
    [(ALL_THREE, True, "prior"), (ALL_THREE, False, None), (WHOLE, True, None), (WHOLE, False, None)],
)
def test_without_levels_the_whole_study_grader_grades_and_says_so(walked, roles, detector, found):
    result = walked(WHOLE_STUDY, found and detection(found), roles=roles, detector=detector)
    assert (result.status, result.reason, result.not_assessed) == (Status.GRADED, None, ())
    assert result.warnings == (Warn.GAP, Warn.LOW_CONFIDENCE, Warn.WHOLE_STUDY_GRADER)
    assert {level.source for level in result.levels.values()} == {"prior"}
    assert sum(level.center_mm is not None for level in result.levels.values()) == 5
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
