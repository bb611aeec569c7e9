"""Grades of a study: level grids cut along each disc, one model call for the five, calibration, and the honest gaps.
Or, where the levels are not known, one grid of the whole study and one call.

A condition is graded at a level only where a series that can show it covers the level; elsewhere the row is the
weighted prior of ``anatomy``, and the result says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import CONDITIONS, LEVELS, SEVERITIES, Condition, Level, prior
from spine_engine.backends.base import Backend
from spine_engine.bundle.manifest import Calibration, GraderEntry
from spine_engine.detection.levels import DiscLevel
from spine_engine.errors import Reason, StudyError, Warn
from spine_engine.pipeline.centers import VertebralCenters
from spine_engine.pipeline.level_grids import level_grids, study_grid
from spine_engine.pipeline.recipe_inputs import recipe_level_grids, recipe_study_grid
from spine_engine.study import Role, Source, Study
from spine_engine.voxels.recipe_grids import StudyPoints

ASSESSABLE: Final[dict[Condition, tuple[Role, ...]]] = {
    Condition.SPINAL_CANAL_STENOSIS: (Role.SAGITTAL_T2, Role.AXIAL_T2),
    Condition.LEFT_NEURAL_FORAMINAL_NARROWING: (Role.SAGITTAL_T1, Role.SAGITTAL_T2),
    Condition.RIGHT_NEURAL_FORAMINAL_NARROWING: (Role.SAGITTAL_T1, Role.SAGITTAL_T2),
    Condition.LEFT_SUBARTICULAR_STENOSIS: (Role.AXIAL_T2,),
    Condition.RIGHT_SUBARTICULAR_STENOSIS: (Role.AXIAL_T2,),
}
"""Any one of these series shows the condition: the views that RSNA 2024's readers labelled it in, and the canal and the
foramina's fat on the other contrast. The one that shows it best comes first."""

MISSING: Final = {
    Role.SAGITTAL_T1: Warn.NO_SAGITTAL_T1,
    Role.SAGITTAL_T2: Warn.NO_SAGITTAL_T2,
    Role.AXIAL_T2: Warn.NO_AXIAL_T2,
}

MIN_COVERAGE = 0.2
"""A series shows a level when it covers this share of its grid: three axial slices of 4 mm are 0.3 of a 40 mm grid."""

LINK_TOLERANCE = 1e-3
"""How far a model's probabilities may leave 0..1, or their sum 1, before they are no probabilities; a cumulative link
computed in float32 stays within 1e-5."""

_SHAPE: Final = (len(LEVELS), len(CONDITIONS), len(SEVERITIES))

_LOGIT_LIMIT = 1e-7
"""Cumulative probabilities are kept this far from 0 and 1 before their logit is taken: float32's own resolution."""


@dataclass(frozen=True, eq=False)
class GradedLevels:
    """What was graded, and what was not.

    Attributes:
        probabilities: ``(5 levels, 5 conditions, 3 severities)`` float64; every row sums to 1.
        assessed: ``(5 levels, 5 conditions)`` bool: true where the model graded, false where the row is the prior.
        coverage: ``(5 levels, C)``: the share of the level's grid that each of the model's channels covers.
        not_assessed: conditions that nothing in the study shows, each with the missing series, best view first.
        not_covered: levels at which series of the study end or have a gap, so that at least one condition could not be
            graded there although the study has a series for it.
        warnings: what was unusual about the grids.
    """

    probabilities: NDArray[np.float64]
    assessed: NDArray[np.bool_]
    coverage: NDArray[np.float64]
    not_assessed: tuple[tuple[Condition, Warn], ...]
    not_covered: tuple[Level, ...]
    warnings: tuple[Warn, ...] = ()


def grade(
    study: Study,
    levels: Mapping[Level, DiscLevel],
    backend: Backend,
    entry: GraderEntry,
    *,
    out: NDArray[np.float32] | None = None,
) -> GradedLevels:
    """Grade the five levels of a study.

    The model always runs on the five levels together, whatever is missing, so that its results never depend on how many
    there were. Levels whose source is ``prior`` have no place to look at: their rows are the weighted prior.

    Args:
        study: the series, by role.
        levels: the place of each level.
        backend: the loaded grader.
        entry: what the bundle says of it.
        out: ``(5, C, D, H, W)`` float32, C-contiguous, to hold the grids.

    Raises:
        StudyError: the model's output is not probabilities.
    """
    grids, coverage = level_grids(study, levels, entry.layout, out=out)
    located = np.array([levels[level].source != Source.PRIOR for level in LEVELS])
    shown = _shown(coverage >= MIN_COVERAGE, entry) & located[:, None]

    def answer() -> NDArray[np.float64]:
        return checked(
            backend.run({entry.inputs[0].name: grids})[entry.outputs[0].name], _SHAPE
        )

    return _grades(
        study, entry, answer, coverage=coverage, shown=shown, located=located
    )


def grade_whole_study(
    study: Study, backend: Backend, entry: GraderEntry
) -> GradedLevels:
    """Grade the five levels of a study from one grid of the whole of it, without knowing where they are.

    With a recipe of its own the model grades every row, whatever the study lacks, as in the pipeline it comes from.

    The model finds the levels by itself, so nothing says which of them a series covers: a condition counts as shown at
    all levels when a series that can show it covers any of the grid. ``coverage`` repeats the grid's for every level.

    Args:
        study: the series, by role.
        backend: the loaded whole-study grader.
        entry: what the bundle says of it.

    Raises:
        StudyError: the study has no sagittal stack, or the model's output is not probabilities.
    """

    def answer(grid: NDArray[np.float32]) -> NDArray[np.float64]:
        raw = backend.run({entry.inputs[0].name: grid[None]})[entry.outputs[0].name]
        heads = checked(raw, (1, len(CONDITIONS) * len(LEVELS), len(SEVERITIES)))
        return heads.reshape(len(CONDITIONS), len(LEVELS), len(SEVERITIES)).transpose(
            1, 0, 2
        )

    if not entry.grid_recipe.is_native:
        made, points = recipe_study_grid(study, entry.grid_recipe)
        return _all_rows(entry, answer(made), points)
    grid, covered = study_grid(study, entry.layout)
    coverage = np.tile(covered, (len(LEVELS), 1))
    shown, located = _shown(coverage > 0, entry), np.ones(len(LEVELS), np.bool_)
    return _grades(
        study,
        entry,
        lambda: answer(grid),
        coverage=coverage,
        shown=shown,
        located=located,
    )


def grade_between(
    study: Study,
    centers: VertebralCenters,
    backend: Backend,
    entry: GraderEntry,
    *,
    out: NDArray[np.float32] | None = None,
) -> GradedLevels:
    """Grade the five levels of a study between its vertebrae, by the recipe of the model: it grades every row.

    Args:
        study: the series, by kind.
        centers: the six vertebral centres.
        backend: the loaded grader.
        entry: what the bundle says of it.
        out: ``(5, C, *shape)`` float32, C-contiguous, to hold the grids.

    Raises:
        StudyError: a level has no point of any series, or the model's output is not probabilities.
    """
    grids, points = recipe_level_grids(study, centers, entry.grid_recipe, out=out)
    graded = checked(
        backend.run({entry.inputs[0].name: grids})[entry.outputs[0].name], _SHAPE
    )
    return _all_rows(entry, graded, points)


def _all_rows(
    entry: GraderEntry, graded: NDArray[np.float64], points: StudyPoints
) -> GradedLevels:
    """Return a model's answer ``(5, 5, 3)``, calibrated, as the grade of every row."""
    return GradedLevels(
        probabilities=graded
        if entry.calibration is None
        else calibrated(graded, entry.calibration),
        assessed=np.ones(graded.shape[:2], np.bool_),
        coverage=np.tile(points.present.astype(np.float64), (len(LEVELS), 1)),
        not_assessed=(),
        not_covered=(),
        warnings=(Warn.NO_SLICE_THICKNESS,) if points.without_thickness else (),
    )


def _shown(covered: NDArray[np.bool_], entry: GraderEntry) -> NDArray[np.bool_]:
    """Return ``(5 levels, 5 conditions)``: whether a channel that can show the condition is ``covered (5, C)``."""
    shown = np.zeros((len(LEVELS), len(CONDITIONS)), np.bool_)
    for c, condition in enumerate(CONDITIONS):
        views = [
            channel
            for channel, role in enumerate(entry.channels)
            if role in ASSESSABLE[condition]
        ]
        shown[:, c] = covered[:, views].any(axis=1)
    return shown


def _grades(
    study: Study,
    entry: GraderEntry,
    answer: Callable[[], NDArray[np.float64]],
    *,
    coverage: NDArray[np.float64],
    shown: NDArray[np.bool_],
    located: NDArray[np.bool_],
) -> GradedLevels:
    """Put a model's calibrated ``answer (5, 5, 3)`` where something is ``shown``, the prior elsewhere, and say why."""
    probabilities = prior_probabilities()
    if shown.any():
        graded = answer()
        if entry.calibration is not None:
            graded = calibrated(graded, entry.calibration)
        probabilities[shown] = graded[shown]
    present = {
        role
        for role in Role
        if role in entry.channels and any(s.stacks for s in study.with_role(role))
    }
    hidden = [
        condition
        for condition in CONDITIONS
        if present.isdisjoint(ASSESSABLE[condition])
    ]
    expected = (
        np.array([condition not in hidden for condition in CONDITIONS])
        & located[:, None]
    )
    return GradedLevels(
        probabilities=probabilities,
        assessed=shown,
        coverage=coverage,
        not_assessed=tuple(
            (condition, MISSING[ASSESSABLE[condition][0]]) for condition in hidden
        ),
        not_covered=tuple(
            LEVELS[k] for k in np.flatnonzero((expected & ~shown).any(axis=1))
        ),
    )


def prior_probabilities() -> NDArray[np.float64]:
    """Return the weighted priors ``(5 levels, 5 conditions, 3 severities)``."""
    return np.array(
        [[prior(condition, level) for condition in CONDITIONS] for level in LEVELS]
    )


def checked(raw: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return a model's probabilities in float64, every row summing to 1.

    Raises:
        StudyError: a wrong shape, a value that is no number, outside 0..1, or rows that do not sum to 1.
    """
    if raw.shape != shape:
        raise StudyError(
            Reason.INTERNAL_ERROR, f"the grader gave the shape {raw.shape}, not {shape}"
        )
    values = raw.astype(np.float64)
    total = values.sum(axis=-1, keepdims=True)
    off = max(
        float(-values.min()),
        float(values.max()) - 1.0,
        float(np.abs(total - 1.0).max()),
    )
    if not off <= LINK_TOLERANCE:
        raise StudyError(
            Reason.INTERNAL_ERROR, "the grader's output is not probabilities"
        )
    values = np.clip(values, 0.0, None)
    normalised: NDArray[np.float64] = values / values.sum(axis=-1, keepdims=True)
    return normalised


def calibrated(
    probabilities: NDArray[np.float64], calibration: Calibration
) -> NDArray[np.float64]:
    """Return ``(5 levels, 5 conditions, 3)`` with each cumulative logit divided by its temperature, then shifted.

    ``P(y <= k) = sigmoid(logit(P0(y <= k)) / T + b)`` for both cut-points, so a rising T flattens and a rising b lowers
    the severity; the order of grades is kept.
    """
    temperature, shift = (
        np.asarray(table).T[..., None]
        for table in (calibration.temperature, calibration.shift)
    )
    cumulative = np.cumsum(probabilities, axis=-1)[..., : len(SEVERITIES) - 1].clip(
        _LOGIT_LIMIT, 1 - _LOGIT_LIMIT
    )
    logit = np.log(cumulative) - np.log1p(-cumulative)
    moved = 1.0 / (1.0 + np.exp(-(logit / temperature + shift)))
    edges = np.concatenate(
        [np.zeros_like(moved[..., :1]), moved, np.ones_like(moved[..., :1])], axis=-1
    )
    return np.diff(edges, axis=-1)
