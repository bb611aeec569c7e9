"""Level grids of phantom studies, cut out exactly as the engine does at run time, kept in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import CONDITIONS, LEVELS, SEVERITIES
from spine_engine.detection.levels import BOX_MM, DiscLevel
from spine_engine.grading import level_grids
from spine_engine.manifest import GraderEntry, GridEntry, TensorEntry
from spine_engine.phantom import PhantomStudy, draw_spine, render
from spine_engine.phantom.severity import read_grades
from spine_engine.study import Role
from spine_training.grader.model import GraderConfig

TRAINING_SEED = 10_000_000
"""Phantoms from here on are trained on; those of ``demo`` and tests have small seeds."""

HELD_OUT_SEED = 20_000_000
"""Phantoms from here on are never trained on."""


@dataclass(frozen=True, kw_only=True)
class BoxJitter:
    """How far the boxes of a training study stray from the true ones, as a detector's do.

    Attributes:
        center_mm: largest shift along each axis.
        rotation_deg: largest turn about each axis.
        boxes: how many sets of five boxes a study gives; the first is always the true one.
    """

    center_mm: float = 3.0
    rotation_deg: float = 6.0
    boxes: int = 3


@dataclass(frozen=True, eq=False)
class CropSet:
    """Level grids with their truth; the five levels of a study follow each other.

    Attributes:
        grids: ``(M, C, D, H, W)`` float16 in [0, 1].
        narrowing: ``(M, 5 conditions)`` in [0, 1], exact.
        grades: ``(M, 5)`` int64, what one noisy reader said.
    """

    grids: NDArray[np.float16]
    narrowing: NDArray[np.float64]
    grades: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.grids)

    def grades_of_epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return grades ``(M, 5)`` by another noisy reader each epoch: phantoms can be read as often as one likes."""
        return read_grades(self.narrowing, 1_000_003 + epoch)


def make_crops(
    seeds: Iterable[int], config: GraderConfig, jitter: BoxJitter, out: Path, *, workers: int = 1
) -> Iterator[int]:
    """Draw, render and cut phantom studies into ``out``, one file a seed; those already there are kept.

    Yields:
        Each seed once its file is complete.
    """
    out.mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in seeds if not (out / _name(seed)).exists()]
    job = partial(_make_one, config=config, jitter=jitter, out=out)
    if workers <= 1:
        yield from map(job, missing)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(job, missing)


def load_crops(folder: Path, seeds: Iterable[int], boxes: slice = slice(None)) -> CropSet:
    """Read the crops of some studies; ``boxes`` chooses among each study's sets (``slice(1)``: the true boxes).

    Raises:
        ValueError: a study is not in the folder.
    """
    grids, narrowing, grades = [], [], []
    for seed in seeds:
        path = folder / _name(seed)
        if not path.exists():
            raise ValueError(f"no crops of phantom {seed} in {folder.name}; make them first")
        with np.load(path) as content:
            chosen = content["grids"][boxes]
            grids.append(chosen.reshape(-1, *chosen.shape[2:]))
            narrowing.append(np.tile(content["narrowing"], (len(chosen), 1)))
            grades.append(np.tile(content["grades"], (len(chosen), 1)))
    return CropSet(np.concatenate(grids), np.concatenate(narrowing), np.concatenate(grades))


def cut_grids(
    study: PhantomStudy,
    centers_mm: NDArray[np.float64],
    axes: NDArray[np.float64],
    config: GraderConfig,
    *,
    prefer: str = "t2",
) -> NDArray[np.float32]:
    """Cut the five level grids ``(5, C, D, H, W)`` at disc centres ``(5, 3)`` with disc axes ``(5, 3, 3)``.

    The engine's own ``grading.level_grids`` does the cutting. Where a study has both T2 and STIR, the one of contrast
    ``prefer`` is kept, for a study the engine reads has only one of them.
    """
    whole = study.as_study()
    contrasts = {series.contrast for series in whole.with_role(Role.SAGITTAL_T2)}
    kept = tuple(
        s for s in whole.series if s.role is not Role.SAGITTAL_T2 or len(contrasts) < 2 or s.contrast == prefer
    )
    levels = {
        level: DiscLevel(level, center, rows, np.array(BOX_MM), 1.0, "detector")
        for level, center, rows in zip(LEVELS, centers_mm, axes, strict=True)
    }
    return level_grids(replace(whole, series=kept), levels, unexported_entry(config))[0]


def unexported_entry(config: GraderConfig) -> GraderEntry:
    """Return what a manifest would say of a grader that has no file yet: its channels and grid are what matters."""
    return GraderEntry(
        file="unexported.onnx",
        sha256="0" * 64,
        size_bytes=0,
        inputs=(TensorEntry(name="image", shape=(None, len(config.channels), *config.shape)),),
        outputs=(TensorEntry(name="probabilities", shape=(None, len(CONDITIONS), len(SEVERITIES))),),
        channels=tuple(Role(channel) for channel in config.channels),
        grid=GridEntry(shape=config.shape, spacing_mm=config.spacing_mm, center_offset_mm=config.offset_mm),
        output_channels=tuple(CONDITIONS),
    )


def strayed_boxes(
    centers_mm: NDArray[np.float64], axes: NDArray[np.float64], jitter: BoxJitter, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return boxes moved and turned at random within ``jitter``, each about its own axes."""
    shifts = rng.uniform(-jitter.center_mm, jitter.center_mm, centers_mm.shape)
    moved = centers_mm + np.einsum("lk,lkx->lx", shifts, axes)
    angles = np.radians(rng.uniform(-jitter.rotation_deg, jitter.rotation_deg, centers_mm.shape))
    return moved, np.stack([small_rotation(angle) @ rows for angle, rows in zip(angles, axes, strict=True)])


def _make_one(seed: int, config: GraderConfig, jitter: BoxJitter, out: Path) -> int:
    rng = np.random.default_rng([seed, 0xB0C5])
    study = render(draw_spine(seed), seed=seed)
    spine = study.spine
    prefer = "t2" if rng.random() < 0.5 else "stir"
    true = spine.disc_center_mm, spine.disc_axes
    boxes = [true, *(strayed_boxes(*true, jitter, rng) for _ in range(jitter.boxes - 1))]
    grids = [cut_grids(study, *placed, config, prefer=prefer) for placed in boxes]
    partial_path = out / f"{_name(seed)}.partial"
    with partial_path.open("wb") as file:
        np.savez(file, grids=np.stack(grids).astype(np.float16), narrowing=spine.narrowing, grades=spine.grades)
    os.replace(partial_path, out / _name(seed))
    return seed


def _name(seed: int) -> str:
    return f"{seed:06d}.npz"


def small_rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation about the direction of ``angles`` (radians) by its length (Rodrigues)."""
    angle = float(np.linalg.norm(angles))
    if angle == 0:
        return np.eye(3)
    x, y, z = angles / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn: NDArray[np.float64] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turn
