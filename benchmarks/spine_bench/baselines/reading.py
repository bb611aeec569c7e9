"""A study read with pydicom, file after file: what people write before they know of a faster reader."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import pydicom

from spine_bench.harness.interfaces import F32, F64, Sample, stated_roles
from spine_engine import Series, Stack, Study
from spine_engine.study import Role

# What an image has; files without are left out.
NEEDED: Final = ("PixelData", "ImagePositionPatient", "ImageOrientationPatient")

SAGITTAL: Final = (
    0.7  # |x| of a sagittal slice's normal is above the cosine of 45 degrees
)

# Slices whose orientation and spacing agree to so many decimals lie in one stack (study.AXES_TOLERANCE).
DECIMALS: Final = 4

VOXEL_MM: Final = 1.0  # edge of a voxel of Open3D's grid in the notebooks


def read_study(sample: Sample) -> Study:
    """Read every file of a sample with ``pydicom.dcmread`` and its pixels with ``pixel_array``.

    The role of a series is the one that the table of series descriptions gives it, else the one that its
    SeriesDescription and orientation say. Files without pixels or a place are left out.
    """
    by_series: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for file in sample.unit.files:
        dataset = pydicom.dcmread(sample.root / file.path)
        if all(keyword in dataset for keyword in NEEDED):
            by_series[
                dataset.SeriesInstanceUID, str(PurePosixPath(file.path).parent)
            ].append(dataset)
    study_id = sample.unit.study_id or sample.unit.key
    series = []
    for (uid, folder), datasets in sorted(by_series.items()):
        role = _stated_role(
            sample.root, study_id, uid, PurePosixPath(folder)
        ) or role_of(datasets[0])
        series.append(
            Series(
                folder,
                role,
                "the table or the description",
                stacks_of(datasets) if role is not None else (),
                len(datasets),
            )
        )
    return Study(study_id, tuple(one for one in series if _plays_its_role(one, series)))


def _stated_role(
    root: Path,
    study_id: str,
    uid: str,
    folder: PurePosixPath,
) -> Role | None:
    """Return the role that the table of series descriptions gives a series; it names either by UID or by folder."""
    names = product((study_id, folder.parent.name), (uid, folder.name))
    roles = stated_roles(root).roles
    return next((roles[name] for name in names if name in roles), None)


def role_of(dataset: Any) -> Role | None:
    """Return what a series is by its SeriesDescription and orientation; None where they do not say."""
    words = str(dataset.get("SeriesDescription", "")).lower()
    if abs(_axes(dataset)[0, 0]) <= SAGITTAL:
        return Role.AXIAL_T2 if "t2" in words else None
    if "t1" in words:
        return Role.SAGITTAL_T1
    return Role.SAGITTAL_T2 if "t2" in words or "stir" in words else None


def _plays_its_role(one: Series, series: Sequence[Series]) -> bool:
    """Whether a series is an axial one, or the sagittal T1 or T2 with the most slices."""
    return one.role in (None, Role.AXIAL_T2) or one is max(
        [other for other in series if other.role is one.role],
        key=lambda other: other.slices,
    )


def stacks_of(datasets: Sequence[Any]) -> tuple[Stack, ...]:
    """Sort the slices of a series into stacks of one orientation, spacing and matrix, along their normals."""
    alike: dict[tuple[float, ...], list[Any]] = defaultdict(list)
    for dataset in datasets:
        place = (*dataset.ImageOrientationPatient, *dataset.PixelSpacing)
        alike[
            dataset.Rows,
            dataset.Columns,
            *(round(float(value), DECIMALS) for value in place),
        ].append(dataset)
    return tuple(_stack(alike[key]) for key in sorted(alike))


def _axes(dataset: Any) -> F64:
    """Return the slice's normal and the directions down its columns and along its rows, in rows ``(3, 3)``."""
    right, down = np.reshape(
        np.asarray(dataset.ImageOrientationPatient, np.float64), (2, 3)
    )
    right = right / np.linalg.norm(right)
    down = down - (down @ right) * right
    down = down / np.linalg.norm(down)
    return np.stack([np.cross(right, down), down, right])


def _stack(datasets: Sequence[Any]) -> Stack:
    axes = _axes(datasets[0])
    placed = {
        float(np.float64(dataset.ImagePositionPatient) @ axes[0]): dataset
        for dataset in datasets
    }
    ordered = [placed[position] for position in sorted(placed)]
    kind: Any = np.int16 if ordered[0].PixelRepresentation else np.uint16
    down_mm, right_mm = ordered[0].PixelSpacing
    return Stack(
        pixels=np.stack(
            [dataset.pixel_array for dataset in ordered],
            dtype=kind,
            casting="unsafe",
        ),
        slope=np.array(
            [dataset.get("RescaleSlope", 1) for dataset in ordered], np.float32
        ),
        intercept=np.array(
            [dataset.get("RescaleIntercept", 0) for dataset in ordered], np.float32
        ),
        origins_mm=np.array(
            [dataset.ImagePositionPatient for dataset in ordered], np.float64
        ),
        axes=axes,
        spacing_mm=(float(down_mm), float(right_mm)),
    )


def values_of(stack: Stack) -> F32:
    """Return the rescaled values of a stack ``(S, R, C)``."""
    return stack.pixels * stack.slope[:, None, None] + stack.intercept[:, None, None]


def points_of(stack: Stack, copies: int = 1) -> F64:
    """Return the pixel centres of a stack ``(copies * S * R * C, 3)``, LPS mm.

    Each is there so often along its slice's normal, a voxel apart and centred on the slice.
    """
    rows, columns = (np.arange(size) for size in stack.pixels.shape[1:])
    centres: F64 = (
        stack.origins_mm[:, None, None]
        + (rows[:, None] * stack.spacing_mm[0] * stack.axes[1])[:, None]
        + (columns[:, None] * stack.spacing_mm[1] * stack.axes[2])
    )
    offsets = (np.arange(copies) - (copies - 1) / 2) * VOXEL_MM
    return np.concatenate(
        [(centres + offset * stack.axes[0]).reshape(-1, 3) for offset in offsets]
    )
