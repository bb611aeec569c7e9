"""The centres of six vertebrae, L1 to S1, that recipes of levels cut between: given in a table, or from detection.

Frame: patient LPS, mm.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import LEVELS, Level
from spine_engine.detection import Detection, DiscLevel
from spine_engine.errors import UsageError
from spine_engine.results import CenterSource
from spine_engine.study import PLACE_DECIMALS, Source
from spine_engine.voxels.recipe import GridRecipe
from spine_engine.voxels.recipe_grids import level_box

F64 = NDArray[np.float64]
Point = tuple[float, float, float]

VERTEBRAE: Final = ("l1", "l2", "l3", "l4", "l5", "s1")
"""The vertebrae above and below the five discs, from the top."""

COLUMNS: Final = ("study_id", "level", "x", "y", "z")

MAX_TABLE_BYTES: Final = 64 << 20
"""RSNA's 1,975 studies take less than 1 MB."""

LARGEST_MM: Final = 100_000.0
"""No place in a patient is farther from a scanner's origin."""

PATIENT_AXES: Final = np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
"""The axes of an axis-aligned box as levels have them: superior to inferior, anterior to posterior, right to left."""


@dataclass(frozen=True, eq=False)
class VertebralCenters:
    """Six vertebral centres.

    Attributes:
        places_mm: ``(6, 3)``, L1 to S1, in LPS mm.
        sources: how each is known.
    """

    places_mm: F64
    sources: tuple[CenterSource, ...]

    def of_level(self, level: Level) -> tuple[F64, F64]:
        """Return the centres above and below a disc."""
        upper = LEVELS.index(level)
        return self.places_mm[upper], self.places_mm[upper + 1]

    def boxes(self, recipe: GridRecipe) -> dict[Level, F64]:
        """Return the box of each level: smallest and largest x, y, z ``(2, 3)``.

        Raises:
            StudyError: two neighbouring centres span no box.
        """
        assert recipe.margins is not None
        return {
            level: level_box(*self.of_level(level), recipe.margins) for level in LEVELS
        }


@dataclass(frozen=True)
class CenterTable:
    """Vertebral centres that the user gives, by study.

    Attributes:
        studies: the six places of each study, L1 to S1, LPS mm; a study's key is that of ``predictions.csv``.
        digest: SHA-256 of the places, or ``"none"``; part of a run's identity.
    """

    studies: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    digest: str = "none"

    @classmethod
    def from_csv(cls, path: Path) -> CenterTable:
        """Read a CSV with the header ``study_id,level,x,y,z``: six rows a study, levels L1 L2 L3 L4 L5 S1, LPS mm.

        Raises:
            UsageError: the file cannot be read, or a row or study of it is not so; the message says which.
        """
        try:
            if path.stat().st_size > MAX_TABLE_BYTES:
                raise UsageError(
                    f"the centres {path.name!r} are larger than {MAX_TABLE_BYTES >> 20} MB: give the table"
                )
            text = path.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError):
            raise UsageError(
                f"cannot read the centres {path.name!r}; give a UTF-8 CSV file"
            ) from None
        try:
            reader = csv.reader(io.StringIO(text, newline=""), strict=True)
            studies = _studies(path.name, reader, lambda: reader.line_num)
        except csv.Error as error:
            raise UsageError(
                f"the centres {path.name!r} are no CSV file: {error}"
            ) from None
        listed = repr(sorted(studies.items())).encode("utf-8", "backslashreplace")
        return cls(studies, hashlib.sha256(listed).hexdigest())

    def of_study(self, study_id: str) -> VertebralCenters | None:
        """Return the given centres of a study; None where the table has none."""
        places = self.studies.get(study_id)
        if places is None:
            return None
        return VertebralCenters(
            np.array(places), (CenterSource.GIVEN,) * len(VERTEBRAE)
        )


def _studies(
    name: str, rows: Iterator[list[str]], line: Callable[[], int]
) -> dict[str, tuple[Point, ...]]:
    """Return the places by study; ``line`` gives the last line read. Errors are those of ``CenterTable.from_csv``."""
    header: list[str] = next(rows, [])
    if tuple(header) != COLUMNS:
        raise UsageError(
            f"the centres {name!r} begin with {','.join(header)[:80]!r}; want {','.join(COLUMNS)}"
        )
    found: dict[str, dict[str, Point]] = {}
    for row in rows:
        if not row:
            continue
        where = f"line {line()} of the centres {name!r}"
        study_id, level, place = _row(where, row)
        places = found.setdefault(study_id, {})
        if level in places:
            raise UsageError(f"{where} is a second {level} of that study")
        places[level] = place
    for study_id, places in found.items():
        missing = [
            vertebra.upper() for vertebra in VERTEBRAE if vertebra.upper() not in places
        ]
        if missing:
            raise UsageError(
                f"the centres {name!r} lack {', '.join(missing)} of study {study_id}; six rows a study"
            )
    return {
        study_id: tuple(places[vertebra.upper()] for vertebra in VERTEBRAE)
        for study_id, places in found.items()
    }


def _row(where: str, row: list[str]) -> tuple[str, str, Point]:
    """Return study, level and place of a row; ``where`` begins what a refusal says."""
    if len(row) != len(COLUMNS):
        raise UsageError(f"{where} has {len(row)} entries; want {','.join(COLUMNS)}")
    study_id, level = row[0].strip(), row[1].strip().upper()
    if level.lower() not in VERTEBRAE:
        raise UsageError(
            f"{where} has the level {row[1][:20]!r}; want L1, L2, L3, L4, L5 or S1"
        )
    try:
        x, y, z = (float(value) for value in row[2:])
    except ValueError:
        raise UsageError(
            f"{where} has a place that is no number; want x, y, z in mm"
        ) from None
    if not all(
        math.isfinite(value) and abs(value) <= LARGEST_MM for value in (x, y, z)
    ):
        raise UsageError(
            f"{where} has a place beyond {LARGEST_MM:g} mm; want x, y, z in mm, patient LPS"
        )
    return study_id, level, (x, y, z)


def detected_centers(detection: Detection, *, named: bool) -> VertebralCenters | None:
    """Return the six vertebral centres of a study whose levels were found.

    Args:
        detection: the levels and vertebrae.
        named: the detector finds and names vertebrae, S1 among them, as SpineNet's does: then all six must be its own.
            Otherwise a body that was not found lies midway between its discs, L1 half a step above the disc L1/L2 and
            S1 half a step below L5/S1.

    Returns:
        The centres; None where ``named`` and not all six were found.
    """
    bodies = {body.name: body.center_mm for body in detection.vertebrae}
    if named:
        if not all(vertebra in bodies for vertebra in VERTEBRAE):
            return None
        places = np.array([bodies[vertebra] for vertebra in VERTEBRAE])
        return VertebralCenters(places, (CenterSource.BODY,) * len(VERTEBRAE))
    discs = [detection.levels[level].center_mm for level in LEVELS]
    inferred = [
        discs[0] + (discs[0] - discs[1]) / 2,
        *((upper + lower) / 2 for upper, lower in pairwise(discs)),
        discs[-1] + (discs[-1] - discs[-2]) / 2,
    ]
    ends = (
        CenterSource.BEYOND_DISC,
        *(CenterSource.BETWEEN_DISCS,) * 4,
        CenterSource.BEYOND_DISC,
    )
    places = np.array(
        [
            bodies.get(vertebra, place)
            for vertebra, place in zip(VERTEBRAE, inferred, strict=True)
        ]
    )
    sources = [
        CenterSource.BODY if name in bodies else end
        for name, end in zip(VERTEBRAE, ends, strict=True)
    ]
    return VertebralCenters(np.round(places, PLACE_DECIMALS), tuple(sources))


def given_levels(centers: VertebralCenters) -> Detection:
    """Return the levels midway between given centres, with the patient's own axes; the discs are taken as certain."""
    levels: dict[Level, DiscLevel] = {}
    for level in LEVELS:
        upper, lower = centers.of_level(level)
        levels[level] = DiscLevel(
            level, (upper + lower) / 2, PATIENT_AXES, np.ones(3), 1.0, Source.GIVEN
        )
    return Detection(levels, (), ())
