"""Roles that the user, or RSNA's own table beside the images, states instead of leaving them to the headers."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Final

from spine_engine.dicom.discovery import WorkUnit, discover
from spine_engine.dicom.files import read_file
from spine_engine.dicom.limits import DEFAULT_LIMITS, MIB
from spine_engine.errors import StudyError, UsageError
from spine_engine.study import Role

_LIMITS: Final = replace(DEFAULT_LIMITS, file_bytes=64 * MIB)
"""RSNA's own table of 1,975 studies has 280 kB."""
_LOOKED_AT: Final = 20
"""Units that are looked at before a table beside the input counts as another's."""
_PATTERN: Final = "*_series_descriptions.csv"
_MEANINGS: Final = {
    "sagittal t1": Role.SAGITTAL_T1,
    "sagittal t2": Role.SAGITTAL_T2,
    "sagittal stir": Role.SAGITTAL_T2,
    "sagittal t2 stir": Role.SAGITTAL_T2,
    "axial t2": Role.AXIAL_T2,
}


@dataclass(frozen=True)
class RoleOverrides:
    """A map from (study, series) to the role the series plays.

    A study is named by its StudyInstanceUID or its folder's name, a series by its SeriesInstanceUID, the last part of
    that, or its folder's name.

    Attributes:
        roles: the stated roles.
        tables: names of the tables they come from.
        left_out: names of tables that were found and not used, each with the reason.
    """

    roles: Mapping[tuple[str, str], Role] = field(default_factory=dict)
    tables: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_csv(cls, path: Path) -> RoleOverrides:
        """Read a CSV with the columns ``study_id``, ``series_id`` and ``series_description`` (or ``role``).

        Raises:
            UsageError: the file cannot be read, lacks a column, or a description is not one of RSNA's three or a role.
        """
        try:
            text = read_file(path.resolve(), _LIMITS).decode("utf-8-sig")
        except (StudyError, UnicodeDecodeError, OSError):
            raise UsageError(
                f"cannot read the series table {path.name!r}; give a UTF-8 CSV file"
            ) from None
        try:
            return cls(
                _roles(path.name, csv.DictReader(io.StringIO(text, newline=""))),
                (path.name,),
            )
        except csv.Error as error:
            raise UsageError(
                f"the series table {path.name!r} is no CSV file: {error}"
            ) from None

    @classmethod
    def find(cls, root: Path) -> RoleOverrides:
        """Read every ``*_series_descriptions.csv`` in the input folder, and beside it where it is of this input.

        RSNA puts the table beside the folder of the images. There it counts only as a regular file that names a study
        of the input. A table that was found and cannot be read is left out, and told.
        """
        root = root.resolve()
        roles: dict[tuple[str, str], Role] = {}
        used: list[str] = []
        left_out: dict[str, str] = {}
        for table in (*_tables(root.parent), *_tables(root)):
            try:
                found = cls.from_csv(table).roles
            except UsageError as error:
                left_out[table.name] = str(error)
                continue
            if table.parent == root or _is_of(root, {study for study, _ in found}):
                roles.update(found)
                used.append(table.name)
            else:
                left_out[table.name] = (
                    f"{table.name} lies beside the input and names none of its studies"
                )
        return cls(roles, tuple(used), left_out)

    def role(self, study_id: str, series_uid: str, series_path: str) -> Role | None:
        """Return the stated role of a series, or None where nothing is stated."""
        if not self.roles:
            return None
        folder = PurePosixPath(series_path)
        for study in (study_id, folder.parent.name):
            for series in (folder.name, series_uid, series_uid.rpartition(".")[2]):
                if (role := self.roles.get((study, series))) is not None:
                    return role
        return None


def _roles(name: str, rows: csv.DictReader[str]) -> dict[tuple[str, str], Role]:
    """Return the roles that the rows of a table state; errors are those of ``from_csv``."""
    columns = set(rows.fieldnames or ())
    described = next(
        (one for one in ("role", "series_description") if one in columns), None
    )
    if described is None or not {"study_id", "series_id"} <= columns:
        raise UsageError(
            f"the series table {name!r} lacks a column; it needs study_id, series_id and series_description"
        )
    roles: dict[tuple[str, str], Role] = {}
    for row in rows:
        words = " ".join(re.split(r"[\s/_-]+", (row[described] or "").strip().lower()))
        if words not in _MEANINGS:
            raise UsageError(
                f"line {rows.line_num} of the series table {name!r} names no role; "
                "write Sagittal T1, Sagittal T2/STIR or Axial T2"
            )
        roles[(row["study_id"] or "").strip(), (row["series_id"] or "").strip()] = (
            _MEANINGS[words]
        )
    return roles


def _tables(folder: Path) -> list[Path]:
    """Return the series tables in a folder that are regular files, sorted by name."""
    try:
        return [
            table
            for table in sorted(folder.glob(_PATTERN))
            if table.is_file() and not table.is_symlink()
        ]
    except OSError:
        return []


def _is_of(root: Path, studies: set[str]) -> bool:
    """Whether any of these studies is in the input: by the name of a folder, or by the first units' identifiers."""
    if root.name in studies:
        return True
    with suppress(OSError), os.scandir(root) as entries:
        if any(entry.name in studies for entry in entries):
            return True
    units = (found for found in discover(root) if isinstance(found, WorkUnit))
    return any(unit.study_id in studies for unit in islice(units, _LOOKED_AT))
