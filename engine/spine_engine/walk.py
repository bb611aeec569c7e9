"""The way of one study, from its files to its result: read, detect, cut the levels, grade, record.

This runs inside a worker process, on one thread. Whatever goes wrong with a study becomes its result.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import CONDITIONS, LEVELS, Level
from spine_engine.backends import Backend, Device
from spine_engine.bundle import Bundle
from spine_engine.detection import Detection, DiscLevel, undetected
from spine_engine.dicom import RoleOverrides, WorkUnit, discover, read_unit
from spine_engine.dicom.limits import DEFAULT_LIMITS
from spine_engine.errors import BackendError, BundleError, Reason, StudyError, Warn
from spine_engine.grading import Grades, grade, grade_whole_study
from spine_engine.manifest import GraderEntry
from spine_engine.opened import OpenModel, OpenModels, open_role
from spine_engine.options import RunOptions
from spine_engine.resources import Resources, divided
from spine_engine.results import (
    ROW_ORDER,
    AlternativeResult,
    LevelResult,
    SeriesResult,
    Status,
    StudyResult,
    in_millionths,
    row_name,
    study_key,
    ungraded,
)
from spine_engine.runner import Discover
from spine_engine.scheduler import ModelProcess, UnitOutcome, WalkFactory
from spine_engine.scheduler.batching import BatchPolicy, doubling
from spine_engine.scheduler.remote import ModelsGoneError, RemoteBackend
from spine_engine.study import Role, Study

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
    }
)
"""The files were read, but there is nothing in them to grade: status ``prior``. Any other reason: ``failed``."""

MODEL_CALL_S: Final = 150.0
"""A call of a model that takes longer is hung: a batch of the largest graders takes half a minute on one core."""


@dataclass(frozen=True, kw_only=True)
class WalkPlan:
    """What a run over real studies needs: where units come from, how they are walked, and what decides the results.

    ``models`` is the process whose models the workers share, not yet started; None where each has its own.
    """

    discover: Discover
    factory: WalkFactory
    resources: Resources
    models: ModelProcess | None
    series_descriptions: str


def plan_walk(root: Path, bundle: Bundle, options: RunOptions) -> WalkPlan:
    """Read the series descriptions and return the plan for the studies under ``root``.

    Raises:
        UsageError: the series descriptions cannot be used, or the memory allowed holds no worker.
    """
    given = options.series_descriptions
    overrides = RoleOverrides.find(root) if given is None else RoleOverrides.from_csv(given)
    said = sorted((study, series, str(role)) for (study, series), role in overrides.roles.items())
    digest = hashlib.sha256(repr(said).encode("utf-8", "backslashreplace")).hexdigest()
    models = None
    if options.batched:
        serving = partial(ServedModels, bundle.path, bundle.digest, options)
        models = ModelProcess(serving, call_timeout_s=min(MODEL_CALL_S, options.timeout_s / 2))
    address = None if models is None else models.address
    used = bundle.manifest.models.by_role().values()
    return WalkPlan(
        discover=discover,
        factory=partial(StudyWalk, root, bundle.path, bundle.digest, options, overrides, address),
        resources=divided(options, model_bytes=sum(entry.size_bytes for entry in used)),
        models=models,
        series_descriptions=digest if said else "none",
    )


def opened_bundle(path: Path, digest: str) -> Bundle:
    """Open a bundle in another process than the one that began the run.

    Raises:
        BundleError: it is damaged, or no longer the one the run began with.
    """
    bundle = Bundle.open(path)
    if bundle.digest != digest:
        raise BundleError(f"the bundle {bundle.manifest.name!r} was changed while the run started; start again")
    return bundle


class ServedModels:
    """Opens the models of the process that the workers share them of, each with the batches it is called with."""

    def __init__(self, bundle_path: Path, bundle_digest: str, options: RunOptions) -> None:
        """Verify the bundle.

        Raises:
            BundleError: the bundle is damaged or no longer the one the run began with.
        """
        self._bundle, self._options = opened_bundle(bundle_path, bundle_digest), options

    def __call__(self, role: str) -> tuple[Backend, BatchPolicy]:
        """Open the model of ``role``. Errors are those of ``open_role``."""
        backend = open_role(self._bundle, self._options, role)
        profile = self._bundle.entry(role).profile
        most, kept = self._options.max_batch, set[int]()
        if profile is not None:
            most = min(most, profile.largest[0])
            kept = {size for size in profile.batches if size <= most}
        unit = len(LEVELS) if role == "grader" else 1  # a study asks for its five levels at once
        sizes = tuple(sorted(kept.union(doubling(min(unit, most), most))))
        return backend, BatchPolicy(sizes=sizes, max_delay_ms=self._options.max_delay_ms)


class StudyWalk:
    """A worker's walk: the models it has opened, and the buffer its level grids share from study to study."""

    def __init__(
        self,
        root: Path,
        bundle_path: Path,
        bundle_digest: str,
        options: RunOptions,
        overrides: RoleOverrides,
        models_at: str | None = None,
    ) -> None:
        """Open the models, or connect to those at ``models_at``.

        Raises:
            BackendError: the backend, device or precision is not to be had.
            BundleError: the bundle is damaged or no longer the one the run began with.
            ModelsGoneError: nothing answers at ``models_at``.
        """
        bundle = opened_bundle(bundle_path, bundle_digest)
        self._root = root
        self._overrides = overrides
        self._limits = replace(DEFAULT_LIMITS, study_s=options.timeout_s)
        self._models = OpenModels(bundle, options, None if models_at is None else partial(RemoteBackend, models_at))
        self.devices: Mapping[str, Device] = self._models.devices
        self._grids: NDArray[np.float32] | None = None
        if self._models.grader is not None:
            entry = self._models.grader.entry
            self._grids = np.empty((len(LEVELS), len(entry.channels), *entry.grid.shape), np.float32)

    def __call__(self, unit: WorkUnit) -> UnitOutcome:
        """Walk one unit to its outcome."""
        clock = _Clock()
        try:
            with clock.stage("read"):
                reading = read_unit(self._root, unit, self._overrides, self._limits)
        except Exception as error:  # a bug costs one study, not the run
            if unit.study_id is None:
                raise
            if isinstance(error, MemoryError):
                return UnitOutcome(results=(_short_of_memory(unit.study_id, clock),))
            return UnitOutcome(results=(_broken(study_key(unit.study_id), error, clock),))
        results = tuple(self._result(study, clock) for study in reading.studies)
        return UnitOutcome(results=results, split=reading.split, refused=reading.refused)

    def _result(self, study: Study, clock: _Clock) -> StudyResult:
        try:
            if study.reason is not None:
                return _without_grade(study, study.reason, clock)
            return self._graded(study, clock)
        except StudyError as error:
            detail = error.detail if error.reason is Reason.INTERNAL_ERROR else None
            return _without_grade(study, error.reason, clock, detail=detail)
        except MemoryError:
            return _without_grade(study, Reason.OUT_OF_MEMORY, clock)
        except (BackendError, BundleError):  # a model that cannot be had is no study's fault
            raise
        except ModelsGoneError:
            self._models.close()  # every connection; the next study connects anew
            raise
        except Exception as error:  # noqa: BLE001 - a bug costs one study, not the run
            return _broken(study_key(study.study_id), error, clock, _series(study))

    def _graded(self, study: Study, clock: _Clock) -> StudyResult:
        sagittal = [s.stacks for role in (Role.SAGITTAL_T1, Role.SAGITTAL_T2) for s in study.with_role(role)]
        grader = self._models.grader
        if grader is None:
            return self._graded_whole(study, undetected(sagittal), clock)
        with clock.stage("detect"):
            detection = self._models.find_levels(sagittal)
        if all(disc.source == "prior" for disc in detection.levels.values()):
            return self._graded_whole(study, detection, clock)
        with clock.grading(grader):
            grades = grade(study, detection.levels, grader, grader.entry, out=self._grids)
        if not grades.assessed.any():
            return _without_grade(study, Reason.GAP_AT_LEVEL, clock, detection)
        return _with_grades(study, detection, grades, clock)

    def _graded_whole(self, study: Study, detection: Detection, clock: _Clock) -> StudyResult:
        """Grade a study whose levels are not known, where the bundle has a model for that."""
        grader = self._models.whole_study_grader()
        if grader is None:
            return _without_grade(study, Reason.NOT_LOCALIZED, clock, detection)
        with clock.grading(grader):
            grades = grade_whole_study(study, grader, grader.entry)
        if not grades.assessed.any():
            return _without_grade(study, Reason.NOT_LOCALIZED, clock, detection)
        return _with_grades(study, detection, grades, clock, Warn.WHOLE_STUDY_GRADER)


class _Clock:
    """Wall time by stage of one study."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + perf_counter() - began

    @contextmanager
    def grading(self, model: OpenModel[GraderEntry]) -> Iterator[None]:
        """Count the time that ``model`` takes as ``grade`` and the rest as ``voxelize``."""
        before = model.seconds
        with self.stage("voxelize"):
            yield
        seconds = model.seconds - before
        self._seconds["voxelize"] -= seconds
        self._seconds["grade"] = self._seconds.get("grade", 0.0) + seconds

    def timings_ms(self) -> dict[str, float]:
        return {stage: seconds * 1000 for stage, seconds in self._seconds.items()}


def _with_grades(study: Study, detection: Detection, grades: Grades, clock: _Clock, *also: Warn) -> StudyResult:
    """Return the result of a study of which a model has graded at least one row."""
    warnings = {*study.warnings, *detection.warnings, *(warning for _, warning in grades.not_assessed), *also}
    if grades.not_covered:
        warnings.add(Warn.LEVEL_NOT_COVERED)
    rows, not_assessed = _rows(grades)
    return StudyResult(
        study_id=study_key(study.study_id),
        status=Status.GRADED,
        warnings=_in_order(warnings),
        series=_series(study),
        levels=level_results(detection),
        alternative=_alternative(detection),
        rows=rows,
        not_assessed=not_assessed,
        timings_ms=clock.timings_ms(),
    )


def _rows(grades: Grades) -> tuple[tuple[tuple[int, int, int], ...], tuple[str, ...]]:
    """Return the study's rows in file order, and the names of those that hold the prior."""
    rows, missing = [], []
    for condition, level in ROW_ORDER:
        place = (LEVELS.index(level), CONDITIONS.index(condition))
        rows.append(in_millionths(grades.probabilities[place].tolist()))
        if not grades.assessed[place]:
            missing.append(row_name(condition, level))
    return tuple(rows), tuple(missing)


def _without_grade(
    study: Study, reason: Reason, clock: _Clock, detection: Detection | None = None, *, detail: str | None = None
) -> StudyResult:
    status = Status.PRIOR if reason in READ_BUT_NOT_GRADABLE else Status.FAILED
    return ungraded(
        study_key(study.study_id),
        status,
        reason,
        warnings=_in_order({*study.warnings, *(detection.warnings if detection else ())}),
        series=_series(study),
        levels=level_results(detection) if detection else {},
        alternative=_alternative(detection) if detection else None,
        timings_ms=clock.timings_ms(),
        detail=detail,
    )


def _short_of_memory(study_id: str, clock: _Clock) -> StudyResult:
    """Return the record of a study for which memory ran out before it was put together."""
    return ungraded(study_key(study_id), Status.FAILED, Reason.OUT_OF_MEMORY, timings_ms=clock.timings_ms())


def _broken(study_id: str, error: Exception, clock: _Clock, series: tuple[SeriesResult, ...] = ()) -> StudyResult:
    """Return the record of a bug: the exception's type and line, never its message, which may name a patient."""
    frames = traceback.extract_tb(error.__traceback__)
    here = next((frame for frame in reversed(frames) if "spine_engine" in frame.filename), frames[-1])
    detail = f"{type(error).__name__} at {Path(here.filename).stem}:{here.lineno}"
    timings_ms = clock.timings_ms()
    return ungraded(study_id, Status.FAILED, Reason.INTERNAL_ERROR, series=series, timings_ms=timings_ms, detail=detail)


def _series(study: Study) -> tuple[SeriesResult, ...]:
    return tuple(
        SeriesResult(
            path=series.path,
            role=series.role,
            evidence=series.evidence,
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
    return AlternativeResult(shift=other.shift, probability=other.probability, centers_mm=centers)


def _center(disc: DiscLevel) -> tuple[float, float, float]:
    x, y, z = disc.center_mm.tolist()
    return (x, y, z)


def _level(disc: DiscLevel) -> LevelResult:
    down, back, across = (cast(tuple[float, float, float], tuple(axis)) for axis in disc.axes.tolist())
    d, h, w = disc.size_mm.tolist()
    return LevelResult(
        center_mm=_center(disc),
        axes=(down, back, across),
        size_mm=(d, h, w),
        confidence=disc.confidence,
        source=disc.source,
    )


def _in_order(warnings: set[Warn]) -> tuple[Warn, ...]:
    return tuple(warning for warning in Warn if warning in warnings)
