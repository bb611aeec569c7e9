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

from spine_engine.anatomy import LEVELS
from spine_engine.detection.levels import BOX_MM, DiscLevel
from spine_engine.errors import UsageError
from spine_engine.phantom.severity import read_grades
from spine_engine.pipeline.level_grids import level_grids
from spine_engine.study import Source, Study
from spine_training.arrays import F32, F64, I64
from spine_training.grader.model import GraderConfig
from spine_training.metric import MISSING

TRUE_BOXES: Final = 0
"""The set of grids that did not stray."""

FORMAT: Final = 2
"""Version of the cut: raise it when the same source is cut differently, so that older grids are cut again."""


@dataclass(frozen=True, kw_only=True)
class BoxJitter:
    """The distance by which a training study's boxes stray from the true ones, as a detector's do.

    Attributes:
        center_mm: largest shift along each axis.
        rotation_deg: largest turn about each axis.
        boxes: sets of grids a study; the first is always the true one.
    """

    center_mm: float = 3.0
    rotation_deg: float = 6.0
    boxes: int = 3


@dataclass(frozen=True, eq=False)
class Cut:
    """The grids of one study: ``grids (boxes, L, C, D, H, W)`` in [0, 1] for L = 5 levels, or 1 of a whole study;
    ``grades (L, heads)``, ``MISSING`` where there is no label; ``narrowing (L, heads)``, NaN where it is not known.
    """

    grids: F32
    grades: I64
    narrowing: F64


class GridSource(Protocol):
    """A source of grids; it must be picklable, because other processes cut."""

    @property
    def kind(self) -> str:
        """The studies' kind, in words."""

    @property
    def names(self) -> Sequence[str]:
        """The names of its studies, in a fixed order."""

    @property
    def facts(self) -> dict[str, Any]:
        """The plain values that, beside a study's name, decide its grids."""

    def cut(
        self,
        name: str,
        config: GraderConfig,
        jitter: BoxJitter,
    ) -> Cut | None:
        """Return a study's grids, or None where nothing in it can be used."""


@dataclass(frozen=True, eq=False)
class GridSet:
    """Grids on disk with their truth.

    Attributes:
        files: one a study, ``(boxes, L, C, D, H, W)`` float16.
        grades: ``(S, L, heads)`` int64, what one reader said.
        narrowing: ``(S, L, heads)``, exact; NaN where it is not known.
        boxes: sets of grids a study.
        kind: the studies' origin in words, as ``GridSource`` gives it.
    """

    files: tuple[Path, ...]
    grades: I64
    narrowing: F64
    boxes: int
    kind: str = ""
    _maps: dict[int, NDArray[np.float16]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Return the number of studies."""
        return len(self.files)

    @property
    def description(self) -> str:
        """Number and origin of the studies, as the checkpoint and the model's card repeat them."""
        return f"{len(self)} {self.kind}" if self.kind else ""

    @property
    def places(self) -> I64:
        """``(study, box, level)`` of every grid that has a label."""
        labelled = (self.grades != MISSING).any(-1)
        studies, levels = np.nonzero(labelled)
        boxes = np.repeat(np.arange(self.boxes), len(studies))
        return np.stack(
            [
                np.tile(studies, self.boxes),
                boxes,
                np.tile(levels, self.boxes),
            ],
            axis=1,
        )

    def grid(
        self,
        study: int,
        box: int,
        level: int,
    ) -> NDArray[np.float16]:
        """Return one grid ``(C, D, H, W)``, mapped."""
        if study not in self._maps:
            self._maps[study] = np.load(self.files[study], mmap_mode="r")
        return np.asarray(self._maps[study][box, level])

    def box_set(self, box: int) -> NDArray[np.float16]:
        """Return one set of all studies in memory, ``(S * L, C, D, H, W)``."""
        return np.concatenate(
            [np.load(file, mmap_mode="r")[box] for file in self.files]
        )

    def grades_of_epoch(self, epoch: int) -> I64:
        """Return ``grades``, read by another noisy reader each epoch where the narrowing is known."""
        known = ~np.isnan(self.narrowing)
        read = read_grades(np.nan_to_num(self.narrowing), 1_000_003 + epoch)
        return np.where(
            known & (self.grades != MISSING),
            read,
            self.grades,
        )


def make_grids(
    source: GridSource,
    config: GraderConfig,
    jitter: BoxJitter,
    cache: Path,
    *,
    workers: int = 1,
) -> Iterator[str]:
    """Cut the studies of a source that ``cache`` lacks, and yield the name of each once it is cut."""
    folder = cache_folder(source, config, jitter, cache)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in source.names if not _labels_file(folder, name).exists()]
    job = partial(
        _cut_one,
        source=source,
        config=config,
        jitter=jitter,
        folder=folder,
    )
    if workers <= 1 or len(missing) < 2:
        yield from map(job, missing)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(job, missing)


def load_grids(
    source: GridSource,
    config: GraderConfig,
    jitter: BoxJitter,
    cache: Path,
    names: Sequence[str] | None = None,
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
            raise UsageError(
                f"the grids of study {name} are not in {cache}; cut them first"
            ) from None
        files.append(_grids_file(folder, name))
    if not files:
        raise UsageError(
            "no study of the training data can be used: none has both a label and a level that was found"
        )
    return GridSet(
        tuple(files),
        np.stack(grades),
        np.stack(narrowing),
        jitter.boxes,
        source.kind,
    )


def cache_folder(
    source: GridSource,
    config: GraderConfig,
    jitter: BoxJitter,
    cache: Path,
) -> Path:
    """Return the folder of the cache for these grids: what decides them is in its name."""
    decides = {
        "format": FORMAT,
        "source": source.facts,
        "task": config.task,
        "grid": [
            config.shape,
            config.spacing_mm,
            config.offset_mm,
            config.channels,
        ],
        "jitter": asdict(jitter),
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return cache / f"{config.task}-{digest[:12]}"


def cut_levels(study: Study, boxes: Sequence[F64], config: GraderConfig) -> F32:
    """Cut the five level grids ``(5, C, D, H, W)``; each box is ``(4, 3)``: centre, then the axes D, H, W.

    The engine's own ``grading.level_grids`` does the cutting. A box of NaN stands for a level that was not found; its
    grid is 0.
    """
    levels = {}
    for level, box in zip(LEVELS, boxes, strict=True):
        source = Source.PRIOR if np.isnan(box).any() else Source.DETECTOR
        levels[level] = DiscLevel(
            level,
            box[0],
            box[1:],
            np.array(BOX_MM),
            1.0,
            source,
        )
    return level_grids(study, levels, config.layout)[0]


def box_sets(
    boxes: Sequence[F64],
    jitter: BoxJitter,
    rng: np.random.Generator,
) -> list[Sequence[F64]]:
    """Return a study's boxes as they are, then as often as ``jitter`` says strayed ones."""
    return [
        boxes,
        *(
            [strayed(box, jitter, rng) for box in boxes]
            for _ in range(jitter.boxes - 1)
        ),
    ]


def strayed(box: F64, jitter: BoxJitter, rng: np.random.Generator) -> F64:
    """Return a box ``(4, 3)`` moved and turned at random within ``jitter``, about its own axes."""
    shift = rng.uniform(-jitter.center_mm, jitter.center_mm, 3)
    angles = np.radians(rng.uniform(-jitter.rotation_deg, jitter.rotation_deg, 3))
    return np.concatenate(
        [(box[0] + shift @ box[1:])[None], small_rotation(angles) @ box[1:]]
    )


def small_rotation(angles: F64) -> F64:
    """Return the rotation about the direction of ``angles`` (radians) by its length (Rodrigues)."""
    angle = float(np.linalg.norm(angles))
    if angle == 0:
        return np.eye(3)
    x, y, z = angles / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(
        np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    )


def _cut_one(
    name: str,
    *,
    source: GridSource,
    config: GraderConfig,
    jitter: BoxJitter,
    folder: Path,
) -> str:
    """Cut one study; its labels are written last, so a study with labels is complete."""
    cut = source.cut(name, config, jitter)
    if cut is not None:
        grids = _grids_file(folder, name)
        _replace(grids, lambda file: np.save(file, cut.grids.astype(np.float16)))
    labels: dict[str, Any] = (
        {} if cut is None else {"grades": cut.grades, "narrowing": cut.narrowing}
    )
    _replace(
        _labels_file(folder, name),
        lambda file: np.savez(
            file,
            usable=cut is not None,
            **labels,
        ),
    )
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
