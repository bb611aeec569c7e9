"""Layout of a model's grids: the series of each channel, the grid's size and place, the scale of its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spine_engine.study import Role
from spine_engine.voxels.grid import GridPose, GridSpec

Normalisation = Literal["series_window", "grid_range"]


@dataclass(frozen=True, kw_only=True)
class GridLayout:
    """The layout of a grid in the frame of a disc or of a whole study.

    Attributes:
        channels: role of the series in each channel, in order.
        spec: shape and voxel size along D (superior to inferior), H (anterior to posterior), W (patient's right to
            left).
        center_offset_mm: offset of the grid's centre from the centre of the disc, or of the study, along D, H, W.
        normalisation: ``series_window`` maps the 1st to 99th percentile of the whole series, air left out, to 0..1;
            ``grid_range`` maps the smallest to largest value of the grid, all channels together, to 0..1.
    """

    channels: tuple[Role, ...]
    spec: GridSpec
    center_offset_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    normalisation: Normalisation = "series_window"

    def pose(
        self, center_mm: NDArray[np.float64], axes: NDArray[np.float64]
    ) -> GridPose:
        """Return the grid's pose along a disc: centre ``(3,)`` in LPS mm, axes ``(3, 3)`` with rows D, H, W."""
        return GridPose(center_mm + np.asarray(self.center_offset_mm) @ axes, axes)
