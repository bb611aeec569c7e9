"""Every way in which the two files of ``evaluate`` can be unfit is one line that says so."""

import re

import numpy as np
import pytest

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.errors import UsageError
from spine_engine.phantom.rsna import GRADE_NAMES
from spine_engine.results import PRIOR_ROWS, write_predictions
from spine_training.evaluation.tables import (
    GRADE_OF_WORD,
    TRUTH_COLUMNS,
    matched,
    read_predictions,
    read_truth,
)
from spine_training.metric import MISSING


@pytest.fixture
def predictions(tmp_path):
    """A file as ``run`` writes it: the prior for the studies 10, 7 and 1.2.3."""
    path = tmp_path / "predictions.csv"
    write_predictions(path, [(study, PRIOR_ROWS) for study in ("10", "7", "1.2.3")])
    return path


@pytest.fixture
def truth(tmp_path):
    path = tmp_path / "train.csv"
    grades = ["Normal/Mild", "Moderate", "Severe", "", "Normal/Mild"] * 5
    path.write_text(
        "\n".join(
            ",".join(line) for line in (TRUTH_COLUMNS, ("7", *grades), ("10", *grades))
        )
        + "\n"
    )
    return path


def edited(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def first_row(path):
    return path.read_text().splitlines()[1]


def test_both_files_are_read_in_the_engine_s_order(predictions, truth):
    labels = read_truth(truth)
    assert labels.studies == ("10", "7")
    assert (
        labels.grades[0, 1].tolist() == [1] * 5
    )  # the second level of each condition is Moderate
    assert (labels.grades[:, 3] == MISSING).all()
    table = matched(read_predictions(predictions), labels, predictions)
    assert table.shape == (2, len(LEVELS), len(CONDITIONS), 3)
    assert table[1, 3, 4] == pytest.approx(
        [0.498, 0.159, 0.343]
    )  # spinal canal at L4/L5
    assert table[0, 0, 1] == pytest.approx(
        [0.846, 0.102, 0.052]
    )  # left subarticular at L1/L2


def test_the_words_for_grades_are_those_that_phantoms_are_written_with():
    assert [GRADE_OF_WORD[word] for word in GRADE_NAMES] == [0, 1, 2]


def test_rounding_is_normalised_away(predictions, truth):
    edited(
        predictions,
        first_row(predictions),
        "10_left_neural_foraminal_narrowing_l1_l2,0.3331,0.3331,0.3331",
    )
    table = matched(read_predictions(predictions), read_truth(truth), predictions)
    assert table[0, 0, 0] == pytest.approx([1 / 3] * 3)


def test_a_study_id_may_hold_underscores_and_a_file_a_byte_order_mark(tmp_path):
    path = tmp_path / "predictions.csv"
    write_predictions(path, [("a_left_b", PRIOR_ROWS)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(read_predictions(path)) == ["a_left_b"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "{id},nan,0.5,0.5",
            "line 2: normal_mild is nan; a probability is a finite number",
        ),
        ("{id},0.5,inf,0.5", "moderate is inf"),
        ("{id},1.2,-0.1,-0.1", "moderate is -0.1"),
        ("{id},0.5,0.5,high", "severe is 'high', which is no number"),
        ("{id},0.5,0.5,", "severe is '', which is no number"),
        ("{id},0.5,0.3,0.1", "line 2: the row sums to 0.9; want 1 within 0.001"),
        ("{id},0.5,0.5", "got 3 cells, want 4"),
        (
            "10_left_neural_foraminal_narrowing_l6_l7,0.5,0.3,0.2",
            "unknown row id '10_left_neural",
        ),
        (
            "10_spinal_canal_stenosis_l5_s1,0.5,0.3,0.2",
            "10_spinal_canal_stenosis_l5_s1 is there twice",
        ),
    ],
)
def test_a_bad_row_is_named(predictions, row, message):
    line = first_row(predictions)
    edited(predictions, line, row.format(id=line.split(",")[0]))
    with pytest.raises(UsageError, match=re.escape(message)):
        read_predictions(predictions)


def test_missing_rows_are_counted_and_the_first_is_named(predictions, truth):
    lines = predictions.read_text().splitlines()
    predictions.write_text("\n".join(lines[:2] + lines[4:]) + "\n")
    with pytest.raises(
        UsageError,
        match=r"2 rows are missing \(the first: 10_left_neural_foraminal_narrowing_l2_l3\)",
    ):
        matched(read_predictions(predictions), read_truth(truth), predictions)


def test_missing_rows_of_a_study_outside_the_truth_do_not_matter(predictions, truth):
    lines = [
        line
        for line in predictions.read_text().splitlines()
        if "1.2.3_spinal" not in line
    ]
    predictions.write_text("\n".join(lines) + "\n")
    assert np.isfinite(
        matched(read_predictions(predictions), read_truth(truth), predictions)
    ).all()


def test_studies_of_the_truth_without_predictions_are_counted(predictions, truth):
    truth.write_text(
        truth.read_text()
        + truth.read_text().splitlines()[1].replace("7,", "8,", 1)
        + "\n"
    )
    with pytest.raises(
        UsageError, match=r"lacks 1 of the 3 studies of the truth \(the first: 8\)"
    ):
        matched(read_predictions(predictions), read_truth(truth), predictions)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("row_id,normal_mild", "id,normal_mild", "no column 'row_id'"),
        ("severe\n", "severe,extra\n", "row_id, normal_mild, moderate, severe, extra"),
        ("moderate,severe", "severe,severe", "no column 'moderate'"),
    ],
)
def test_other_columns_are_refused(predictions, old, new, message):
    edited(predictions, old, new)
    with pytest.raises(UsageError, match=message):
        read_predictions(predictions)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "Moderate",
            "mild",
            "got the grade 'mild' in left_neural_foraminal_narrowing_l2_l3, want Normal/Mild",
        ),
        ("\n10,", "\n7,", "the study 7 is there twice"),
        ("study_id,", "study,", "no column 'study_id'"),
    ],
)
def test_a_bad_truth_is_named(truth, old, new, message):
    edited(truth, old, new)
    with pytest.raises(UsageError, match=re.escape(message)):
        read_truth(truth)


def test_a_truth_without_a_label_of_a_group_is_refused(truth):
    names = [name for name in TRUTH_COLUMNS if "subarticular" in name]
    lines = [line.split(",") for line in truth.read_text().splitlines()]
    blank = [
        [
            "" if name in names else cell
            for name, cell in zip(lines[0], line, strict=True)
        ]
        for line in lines[1:]
    ]
    truth.write_text("\n".join(",".join(line) for line in (lines[0], *blank)) + "\n")
    with pytest.raises(UsageError, match="no label of the subarticular group"):
        read_truth(truth)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"row_id,normal_mild,moderate,severe\n"]
)
def test_what_is_no_table_is_refused(tmp_path, content):
    path = tmp_path / "predictions.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"predictions\.csv"):
        read_predictions(path)
    path.unlink()
    with pytest.raises(UsageError, match="cannot read"):
        read_predictions(path)
