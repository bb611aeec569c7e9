"""CSV and JSON lines hold what they were given, whatever that is; probabilities in millionths sum to one."""

import csv
import dataclasses
import io
import json
import math
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spine_engine.anatomy import LEVELS
from spine_engine.errors import Reason, Warn
from spine_engine.results import (
    AlternativeResult,
    LevelResult,
    SeriesResult,
    Status,
    StudyResult,
    in_millionths,
    prediction_rows,
    study_from_line,
    study_key,
    study_line,
    write_predictions,
)

FEW = settings(max_examples=40, deadline=None)

texts = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from(',"\r\n;=\t\u2028 '),
    max_size=12,
)
probabilities = st.floats(0, 1e6, allow_nan=False)
triples = st.tuples(probabilities, probabilities, probabilities).filter(
    lambda values: sum(values) > 1e-9
)
rows = st.tuples(st.integers(0, 1_000_000), st.integers(0, 1_000_000)).map(
    lambda cuts: (min(cuts), max(cuts) - min(cuts), 1_000_000 - max(cuts))
)
all_rows = st.lists(rows, min_size=25, max_size=25).map(tuple)


@FEW
@given(triples)
@example((1 / 3, 1 / 3, 1 / 3))
@example((0.0, 0.0, 1e-8))
@example((5e-7, 5e-7, 1.0))
def test_millionths_are_the_exact_shares_rounded_by_the_largest_remainder(values):
    row = in_millionths(values)
    exact = [
        Fraction(value) / sum(map(Fraction, values)) * 1_000_000 for value in values
    ]
    assert sum(row) == 1_000_000
    up = [
        count - math.floor(share + Fraction(1, 10**6))
        for count, share in zip(row, exact, strict=True)
    ]
    assert all(
        abs(count - share) < 1 + Fraction(1, 10**6)
        for count, share in zip(row, exact, strict=True)
    )
    raised = [
        share - math.floor(share)
        for share, more in zip(exact, up, strict=True)
        if more == 1
    ]
    left = [
        share - math.floor(share)
        for share, more in zip(exact, up, strict=True)
        if more == 0
    ]
    assert (
        not raised
        or not left
        or min(raised) >= max(left) - Fraction(1, 10**5)
        or max(left) > 1 - Fraction(1, 10**5)
    )


@pytest.mark.parametrize(
    ("values", "row"),
    [
        ((1, 1, 1), (333_334, 333_333, 333_333)),
        ((1, 2, 2), (200_000, 400_000, 400_000)),
        (
            (1, 1, 4),
            (166_667, 166_667, 666_666),
        ),  # remainders .67 .67 .67: the two milder ones are raised
        ((1, 1, 126), (7_813, 7_812, 984_375)),  # remainders of exactly a half
        ((126, 1, 1), (984_375, 7_813, 7_812)),
        ((1, 126, 1), (7_813, 984_375, 7_812)),
        (
            (2, 2, 3),
            (285_714, 285_714, 428_572),
        ),  # remainders .29 .29 .43: the largest is raised
        ((3, 2, 2), (428_572, 285_714, 285_714)),
        ((0, 0, 5), (0, 0, 1_000_000)),
        ((0.25, 0.75, 0), (250_000, 750_000, 0)),
        ((1e-7, 1e-7, 1), (0, 0, 1_000_000)),
        ((6e-7, 0, 1), (1, 0, 999_999)),
    ],
)
def test_millionths_of_these_shares(values, row):
    assert in_millionths(values) == row
    assert in_millionths(iter(values)) == row


@pytest.mark.parametrize(
    "values",
    [
        (0, 0, 0),
        (math.nan, 0, 1),
        (-0.1, 0.6, 0.5),
        (math.inf, 0, 0),
        (1, 0),
        (1, 0, 0, 0),
        (-1e-12, 0, 1),
        (),
    ],
)
def test_what_is_no_probability_is_refused(values):
    with pytest.raises(ValueError, match=r"probabilities|empty"):
        in_millionths(values)


@FEW
@given(st.lists(st.tuples(texts, all_rows), min_size=1, max_size=3))
def test_predictions_come_back_from_any_csv_reader(studies):
    lines = [
        line
        for study_id, given_rows in studies
        for line in prediction_rows(study_id, given_rows)
    ]
    text = "".join(line + "\n" for line in lines)
    read = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert len(read) == 25 * len(studies)
    for index, (study_id, given_rows) in enumerate(studies):
        own = read[25 * index : 25 * (index + 1)]
        assert {
            row[0].rsplit("_l", 1)[0].startswith(f"{study_id}_") for row in own
        } == {True}
        assert [
            [round(float(cell) * 1_000_000) for cell in row[1:]] for row in own
        ] == [list(r) for r in given_rows]
        assert {len(cell) for row in own for cell in row[1:]} == {8}


@pytest.mark.parametrize(
    ("row", "cells"),
    [
        ((1_000_000, 0, 0), "1.000000,0.000000,0.000000"),
        ((999_999, 1, 0), "0.999999,0.000001,0.000000"),
        ((1, 10, 999_989), "0.000001,0.000010,0.999989"),
        ((250_000, 50_000, 700_000), "0.250000,0.050000,0.700000"),
    ],
)
def test_numbers_have_six_decimals(row, cells):
    first, *_ = prediction_rows("7", [row] * 25)
    assert first == f"7_left_neural_foraminal_narrowing_l1_l2,{cells}"


@pytest.mark.parametrize(
    ("study_id", "field"),
    [
        ("a,b", '"a,b_left_neural_foraminal_narrowing_l1_l2"'),
        ('a"b', '"a""b_left_neural_foraminal_narrowing_l1_l2"'),
        ("a\nb", '"a\nb_left_neural_foraminal_narrowing_l1_l2"'),
        ("a\rb", '"a\rb_left_neural_foraminal_narrowing_l1_l2"'),
        ("a b;'=", "a b;'=_left_neural_foraminal_narrowing_l1_l2"),
    ],
)
def test_a_study_id_is_quoted_where_the_standard_wants_it_and_nowhere_else(
    study_id, field
):
    first, *_ = prediction_rows(study_id, [(1_000_000, 0, 0)] * 25)
    assert first == f"{field},1.000000,0.000000,0.000000"


def test_predictions_have_rsnas_25_rows_in_its_order(tmp_path):
    write_predictions(
        tmp_path / "p.csv",
        [("7", [(count, 1_000_000 - count, 0) for count in range(25)])],
    )
    lines = (tmp_path / "p.csv").read_bytes().decode().split("\n")
    assert lines[0] == "row_id,normal_mild,moderate,severe"
    conditions = (
        "left_neural_foraminal_narrowing", "left_subarticular_stenosis", "right_neural_foraminal_narrowing",
        "right_subarticular_stenosis", "spinal_canal_stenosis",
    )  # fmt: skip
    names = [
        f"7_{c}_{level}"
        for c in conditions
        for level in ("l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1")
    ]
    assert lines[1:] == [
        f"{n},0.{k:06},{(10**6 - k) / 10**6:.6f},0.000000" for k, n in enumerate(names)
    ] + [""]


def test_rows_that_are_not_25_are_refused():
    with pytest.raises(ValueError, match="argument"):
        list(prediction_rows("7", [(1_000_000, 0, 0)] * 24))


places = st.floats(-500, 500).map(lambda value: round(value, 3) + 0.0)
unit = st.floats(-1, 1).map(lambda value: round(value, 9) + 0.0)
point = st.tuples(places, places, places)
found_levels = st.builds(
    LevelResult,
    center_mm=point,
    axes=st.tuples(*[st.tuples(unit, unit, unit)] * 3),
    size_mm=point,
    confidence=st.floats(0, 1).map(lambda value: round(value, 4)),
    source=st.sampled_from(["detector", "interpolated", "prior"]),
)
lost = LevelResult(
    center_mm=None, axes=None, size_mm=None, confidence=0.0, source="prior"
)
series = st.builds(
    SeriesResult,
    path=texts,
    role=st.sampled_from([None, "sagittal_t1", "axial_t2"]),
    evidence=texts,
    stacks=st.integers(0, 9),
    slices=st.integers(0, 999),
    reason=st.none() | st.sampled_from(Reason),
)
alternatives = st.builds(
    AlternativeResult,
    shift=st.sampled_from([-2, -1, 1, 2]),
    probability=st.floats(0, 1).map(lambda value: round(value, 4)),
    centers_mm=st.dictionaries(st.sampled_from(LEVELS), point),
)


@st.composite
def results(draw):
    status = draw(st.sampled_from(Status))
    return StudyResult(
        study_id=draw(texts),
        status=status,
        reason=None if status is Status.GRADED else draw(st.sampled_from(Reason)),
        warnings=tuple(draw(st.lists(st.sampled_from(Warn), unique=True, max_size=4))),
        series=tuple(draw(st.lists(series, max_size=2))),
        levels=draw(
            st.dictionaries(st.sampled_from(LEVELS), found_levels | st.just(lost))
        ),
        alternative=draw(st.none() | alternatives),
        rows=draw(all_rows),
        not_assessed=tuple(draw(st.lists(texts, max_size=2))),
        timings_ms=draw(
            st.dictionaries(
                st.sampled_from(["read", "grade"]),
                st.floats(0, 1e5).map(lambda v: round(v, 1)),
            )
        ),
        detail=draw(st.none() | texts),
    )


@FEW
@given(results())
def test_a_study_comes_back_from_its_line(result):
    line = study_line(result)
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line)["study_id"] == result.study_id
    assert study_from_line(line, [list(row) for row in result.rows]) == result


@FEW
@given(st.text(st.characters(), max_size=8))
def test_any_text_is_a_key_that_utf_8_can_hold_and_plain_text_stays(text):
    key = study_key(text)
    assert key.encode("utf-8").decode("utf-8") == key
    assert study_key(key) == key
    assert any("\ud800" <= mark <= "\udfff" for mark in text) != (key == text)


GRADED = StudyResult(study_id="1", status=Status.GRADED, rows=((1_000_000, 0, 0),) * 25)


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": GRADED.rows[:24]},
        {"rows": (*GRADED.rows, (1_000_000, 0, 0))},
        {"rows": (*GRADED.rows[:24], (999_999, 0, 0))},
        {"rows": (*GRADED.rows[:24], (1_000_001, 0, -1))},
        {"reason": Reason.TIMEOUT},
        {"status": Status.PRIOR},
        {"status": Status.FAILED},
    ],
)
def test_a_result_that_contradicts_itself_is_refused(changed):
    with pytest.raises(ValueError, match=r"rows that sum to 1|has no reason"):
        dataclasses.replace(GRADED, **changed)


def test_places_have_three_decimals_axes_nine_confidence_four_and_times_one():
    level = LevelResult(
        center_mm=(1.23456, -0.0001, 2.0005001),
        axes=((0.1234567894, 0.1234567896, -1e-12), (0, 1, 0), (1, 0, 0)),
        size_mm=(30.00049, 60.0006, 70),
        confidence=0.12345678,
        source="detector",
    )
    other = AlternativeResult(
        shift=1,
        probability=0.98765432,
        centers_mm={LEVELS[4]: (1.00049, -0.0004, 3.0006)},
    )
    result = dataclasses.replace(
        GRADED, levels={LEVELS[1]: level}, alternative=other, timings_ms={"read": 1.26}
    )
    record = json.loads(study_line(result))
    assert record["levels"] == {
        "l2_l3": {
            "center_mm": [1.235, 0.0, 2.001],
            "box_mm": {
                "center": [1.235, 0.0, 2.001],
                "axes": [[0.123456789, 0.12345679, 0.0], [0, 1, 0], [1, 0, 0]],
                "size": [30.0, 60.001, 70.0],
            },
            "confidence": 0.1235,
            "source": "detector",
        }
    }
    assert record["alternative_levels"] == {
        "shift": 1,
        "probability": 0.9877,
        "levels": {"l5_s1": [1.0, 0.0, 3.001]},
    }
    assert record["timings_ms"] == {"read": 1.3}
    assert "-0.0" not in study_line(result)


@pytest.mark.parametrize("missing", ["center_mm", "axes", "size_mm"])
def test_a_level_without_a_whole_box_has_none(missing):
    level = LevelResult(
        center_mm=(1, 2, 3),
        axes=((1, 0, 0),) * 3,
        size_mm=(4, 5, 6),
        confidence=1,
        source="prior",
    )
    partial = dataclasses.replace(level, **{missing: None})
    record = json.loads(
        study_line(dataclasses.replace(GRADED, levels={LEVELS[0]: partial}))
    )
    assert record["levels"]["l1_l2"] == {
        "center_mm": None,
        "box_mm": None,
        "confidence": 1,
        "source": "prior",
    }
