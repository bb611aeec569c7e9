"""Every word that a page says, written down once more, and the numbers beside them at their bounds."""

import pytest
from made_up import alternative, failed, graded, graded_as

from spine_engine.anatomy import CONDITIONS, LEVELS, Condition, Severity
from spine_engine.errors import Reason, Warn
from spine_engine.report import words
from spine_engine.report.findings import (
    count,
    findings,
    grades_of,
    in_short,
    means,
    summary,
    triage_key,
    worst_grade,
)
from spine_engine.results import ALL_ROW_NAMES, AlternativeResult, Status

MILD = (900_000, 80_000, 20_000)


def test_conditions_are_called_by_their_side():
    assert {
        str(condition): name for condition, name in words.CONDITION_NAMES.items()
    } == {
        "left_neural_foraminal_narrowing": "Left neural foraminal narrowing",
        "left_subarticular_stenosis": "Left subarticular stenosis",
        "right_neural_foraminal_narrowing": "Right neural foraminal narrowing",
        "right_subarticular_stenosis": "Right subarticular stenosis",
        "spinal_canal_stenosis": "Spinal canal stenosis",
    }
    assert {
        str(condition): name for condition, name in words.SHORT_CONDITION_NAMES.items()
    } == {
        "left_neural_foraminal_narrowing": "left foramen",
        "left_subarticular_stenosis": "left recess",
        "right_neural_foraminal_narrowing": "right foramen",
        "right_subarticular_stenosis": "right recess",
        "spinal_canal_stenosis": "canal",
    }
    assert [words.SHORT_CONDITION_NAMES[condition] for condition in words.SHOWN_CONDITIONS] == [
        "canal", "right foramen", "left foramen", "right recess", "left recess",
    ]  # fmt: skip


def test_the_other_words_of_the_vocabulary():
    assert [words.LEVEL_NAMES[level] for level in LEVELS] == [
        "L1/L2",
        "L2/L3",
        "L3/L4",
        "L4/L5",
        "L5/S1",
    ]
    assert {str(key): name for key, name in words.SEVERITY_NAMES.items()} == {
        "normal_mild": "Normal/mild", "moderate": "Moderate", "severe": "Severe",
    }  # fmt: skip
    assert {str(key): name for key, name in words.STATUS_NAMES.items()} == {
        "graded": "Graded", "prior": "Not gradable", "failed": "Failed",
    }  # fmt: skip
    assert dict(words.SOURCE_NAMES) == {
        "detector": "found in the images",
        "interpolated": "placed between its neighbours",
        "prior": "not found; a guess from the field of view",
        "given": "midway between the vertebral centres that were given",
    }
    assert dict(words.ROLE_NAMES) == {
        "sagittal_t1": "Sagittal T1", "sagittal_t2": "Sagittal T2/STIR", "axial_t2": "Axial T2", None: "No role",
    }  # fmt: skip
    assert dict(words.EDGE_NAMES) == {
        "L": "left", "R": "right", "A": "anterior", "P": "posterior", "H": "head", "F": "feet",
    }  # fmt: skip
    assert list(words.STAGE_NAMES.items()) == [
        ("read", "Reading the images"), ("detect", "Finding the discs"), ("voxelize", "Cutting the grids"),
        ("grade", "Grading"),
    ]  # fmt: skip
    assert words.DEMONSTRATION_BUNDLE == "lumbar-small"
    assert words.NOT_GRADED == "Not graded (prior)"


REASON_TITLES = {
    "no_sagittal": "No sagittal series", "no_orientation": "No orientation", "no_position": "No position",
    "no_pixel_spacing": "No pixel spacing", "no_geometry": "No geometry", "bad_orientation": "Impossible orientation",
    "not_a_volume": "Not a volume", "unsupported_transfer_syntax": "Compression not read",
    "corrupt_pixels": "Damaged pixels", "corrupt_file": "Damaged file", "not_an_image": "Not an image",
    "not_a_regular_file": "Not a regular file", "unreadable": "Not readable", "too_large": "Too large",
    "uid_collision": "One study id, several patients", "gap_at_level": "Slices missing at a level",
    "not_localized": "Discs not found", "not_lumbar": "Not a lumbar spine", "poor_quality": "Not legible",
    "timeout": "Took too long", "worker_died": "Its process died",
    "out_of_memory": "Out of memory", "internal_error": "Error of the engine",
}  # fmt: skip
WARNING_TITLES = {
    "gap": "Slices missing", "uneven": "Uneven slice distances", "dup_position": "Images at one position",
    "dup_file": "Copies left out", "slice_dropped": "Slices dropped", "mixed_matrix": "Mixed matrix",
    "series_refused": "A series was refused", "frame_of_reference": "Different frames of reference",
    "role_overridden": "Stated role disagrees", "no_sagittal_t1": "No sagittal T1", "no_sagittal_t2": "No sagittal T2",
    "no_axial_t2": "No axial T2", "level_interpolated": "Level interpolated", "level_not_covered": "Level not covered",
    "low_confidence": "Low confidence", "no_slice_thickness": "No slice thickness",
    "series_disagree": "Series disagree on levels",
    "transitional_anatomy": "Transitional anatomy?", "whole_study_grader": "Graded as a whole",
    "file_unreadable": "Files could not be read",
}  # fmt: skip


def test_every_reason_and_warning_has_its_title():
    assert {
        str(code): said.title for code, said in words.REASONS.items()
    } == REASON_TITLES
    assert {
        str(code): said.title for code, said in words.WARNINGS.items()
    } == WARNING_TITLES
    assert (len(Reason), len(Warn)) == (23, 20)


def test_a_code_of_another_version_keeps_its_name():
    assert words.code_words("timeout").title == "Took too long"
    unknown = words.code_words("from_the_future")
    assert unknown.title == "from_the_future"
    assert "does not know the code" in unknown.meaning


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 studies"), (1, "1 study"), (2, "2 studies"), (1000, "1,000 studies")],
)
def test_numbers_have_their_noun(number, said):
    assert words.many(number, "study", "studies") == said
    assert words.many(number, "stack") == said.replace("studies", "stacks").replace(
        "study", "stack"
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0 ms"), (0.9994, "999 ms"), (1.0, "1 s"), (1.04, "1 s"), (1.05, "1.1 s"), (119.94, "119.9 s"),
        (120.0, "2 min"), (149.0, "2 min"), (151.0, "3 min"), (119 * 60.0, "119 min"), (120 * 60.0, "2 h 00 min"),
        (125 * 60.0 + 29, "2 h 05 min"),
    ],
)  # fmt: skip
def test_durations_at_their_bounds(seconds, said):
    assert words.duration(seconds) == said


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, "0"),
        (1e-9, "<1"),
        (0.0149, "1"),
        (0.015, "2"),
        (0.5, "50"),
        (0.99499, "99"),
        (0.9999, ">99"),
        (1.0, "100"),
    ],
)
def test_shares_at_their_bounds(share, said):
    assert words.points(share) == said
    assert words.percent(share) == f"{said}\u202f%"


@pytest.mark.parametrize(
    ("shift", "said"),
    [
        (1, "one level higher: what is called L5/S1 here would be L4/L5. The grades"),
        (-1, "one level lower: what is called L1/L2 here would be L2/L3. The grades"),
        (4, "4 levels higher: what is called L5/S1 here would be L1/L2. The grades"),
        (-4, "4 levels lower: what is called L1/L2 here would be L5/S1. The grades"),
        (5, "5 levels higher. The grades"),
        (-5, "5 levels lower. The grades"),
    ],
)
def test_another_numbering_names_the_disc_it_would_be(shift, said):
    made = AlternativeResult(
        shift=shift, probability=0.41, centers_mm=alternative().centers_mm
    )
    text = words.other_numbering(made).replace("\u202f", " ")
    assert said in text
    assert "with a probability of 41 % the name of each should lie" in text


# -- findings ----------------------------------------------------------------------------------------------------------


def grade(name, row, **fields):
    result = graded_as(**{name: row}, **fields)
    place = ALL_ROW_NAMES.index(name)
    return list(grades_of(result).values())[place]


def test_a_grade_says_its_severity_and_place():
    made = grade("right_subarticular_stenosis_l3_l4", (100_000, 300_000, 600_000))
    assert made.name == "severe right subarticular stenosis at L3/L4"
    assert made.place == "right recess L3/L4"
    assert made.shares == (0.1, 0.3, 0.6)
    assert made.share == 0.6
    assert made.graded
    assert triage_key(made) == (600_000, 300_000)


@pytest.mark.parametrize(
    ("row", "likeliest"),
    [
        ((400_000, 400_000, 200_000), Severity.NORMAL_MILD),
        ((200_000, 400_000, 400_000), Severity.MODERATE),
        ((400_000, 200_000, 400_000), Severity.NORMAL_MILD),
        ((300_000, 300_000, 400_000), Severity.SEVERE),
    ],
)
def test_of_equal_severities_the_milder_is_the_likeliest(row, likeliest):
    assert grade("spinal_canal_stenosis_l1_l2", row).likeliest is likeliest


def test_the_worst_grade_has_the_highest_chance_of_severe_then_of_moderate():
    result = graded_as(
        spinal_canal_stenosis_l1_l2=(100_000, 700_000, 200_000),
        spinal_canal_stenosis_l4_l5=(500_000, 200_000, 300_000),
        left_subarticular_stenosis_l5_s1=(450_000, 250_000, 300_000),
    )
    assert worst_grade(grades_of(result)).place == "left recess L5/S1"


def test_findings_are_severe_before_moderate_whatever_their_share():
    result = graded_as(
        spinal_canal_stenosis_l1_l2=(50_000, 900_000, 50_000),
        spinal_canal_stenosis_l4_l5=(300_000, 300_000, 400_000),
        left_subarticular_stenosis_l5_s1=(450_000, 440_000, 110_000),
    )
    assert [one.place for one in findings(grades_of(result))] == [
        "canal L4/L5",
        "canal L1/L2",
    ]


def test_counts_are_told_severe_first_and_a_normal_study_in_two_words():
    counts = count(grades_of(graded_as()))
    assert counts == {
        Severity.NORMAL_MILD: 25,
        Severity.MODERATE: 0,
        Severity.SEVERE: 0,
        None: 0,
    }
    assert in_short(counts) == "all normal/mild"
    assert in_short({**counts, None: 3}) == "all normal/mild, 3 not graded"
    mixed = {
        Severity.NORMAL_MILD: 10,
        Severity.MODERATE: 4,
        Severity.SEVERE: 2,
        None: 9,
    }
    assert in_short(mixed) == "2 severe, 4 moderate, 9 not graded"
    assert (
        in_short(
            {
                Severity.NORMAL_MILD: 0,
                Severity.MODERATE: 0,
                Severity.SEVERE: 0,
                None: 25,
            }
        )
        == "25 not graded"
    )


@pytest.mark.parametrize(("severe", "moderate", "said"), [
    (4, 0, "; and"), (5, 0, "; and 1 more severe."), (5, 2, "; and 1 more severe and 2 more moderate."),
    (3, 3, "; and 2 more moderate."), (0, 5, "; and 1 more moderate."),
])  # fmt: skip
def test_a_sentence_names_four_findings_and_counts_the_rest(severe, moderate, said):
    bad, middling = (0, 100_000, 900_000), (100_000, 800_000, 100_000)
    rows = (bad,) * severe + (middling,) * moderate + (MILD,) * (25 - severe - moderate)
    result = graded(rows=rows)
    text = summary(result, grades_of(result))
    named = text.split("worst first: ")[1]
    if severe + moderate <= 4:
        assert said not in text
    else:
        assert said in text
    assert named.split("; and")[0].split(". The other")[0].count("%") == min(
        4, severe + moderate
    )
    assert f"The other {25 - severe - moderate} graded places: normal or mild." in text


def test_a_study_that_is_all_findings_has_no_others():
    result = graded(rows=((0, 0, 1_000_000),) * 25)
    assert "The other" not in summary(result, grades_of(result))


def test_a_study_without_grades_says_its_reason_then_what_that_means():
    result = failed(reason=Reason.TIMEOUT)
    assert summary(result, grades_of(result)) == (
        "Took too long. The study could not be processed. Its rows hold the prior, which says nothing about it."
    )
    result = failed(reason=Reason.NOT_LOCALIZED, status=Status.PRIOR)
    assert summary(result, grades_of(result)).startswith(
        "Discs not found. The study was read but could not be graded."
    )


def test_means_count_graded_places_alone_level_by_level():
    lost = ["spinal_canal_stenosis_l1_l2"]
    one = graded(rows=((500_000, 300_000, 200_000),) * 25)
    other = graded(rows=((100_000, 100_000, 800_000),) * 25, not_assessed=tuple(lost))
    places, mean, by_level = means(
        [grades_of(one), grades_of(other)], Condition.SPINAL_CANAL_STENOSIS
    )
    assert places == 9
    assert [by_level[level] for level in LEVELS] == [1, 2, 2, 2, 2]
    assert mean == pytest.approx(
        [(5 * 0.5 + 4 * 0.1) / 9, (5 * 0.3 + 4 * 0.1) / 9, (5 * 0.2 + 4 * 0.8) / 9]
    )
    assert means([], Condition.SPINAL_CANAL_STENOSIS) == (
        0,
        (0.0, 0.0, 0.0),
        dict.fromkeys(LEVELS, 0),
    )
    assert len(CONDITIONS) == 5
