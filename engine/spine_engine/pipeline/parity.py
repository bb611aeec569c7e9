"""Whether two ways of running a model say the same: one comparator for bundles, exports and benchmarks.

A way is a loaded ``Backend``: another precision, another runtime, another device, or the PyTorch model that was
exported. The first of two is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import LEVELS
from spine_engine.backends.base import Model
from spine_engine.bundle import Bundle
from spine_engine.bundle.manifest import DetectorEntry, GraderEntry, ModelEntry
from spine_engine.detection.finder import level_finder
from spine_engine.detection.levels import Detection
from spine_engine.errors import OutputError, UsageError
from spine_engine.options import RunOptions
from spine_engine.phantom.samples import PHANTOMS, Sample, phantom_samples
from spine_engine.pipeline.centers import detected_centers
from spine_engine.pipeline.level_grids import level_grids, study_grid
from spine_engine.pipeline.models import PipelineModels
from spine_engine.pipeline.recipe_inputs import recipe_level_grids, recipe_study_grid
from spine_engine.study import Source

F32 = NDArray[np.float32]

MEAN_TOLERANCE: Final = 0.005
"""Largest mean |probability difference| against float32."""

MARGIN: Final = 0.05
"""A grade whose probability leads by more than this may not change."""

DISC_TOLERANCE_MM: Final = 0.5
"""Farthest that a precision may move a disc: a quarter of the detector's own error (docs/decisions/0004)."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far probabilities moved: mean, largest, and sure grades that changed (``MARGIN``)."""

    mean: float
    largest: float
    changed: int

    @property
    def passed(self) -> bool:
        """Whether a model may run this way."""
        return self.mean <= MEAN_TOLERANCE and self.changed == 0

    @property
    def figures(self) -> dict[str, float]:
        """As a manifest keeps them."""
        return {name: _written(value) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"probabilities moved by {self.mean:.2g} on average, {self.largest:.2g} at most, {self.changed} grades"


@dataclass(frozen=True, kw_only=True)
class LevelParity:
    """How far the disc that moved most moved, in mm, infinite where a level was found in only one of the two ways; and
    how many levels the reference found."""

    largest_mm: float
    found: int

    @property
    def passed(self) -> bool:
        """Whether a detector may run this way; one that finds nothing has shown nothing."""
        return self.largest_mm <= DISC_TOLERANCE_MM and self.found > 0

    @property
    def figures(self) -> dict[str, float]:
        """As a manifest keeps them."""
        return {"largest_mm": _written(self.largest_mm), "found": self.found}

    def __str__(self) -> str:
        return (
            f"{self.found} levels moved by {self.largest_mm:.2g} mm at most"
            if self.found
            else "found no level"
        )


def grader_inputs(entry: GraderEntry, samples: Sequence[Sample]) -> F32:
    """Return the grids ``(N, C, D, H, W)`` that a grader sees of samples: five each, or one of the whole study.

    A recipe's vertebral centres are inferred from the samples' discs.

    Raises:
        StudyError: a recipe finds no point of a sample.
    """
    recipe = entry.grid_recipe
    if recipe.of_levels:
        centers = [
            detected_centers(Detection(sample.levels, (), ()), named=False)
            for sample in samples
        ]
        pairs = zip(samples, centers, strict=True)
        return np.concatenate(
            [
                recipe_level_grids(one.study, six, recipe)[0]
                for one, six in pairs
                if six is not None
            ]
        )
    if not recipe.is_native:
        return np.stack(
            [recipe_study_grid(sample.study, recipe)[0] for sample in samples]
        )
    if entry.grades_levels:
        return np.concatenate(
            [
                level_grids(sample.study, sample.levels, entry.layout)[0]
                for sample in samples
            ]
        )
    return np.stack([study_grid(sample.study, entry.layout)[0] for sample in samples])


Answers = F32 | list[Detection]
"""A grader's probabilities ``(N, heads, 3)``, or the levels of each sample."""


def ask(
    entry: ModelEntry, models: Sequence[Model], samples: Sequence[Sample]
) -> Answers:
    """Return what models say of samples: one grader, or all that a detector needs, with the entry of the first."""
    if isinstance(entry, GraderEntry):
        return answers(models[0], entry, grader_inputs(entry, samples))
    if not isinstance(entry, DetectorEntry):
        raise TypeError(f"{entry.file} gives no answer by itself")
    find = level_finder(entry.decoder, entry.spec, models)
    return [find(sample.study.sagittal_stacks) for sample in samples]


def answers(runner: Model, entry: GraderEntry, grids: F32) -> F32:
    """Return a grader's probabilities ``(N, heads, 3)`` for grids, as many a call as a run of the engine makes."""
    step = len(LEVELS) if entry.grades_levels else 1
    name, gives = entry.inputs[0].name, entry.outputs[0].name
    starts = range(0, len(grids), step)
    return np.concatenate(
        [
            runner.run({name: np.ascontiguousarray(grids[n : n + step])})[gives]
            for n in starts
        ]
    )


def compare(first: Answers, second: Answers) -> Parity | LevelParity:
    """Compare what two ways say of the same samples; the first is the reference.

    Raises:
        ValueError: one is a grader's and the other a detector's, or they are of different shapes.
    """
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return compare_probabilities(first, second)
    if isinstance(first, list) and isinstance(second, list):
        return compare_levels(first, second)
    raise ValueError("a grader's answers cannot be compared with a detector's")


def keep_worst(
    path: Path,
    entry: ModelEntry,
    samples: Sequence[Sample],
    first: Answers,
    second: Answers,
) -> None:
    """Write the case on which two ways differ most as ``.npz``: of a grader its grid (``image``) and both answers, of a
    detector the sample's number and both ways' centres ``(5, 3)``, LPS mm.

    Raises:
        OutputError: it cannot be written.
    """
    if isinstance(first, list) and isinstance(second, list):
        place = int(
            np.argmax([_moved_mm(a, b) for a, b in zip(first, second, strict=True)])
        )
        centers = [
            np.stack([side[place].levels[level].center_mm for level in LEVELS])
            for side in (first, second)
        ]
        kept = {"sample": np.array(place), "reference": centers[0], "other": centers[1]}
    else:
        given, said = np.asarray(first), np.asarray(second)
        place = int(np.abs(given - said).max(axis=(1, 2)).argmax())
        grids = grader_inputs(cast(GraderEntry, entry), samples)
        kept = {"image": grids[place], "reference": given[place], "other": said[place]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **kept)  # type: ignore[arg-type]
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None


def compare_probabilities(
    reference: NDArray[np.floating], other: NDArray[np.floating]
) -> Parity:
    """Compare two sets of probabilities ``(N, heads, 3)``.

    Raises:
        ValueError: they are empty, or not of the same shape.
    """
    if reference.shape != other.shape or not reference.size:
        raise ValueError(
            f"want two tables of the same shape and not empty, got {reference.shape} and {other.shape}"
        )
    difference = np.abs(reference.astype(np.float64) - other)
    ranked = np.sort(reference, axis=-1)
    sure = ranked[..., -1] - ranked[..., -2] > MARGIN
    changed = int(np.count_nonzero(sure & (reference.argmax(-1) != other.argmax(-1))))
    return Parity(
        mean=float(difference.mean()), largest=float(difference.max()), changed=changed
    )


def compare_levels(
    reference: Sequence[Detection], other: Sequence[Detection]
) -> LevelParity:
    """Compare the levels that two ways found in the same studies, at least one."""
    moved = [_moved_mm(*pair) for pair in zip(reference, other, strict=True)]
    found = sum(
        disc.source == Source.DETECTOR
        for first in reference
        for disc in first.levels.values()
    )
    return LevelParity(largest_mm=max(moved), found=found)


def bundle_parity(
    bundle: Bundle,
    reference: RunOptions,
    other: RunOptions,
    count: int = PHANTOMS,
    worst: Path | None = None,
) -> dict[str, Parity | LevelParity]:
    """Compare two ways of running a bundle on ``count`` phantoms, model by model; ``worst`` is a folder for ``.npz``.

    Raises:
        BackendError: one of the ways is not to be had.
        OutputError: ``worst`` cannot be written.
        UsageError: the two ways are the same.
    """
    first, second = PipelineModels(bundle, reference), PipelineModels(bundle, other)
    try:
        samples = phantom_samples(count)
        one, two = _said_by(first, samples), _said_by(second, samples)
    finally:
        first.close()
        second.close()
    if first.devices == second.devices:
        ran = next(iter(first.devices.values()))
        raise UsageError(
            f"both ways are {ran.backend} {ran.device} in {ran.precision}: name another --reference"
        )
    found = {}
    for role, (entry, said) in one.items():
        found[role] = compare(said, two[role][1])
        if worst is not None:
            keep_worst(worst / f"{role}.npz", entry, samples, said, two[role][1])
    return found


def _said_by(
    opened: PipelineModels, samples: Sequence[Sample]
) -> dict[str, tuple[ModelEntry, Answers]]:
    """Return by role what the models of a bundle say of samples."""
    said: dict[str, tuple[ModelEntry, Answers]] = {}
    if opened.detector is not None:
        said["detector"] = (
            opened.detector.entry,
            [opened.find_levels(sample.study.sagittal_stacks) for sample in samples],
        )
    for role, model in {
        "grader": opened.grader,
        "whole_study_grader": opened.whole_study_grader(),
    }.items():
        if model is not None:
            said[role] = (model.entry, ask(model.entry, [model], samples))
    return said


def _written(value: float) -> float:
    """Return a figure with three digits; a number that JSON knows stands for infinite and undefined ones."""
    return float(f"{min(value, 1e6):.3g}") if value == value else 1e6


def _moved_mm(first: Detection, second: Detection) -> float:
    pairs = [(disc, second.levels[level]) for level, disc in first.levels.items()]
    if any(a.source != b.source for a, b in pairs):
        return float("inf")
    return max(float(np.linalg.norm(a.center_mm - b.center_mm)) for a, b in pairs)
