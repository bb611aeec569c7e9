"""How fast the voxelizer is against what people use: one study (74 slices of 384 x 384, 22 MB) into 3 x 128^3 voxels.

Everybody has one thread (ITK and PyTorch are told so); contestants take turns, so that a busy machine slows all alike.
Times are processor time of the process: trust the ratios, not the milliseconds. Contestants get what they need
beforehand (images, volumes as float32) and are timed from there to a filled ``(3, 128, 128, 128)`` array, but for
Open3D, whose point cloud is part of what the notebooks pay. A contestant that is not installed is named and left out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from time import process_time
from typing import Annotated, Any, Final

import numpy as np
import typer
from scipy.ndimage import affine_transform, map_coordinates
from scipy.spatial.transform import Rotation

from spine_bench.baselines.reading import points_of
from spine_bench.findings import Findings, Table
from spine_bench.harness.interfaces import F32, F64
from spine_bench.harness.turns import take_turns
from spine_engine.study import Stack
from spine_engine.voxels import (
    GridPose,
    GridSpec,
    WindowedStack,
    prepared,
    scatter,
    voxelize,
    windowed,
)

SPEC: Final = GridSpec((128, 128, 128), (1.3, 1.0, 0.5))
# Open3D's voxels are cubes: 1 mm over the same box, as the second notebook has them (fewer voxels than ours).
CUBE_MM: Final = 1.0
ROUNDS: Final = 15
SLOW_ROUNDS: Final = 5
OBLIQUE_DEG: Final = (17.0, 6.0, 11.0)
PITCH_MM: Final = 4.4
PIXEL_MM: Final = 0.7
MATRIX: Final = 384
SAGITTAL: Final = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))
AXIAL: Final = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))

ANY: Final = "voxelize, any pose"
ALIGNED: Final = "voxelize, aligned"
SCATTER_MEAN: Final = "scatter, mean"
OPEN3D_MEAN: Final = "Open3D VoxelGrid, mean"
FLOOR: Final = "memory floor"
Run = Callable[[], object]


@dataclass(frozen=True)
class Target:
    """``slower`` takes at least ``factor`` times as long as ``faster``."""

    faster: str
    slower: str
    factor: float


TARGETS: Final = (
    Target(ANY, OPEN3D_MEAN, 250),
    Target(SCATTER_MEAN, OPEN3D_MEAN, 250),
    Target(ANY, "scipy map_coordinates", 30),
    Target(ANY, "SimpleITK Resample", 7),
    Target(ANY, "TorchIO Resample", 7),
    Target(ALIGNED, FLOOR, 0.7),
)


def measure(
    rounds: Annotated[
        int, typer.Option(help="Rounds of the quick contestants.")
    ] = ROUNDS,
) -> Findings:
    """Compare how fast a study becomes voxels."""
    out = np.empty((3, *SPEC.shape), np.float32)
    channels = study()
    quick = quick_contestants(channels, out)
    slow, absent = slow_contestants(
        [placed.stack for (placed,) in channels],
        rotated(OBLIQUE_DEG),
        out,
    )
    times = take_turns(
        {**quick, **slow},
        rounds,
        process_time,
        spared=dict.fromkeys(slow, SLOW_ROUNDS),
    )
    middle = {name: 1e3 * median(seconds) for name, seconds in times.items()}
    reached = [
        _reached(target, middle) for target in TARGETS if target.slower in middle
    ]
    return Findings(
        tables=[
            Table(
                title="Voxelizers",
                columns=("one thread each", "median ms", "best ms", "x any pose"),
                rows=[
                    (
                        name,
                        f"{middle[name]:.2f}",
                        f"{1e3 * min(seconds):.2f}",
                        f"{middle[name] / middle[ANY]:.2f}",
                    )
                    for name, seconds in times.items()
                ],
            ),
            Table(
                title="Targets",
                columns=("ratio", "measured", "wanted", ""),
                rows=[
                    (
                        f"{one['slower']} / {one['faster']}",
                        f"{one['got']:.2f}",
                        f"{one['factor']:g}",
                        one["verdict"],
                    )
                    for one in reached
                ],
            ),
        ],
        notes=[f"{name}: not installed" for name in absent],
        record={
            "median_ms": middle,
            "ms": {
                name: [1e3 * value for value in seconds]
                for name, seconds in times.items()
            },
            "not_installed": absent,
            "targets": reached,
        },
    )


def _reached(target: Target, middle: dict[str, float]) -> dict[str, Any]:
    got = middle[target.slower] / middle[target.faster]
    reached = got >= target.factor
    return {
        **asdict(target),
        "got": got,
        "reached": reached,
        "verdict": "reached" if reached else "MISSED",
    }


# -- the study and its grid


def study() -> list[list[WindowedStack]]:
    """Return a sagittal T1, an axial T2 and a sagittal T2 series of noise: 15, 44 and 15 slices."""
    rng = np.random.default_rng(0)
    channels = []
    for rows, slices in ((SAGITTAL, 15), (AXIAL, 44), (SAGITTAL, 15)):
        axes = np.array(rows)
        corner = (
            -(axes[1] + axes[2]) * PIXEL_MM * (MATRIX - 1) / 2
            - axes[0] * PITCH_MM * (slices - 1) / 2
        )
        origins = corner + np.arange(slices)[:, None] * PITCH_MM * axes[0]
        pixels = rng.integers(0, 4096, (slices, MATRIX, MATRIX)).astype(np.uint16)
        ones = np.ones(slices, np.float32)
        channels.append(
            list(
                windowed(
                    [
                        Stack(
                            pixels,
                            ones,
                            0 * ones,
                            origins,
                            axes,
                            (PIXEL_MM, PIXEL_MM),
                        )
                    ]
                )
            )
        )
    return channels


def uneven(
    channels: list[list[WindowedStack]], sideways_mm: float = 0.0
) -> list[list[WindowedStack]]:
    """Return the study with each second slice 0.3 mm late, and maybe moved sideways: work for the slower kernels."""
    late = []
    for (placed,) in channels:
        stack = placed.stack
        moved = stack.axes[0] * 0.3 + stack.axes[1] * sideways_mm
        origins = stack.origins_mm + moved * (np.arange(len(stack.pixels)) % 2)[:, None]
        late.append([WindowedStack(replace(stack, origins_mm=origins), placed.window)])
    return late


def rotated(angles_deg: tuple[float, float, float]) -> GridPose:
    """Return a level grid's pose turned about the x, y and z axes."""
    turns = Rotation.from_euler(
        "XYZ",
        [angles_deg[0], -angles_deg[1], angles_deg[2]],
        degrees=True,
    )
    return GridPose(
        np.zeros(3),
        np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]]) @ turns.as_matrix(),
    )


def corner_of(pose: GridPose) -> F64:
    """Return the centre of the grid's first voxel, LPS mm."""
    half = (np.array(SPEC.shape) - 1) / 2 * np.array(SPEC.spacing_mm)
    return np.asarray(pose.center_mm - half @ pose.axes)


def index_map(stack: Stack, pose: GridPose) -> tuple[F64, F64]:
    """Return ``(matrix, offset)`` from a voxel's index to a pixel's ``(S, R, C)``."""
    offset, *columns = prepared([stack]).places(SPEC, pose)[0]
    return np.transpose(columns), offset


# -- the contestants


def quick_contestants(channels: list[list[WindowedStack]], out: F32) -> dict[str, Run]:
    """Return the engine's own kernels, and what reading the pixels and writing the grid take at least."""
    oblique = rotated(OBLIQUE_DEG)

    def floor() -> None:
        for (placed,) in channels:
            placed.stack.pixels.max()
        out.fill(1.0)

    return {
        ANY: partial(voxelize, channels, SPEC, oblique, out=out),
        ALIGNED: partial(voxelize, channels, SPEC, rotated((0.0, 0.0, 0.0)), out=out),
        "voxelize, uneven slices": partial(
            voxelize, uneven(channels), SPEC, oblique, out=out
        ),
        "voxelize, staggered slices": partial(
            voxelize, uneven(channels, 0.2), SPEC, oblique, out=out
        ),
        SCATTER_MEAN: partial(scatter, channels, SPEC, oblique, pool="mean", out=out),
        "scatter, max": partial(scatter, channels, SPEC, oblique, pool="max", out=out),
        FLOOR: floor,
    }


def slow_contestants(
    stacks: list[Stack], pose: GridPose, out: F32
) -> tuple[dict[str, Run], list[str]]:
    """Return what people use, and the names of what is not installed."""
    makers: dict[str, Callable[[list[Stack], GridPose, F32], Run]] = {
        "scipy map_coordinates": scipy_coordinates,
        "scipy affine_transform": scipy_affine,
        "SimpleITK Resample": simpleitk,
        "TorchIO Resample": torchio,
        "torch grid_sample": grid_sample,
        OPEN3D_MEAN: partial(open3d, "AVG"),
        "Open3D VoxelGrid, max": partial(open3d, "MAX"),
    }
    there = {}
    absent = []
    for name, make in makers.items():
        try:
            there[name] = make(stacks, pose, out)
        except ImportError:
            absent.append(name)
    return there, absent


def each(resample: Callable[[Any, F32], object], given: list[Any], out: F32) -> Run:
    """Return what fills every channel of the grid from what it was given for it."""

    def run() -> None:
        for one, grid in zip(given, out, strict=True):
            resample(one, grid)

    return run


def scipy_affine(stacks: list[Stack], pose: GridPose, out: F32) -> Run:
    """Resample with ``affine_transform``, which works the coordinates out itself."""
    return each(
        lambda stack, grid: affine_transform(
            stack.pixels, *index_map(stack, pose), SPEC.shape, grid, order=1
        ),
        stacks,
        out,
    )


def scipy_coordinates(stacks: list[Stack], pose: GridPose, out: F32) -> Run:
    """Resample with ``map_coordinates`` at coordinates worked out with NumPy."""

    def resample(stack: Stack, grid: F32) -> None:
        matrix, offset = (
            values.astype(np.float32) for values in index_map(stack, pose)
        )
        coordinates = (
            matrix @ np.indices(SPEC.shape, np.float32).reshape(3, -1) + offset[:, None]
        )
        map_coordinates(stack.pixels, coordinates, grid.reshape(-1), order=1)

    return each(resample, stacks, out)


def simpleitk(stacks: list[Stack], pose: GridPose, out: F32) -> Run:
    """Resample with SimpleITK's linear interpolator, images made beforehand."""
    sitk: Any = importlib.import_module("SimpleITK")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    images = []
    for stack in stacks:
        image = sitk.GetImageFromArray(stack.pixels)
        image.SetOrigin(stack.origins_mm[0].tolist())
        image.SetSpacing([stack.spacing_mm[1], stack.spacing_mm[0], PITCH_MM])
        image.SetDirection(stack.axes[::-1].T.ravel().tolist())
        images.append(image)
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(SPEC.shape[::-1])
    resampler.SetOutputOrigin(corner_of(pose).tolist())
    resampler.SetOutputSpacing(SPEC.spacing_mm[::-1])
    resampler.SetOutputDirection(pose.axes[::-1].T.ravel().tolist())
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    resampler.SetNumberOfThreads(1)
    return each(
        lambda image, grid: np.copyto(
            grid, sitk.GetArrayViewFromImage(resampler.Execute(image))
        ),
        images,
        out,
    )


def torchio(stacks: list[Stack], pose: GridPose, out: F32) -> Run:
    """Resample with TorchIO's ``Resample`` onto a reference image, images made beforehand."""
    sitk: Any = importlib.import_module("SimpleITK")
    torch: Any = importlib.import_module("torch")
    library: Any = importlib.import_module("torchio")
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    images = [
        library.ScalarImage(
            tensor=torch.from_numpy(
                stack.pixels.transpose(2, 1, 0).astype(np.float32)[None].copy()
            ),
            affine=_ras(
                np.array([PITCH_MM, *stack.spacing_mm])[:, None] * stack.axes,
                stack.origins_mm[0],
            ),
        )
        for stack in stacks
    ]
    target = _ras(np.array(SPEC.spacing_mm)[:, None] * pose.axes, corner_of(pose))
    resample = library.Resample(
        library.ScalarImage(
            tensor=torch.zeros(1, *SPEC.shape[::-1]),
            affine=target,
        )
    )
    return each(
        lambda image, grid: np.copyto(
            grid, resample(image).data[0].numpy().transpose(2, 1, 0)
        ),
        images,
        out,
    )


def _ras(steps_mm: F64, corner_mm: F64) -> F64:
    """Return the affine of an image whose axes are reversed, in RAS mm, from its steps along them and its corner."""
    lps = np.vstack(
        [
            np.column_stack([*steps_mm[::-1], corner_mm]),
            [
                0,
                0,
                0,
                1,
            ],
        ]
    )
    return np.asarray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)


def grid_sample(stacks: list[Stack], pose: GridPose, out: F32) -> Run:
    """Resample with PyTorch's ``affine_grid`` and ``grid_sample``, volumes as float32 beforehand."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    shape = np.array(SPEC.shape)
    given = []
    for stack in stacks:
        matrix, offset = index_map(stack, pose)
        size = np.array(stack.pixels.shape)
        scaled = matrix * shape / size[:, None]
        moved = (2 * (offset + matrix @ (shape - 1) / 2) + 1) / size - 1
        theta = np.concatenate([scaled[::-1, ::-1], moved[::-1, None]], 1)[None]
        volume = torch.from_numpy(stack.pixels.astype(np.float32))[None, None]
        given.append((volume, torch.tensor(theta, dtype=torch.float32)))

    def resample(one: tuple[Any, Any], grid: F32) -> None:
        volume, theta = one
        with torch.inference_mode():
            points = functional.affine_grid(
                theta,
                [1, 1, *SPEC.shape],
                align_corners=False,
            )
            torch.from_numpy(grid).copy_(
                functional.grid_sample(volume, points, align_corners=False)[0, 0]
            )

    return each(resample, given, out)


def open3d(
    pooling: str,
    stacks: list[Stack],
    pose: GridPose,
    out: F32,
) -> Run:
    """Make a point cloud of every pixel, a voxel grid of it within the box, and a dense array, as the notebooks do."""
    library: Any = importlib.import_module("open3d")
    half = np.asarray(SPEC.size_mm) / 2
    mode: Any = getattr(library.geometry.VoxelGrid.VoxelPoolingMode, pooling)

    def dense(stack: Stack, _: F32) -> None:
        points = points_of(stack) @ pose.axes.T
        inside = np.all(np.abs(points) < half, axis=1)
        cloud = library.geometry.PointCloud(
            library.utility.Vector3dVector(points[inside])
        )
        values = stack.pixels.reshape(-1)[inside] / 4095.0
        cloud.colors = library.utility.Vector3dVector(
            np.repeat(
                values[:, None],
                3,
                axis=1,
            )
        )
        voxels = library.geometry.VoxelGrid.create_from_point_cloud_within_bounds(
            cloud, CUBE_MM, -half, half, pooling_mode=mode
        ).get_voxels()
        dense = np.zeros(np.ceil(2 * half / CUBE_MM).astype(int) + 1, np.float32)
        index = np.array([voxel.grid_index for voxel in voxels])
        dense[tuple(index.T)] = np.array([voxel.color[0] for voxel in voxels])

    return each(dense, stacks, out)
