"""What a worker makes of everything that can become of a study: status, reason, warnings, rows, times."""

import dataclasses
import json
import re
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from made_studies import (
    ALL_THREE,
    OPTIONS,
    UNIT,
    WHOLE_STUDY,
    Grading,
    detection,
    study,
    write_bundle,
)

from spine_engine.anatomy import CONDITIONS, LEVELS, Condition, Level
from spine_engine.detection import Alternative, finder
from spine_engine.dicom import RefusedFile, UnitReading, WorkUnit
from spine_engine.errors import BackendError, BundleError, Reason, StudyError, Warn
from spine_engine.pipeline import study_pipeline, unit_worker
from spine_engine.pipeline.grading import GradedLevels
from spine_engine.pipeline.outcome import level_results
from spine_engine.results import ALL_ROW_NAMES, PRIOR_ROWS, study_line
from spine_engine.run.plan import plan_run
from spine_engine.scheduler.task import CompanionLostError
from spine_engine.study import Role, Series


@pytest.fixture
def graded(tmp_path, monkeypatch):
    return Grading(tmp_path, monkeypatch)


STATUS = {
    "no_sagittal": "prior",
    "no_orientation": "prior",
    "no_position": "prior",
    "no_pixel_spacing": "prior",
    "no_geometry": "prior",
    "bad_orientation": "prior",
    "not_a_volume": "prior",
    "gap_at_level": "prior",
    "not_localized": "prior",
    "not_lumbar": "prior",
    "poor_quality": "prior",
    "unsupported_transfer_syntax": "failed",
    "corrupt_pixels": "failed",
    "corrupt_file": "failed",
    "not_an_image": "failed",
    "not_a_regular_file": "failed",
    "unreadable": "failed",
    "too_large": "failed",
    "uid_collision": "failed",
    "timeout": "failed",
    "worker_died": "failed",
    "out_of_memory": "failed",
    "internal_error": "failed",
}


def test_every_reason_has_a_status(graded):
    assert set(STATUS) == set(Reason)
    for reason, status in STATUS.items():
        from_files = graded(study(Role.SAGITTAL_T2, reason=Reason(reason)))
        on_the_way = graded(
            study(Role.SAGITTAL_T2), StudyError(Reason(reason), "DOE^JOHN")
        )
        for result in (from_files, on_the_way):
            assert (result.reason, result.status) == (reason, status)
            assert (result.rows, result.not_assessed) == (PRIOR_ROWS, ALL_ROW_NAMES)
            assert (result.levels, result.alternative) == ({}, None)
            assert result.warnings == (Warn.GAP,)
            assert [series.path for series in result.series] == ["s0"]
        assert "detect" not in from_files.timings_ms
        assert set(on_the_way.timings_ms) == {"read", "detect"}
        # only the engine's own errors tell what they were: others may hold what a file said
        assert on_the_way.detail == ("DOE^JOHN" if reason == "internal_error" else None)
        assert from_files.detail is None


def test_warnings_are_told_once_and_in_their_fixed_order(graded):
    given = dataclasses.replace(
        study(Role.SAGITTAL_T1),
        warnings=(
            Warn.SERIES_REFUSED,
            Warn.UNEVEN,
            Warn.LOW_CONFIDENCE,
            Warn.NO_AXIAL_T2,
        ),
    )
    found = detection()
    far = dataclasses.replace(
        found.levels[LEVELS[0]], center_mm=np.array([0.0, 0, 900])
    )
    told = (Warn.TRANSITIONAL_ANATOMY, Warn.LOW_CONFIDENCE, Warn.LEVEL_INTERPOLATED)
    found = dataclasses.replace(
        found, levels={**found.levels, LEVELS[0]: far}, warnings=told
    )
    assert graded(given, found).warnings == (
        "uneven",
        "series_refused",
        "no_sagittal_t2",
        "no_axial_t2",
        "level_interpolated",
        "level_not_covered",
        "low_confidence",
        "transitional_anatomy",
    )


def test_a_study_that_is_not_graded_keeps_what_was_found(graded):
    found = detection()
    levels = {
        level: dataclasses.replace(
            disc, center_mm=disc.center_mm + np.array([0, 0, 900])
        )
        for level, disc in found.levels.items()
    }
    other = Alternative(-1, 0.25, found.levels)
    found = dataclasses.replace(
        found, levels=levels, alternative=other, warnings=(Warn.SERIES_DISAGREE,)
    )
    result = graded(study(Role.SAGITTAL_T1), found)
    assert (result.status, result.reason) == ("prior", "gap_at_level")
    assert result.warnings == (
        Warn.GAP,
        Warn.SERIES_DISAGREE,
    )  # nothing of what the grader would have missed
    assert result.levels[Level.L1_L2].center_mm == (0.0, 0.0, 960.0)
    assert (result.alternative.shift, result.alternative.probability) == (-1, 0.25)
    assert result.alternative.centers_mm[Level.L5_S1] == (0.0, 0.0, -60.0)
    lost = graded(study(Role.SAGITTAL_T1), detection("prior"))
    assert (lost.status, lost.reason, lost.warnings) == (
        "prior",
        "not_localized",
        (Warn.GAP, Warn.LOW_CONFIDENCE),
    )
    assert {level.source for level in lost.levels.values()} == {"prior"}


def test_one_level_with_a_place_is_enough_to_grade(graded):
    found = detection("prior")
    levels = {
        **found.levels,
        Level.L3_L4: dataclasses.replace(
            found.levels[Level.L3_L4], source="interpolated"
        ),
    }
    result = graded(
        WHOLE_STUDY, dataclasses.replace(found, levels=levels), roles=ALL_THREE
    )
    assert (result.status, result.reason) == ("graded", None)
    assert Warn.WHOLE_STUDY_GRADER not in result.warnings
    assert len(result.not_assessed) == 20
    assert {name[-5:] for name in result.not_assessed} == {
        "l1_l2",
        "l2_l3",
        "l4_l5",
        "l5_s1",
    }


def test_series_are_recorded_as_they_were_read(graded):
    sound = WHOLE_STUDY.series[0]
    refused = Series("b/refused", None, "why not", (), 3, reason=Reason.NO_POSITION)
    two = Series(
        "c/two", Role.AXIAL_T2, "it says so", WHOLE_STUDY.series[2].stacks * 2, 9
    )
    result = graded(dataclasses.replace(WHOLE_STUDY, series=(sound, refused, two)))
    assert [dataclasses.astuple(series) for series in result.series] == [
        ("s0", "sagittal_t1", "it says so", 1, 20, None),
        ("b/refused", None, "why not", 0, 3, "no_position"),
        ("c/two", "axial_t2", "it says so", 2, 9, None),
    ]


def test_levels_are_recorded_with_their_boxes(graded):
    found = detection()
    axes = np.array([[0, -0.6, -0.8], [0, 0.8, -0.6], [1.0, 0, 0]])
    disc = dataclasses.replace(
        found.levels[Level.L4_L5],
        axes=axes,
        size_mm=np.array([1.0, 2, 3]),
        confidence=0.25,
        source="interpolated",
    )
    result = graded(
        WHOLE_STUDY,
        dataclasses.replace(found, levels={**found.levels, Level.L4_L5: disc}),
    )
    assert list(result.levels) == list(LEVELS)
    level = result.levels[Level.L4_L5]
    assert (level.center_mm, level.size_mm) == ((0.0, 0.0, -30.0), (1.0, 2.0, 3.0))
    assert level.axes == ((0.0, -0.6, -0.8), (0.0, 0.8, -0.6), (1.0, 0.0, 0.0))
    assert (level.confidence, level.source) == (0.25, "interpolated")


def test_rows_come_in_rsnas_order_and_priors_are_named(graded, monkeypatch):
    """The grades of condition c at level k are (30 + 5 c + k) hundredths of normal and 20 of severe."""
    table = np.zeros((5, 5, 3))
    for k in range(5):
        for c in range(5):
            normal = 0.30 + 0.05 * c + 0.01 * k
            table[k, c] = normal, 0.8 - normal, 0.2
    assessed = np.ones((5, 5), bool)
    assessed[1, 4] = assessed[3, 0] = False
    grades = GradedLevels(table, assessed, np.ones((5, 3)), (), (LEVELS[1],))
    monkeypatch.setattr(study_pipeline, "grade", lambda *_, **__: grades)
    result = graded(WHOLE_STUDY)
    assert [row[0] for row in result.rows] == [10000 * (30 + n) for n in range(25)]
    assert {row[2] for row in result.rows} == {200000}
    assert (
        result.probabilities(Condition.SPINAL_CANAL_STENOSIS, Level.L2_L3)[
            "normal_mild"
        ]
        == 0.51
    )
    assert result.not_assessed == (
        "left_neural_foraminal_narrowing_l4_l5",
        "spinal_canal_stenosis_l2_l3",
    )
    assert result.warnings == (Warn.GAP, Warn.LEVEL_NOT_COVERED, Warn.LOW_CONFIDENCE)


def test_levels_are_told_in_their_own_order():
    found = detection()
    backwards = dataclasses.replace(
        found, levels=dict(reversed(list(found.levels.items())))
    )
    assert list(level_results(backwards)) == [
        "l1_l2",
        "l2_l3",
        "l3_l4",
        "l4_l5",
        "l5_s1",
    ]
    assert level_results(backwards) == level_results(found)
    assert level_results(found)["l5_s1"].center_mm == (0.0, 0.0, -60.0)


# ---- errors -------------------------------------------------------------------------------------------------------


def failing(*_, **__):
    raise ValueError("DOE^JOHN")


def test_a_bug_is_told_by_its_type_and_the_last_line_of_the_engine(graded, monkeypatch):
    result = graded(WHOLE_STUDY, ValueError("DOE^JOHN"))
    line = re.fullmatch(r"ValueError at finder:(\d+)", result.detail)
    assert line is not None
    source = Path(finder.__file__).read_text().splitlines()
    assert "detect(series" in source[int(line[1]) - 1]
    assert result.warnings == ()
    assert [series.path for series in result.series] == ["s0", "s1", "s2"]
    monkeypatch.setattr(study_pipeline, "grade", failing)
    detail = graded(WHOLE_STUDY).detail
    line = re.fullmatch(r"ValueError at study_pipeline:(\d+)", detail)
    assert line is not None
    source = Path(study_pipeline.__file__).read_text().splitlines()
    assert "grade(" in source[int(line[1]) - 1]
    unread = graded(ValueError("DOE^JOHN"))
    assert re.fullmatch(r"ValueError at unit_worker:\d+", unread.detail)
    assert unread.series == ()
    assert set(unread.timings_ms) == {"read"}
    assert "DOE" not in study_line(unread)


@pytest.mark.parametrize("where", ["read", "detect", "grade", "whole study"])
def test_wherever_memory_runs_out_it_is_said(graded, monkeypatch, where):
    def short(*_, **__):
        raise MemoryError

    if where == "grade":
        monkeypatch.setattr(study_pipeline, "grade", short)
    if where == "whole study":
        monkeypatch.setattr(study_pipeline, "grade_whole_study", short)
    given = MemoryError() if where == "read" else WHOLE_STUDY
    found = {"detect": MemoryError(), "whole study": detection("prior")}.get(where)
    result = graded(given, found, roles=ALL_THREE)
    assert (result.study_id, result.status, result.reason) == (
        "1.2.3",
        "failed",
        "out_of_memory",
    )
    assert result.detail is None
    assert len(result.series) == (0 if where == "read" else 3)
    assert result.warnings == (() if where == "read" else (Warn.GAP,))
    assert "read" in result.timings_ms


@pytest.mark.parametrize(
    "error",
    [BackendError("no GPU"), BundleError("damaged"), CompanionLostError(3)],
    ids=repr,
)
def test_a_model_that_is_not_to_be_had_is_no_fault_of_the_study(
    graded, monkeypatch, error
):
    graded(WHOLE_STUDY)
    closed = []
    monkeypatch.setattr(
        graded.worker._pipeline.models, "close", lambda: closed.append(True)
    )
    with pytest.raises(type(error)) as caught:
        graded(WHOLE_STUDY, error)
    assert caught.value is error
    assert closed == [True] * isinstance(
        error, CompanionLostError
    )  # the next study connects anew


def test_ctrl_c_is_no_outcome_of_a_study(graded):
    for given, found in (
        (KeyboardInterrupt(), None),
        (WHOLE_STUDY, KeyboardInterrupt()),
    ):
        with pytest.raises(KeyboardInterrupt):
            graded(given, found)


def test_memory_that_runs_out_for_a_unit_of_no_known_study_is_left_to_the_run(
    graded, monkeypatch
):
    graded(WHOLE_STUDY)

    def short(*_):
        raise MemoryError

    monkeypatch.setattr(unit_worker, "read_unit", short)
    with pytest.raises(MemoryError):
        graded.worker.run(WorkUnit("a", UNIT.files, None))


def test_what_reading_says_of_the_unit_is_passed_on(graded, monkeypatch):
    graded(WHOLE_STUDY)
    part, refused = (
        WorkUnit("a#1", UNIT.files, "1"),
        RefusedFile("a/2", Reason.NOT_AN_IMAGE),
    )
    monkeypatch.setattr(
        unit_worker, "read_unit", lambda *_: UnitReading((), (part,), (refused,))
    )
    outcome, _ = graded.worker.run(UNIT)
    assert (outcome.results, outcome.split, outcome.refused) == (
        (),
        (part,),
        (refused,),
    )


def test_reading_gets_the_unit_the_roles_and_the_time_allowed(tmp_path, monkeypatch):
    table = tmp_path / "roles.csv"
    table.write_text("study_id,series_id,series_description\n1,2,Sagittal T1\n")
    options = dataclasses.replace(OPTIONS, timeout_s=77.0, series_descriptions=table)
    made, _ = plan_run(tmp_path, write_bundle(tmp_path / "bundle"), options).factory()
    asked = []
    monkeypatch.setattr(
        unit_worker,
        "read_unit",
        lambda *given: asked.append(given) or UnitReading((), (), ()),
    )
    made.run(UNIT)
    ((root, unit, overrides, limits),) = asked
    assert (root, unit, limits.study_s) == (tmp_path, UNIT, 77.0)
    assert limits == dataclasses.replace(unit_worker.DEFAULT_LIMITS, study_s=77.0)
    assert overrides.roles == {("1", "2"): Role.SAGITTAL_T1}


def test_keys_that_no_file_can_hold_are_escaped(graded):
    odd = "1.2\udc80"
    assert (
        graded(dataclasses.replace(WHOLE_STUDY, study_id=odd)).study_id == "1.2\\udc80"
    )
    assert (
        graded(dataclasses.replace(WHOLE_STUDY, study_id=odd), ValueError()).study_id
        == "1.2\\udc80"
    )
    assert (
        graded(dataclasses.replace(WHOLE_STUDY, study_id=odd), MemoryError()).study_id
        == "1.2\\udc80"
    )


# ---- the clock ----------------------------------------------------------------------------------------------------


class Hands:
    """A clock that moves only when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("whole", [False, True], ids=["levels", "whole study"])
def test_time_is_told_by_stage_and_the_models_apart_from_what_is_around_them(
    graded, monkeypatch, whole
):
    clock = Hands()
    monkeypatch.setattr("spine_engine.pipeline.clock.perf_counter", clock)
    monkeypatch.setattr("spine_engine.pipeline.models.perf_counter", clock)
    graded(WHOLE_STUDY, detection("prior" if whole else "detector"), roles=ALL_THREE)
    worker = graded.worker
    models = worker._pipeline.models
    read, find = unit_worker.read_unit, models._find
    model = models.whole_study_grader() if whole else models.grader
    run = model._backend.run
    grading = study_pipeline.grade_whole_study if whole else study_pipeline.grade

    def slowly(seconds, function):
        def run_slowly(*args, **kwargs):
            clock.now += seconds
            return function(*args, **kwargs)

        return run_slowly

    monkeypatch.setattr(unit_worker, "read_unit", slowly(1, read))
    monkeypatch.setattr(models, "_find", slowly(2, find))
    monkeypatch.setattr(model._backend, "run", slowly(4, run))
    monkeypatch.setattr(study_pipeline, grading.__name__, slowly(8, grading))
    for _ in range(2):  # what an earlier study took is none of this one's
        outcome, _ = worker.run(UNIT)
        (result,) = outcome.results
        assert result.timings_ms == {
            "read": 1000,
            "detect": 2000,
            "voxelize": 8000,
            "grade": 4000,
        }
    assert json.loads(study_line(result))["timings_ms"] == result.timings_ms


def test_a_stage_that_fails_took_its_time_too(graded, monkeypatch):
    ticks = count()
    monkeypatch.setattr("spine_engine.pipeline.clock.perf_counter", lambda: next(ticks))
    assert graded(ValueError()).timings_ms == {"read": 1000}
    assert graded(WHOLE_STUDY, ValueError()).timings_ms == {
        "read": 1000,
        "detect": 1000,
    }


def test_the_buffer_of_the_grids_is_shared_from_study_to_study(graded, monkeypatch):
    buffers = []
    plain = study_pipeline.grade

    def watched(*args, out, **kwargs):
        buffers.append(out)
        return plain(*args, out=out, **kwargs)

    monkeypatch.setattr(study_pipeline, "grade", watched)
    for _ in range(2):
        graded(WHOLE_STUDY)
    assert buffers[0] is buffers[1]
    assert buffers[0].shape == (5, 3, 4, 6, 6)
    assert buffers[0].dtype == np.float32


def test_the_detector_is_asked_for_sagittal_t1_then_t2_and_never_for_axial_series(
    graded, monkeypatch
):
    t1, t2, ax = WHOLE_STUDY.series
    asked = []
    given = dataclasses.replace(WHOLE_STUDY, series=(t2, ax, t1))
    graded(given)
    monkeypatch.setattr(
        finder, "detect", lambda series, *_: asked.append(series) or detection()
    )
    graded.worker.run(UNIT)
    assert asked == [[t1.stacks, t2.stacks]]
    assert len(CONDITIONS) == 5
