"""``notebook``: the two-stage pipeline as people run it in a notebook, one study at a time.

pydicom reads every file; every pixel of the study becomes points of one Open3D cloud in patient millimetres, one for
each millimetre of its slice's thickness, their colour the channel of their series. The detector looks at the sagittal
slices one by one in eager PyTorch. Round each level the cloud is cropped, turned along the disc, and put into an Open3D
``VoxelGrid`` of 1 mm that pools by maximum; its voxels are written into a dense array, which TorchIO resizes to the
grader's shape and rescales to 0..1. The grader runs in eager PyTorch. Everything is float32 on all cores.

Kinder than the original: points and colours are made by whole arrays, batch norms are folded, the models are loaded
once, and a study that fails does not end the run. Its boxes lie along the disc, where the engine's own lie.

``notebook-lean`` leaves the thickness out: a quarter of the points, and grids with holes between the slices, which no
grader was trained on. It is what is left when the point cloud is made as small as it can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torchio

from spine_bench.baselines.grading import (
    TorchNetwork,
    finder,
    probabilities,
    warm_up_study,
)
from spine_bench.baselines.pool import PooledSystem
from spine_bench.baselines.reading import VOXEL_MM, points_of, read_study, values_of
from spine_bench.baselines.weights import torch_models
from spine_bench.harness.bare import run_calls
from spine_bench.harness.interfaces import F32, F64, Sample, StudyLibrary, told
from spine_engine.anatomy import LEVELS
from spine_engine.bundle import Bundle
from spine_engine.detection import DiscLevel
from spine_engine.errors import BackendError
from spine_engine.options import usable_cpus
from spine_engine.pipeline.clock import StageClock
from spine_engine.study import Stack, Study


def system(library: StudyLibrary, folder: Path | None) -> PooledSystem:
    """Make ``notebook``; see the module's description."""
    open3d()
    return PooledSystem("notebook", folder, partial(Notebook, thickness=True))


def lean(library: StudyLibrary, folder: Path | None) -> PooledSystem:
    """Make ``notebook-lean``."""
    open3d()
    return PooledSystem("notebook-lean", folder, partial(Notebook, thickness=False))


class Notebook:
    """The networks, proven to answer as the bundle's, and the way of a study through them."""

    def __init__(self, bundle: Bundle, thickness: bool = True) -> None:
        torch.set_num_threads(usable_cpus())
        self._thickness = thickness
        self._open3d = open3d()
        self._entry = bundle.grader
        entries = bundle.manifest.models.by_role()
        networks = {
            role: TorchNetwork(module, entries[role])
            for role, module in torch_models(bundle).items()
        }
        self._grader = networks["grader"]
        self._find = finder(bundle, networks, every_slice=True)
        self._resize = torchio.Resize(self._entry.grid.shape)
        self._rescale = torchio.RescaleIntensity((0, 1))
        self._find(warm_up_study().sagittal_stacks)
        self.facts: Mapping[str, object] = {
            "runtime": "PyTorch eager",
            "precision": "f32",
            "threads": usable_cpus(),
            "versions": {
                name: version(name)
                for name in ("torch", "pydicom", "open3d", "torchio")
            },
        }

    def answer(self, sample: Sample, clock: StageClock) -> F64:
        """Read, detect, make the cloud, cut and grade each level."""
        with clock.stage("read"):
            study = read_study(sample)
        with clock.stage("detect"):
            levels = self._find(study.sagittal_stacks).levels
        with clock.stage("point cloud"):
            cloud = self._cloud(study)
        graded = []
        for level in LEVELS:
            with clock.stage("voxel grids"):
                grid = self._grid(cloud, levels[level])
            with clock.stage("resize and rescale"):
                image = self._scaled(grid)
            with clock.stage("grade"):
                graded += run_calls(self._grader, [np.ascontiguousarray(image[None])])
        return probabilities(np.concatenate(graded), self._entry, levels)

    def _scaled(self, grid: F32) -> F32:
        """Return a grid ``(3, D, H, W)`` in the grader's shape, smallest to largest value as 0..1."""
        image: Any = torchio.ScalarImage(tensor=torch.from_numpy(grid))  # type: ignore[no-untyped-call]
        scaled: F32 = self._rescale(self._resize(image)).data.float().numpy()
        return scaled

    def _cloud(self, study: Study) -> Any:
        """Return the cloud of every pixel of the study, LPS mm, coloured by channel, 0..1 a series."""
        points: list[F64] = []
        colours: list[F64] = []
        for channel, role in enumerate(self._entry.channels):
            for series in study.with_role(role):
                copies = [self._copies(stack) for stack in series.stacks]
                points += map(points_of, series.stacks, copies)
                values = np.concatenate(
                    [
                        np.tile(values_of(stack).ravel(), count)
                        for stack, count in zip(series.stacks, copies, strict=True)
                    ]
                )
                colour = np.zeros((len(values), 3))
                colour[:, channel] = (values - values.min()) / max(
                    float(np.ptp(values)), 1.0
                )
                colours.append(colour)
        cloud = self._open3d.geometry.PointCloud()
        cloud.points = self._open3d.utility.Vector3dVector(np.concatenate(points))
        cloud.colors = self._open3d.utility.Vector3dVector(np.concatenate(colours))
        return cloud

    def _copies(self, stack: Stack) -> int:
        """Return how many points a pixel becomes: one for each millimetre to the next slice."""
        return (
            max(round(stack.slice_spacing_mm / VOXEL_MM), 1) if self._thickness else 1
        )

    def _grid(self, cloud: Any, disc: DiscLevel) -> F32:
        """Return a level's voxels ``(3, D, H, W)``, 1 mm, dense, 0 where no point fell."""
        geometry = self._open3d.geometry
        layout = self._entry.layout
        size = np.array(layout.spec.size_mm)
        center = layout.pose(disc.center_mm, disc.axes).center_mm
        part = cloud.crop(
            geometry.OrientedBoundingBox(
                center,
                np.ascontiguousarray(disc.axes.T),
                size,
            )
        )
        part.translate(-center).rotate(np.ascontiguousarray(disc.axes), np.zeros(3))
        pooled = geometry.VoxelGrid.create_from_point_cloud_within_bounds(
            part, VOXEL_MM, -size / 2, size / 2, geometry.VoxelGrid.VoxelPoolingMode.MAX
        )
        shape = np.ceil(size / VOXEL_MM).astype(int)
        dense = np.zeros((3, *shape), np.float32)
        if voxels := pooled.get_voxels():
            d, h, w = np.minimum([voxel.grid_index for voxel in voxels], shape - 1).T
            dense[:, d, h, w] = np.array([voxel.color for voxel in voxels]).T
        return dense


def open3d() -> ModuleType:
    """Return Open3D.

    Raises:
        BackendError: it is not installed, or the system lacks a library of it.
    """
    try:
        return import_module("open3d")
    except (ImportError, OSError) as error:
        raise BackendError(
            f"Open3D cannot be loaded ({told(error)}): "
            "pip install open3d; on Debian also apt-get install libusb-1.0-0 libgl1 libgomp1"
        ) from None
