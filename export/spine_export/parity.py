"""Which reduced precisions a trained model may run in: those that hardly move what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.backends import Precision, open_backend
from spine_engine.detection import Detection, DetectorSpec, detect
from spine_engine.errors import BackendError
from spine_engine.study import Stack

MEAN_TOLERANCE: Final = 0.005
"""Largest mean |probability difference| against float32."""

MARGIN: Final = 0.05
"""A grade whose probability leads by more than this may not change."""

DISC_TOLERANCE_MM: Final = 0.5
"""Farthest that a reduced precision may move a disc: a quarter of the detector's own error (docs/decisions/0004)."""

REDUCED: Final[tuple[Precision, ...]] = ("bf16", "f16")

LEVELS_AT_ONCE: Final = 5


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far a precision moves probabilities from float32's: mean, largest, grades changed beyond ``MARGIN``."""

    mean: float
    largest: float
    changed: int

    @property
    def passed(self) -> bool:
        """Whether the model may run in this precision."""
        return self.mean <= MEAN_TOLERANCE and self.changed == 0


def compare(first: NDArray[np.float32], second: NDArray[np.float32]) -> Parity:
    """Compare two sets of probabilities ``(N, conditions, 3)``; ``first`` is the reference."""
    difference = np.abs(first.astype(np.float64) - second)
    ranked = np.sort(first, axis=-1)
    sure = ranked[..., -1] - ranked[..., -2] > MARGIN
    changed = int(np.count_nonzero(sure & (first.argmax(-1) != second.argmax(-1))))
    return Parity(mean=float(difference.mean()), largest=float(difference.max()), changed=changed)


def reduced_precisions(model: bytes, grids: NDArray[np.floating]) -> dict[Precision, Parity]:
    """Run a grader on grids ``(N, C, D, H, W)`` in float32 and in each reduced precision that OpenVINO has here."""
    reference = _run(model, grids, "f32")
    found: dict[Precision, Parity] = {}
    for precision in REDUCED:
        try:
            found[precision] = compare(reference, _run(model, grids, precision))
        except BackendError:
            continue
    return found


@dataclass(frozen=True, kw_only=True)
class DetectorParity:
    """How far a precision moves the disc that moves most, in mm; infinite where a level is found in only one."""

    largest_mm: float

    @property
    def passed(self) -> bool:
        """Whether the model may run in this precision."""
        return self.largest_mm <= DISC_TOLERANCE_MM


def detector_precisions(
    model: bytes, spec: DetectorSpec, studies: Sequence[Sequence[Sequence[Stack]]]
) -> dict[Precision, DetectorParity]:
    """Detect the levels of studies in float32 and in each reduced precision that OpenVINO has here."""
    reference = _detections(model, "f32", spec, studies)
    found: dict[Precision, DetectorParity] = {}
    for precision in REDUCED:
        try:
            other = _detections(model, precision, spec, studies)
        except BackendError:
            continue
        moved = [_moved_mm(a, b) for a, b in zip(reference, other, strict=True)]
        found[precision] = DetectorParity(largest_mm=max(moved))
    return found


def _detections(
    model: bytes, precision: Precision, spec: DetectorSpec, studies: Sequence[Sequence[Sequence[Stack]]]
) -> list[Detection]:
    backend = open_backend(model, name="openvino", precision=precision)
    try:
        return [detect(series, backend, spec) for series in studies]
    finally:
        backend.close()


def _moved_mm(first: Detection, second: Detection) -> float:
    pairs = [(disc, second.levels[level]) for level, disc in first.levels.items()]
    if any(a.source != b.source for a, b in pairs):
        return float("inf")
    return max(float(np.linalg.norm(a.center_mm - b.center_mm)) for a, b in pairs)


def _run(model: bytes, grids: NDArray[np.floating], precision: Precision) -> NDArray[np.float32]:
    backend = open_backend(model, name="openvino", precision=precision)
    try:
        parts = [
            backend.run({backend.inputs[0].name: np.ascontiguousarray(grids[n : n + LEVELS_AT_ONCE], np.float32)})
            for n in range(0, len(grids), LEVELS_AT_ONCE)
        ]
    finally:
        backend.close()
    return np.concatenate([part[backend.outputs[0].name] for part in parts])
