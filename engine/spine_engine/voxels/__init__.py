"""Posed stacks into voxel grids of float32, straight from stored values; numba kernels, NumPy references."""

from spine_engine.voxels.grid import GridPose, GridSpec
from spine_engine.voxels.ready import ReadyChannel, ready
from spine_engine.voxels.voxelize import VoxelGrid, scatter, voxelize
from spine_engine.voxels.window import IntensityWindow, WindowedStack, full_window, robust_window, windowed

__all__ = [
    "GridPose",
    "GridSpec",
    "IntensityWindow",
    "ReadyChannel",
    "VoxelGrid",
    "WindowedStack",
    "full_window",
    "ready",
    "robust_window",
    "scatter",
    "voxelize",
    "windowed",
]
