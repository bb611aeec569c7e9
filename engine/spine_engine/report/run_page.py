"""Renders the page of a run: every study, the worst first, and the run's own figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from spine_engine.anatomy import LEVELS, SEVERITIES, Condition, Severity, prior
from spine_engine.report.content import RunContent, RunStudy
from spine_engine.report.findings import (
    Grade,
    GradeTable,
    count,
    findings,
    grades_of,
    in_short,
    means,
    triage_key,
    worst_grade,
)
from spine_engine.report.page import render
from spine_engine.report.timeline import timeline
from spine_engine.report.words import (
    CONDITION_NAMES,
    DEMONSTRATION,
    DEMONSTRATION_BUNDLE,
    REASONS,
    SEVERITY_NAMES,
    SHOWN_CONDITIONS,
    STAGE_NAMES,
    STATUS_NAMES,
    WARNINGS,
    Words,
    code_words,
    duration,
    many,
)
from spine_engine.results import Status, StudyResult
from spine_engine.study import Source

MOST_LINKS: Final = 100
"""Largest number of studies linked under a reason; the table above links all of them."""

_DIGITS: Final = (
    *((str(severity), str(index)) for index, severity in enumerate(SEVERITIES)),
    ("lost", "-"),
)
"""Classes of the page's style with their digits in ``StudyRow``."""

_PLAIN_OPTIONS: Final = frozenset({"schedule", "backend", "device", "precision"})
"""Options whose text is one of our own words. Any other text may be a path, and paths may name patients."""


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """A study in the table.

    Attributes:
        study: the study.
        name: name of the patient; empty if identities are not shown.
        grades: the 25 grades.
        worst: the grade that orders the table.
        digits: input of the filters: for each place, in the order of the drawing, the likeliest severity 0, 1 or 2, or
            "-" if it was not graded.
        drawing: for each severity, and "lost", the places as an SVG path of dots in a 5 x 5 square.
        told: the drawing in words.
        counts: the drawing in numbers.
        confidence: confidence of the least certain level; None without levels.
        guessed: number of levels that were not found in the images.
    """

    study: RunStudy
    name: str
    grades: GradeTable
    worst: Grade | None
    digits: str
    drawing: Mapping[str, str]
    told: str
    counts: str
    confidence: float | None
    guessed: int

    @property
    def result(self) -> StudyResult:
        """The recorded result of the study."""
        return self.study.result

    @property
    def order(self) -> tuple[bool, tuple[int, int], str, str]:
        """The sort key: graded studies by their worst grade, then the others by status and id."""
        severe, moderate = (0, 0) if self.worst is None else triage_key(self.worst)
        return (
            self.worst is None,
            (-severe, -moderate),
            str(self.result.status is Status.FAILED),
            self.result.study_id,
        )


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The mean probability of each severity of one condition over the run, and the expected one."""

    name: str
    places: int
    mean: tuple[float, ...]
    expected: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A reason, its number of occurrences, and the studies or files concerned."""

    code: str
    number: int
    words: Words
    rows: Sequence[StudyRow] = ()
    paths: Sequence[str] = ()


def run_page(content: RunContent) -> str:
    """Return the page of a run.

    The page shows no path and nothing of a person unless the studies have identities.
    """
    run = content.run
    rows = sorted((_row(study) for study in content.studies), key=lambda row: row.order)
    named = any(study.identity is not None for study in content.studies)
    done = timeline(study.finished for study in content.studies)
    return render(
        "run.html.j2",
        title=content.title,
        run=run,
        named=named,
        demonstration=DEMONSTRATION
        if run.get("bundle", {}).get("name") == DEMONSTRATION_BUNDLE
        else None,
        sentence=_sentence(run, rows),
        tiles=_tiles(run),
        rows=rows,
        statuses=[
            status
            for status in Status
            if any(row.result.status is status for row in rows)
        ],
        warnings=_warnings(rows),
        spreads=[_spread(rows, condition) for condition in SHOWN_CONDITIONS],
        failures=_failures(rows),
        refused=_refused(run, named=named),
        most_links=MOST_LINKS,
        timeline=done,
        timed=sum(study.finished is not None for study in content.studies),
        stages=_stages(run),
        memory=_memory(run),
        options=_options(run, named=named),
        devices=sorted(run.get("devices", {}).items()),
    )


# -- the table of studies ----------------------------------------------------------------------------------------------


def _row(study: RunStudy) -> StudyRow:
    result = study.result
    grades = grades_of(result)
    places = [
        grades[condition, level] for level in LEVELS for condition in SHOWN_CONDITIONS
    ]
    digits = "".join(
        str(SEVERITIES.index(grade.likeliest)) if grade.graded else "-"
        for grade in places
    )
    levels = result.levels.values()
    return StudyRow(
        study=study,
        name="" if study.identity is None else study.identity.patient_name,
        grades=grades,
        worst=worst_grade(grades),
        digits=digits,
        drawing={name: _dots(digits, digit) for name, digit in _DIGITS},
        told=_told(grades),
        counts=in_short(count(grades)),
        confidence=min(
            (level.confidence for level in levels if level.confidence is not None),
            default=None,
        ),
        guessed=sum(
            level.source not in (Source.DETECTOR, Source.GIVEN) for level in levels
        ),
    )


def _dots(digits: str, digit: str) -> str:
    """Return an SVG path with a dot (a line of no length) at each place that has the digit; a dash for no grade."""
    begin, length = (".3", ".4") if digit == "-" else (".5", "0")
    return "".join(
        f"M{i % 5}{begin} {i // 5}.5h{length}"
        for i, place in enumerate(digits)
        if place == digit
    )


def _told(grades: GradeTable) -> str:
    """Return the drawing of a study's grades in words."""
    sentences = []
    for severity in (Severity.SEVERE, Severity.MODERATE):
        places = [
            grade.place for grade in findings(grades) if grade.likeliest is severity
        ]
        if places:
            sentences.append(f"{SEVERITY_NAMES[severity]}: {', '.join(places)}.")
    counts = count(grades)
    if counts[Severity.NORMAL_MILD]:
        sentences.append(f"Normal or mild: {counts[Severity.NORMAL_MILD]}.")
    if counts[None]:
        sentences.append(f"Not graded: {counts[None]}.")
    return " ".join(sentences)


def _warnings(rows: Sequence[StudyRow]) -> list[tuple[str, str, int]]:
    """Return code, title and number of studies of each warning that occurs, the most frequent first."""
    counts = [
        (str(warn), words.title, sum(warn in row.result.warnings for row in rows))
        for warn, words in WARNINGS.items()
    ]
    return sorted((row for row in counts if row[2]), key=lambda row: -row[2])


# -- the run itself ----------------------------------------------------------------------------------------------------


def _sentence(run: Mapping[str, Any], rows: Sequence[StudyRow]) -> str:
    by_status = {
        status: sum(row.result.status is status for row in rows) for status in Status
    }
    if not rows:
        return "The run found no study."
    parts = [
        f"{number:,} {STATUS_NAMES[status].lower()}"
        for status, number in by_status.items()
        if number
    ]
    counts = (
        ", all graded"
        if by_status[Status.GRADED] == len(rows)
        else f": {', '.join(parts)}"
    )
    severe = sum(row.worst is not None and "2" in row.digits for row in rows)
    likely = (
        f"; {severe:,} with a place whose likeliest grade is severe" if severe else ""
    )
    stopped = (
        " The run was interrupted; the same command resumes it."
        if run.get("interrupted")
        else ""
    )
    return f"{many(len(rows), 'study', 'studies')}{counts}{likely}.{stopped}"


def _tiles(run: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return heading, value and remark of the figures at the top of the page."""
    bundle = run.get("bundle", {})
    units = run.get("units", {})
    rate = float(run.get("studies_per_s") or 0.0)
    speed = (
        (f"{rate:.1f}", "studies a second")
        if rate >= 1
        else (f"{rate * 60:.1f}", "studies a minute")
    )
    resumed = units.get("resumed") or 0
    walked = f"{many(units.get('walked') or 0, 'study', 'studies')} in this run"
    devices = run.get("devices", {}).values()
    precisions = sorted({str(device.get("precision", "?")) for device in devices})
    where = sorted(
        {
            f"{device.get('backend', '?')} on {device.get('device', '?')}"
            for device in devices
        }
    )
    return [
        (
            "Duration",
            duration(float(run.get("wall_s") or 0.0)),
            walked + (f", {resumed:,} before" if resumed else ""),
        ),
        ("Speed", speed[0], speed[1]),
        (
            "Precision",
            ", ".join(precisions) or "none",
            ", ".join(where) or "no model was needed",
        ),
        (
            "Bundle",
            str(bundle.get("name", "?")),
            f"version {bundle.get('version', '?')}",
        ),
    ]


def _spread(rows: Sequence[StudyRow], condition: Condition) -> Spread:
    places, mean, by_level = means((row.grades for row in rows), condition)
    priors = [(number, prior(condition, level)) for level, number in by_level.items()]
    expected = tuple(
        sum(number * shares[i] for number, shares in priors) / max(places, 1)
        for i in range(3)
    )
    return Spread(
        name=CONDITION_NAMES[condition], places=places, mean=mean, expected=expected
    )


def _failures(rows: Sequence[StudyRow]) -> list[Counted]:
    """Return the reasons why studies were not graded, the most frequent first."""
    by_reason = {
        reason: [row for row in rows if row.result.reason is reason]
        for reason in REASONS
    }
    failures = [
        Counted(
            code=reason,
            number=len(concerned),
            words=REASONS[reason],
            rows=concerned[:MOST_LINKS],
        )
        for reason, concerned in by_reason.items()
        if concerned
    ]
    return sorted(failures, key=lambda counted: -counted.number)


def _refused(run: Mapping[str, Any], *, named: bool) -> list[Counted]:
    """Return the reasons why files were not used, the most frequent first; with paths only if identities are shown."""
    examples = run.get("refused_examples", []) if named else []
    by_reason = run.get("refused_files", {}).get("by_reason", {})
    return [
        Counted(
            code=code,
            number=number,
            words=code_words(code),
            paths=[
                example["path"] for example in examples if example["reason"] == code
            ],
        )
        for code, number in sorted(by_reason.items(), key=lambda item: -item[1])
    ]


def _stages(run: Mapping[str, Any]) -> list[tuple[str, str, float, str]]:
    """Return name, time, share and time per study of each stage, in the order in which a study passes them."""
    seconds: Mapping[str, float] = run.get("stage_seconds", {})
    walked = run.get("units", {}).get("walked") or 0
    total = sum(seconds.values()) or 1.0
    known = [stage for stage in STAGE_NAMES if stage in seconds]
    return [
        (
            STAGE_NAMES.get(stage, stage),
            duration(seconds[stage]),
            seconds[stage] / total,
            duration(seconds[stage] / walked) if walked else "",
        )
        for stage in [*known, *sorted(set(seconds) - set(known))]
    ]


def _memory(run: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the highest resident memory of each process, bytes; the process of shared models comes last."""
    peak = run.get("peak_memory_bytes", {})
    sizes = [int(size) for size in peak.get("workers") or []]
    lines = [("Main process", int(peak.get("main") or 0))]
    lines += [(f"Worker {i}", size) for i, size in enumerate(sizes, 1)]
    if sizes and run.get("options", {}).get("schedule") == "batch":
        lines[-1] = ("Shared models", sizes[-1])
    return [*lines, ("Together", int(peak.get("total") or 0))]


def _options(run: Mapping[str, Any], *, named: bool) -> list[tuple[str, str]]:
    return [
        (name, _option(name, value, named=named))
        for name, value in run.get("options", {}).items()
    ]


def _option(name: str, value: Any, *, named: bool) -> str:
    if value is None:
        return "left open"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)) or named or name in _PLAIN_OPTIONS:
        return f"{value:,}" if isinstance(value, int) else str(value)
    return "given"
