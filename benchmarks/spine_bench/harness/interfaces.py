"""The two seams of the harness: studies on disk, and systems that grade them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from spine_bench.findings import progress
from spine_engine import Study, __version__
from spine_engine.dicom import RoleOverrides, WorkUnit, discover, read_unit
from spine_engine.errors import UsageError
from spine_engine.phantom import write_studies
from spine_engine.pipeline.clock import StageClock

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# Phantoms of this set are for measuring speed: trainings draw from other seeds (spine_bench.acceptance).
PHANTOM_SEED: Final = 920_000

# Phantom studies when no folder is given: as many as the stages are measured on.
PHANTOMS: Final = 16

# Studies of a folder: all of them stay in the page cache (1.5 GB).
FOLDER_STUDIES: Final = 64

# Where phantom sets are kept, in the current folder: a set takes about a second a study to make.
CACHE: Final = Path("build/bench")


# -- studies on disk


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One study on disk: its files, relative to ``root``."""

    root: Path
    unit: WorkUnit


@dataclass(frozen=True, kw_only=True)
class StudyLibrary:
    """Studies on disk. Plain data: it crosses process borders.

    Attributes:
        name: what they are, in a few words.
        root: the folder they lie in.
        units: the studies' files; every one names its study.
    """

    name: str
    root: Path
    units: tuple[WorkUnit, ...]

    def __len__(self) -> int:
        """Return how many studies there are."""
        return len(self.units)

    def __getitem__(self, index: int) -> Sample:
        """Return one study."""
        return Sample(root=self.root, unit=self.units[index])

    @property
    def files(self) -> int:
        """How many files the studies have."""
        return sum(len(unit.files) for unit in self.units)

    @property
    def size_bytes(self) -> int:
        """How large the files are together."""
        return sum(file.size for unit in self.units for file in unit.files)

    @property
    def digest(self) -> str:
        """SHA-256 over the studies' names and the paths and sizes of their files: the same for the same library."""
        lines = "".join(
            sorted(f"{unit.study_id}\0{unit.digest}\n" for unit in self.units)
        )
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    def read_once(self) -> None:
        """Read every file, so that no system is the first to fetch it from the disk."""
        for unit in self.units:
            for file in unit.files:
                (self.root / file.path).read_bytes()


def folder_library(
    root: Path, count: int | None = None, *, name: str | None = None
) -> StudyLibrary:
    """Return the first ``count`` studies under ``root``; files that are refused or name no study are left out.

    Raises:
        UsageError: ``root`` is not a readable folder, or no study lies in it.
    """
    named = (
        unit
        for unit in discover(root)
        if isinstance(unit, WorkUnit) and unit.study_id is not None
    )
    units = tuple(islice(named, count))
    if not units:
        raise UsageError(
            f"no study was found under {str(root)!r}; 'spine-engine inspect' says what lies there"
        )
    return StudyLibrary(
        name=name or root.resolve().name,
        root=root.resolve(),
        units=units,
    )


def phantom_library(count: int, cache: Path = CACHE) -> StudyLibrary:
    """Return ``count`` phantom studies as RSNA ships real ones (RLE), made in ``cache`` unless they are there already.

    Raises:
        UsageError: ``cache`` cannot be written.
    """
    folder = cache / f"phantoms-{count}-seed{PHANTOM_SEED}-{__version__}"
    if not folder.is_dir():
        progress(f"{count} phantoms are made now: {folder}")
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            deque(write_studies(draft, count, PHANTOM_SEED, rle=True), maxlen=0)
            draft.rename(folder)
        except OSError as error:
            raise UsageError(
                f"cannot make phantoms in {cache}: {error.strerror}; name studies with --input"
            ) from error
        finally:
            shutil.rmtree(
                draft, ignore_errors=True
            )  # there only when it was not finished
    return folder_library(folder, name=f"{count} phantoms, seed {PHANTOM_SEED}")


def library_of(folder: Path | None, count: int | None = None) -> StudyLibrary:
    """Return ``count`` studies of a folder, or phantoms where there is none."""
    if folder is None:
        return phantom_library(count or PHANTOMS)
    return folder_library(folder, count or FOLDER_STUDIES)


@cache
def stated_roles(root: Path) -> RoleOverrides:
    """Return the roles that the tables of series descriptions in and beside a folder state; they are read once."""
    return RoleOverrides.find(root)


def read_studies(sample: Sample) -> tuple[Study, ...]:
    """Read the studies in the files of a sample as the engine does; one, where the folder is in order."""
    return read_unit(sample.root, sample.unit, stated_roles(sample.root)).studies


def read_sample(sample: Sample) -> Study:
    """Read the one study of a sample as the engine does."""
    (study,) = read_studies(sample)
    return study


def write_copies(library: StudyLibrary, folder: Path, count: int) -> None:
    """Write ``count`` studies: the library's in turns, each copy with a StudyInstanceUID of its own, a folder each."""
    for number, unit in enumerate(islice(cycle(library.units), count)):
        assert unit.study_id is not None
        name = f"{unit.study_id[:-8]}{number:08}"  # as long as the other, so that it fits in its place
        place = folder / f"study{number:05}"
        place.mkdir(parents=True)
        for index, file in enumerate(unit.files):
            content = (library.root / file.path).read_bytes()
            (place / f"{index:03}.dcm").write_bytes(
                content.replace(unit.study_id.encode(), name.encode())
            )


# -- systems that grade them


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a system made of a sample.

    Attributes:
        probabilities: ``(5 levels, 5 conditions, 3 severities)``, each row summing to 1; None where it has none.
        failure: why there are none, in one word or line; None where there are.
        stage_seconds: wall time of this sample by stage, as far as the system knows it.
    """

    probabilities: F64 | None
    failure: str | None = None
    stage_seconds: Mapping[str, float] = field(default_factory=dict)


Done = Callable[[Answer], None]

CLOSED = "the system was closed"


class SystemUnderTest(Protocol):
    """Takes studies from their files to probabilities.

    - ``open`` loads and warms everything up; only then is ``submit`` called, ``close`` ends it.
    - ``submit`` returns at once: what cannot be worked on yet waits inside the system, in order.
    - ``done`` is called exactly once a sample, from any thread, in any order; a failure is an answer as well.
    - ``facts`` says after ``open`` what really runs: backend, device, precision, threads, processes, versions.
    """

    name: str

    def open(self) -> None:
        """Load the models and warm up."""

    def submit(self, sample: Sample, done: Done) -> None:
        """Begin with a sample, or queue it."""

    def facts(self) -> dict[str, object]:
        """Return what really runs."""

    def close(self) -> None:
        """End what was opened; samples not yet answered are answered with a failure."""


def answered(grade: Callable[[StageClock], F64]) -> Answer:
    """Return the probabilities of a study and the time of each stage, or why it cannot be graded."""
    clock = StageClock()
    probabilities = None
    failure = None
    try:
        probabilities = grade(clock)
    except Exception as error:  # noqa: BLE001 - a study that cannot be graded is an answer as well
        failure = told(error)
    return Answer(
        probabilities=probabilities,
        failure=failure,
        stage_seconds=in_seconds(clock.timings_ms()),
    )


def in_seconds(timings_ms: Mapping[str, float]) -> dict[str, float]:
    """Return times by stage in seconds."""
    return {stage: ms / 1000 for stage, ms in timings_ms.items()}


def told(error: BaseException, longest: int = 200) -> str:
    """Return an error in one line."""
    first, *_ = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {first[:longest]}"
