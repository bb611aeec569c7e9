"""Grids of a study as graders see them: five cut along the discs, or one of the whole study."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import LEVELS, Level
from spine_engine.detection.levels import DiscLevel
from spine_engine.detection.slices import (
    field_of_view_center,
    in_fixed_order,
    spine_frame,
)
from spine_engine.errors import Reason, StudyError
from spine_engine.study import Source, Study
from spine_engine.voxels import (
    GridLayout,
    GridPose,
    PreparedChannel,
    WindowedStack,
    full_window,
    prepared,
    voxelize,
    windowed,
)


def level_grids(
    study: Study,
    levels: Mapping[Level, DiscLevel],
    layout: GridLayout,
    *,
    out: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the grids ``(5, C, D, H, W)`` float32 in 0..1, cut along each disc, and their coverage ``(5, C)``.

    Intensities are scaled as ``layout.normalisation`` says; all series of a channel's role are sampled together. A
    level whose source is ``prior`` is left 0, with coverage 0.
    """
    channels = _channels(study, layout)
    shape = (len(LEVELS), len(channels), *layout.spec.shape)
    grids = np.empty(shape, np.float32) if out is None else out
    if grids.shape != shape:
        raise ValueError(f"out must be {shape}, got {grids.shape}")
    coverage = np.zeros(shape[:2])
    for place, level in enumerate(LEVELS):
        disc = levels[level]
        if disc.source == Source.PRIOR:
            grids[place] = 0.0
            continue
        pose = layout.pose(disc.center_mm, disc.axes)
        coverage[place] = voxelize(
            channels, layout.spec, pose, out=grids[place]
        ).coverage
        _normalise(grids[place], layout)
    return grids, coverage


def study_grid(
    study: Study,
    layout: GridLayout,
    out: NDArray[np.float32] | None = None,
    *,
    pose: GridPose | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return one grid of the whole study ``(C, D, H, W)`` float32 in 0..1, and the share of it that each channel covers
    ``(C,)``. Channels and intensities are those of ``level_grids``.

    Args:
        study: the series, by role.
        layout: how the whole-study grader's grid is laid out.
        out: ``(C, D, H, W)`` float32, C-contiguous, to be filled and returned.
        pose: where the grid lies before the layout's offset; the engine's own ``study_pose`` where not given.

    Raises:
        StudyError: the study has no sagittal stack.
    """
    middle = pose or study_pose(study)
    place = layout.pose(middle.center_mm, middle.axes)
    grid = voxelize(_channels(study, layout), layout.spec, place, out=out)
    _normalise(grid.values, layout)
    return grid.values, np.array(grid.coverage)


def study_pose(study: Study) -> GridPose:
    """Return where the grid of a whole study lies, from its sagittal T1 and T2 stacks alone: no detector is asked.

    Frame: patient LPS, mm. The centre is the middle of the sagittal field of view (the mean over the stacks of their
    own middles); the axes are the spine frame: D superior to inferior, H anterior to posterior, W from the patient's
    right to left across the slices. Orthonormal and right-handed (D x H = W), whatever the order of series and slices.

    Raises:
        StudyError: the study has no sagittal stack.
    """
    ordered = in_fixed_order(study.sagittal_stacks)
    stacks = [stack for stacks in ordered for stack in stacks]
    if not stacks:
        raise StudyError(
            Reason.NO_SAGITTAL,
            "the grid of a whole study needs at least one sagittal stack",
        )
    return GridPose(field_of_view_center(stacks), spine_frame(stacks))


def _channels(study: Study, layout: GridLayout) -> list[PreparedChannel]:
    """Return the stacks of each channel's role, each with the window that scales it: its series', or, for
    ``grid_range``, one that clips no value of any channel."""
    roles = [study.with_role(role) for role in layout.channels]
    if layout.normalisation == "series_window":
        return [
            prepared([placed for series in role for placed in windowed(series.stacks)])
            for role in roles
        ]
    kept = [[stack for series in role for stack in series.stacks] for role in roles]
    window = full_window([stack for stacks in kept for stack in stacks])
    return [
        prepared([WindowedStack(stack, window) for stack in stacks]) for stacks in kept
    ]


def _normalise(grid: NDArray[np.float32], layout: GridLayout) -> None:
    """Finish the scaling of one sampled grid ``(C, D, H, W)``, in place."""
    if layout.normalisation == "grid_range":
        low, high = grid.min(), grid.max()
        if high > low:
            grid -= low
            grid /= high - low
