"""Whether two ways of running a model say the same: one comparator for bundles, exports and benchmarks.

A way is a loaded ``Backend``: another precision, another runtime, another device, or the PyTorch model that was
exported. The first of two is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import LEVELS, Level
from spine_engine.bundle import Bundle
from spine_engine.detection.levels import BOX_MM, Detection, DiscLevel
from spine_engine.errors import OutputError, UsageError
from spine_engine.grading import level_grids, study_grid
from spine_engine.manifest import GraderEntry
from spine_engine.opened import OpenModels
from spine_engine.options import RunOptions
from spine_engine.phantom import draw_spine, render
from spine_engine.study import Role, Stack, Study

F32 = NDArray[np.float32]

MEAN_TOLERANCE: Final = 0.005
"""Largest mean |probability difference| against float32."""

MARGIN: Final = 0.05
"""A grade whose probability leads by more than this may not change."""

DISC_TOLERANCE_MM: Final = 0.5
"""Farthest that a precision may move a disc: a quarter of the detector's own error (docs/decisions/0004)."""

PHANTOMS: Final = 8
"""Forty levels; more phantoms moved the mean difference of bf16 by less than 0.0001."""

UNSEEN_SEED: Final = 20_000_000
"""Phantoms from here on are never trained on."""


class Runner(Protocol):
    """The one method of a ``Backend`` that is compared."""

    def run(self, inputs: Mapping[str, F32]) -> Mapping[str, F32]:
        """Run the model once."""
        ...


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
        return {name: float(f"{value:.3g}") for name, value in asdict(self).items()}

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
        """As a manifest keeps them: a number that JSON knows stands for infinity."""
        return {"largest_mm": float(f"{min(self.largest_mm, 1e6):.3g}"), "found": self.found}

    def __str__(self) -> str:
        return f"{self.found} levels moved by {self.largest_mm:.2g} mm at most" if self.found else "found no level"


@dataclass(frozen=True, eq=False)
class Sample:
    """A study to compare on, and where its levels are: ``levels`` are what graders look at."""

    study: Study
    levels: Mapping[Level, DiscLevel]

    @property
    def sagittal(self) -> list[tuple[Stack, ...]]:
        """The stacks of each sagittal series, as detectors take them."""
        return [s.stacks for role in (Role.SAGITTAL_T1, Role.SAGITTAL_T2) for s in self.study.with_role(role)]


def phantom_samples(count: int = PHANTOMS) -> list[Sample]:
    """Return phantoms that no training has seen, with their true levels."""
    samples = []
    for seed in range(UNSEEN_SEED, UNSEEN_SEED + count):
        phantom = render(draw_spine(seed), seed=seed)
        places = zip(LEVELS, phantom.spine.disc_center_mm, phantom.spine.disc_axes, strict=True)
        size = np.array(BOX_MM)
        levels = {level: DiscLevel(level, center, axes, size, 1.0, "detector") for level, center, axes in places}
        samples.append(Sample(phantom.as_study(), levels))
    return samples


def grader_inputs(entry: GraderEntry, samples: Sequence[Sample]) -> F32:
    """Return the grids ``(N, C, D, H, W)`` that a grader sees of samples: five each, or one of the whole study."""
    if entry.grades_levels:
        return np.concatenate([level_grids(sample.study, sample.levels, entry)[0] for sample in samples])
    return np.stack([study_grid(sample.study, entry)[0] for sample in samples])


def answers(runner: Runner, entry: GraderEntry, grids: F32) -> F32:
    """Return a grader's probabilities ``(N, heads, 3)`` for grids, as many a call as a run of the engine makes."""
    step = len(LEVELS) if entry.grades_levels else 1
    name, gives = entry.inputs[0].name, entry.outputs[0].name
    starts = range(0, len(grids), step)
    return np.concatenate([runner.run({name: np.ascontiguousarray(grids[n : n + step])})[gives] for n in starts])


def compare_probabilities(reference: NDArray[np.floating], other: NDArray[np.floating]) -> Parity:
    """Compare two sets of probabilities ``(N, heads, 3)``.

    Raises:
        ValueError: they are empty, or not of the same shape.
    """
    if reference.shape != other.shape or not reference.size:
        raise ValueError(f"want two tables of the same shape and not empty, got {reference.shape} and {other.shape}")
    difference = np.abs(reference.astype(np.float64) - other)
    ranked = np.sort(reference, axis=-1)
    sure = ranked[..., -1] - ranked[..., -2] > MARGIN
    changed = int(np.count_nonzero(sure & (reference.argmax(-1) != other.argmax(-1))))
    return Parity(mean=float(difference.mean()), largest=float(difference.max()), changed=changed)


def compare_graders(
    reference: Runner, other: Runner, entry: GraderEntry, samples: Sequence[Sample], worst: Path | None = None
) -> Parity:
    """Compare two graders on samples.

    Args:
        reference, other: the two ways.
        entry: what the bundle says of the model.
        samples: at least one.
        worst: a ``.npz`` to write: the grid on which they differ most (``image``) and both answers to it.
    """
    grids = grader_inputs(entry, samples)
    first, second = answers(reference, entry, grids), answers(other, entry, grids)
    if worst is not None:
        place = int(np.abs(first - second).max(axis=(1, 2)).argmax())
        np.savez_compressed(worst, image=grids[place], reference=first[place], other=second[place])
    return compare_probabilities(first, second)


def compare_detectors(
    reference: Callable[[Sequence[Sequence[Stack]]], Detection],
    other: Callable[[Sequence[Sequence[Stack]]], Detection],
    samples: Sequence[Sample],
    worst: Path | None = None,
) -> LevelParity:
    """Compare two ways to find levels on samples.

    Args:
        reference, other: from the sagittal series of a study to its levels.
        samples: at least one.
        worst: a ``.npz`` to write: the number of the sample whose discs moved farthest (``sample``), and the centres
            ``(5, 3)`` LPS mm that each way gave.
    """
    pairs = [(reference(sample.sagittal), other(sample.sagittal)) for sample in samples]
    moved = [_moved_mm(*pair) for pair in pairs]
    place = int(np.argmax(moved))
    if worst is not None:
        centers = [np.stack([found.levels[level].center_mm for level in LEVELS]) for found in pairs[place]]
        np.savez_compressed(worst, sample=place, reference=centers[0], other=centers[1])
    found = sum(disc.source == "detector" for first, _ in pairs for disc in first.levels.values())
    return LevelParity(largest_mm=moved[place], found=found)


def bundle_parity(
    bundle: Bundle, reference: RunOptions, other: RunOptions, count: int = PHANTOMS, worst: Path | None = None
) -> dict[str, Parity | LevelParity]:
    """Compare two ways of running a bundle on ``count`` phantoms, model by model; ``worst`` is a folder for ``.npz``.

    Raises:
        BackendError: one of the ways is not to be had.
        OutputError: ``worst`` cannot be written.
        UsageError: the two ways are the same.
    """
    first, second = OpenModels(bundle, reference), OpenModels(bundle, other)
    try:
        whole = (first.whole_study_grader(), second.whole_study_grader())
        if first.devices == second.devices:
            ran = next(iter(first.devices.values()))
            raise UsageError(f"both ways are {ran.backend} {ran.device} in {ran.precision}: name another --reference")
        samples = phantom_samples(count)
        found: dict[str, Parity | LevelParity] = {}
        if first.detector is not None:
            found["detector"] = compare_detectors(
                first.find_levels, second.find_levels, samples, _file(worst, "detector")
            )
        for role, (one, two) in {"grader": (first.grader, second.grader), "whole_study_grader": whole}.items():
            if one is not None and two is not None:
                found[role] = compare_graders(one, two, one.entry, samples, _file(worst, role))
        return found
    finally:
        first.close()
        second.close()


def _file(folder: Path | None, role: str) -> Path | None:
    """Return the file for a role's worst case in ``folder``, which is made."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from None
    return folder / f"{role}.npz"


def _moved_mm(first: Detection, second: Detection) -> float:
    pairs = [(disc, second.levels[level]) for level, disc in first.levels.items()]
    if any(a.source != b.source for a, b in pairs):
        return float("inf")
    return max(float(np.linalg.norm(a.center_mm - b.center_mm)) for a, b in pairs)
