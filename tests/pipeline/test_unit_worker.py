"""What a worker makes of one study, in this process: a fake bundle, made-up stacks, and a detection that is given."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from made_studies import (
    ALL_THREE,
    OPTIONS,
    UNIT,
    WHOLE,
    WHOLE_STUDY,
    Grading,
    detection,
    study,
    write_bundle,
)

from spine_engine.anatomy import LEVELS
from spine_engine.bundle import Bundle
from spine_engine.detection import Alternative
from spine_engine.dicom import UnitReading, WorkUnit
from spine_engine.errors import BundleError, Reason, StudyError, Warn
from spine_engine.pipeline import unit_worker
from spine_engine.pipeline.unit_worker import UnitWorker
from spine_engine.results import PRIOR_ROWS, ROW_ORDER, Status, study_line
from spine_engine.run.plan import plan_run
from spine_engine.study import Role


@pytest.fixture
def graded(tmp_path, monkeypatch):
    return Grading(tmp_path, monkeypatch)


def test_a_whole_study_is_graded_at_every_level(graded):
    result = graded(study(Role.SAGITTAL_T1, Role.SAGITTAL_T2, Role.AXIAL_T2))
    assert (result.status, result.reason, result.not_assessed) == (
        Status.GRADED,
        None,
        (),
    )
    assert result.warnings == (Warn.GAP, Warn.LOW_CONFIDENCE)
    assert (
        sum(row != prior for row, prior in zip(result.rows, PRIOR_ROWS, strict=True))
        == 25
    )
    assert [series.role for series in result.series] == [
        "sagittal_t1",
        "sagittal_t2",
        "axial_t2",
    ]
    assert result.levels[LEVELS[1]].center_mm == (0.0, 0.0, 30.0)
    assert set(result.timings_ms) == {"read", "detect", "voxelize", "grade"}
    assert min(result.timings_ms.values()) >= 0
    assert len(pickle.dumps(result)) < 10_000  # no pixels travel


def test_the_same_study_gives_the_same_record_again(graded):
    first, again = (graded(study(Role.SAGITTAL_T2)) for _ in range(2))
    assert first.rows == again.rows


def test_what_no_series_shows_is_the_prior_and_is_named(graded):
    result = graded(study(Role.SAGITTAL_T1, Role.SAGITTAL_T2))
    assert result.status is Status.GRADED
    assert Warn.NO_AXIAL_T2 in result.warnings
    assert len(result.not_assessed) == 10
    assert sum("subarticular" in name for name in result.not_assessed) == 10
    for (condition, level), row, prior in zip(
        ROW_ORDER, result.rows, PRIOR_ROWS, strict=True
    ):
        assert (row == prior) == (f"{condition}_{level}" in result.not_assessed)


def test_a_level_outside_the_pictures_is_not_graded(graded):
    found = detection()
    far = dataclasses.replace(
        found.levels[LEVELS[4]], center_mm=np.array([0.0, 0, -900])
    )
    levels = {**found.levels, LEVELS[4]: far}
    result = graded(
        study(Role.SAGITTAL_T1, Role.AXIAL_T2),
        dataclasses.replace(found, levels=levels),
    )
    assert Warn.LEVEL_NOT_COVERED in result.warnings
    assert {name[-5:] for name in result.not_assessed} == {"l5_s1"}
    for level in LEVELS:
        levels[level] = dataclasses.replace(far, level=level)
    result = graded(study(Role.SAGITTAL_T1), dataclasses.replace(found, levels=levels))
    assert (result.status, result.reason) == (Status.PRIOR, Reason.GAP_AT_LEVEL)


@pytest.mark.parametrize(
    ("given", "found", "status", "reason"),
    [
        (study(reason=Reason.NO_SAGITTAL), None, Status.PRIOR, Reason.NO_SAGITTAL),
        (study(reason=Reason.NO_POSITION), None, Status.PRIOR, Reason.NO_POSITION),
        (study(reason=Reason.UID_COLLISION), None, Status.FAILED, Reason.UID_COLLISION),
        (
            study(reason=Reason.CORRUPT_PIXELS),
            None,
            Status.FAILED,
            Reason.CORRUPT_PIXELS,
        ),
        (
            study(Role.SAGITTAL_T2),
            detection("prior"),
            Status.PRIOR,
            Reason.NOT_LOCALIZED,
        ),
        (
            study(Role.SAGITTAL_T2),
            StudyError(Reason.NO_SAGITTAL),
            Status.PRIOR,
            Reason.NO_SAGITTAL,
        ),
        (study(Role.SAGITTAL_T2), MemoryError(), Status.FAILED, Reason.OUT_OF_MEMORY),
        (
            study(Role.SAGITTAL_T2),
            ValueError("DOE^JOHN"),
            Status.FAILED,
            Reason.INTERNAL_ERROR,
        ),
        (ValueError("DOE^JOHN"), None, Status.FAILED, Reason.INTERNAL_ERROR),
    ],
)
def test_what_stops_a_study_becomes_its_record(graded, given, found, status, reason):
    result = graded(given, found)
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
    [
        (ALL_THREE, True, "prior"),
        (ALL_THREE, False, None),
        (WHOLE, True, None),
        (WHOLE, False, None),
    ],
)
def test_without_levels_the_whole_study_grader_grades_and_says_so(
    graded, roles, detector, found
):
    result = graded(
        WHOLE_STUDY, found and detection(found), roles=roles, detector=detector
    )
    assert (result.status, result.reason, result.not_assessed) == (
        Status.GRADED,
        None,
        (),
    )
    assert result.warnings == (Warn.GAP, Warn.LOW_CONFIDENCE, Warn.WHOLE_STUDY_GRADER)
    assert {level.source for level in result.levels.values()} == {"prior"}
    assert sum(level.center_mm is not None for level in result.levels.values()) == 5
    assert len(set(result.rows)) == 25
    assert {"voxelize", "grade"} <= set(result.timings_ms)
    assert (
        result.rows == graded(WHOLE_STUDY, detection("prior"), roles=ALL_THREE).rows
    )  # whichever way it came to it


def test_with_levels_the_whole_study_grader_is_never_opened(graded):
    with_fallback = graded(WHOLE_STUDY, roles=ALL_THREE)
    assert set(graded.worker.facts) == {"detector", "grader"}
    assert with_fallback.rows == graded(WHOLE_STUDY).rows
    assert Warn.WHOLE_STUDY_GRADER not in with_fallback.warnings
    graded(WHOLE_STUDY, detection("prior"), roles=ALL_THREE)
    assert set(graded.worker.facts) == {"detector", "grader", "whole_study_grader"}


def test_models_that_the_run_does_without_are_never_opened(graded):
    graded(WHOLE_STUDY, roles=ALL_THREE, detector=False)
    assert set(graded.worker.facts) == {"whole_study_grader"}


def test_without_a_detector_and_without_a_whole_study_grader_the_rows_are_the_prior(
    graded,
):
    result = graded(WHOLE_STUDY, detector=False)
    assert (result.status, result.reason, result.rows) == (
        Status.PRIOR,
        Reason.NOT_LOCALIZED,
        PRIOR_ROWS,
    )
    assert {level.source for level in result.levels.values()} == {"prior"}
    assert graded.worker.facts == {}
    assert graded(study(Role.AXIAL_T2), detector=False).reason is Reason.NO_SAGITTAL


def test_the_whole_study_grader_too_keeps_the_prior_where_no_series_shows_the_condition(
    graded,
):
    result = graded(study(Role.SAGITTAL_T1), detection("prior"), roles=ALL_THREE)
    assert result.status is Status.GRADED
    assert {Warn.NO_AXIAL_T2, Warn.NO_SAGITTAL_T2, Warn.WHOLE_STUDY_GRADER} <= set(
        result.warnings
    )
    for (condition, level), row, prior in zip(
        ROW_ORDER, result.rows, PRIOR_ROWS, strict=True
    ):
        assert (
            (row == prior)
            == ("foraminal" not in condition)
            == (f"{condition}_{level}" in result.not_assessed)
        )
    blind = graded(
        study(Role.SAGITTAL_T1),
        detection("prior"),
        roles=ALL_THREE,
        channels=(Role.AXIAL_T2,),
    )
    assert (blind.status, blind.reason, blind.rows) == (
        Status.PRIOR,
        Reason.NOT_LOCALIZED,
        PRIOR_ROWS,
    )


def test_a_whole_study_grader_that_cannot_be_had_ends_the_run_and_is_no_fault_of_the_study(
    graded, tmp_path
):
    graded(WHOLE_STUDY, roles=ALL_THREE)
    (tmp_path / "bundle" / "whole.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"whole\.onnx"):
        graded(WHOLE_STUDY, detection("prior"), roles=ALL_THREE)


def test_another_numbering_is_told_with_the_grades(graded):
    found = detection()
    moved = dict(
        zip(
            LEVELS,
            [found.levels[level] for level in (*LEVELS[1:], LEVELS[4])],
            strict=True,
        )
    )
    other = Alternative(1, 0.3141592, moved)
    result = graded(WHOLE_STUDY, dataclasses.replace(found, alternative=other))
    assert result.status is Status.GRADED
    record = json.loads(study_line(result))["alternative_levels"]
    assert (record["shift"], record["probability"]) == (1, 0.3142)
    assert record["levels"]["l1_l2"] == [0.0, 0.0, 30.0]
    assert list(record["levels"]) == list(LEVELS)
    assert json.loads(study_line(graded(WHOLE_STUDY)))["alternative_levels"] is None


def test_an_error_while_reading_an_unknown_study_is_left_to_the_run(
    graded, monkeypatch, tmp_path
):
    write_bundle(tmp_path / "bundle")
    made = UnitWorker(
        tmp_path,
        tmp_path / "bundle",
        Bundle.open(tmp_path / "bundle").digest,
        OPTIONS,
        None,
    )
    monkeypatch.setattr(unit_worker, "read_unit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.run(WorkUnit("a", UNIT.files, None))


def test_spinenets_three_networks_find_the_levels(tmp_path, monkeypatch):
    monkeypatch.setattr(
        unit_worker, "read_unit", lambda *_: UnitReading((study(*Role),), (), ())
    )
    made, _ = plan_run(
        tmp_path, write_bundle(tmp_path / "vfr", "vfr"), OPTIONS
    ).factory()
    outcome, facts = made.run(UNIT)
    (result,) = outcome.results
    assert set(facts) == {
        "detector",
        "vertebra_appearance",
        "vertebra_context",
        "grader",
    }
    assert result.status is Status.PRIOR  # noise shows no vertebra
    assert result.reason is Reason.NOT_LOCALIZED


def test_a_bundle_that_changed_since_is_refused(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="changed"):
        UnitWorker(tmp_path, bundle.path, "0" * 64, OPTIONS, None)
