"""The crash-safe record of a run: which units were opened, how that ended, and every study's outcome.

SQLite in WAL mode (a rollback journal on file systems that machines share, where WAL is not safe) with synchronous
FULL, one writer (the main process). The start of an attempt is committed before the
unit is opened and its outcome before the next one takes its place, so after any crash the ledger knows what was done
and what was being done. Results are read back by cursor: nothing here grows with the number of studies.

A *unit* is a set of files read together (usually one study). Its digest covers the paths and sizes of its files: a unit
that changed is walked again. Discovery of each run marks the units it meets; what it did not meet is forgotten, so the
files describe the folder as it is now.
"""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from spine_engine.dicom.discovery import InputFile, RefusedFile, WorkUnit, merged_unit
from spine_engine.errors import OutputError, Reason, Warn
from spine_engine.results import Row, StudyResult, study_from_line, study_line
from spine_engine.run.folders import shared_file_system

LEDGER_FILE: Final = "ledger.sqlite"
_SCHEMA_VERSION: Final = "3"
_BATCH: Final = 500
"""Small notes (refused files, units met again) committed at once: losing them costs nothing, a commit each costs ms."""
_MERGED_PREFIX: Final = "//merged/"
"""Keys of units made of several others; keys of discovered units are relative paths and never begin with a slash."""
_DEVICE: Final = "device of the "
"""Begins the names of the facts that say what a model ran on; its role follows."""

_ENDED: Final = "ended"
"""Names the fact that says which run went to its end last."""
_OWN_FACTS: Final = ("schema", "runs", _ENDED, "shard")
"""Facts of one ledger, which the shards of a run need not share."""
_COLUMNS: Final = {
    "units": (
        "key",
        "digest",
        "study_id",
        "files",
        "parent",
        "state",
        "attempts",
        "faults",
        "last_fault",
    ),
    "outcomes": (
        "study_id",
        "part",
        "unit",
        "status",
        "reason",
        "line",
        "rows",
        "finished",
    ),
    "refused": ("path", "unit", "reason"),
}
"""What a ledger takes over of another, by table: everything but the number of the run that met it last."""

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS units (
    key BLOB PRIMARY KEY, digest TEXT NOT NULL, study_id TEXT, files BLOB NOT NULL, parent BLOB, met INTEGER NOT NULL,
    state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, faults INTEGER NOT NULL DEFAULT 0, last_fault TEXT);
CREATE INDEX IF NOT EXISTS units_by_parent ON units (parent) WHERE parent IS NOT NULL;
CREATE TABLE IF NOT EXISTS outcomes (
    study_id TEXT, part INTEGER, unit BLOB, status TEXT NOT NULL, reason TEXT, line BLOB NOT NULL, rows BLOB NOT NULL,
    finished REAL NOT NULL, PRIMARY KEY (study_id, part, unit));
CREATE INDEX IF NOT EXISTS outcomes_by_unit ON outcomes (unit);
CREATE TABLE IF NOT EXISTS refused (
    path BLOB, unit BLOB, reason TEXT NOT NULL, met INTEGER NOT NULL, PRIMARY KEY (path, unit)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS refused_by_unit ON refused (unit);
"""


@dataclass(frozen=True, kw_only=True)
class UnitState:
    """What the ledger knows of a unit before it is opened.

    Attributes:
        done: its outcome is recorded; there is nothing to do.
        split: it turned out to hold several studies: these are its parts.
        attempts: attempts begun without a recorded outcome.
        faults: those of them that ended in the death of a worker or a timeout; the rest vanished with the whole run.
        last_fault: how the last fault ended.
    """

    done: bool = False
    split: tuple[WorkUnit, ...] = ()
    attempts: int = 0
    faults: int = 0
    last_fault: Reason | None = None


class Ledger:
    """The open ledger of one output folder. Use from one thread, and only while holding the folder's lock."""

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        """Open or create the ledger at ``path`` for the run that ``identity`` describes.

        Raises:
            OutputError: it cannot be opened, or holds the results of a run with another identity.
        """
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            journal = "WAL" if shared_file_system(path.parent) is None else "DELETE"
            self._db.execute(f"PRAGMA journal_mode = {journal}")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_TABLES)
        except sqlite3.Error as error:
            raise OutputError(
                f"cannot use {path}: {error}; choose another output folder"
            ) from error
        self._notes = 0
        self._agree("schema", _SCHEMA_VERSION)
        if (
            self._db.execute("SELECT 1 FROM outcomes LIMIT 1").fetchone() is None
        ):  # a run that could not begin binds none
            self._write("DELETE FROM facts WHERE name NOT IN ('schema', 'runs')")
        for name, value in identity.items():
            self._agree(name, value)
        self._met = int(self.fact("runs") or 0) + 1
        self._write("INSERT OR REPLACE INTO facts VALUES ('runs', ?)", str(self._met))
        self._commit()

    def clear(self) -> None:
        """Forget every unit but those made of several others, before shards are joined."""
        prefix = _key(_MERGED_PREFIX)
        self._forget(f"substr(key, 1, {len(prefix)}) != ?", prefix)
        self._write("DELETE FROM refused WHERE unit = x''")

    def join(self, path: Path) -> None:
        """Take over what the ledger at ``path`` holds, as if this run had met it; it is a shard of the same run.

        Raises:
            OutputError: it cannot be read, or its results were made with other facts than this run's.
        """
        with closing(LedgerReader(path)) as shard:
            for name, value in shard.facts().items():
                known = self.fact(name)
                if known is not None and known != value:
                    raise OutputError(
                        f"{path.parent} holds results made with {name} {value}, the others have {known}: "
                        "shards that are merged must agree"
                    )
                if known is None:
                    self._write("INSERT INTO facts VALUES (?, ?)", name, value)
            for table, columns in _COLUMNS.items():
                names, marks = ", ".join(columns), ", ".join("?" for _ in columns)
                if table != "outcomes":
                    names, marks = f"{names}, met", f"{marks}, {self._met}"
                self._begin()
                self._db.executemany(
                    f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})",
                    shard.rows(table, columns),
                )
        self._commit()

    def end(self) -> None:
        """Commit that this run has met and walked everything there is."""
        self._write(
            "INSERT OR REPLACE INTO facts VALUES (?, ?)", _ENDED, str(self._met)
        )
        self._commit()

    def close(self) -> None:
        """Commit what is pending and close; the write-ahead log is folded into the file."""
        self._commit()
        self._db.close()

    def fact(self, name: str) -> str | None:
        """Return a recorded fact of this output folder."""
        row = self._db.execute(
            "SELECT value FROM facts WHERE name = ?", (name,)
        ).fetchone()
        return None if row is None else str(row[0])

    def agree(self, name: str, value: str) -> None:
        """Record a fact of this output folder, or check that it is still the same.

        Raises:
            OutputError: the folder's results were made with another value.
        """
        self._agree(name, value)
        self._commit()

    def agree_device(self, role: str, device: Mapping[str, str]) -> None:
        """Record what the model of ``role`` runs on, or check that it is still the same; raises as :meth:`agree`."""
        self.agree(_DEVICE + role, json.dumps(dict(device)))

    def devices(self) -> dict[str, dict[str, str]]:
        """Return by role what each model that was needed ran on."""
        query = (
            "SELECT name, value FROM facts WHERE substr(name, 1, ?) = ? ORDER BY name"
        )
        rows = self._db.execute(query, (len(_DEVICE), _DEVICE))
        return {name.removeprefix(_DEVICE): json.loads(value) for name, value in rows}

    def _agree(self, name: str, value: str) -> None:
        known = self.fact(name)
        if known is not None and known != value:
            raise OutputError(
                f"{self._path.parent} holds results made with {name} {known}, this run has {value}; "
                "choose another output folder, or delete that one to start again"
            )
        if known is None:
            self._write("INSERT INTO facts VALUES (?, ?)", name, value)

    # -- units ---------------------------------------------------------------------------------------------------------

    def meet(self, unit: WorkUnit, parent: str | None = None) -> UnitState:
        """Note that this run's input holds ``unit`` and return what is known of it; a changed unit starts afresh."""
        key, above = _key(unit.key), parent and _key(parent)
        row = self._db.execute(
            "SELECT digest, state, attempts, faults, last_fault, met FROM units WHERE key = ?",
            (key,),
        ).fetchone()
        if row is None or row[0] != unit.digest:
            self._forget("key = ?", key)
            columns = "key, digest, study_id, files, parent, met, state"
            values = (
                key,
                unit.digest,
                unit.study_id,
                _packed(unit.files),
                above,
                self._met,
            )
            self._write(
                f"INSERT INTO units ({columns}) VALUES (?, ?, ?, ?, ?, ?, 'open')",
                *values,
            )
            return UnitState()
        self._note(
            "UPDATE units SET met = ?, parent = coalesce(?, parent) WHERE key = ?",
            self._met,
            above,
            key,
        )
        split = tuple(self._parts(key)) if row[1] == "split" else ()
        fault = Reason(row[4]) if row[4] else None
        done = row[1] == "done" or (row[1] == "again" and row[5] == self._met)
        return UnitState(
            done=done, split=split, attempts=row[2], faults=row[3], last_fault=fault
        )

    def begin(self, unit: WorkUnit) -> None:
        """Commit that an attempt at ``unit`` begins. Call right before it is opened."""
        self._write(
            "UPDATE units SET attempts = attempts + 1 WHERE key = ?", _key(unit.key)
        )
        self._commit()

    def fault(self, unit: WorkUnit, reason: Reason) -> None:
        """Commit that the attempt ended with ``reason`` and without an outcome."""
        self._write(
            "UPDATE units SET faults = faults + 1, last_fault = ? WHERE key = ?",
            reason,
            _key(unit.key),
        )
        self._commit()

    def withdraw(self, unit: WorkUnit) -> None:
        """Take back an attempt that was stopped on purpose: it says nothing about the study."""
        self._write(
            "UPDATE units SET attempts = attempts - 1 WHERE key = ?", _key(unit.key)
        )
        self._commit()

    def split(
        self, unit: WorkUnit, parts: Sequence[WorkUnit], refused: Sequence[RefusedFile]
    ) -> None:
        """Commit that ``unit`` holds several studies and is replaced by ``parts``; ``refused`` is in none."""
        key = _key(unit.key)
        self._forget("parent = ?", key)
        for file in refused:
            self._refuse(file, key)
        for part in parts:
            self.meet(part, parent=unit.key)
        self._write(
            "UPDATE units SET state = 'split', attempts = 0, faults = 0 WHERE key = ?",
            key,
        )
        self._commit()

    def finish(
        self,
        unit: WorkUnit,
        results: Sequence[StudyResult],
        refused: Sequence[RefusedFile],
    ) -> None:
        """Commit the outcome of ``unit``: its studies, and the files of it that could not be used.

        The next run tries a unit again where the machine caused the outcome: want of memory, a file it could not read.
        """
        key = _key(unit.key)
        part = 0 if unit.key.startswith(_MERGED_PREFIX) else 1
        self._write("DELETE FROM outcomes WHERE unit = ?", key)
        self._write("DELETE FROM refused WHERE unit = ?", key)
        for result in results:
            line = zlib.compress(study_line(result).encode())
            rows = zlib.compress(
                json.dumps(result.rows, separators=(",", ":")).encode()
            )
            values = (
                result.study_id,
                part,
                key,
                result.status,
                result.reason,
                line,
                rows,
                time.time(),
            )
            self._write(
                "INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                *values,
            )
        for file in refused:
            self._refuse(file, key)
        state = "again" if _by_chance(results, refused) else "done"
        self._write(
            "UPDATE units SET state = ?, attempts = 0, faults = 0 WHERE key = ?",
            state,
            key,
        )
        self._commit()

    def refuse(self, file: RefusedFile) -> None:
        """Note a file, or folder, that discovery could not use."""
        self._refuse(file, b"")
        self._noted()

    def keep_below(self, folder: str) -> None:
        """Keep what earlier runs recorded of a folder that this run cannot list."""
        below = _key("" if folder == "." else f"{folder}/")
        condition = "(key = ? OR substr(key, 1, ?) = ?)"
        self._note(
            f"UPDATE units SET met = ? WHERE {condition}",
            self._met,
            _key(folder),
            len(below),
            below,
        )

    def sweep(self, *, merged: bool) -> None:
        """Forget the units this run did not meet: those made of several others, or all the rest."""
        prefix = _key(_MERGED_PREFIX)
        condition = "=" if merged else "!="
        self._forget(
            f"met != ? AND substr(key, 1, {len(prefix)}) {condition} ?",
            self._met,
            prefix,
        )
        if not merged:
            self._write("DELETE FROM refused WHERE unit = x'' AND met != ?", self._met)
        self._commit()

    def scattered(self) -> Iterator[WorkUnit]:
        """Yield, for each study that was met in more than one unit, one unit of all their files; sorted by study id."""
        last: str | None = None
        query = (
            "SELECT study_id FROM outcomes WHERE part = 1 AND (?1 IS NULL OR study_id > ?1) "
            "GROUP BY study_id HAVING count(*) > 1 ORDER BY study_id LIMIT 1"
        )
        while (row := self._db.execute(query, (last,)).fetchone()) is not None:
            last = str(row[0])
            packed = self._db.execute(
                "SELECT files FROM units WHERE key IN (SELECT unit FROM outcomes WHERE part = 1 AND study_id = ?)",
                (last,),
            )
            files = (entry for (blob,) in packed for entry in _unpacked(blob))
            yield replace(merged_unit(_MERGED_PREFIX + last, files, last), part=True)

    # -- reading back --------------------------------------------------------------------------------------------------

    def outcomes(self) -> Iterator[tuple[str, list[Row], str]]:
        """Yield (study id, rows, line of ``studies.jsonl``) sorted by study id, each study once."""
        query = (
            "SELECT study_id, rows, line FROM outcomes ORDER BY study_id, part, unit"
        )
        last = None
        for study_id, rows, line in self._db.execute(query):
            if study_id != last:
                last = study_id
                line = zlib.decompress(line).decode()
                yield study_id, json.loads(zlib.decompress(rows)), line

    def incomplete(self) -> int:
        """Return how many studies were recorded without a file of theirs that could not be read."""
        return sum(
            f'"{Warn.FILE_UNREADABLE}"' in line for _, _, line in self.outcomes()
        )

    def counts(self) -> tuple[Counter[str], Counter[str]]:
        """Return how many studies have each status, and how many each reason."""
        statuses: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        last = None
        for study_id, status, reason in self._db.execute(
            "SELECT study_id, status, reason FROM outcomes ORDER BY study_id, part, unit"
        ):
            if study_id != last:
                last = study_id
                statuses[status] += 1
                if reason:
                    reasons[reason] += 1
        return statuses, reasons

    def refused_counts(self) -> dict[str, int]:
        """Return how many files were refused, by reason."""
        query = "SELECT reason, count(DISTINCT path) FROM refused GROUP BY reason ORDER BY reason"
        return {str(reason): int(count) for reason, count in self._db.execute(query)}

    def refused_files(self, *, limit: int) -> list[tuple[str, str]]:
        """Return the first ``limit`` refused files as (path, reason), sorted by path."""
        query = (
            "SELECT path, min(reason) FROM refused GROUP BY path ORDER BY path LIMIT ?"
        )
        return [
            (_text(path), str(reason))
            for path, reason in self._db.execute(query, (limit,))
        ]

    # -- inside --------------------------------------------------------------------------------------------------------

    def _parts(self, parent: bytes) -> Iterator[WorkUnit]:
        query = "SELECT key, files, study_id FROM units WHERE parent = ? ORDER BY key"
        for key, blob, study_id in self._db.execute(query, (parent,)).fetchall():
            yield WorkUnit(
                key=_text(key), files=_unpacked(blob), study_id=study_id, part=True
            )

    def _refuse(self, file: RefusedFile, unit: bytes) -> None:
        values = (_key(file.path), unit, file.reason, self._met)
        self._write("INSERT OR REPLACE INTO refused VALUES (?, ?, ?, ?)", *values)

    def _forget(self, condition: str, *values: Any) -> None:
        gone = f"(SELECT key FROM units WHERE {condition})"
        self._write(f"DELETE FROM outcomes WHERE unit IN {gone}", *values)
        self._write(f"DELETE FROM refused WHERE unit IN {gone}", *values)
        self._write(f"DELETE FROM units WHERE {condition}", *values)

    def _begin(self) -> None:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")

    def _write(self, statement: str, *values: Any) -> None:
        self._begin()
        self._db.execute(statement, values)

    def _note(self, statement: str, *values: Any) -> None:
        self._write(statement, *values)
        self._noted()

    def _noted(self) -> None:
        self._notes += 1
        if self._notes >= _BATCH:
            self._commit()

    def _commit(self) -> None:
        self._notes = 0
        if self._db.in_transaction:
            self._db.execute("COMMIT")


@dataclass(frozen=True, kw_only=True)
class RecordedStudy:
    """A study of a ledger: its outcome, the files it was read from, and when it was done (seconds since 1970)."""

    result: StudyResult
    unit: WorkUnit
    finished: float


class LedgerReader:
    """The ledger of an output folder, only to be read; a run may be writing it. Use from one thread."""

    def __init__(self, path: Path) -> None:
        """Open the ledger at ``path``.

        Raises:
            OutputError: there is none, or it is not one of this version.
        """
        try:
            self._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
            row = self._db.execute(
                "SELECT value FROM facts WHERE name = 'schema'"
            ).fetchone()
        except sqlite3.Error as error:
            raise OutputError(
                f"cannot read {path}: {error}; name the output folder of a run of 'spine-engine run'"
            ) from error
        if row is None or row[0] != _SCHEMA_VERSION:
            raise OutputError(
                f"{path} was written by another version of spine-engine; run again into a new folder"
            )

    def close(self) -> None:
        """Close the ledger."""
        self._db.close()

    def fact(self, name: str) -> str | None:
        """Return a recorded fact of the output folder."""
        row = self._db.execute(
            "SELECT value FROM facts WHERE name = ?", (name,)
        ).fetchone()
        return None if row is None else str(row[0])

    def facts(self) -> dict[str, str]:
        """Return the facts that decided the results, by name."""
        rows = self._db.execute("SELECT name, value FROM facts ORDER BY name")
        return {name: value for name, value in rows if name not in _OWN_FACTS}

    @property
    def ended(self) -> bool:
        """Whether the last run into the output folder went to its end."""
        return self.fact(_ENDED) == self.fact("runs")

    def rows(
        self, table: str, columns: Sequence[str]
    ) -> Iterator[tuple[bytes | str | float | None, ...]]:
        """Yield the rows of a table."""
        yield from self._db.execute(f"SELECT {', '.join(columns)} FROM {table}")

    def studies(self) -> Iterator[RecordedStudy]:
        """Yield every study once, sorted by study id."""
        last = None
        for row in self._db.execute(_STUDIES.format(where="")):
            if row[0] != last:
                last = row[0]
                yield _recorded(*row)

    def study(self, study_id: str) -> RecordedStudy:
        """Return one study. Raises ``KeyError`` when it is not there."""
        row = self._db.execute(
            _STUDIES.format(where="WHERE outcomes.study_id = ?"), (study_id,)
        ).fetchone()
        if row is None:
            raise KeyError(study_id)
        return _recorded(*row)


_STUDIES: Final = (
    "SELECT outcomes.study_id, outcomes.line, outcomes.rows, outcomes.finished, units.key, units.files "
    "FROM outcomes JOIN units ON units.key = outcomes.unit {where} "
    "ORDER BY outcomes.study_id, outcomes.part, outcomes.unit"
)


def _recorded(
    study_id: str, line: bytes, rows: bytes, finished: float, key: bytes, files: bytes
) -> RecordedStudy:
    unit = WorkUnit(
        key=_text(key), files=_unpacked(files), study_id=study_id, part=True
    )
    result = study_from_line(
        zlib.decompress(line).decode(), json.loads(zlib.decompress(rows))
    )
    return RecordedStudy(result=result, unit=unit, finished=finished)


def _by_chance(results: Sequence[StudyResult], refused: Sequence[RefusedFile]) -> bool:
    """Whether the machine caused an outcome, so that another try may give another."""
    if any(file.reason is Reason.UNREADABLE for file in refused):
        return True
    return any(
        result.reason is Reason.OUT_OF_MEMORY or Warn.FILE_UNREADABLE in result.warnings
        for result in results
    )


def _key(text: str) -> bytes:
    return text.encode(
        "utf-8", "surrogatepass"
    )  # file names may hold bytes that are not UTF-8


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogatepass")


def _packed(files: Sequence[InputFile]) -> bytes:
    return zlib.compress(
        json.dumps([[entry.path, entry.size] for entry in files]).encode("ascii"), 1
    )


def _unpacked(blob: bytes) -> tuple[InputFile, ...]:
    return tuple(
        InputFile(path=path, size=size)
        for path, size in json.loads(zlib.decompress(blob))
    )
