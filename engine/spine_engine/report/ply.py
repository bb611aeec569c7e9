"""Writes clouds, level boxes and voxel grids as PLY files by Open3D. Positions are patient LPS, millimetres.

Open3D comes with the extra ``viz``; the rest of the engine does not need it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import Level
from spine_engine.errors import OutputError, UsageError
from spine_engine.report.cloud import Cloud
from spine_engine.report.scene import level_boxes
from spine_engine.results import LevelResult
from spine_engine.voxels import GridPose, GridSpec

BOX_EDGES: Final = np.array(
    [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
        [0, 2],
        [1, 3],
        [4, 6],
        [5, 7],
        [0, 4],
        [1, 5],
        [2, 6],
        [3, 7],
    ]
)
"""The twelve edges of a box by its corners, in the order of ``scene.BOX_CORNERS``."""

BOX_COLOUR: Final = (255, 224, 138)
"""Colour of the levels' boxes: a pale yellow that no series has."""

_DARKEST: Final = 0.1
_LIFT: Final = 0.75
"""Brightness of a value of 0, and the power that lifts the values above it: most tissue lies below a third of the
window and must not vanish on a dark ground."""


def open3d() -> ModuleType:
    """Import Open3D and return it.

    Raises:
        UsageError: Open3D is not installed, or the system lacks a library that it needs.
    """
    try:
        return import_module("open3d")
    except (ImportError, OSError) as error:
        first_line = str(error).partition("\n")[0]
        raise UsageError(
            f"Open3D cannot be loaded ({first_line}); it comes with the extra 'viz' (in a clone: pip install '.[viz]')"
            "; on Debian also apt-get install libusb-1.0-0 libgl1 libgomp1"
        ) from None


def point_colours(cloud: Cloud) -> NDArray[np.uint8]:
    """Return the colour ``(N, 3)`` of each point of a cloud: the colour of its series, as bright as its value."""
    brightness = _DARKEST + (1 - _DARKEST) * cloud.values[:, None] ** _LIFT
    colours = (
        np.array(cloud.colours, np.float32).reshape(-1, 3)[cloud.series] * brightness
    )
    return np.round(colours).astype(np.uint8)


def write_cloud(path: Path, cloud: Cloud) -> None:
    """Write every point: float32 position, 8-bit colour, ``intensity`` (float32, 0..1) and ``series`` (uint8).

    Raises:
        OutputError: the file cannot be written.
    """
    _write_points(
        path,
        cloud.points_mm,
        point_colours(cloud),
        intensity=cloud.values,
        series=cloud.series,
    )


def write_levels(path: Path, levels: Mapping[Level, LevelResult]) -> None:
    """Write the boxes of the placed levels as line sets of twelve edges each, from the top.

    Raises:
        OutputError: the file cannot be written.
    """
    boxes = list(level_boxes(levels).values())
    _check(open3d().io.write_line_set(str(path), box_lines(boxes)), path)


def box_lines(boxes: Sequence[NDArray[np.float64]]) -> Any:
    """Return the edges of boxes, eight corners each, as Open3D's line set."""
    o3d = open3d()
    edges = np.concatenate(
        [np.empty((0, 2), int), *(BOX_EDGES + 8 * n for n in range(len(boxes)))]
    )
    points = np.array(boxes, np.float64).reshape(-1, 3)
    lines = o3d.geometry.LineSet(
        o3d.utility.Vector3dVector(points), o3d.utility.Vector2iVector(edges)
    )
    lines.paint_uniform_color(np.array(BOX_COLOUR) / 255)
    return lines


def write_grid(
    path: Path, grid: NDArray[np.float32], spec: GridSpec, pose: GridPose
) -> None:
    """Write the voxels of a grid ``(C, D, H, W)`` that are above 0 in any channel, as points at their centres.

    Colour and ``intensity`` (float32, 0..1) are the mean over the channels, grey.

    Raises:
        OutputError: the file cannot be written.
    """
    occupied = np.argwhere((grid > 0).any(axis=0))
    local = (occupied - (np.array(spec.shape) - 1) / 2) * np.array(spec.spacing_mm)
    centers = (pose.center_mm + local @ pose.axes).astype(np.float32)
    mean = grid.mean(axis=0)[tuple(occupied.T)].astype(np.float32)
    grey = np.round(mean.clip(0, 1) * 255).astype(np.uint8)
    _write_points(path, centers, np.repeat(grey[:, None], 3, axis=1), intensity=mean)


def _write_points(
    path: Path,
    points: NDArray[np.float32],
    colours: NDArray[np.uint8],
    **more: NDArray[Any],
) -> None:
    """Write a binary PLY of points with further attributes, each ``(N,)``."""
    o3d = open3d()
    cloud = o3d.t.geometry.PointCloud(o3d.core.Tensor(np.ascontiguousarray(points)))
    cloud.point.colors = o3d.core.Tensor(np.ascontiguousarray(colours))
    for name, values in more.items():
        cloud.point[name] = o3d.core.Tensor(np.ascontiguousarray(values[:, None]))
    _check(o3d.t.io.write_point_cloud(str(path), cloud), path)


def _check(written: bool, path: Path) -> None:
    if not written:
        raise OutputError(f"cannot write {path}; free space or name another folder")
