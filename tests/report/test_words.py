import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import graded, graded_as

from spine_engine.anatomy import CONDITIONS, SEVERITIES, Level
from spine_engine.errors import Reason, Warn
from spine_engine.report import words
from spine_engine.report.findings import findings, grades_of, summary, worst_grade
from spine_engine.report.page import with_code
from spine_engine.results import ALL_ROW_NAMES, Status

DOCS = Path(__file__).parents[2] / "docs" / "reasons.md"


# -- words -------------------------------------------------------------------------------------------------------------


def documented(title):
    section = (
        DOCS.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    )
    table = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
    cells = {code: tuple(text.split(" | ")) for code, text in table.items()}
    for code, (meaning, advice) in cells.items():
        same_as = re.fullmatch(r"As for `(\w+)`\.", advice)
        if same_as:
            cells[code] = (meaning, cells[same_as[1]][1])
    return cells


@pytest.mark.parametrize(("title", "codes", "said"), [
    ("Reasons", Reason, words.REASONS), ("Warnings", Warn, words.WARNINGS),
])  # fmt: skip
def test_the_words_are_those_of_the_documentation(title, codes, said):
    assert set(said) == set(codes)
    assert {
        str(code): (text.meaning, text.advice) for code, text in said.items()
    } == documented(title)
    titles = [text.title for text in said.values()]
    assert len(set(titles)) == len(titles)
    assert all(0 < len(name) <= 32 for name in titles)


def test_every_name_of_the_vocabulary_has_words():
    assert (
        set(words.CONDITION_NAMES)
        == set(words.SHORT_CONDITION_NAMES)
        == set(words.SHOWN_CONDITIONS)
    )
    assert set(words.CONDITION_NAMES) == set(CONDITIONS)
    assert tuple(words.SEVERITY_NAMES) == SEVERITIES
    assert set(words.STATUS_NAMES) == set(words.STATUS_MEANINGS) == set(Status)
    assert words.LEVEL_NAMES[Level.L5_S1] == "L5/S1"


def test_a_share_is_never_rounded_to_certainty():
    said = {
        0.0: "0",
        1e-6: "<1",
        0.005: "<1",
        0.0051: "1",
        0.126: "13",
        0.9949: "99",
        0.995: ">99",
        0.999999: ">99",
    }
    assert {share: words.points(share) for share in said} == said
    assert words.percent(1.0) == "100\u202f%"


def test_durations_are_told_as_people_say_them():
    said = [
        words.duration(seconds) for seconds in (0.0314, 5, 24.06, 600, 7260.4, 90_000)
    ]
    assert said == ["31 ms", "5 s", "24.1 s", "10 min", "2 h 01 min", "25 h 00 min"]


def test_backticks_become_code_and_nothing_else_becomes_markup():
    assert with_code("run `a<b` & go") == "run <code>a&lt;b</code> &amp; go"


# -- findings ----------------------------------------------------------------------------------------------------------


def test_the_sentence_names_the_worst_first():
    result = graded_as(
        spinal_canal_stenosis_l4_l5=(100_000, 200_000, 700_000),
        left_subarticular_stenosis_l5_s1=(100_000, 800_000, 100_000),
        right_subarticular_stenosis_l3_l4=(50_000, 50_000, 900_000),
    )
    text = summary(result, grades_of(result)).replace("\u202f", " ")
    assert text == (
        "Likeliest grades, worst first: severe right subarticular stenosis at L3/L4 (90 %); severe spinal canal "
        "stenosis at L4/L5 (70 %); moderate left subarticular stenosis at L5/S1 (80 %). The other 22 graded places: "
        "normal or mild."
    )


def test_equally_bad_findings_come_surest_first():
    result = graded_as(
        spinal_canal_stenosis_l4_l5=(490_000, 500_000, 10_000),
        left_subarticular_stenosis_l5_s1=(275_000, 720_000, 5_000),
    )
    assert [round(grade.share, 2) for grade in findings(grades_of(result))] == [
        0.72,
        0.5,
    ]


def test_a_long_list_of_findings_is_counted():
    result = graded(
        rows=((50_000, 50_000, 900_000),) * 3 + ((50_000, 900_000, 50_000),) * 22
    )
    assert summary(result, grades_of(result)).endswith("; and 21 more moderate.")


def test_a_normal_study_says_how_sure_that_is():
    result = graded_as(spinal_canal_stenosis_l4_l5=(610_000, 300_000, 90_000))
    assert "normal or mild at all 25 places (each with at least 61" in summary(
        result, grades_of(result)
    )


def test_what_was_not_graded_is_no_finding():
    lost = ["spinal_canal_stenosis_l4_l5", "left_subarticular_stenosis_l5_s1"]
    result = replace(
        graded_as(spinal_canal_stenosis_l4_l5=(0, 0, 1_000_000)),
        not_assessed=tuple(lost),
    )
    grades = grades_of(result)
    assert findings(grades) == []
    assert "all 23 graded places" in summary(result, grades)
    assert "2 of 25 places were not graded" in summary(result, grades)
    everything = replace(result, not_assessed=ALL_ROW_NAMES)
    assert worst_grade(grades_of(everything)) is None
    assert "No place was graded" in summary(everything, grades_of(everything))
