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

from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import Any, Final

import numpy as np
import torch
import torchio
from numpy.typing import NDArray

from spine_bench.baselines.grading import F32, TorchNetwork, finder, probabilities, sagittal, warm_up_study
from spine_bench.baselines.reading import PydicomReader
from spine_bench.baselines.serial import Clock, SerialSystem
from spine_bench.baselines.weights import torch_models
from spine_bench.harness.interfaces import Sample
from spine_engine.anatomy import LEVELS
from spine_engine.bundle import Bundle
from spine_engine.detection import DiscLevel
from spine_engine.errors import BackendError
from spine_engine.manifest import GraderEntry
from spine_engine.options import usable_cpus
from spine_engine.study import Stack, Study

VOXEL_MM: Final = 1.0
"""Edge of a voxel of Open3D's grid in that pipeline."""

F64 = NDArray[np.float64]


class NotebookSystem(SerialSystem):
    """See the module's description."""

    def __init__(self, bundle: Bundle, *, thickness: bool = True) -> None:
        super().__init__()
        self.name = "notebook" if thickness else "notebook-lean"
        self._bundle, self._thickness = bundle, thickness
        self._reader = PydicomReader()
        self._open3d = open3d()

    def load(self) -> None:
        """Build the networks, prove that they answer as the bundle's, and run them once."""
        torch.set_num_threads(usable_cpus())
        entries = self._bundle.manifest.models.by_role()
        modules = torch_models(self._bundle)
        self._networks = {role: TorchNetwork(module, entries[role]) for role, module in modules.items()}
        self._find = finder(self._bundle, self._networks, every_slice=True)
        self._resize = torchio.Resize(self._bundle.grader.grid.shape)
        self._rescale = torchio.RescaleIntensity((0, 1))
        self._find(sagittal(warm_up_study()))

    def answer(self, sample: Sample, clock: Clock) -> F64:
        """Read, detect, make the cloud, cut and grade each level."""
        entry = self._bundle.grader
        with clock.stage("read"):
            study = self._reader.read(sample)
        with clock.stage("detect"):
            levels = self._find(sagittal(study)).levels
        with clock.stage("point cloud"):
            cloud = self._cloud(study, entry)
        raw = np.zeros((len(LEVELS), *(size or 0 for size in entry.outputs[0].shape[1:])), np.float32)
        for place, level in enumerate(LEVELS):
            with clock.stage("voxel grids"):
                grid = self._grid(cloud, levels[level], entry)
            with clock.stage("resize and rescale"):
                image = self._scaled(grid)
            with clock.stage("grade"):
                raw[place] = self._graded(image)
        return probabilities(raw, entry, levels)

    def facts(self) -> dict[str, object]:
        """Return libraries, threads and precision."""
        names = ("torch", "pydicom", "open3d", "torchio")
        return {
            "bundle": self._bundle.facts,
            "runtime": "PyTorch eager",
            "precision": "f32",
            "threads": usable_cpus(),
            "processes": 1,
            "versions": {name: version(name) for name in names},
        }

    def _scaled(self, grid: F32) -> F32:
        """Return a grid ``(3, D, H, W)`` in the grader's shape, smallest to largest value as 0..1."""
        image: Any = torchio.ScalarImage(tensor=torch.from_numpy(grid))  # type: ignore[no-untyped-call]
        scaled: F32 = self._rescale(self._resize(image)).data.float().numpy()
        return scaled

    def _graded(self, image: F32) -> F32:
        """Return the grades ``(5, 3)`` of one level."""
        entry = self._bundle.grader
        answers = self._networks["grader"].run({entry.inputs[0].name: np.ascontiguousarray(image[None])})
        graded: F32 = answers[entry.outputs[0].name][0]
        return graded

    def _cloud(self, study: Study, entry: GraderEntry) -> Any:
        """Return the cloud of every pixel of the study, LPS mm, coloured by channel, 0..1 a series."""
        points: list[F64] = []
        colours: list[F64] = []
        for channel, role in enumerate(entry.channels):
            for series in study.with_role(role):
                copies = [self._copies(stack) for stack in series.stacks]
                points.extend(points_of(stack, count) for stack, count in zip(series.stacks, copies, strict=True))
                each = zip(series.stacks, copies, strict=True)
                values = np.concatenate([np.tile(values_of(stack).ravel(), count) for stack, count in each])
                colour = np.zeros((len(values), 3))
                colour[:, channel] = (values - values.min()) / max(float(np.ptp(values)), 1.0)
                colours.append(colour)
        cloud = self._open3d.geometry.PointCloud()
        cloud.points = self._open3d.utility.Vector3dVector(np.concatenate(points))
        cloud.colors = self._open3d.utility.Vector3dVector(np.concatenate(colours))
        return cloud

    def _copies(self, stack: Stack) -> int:
        """Return how many points a pixel becomes: one for each millimetre to the next slice."""
        return max(round(stack.slice_spacing_mm / VOXEL_MM), 1) if self._thickness else 1

    def _grid(self, cloud: Any, disc: DiscLevel, entry: GraderEntry) -> F32:
        """Return a level's voxels ``(3, D, H, W)``, 1 mm, dense, 0 where no point fell."""
        geometry = self._open3d.geometry
        size = np.array(entry.grid.spec.size_mm)
        center = disc.center_mm + np.asarray(entry.grid.center_offset_mm) @ disc.axes
        part = cloud.crop(geometry.OrientedBoundingBox(center, np.ascontiguousarray(disc.axes.T), size))
        part.translate(-center).rotate(np.ascontiguousarray(disc.axes), np.zeros(3))
        pooled = geometry.VoxelGrid.create_from_point_cloud_within_bounds(
            part, VOXEL_MM, -size / 2, size / 2, geometry.VoxelGrid.VoxelPoolingMode.MAX
        )
        shape = np.ceil(size / VOXEL_MM).astype(int)
        dense = np.zeros((3, *shape), np.float32)
        voxels = pooled.get_voxels()
        if voxels:
            d, h, w = np.minimum([voxel.grid_index for voxel in voxels], shape - 1).T
            dense[:, d, h, w] = np.array([voxel.color for voxel in voxels]).T
        return dense


def values_of(stack: Stack) -> NDArray[np.float32]:
    """Return the rescaled values of a stack ``(S, R, C)``."""
    return stack.pixels * stack.slope[:, None, None] + stack.intercept[:, None, None]


def points_of(stack: Stack, copies: int = 1) -> F64:
    """Return the pixel centres of a stack ``(copies * S * R * C, 3)``, LPS mm, each so often along its slice's normal,
    a voxel apart and centred on the slice."""
    rows, columns = (np.arange(size) for size in stack.pixels.shape[1:])
    down = rows[:, None] * stack.spacing_mm[0] * stack.axes[1]
    right = columns[:, None] * stack.spacing_mm[1] * stack.axes[2]
    centres: F64 = stack.origins_mm[:, None, None] + down[:, None] + right
    offsets = (np.arange(copies) - (copies - 1) / 2) * VOXEL_MM
    return np.concatenate([(centres + offset * stack.axes[0]).reshape(-1, 3) for offset in offsets])


def open3d() -> ModuleType:
    """Return Open3D.

    Raises:
        BackendError: it is not installed, or the system lacks a library of it.
    """
    try:
        return import_module("open3d")
    except (ImportError, OSError) as error:
        raise BackendError(
            f"Open3D cannot be loaded ({(str(error).splitlines() or [''])[0]}): "
            "pip install open3d; on Debian also apt-get install libusb-1.0-0 libgl1 libgomp1"
        ) from None
