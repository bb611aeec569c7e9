"""The two files of an evaluation: ``predictions.csv`` as ``run`` writes it, and RSNA's ``train.csv``.

Every fault of a file is an error of one line that names the file, the place and the remedy.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Final

import numpy as np

from spine_engine.anatomy import CONDITIONS, LEVELS, SEVERITIES, row_id
from spine_engine.errors import UsageError
from spine_engine.results import ALL_ROW_NAMES, ROW_ORDER
from spine_training.arrays import F64, I64
from spine_training.metric import GROUPS, MISSING

PREDICTION_COLUMNS: Final = ("row_id", *map(str, SEVERITIES))
TRUTH_COLUMNS: Final = ("study_id", *ALL_ROW_NAMES)
GRADE_OF_WORD: Final = {
    "": MISSING,
    "Normal/Mild": 0,
    "Moderate": 1,
    "Severe": 2,
}
"""RSNA's words in ``train.csv``; an empty cell is a row without a label."""

SUM_TOLERANCE: Final = 1e-3
"""Distance of a row's sum from 1 that counts as rounding and is normalised away: files with three decimals
stay within it. The challenge normalised any row in silence; here a larger gap is refused as a mistake."""

_ROW_ID = re.compile(f"(.+)_({'|'.join(CONDITIONS)})_({'|'.join(LEVELS)})", re.DOTALL)
_PLACE: Final = {
    (str(condition), str(level)): (LEVELS.index(level), CONDITIONS.index(condition))
    for condition, level in ROW_ORDER
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Truth:
    """The labels: study ids in ascending order and ``grades (S, 5 levels, 5 conditions)``, ``MISSING`` where none."""

    studies: tuple[str, ...]
    grades: I64


def read_truth(path: Path) -> Truth:
    """Read a truth file in the layout of RSNA's ``train.csv``; columns beyond its 26 are ignored.

    Raises:
        UsageError: the file cannot be read, lacks a column, has a study twice, a word that is no grade, or no label at
            all for one of the metric's groups.
    """
    grades: dict[str, list[int]] = {}
    for where, record in _records(path, TRUTH_COLUMNS):
        study = record["study_id"]
        if study in grades:
            raise UsageError(
                f"{where}: the study {study} is there twice; every study needs exactly one line"
            )
        for name in ALL_ROW_NAMES:
            if record[name] not in GRADE_OF_WORD:
                wanted = "Normal/Mild, Moderate, Severe or nothing"
                raise UsageError(
                    f"{where}: got the grade {record[name][:40]!r} in {name}, want {wanted}"
                )
        grades[study] = [GRADE_OF_WORD[record[name]] for name in ALL_ROW_NAMES]
    if not grades:
        raise UsageError(f"{path} has no study: the metric needs labels")
    studies = tuple(sorted(grades))
    flat = np.array([grades[study] for study in studies]).reshape(
        -1, len(CONDITIONS), len(LEVELS)
    )
    table = flat.transpose(0, 2, 1).copy()
    for group, heads in GROUPS.items():
        if (table[..., list(heads)] == MISSING).all():
            raise UsageError(
                f"{path} has no label of the {group} group, so the metric is not defined on it"
            )
    return Truth(studies=studies, grades=table)


def read_predictions(path: Path) -> dict[str, F64]:
    """Read predictions: study id -> ``(5 levels, 5 conditions, 3)``, NaN where the file has no row.

    Rows are normalised to sum to 1.

    Raises:
        UsageError: the file cannot be read, has other columns, a row twice, an unknown row id, or a row that is not
            three finite numbers >= 0 which sum to 1 within ``SUM_TOLERANCE``.
    """
    tables: dict[str, F64] = {}
    for where, record in _records(
        path,
        PREDICTION_COLUMNS,
        exactly=True,
    ):
        name = _ROW_ID.fullmatch(record["row_id"])
        if name is None:
            raise UsageError(
                f"{where}: unknown row id {record['row_id'][:80]!r}, want <study>_<condition>_<level>"
            )
        row = _probabilities(where, [record[severity] for severity in SEVERITIES])
        study, condition, level = name.groups()
        if study not in tables:
            tables[study] = np.full(
                (len(LEVELS), len(CONDITIONS), len(SEVERITIES)),
                np.nan,
            )
        place = _PLACE[condition, level]
        if not np.isnan(tables[study][place][0]):
            raise UsageError(
                f"{where}: the row {record['row_id']} is there twice; every row must be there once"
            )
        tables[study][place] = row
    if not tables:
        raise UsageError(f"{path} has no rows: it needs 25 a study")
    return tables


def matched(predictions: Mapping[str, F64], truth: Truth, path: Path) -> F64:
    """Return the predictions of the truth's studies, ``(S, 5, 5, 3)``; other studies are left out.

    Raises:
        UsageError: a study of the truth has no predictions, or not all 25 rows; ``path`` names the file.
    """
    absent = [study for study in truth.studies if study not in predictions]
    if absent:
        raise UsageError(
            f"{path} lacks {len(absent)} of the {len(truth.studies)} studies of the truth (the first: {absent[0]}); "
            "the official metric scores all of them: predict them, or cut the truth to the studies that were predicted"
        )
    table = np.stack([predictions[study] for study in truth.studies])
    holes = np.argwhere(np.isnan(table[..., 0]).transpose(0, 2, 1))
    if len(holes):
        study, condition, level = holes[0]
        first = row_id(
            truth.studies[study],
            CONDITIONS[condition],
            LEVELS[level],
        )
        raise UsageError(
            f"{path}: {len(holes)} rows are missing (the first: {first}); every study needs its 25 rows"
        )
    return table


def _records(
    path: Path,
    columns: Sequence[str],
    *,
    exactly: bool = False,
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each line's place (file and line number) and its cells by column."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            _check_header(path, header, columns, exactly)
            for cells in lines:
                where = f"{path}, line {lines.line_num}"
                if len(cells) != len(header):
                    raise UsageError(
                        f"{where}: got {len(cells)} cells, want {len(header)} as in the first line"
                    )
                yield where, dict(zip(header, cells, strict=True))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is no CSV file in UTF-8: {error}") from error


def _check_header(
    path: Path,
    header: Sequence[str],
    columns: Sequence[str],
    exactly: bool,
) -> None:
    absent = [name for name in columns if name not in header]
    if absent:
        raise UsageError(
            f"{path} has no column {absent[0]!r} ({len(absent)} of {len(columns)} are missing)"
        )
    surplus = [name for name in header if name not in columns]
    if len(set(header)) != len(header) or (exactly and surplus):
        raise UsageError(
            f"{path}: got the columns {', '.join(header)[:100]}; want {', '.join(columns)[:100]}, each once"
        )


def _probabilities(where: str, cells: list[str]) -> list[float]:
    """Return the three numbers of a row, normalised."""
    values = []
    for severity, cell in zip(SEVERITIES, cells, strict=True):
        try:
            value = float(cell)
        except ValueError:
            raise UsageError(
                f"{where}: {severity} is {cell[:40]!r}, which is no number"
            ) from None
        if not isfinite(value) or value < 0:
            raise UsageError(
                f"{where}: {severity} is {cell[:40]}; a probability is a finite number from 0 to 1"
            )
        values.append(value)
    total = sum(values)
    if abs(total - 1) > SUM_TOLERANCE:
        raise UsageError(
            f"{where}: the row sums to {total:.6g}; want 1 within {SUM_TOLERANCE:g}"
        )
    return [value / total for value in values]
