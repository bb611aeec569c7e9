"""How fast the voxelizer is against SciPy: one study (74 slices of 384 x 384) into 3 x 128^3 voxels, one thread.

Run ``python -m spine_bench.voxelizer``. Times are processor time of the thread, the best of several rounds in which the
contestants take turns, so that a busy machine slows all alike; trust the ratios, not the milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, map_coordinates

from spine_engine.study import Stack
from spine_engine.voxels import GridPose, GridSpec, WindowedStack, scatter, voxelize, windowed
from spine_engine.voxels.placement import resample_place

SPEC = GridSpec((128, 128, 128), (1.3, 1.0, 0.5))
ROUNDS = 9
OBLIQUE_DEG = (17.0, 6.0, 11.0)


def study() -> list[list[WindowedStack]]:
    """Return a sagittal T1, an axial T2 and a sagittal T2 series of noise: 15, 44 and 15 slices."""
    rng = np.random.default_rng(0)
    sagittal, axial = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]), np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
    channels = []
    for axes, slices in ((sagittal, 15), (axial, 44), (sagittal, 15)):
        corner = -(axes[1] + axes[2]) * 0.7 * 383 / 2 - axes[0] * 4.4 * (slices - 1) / 2
        origins = corner + np.arange(slices)[:, None] * 4.4 * axes[0]
        pixels = rng.integers(0, 4096, (slices, 384, 384)).astype(np.uint16)
        ones = np.ones(slices, np.float32)
        channels.append(list(windowed([Stack(pixels, ones, 0 * ones, origins, axes, (0.7, 0.7))])))
    return channels


def uneven(channels: list[list[WindowedStack]]) -> list[list[WindowedStack]]:
    """Return the study with each second slice 0.3 mm late, which keeps the quick kernel from running."""
    late = []
    for (placed,) in channels:
        stack = placed.stack
        origins = stack.origins_mm + stack.axes[0] * 0.3 * (np.arange(len(stack.pixels)) % 2)[:, None]
        moved = Stack(stack.pixels, stack.slope, stack.intercept, origins, stack.axes, stack.spacing_mm)
        late.append([WindowedStack(moved, placed.window)])
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


def scipy_affine(stacks: list[Stack], pose: GridPose, out: NDArray[np.float32]) -> None:
    """Resample with ``affine_transform``, which works the coordinates out itself."""
    for stack, grid in zip(stacks, out, strict=True):
        place = resample_place(stack, SPEC, pose) / np.array([4.4, 1.0, 1.0])
        affine_transform(stack.pixels, place[1:].T, place[0], SPEC.shape, grid, order=1)


def scipy_coordinates(stacks: list[Stack], pose: GridPose, out: NDArray[np.float32]) -> None:
    """Resample with ``map_coordinates`` at coordinates worked out with NumPy."""
    index = np.indices(SPEC.shape, np.float32).reshape(3, -1)
    for stack, grid in zip(stacks, out, strict=True):
        place = (resample_place(stack, SPEC, pose) / np.array([4.4, 1.0, 1.0])).astype(np.float32)
        coordinates = place[1:].T @ index + place[0][:, None]
        map_coordinates(stack.pixels, coordinates, grid.reshape(-1), order=1)


def best_ms(contestants: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return each contestant's best time of ``ROUNDS`` after one warm-up, ms of this thread's processor time."""
    best = dict.fromkeys(contestants, float("inf"))
    for turn in range(ROUNDS + 1):
        for name, run in contestants.items():
            begun = time.thread_time()
            run()
            if turn:
                best[name] = min(best[name], 1e3 * (time.thread_time() - begun))
    return best


def main() -> None:
    """Print the table."""
    channels = study()
    stacks, late = [placed.stack for (placed,) in channels], uneven(channels)
    oblique, aligned = rotated(OBLIQUE_DEG), rotated((0.0, 0.0, 0.0))
    out, copy = np.empty((3, *SPEC.shape), np.float32), np.ones((3, *SPEC.shape), np.float32)
    best = best_ms(
        {
            "voxelize, oblique": lambda: voxelize(channels, SPEC, oblique, out=out),
            "voxelize, aligned": lambda: voxelize(channels, SPEC, aligned, out=out),
            "voxelize, uneven slices": lambda: voxelize(late, SPEC, oblique, out=out),
            "scatter, mean": lambda: scatter(channels, SPEC, oblique, pool="mean", out=out),
            "scipy affine_transform": lambda: scipy_affine(stacks, oblique, out),
            "scipy map_coordinates": lambda: scipy_coordinates(stacks, oblique, out),
            "copy of the result": lambda: np.copyto(out, copy),
        }
    )
    for name, ms in best.items():
        print(f"{name:26} {ms:8.1f} ms {best['scipy map_coordinates'] / ms:7.1f} x map_coordinates")


if __name__ == "__main__":
    main()
