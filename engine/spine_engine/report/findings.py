"""Summarises the 25 rows of a study for a reader: likeliest grades, the worst first, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from spine_engine.anatomy import LEVELS, SEVERITIES, Condition, Level, Severity
from spine_engine.report.words import (
    CONDITION_NAMES,
    LEVEL_NAMES,
    REASONS,
    SEVERITY_NAMES,
    SHORT_CONDITION_NAMES,
    STATUS_MEANINGS,
    percent,
)
from spine_engine.results import ROW_ORDER, Row, Status, StudyResult, row_name

MOST_NAMED: Final = 4
"""Number of findings that a sentence names; the table beside it lists all of them."""


@dataclass(frozen=True, kw_only=True)
class Grade:
    """The model's grade of one condition at one level.

    Attributes:
        condition, level: the graded condition and level.
        row: millionths of the three severities, as in ``predictions.csv``.
        graded: false if the row holds the prior instead of a grade.
    """

    condition: Condition
    level: Level
    row: Row
    graded: bool

    @property
    def likeliest(self) -> Severity:
        """The severity of the highest probability; of equals the milder one, as in the rounding of rows."""
        return SEVERITIES[self.row.index(max(self.row))]

    @property
    def shares(self) -> tuple[float, float, float]:
        """The three probabilities."""
        normal, moderate, severe = self.row
        return normal / 1e6, moderate / 1e6, severe / 1e6

    @property
    def share(self) -> float:
        """The probability of the likeliest severity."""
        return max(self.row) / 1e6

    @property
    def name(self) -> str:
        """The severity and the place in words: "severe spinal canal stenosis at L4/L5"."""
        severity = SEVERITY_NAMES[self.likeliest].lower()
        condition = CONDITION_NAMES[self.condition].lower()
        return f"{severity} {condition} at {LEVEL_NAMES[self.level]}"

    @property
    def place(self) -> str:
        """The place in short: "canal L4/L5"."""
        return f"{SHORT_CONDITION_NAMES[self.condition]} {LEVEL_NAMES[self.level]}"


GradeTable = Mapping[tuple[Condition, Level], Grade]


def grades_of(result: StudyResult) -> GradeTable:
    """Return the 25 grades of a study."""
    not_assessed = set(result.not_assessed)
    return {
        (condition, level): Grade(
            condition=condition,
            level=level,
            row=row,
            graded=row_name(condition, level) not in not_assessed,
        )
        for (condition, level), row in zip(ROW_ORDER, result.rows, strict=True)
    }


def worst_grade(grades: GradeTable) -> Grade | None:
    """Return the grade with the highest probability of severe, then of moderate; None if nothing is graded."""
    graded = [grade for grade in grades.values() if grade.graded]
    return max(graded, key=triage_key, default=None)


def triage_key(grade: Grade) -> tuple[int, int]:
    """Return the sort key of a grade: the probability of severe, then of moderate, in millionths."""
    return grade.row[2], grade.row[1]


def count(grades: GradeTable) -> dict[Severity | None, int]:
    """Return the number of places with each likeliest severity; None counts those that are not graded."""
    counts: dict[Severity | None, int] = dict.fromkeys((*SEVERITIES, None), 0)
    for grade in grades.values():
        counts[grade.likeliest if grade.graded else None] += 1
    return counts


def findings(grades: GradeTable) -> list[Grade]:
    """Return the graded places whose likeliest severity is above normal or mild, the worst and most certain first."""
    abnormal = [
        grade
        for grade in grades.values()
        if grade.graded and grade.likeliest is not Severity.NORMAL_MILD
    ]
    return sorted(
        abnormal,
        key=lambda grade: (SEVERITIES.index(grade.likeliest), grade.share),
        reverse=True,
    )


def summary(result: StudyResult, grades: GradeTable) -> str:
    """Return the findings of a study in one sentence or two, the worst first."""
    if result.status is not Status.GRADED:
        reason = "" if result.reason is None else f"{REASONS[result.reason].title}. "
        return reason + STATUS_MEANINGS[result.status]
    counts = count(grades)
    graded = sum(counts.values()) - counts[None]
    not_graded = (
        ""
        if not counts[None]
        else f" {counts[None]} of {len(grades)} places were not graded."
    )
    worst_first = findings(grades)
    if graded == 0:
        return f"No place was graded.{not_graded}"
    if not worst_first:
        least = min(grade.share for grade in grades.values() if grade.graded)
        places = "all 25" if graded == len(grades) else f"all {graded} graded"
        return f"Likeliest grade: normal or mild at {places} places (each with at least {percent(least)}).{not_graded}"
    named = "; ".join(
        f"{grade.name} ({percent(grade.share)})" for grade in worst_first[:MOST_NAMED]
    )
    more = (
        ""
        if len(worst_first) <= MOST_NAMED
        else f"; and {_counted(worst_first[MOST_NAMED:])}"
    )
    normal = counts[Severity.NORMAL_MILD]
    others = f" The other {normal} graded places: normal or mild." if normal else ""
    return f"Likeliest grades, worst first: {named}{more}.{others}{not_graded}"


def _counted(grades: Sequence[Grade]) -> str:
    parts = []
    for severity in reversed(SEVERITIES):
        number = sum(grade.likeliest is severity for grade in grades)
        if number:
            parts.append(f"{number} more {SEVERITY_NAMES[severity].lower()}")
    return " and ".join(parts)


def in_short(counts: Mapping[Severity | None, int]) -> str:
    """Return counts in a few words: "2 severe, 4 moderate"."""
    parts = [
        f"{counts[severity]} {severity}"
        for severity in (Severity.SEVERE, Severity.MODERATE)
        if counts[severity]
    ]
    if not parts and counts[Severity.NORMAL_MILD]:
        parts = ["all normal/mild"]
    if counts[None]:
        parts.append(f"{counts[None]} not graded")
    return ", ".join(parts)


def means(
    grades: Iterable[GradeTable], condition: Condition
) -> tuple[int, tuple[float, ...], dict[Level, int]]:
    """Return the graded places of a condition over all studies, the mean probability of each severity, and the graded
    places by level."""
    rows = []
    places = dict.fromkeys(LEVELS, 0)
    for study in grades:
        for level in LEVELS:
            grade = study[condition, level]
            if grade.graded:
                places[level] += 1
                rows.append(grade.row)
    totals = [sum(row[severity] for row in rows) for severity in range(len(SEVERITIES))]
    return len(rows), tuple(total / max(len(rows), 1) / 1e6 for total in totals), places
