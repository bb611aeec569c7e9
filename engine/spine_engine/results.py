"""What became of a study, and the files that say so: ``predictions.csv``, ``studies.jsonl``, ``run.json``.

A :class:`StudyResult` is plain data without pixels: it crosses process borders, lies in the ledger and becomes 25 rows
and one line. The files depend on nothing but the results, so their bytes do not depend on workers, order or luck.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import floor, isfinite
from pathlib import Path
from typing import Any, Final, TextIO

from spine_engine.anatomy import (
    CONDITIONS,
    LEVELS,
    SEVERITIES,
    Condition,
    Level,
    prior,
    row_id,
)
from spine_engine.errors import OutputError, Reason, Warn
from spine_engine.study import AXIS_DECIMALS, PLACE_DECIMALS, Source

PREDICTIONS_FILE: Final = "predictions.csv"
STUDIES_FILE: Final = "studies.jsonl"
RUN_FILE: Final = "run.json"

DECIMALS: Final = 6
"""Decimals in ``predictions.csv``: float32 models carry about 7 significant digits."""
_UNIT: Final = 10**DECIMALS

Row = tuple[int, int, int]
"""Probabilities of the three severities in millionths; they sum to exactly 1,000,000."""


class Status(StrEnum):
    """``graded``: the models spoke. ``prior``: read, but not gradable. ``failed``: not read, or its worker died."""

    GRADED = "graded"
    PRIOR = "prior"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class SeriesResult:
    """One series of a study as the engine saw it; ``evidence`` says in a sentence why it has its role or none."""

    path: str
    role: str | None
    evidence: str
    stacks: int
    slices: int
    reason: Reason | None = None


@dataclass(frozen=True, kw_only=True)
class LevelResult:
    """Where a disc was found: patient LPS mm; ``axes`` rows run superior to inferior, anterior to posterior, right to
    left. ``None`` where the study could not be localised (``source`` is then ``"prior"``).

    ``confidence`` is None where the place was given. ``box_center_mm`` is the centre of the graded box where that is
    not the disc's, as in recipes that cut between vertebrae.
    """

    center_mm: tuple[float, float, float] | None
    axes: tuple[tuple[float, float, float], ...] | None
    size_mm: tuple[float, float, float] | None
    confidence: float | None
    source: Source
    box_center_mm: tuple[float, float, float] | None = None


class CenterSource(StrEnum):
    """How a vertebral centre is known: a body that was found, midway between two discs, half a step beyond the last
    disc, or given by the user."""

    BODY = "body"
    BETWEEN_DISCS = "between_discs"
    BEYOND_DISC = "beyond_disc"
    GIVEN = "given"


@dataclass(frozen=True, kw_only=True)
class VertebraResult:
    """A vertebral centre that levels were cut between, patient LPS mm, and how it is known."""

    center_mm: tuple[float, float, float]
    source: CenterSource


@dataclass(frozen=True, kw_only=True)
class AlternativeResult:
    """Another numbering of the same discs: every disc ``shift`` levels higher, how probable that is, and the discs'
    centres under it, patient LPS mm.
    """

    shift: int
    probability: float
    centers_mm: Mapping[Level, tuple[float, float, float]]


@dataclass(frozen=True, kw_only=True, repr=False)
class StudyResult:
    """The outcome of one study.

    Attributes:
        study_id: its StudyInstanceUID, an opaque key.
        status: graded, prior or failed.
        reason: why it was not graded; None when it was.
        warnings: what was unusual, sorted, each once.
        series: what its series are.
        levels: the five discs, or empty when the study was not looked at.
        alternative: another numbering of the discs, where one is worth telling.
        vertebrae: the six centres that levels were cut between, by name; empty where the grids need none.
        rows: millionths by (condition, level), 25 entries in the order of ``predictions.csv``.
        not_assessed: ``<condition>_<level>`` of the rows that hold the weighted prior instead of a grade.
        timings_ms: wall time of each stage.
        detail: one line for a person about an ``internal_error`` (exception type and code line), never patient data.
    """

    study_id: str
    status: Status
    reason: Reason | None = None
    warnings: tuple[Warn, ...] = ()
    series: tuple[SeriesResult, ...] = ()
    levels: Mapping[Level, LevelResult] = field(default_factory=dict)
    alternative: AlternativeResult | None = None
    vertebrae: Mapping[str, VertebraResult] = field(default_factory=dict)
    rows: tuple[Row, ...]
    not_assessed: tuple[str, ...] = ()
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    detail: str | None = None

    def __post_init__(self) -> None:
        if len(self.rows) != len(ROW_ORDER) or any(
            sum(row) != _UNIT or min(row) < 0 for row in self.rows
        ):
            raise ValueError(f"a study needs {len(ROW_ORDER)} rows that sum to 1 each")
        if (self.status is Status.GRADED) != (self.reason is None):
            raise ValueError("a graded study has no reason, any other has one")

    def __repr__(self) -> str:
        outcome = (
            self.status if self.reason is None else f"{self.status}, {self.reason}"
        )
        return (
            f"<StudyResult {self.study_id}: {outcome}, {len(self.warnings)} warnings>"
        )

    def probabilities(
        self, condition: Condition | str, level: Level | str
    ) -> dict[str, float]:
        """Return the probability of each severity, as ``predictions.csv`` gives it.

        Args:
            condition: a ``Condition`` or its value, such as ``"spinal_canal_stenosis"``.
            level: a ``Level`` or its value, such as ``"l4_l5"``.

        Raises:
            ValueError: there is no such condition or level.
        """
        row = self.rows[ROW_ORDER.index((Condition(condition), Level(level)))]
        return {
            str(severity): count / _UNIT
            for severity, count in zip(SEVERITIES, row, strict=True)
        }

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the 25 rows in the order of ``predictions.csv``, each as the values of a table's columns."""
        for condition, level in ROW_ORDER:
            yield {
                "study_id": self.study_id,
                "status": str(self.status),
                "condition": str(condition),
                "level": str(level),
                **self.probabilities(condition, level),
                "assessed": row_name(condition, level) not in self.not_assessed,
            }


ROW_ORDER: Final = tuple(
    (condition, level) for condition in CONDITIONS for level in LEVELS
)
"""RSNA's row order inside a study: conditions alphabetical, levels from the top inside each."""


def in_millionths(probabilities: Iterable[float]) -> Row:
    """Round three probabilities to millionths that sum to exactly 1 (largest remainder, ties to the milder grade).

    Raises:
        ValueError: a value is negative or not finite, or all are zero.
    """
    values = [float(value) for value in probabilities]
    total = sum(values)
    if (
        len(values) != len(SEVERITIES)
        or not isfinite(total)
        or min(values) < 0
        or total <= 0
    ):
        raise ValueError(
            f"want {len(SEVERITIES)} finite probabilities >= 0, got {values}"
        )
    exact = [value / total * _UNIT for value in values]
    counts = [floor(value) for value in exact]
    by_remainder = sorted(range(len(values)), key=lambda i: (counts[i] - exact[i], i))
    for index in by_remainder[: _UNIT - sum(counts)]:
        counts[index] += 1
    return (counts[0], counts[1], counts[2])


def row_name(condition: Condition, level: Level) -> str:
    """Return a row's name without its study: ``<condition>_<level>``."""
    return f"{condition}_{level}"


PRIOR_ROWS: Final = tuple(
    in_millionths(prior(condition, level)) for condition, level in ROW_ORDER
)
ALL_ROW_NAMES: Final = tuple(
    row_name(condition, level) for condition, level in ROW_ORDER
)


def ungraded(
    study_id: str, status: Status, reason: Reason, **details: Any
) -> StudyResult:
    """Return the record of a study that was not graded: the weighted prior in every row, and the reason.

    Args:
        study_id, status, reason: as in ``StudyResult``.
        details: further fields of ``StudyResult``.
    """
    return StudyResult(
        study_id=study_id,
        status=status,
        reason=reason,
        rows=PRIOR_ROWS,
        not_assessed=ALL_ROW_NAMES,
        **details,
    )


def study_key(text: str) -> str:
    """Return ``text`` as a key that UTF-8 can hold: lone surrogates become ``\\udcxx`` escapes, the rest stays."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def study_line(result: StudyResult) -> str:
    """Return the study's line of ``studies.jsonl``, without the line end. Pure ASCII, keys in the documented order."""
    record: dict[str, Any] = {
        "study_id": result.study_id,
        "status": result.status,
        "reason": result.reason,
        "warnings": list(result.warnings),
        "series": [
            {
                "path": series.path,
                "role": series.role,
                "evidence": series.evidence,
                "stacks": series.stacks,
                "slices": series.slices,
                "reason": series.reason,
            }
            for series in result.series
        ],
        "levels": {
            str(level): _level_record(entry) for level, entry in result.levels.items()
        },
        "alternative_levels": _alternative_record(result.alternative),
        "not_assessed": list(result.not_assessed),
        "timings_ms": {stage: round(ms, 1) for stage, ms in result.timings_ms.items()},
    }
    if result.vertebrae:
        record["vertebrae"] = {
            name: {
                "center_mm": _rounded(entry.center_mm, PLACE_DECIMALS),
                "source": entry.source,
            }
            for name, entry in result.vertebrae.items()
        }
    if result.detail is not None:
        record["detail"] = result.detail
    return json.dumps(record, allow_nan=False)


def _level_record(entry: LevelResult) -> dict[str, Any]:
    center, box = None, None
    if (
        entry.center_mm is not None
        and entry.axes is not None
        and entry.size_mm is not None
    ):
        center = _rounded(entry.center_mm, PLACE_DECIMALS)
        axes = [_rounded(axis, AXIS_DECIMALS) for axis in entry.axes]
        middle = (
            center
            if entry.box_center_mm is None
            else _rounded(entry.box_center_mm, PLACE_DECIMALS)
        )
        box = {
            "center": middle,
            "axes": axes,
            "size": _rounded(entry.size_mm, PLACE_DECIMALS),
        }
    confidence = None if entry.confidence is None else round(entry.confidence, 4)
    return {
        "center_mm": center,
        "box_mm": box,
        "confidence": confidence,
        "source": entry.source,
    }


def _alternative_record(entry: AlternativeResult | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    levels = {
        str(level): _rounded(center, PLACE_DECIMALS)
        for level, center in entry.centers_mm.items()
    }
    return {
        "shift": entry.shift,
        "probability": round(entry.probability, 4),
        "levels": levels,
    }


def study_from_line(line: str, rows: Iterable[Sequence[int]]) -> StudyResult:
    """Return the result that ``study_line`` and the rows of ``predictions.csv``, in millionths, tell of.

    Raises:
        ValueError, KeyError: they are not of that form.
    """
    record = json.loads(line)
    return StudyResult(
        study_id=record["study_id"],
        status=Status(record["status"]),
        reason=_reason(record["reason"]),
        warnings=tuple(Warn(code) for code in record["warnings"]),
        series=tuple(
            SeriesResult(**{**series, "reason": _reason(series["reason"])})
            for series in record["series"]
        ),
        levels={
            Level(name): _level_of(entry) for name, entry in record["levels"].items()
        },
        alternative=_alternative_of(record["alternative_levels"]),
        vertebrae={
            name: _vertebra_of(entry)
            for name, entry in record.get("vertebrae", {}).items()
        },
        rows=tuple((row[0], row[1], row[2]) for row in rows),
        not_assessed=tuple(record["not_assessed"]),
        timings_ms=record["timings_ms"],
        detail=record.get("detail"),
    )


def _reason(code: str | None) -> Reason | None:
    return None if code is None else Reason(code)


def _level_of(entry: Mapping[str, Any]) -> LevelResult:
    box = entry["box_mm"]
    center, size = (
        (None, None)
        if box is None
        else (_point(entry["center_mm"]), _point(box["size"]))
    )
    axes = None if box is None else tuple(_point(axis) for axis in box["axes"])
    box_center = None if box is None else _point(box["center"])
    return LevelResult(
        center_mm=center,
        axes=axes,
        size_mm=size,
        confidence=entry["confidence"],
        source=Source(entry["source"]),
        box_center_mm=None if box_center == center else box_center,
    )


def _vertebra_of(entry: Mapping[str, Any]) -> VertebraResult:
    return VertebraResult(
        center_mm=_point(entry["center_mm"]), source=CenterSource(entry["source"])
    )


def _alternative_of(entry: Mapping[str, Any] | None) -> AlternativeResult | None:
    if entry is None:
        return None
    centers = {Level(name): _point(center) for name, center in entry["levels"].items()}
    return AlternativeResult(
        shift=entry["shift"], probability=entry["probability"], centers_mm=centers
    )


def _point(values: Sequence[float]) -> tuple[float, float, float]:
    x, y, z = values
    return (x, y, z)


def _rounded(values: Iterable[float], decimals: int) -> list[float]:
    return [
        round(float(value), decimals) + 0.0 for value in values
    ]  # + 0.0 turns -0.0 into 0.0


def prediction_rows(study_id: str, rows: Iterable[Row]) -> Iterator[str]:
    """Yield the study's 25 lines of ``predictions.csv`` (RFC 4180 quoting), without line ends."""
    for (condition, level), row in zip(ROW_ORDER, rows, strict=True):
        numbers = ",".join(
            f"{count // _UNIT}.{count % _UNIT:0{DECIMALS}d}" for count in row
        )
        yield f"{_csv_field(row_id(study_id, condition, level))},{numbers}"


def _csv_field(text: str) -> str:
    return (
        '"' + text.replace('"', '""') + '"'
        if any(mark in text for mark in ',"\r\n')
        else text
    )


def write_predictions(path: Path, studies: Iterable[tuple[str, Iterable[Row]]]) -> str:
    """Write ``predictions.csv`` from (study id, rows) pairs that come sorted by study id; return its SHA-256."""
    header = ",".join(["row_id", *SEVERITIES])
    return write_lines(
        path, (line for part in ([header], _all_rows(studies)) for line in part)
    )


def _all_rows(studies: Iterable[tuple[str, Iterable[Row]]]) -> Iterator[str]:
    for study_id, rows in studies:
        yield from prediction_rows(study_id, rows)


def new_file(path: Path) -> TextIO:
    """Open a file for writing that is made here: what stood in its place, a link also, is removed and not followed."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o666), "w", encoding="utf-8", newline="")


def write_lines(path: Path, lines: Iterable[str]) -> str:
    """Replace ``path`` by ``lines`` in one step: a temporary file beside it, fsync, rename, fsync of the folder.

    Returns:
        The SHA-256 of the file, hexadecimal.

    Raises:
        OutputError: the folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.part")
    digest = hashlib.sha256()
    try:
        with new_file(draft) as file:
            for line in lines:
                text = line + "\n"
                digest.update(text.encode())
                file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; free space or choose another output"
        ) from error
    return digest.hexdigest()
