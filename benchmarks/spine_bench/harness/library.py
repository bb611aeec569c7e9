"""Sample libraries: the studies of a folder, and phantoms for whoever has none."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spine_bench.harness.interfaces import Sample
from spine_engine._version import __version__
from spine_engine.dicom import WorkUnit, discover
from spine_engine.errors import UsageError
from spine_engine.phantom import write_studies

PHANTOM_SEED: Final = 920_000
"""Phantoms of this set are for measuring speed: trainings draw from other seeds (``spine_bench.acceptance``)."""

CACHE: Final = Path("build/bench")
"""Where phantom sets are kept, in the current folder: a set takes about a second a study to make."""


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
        lines = sorted(f"{unit.study_id}\0{unit.digest}\n" for unit in self.units)
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def read_once(self) -> None:
        """Read every file, so that no system is the first to fetch it from the disk."""
        for unit in self.units:
            for file in unit.files:
                (self.root / file.path).read_bytes()


def folder_library(root: Path, count: int | None = None, *, name: str | None = None) -> StudyLibrary:
    """Return the first ``count`` studies under ``root``; files that are refused or name no study are left out.

    Raises:
        UsageError: ``root`` is not a readable folder, or no study lies in it.
    """
    units: list[WorkUnit] = []
    for found in discover(root):
        if isinstance(found, WorkUnit) and found.study_id is not None:
            units.append(found)
            if len(units) == count:
                break
    if not units:
        raise UsageError(f"no study was found under {str(root)!r}; 'spine-engine inspect' says what lies there")
    return StudyLibrary(name=name or root.resolve().name, root=root.resolve(), units=tuple(units))


def phantom_library(count: int, cache: Path = CACHE) -> StudyLibrary:
    """Return ``count`` phantom studies as RSNA ships real ones (RLE), made in ``cache`` unless they are there already.

    Raises:
        UsageError: ``cache`` cannot be written.
    """
    folder = cache / f"phantoms-{count}-seed{PHANTOM_SEED}-{__version__}"
    if not folder.is_dir():
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            for _ in write_studies(draft, count, PHANTOM_SEED, rle=True):
                pass
            draft.rename(folder)
        except OSError as error:
            raise UsageError(f"cannot make phantoms in {cache}: {error.strerror}; name studies with --input") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)  # there only when it was not finished
    return folder_library(folder, name=f"{count} phantoms, seed {PHANTOM_SEED}")
