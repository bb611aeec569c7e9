"""The one grid of a whole study: where the engine puts it, and strayed from there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spine_engine.grading import study_grid, study_pose
from spine_engine.study import Study
from spine_engine.voxels import GridPose
from spine_training.grader.grids import unexported_entry
from spine_training.grader.model import GraderConfig


def whole_box(study: Study) -> NDArray[np.float64]:
    """Return centre and axes ``(4, 3)`` of the grid that the engine cuts of a study."""
    pose = study_pose(study)
    return np.concatenate([pose.center_mm[None], pose.axes])


def cut_whole(study: Study, box: NDArray[np.float64], config: GraderConfig) -> NDArray[np.float32]:
    """Return the grid ``(C, D, H, W)`` of a study at a box ``(4, 3)``, cut by the engine's own ``study_grid``."""
    return study_grid(study, unexported_entry(config), pose=GridPose(box[0], box[1:]))[0]
