"""Reads a recorded study again from its files, for the pictures of its page, cut as the models saw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from spine_engine.anatomy import LEVELS, Level
from spine_engine.bundle.manifest import GraderEntry
from spine_engine.detection.levels import DiscLevel
from spine_engine.dicom import InputFile, RoleOverrides, read_unit
from spine_engine.pipeline.level_grids import level_grids
from spine_engine.report.content import Identity, Picture, StudyContent
from spine_engine.report.identity import identity_of
from spine_engine.report.pictures import OVERVIEW_PX, crops, overview
from spine_engine.report.scene import study_scene
from spine_engine.results import LevelResult, Status, StudyResult, study_key
from spine_engine.run.ledger import RecordedStudy
from spine_engine.study import Role, Source, Study

NOT_READ: Final = "There are no pictures: the run failed at this study."
CHANGED: Final = "There are no pictures: the study's files have changed since the run, or are missing."
NO_ROLE: Final = "There are no pictures: no series of the study has a role."
LOST: Final = "There are no pictures: the files could not be read and drawn again."

MOST_PICTURE_BYTES: Final = 750_000
"""Largest size of a page's pictures: 1 MB in base64. The 3-D view, its code and the words take at most 0.48 MB (on pure
noise), and a page stays below 1.5 MB. Grids of 128 voxels a side take 190 kB on exams, 670 kB on pure noise."""


@dataclass(frozen=True, kw_only=True)
class StudySource:
    """The files of a run's studies, and how they were read and graded.

    Attributes:
        root: the input folder of the run; None if it is gone.
        overrides: the roles that were stated.
        grader: the level grader's entry of the bundle's manifest; None if the bundle has none.
        provenance: see ``StudyContent``.
        with_identity: whether pages name the person.
    """

    root: Path | None
    overrides: RoleOverrides
    grader: GraderEntry | None
    provenance: Sequence[tuple[str, str]]
    with_identity: bool

    def identity(self, files: Sequence[InputFile]) -> Identity | None:
        """Return the person of a study's files if pages name persons, else None."""
        return (
            identity_of(self.root, files)
            if self.with_identity and self.root is not None
            else None
        )


def study_content(
    recorded: RecordedStudy, source: StudySource, *, run_page: str | None
) -> StudyContent:
    """Read a study's files again and return what its page shows.

    Pixels, windows, boxes and grids come from the same code as in the run, and the recorded boxes are exact, so the
    crops are those that the grader saw.
    """
    result = recorded.result
    if result.status is Status.FAILED:
        return page_without_pictures(recorded, source, NOT_READ, run_page=run_page)
    study = (
        None
        if source.root is None
        else _read_again(source.root, recorded, source.overrides)
    )
    if study is None:
        return page_without_pictures(recorded, source, CHANGED, run_page=run_page)
    if not any(series.stacks for role in Role for series in study.with_role(role)):
        return page_without_pictures(recorded, source, NO_ROLE, run_page=run_page)
    slices, planes = _pictures(study, result.levels, source.grader)
    return StudyContent(
        result=result,
        provenance=source.provenance,
        overview=slices,
        crops=planes,
        scene=study_scene(study, result.levels),
        identity=source.identity(recorded.unit.files),
        run_page=run_page,
    )


def page_without_pictures(
    recorded: RecordedStudy, source: StudySource, why: str, *, run_page: str | None
) -> StudyContent:
    """Return what the page of a study without pictures shows, and why it has none."""
    return StudyContent(
        result=recorded.result,
        provenance=source.provenance,
        no_pictures=why,
        identity=source.identity(recorded.unit.files),
        run_page=run_page,
    )


def _read_again(
    root: Path, recorded: RecordedStudy, overrides: RoleOverrides
) -> Study | None:
    """Return the study if its files are unchanged since the run, by their names, sizes, roles and counts; else None."""
    if not all(_has_size(root / file.path, file.size) for file in recorded.unit.files):
        return None
    studies = read_unit(root, recorded.unit, overrides).studies
    if len(studies) != 1 or study_key(studies[0].study_id) != recorded.result.study_id:
        return None
    return studies[0] if _same_series(studies[0], recorded.result) else None


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _same_series(study: Study, result: StudyResult) -> bool:
    read = [
        (series.path, series.role, len(series.stacks), series.slices)
        for series in study.series
    ]
    return read == [
        (series.path, series.role, series.stacks, series.slices)
        for series in result.series
    ]


def _pictures(
    study: Study, levels: Mapping[Level, LevelResult], entry: GraderEntry | None
) -> tuple[Sequence[Picture], Mapping[Level, Sequence[Picture]]]:
    """Return the overview and the planes of the grids that the grader saw.

    There are no planes if the levels have no place, and fewer or smaller pictures if the page would become too large.
    """
    places = disc_levels(levels)
    planes: Mapping[Level, Sequence[Picture]] = {}
    native = entry is not None and entry.grid_recipe.is_native
    if (
        entry is not None
        and native
        and any(disc.source != Source.PRIOR for disc in places.values())
    ):
        grids, coverage = level_grids(study, places, entry.layout)
        planes = crops(grids, coverage, entry, levels)
        if _bytes(*planes.values()) > MOST_PICTURE_BYTES / 2:
            planes = crops(grids, coverage, entry, levels, middle_only=True)
    slices = overview(study, levels)
    if _bytes(slices, *planes.values()) > MOST_PICTURE_BYTES:
        slices = overview(study, levels, most_px=OVERVIEW_PX // 2)
    return slices, planes


def _bytes(*groups: Sequence[Picture]) -> int:
    return sum(len(picture.png) for pictures in groups for picture in pictures)


def disc_levels(levels: Mapping[Level, LevelResult]) -> dict[Level, DiscLevel]:
    """Return recorded levels as detection returned them; levels without a place get a placeholder."""
    return {level: _disc(level, levels.get(level)) for level in LEVELS}


def _disc(level: Level, place: LevelResult | None) -> DiscLevel:
    if (
        place is None
        or place.center_mm is None
        or place.axes is None
        or place.size_mm is None
    ):
        return DiscLevel(level, np.zeros(3), np.eye(3), np.ones(3), 0.0, Source.PRIOR)
    return DiscLevel(
        level,
        np.array(place.center_mm),
        np.array(place.axes),
        np.array(place.size_mm),
        1.0 if place.confidence is None else place.confidence,
        place.source,
    )
