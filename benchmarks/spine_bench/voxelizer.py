"""How fast the voxelizer is against what people use: one study (74 slices of 384 x 384, 22 MB) into 3 x 128^3 voxels.

Run ``python -m spine_bench.voxelizer`` (``--json FILE`` keeps the figures). Everybody has one thread (ITK and PyTorch
are told so); contestants take turns, so that a busy machine slows all alike. Times are processor time of the process:
trust the ratios, not the milliseconds. Contestants get what they need beforehand (images, volumes as float32) and are
timed from there to a filled ``(3, 128, 128, 128)`` array, but for Open3D, whose point cloud is part of what the
notebooks pay. A contestant that is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, map_coordinates

from spine_engine.study import Stack
from spine_engine.voxels import GridPose, GridSpec, WindowedStack, ready, scatter, voxelize, windowed

SPEC = GridSpec((128, 128, 128), (1.3, 1.0, 0.5))
CUBE_MM = 1.0
"""Open3D's voxels are cubes: 1 mm over the same box, as the second notebook has them (fewer voxels than ours)."""
ROUNDS, SLOW_ROUNDS = 15, 5
OBLIQUE_DEG = (17.0, 6.0, 11.0)
PITCH_MM = 4.4

ANY, ALIGNED, SCATTER_MEAN, SCATTER_MAX = "voxelize, any pose", "voxelize, aligned", "scatter, mean", "scatter, max"
FLOOR = "memory floor"
Grid = NDArray[np.float32]
Run = Callable[[], object]


@dataclass(frozen=True)
class Target:
    """``slower`` takes at least ``factor`` times as long as ``faster``."""

    faster: str
    slower: str
    factor: float


TARGETS = (
    Target(ANY, "Open3D VoxelGrid, mean", 250),
    Target(SCATTER_MEAN, "Open3D VoxelGrid, mean", 250),
    Target(ANY, "scipy map_coordinates", 30),
    Target(ANY, "SimpleITK Resample", 7),
    Target(ANY, "TorchIO Resample", 7),
    Target(ALIGNED, FLOOR, 0.7),
)


def study() -> list[list[WindowedStack]]:
    """Return a sagittal T1, an axial T2 and a sagittal T2 series of noise: 15, 44 and 15 slices."""
    rng = np.random.default_rng(0)
    sagittal, axial = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]), np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
    channels = []
    for axes, slices in ((sagittal, 15), (axial, 44), (sagittal, 15)):
        corner = -(axes[1] + axes[2]) * 0.7 * 383 / 2 - axes[0] * PITCH_MM * (slices - 1) / 2
        origins = corner + np.arange(slices)[:, None] * PITCH_MM * axes[0]
        pixels = rng.integers(0, 4096, (slices, 384, 384)).astype(np.uint16)
        ones = np.ones(slices, np.float32)
        channels.append(list(windowed([Stack(pixels, ones, 0 * ones, origins, axes, (0.7, 0.7))])))
    return channels


def uneven(channels: list[list[WindowedStack]], sideways_mm: float = 0.0) -> list[list[WindowedStack]]:
    """Return the study with each second slice 0.3 mm late, and maybe moved sideways: work for the slower kernels."""
    late = []
    for (placed,) in channels:
        stack = placed.stack
        moved = stack.axes[0] * 0.3 + stack.axes[1] * sideways_mm
        origins = stack.origins_mm + moved * (np.arange(len(stack.pixels)) % 2)[:, None]
        stack = Stack(stack.pixels, stack.slope, stack.intercept, origins, stack.axes, stack.spacing_mm)
        late.append([WindowedStack(stack, placed.window)])
    return late


def rotated(angles_deg: tuple[float, float, float]) -> GridPose:
    """Return a level grid's pose turned about the x, y and z axes."""
    axes = np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])
    for axis, angle in enumerate(np.radians(angles_deg)):
        turn = np.eye(3)
        i, j = (k for k in range(3) if k != axis)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        axes = axes @ turn
    return GridPose(np.zeros(3), axes)


def scipy_affine(stacks: list[Stack], pose: GridPose, out: Grid) -> None:
    """Resample with ``affine_transform``, which works the coordinates out itself."""
    for stack, grid in zip(stacks, out, strict=True):
        place = ready([stack]).places(SPEC, pose)[0]
        affine_transform(stack.pixels, place[1:].T, place[0], SPEC.shape, grid, order=1)


def scipy_coordinates(stacks: list[Stack], pose: GridPose, out: Grid) -> None:
    """Resample with ``map_coordinates`` at coordinates worked out with NumPy."""
    index = np.indices(SPEC.shape, np.float32).reshape(3, -1)
    for stack, grid in zip(stacks, out, strict=True):
        place = ready([stack]).places(SPEC, pose)[0].astype(np.float32)
        coordinates = place[1:].T @ index + place[0][:, None]
        map_coordinates(stack.pixels, coordinates, grid.reshape(-1), order=1)


def simpleitk(stacks: list[Stack], pose: GridPose, out: Grid) -> Run:
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
    corner = pose.center_mm - (np.array(SPEC.shape) - 1) / 2 * np.array(SPEC.spacing_mm) @ pose.axes
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(SPEC.shape[::-1])
    resampler.SetOutputOrigin(corner.tolist())
    resampler.SetOutputSpacing(SPEC.spacing_mm[::-1])
    resampler.SetOutputDirection(pose.axes[::-1].T.ravel().tolist())
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    resampler.SetNumberOfThreads(1)

    def run() -> None:
        for image, grid in zip(images, out, strict=True):
            grid[:] = sitk.GetArrayViewFromImage(resampler.Execute(image))

    return run


def torchio(stacks: list[Stack], pose: GridPose, out: Grid) -> Run:
    """Resample with TorchIO's ``Resample`` onto a reference image, images made beforehand."""
    sitk: Any = importlib.import_module("SimpleITK")
    torch: Any = importlib.import_module("torch")
    library: Any = importlib.import_module("torchio")
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    to_ras = np.diag([-1.0, -1.0, 1.0])
    images = []
    for stack in stacks:
        affine = np.eye(4)
        columns = [stack.axes[2] * stack.spacing_mm[1], stack.axes[1] * stack.spacing_mm[0], stack.axes[0] * PITCH_MM]
        affine[:3, :3], affine[:3, 3] = to_ras @ np.stack(columns, 1), to_ras @ stack.origins_mm[0]
        tensor = torch.from_numpy(stack.pixels.transpose(2, 1, 0).astype(np.float32)[None].copy())
        images.append(library.ScalarImage(tensor=tensor, affine=affine))
    target = np.eye(4)
    corner = pose.center_mm - (np.array(SPEC.shape) - 1) / 2 * np.array(SPEC.spacing_mm) @ pose.axes
    target[:3, :3], target[:3, 3] = to_ras @ (pose.axes * np.array(SPEC.spacing_mm)[:, None])[::-1].T, to_ras @ corner
    reference = library.ScalarImage(tensor=torch.zeros(1, *SPEC.shape[::-1]), affine=target)
    resample = library.Resample(reference)

    def run() -> None:
        for image, grid in zip(images, out, strict=True):
            grid[:] = resample(image).data[0].numpy().transpose(2, 1, 0)

    return run


def grid_sample(stacks: list[Stack], pose: GridPose, out: Grid) -> Run:
    """Resample with PyTorch's ``affine_grid`` and ``grid_sample``, volumes as float32 beforehand."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    volumes = [torch.from_numpy(stack.pixels.astype(np.float32))[None, None] for stack in stacks]
    thetas = []
    for stack in stacks:
        place = ready([stack]).places(SPEC, pose)[0]
        size, shape = np.array(stack.pixels.shape), np.array(SPEC.shape)
        matrix = place[1:].T * shape / size[:, None]
        offset = (2 * (place[0] + (shape - 1) / 2 @ place[1:]) + 1) / size - 1
        thetas.append(
            torch.tensor(np.concatenate([matrix[::-1, ::-1], offset[::-1, None]], 1)[None], dtype=torch.float32)
        )

    def run() -> None:
        with torch.inference_mode():
            for volume, theta, grid in zip(volumes, thetas, out, strict=True):
                points = functional.affine_grid(theta, [1, 1, *SPEC.shape], align_corners=False)
                torch.from_numpy(grid).copy_(functional.grid_sample(volume, points, align_corners=False)[0, 0])

    return run


def open3d(stacks: list[Stack], pose: GridPose, pooling: str) -> Run:
    """Make a point cloud of every pixel, a voxel grid of it within the box, and a dense array, as the notebooks do."""
    library: Any = importlib.import_module("open3d")
    half = np.asarray(SPEC.size_mm) / 2
    mode: Any = getattr(library.geometry.VoxelGrid.VoxelPoolingMode, pooling)

    def run() -> None:
        for stack in stacks:
            rows, columns = stack.pixels.shape[1:]
            r, c = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
            plane = (
                r[..., None] * stack.axes[1] * stack.spacing_mm[0] + c[..., None] * stack.axes[2] * stack.spacing_mm[1]
            )
            points = (stack.origins_mm[:, None, None] + plane).reshape(-1, 3) @ pose.axes.T
            inside = np.all(np.abs(points) < half, axis=1)
            cloud = library.geometry.PointCloud(library.utility.Vector3dVector(points[inside]))
            values = stack.pixels.reshape(-1)[inside] / 4095.0
            cloud.colors = library.utility.Vector3dVector(np.repeat(values[:, None], 3, axis=1))
            voxels = library.geometry.VoxelGrid.create_from_point_cloud_within_bounds(
                cloud, CUBE_MM, -half, half, pooling_mode=mode
            ).get_voxels()
            dense = np.zeros(np.ceil(2 * half / CUBE_MM).astype(int) + 1, np.float32)
            index = np.array([voxel.grid_index for voxel in voxels])
            dense[tuple(index.T)] = np.array([voxel.color[0] for voxel in voxels])

    return run


def contestants(channels: list[list[WindowedStack]], out: Grid) -> tuple[dict[str, Run], dict[str, Run], list[str]]:
    """Return who takes part: the quick ones, the slow ones, and the names of those that are not installed."""
    stacks = [placed.stack for (placed,) in channels]
    oblique, aligned = rotated(OBLIQUE_DEG), rotated((0.0, 0.0, 0.0))
    late, staggered = uneven(channels), uneven(channels, 0.2)

    def floor() -> None:
        for stack in stacks:
            stack.pixels.max()
        out.fill(1.0)

    quick: dict[str, Run] = {
        ANY: lambda: voxelize(channels, SPEC, oblique, out=out),
        ALIGNED: lambda: voxelize(channels, SPEC, aligned, out=out),
        "voxelize, uneven slices": lambda: voxelize(late, SPEC, oblique, out=out),
        "voxelize, staggered slices": lambda: voxelize(staggered, SPEC, oblique, out=out),
        SCATTER_MEAN: lambda: scatter(channels, SPEC, oblique, pool="mean", out=out),
        SCATTER_MAX: lambda: scatter(channels, SPEC, oblique, pool="max", out=out),
        FLOOR: floor,
    }
    slow: dict[str, Run] = {
        "scipy map_coordinates": lambda: scipy_coordinates(stacks, oblique, out),
        "scipy affine_transform": lambda: scipy_affine(stacks, oblique, out),
    }
    wanted: tuple[tuple[str, tuple[str, ...], Callable[[], Run]], ...] = (
        ("SimpleITK Resample", ("SimpleITK",), lambda: simpleitk(stacks, oblique, out)),
        ("TorchIO Resample", ("torchio", "torch"), lambda: torchio(stacks, oblique, out)),
        ("torch grid_sample", ("torch",), lambda: grid_sample(stacks, oblique, out)),
        ("Open3D VoxelGrid, mean", ("open3d",), lambda: open3d(stacks, oblique, "AVG")),
        ("Open3D VoxelGrid, max", ("open3d",), lambda: open3d(stacks, oblique, "MAX")),
    )
    absent = []
    for name, needs, make in wanted:
        if all(importlib.util.find_spec(package) for package in needs):
            slow[name] = make()
        else:
            absent.append(name)
    return quick, slow, absent


def measure(quick: dict[str, Run], slow: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Return each contestant's times, ms of processor time, after one warm-up; the slow ones sit out later rounds."""
    times: dict[str, list[float]] = {name: [] for name in (*quick, *slow)}
    for turn in range(rounds + 1):
        playing = {**quick, **slow} if turn <= min(SLOW_ROUNDS, rounds) else quick
        for name, run in playing.items():
            begun = time.process_time()
            run()
            if turn:
                times[name].append(1e3 * (time.process_time() - begun))
    return times


def main() -> None:
    """Print the table, and what became of the targets."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="rounds of the quick contestants (default %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    out = np.empty((3, *SPEC.shape), np.float32)
    quick, slow, absent = contestants(study(), out)
    times = measure(quick, slow, options.rounds)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{'one thread each':28} {'median ms':>10} {'best ms':>10} {'x any pose':>11}")
    for name, values in times.items():
        print(f"{name:28} {median[name]:10.2f} {min(values):10.2f} {median[name] / median[ANY]:11.2f}")
    for name in absent:
        print(f"{name:28} not installed")
    reached = []
    for target in TARGETS:
        if target.slower in median:
            got = median[target.slower] / median[target.faster]
            reached.append({**asdict(target), "got": got, "reached": got >= target.factor})
            verdict = "reached" if got >= target.factor else "MISSED"
            print(f"{target.slower} / {target.faster}: {got:.2f}, wanted {target.factor:g}: {verdict}")
    if options.json:
        figures = {"median_ms": median, "ms": times, "not_installed": absent, "targets": reached}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
