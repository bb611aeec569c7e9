"""Exams to train on and to be judged by, with folds by patient.

`load_data(folders)` takes folders of two kinds. One holds `lumbar-mri` (1 mm volumes with vertebral-body labels) and
`spider-slices` (semantic slices), as described in the data folder's README; the other is in RSNA's layout. Axes of
every volume: (superior -> inferior, anterior -> posterior, patient right -> left).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from spine_engine.errors import UsageError
from spine_training.detector.exam import Exam
from spine_training.detector.rsna_exams import SOURCE as RSNA
from spine_training.detector.rsna_exams import load_rsna
from spine_training.detector.truth import column_from_bodies, column_from_spider
from spine_training.folds import FOLDS, fold_of_study
from spine_training.rsna import TRAIN_TABLE

#: In-plane spacing of the SPIDER slices (data README) and the distance of two slices: every second slice of a 0.9 mm
#: SPACE volume (van der Graaf et al., Sci Data 11 (2024) 264, table 2).
SPIDER_PIXEL_MM, SPIDER_SLICE_MM = 0.94, 0.9
#: Exams of one patient in two contrasts (label volumes overlap by Dice 0.70-0.95), kept in one fold.
SAME_PATIENT = {
    "VB1-03": "VB1-02",
    "VB1-07": "VB1-06",
    "VB1-08": "VB1-06",
}
#: Contrast of each exam; VB1's by eye and by its publication, the rest by their publications.
CONTRAST = {
    "VB1-02": "T1",
    "VB1-03": "STIR",
    "VB1-06": "T1",
    "VB1-07": "STIR",
    "VB1-08": "T1",
    "VB1-16": "T2",
}
CONTRAST_OF_SOURCE = {
    "VB2": "T2",
    "VB3": "water-fat",
    "SPIDER": "T2-SPACE",
}


def load_data(folders: Sequence[Path], cache: Path) -> list[Exam]:
    """Return the exams of every folder, whatever its kind; `cache` keeps those of RSNA sets once read.

    Raises:
        UsageError: a folder is of neither kind.
    """
    exams: list[Exam] = []
    for folder in folders:
        if (folder / TRAIN_TABLE).is_file():
            rsna = load_rsna(folder, cache)
            Console(stderr=True).print(f"{folder}: {rsna}", highlight=False)
            exams += rsna.exams
        else:
            exams += load_exams(folder)
    return exams


def load_exams(folder: Path) -> list[Exam]:
    """Return every public exam below `folder` once, sorted by name.

    Raises:
        UsageError: `folder` has neither `lumbar-mri` nor `spider-slices`.
    """
    exams = _load_volumes(folder / "lumbar-mri") + _load_spider(
        folder / "spider-slices"
    )
    if not exams:
        raise UsageError(
            f"no exams in {str(folder)!r}; give a folder with lumbar-mri/*_image.nii.gz, spider-slices/*_image.png or "
            "RSNA's train.csv and train_images/"
        )
    return exams


def _voxels(path: Path) -> NDArray[Any]:
    """Return the stored values of a NIfTI image, axes as in the file."""
    image: Any = nib.load(path)
    return np.asarray(image.dataobj)


def _load_volumes(folder: Path) -> list[Exam]:
    """Return the exams of `lumbar-mri`; VB3-53 repeats VB3-51 to the voxel and is left out."""
    exams: list[Exam] = []
    seen: set[str] = set()
    for path in sorted(folder.glob("*_image.nii.gz")):
        name = path.name.removesuffix("_image.nii.gz")
        volume = np.ascontiguousarray(_voxels(path), dtype=np.uint8)
        digest = hashlib.sha256(volume.tobytes()).hexdigest()
        if digest in seen:
            continue
        seen.add(digest)
        labels = _voxels(folder / f"{name}_levels.nii.gz").astype(np.uint8)
        source, patient = name[:3], SAME_PATIENT.get(name, name)
        contrast = CONTRAST.get(name, CONTRAST_OF_SOURCE.get(source, ""))
        exams.append(
            Exam(
                name,
                source,
                patient,
                volume,
                (1.0, 1.0, 1.0),
                column_from_bodies(labels),
                contrast,
            )
        )
    return exams


def _load_spider(folder: Path) -> list[Exam]:
    slices: dict[str, list[int]] = defaultdict(list)
    for path in sorted(folder.glob("*_image.png")):
        patient, index = path.name.removesuffix("_image.png").split("_")
        slices[patient].append(int(index))
    exams: list[Exam] = []
    for patient, indices in sorted(slices.items()):
        indices.sort()
        images = [
            np.asarray(Image.open(folder / f"{patient}_{i}_image.png")) for i in indices
        ]
        masks = [
            np.asarray(Image.open(folder / f"{patient}_{i}_mask.png")) for i in indices
        ]
        step = float(np.median(np.diff(indices))) if len(indices) > 1 else 1.0
        spacing = (SPIDER_PIXEL_MM, SPIDER_PIXEL_MM, SPIDER_SLICE_MM * step)
        column = column_from_spider(np.stack(masks, 2), spacing)
        volume = np.ascontiguousarray(np.stack(images, 2))
        name, contrast = f"SPIDER-{patient}", CONTRAST_OF_SOURCE["SPIDER"]
        exams.append(Exam(name, "SPIDER", name, volume, spacing, column, contrast))
    return exams


def fold_of(exams: Sequence[Exam]) -> dict[str, int]:
    """Return the fold number of every exam.

    The few public exams: patients of each source in sorted order, dealt out one by one, so that folds are even. RSNA's:
    by `fold_of_study`, as every other training on them.
    """
    fold: dict[str, int] = {}
    for source in sorted({exam.source for exam in exams}):
        patients = sorted({exam.patient for exam in exams if exam.source == source})
        number = {
            patient: fold_of_study(patient) if source == RSNA else i % FOLDS
            for i, patient in enumerate(patients)
        }
        fold |= {
            exam.name: number[exam.patient] for exam in exams if exam.source == source
        }
    return fold
