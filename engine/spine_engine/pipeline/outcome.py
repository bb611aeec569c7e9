"""What became of a study as its result: grades, or the reason why there are none."""

from __future__ import annotations

import errno
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

from spine_engine.anatomy import CONDITIONS, LEVELS, Level
from spine_engine.backends.checked import memory_is_limited
from spine_engine.bundle.manifest import GraderEntry
from spine_engine.detection import Detection, DiscLevel
from spine_engine.dicom import RefusedFile, WorkUnit
from spine_engine.errors import Reason, Warn
from spine_engine.pipeline.centers import PATIENT_AXES, VERTEBRAE, VertebralCenters
from spine_engine.pipeline.clock import StageClock
from spine_engine.pipeline.grading import GradedLevels
from spine_engine.results import (
    ROW_ORDER,
    AlternativeResult,
    LevelResult,
    SeriesResult,
    Status,
    StudyResult,
    VertebraResult,
    in_millionths,
    row_name,
    study_key,
    ungraded,
)
from spine_engine.study import Series, Source, Study
from spine_engine.voxels.recipe import GridRecipe

READ_BUT_NOT_GRADABLE: Final = frozenset(
    {
        Reason.NO_SAGITTAL,
        Reason.NO_ORIENTATION,
        Reason.NO_POSITION,
        Reason.NO_PIXEL_SPACING,
        Reason.NO_GEOMETRY,
        Reason.BAD_ORIENTATION,
        Reason.NOT_A_VOLUME,
        Reason.GAP_AT_LEVEL,
        Reason.NOT_LOCALIZED,
        Reason.NOT_LUMBAR,
        Reason.POOR_QUALITY,
    }
)
"""The files were read, but there is nothing in them to grade: status ``prior``. Any other reason: ``failed``."""


@dataclass(frozen=True, kw_only=True)
class UnitOutcome:
    """What became of a unit: its studies' results, or the units it splits into; and the files it could not use."""

    results: tuple[StudyResult, ...] = ()
    split: tuple[WorkUnit, ...] = ()
    refused: tuple[RefusedFile, ...] = ()

    @property
    def out_of_memory(self) -> bool:
        """Whether a study would have needed more memory than its worker may have."""
        return any(result.reason is Reason.OUT_OF_MEMORY for result in self.results)


def with_grades(
    study: Study,
    detection: Detection,
    grades: GradedLevels,
    clock: StageClock,
    *also: Warn,
    by: GraderEntry,
) -> StudyResult:
    """Return the result of a study of which the model ``by`` has graded at least one row."""
    lacking = {warning for _, warning in grades.not_assessed}
    warnings = {*study.warnings, *detection.warnings, *grades.warnings, *lacking, *also}
    if grades.not_covered:
        warnings.add(Warn.LEVEL_NOT_COVERED)
    rows, not_assessed = _rows(grades)
    return StudyResult(
        study_id=study_key(study.study_id),
        status=Status.GRADED,
        warnings=_in_order(warnings),
        series=series_results(study, by.grid_recipe),
        levels=level_results(detection),
        alternative=_alternative(detection),
        rows=rows,
        not_assessed=not_assessed,
        timings_ms=clock.timings_ms(),
    )


def _rows(
    grades: GradedLevels,
) -> tuple[tuple[tuple[int, int, int], ...], tuple[str, ...]]:
    """Return the study's rows in file order, and the names of those that hold the prior."""
    rows, missing = [], []
    for condition, level in ROW_ORDER:
        place = (LEVELS.index(level), CONDITIONS.index(condition))
        rows.append(in_millionths(grades.probabilities[place].tolist()))
        if not grades.assessed[place]:
            missing.append(row_name(condition, level))
    return tuple(rows), tuple(missing)


def without_grade(
    study: Study,
    reason: Reason,
    clock: StageClock,
    detection: Detection | None = None,
    *,
    detail: str | None = None,
) -> StudyResult:
    """Return the result of a study that no model has graded, with the reason."""
    status = Status.PRIOR if reason in READ_BUT_NOT_GRADABLE else Status.FAILED
    return ungraded(
        study_key(study.study_id),
        status,
        reason,
        warnings=_in_order(
            {*study.warnings, *(detection.warnings if detection else ())}
        ),
        series=series_results(study),
        levels=level_results(detection) if detection else {},
        alternative=_alternative(detection) if detection else None,
        timings_ms=clock.timings_ms(),
        detail=detail,
    )


def short_of_memory(study_id: str, clock: StageClock) -> StudyResult:
    """Return the record of a study for which memory ran out before it was put together."""
    return ungraded(
        study_key(study_id),
        Status.FAILED,
        Reason.OUT_OF_MEMORY,
        timings_ms=clock.timings_ms(),
    )


def lacks_memory(error: BaseException) -> bool:
    """Whether an error, or what led to it, is want of memory: a failed allocation, in a library's own words or not.

    Where the system limits this process's memory, a library that cannot be loaded counts too: its pages did not fit.
    """
    cause = error.__cause__ or error.__context__
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    if isinstance(error, ImportError | OSError) and memory_is_limited():
        return True
    return "bad_alloc" in str(error) or (cause is not None and lacks_memory(cause))


def broken(
    study_id: str,
    error: Exception,
    clock: StageClock,
    series: tuple[SeriesResult, ...] = (),
) -> StudyResult:
    """Return the record of a bug: the exception's type and line, never its message, which may name a patient."""
    frames = traceback.extract_tb(error.__traceback__)
    here = next(
        (frame for frame in reversed(frames) if "spine_engine" in frame.filename),
        frames[-1],
    )
    detail = f"{type(error).__name__} at {Path(here.filename).stem}:{here.lineno}"
    timings_ms = clock.timings_ms()
    return ungraded(
        study_id,
        Status.FAILED,
        Reason.INTERNAL_ERROR,
        series=series,
        timings_ms=timings_ms,
        detail=detail,
    )


def between_vertebrae(
    result: StudyResult, centers: VertebralCenters, recipe: GridRecipe
) -> StudyResult:
    """Return a result with the six centres that its levels were cut between, and the boxes that were cut."""
    boxes = centers.boxes(recipe)
    down, back, across = (
        cast(tuple[float, float, float], tuple(axis)) for axis in PATIENT_AXES.tolist()
    )
    levels = {}
    for level, entry in result.levels.items():
        (x, y, z), (x_end, y_end, z_end) = boxes[level].tolist()
        levels[level] = replace(
            entry,
            axes=(down, back, across),
            size_mm=(z_end - z, y_end - y, x_end - x),
            box_center_mm=((x + x_end) / 2, (y + y_end) / 2, (z + z_end) / 2),
        )
    vertebrae = {
        name: VertebraResult(
            center_mm=cast(tuple[float, float, float], tuple(place)), source=source
        )
        for name, place, source in zip(
            VERTEBRAE, centers.places_mm.tolist(), centers.sources, strict=True
        )
    }
    return replace(result, levels=levels, vertebrae=vertebrae)


def _evidence(series: Series, recipe: GridRecipe | None) -> str:
    """Return why a series has its role; with a recipe that takes images by kind, also what it counts as there."""
    if recipe is None or recipe.series == "by-role" or series.kind == series.role:
        return series.evidence
    counts_as = (
        "is left out of the grid"
        if series.kind is None
        else f"counts as {series.kind} in the grid"
    )
    return f"{series.evidence}; {counts_as}"


def series_results(
    study: Study, recipe: GridRecipe | None = None
) -> tuple[SeriesResult, ...]:
    """Return a study's series as results have them; ``recipe`` is that of the grid that was graded."""
    return tuple(
        SeriesResult(
            path=series.path,
            role=series.role,
            evidence=_evidence(series, recipe),
            stacks=len(series.stacks),
            slices=series.slices,
            reason=series.reason,
        )
        for series in study.series
    )


def level_results(detection: Detection) -> dict[Level, LevelResult]:
    """Return the levels of a detection as results have them."""
    return {level: _level(detection.levels[level]) for level in LEVELS}


def _alternative(detection: Detection) -> AlternativeResult | None:
    other = detection.alternative
    if other is None:
        return None
    centers = {level: _center(other.levels[level]) for level in LEVELS}
    return AlternativeResult(
        shift=other.shift, probability=other.probability, centers_mm=centers
    )


def _center(disc: DiscLevel) -> tuple[float, float, float]:
    x, y, z = disc.center_mm.tolist()
    return (x, y, z)


def _level(disc: DiscLevel) -> LevelResult:
    down, back, across = (
        cast(tuple[float, float, float], tuple(axis)) for axis in disc.axes.tolist()
    )
    d, h, w = disc.size_mm.tolist()
    return LevelResult(
        center_mm=_center(disc),
        axes=(down, back, across),
        size_mm=(d, h, w),
        confidence=None if disc.source == Source.GIVEN else disc.confidence,
        source=disc.source,
    )


def _in_order(warnings: set[Warn]) -> tuple[Warn, ...]:
    return tuple(warning for warning in Warn if warning in warnings)
