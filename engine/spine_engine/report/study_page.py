"""Renders the page of one study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spine_engine.anatomy import LEVELS
from spine_engine.report.content import Picture, StudyContent
from spine_engine.report.findings import Grade, grades_of, summary
from spine_engine.report.page import render
from spine_engine.report.words import (
    DEMONSTRATION,
    DEMONSTRATION_BUNDLE,
    LEVEL_NAMES,
    REASONS,
    ROLE_NAMES,
    SHOWN_CONDITIONS,
    SOURCE_NAMES,
    STAGE_NAMES,
    STATUS_NAMES,
    WARNINGS,
    Words,
    duration,
    other_numbering,
    percent,
)
from spine_engine.results import LevelResult, SeriesResult, StudyResult
from spine_engine.study import Source


@dataclass(frozen=True, kw_only=True)
class LevelView:
    """One level for the template: its grades in the order of ``SHOWN_CONDITIONS``, its place, its pictures."""

    name: str
    place: str
    center: str
    grades: Sequence[Grade]
    crops: Sequence[Picture]


@dataclass(frozen=True, kw_only=True)
class SeriesView:
    """One series for the template; ``path`` and ``description`` are empty if identities are not shown."""

    role: str
    evidence: str
    stacks: int
    slices: int
    refused: Words | None
    path: str
    description: str


def study_page(content: StudyContent) -> str:
    """Return the page of a study: its grades, the pictures behind them, and its warnings.

    The page shows no path and nothing of the person unless ``content.identity`` is set.
    """
    result = content.result
    grades = grades_of(result)
    levels = [
        LevelView(
            name=LEVEL_NAMES[level],
            place=_place(result.levels.get(level)),
            center=_center(result.levels.get(level)),
            grades=[grades[condition, level] for condition in SHOWN_CONDITIONS],
            crops=content.crops.get(level, ()),
        )
        for level in LEVELS
    ]
    return render(
        "study.html.j2",
        content=content,
        result=result,
        identity=content.identity,
        status=STATUS_NAMES[result.status],
        summary=summary(result, grades),
        demonstration=DEMONSTRATION if _is_demonstration(content) else None,
        reason=None
        if result.reason is None
        else (result.reason, REASONS[result.reason]),
        warnings=[(warning, WARNINGS[warning]) for warning in result.warnings],
        other_numbering=None
        if result.alternative is None
        else other_numbering(result.alternative),
        levels=levels,
        widest=_widest(content),
        any_graded=any(grade.graded for grade in grades.values()),
        sources=_sources(content.overview),
        series=[_series(series, content) for series in result.series],
        stages=_stages(result),
        total=duration(sum(result.timings_ms.values()) / 1000),
    )


def _is_demonstration(content: StudyContent) -> bool:
    return any(
        what == "bundle" and value.split(" ")[0] == DEMONSTRATION_BUNDLE
        for what, value in content.provenance
    )


def _place(level: LevelResult | None) -> str:
    if level is None:
        return "not looked for"
    source = SOURCE_NAMES.get(level.source, level.source)
    if level.source == Source.PRIOR or level.confidence is None:
        return source
    return f"{source}, confidence {percent(level.confidence)}"


def _center(level: LevelResult | None) -> str:
    if level is None or level.center_mm is None:
        return ""
    return ", ".join(
        f"{value:.1f}".replace("-", "\N{MINUS SIGN}") for value in level.center_mm
    )


def _widest(content: StudyContent) -> str:
    """Return the width of the widest crop, mm, because all crops of a page have one scale."""
    widths_mm = [
        crop.width * crop.pixel_mm[1]
        for crops in content.crops.values()
        for crop in crops
    ]
    return f"{max(widths_mm, default=1.0):.1f}"


def _sources(pictures: Sequence[Picture]) -> Mapping[str, str]:
    """Return the line styles that occur and their meanings, the most certain first."""
    drawn = {outline.source for picture in pictures for outline in picture.outlines}
    return {source: words for source, words in SOURCE_NAMES.items() if source in drawn}


def _series(series: SeriesResult, content: StudyContent) -> SeriesView:
    identity = content.identity
    return SeriesView(
        role=ROLE_NAMES.get(series.role, str(series.role)),
        evidence=series.evidence,
        stacks=series.stacks,
        slices=series.slices,
        refused=None if series.reason is None else REASONS[series.reason],
        path="" if identity is None else series.path,
        description="" if identity is None else identity.series.get(series.path, ""),
    )


def _stages(result: StudyResult) -> list[tuple[str, str, float]]:
    """Return name, duration and share of the longest for each stage, in the order in which they ran."""
    longest = max(result.timings_ms.values(), default=0.0) or 1.0
    return [
        (STAGE_NAMES.get(stage, stage), duration(ms / 1000), ms / longest)
        for stage, ms in result.timings_ms.items()
    ]
