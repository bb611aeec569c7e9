"""Grids of studies with their grades, cut once by the engine's own voxelizer, kept in a folder and mapped into memory.

A source knows its studies and how to cut one; a folder of the cache belongs to one source and one kind of grid. Every
study has several sets of grids: the first where the levels are, the others strayed as a detector's boxes stray.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import CONDITIONS, LEVELS, SEVERITIES
from spine_engine.detection.levels import BOX_MM, DiscLevel, Source
from spine_engine.errors import UsageError
from spine_engine.grading import level_grids
from spine_engine.manifest import GraderEntry, GridEntry, TensorEntry
from spine_engine.phantom.severity import read_grades
from spine_engine.study import Role, Study
from spine_training.grader.model import GraderConfig
from spine_training.metric import MISSING

TRUE_BOXES: Final = 0
"""The set of grids that did not stray."""

FORMAT: Final = 2
"""Raised whenever the same source would be cut differently; older grids are then cut again."""


@dataclass(frozen=True, kw_only=True)
class BoxJitter:
    """How far the boxes of a training study stray from the true ones, as a detector's do.

    Attributes:
        center_mm: largest shift along each axis.
        rotation_deg: largest turn about each axis.
        boxes: how many sets of grids a study gives; the first is always the true one.
    """

    center_mm: float = 3.0
    rotation_deg: float = 6.0
    boxes: int = 3


@dataclass(frozen=True, eq=False)
class Cut:
    """The grids of one study: ``grids (boxes, L, C, D, H, W)`` in [0, 1] for L = 5 levels, or 1 of a whole study;
    ``grades (L, heads)``, ``MISSING`` where there is no label; ``narrowing (L, heads)``, NaN where it is not known.
    """

    grids: NDArray[np.float32]
    grades: NDArray[np.int64]
    narrowing: NDArray[np.float64]


class GridSource(Protocol):
    """Where grids come from; it must be picklable, for other processes cut."""

    @property
    def kind(self) -> str:
        """What its studies are, in words."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Every study, in a fixed order."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What, beside a study's name, decides what its grids are: plain values."""
        ...

    def cut(self, name: str, config: GraderConfig, jitter: BoxJitter) -> Cut | None:
        """Return a study's grids, or None where nothing in it can be used."""
        ...


@dataclass(frozen=True, eq=False)
class GridSet:
    """Grids on disk with their truth.

    Attributes:
        files: one a study, ``(boxes, L, C, D, H, W)`` float16.
        grades: ``(S, L, heads)`` int64, what one reader said.
        narrowing: ``(S, L, heads)``, exact; NaN where it is not known.
        boxes: sets of grids a study.
    """

    files: tuple[Path, ...]
    grades: NDArray[np.int64]
    narrowing: NDArray[np.float64]
    boxes: int
    _maps: dict[int, NDArray[np.float16]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Studies."""
        return len(self.files)

    @property
    def places(self) -> NDArray[np.int64]:
        """``(study, box, level)`` of every grid that has a label."""
        labelled = (self.grades != MISSING).any(-1)
        studies, levels = np.nonzero(labelled)
        boxes = np.repeat(np.arange(self.boxes), len(studies))
        return np.stack([np.tile(studies, self.boxes), boxes, np.tile(levels, self.boxes)], axis=1)

    def grid(self, study: int, box: int, level: int) -> NDArray[np.float16]:
        """Return one grid ``(C, D, H, W)``, mapped."""
        if study not in self._maps:
            self._maps[study] = np.load(self.files[study], mmap_mode="r")
        grid: NDArray[np.float16] = self._maps[study][box, level]
        return grid

    def box_set(self, box: int) -> NDArray[np.float16]:
        """Return one set of all studies in memory, ``(S * L, C, D, H, W)``."""
        return np.concatenate([np.load(file, mmap_mode="r")[box] for file in self.files])

    def grades_of_epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return ``grades``, read by another noisy reader each epoch where the narrowing is known."""
        known = ~np.isnan(self.narrowing)
        read = read_grades(np.nan_to_num(self.narrowing), 1_000_003 + epoch)
        return np.where(known & (self.grades != MISSING), read, self.grades)


def make_grids(
    source: GridSource, config: GraderConfig, jitter: BoxJitter, cache: Path, *, workers: int = 1
) -> Iterator[str]:
    """Cut what ``cache`` lacks of a source, and yield each study's name once it is done; those there are kept."""
    folder = cache_folder(source, config, jitter, cache)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in source.names if not _labels_file(folder, name).exists()]
    job = partial(_cut_one, source=source, config=config, jitter=jitter, folder=folder)
    if workers <= 1 or len(missing) < 2:
        yield from map(job, missing)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(job, missing)


def load_grids(
    source: GridSource, config: GraderConfig, jitter: BoxJitter, cache: Path, names: Sequence[str] | None = None
) -> GridSet:
    """Open the grids of a source's studies, or of some of them; studies with nothing to use are left out.

    Raises:
        UsageError: a study was not cut yet, or none has anything to use.
    """
    folder = cache_folder(source, config, jitter, cache)
    files, grades, narrowing = [], [], []
    for name in source.names if names is None else names:
        try:
            with np.load(_labels_file(folder, name)) as labels:
                if not labels["usable"]:
                    continue
                grades.append(labels["grades"])
                narrowing.append(labels["narrowing"])
        except FileNotFoundError:
            raise UsageError(f"the grids of study {name} are not in {cache}; cut them first") from None
        files.append(_grids_file(folder, name))
    if not files:
        raise UsageError("no study of the training data can be used: none has both a label and a level that was found")
    return GridSet(tuple(files), np.stack(grades), np.stack(narrowing), jitter.boxes)


def cache_folder(source: GridSource, config: GraderConfig, jitter: BoxJitter, cache: Path) -> Path:
    """Return the folder of the cache for these grids: what decides them is in its name."""
    decides = {
        "format": FORMAT,
        "source": source.facts,
        "task": config.task,
        "grid": [config.shape, config.spacing_mm, config.offset_mm, config.channels],
        "jitter": asdict(jitter),
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return cache / f"{config.task}-{digest[:12]}"


def cut_levels(study: Study, boxes: Sequence[NDArray[np.float64]], config: GraderConfig) -> NDArray[np.float32]:
    """Cut the five level grids ``(5, C, D, H, W)``; each box is ``(4, 3)``: centre, then the axes D, H, W.

    The engine's own ``grading.level_grids`` does the cutting. A box of NaN stands for a level that was not found; its
    grid is 0.
    """
    levels = {}
    for level, box in zip(LEVELS, boxes, strict=True):
        found: Source = "prior" if np.isnan(box).any() else "detector"
        levels[level] = DiscLevel(level, box[0], box[1:], np.array(BOX_MM), 1.0, found)
    return level_grids(study, levels, unexported_entry(config))[0]


def unexported_entry(config: GraderConfig) -> GraderEntry:
    """Return what a manifest would say of a grader that has no file yet: its channels and grid are what matters."""
    channels = CONDITIONS if config.task == "level" else [f"{c}_{level}" for c in CONDITIONS for level in LEVELS]
    return GraderEntry(
        file="unexported.onnx",
        sha256="0" * 64,
        size_bytes=0,
        inputs=(TensorEntry(name="image", shape=(None, len(config.channels), *config.shape)),),
        outputs=(TensorEntry(name="probabilities", shape=(None, config.heads, len(SEVERITIES))),),
        channels=tuple(Role(channel) for channel in config.channels),
        grid=GridEntry(shape=config.shape, spacing_mm=config.spacing_mm, center_offset_mm=config.offset_mm),
        output_channels=tuple(channels),
    )


def strayed(box: NDArray[np.float64], jitter: BoxJitter, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a box ``(4, 3)`` moved and turned at random within ``jitter``, about its own axes."""
    shift = rng.uniform(-jitter.center_mm, jitter.center_mm, 3)
    angles = np.radians(rng.uniform(-jitter.rotation_deg, jitter.rotation_deg, 3))
    return np.concatenate([(box[0] + shift @ box[1:])[None], small_rotation(angles) @ box[1:]])


def small_rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation about the direction of ``angles`` (radians) by its length (Rodrigues)."""
    angle = float(np.linalg.norm(angles))
    if angle == 0:
        return np.eye(3)
    x, y, z = angles / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn: NDArray[np.float64] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turn


def _cut_one(name: str, *, source: GridSource, config: GraderConfig, jitter: BoxJitter, folder: Path) -> str:
    """Cut one study; its labels are written last, so a study with labels is complete."""
    cut = source.cut(name, config, jitter)
    if cut is not None:
        grids = _grids_file(folder, name)
        _replace(grids, lambda file: np.save(file, cut.grids.astype(np.float16)))
    labels: dict[str, Any] = {} if cut is None else {"grades": cut.grades, "narrowing": cut.narrowing}
    _replace(_labels_file(folder, name), lambda file: np.savez(file, usable=cut is not None, **labels))
    return name


def _replace(path: Path, write: Any) -> None:
    partial_path = path.with_suffix(f".{os.getpid()}.partial")
    with partial_path.open("wb") as file:
        write(file)
    os.replace(partial_path, path)


def _grids_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.grids.npy"


def _labels_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.labels.npz"
