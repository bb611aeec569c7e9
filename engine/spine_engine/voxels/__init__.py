"""Resamples posed stacks into float32 voxel grids, straight from stored values; numba kernels, NumPy references."""

from spine_engine.voxels.grid import GridPose, GridSpec
from spine_engine.voxels.layout import GridLayout
from spine_engine.voxels.prepared import PreparedChannel, prepared
from spine_engine.voxels.recipe import PRESETS, GridRecipe, recipe_named
from spine_engine.voxels.voxelize import VoxelGrid, scatter, voxelize
from spine_engine.voxels.window import (
    IntensityWindow,
    WindowedStack,
    full_window,
    robust_window,
    windowed,
)

__all__ = [
    "PRESETS",
    "GridLayout",
    "GridPose",
    "GridRecipe",
    "GridSpec",
    "IntensityWindow",
    "PreparedChannel",
    "VoxelGrid",
    "WindowedStack",
    "full_window",
    "prepared",
    "recipe_named",
    "robust_window",
    "scatter",
    "voxelize",
    "windowed",
]
