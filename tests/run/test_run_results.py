import csv
import io
import json
import math
from fractions import Fraction

import pytest

from spine_engine.anatomy import CONDITIONS, LEVELS, prior
from spine_engine.errors import OutputError, Reason, Warn
from spine_engine.results import (
    PRIOR_ROWS,
    ROW_ORDER,
    AlternativeResult,
    LevelResult,
    SeriesResult,
    Status,
    StudyResult,
    prediction_rows,
    study_from_line,
    study_key,
    study_line,
    ungraded,
    write_lines,
    write_predictions,
)

ODD_IDS = [
    "=1+1",
    "+cmd",
    "a,b",
    'a"b',
    "a\nb",
    "a\rb",
    "../../etc/passwd",
    "/abs",
    "a;b",
    " lead",
    "é\u2028",
    "\0",
    "'",
    "",
]


def test_rows_come_in_rsna_order_with_six_decimals():
    rows = list(prediction_rows("7", PRIOR_ROWS))
    assert len(rows) == 25
    names = [row.split(",")[0] for row in rows]
    assert names == [
        f"7_{condition}_{level}" for condition in sorted(CONDITIONS) for level in LEVELS
    ]
    assert names[0] == "7_left_neural_foraminal_narrowing_l1_l2"
    for row, (condition, level) in zip(rows, ROW_ORDER, strict=True):
        numbers = row.split(",")[1:]
        assert all(len(number.split(".")[1]) == 6 for number in numbers)
        assert sum(Fraction(number) for number in numbers) == 1
        assert [float(number) for number in numbers] == pytest.approx(
            prior(condition, level), abs=1e-6
        )


def test_odd_study_ids_come_back_from_csv_and_jsonl(tmp_path):
    path = tmp_path / "predictions.csv"
    write_predictions(path, ((name, PRIOR_ROWS) for name in ODD_IDS))
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["row_id", "normal_mild", "moderate", "severe"]
    assert [
        row[0].removesuffix("_left_neural_foraminal_narrowing_l1_l2")
        for row in rows[1::25]
    ] == ODD_IDS
    for name in ODD_IDS:
        line = study_line(ungraded(name, Status.FAILED, Reason.TIMEOUT))
        assert line.isascii()
        assert len(line.splitlines()) == 1
        assert json.loads(line)["study_id"] == name


def test_a_key_with_lone_surrogates_can_be_stored():
    assert study_key("a\udc80b").encode() == rb"a\udc80b"
    assert study_key("1.2.é") == "1.2.é"


def test_a_study_line_has_the_documented_fields():
    level = LevelResult(
        center_mm=(1.00049, -0.0, 3.0),
        axes=((0, 0, -1), (0, 1, 0), (1, 0, 0)),
        size_mm=(30, 60, 70),
        confidence=0.98765,
        source="detector",
    )
    lost = LevelResult(
        center_mm=None, axes=None, size_mm=None, confidence=0.0, source="prior"
    )
    result = StudyResult(
        study_id="1",
        status=Status.GRADED,
        rows=PRIOR_ROWS,
        levels={LEVELS[0]: level, LEVELS[1]: lost},
        timings_ms={"read": 1.26},
    )
    record = json.loads(study_line(result))
    assert list(record) == [
        "study_id", "status", "reason", "warnings", "series", "levels", "alternative_levels", "not_assessed",
        "timings_ms",
    ]  # fmt: skip
    assert record["levels"]["l1_l2"]["center_mm"] == [1.0, 0.0, 3.0]
    assert record["levels"]["l1_l2"]["box_mm"] == {
        "center": [1.0, 0.0, 3.0], "axes": [[0, 0, -1], [0, 1, 0], [1, 0, 0]], "size": [30, 60, 70],
    }  # fmt: skip
    assert record["levels"]["l2_l3"] == {
        "center_mm": None,
        "box_mm": None,
        "confidence": 0.0,
        "source": "prior",
    }
    assert record["timings_ms"] == {"read": 1.3}
    assert "-0.0" not in study_line(result)


def test_a_study_without_a_grade_holds_the_prior_everywhere():
    result = ungraded("1", Status.PRIOR, Reason.NO_SAGITTAL)
    assert result.rows == PRIOR_ROWS
    assert len(result.not_assessed) == 25
    assert result.probabilities(CONDITIONS[4], LEVELS[3])["severe"] == pytest.approx(
        0.343
    )


def test_a_result_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="reason"):
        StudyResult(
            study_id="1", status=Status.GRADED, reason=Reason.TIMEOUT, rows=PRIOR_ROWS
        )
    with pytest.raises(ValueError, match="rows"):
        StudyResult(study_id="1", status=Status.GRADED, rows=((1, 2, 3),) * 25)


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        write_lines(tmp_path / "missing" / "file", [])


def test_csv_is_readable_by_a_plain_reader():
    (line,) = list(prediction_rows('x"\n', PRIOR_ROWS))[:1]
    assert (
        next(csv.reader(io.StringIO(line, newline="")))[0]
        == 'x"\n_left_neural_foraminal_narrowing_l1_l2'
    )


def test_a_study_comes_back_from_its_line_as_it_was():
    axes = ((0.0, 0.1, -0.994987437), (0.0, 0.994987437, 0.1), (1.0, 0.0, 0.0))
    found = LevelResult(center_mm=(1.5, -2.25, 30.125), axes=axes, size_mm=(40.0, 96.0, 96.0), confidence=0.75,
                        source="detector")  # fmt: skip
    unknown = LevelResult(
        center_mm=None, axes=None, size_mm=None, confidence=0.0, source="prior"
    )
    result = StudyResult(
        study_id="1.2.3",
        status=Status.GRADED,
        warnings=(Warn.GAP, Warn.SERIES_DISAGREE),
        series=(
            SeriesResult(
                path="a/b", role="sagittal_t1", evidence="TE 10 ms", stacks=1, slices=15
            ),
            SeriesResult(
                path="c",
                role=None,
                evidence="",
                stacks=0,
                slices=0,
                reason=Reason.CORRUPT_PIXELS,
            ),
        ),
        levels={level: unknown if level is LEVELS[0] else found for level in LEVELS},
        alternative=AlternativeResult(
            shift=-1,
            probability=0.25,
            centers_mm=dict.fromkeys(LEVELS, (0.0, 1.0, -2.5)),
        ),
        rows=PRIOR_ROWS,
        not_assessed=("spinal_canal_stenosis_l1_l2",),
        timings_ms={"read": 12.5},
    )
    assert study_from_line(study_line(result), result.rows) == result
    failed = ungraded(
        "x", Status.FAILED, Reason.INTERNAL_ERROR, detail="ValueError at walk:7"
    )
    assert (
        study_from_line(study_line(failed), [list(row) for row in failed.rows])
        == failed
    )


def test_what_json_cannot_hold_is_refused_and_not_written():
    level = LevelResult(
        center_mm=None, axes=None, size_mm=None, confidence=math.nan, source="prior"
    )
    result = StudyResult(
        study_id="1", status=Status.GRADED, rows=PRIOR_ROWS, levels={LEVELS[0]: level}
    )
    with pytest.raises(ValueError, match="JSON compliant"):
        study_line(result)


def test_a_study_that_is_not_graded_keeps_all_that_is_known_of_it():
    series = (
        SeriesResult(
            path="a",
            role=None,
            evidence="why",
            stacks=0,
            slices=3,
            reason=Reason.NOT_A_VOLUME,
        ),
    )
    level = LevelResult(
        center_mm=None, axes=None, size_mm=None, confidence=0.5, source="prior"
    )
    other = AlternativeResult(shift=1, probability=0.5, centers_mm={})
    given = {
        "warnings": (Warn.GAP,), "series": series, "levels": {LEVELS[0]: level}, "alternative": other,
        "timings_ms": {"read": 2.0}, "detail": "E at x:1",
    }  # fmt: skip
    result = ungraded("7", Status.PRIOR, Reason.NOT_LOCALIZED, **given)
    assert {name: getattr(result, name) for name in given} == given
    assert (result.study_id, result.status, result.reason) == (
        "7",
        Status.PRIOR,
        Reason.NOT_LOCALIZED,
    )
    names = [
        f"{condition}_{level}" for condition in sorted(CONDITIONS) for level in LEVELS
    ]
    assert list(result.not_assessed) == names
    bare = ungraded("7", Status.FAILED, Reason.TIMEOUT)
    assert (bare.warnings, bare.series, bare.levels, bare.alternative, bare.timings_ms, bare.detail) == (
        (), (), {}, None, {}, None,
    )  # fmt: skip


def test_probabilities_are_those_of_the_rows():
    rows = tuple((count, 10, 999_990 - count) for count in range(25))
    result = StudyResult(study_id="1", status=Status.GRADED, rows=rows)
    assert result.probabilities(CONDITIONS[0], LEVELS[1]) == {
        "normal_mild": rows[ROW_ORDER.index((CONDITIONS[0], LEVELS[1]))][0] / 1e6, "moderate": 1e-5,
        "severe": rows[ROW_ORDER.index((CONDITIONS[0], LEVELS[1]))][2] / 1e6,
    }  # fmt: skip
    last = result.probabilities("spinal_canal_stenosis", "l5_s1")
    assert last == {"normal_mild": 24e-6, "moderate": 1e-5, "severe": 0.999966}
