"""The one grid of a whole study: where the engine puts it, and strayed from there."""

from __future__ import annotations

import numpy as np

from spine_engine.pipeline.level_grids import study_grid, study_pose
from spine_engine.study import Study
from spine_engine.voxels import GridPose
from spine_training.arrays import F32, F64
from spine_training.grader.model import GraderConfig


def whole_box(study: Study) -> F64:
    """Return centre and axes ``(4, 3)`` of the grid that the engine cuts of a study."""
    pose = study_pose(study)
    return np.concatenate([pose.center_mm[None], pose.axes])


def cut_whole(study: Study, box: F64, config: GraderConfig) -> F32:
    """Return the grid ``(C, D, H, W)`` of a study at a box ``(4, 3)``, cut by the engine's own ``study_grid``."""
    return study_grid(
        study,
        config.layout,
        pose=GridPose(box[0], box[1:]),
    )[0]
