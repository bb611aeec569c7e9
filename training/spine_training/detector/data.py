"""Exams of the public training data, with folds by patient.

`load_exams(folder)` reads `lumbar-mri` (1 mm volumes with vertebral-body labels) and `spider-slices` (semantic slices)
as described in the data folder's README. Axes of every volume: (superior -> inferior, anterior -> posterior, patient
right -> left).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spine_training.detector.truth import Column, column_from_bodies, column_from_spider

#: In-plane spacing of the SPIDER slices (data README) and the distance of two slices: every second slice of a 0.9 mm
#: SPACE volume (van der Graaf et al., Sci Data 11 (2024) 264, table 2).
SPIDER_PIXEL_MM, SPIDER_SLICE_MM = 0.94, 0.9
#: Exams of one patient in two contrasts (label volumes overlap by Dice 0.70-0.95), kept in one fold.
SAME_PATIENT = {"VB1-03": "VB1-02", "VB1-07": "VB1-06", "VB1-08": "VB1-06"}
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Exam:
    """One volume `(row, column, lateral)` uint8 with its spacing and truth."""

    name: str
    source: str
    patient: str
    volume: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    column: Column


def load_exams(folder: Path) -> list[Exam]:
    """Every exam below `folder`, sorted by name.

    Raises:
        FileNotFoundError: `folder` has neither `lumbar-mri` nor `spider-slices`.
    """
    exams = _load_volumes(folder / "lumbar-mri") + _load_spider(folder / "spider-slices")
    if not exams:
        raise FileNotFoundError(f"{folder}: expected lumbar-mri/*_image.nii.gz or spider-slices/*_image.png")
    return exams


def _voxels(path: Path) -> NDArray[Any]:
    """Stored values of a NIfTI image, axes as in the file."""
    image: Any = nib.load(path)
    return np.asarray(image.dataobj)


def _load_volumes(folder: Path) -> list[Exam]:
    exams: list[Exam] = []
    seen: dict[str, str] = {}
    for path in sorted(folder.glob("*_image.nii.gz")):
        name = path.name.removesuffix("_image.nii.gz")
        volume = np.ascontiguousarray(_voxels(path), dtype=np.uint8)
        labels = _voxels(folder / f"{name}_levels.nii.gz").astype(np.uint8)
        digest = hashlib.sha256(volume.tobytes()).hexdigest()
        patient = seen.setdefault(digest, SAME_PATIENT.get(name, name))  # VB3-51 and VB3-53 are one exam twice
        exams.append(Exam(name, name[:3], patient, volume, (1.0, 1.0, 1.0), column_from_bodies(labels)))
    return exams


def _load_spider(folder: Path) -> list[Exam]:
    slices: dict[str, list[int]] = defaultdict(list)
    for path in sorted(folder.glob("*_image.png")):
        patient, index = path.name.removesuffix("_image.png").split("_")
        slices[patient].append(int(index))
    exams: list[Exam] = []
    for patient, indices in sorted(slices.items()):
        indices.sort()
        images = [np.asarray(Image.open(folder / f"{patient}_{i}_image.png")) for i in indices]
        masks = [np.asarray(Image.open(folder / f"{patient}_{i}_mask.png")) for i in indices]
        step = float(np.median(np.diff(indices))) if len(indices) > 1 else 1.0
        spacing = (SPIDER_PIXEL_MM, SPIDER_PIXEL_MM, SPIDER_SLICE_MM * step)
        column = column_from_spider(np.stack(masks, 2), spacing)
        volume = np.ascontiguousarray(np.stack(images, 2))
        exams.append(Exam(f"SPIDER-{patient}", "SPIDER", f"SPIDER-{patient}", volume, spacing, column))
    return exams


def fold_of(exams: list[Exam]) -> dict[str, int]:
    """Fold number of every exam: patients of each source in sorted order, dealt out one by one."""
    fold: dict[str, int] = {}
    for source in sorted({exam.source for exam in exams}):
        patients = sorted({exam.patient for exam in exams if exam.source == source})
        number = {patient: i % FOLDS for i, patient in enumerate(patients)}
        fold |= {exam.name: number[exam.patient] for exam in exams if exam.source == source}
    return fold
