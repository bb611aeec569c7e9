"""What the 25 rows of a study come to for a reader: likeliest grades, the worst first, in words."""

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
"""Findings that a sentence names; more make it a list nobody reads, and the table beside it has them all."""


@dataclass(frozen=True, kw_only=True)
class Grade:
    """What the model says of one condition at one level.

    Attributes:
        condition, level: of what.
        row: millionths of the three severities, as in ``predictions.csv``.
        graded: false where the row holds the prior instead of a grade.
    """

    condition: Condition
    level: Level
    row: Row
    graded: bool

    @property
    def likeliest(self) -> Severity:
        """The severity of the highest probability; the milder one of equals, as the rounding of rows has it."""
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
        """The severity and the place, for people: "severe spinal canal stenosis at L4/L5"."""
        severity, condition = SEVERITY_NAMES[self.likeliest].lower(), CONDITION_NAMES[self.condition].lower()
        return f"{severity} {condition} at {LEVEL_NAMES[self.level]}"

    @property
    def place(self) -> str:
        """Where it is, in short: "canal L4/L5"."""
        return f"{SHORT_CONDITION_NAMES[self.condition]} {LEVEL_NAMES[self.level]}"


GradeTable = Mapping[tuple[Condition, Level], Grade]


def grades_of(result: StudyResult) -> GradeTable:
    """Return the 25 grades of a study."""
    lost = set(result.not_assessed)
    return {
        (condition, level): Grade(
            condition=condition, level=level, row=row, graded=row_name(condition, level) not in lost
        )
        for (condition, level), row in zip(ROW_ORDER, result.rows, strict=True)
    }


def worst_grade(grades: GradeTable) -> Grade | None:
    """Return the grade with the highest probability of severe, then of moderate; None where nothing is graded."""
    graded = [grade for grade in grades.values() if grade.graded]
    return max(graded, key=triage_key) if graded else None


def triage_key(grade: Grade) -> tuple[int, int]:
    """Return what grades are ordered by: the probability of severe, then of moderate, in millionths."""
    return grade.row[2], grade.row[1]


def count(grades: GradeTable) -> dict[Severity | None, int]:
    """Return how many places have each likeliest severity; under None those that are not graded."""
    counts: dict[Severity | None, int] = dict.fromkeys((*SEVERITIES, None), 0)
    for grade in grades.values():
        counts[grade.likeliest if grade.graded else None] += 1
    return counts


def findings(grades: GradeTable) -> list[Grade]:
    """Return the graded places whose likeliest severity is above normal or mild, the worst and the surest first."""
    found = [grade for grade in grades.values() if grade.graded and grade.likeliest is not Severity.NORMAL_MILD]
    return sorted(found, key=lambda grade: (SEVERITIES.index(grade.likeliest), grade.share), reverse=True)


def summary(result: StudyResult, grades: GradeTable) -> str:
    """Return the findings of a study in one sentence or two, the worst first."""
    if result.status is not Status.GRADED:
        reason = "" if result.reason is None else f"{REASONS[result.reason].title}. "
        return reason + STATUS_MEANINGS[result.status]
    counts = count(grades)
    graded = sum(counts.values()) - counts[None]
    lost = "" if not counts[None] else f" {counts[None]} of {len(grades)} places were not graded."
    found = findings(grades)
    if graded == 0:
        return f"No place was graded.{lost}"
    if not found:
        least = min(grade.share for grade in grades.values() if grade.graded)
        every = "all 25" if graded == len(grades) else f"all {graded} graded"
        return f"Likeliest grade: normal or mild at {every} places (each with at least {percent(least)}).{lost}"
    named = "; ".join(f"{grade.name} ({percent(grade.share)})" for grade in found[:MOST_NAMED])
    more = "" if len(found) <= MOST_NAMED else f"; and {_counted(found[MOST_NAMED:])}"
    rest = counts[Severity.NORMAL_MILD]
    other = f" The other {rest} graded places: normal or mild." if rest else ""
    return f"Likeliest grades, worst first: {named}{more}.{other}{lost}"


def _counted(found: Sequence[Grade]) -> str:
    parts = []
    for severity in reversed(SEVERITIES):
        number = sum(grade.likeliest is severity for grade in found)
        if number:
            parts.append(f"{number} more {SEVERITY_NAMES[severity].lower()}")
    return " and ".join(parts)


def in_short(counts: Mapping[Severity | None, int]) -> str:
    """Return counts in a few words: "2 severe, 4 moderate"."""
    parts = [f"{counts[severity]} {severity}" for severity in (Severity.SEVERE, Severity.MODERATE) if counts[severity]]
    if not parts and counts[Severity.NORMAL_MILD]:
        parts = ["all normal/mild"]
    if counts[None]:
        parts.append(f"{counts[None]} not graded")
    return ", ".join(parts)


def means(grades: Iterable[GradeTable], condition: Condition) -> tuple[int, tuple[float, ...], dict[Level, int]]:
    """Return of a condition over all studies: graded places, mean probability of each severity, places by level."""
    totals, places = [0, 0, 0], dict.fromkeys(LEVELS, 0)
    for study in grades:
        for level in LEVELS:
            grade = study[condition, level]
            if grade.graded:
                places[level] += 1
                totals = [total + part for total, part in zip(totals, grade.row, strict=True)]
    number = sum(places.values())
    return number, tuple(total / max(number, 1) / 1e6 for total in totals), places
