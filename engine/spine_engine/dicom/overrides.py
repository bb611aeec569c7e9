"""Roles that the user, or RSNA's own table beside the images, states instead of leaving them to the headers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from spine_engine.dicom.files import read_file
from spine_engine.dicom.limits import DEFAULT_LIMITS
from spine_engine.errors import StudyError, UsageError
from spine_engine.study import Role

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
    """

    roles: Mapping[tuple[str, str], Role] = field(default_factory=dict)

    @classmethod
    def from_csv(cls, path: Path) -> RoleOverrides:
        """Read a CSV with the columns ``study_id``, ``series_id`` and ``series_description`` (or ``role``).

        Raises:
            UsageError: the file cannot be read, lacks a column, or a description is not one of RSNA's three or a role.
        """
        try:
            text = read_file(path.resolve(), DEFAULT_LIMITS).decode("utf-8-sig")
        except (StudyError, UnicodeDecodeError, OSError):
            raise UsageError(f"cannot read the series table {path.name!r}; give a UTF-8 CSV file") from None
        rows = csv.DictReader(io.StringIO(text, newline=""))
        columns = set(rows.fieldnames or ())
        described = next((name for name in ("role", "series_description") if name in columns), None)
        if described is None or not {"study_id", "series_id"} <= columns:
            raise UsageError(
                f"the series table {path.name!r} lacks a column; it needs study_id, series_id and series_description"
            )
        roles: dict[tuple[str, str], Role] = {}
        for row in rows:
            words = " ".join(re.split(r"[\s/_-]+", (row[described] or "").strip().lower()))
            if words not in _MEANINGS:
                raise UsageError(
                    f"line {rows.line_num} of the series table {path.name!r} names no role; "
                    "write Sagittal T1, Sagittal T2/STIR or Axial T2"
                )
            roles[(row["study_id"] or "").strip(), (row["series_id"] or "").strip()] = _MEANINGS[words]
        return cls(roles)

    @classmethod
    def find(cls, root: Path) -> RoleOverrides:
        """Read every ``*_series_descriptions.csv`` in the input folder and beside it, as RSNA lays them out."""
        root = root.resolve()
        roles: dict[tuple[str, str], Role] = {}
        for folder in (root.parent, root):
            try:
                tables = sorted(folder.glob(_PATTERN))
            except OSError:
                continue
            for table in tables:
                roles.update(cls.from_csv(table).roles)
        return cls(roles)

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
