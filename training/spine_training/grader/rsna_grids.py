"""Studies in RSNA's layout as a source of grids.

The levels lie where the detector that will serve the grader finds them, so that training sees the boxes of a real run;
readers' points overrule it where the two name different discs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from spine_engine.anatomy import LEVELS, Level
from spine_engine.backends import open_backend
from spine_engine.backends.base import Model
from spine_engine.bundle import Bundle
from spine_engine.detection import DetectorSpec, DiscLevel, detect
from spine_engine.detection.slices import spine_frame
from spine_engine.errors import StudyError, UsageError
from spine_engine.study import Source
from spine_training.arrays import F32, F64, I64
from spine_training.folds import fold_of_study
from spine_training.grader.grids import BoxJitter, Cut, box_sets, cut_levels
from spine_training.grader.model import GraderConfig
from spine_training.grader.whole import cut_whole, whole_box
from spine_training.metric import MISSING
from spine_training.places import DiscPlace, level_places
from spine_training.rsna import RsnaSet

SAME_DISC_MM: Final = 15.0
"""A detected disc farther than this from where the readers pointed is another one: neighbours are 33-41 mm apart, and
places from points are good to a few mm."""

_NOT_FOUND = np.full((4, 3), np.nan)


@dataclass(frozen=True)
class RsnaSource:
    """Labelled studies of one folder.

    Attributes:
        root: the folder, see ``RsnaSet``.
        names: the studies.
        detector: a bundle's folder, an exported detector (.onnx) or a checkpoint (.pt); None for the packaged bundle.
    """

    root: Path
    names: Sequence[str]
    detector: Path | None = None

    @property
    def kind(self) -> str:
        """The studies' kind, in words."""
        return f"labelled studies of the folder {self.root.resolve().name!r}, which is in RSNA 2024's layout"

    @property
    def facts(self) -> dict[str, Any]:
        """The folder, and the detector's content."""
        return {
            "kind": "rsna",
            "root": str(self.root.resolve()),
            "detector": _digest(self.detector),
        }

    def split(self, fold: int) -> tuple[RsnaSource, RsnaSource]:
        """Return the source without the studies of ``fold``, and the source of them alone."""
        held_out = [name for name in self.names if fold_of_study(name) == fold]
        kept = [name for name in self.names if fold_of_study(name) != fold]
        return RsnaSource(self.root, kept, self.detector), RsnaSource(
            self.root, held_out, self.detector
        )

    def cut(
        self,
        name: str,
        config: GraderConfig,
        jitter: BoxJitter,
    ) -> Cut | None:
        """Read and cut one study; None where it has no label, no usable sagittal series, or no level."""
        rsna = _opened(self.root)
        grades = rsna.labels(name).grades
        try:
            study = rsna.read(name)
        except StudyError:
            return None
        sagittal = study.sagittal_stacks
        if not any(sagittal) or (grades == MISSING).all():
            return None
        rng = np.random.default_rng([fold_of_study(name, 2**31), 0xB0C5])
        if config.task == "whole_study":
            sets = box_sets([whole_box(study)], jitter, rng)
            grids = np.stack([cut_whole(study, box, config)[None] for (box,) in sets])
            return _cut(grids, grades.T.reshape(1, -1))
        backend, spec = open_detector(self.detector)
        detected = detect(sagittal, backend, spec).levels
        pointed = level_places(
            rsna.points_mm(name),
            spine_frame([s for stacks in sagittal for s in stacks]),
        )
        true = [level_box(level, detected, pointed) for level in LEVELS]
        lost = np.array([np.isnan(box).any() for box in true])
        if lost.all():
            return None
        grids = np.stack(
            [cut_levels(study, boxes, config) for boxes in box_sets(true, jitter, rng)]
        )
        return _cut(
            grids,
            np.where(lost[:, None], MISSING, grades),
        )


def level_box(
    level: Level,
    discs: Mapping[Level, DiscLevel],
    pointed: Mapping[Level, DiscPlace],
) -> F64:
    """Return a level's box ``(4, 3)``: the detected one, the readers' where they disagree, NaN where there is none."""
    disc, place = discs[level], pointed.get(level)
    detected = disc.source != Source.PRIOR
    if place is not None and not (
        detected
        and (
            not place.known
            or np.linalg.norm(disc.center_mm - place.center_mm) <= SAME_DISC_MM
        )
    ):
        return np.concatenate([place.center_mm[None], place.axes])
    return np.concatenate([disc.center_mm[None], disc.axes]) if detected else _NOT_FOUND


@lru_cache(maxsize=1)
def open_detector(path: Path | None) -> tuple[Model, DetectorSpec]:
    """Open a detector in float32 on one thread; see ``RsnaSource.detector``.

    Raises:
        UsageError: the path is none of the three.
    """
    if path is None or path.is_dir():
        bundle = Bundle.open(path)
        return bundle.open_model(
            bundle.detector, precision="f32"
        ), bundle.detector.spec or DetectorSpec()
    if path.suffix == ".onnx" and path.is_file():
        return open_backend(path.read_bytes(), precision="f32"), DetectorSpec()
    if path.suffix == ".pt" and path.is_file():
        from spine_training.detector.evaluate import (
            TorchBackend,
        )  # only a checkpoint needs PyTorch

        return TorchBackend(path), DetectorSpec()
    raise UsageError(
        f"got the detector {path}; want a bundle's folder, an .onnx file or a .pt checkpoint"
    )


@lru_cache(maxsize=2)
def _opened(root: Path) -> RsnaSet:
    return RsnaSet.open(root)


def _digest(detector: Path | None) -> str:
    if detector is None or detector.is_dir():
        bundle = Bundle.open(detector)
        return bundle.detector.sha256
    return (
        hashlib.sha256(detector.read_bytes()).hexdigest()
        if detector.is_file()
        else "none"
    )


def _cut(grids: F32, grades: I64) -> Cut:
    return Cut(
        grids,
        grades,
        np.full(grades.shape, np.nan),
    )
