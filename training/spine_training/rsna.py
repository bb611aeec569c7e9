"""Data in the layout of the RSNA 2024 lumbar-spine challenge: labels and points from its tables, studies as the engine
reads them.

``ROOT/train_images/<study>/<series>/<instance>.dcm`` and three tables beside it: ``train.csv`` (grades),
``train_series_descriptions.csv`` (roles) and ``train_label_coordinates.csv`` (where a reader pointed). Opening a set
reads the tables alone; a study's files are read when it is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pydicom
from pydicom.errors import InvalidDicomError

from spine_engine.anatomy import CONDITIONS, LEVELS, Condition, Level
from spine_engine.dicom import RoleOverrides, WorkUnit, discover, read_unit
from spine_engine.dicom.geometry import ORTHONORMAL_TOLERANCE
from spine_engine.errors import Reason, StudyError, UsageError
from spine_engine.study import Study
from spine_training.arrays import F64, I64
from spine_training.evaluation.tables import GRADE_OF_WORD
from spine_training.metric import MISSING

TRAIN_TABLE: Final = "train.csv"
SERIES_TABLE: Final = "train_series_descriptions.csv"
POINTS_TABLE: Final = "train_label_coordinates.csv"
IMAGES_FOLDER: Final = "train_images"

CONDITION_OF_NAME: Final = {
    condition.replace("_", " ").title(): condition for condition in Condition
}
LEVEL_OF_NAME: Final = {level.replace("_", "/").upper(): level for level in Level}
"""``Spinal Canal Stenosis`` and ``L1/L2``, as ``train_label_coordinates.csv`` writes them."""

_PLACE_OF_COLUMN: Final = {
    f"{condition}_{level}": (i, c)
    for i, level in enumerate(LEVELS)
    for c, condition in enumerate(CONDITIONS)
}
_POINT_COLUMNS: Final = (
    "study_id",
    "series_id",
    "instance_number",
    "condition",
    "level",
    "x",
    "y",
)
_GEOMETRY_TAGS: Final = (
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
)


@dataclass(frozen=True, slots=True)
class Mark:
    """A row of ``train_label_coordinates.csv``: ``x`` is the column and ``y`` the row of a pixel, from the first's
    centre.
    """

    condition: Condition
    level: Level
    series_id: str
    instance_number: int
    x: float
    y: float


@dataclass(frozen=True, slots=True, eq=False)
class LabelPoint:
    """A reader's point: ``position_mm (3,)`` in patient LPS."""

    condition: Condition
    level: Level
    series_id: str
    position_mm: F64


@dataclass(frozen=True, slots=True, eq=False)
class LabelledStudy:
    """The labels of one study.

    Attributes:
        study_id: RSNA's id, which is also the name of the study's folder.
        grades: ``(5 levels, 5 conditions)`` int64, 0 / 1 / 2 or ``MISSING``.
        marks: readers' points in pixels; ``RsnaSet.points_mm`` gives them in patient mm.
    """

    study_id: str
    grades: I64
    marks: tuple[Mark, ...]


class RsnaSet:
    """A folder in RSNA's layout.

    Attributes:
        root: the folder.
        studies: studies of ``train.csv`` with images on disk, sorted by id.
        without_images: number of studies of ``train.csv`` without a folder of images.
    """

    def __init__(
        self,
        root: Path,
        studies: tuple[LabelledStudy, ...],
        without_images: int,
        overrides: RoleOverrides,
    ) -> None:
        self.root = root
        self.studies = studies
        self.without_images = without_images
        self._overrides = overrides

    @classmethod
    def open(cls, root: Path) -> RsnaSet:
        """Read the tables of ``root``.

        Raises:
            UsageError: a part of the layout is missing, or a table holds a value that RSNA's never do.
        """
        missing = [
            name
            for name in (TRAIN_TABLE, SERIES_TABLE, POINTS_TABLE)
            if not (root / name).is_file()
        ]
        missing += [] if (root / IMAGES_FOLDER).is_dir() else [f"{IMAGES_FOLDER}/"]
        if missing:
            raise UsageError(
                f"{str(root)!r} is not in the layout of RSNA 2024: it lacks {', '.join(missing)}; "
                f"give the folder that holds {TRAIN_TABLE} and {IMAGES_FOLDER}/"
            )
        grades = _read_grades(root / TRAIN_TABLE)
        marks = _read_marks(root / POINTS_TABLE)
        folders = {
            entry.name for entry in (root / IMAGES_FOLDER).iterdir() if entry.is_dir()
        }
        studies = [
            LabelledStudy(key, grades[key], marks.get(key, ()))
            for key in sorted(grades)
            if key in folders
        ]
        overrides = RoleOverrides.from_csv(root / SERIES_TABLE)
        return cls(
            root,
            tuple(studies),
            len(grades) - len(studies),
            overrides,
        )

    @cached_property
    def _by_id(self) -> Mapping[str, LabelledStudy]:
        return {study.study_id: study for study in self.studies}

    def labels(self, study_id: str) -> LabelledStudy:
        """Return the labels of one study.

        Raises:
            UsageError: the set has no such study.
        """
        if study_id not in self._by_id:
            raise UsageError(
                f"{str(self.root)!r} has no labelled study {study_id!r} with images"
            )
        return self._by_id[study_id]

    def read(self, study_id: str) -> Study:
        """Read the images of one study as the engine's pipeline does, with the roles that the series table states.

        Raises:
            StudyError: the folder holds no study, or more than one.
            UsageError: the set has no such study.
        """
        images, folder = self.root / IMAGES_FOLDER, self.labels(study_id).study_id
        units = [
            unit for unit in discover(images / folder) if isinstance(unit, WorkUnit)
        ]
        files = [
            replace(file, path=f"{folder}/{file.path}")
            for unit in units
            for file in unit.files
        ]
        reading = read_unit(
            images,
            WorkUnit(folder, tuple(files), study_id),
            self._overrides,
        )
        if reading.split:
            raise StudyError(
                Reason.UID_COLLISION,
                f"the folder of {study_id} holds {len(reading.split)} studies",
            )
        if not reading.studies:
            raise StudyError(
                Reason.NOT_AN_IMAGE,
                f"the folder of {study_id} holds no image that can be read",
            )
        return replace(reading.studies[0], study_id=study_id)

    def points_mm(self, study_id: str) -> tuple[LabelPoint, ...]:
        """Place the marks of one study in patient LPS mm, reading the header of each marked file.

        A mark is left out when its file is missing, has no usable geometry, or does not show the marked pixel.

        Raises:
            UsageError: the set has no such study.
        """
        study = self.labels(study_id)
        planes: dict[tuple[str, int], _Plane | None] = {}
        for mark in study.marks:
            key = mark.series_id, mark.instance_number
            if key not in planes:
                folder = self.root / IMAGES_FOLDER / study_id / mark.series_id
                planes[key] = _plane_of_instance(folder, mark.instance_number)
        points = []
        for mark in study.marks:
            plane = planes[mark.series_id, mark.instance_number]
            if plane is not None and plane.holds(mark.x, mark.y):
                points.append(
                    LabelPoint(
                        mark.condition,
                        mark.level,
                        mark.series_id,
                        plane.place_mm(mark.x, mark.y),
                    )
                )
        return tuple(points)


@dataclass(frozen=True, slots=True, eq=False)
class _Plane:
    """The plane of one image (PS3.3 C.7.6.2.1.1): LPS centre of its first pixel, steps along row and column, mm."""

    number: int | None
    origin_mm: F64
    column_step_mm: F64
    row_step_mm: F64
    shape: tuple[int, int]

    def holds(self, x: float, y: float) -> bool:
        """Return whether the picture shows column ``x``, row ``y``: pixels reach half a step beyond their centres."""
        return -0.5 <= x <= self.shape[1] - 0.5 and -0.5 <= y <= self.shape[0] - 0.5

    def place_mm(self, x: float, y: float) -> F64:
        """Return the LPS mm of column ``x``, row ``y``."""
        return np.asarray(
            self.origin_mm + x * self.column_step_mm + y * self.row_step_mm
        )


def _plane_of_instance(folder: Path, number: int) -> _Plane | None:
    """Return the plane of instance ``number``: RSNA's files are named by it.

    Where the file of that name is missing or says that it has another number, the file that has it counts.
    """
    named = _plane(folder / f"{number}.dcm")
    if named is not None and named.number in (None, number):
        return named
    others = sorted(folder.iterdir()) if folder.is_dir() else []
    return next(
        (
            plane
            for plane in map(_plane, others)
            if plane is not None and plane.number == number
        ),
        named,
    )


def _plane(path: Path) -> _Plane | None:
    """Read the geometry of one file; None when it is missing, is no DICOM file or has none."""
    try:
        header = pydicom.dcmread(
            path,
            stop_before_pixels=True,
            specific_tags=list(_GEOMETRY_TAGS),
        )
        origin = np.array(header.ImagePositionPatient, float)
        orientation = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = (float(v) for v in header.PixelSpacing)
        shape = int(header.Rows), int(header.Columns)
        stated = header.get("InstanceNumber")
        number = None if stated is None else int(stated)
    except (OSError, InvalidDicomError, AttributeError, TypeError, ValueError):
        return None
    skew = np.abs(orientation @ orientation.T - np.eye(2)).max()
    if (
        origin.shape != (3,)
        or not skew < ORTHONORMAL_TOLERANCE
        or min(between_rows, between_columns) <= 0
    ):
        return None
    return _Plane(
        number,
        origin,
        orientation[0] * between_columns,
        orientation[1] * between_rows,
        shape,
    )


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV as text.

    Raises:
        UsageError: it is no CSV, or lacks a column.
    """
    try:
        table = pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
        )
    except (
        ValueError,
        OSError,
    ) as error:  # pandas' ParserError and EmptyDataError are ValueErrors
        raise UsageError(
            f"cannot read {path.name}: {error}; give RSNA's table as UTF-8 CSV"
        ) from None
    if missing := [name for name in columns if name not in table.columns]:
        raise UsageError(
            f"{path.name} lacks the column {missing[0]!r} ({len(missing)} in all); give RSNA's table"
        )
    return table.apply(lambda column: column.str.strip())


def _read_grades(path: Path) -> dict[str, I64]:
    """Read ``train.csv``: the grades ``(5 levels, 5 conditions)`` of every study."""
    table = _table(path, ("study_id", *_PLACE_OF_COLUMN))
    if unknown := sorted(set(table.columns) - {"study_id", *_PLACE_OF_COLUMN}):
        raise UsageError(
            f"{path.name} has the column {unknown[0]!r}, which names no condition and level of RSNA 2024"
        )
    if twice := [key for key, count in Counter(table["study_id"]).items() if count > 1]:
        raise UsageError(
            f"{path.name} lists the study {twice[0]!r} twice; keep one row"
        )
    grades = np.full(
        (len(table), len(LEVELS), len(CONDITIONS)),
        MISSING,
        np.int64,
    )
    for column, (i, c) in _PLACE_OF_COLUMN.items():
        if unknown := sorted(set(table[column]) - GRADE_OF_WORD.keys()):
            words = ", ".join(word for word in GRADE_OF_WORD if word)
            raise UsageError(
                f"{path.name} has the grade {unknown[0]!r} in {column}; write {words} or nothing"
            )
        grades[:, i, c] = table[column].map(GRADE_OF_WORD)
    return dict(zip(table["study_id"], grades, strict=True))


def _read_marks(path: Path) -> dict[str, tuple[Mark, ...]]:
    """Read ``train_label_coordinates.csv``: the marks of every study."""
    table = _table(path, _POINT_COLUMNS)
    for column, names in (("condition", CONDITION_OF_NAME), ("level", LEVEL_OF_NAME)):
        if unknown := sorted(set(table[column]) - names.keys()):
            raise UsageError(
                f"{path.name} has the {column} {unknown[0]!r}; write one of {', '.join(names)}"
            )
    for column in ("instance_number", "x", "y"):
        numbers = pd.to_numeric(table[column], errors="coerce")
        if not np.isfinite(numbers).all():
            line = int(np.flatnonzero(~np.isfinite(numbers))[0]) + 2
            raise UsageError(
                f"line {line} of {path.name} has the {column} {table[column][line - 2]!r}, not a number"
            )
        table[column] = numbers
    return {
        str(key): tuple(_marks(rows))
        for key, rows in table.groupby("study_id", sort=False)
    }


def _marks(rows: pd.DataFrame) -> Iterator[Mark]:
    for row in rows.itertuples(index=False):
        condition, level = CONDITION_OF_NAME[row.condition], LEVEL_OF_NAME[row.level]
        yield Mark(
            condition,
            level,
            row.series_id,
            int(row.instance_number),
            float(row.x),
            float(row.y),
        )
