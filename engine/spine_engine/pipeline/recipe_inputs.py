"""What graders with a recipe of their own are fed with: five grids cut between vertebrae, or one of the whole study."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import LEVELS
from spine_engine.pipeline.centers import VertebralCenters
from spine_engine.study import Study
from spine_engine.voxels.recipe import GridRecipe
from spine_engine.voxels.recipe_grids import (
    StudyPoints,
    level_grid,
    study_points,
    whole_grid,
)


def recipe_level_grids(
    study: Study,
    centers: VertebralCenters,
    recipe: GridRecipe,
    *,
    out: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], StudyPoints]:
    """Return the grids of the five levels ``(5, C, *shape)`` float32 and the points they are made of.

    Args:
        study: the study, as ``read_study`` returns it.
        centers: its six vertebral centres.
        recipe: a recipe of levels, such as ``rsna2024-level-128``.
        out: ``(5, C, *shape)`` float32, C-contiguous, to be filled and returned.

    Raises:
        StudyError: a level has no point of any series.
        ValueError: the recipe is not of levels, or ``out`` does not fit.
    """
    if not recipe.of_levels:
        raise ValueError(f"the recipe {recipe.name} cuts no levels")
    points = study_points(study, recipe)
    assert recipe.shape is not None
    shape = (len(LEVELS), len(points.channels), *recipe.shape)
    grids = np.empty(shape, np.float32) if out is None else out
    if grids.shape != shape:
        raise ValueError(f"out must be {shape}, got {grids.shape}")
    for place, level in enumerate(LEVELS):
        level_grid(points, *centers.of_level(level), grids[place])
    return grids, points


def recipe_study_grid(
    study: Study, recipe: GridRecipe, *, out: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], StudyPoints]:
    """Return the grid of a whole study ``(C, *shape)`` float32 and the points it is made of.

    Args:
        study: the study, as ``read_study`` returns it.
        recipe: a recipe of whole studies, such as ``rsna2024-whole-256``.
        out: ``(C, *shape)`` float32, C-contiguous, to be filled and returned.

    Raises:
        StudyError: the study has no point.
        ValueError: the recipe is of levels, or ``out`` does not fit.
    """
    if recipe.of_levels:
        raise ValueError(f"the recipe {recipe.name} cuts levels")
    points = study_points(study, recipe)
    return whole_grid(points, out), points
