"""A study read with pydicom, file after file: what people write before they know of a faster reader."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray

from spine_bench.harness.interfaces import Sample
from spine_engine.dicom import RoleOverrides
from spine_engine.study import Role, Series, Stack, Study

SAGITTAL: Final = 0.7
"""|x| of a sagittal slice's normal is above the cosine of 45 degrees."""

DECIMALS: Final = 4
"""Slices whose orientation and spacing agree to so many decimals lie in one stack (``study.AXES_TOLERANCE``)."""


class PydicomReader:
    """Reads studies; the tables of series descriptions in and beside each input folder are read once."""

    def __init__(self) -> None:
        self._tables: dict[Path, RoleOverrides] = {}

    def read(self, sample: Sample) -> Study:
        """Read one study; see ``read_study``."""
        if sample.root not in self._tables:
            self._tables[sample.root] = RoleOverrides.find(sample.root)
        return read_study(sample, self._tables[sample.root])


def read_study(sample: Sample, overrides: RoleOverrides) -> Study:
    """Read every file of a sample with ``pydicom.dcmread`` and its pixels with ``pixel_array``.

    The role of a series is the one that the table of series descriptions gives it, else the one that its
    SeriesDescription and orientation say. Files without pixels or a place are left out.
    """
    by_series: dict[str, list[Any]] = defaultdict(list)
    folders: dict[str, str] = {}
    for file in sample.unit.files:
        dataset = pydicom.dcmread(sample.root / file.path)
        if "PixelData" in dataset and "ImagePositionPatient" in dataset and "ImageOrientationPatient" in dataset:
            uid = str(dataset.SeriesInstanceUID)
            by_series[uid].append(dataset)
            folders[uid] = str(PurePosixPath(file.path).parent)
    study_id = sample.unit.study_id or sample.unit.key
    series = []
    for uid, datasets in sorted(by_series.items()):
        folder = PurePosixPath(folders[uid])
        names = [(study, name) for study in (study_id, folder.parent.name) for name in (uid, folder.name)]
        said = (overrides.roles[name] for name in names if name in overrides.roles)
        role = next(said, None) or role_of(datasets[0])
        stacks = stacks_of(datasets) if role is not None else ()
        series.append(Series(folders[uid], role, "the table or the description", stacks, len(datasets)))
    return Study(study_id, tuple(_one_of_each(series)))


def role_of(dataset: Any) -> Role | None:
    """Return what a series is by its SeriesDescription and orientation; None where they do not say."""
    words = str(dataset.get("SeriesDescription", "")).lower()
    row, column = np.reshape(np.asarray(dataset.ImageOrientationPatient, np.float64), (2, 3))
    if abs(np.cross(row, column)[0]) > SAGITTAL:
        if "t1" in words:
            return Role.SAGITTAL_T1
        return Role.SAGITTAL_T2 if "t2" in words or "stir" in words else None
    return Role.AXIAL_T2 if "t2" in words else None


def stacks_of(datasets: Sequence[Any]) -> tuple[Stack, ...]:
    """Sort the slices of a series into stacks of one orientation, spacing and matrix, along their normals."""
    alike: dict[tuple[float, ...], list[Any]] = defaultdict(list)
    for dataset in datasets:
        place = (*dataset.ImageOrientationPatient, *dataset.PixelSpacing)
        key = (dataset.Rows, dataset.Columns, *(round(float(value), DECIMALS) for value in place))
        alike[key].append(dataset)
    return tuple(_stack(alike[key]) for key in sorted(alike))


def _stack(datasets: Sequence[Any]) -> Stack:
    right, down = np.reshape(np.asarray(datasets[0].ImageOrientationPatient, np.float64), (2, 3))
    right = right / np.linalg.norm(right)
    down = down - (down @ right) * right
    down = down / np.linalg.norm(down)
    axes = np.stack([np.cross(right, down), down, right])
    placed = {float(np.asarray(d.ImagePositionPatient, np.float64) @ axes[0]): d for d in datasets}
    ordered = [placed[position] for position in sorted(placed)]
    return Stack(
        pixels=_stored(ordered),
        slope=np.array([float(dataset.get("RescaleSlope", 1)) for dataset in ordered], np.float32),
        intercept=np.array([float(dataset.get("RescaleIntercept", 0)) for dataset in ordered], np.float32),
        origins_mm=np.array([dataset.ImagePositionPatient for dataset in ordered], np.float64),
        axes=axes,
        spacing_mm=(float(ordered[0].PixelSpacing[0]), float(ordered[0].PixelSpacing[1])),
    )


def _stored(datasets: Sequence[Any]) -> NDArray[np.uint16] | NDArray[np.int16]:
    pixels: NDArray[Any] = np.stack([dataset.pixel_array for dataset in datasets])
    if datasets[0].PixelRepresentation:
        return pixels.astype(np.int16, copy=False)
    return pixels.astype(np.uint16, copy=False)


def _one_of_each(series: Sequence[Series]) -> list[Series]:
    """Keep the sagittal T1 and T2 series with the most slices, and every axial one; the others lose their role."""
    kept = []
    for one in series:
        rivals = [other for other in series if other.role is one.role]
        if one.role in (None, Role.AXIAL_T2) or one is max(rivals, key=lambda other: other.slices):
            kept.append(one)
    return kept
