"""One study of a folder, read whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from spine_engine.dicom.discovery import WorkUnit, discover, merged_unit
from spine_engine.dicom.overrides import RoleOverrides
from spine_engine.dicom.reading import read_unit
from spine_engine.errors import UsageError
from spine_engine.study import Study

_LISTED: Final = 10
"""How many studies an error lists: more fill a terminal."""


def read_study(
    folder: str | Path,
    study_id: str | None = None,
    *,
    overrides: RoleOverrides | None = None,
) -> Study:
    """Read the one study of a folder and its subfolders.

    Args:
        folder: holds the DICOM files.
        study_id: which study, where the folder holds several: its StudyInstanceUID.
        overrides: the stated roles of series; where not given, a table in RSNA's layout beside the folder, if any.

    Returns:
        The study, with its series and their roles. ``reason`` says whether anything prevents grading it.

    Raises:
        UsageError: the folder cannot be read, holds no such study, or holds several and none is named; the error
            lists them.
    """
    root = Path(folder)
    roles = RoleOverrides.find(root) if overrides is None else overrides
    units = _merged_units(root)
    ids = sorted({unit.study_id or "" for unit in units})
    if study_id in ids:
        units = [unit for unit in units if unit.study_id == study_id]
    elif study_id is None and len(ids) > 1:
        raise UsageError(_several(root, ids))
    studies: dict[str, Study] = {}
    for unit in units:
        for study in _studies(root, unit, study_id, roles):
            studies[study.study_id] = study
    if study_id is not None:
        studies = {name: study for name, study in studies.items() if name == study_id}
    if not studies:
        known = f"; it has {_listed(ids)}" if study_id is not None and any(ids) else ""
        which = "MR study" if study_id is None else f"study {study_id!r}"
        raise UsageError(
            f"there is no {which} in {str(root)!r}{known}: 'spine-engine inspect' says what lies there"
        )
    if len(studies) > 1:
        raise UsageError(_several(root, sorted(studies)))
    (study,) = studies.values()
    return study


def _merged_units(root: Path) -> list[WorkUnit]:
    """Return the units of a folder; those of one study that lie in several places as one."""
    by_study: dict[str, WorkUnit] = {}
    for unit in discover(root):
        if isinstance(unit, WorkUnit):
            name = unit.study_id or unit.key
            other = by_study.get(name)
            files = unit.files if other is None else (*other.files, *unit.files)
            by_study[name] = merged_unit(unit.key, files, unit.study_id)
    return list(by_study.values())


def _studies(
    root: Path, unit: WorkUnit, wanted: str | None, overrides: RoleOverrides
) -> Iterator[Study]:
    """Yield the studies of a unit; of several only the one that is wanted, or an error that lists them."""
    reading = read_unit(root, unit, overrides)
    yield from reading.studies
    if reading.split and wanted is None:
        raise UsageError(
            _several(root, sorted(part.study_id or "" for part in reading.split))
        )
    for part in reading.split:
        if part.study_id == wanted:
            yield from read_unit(root, part, overrides).studies


def _several(root: Path, ids: list[str]) -> str:
    return (
        f"{str(root)!r} holds {len(ids)} studies and one is wanted: "
        f"give --study (study_id) with one of {_listed(ids)}"
    )


def _listed(ids: list[str]) -> str:
    more = f" and {len(ids) - _LISTED} more" if len(ids) > _LISTED else ""
    return ", ".join(ids[:_LISTED]) + more
