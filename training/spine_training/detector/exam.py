"""One exam of the detector's data: a volume and where its discs lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spine_engine.detection.spec import DetectorSpec
from spine_training.arrays import U8
from spine_training.detector.truth import Column


@dataclass(frozen=True, slots=True)
class Exam:
    """One volume `(row, column, lateral)` uint8 with its spacing and truth.

    `volume` may be the `.npy` file that holds it: a thousand exams fill more than the memory (see `pixels_of`).
    `window` is the volume's `intensity_window` where it is known already.
    """

    name: str
    source: str
    patient: str
    volume: U8 | Path
    spacing_mm: tuple[float, float, float]
    column: Column
    contrast: str = ""
    window: tuple[float, float] | None = None


def pixels_of(volume: U8 | Path) -> U8:
    """Return the voxels of a volume, read from its file where it is one."""
    return volume if isinstance(volume, np.ndarray) else np.asarray(np.load(volume))


def intensity_window(volume: U8, spec: DetectorSpec) -> tuple[float, float]:
    """Return the intensities that become 0 and 1: the percentiles of `spec`."""
    low, high = np.percentile(volume, [spec.low_percentile, spec.high_percentile])
    return float(low), float(max(high, low + 1))
