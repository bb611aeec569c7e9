"""Writes ``OUT/report``, the page of a run and of each study, from the ledger, by worker processes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from spine_engine._version import __version__
from spine_engine.bundle import Bundle
from spine_engine.dicom import RoleOverrides
from spine_engine.errors import OutputError, UsageError
from spine_engine.options import usable_cpus
from spine_engine.report.content import Identity, RunContent, RunStudy
from spine_engine.report.page import write_page
from spine_engine.report.reading import (
    LOST,
    StudySource,
    page_without_pictures,
    study_content,
)
from spine_engine.report.run_page import run_page
from spine_engine.report.study_page import study_page
from spine_engine.results import RUN_FILE
from spine_engine.run.folders import check_input, locked
from spine_engine.run.ledger import LEDGER_FILE, LedgerReader, RecordedStudy
from spine_engine.scheduler import Facts, WorkerError, WorkerPool

REPORT_FOLDER: Final = "report"
INDEX_FILE: Final = "index.html"
STUDIES_FOLDER: Final = "studies"
_BACK: Final = f"../{INDEX_FILE}"

PAGE_TIMEOUT_S: Final = 300.0
"""Time limit of a page, which takes a tenth of a second: it ends the wait for a disk that hangs."""

_NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "bundle": ("name", "version", "digest", "path"),
    "devices": (),
    "options": ("series_descriptions", "schedule"),
    "studies": ("total",),
}
"""Fields of ``run.json`` that a report needs; other missing fields are left out of the pages."""

_UID: Final = re.compile(r"[0-9][0-9.]{0,63}")
"""Study ids that can be file names without a change (PS3.5 9.1)."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A written report: the page of the run, the number of studies, and of those without pictures."""

    index: Path
    studies: int
    without_pictures: int
    wall_s: float


@dataclass(frozen=True, kw_only=True)
class Moved:
    """New places of what a run used; None for what has not moved.

    Attributes:
        root: the input folder.
        bundle: the bundle.
        series_descriptions: the table of series that the run was given.
    """

    root: Path | None = None
    bundle: Path | None = None
    series_descriptions: Path | None = None


def write_report(
    output: Path,
    *,
    moved: Moved | None = None,
    with_identity: bool = False,
    workers: int | None = None,
    on_page: Callable[[int, int], None] = lambda done, of: None,
) -> Report:
    """Write ``output/report``: ``index.html`` and a page for each study, self-contained, from a finished run.

    The studies' files are read again for the pictures; a study whose files have changed or cannot be read gets a page
    without pictures. ``index.html`` is removed first and written last: if it exists, every page is of the same report.

    Args:
        output: the output folder of the run.
        moved: what has moved since the run, if anything.
        with_identity: show names, descriptions and paths; without it nothing on the pages names a patient.
        workers: number of processes that draw pages; by default one for each usable CPU.
        on_page: called after each page with the number of written pages and of all pages.

    Raises:
        UsageError: the input is no folder, the bundle is not the one of the run, the table cannot be read, or another
            version of the engine made the results.
        BundleError: the bundle is missing or damaged.
        OutputError: ``output`` is not the output folder of a run, or cannot be written.
        OutputBusyError: a run, or another report, is writing to ``output``.
    """
    begun = time.monotonic()
    run = _run_record(output)
    with locked(output), closing(LedgerReader(output / LEDGER_FILE)) as reader:
        try:
            source = _source(reader, run, moved or Moved(), with_identity=with_identity)
            writing = _Writing(output, source, run, on_page)
            writing.begin()
            asyncio.run(writing.write_all(reader, workers or usable_cpus()))
            index = writing.finish()
        except OSError as error:
            raise OutputError(
                f"cannot write to {output}: {error.strerror}; free space and try again"
            ) from error
        except sqlite3.Error as error:
            raise OutputError(
                f"{output / LEDGER_FILE} is damaged: {error}; run again into a new folder"
            ) from error
    return Report(
        index=index,
        studies=len(writing.studies),
        without_pictures=writing.without_pictures,
        wall_s=time.monotonic() - begun,
    )


def _run_record(output: Path) -> dict[str, Any]:
    try:
        record: Any = json.loads((output / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OutputError(
            f"{output} holds no {RUN_FILE}: name the output folder of a finished run; to finish an interrupted one, "
            "repeat its 'spine-engine run' command"
        ) from None
    except (OSError, ValueError) as error:
        raise OutputError(
            f"cannot read {output / RUN_FILE}: {error}; run again"
        ) from error
    parts = record if isinstance(record, dict) else {}
    for name, fields in _NEEDED.items():
        part = parts.get(name)
        if not isinstance(part, dict) or not all(field in part for field in fields):
            raise OutputError(
                f"{output / RUN_FILE} lacks {name!r}: it is not a record of a run; run again"
            )
    return parts


def _source(
    reader: LedgerReader, run: Mapping[str, Any], moved: Moved, *, with_identity: bool
) -> StudySource:
    made_by = reader.fact("engine version")
    if made_by != __version__:
        raise UsageError(
            f"the run was done by spine-engine {made_by}, this is {__version__}, which may cut the grids differently: "
            "report with that version, or run again into a new folder"
        )
    named = moved.bundle or (
        Path(run["bundle"]["path"]) if run["bundle"]["path"] else None
    )
    used = Bundle.open(named, trust=True)  # no model of it runs
    if used.digest != reader.fact("bundle"):
        raise UsageError(
            f"the run used the bundle {run['bundle']['name']} {run['bundle']['version']}, digest "
            f"{run['bundle']['digest'][:12]}; {used.path} has {used.digest[:12]}: name the run's with --bundle"
        )
    root = (
        Path(reader.fact("input") or "")
        if moved.root is None
        else check_input(moved.root)
    )
    overrides = _overrides(
        root, moved.series_descriptions, run["options"]["series_descriptions"]
    )
    return StudySource(
        root=root if root.is_dir() else None,
        overrides=overrides,
        grader=used.manifest.models.grader,
        provenance=tuple(_provenance(run)),
        with_identity=with_identity,
    )


def _overrides(root: Path, given: Path | None, stated: str | None) -> RoleOverrides:
    """Return the roles that were stated for the run; studies whose roles have changed since get no pictures."""
    if given is not None:
        return RoleOverrides.from_csv(given)
    if not root.is_dir():
        return RoleOverrides()
    if stated is None:
        return RoleOverrides.find(root)
    if not Path(stated).is_file():
        raise UsageError(
            f"the run's table of series {stated!r} is missing: name it with --series-descriptions"
        )
    return RoleOverrides.from_csv(Path(stated))


def _provenance(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "spine-engine", __version__
    yield "bundle", f"{run['bundle']['name']} {run['bundle']['version']}"
    yield "bundle digest (SHA-256)", run["bundle"]["digest"]
    for role, device in sorted(run["devices"].items()):
        yield (
            role.replace("_", " "),
            ", ".join(f"{key} {value}" for key, value in device.items()),
        )
    yield "schedule", str(run["options"]["schedule"])


def page_name(study_id: str) -> str:
    """Return the file name of a study's page: the study's id if that is a UID, else a digest of it."""
    stem = (
        study_id
        if _UID.fullmatch(study_id)
        else hashlib.sha256(study_id.encode()).hexdigest()[:32]
    )
    return f"{stem}.html"


class _Writing:
    """Writes the pages of one report and counts them."""

    def __init__(
        self,
        output: Path,
        source: StudySource,
        run: Mapping[str, Any],
        on_page: Callable[[int, int], None],
    ) -> None:
        self._ledger = output / LEDGER_FILE
        self._source = source
        self._run = run
        self._index = output / REPORT_FOLDER / INDEX_FILE
        self._folder = output / REPORT_FOLDER / STUDIES_FOLDER
        self._on_page = on_page
        self.studies: list[RunStudy] = []
        self.without_pictures = 0

    def begin(self) -> None:
        """Create the folders, and remove the index of an earlier report, whose pages are about to change."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._index.unlink(missing_ok=True)

    async def write_all(self, reader: LedgerReader, workers: int) -> None:
        """Write the page of every study."""
        total = self._run["studies"]["total"]
        pool = WorkerPool(
            PageFactory(self._ledger, self._folder, self._source),
            workers=min(workers, max(1, total)),
            timeout_s=PAGE_TIMEOUT_S,
        )
        recorded = reader.studies()

        async def draw() -> None:
            for study in recorded:
                result = study.result
                try:
                    async with pool.slot() as slot:
                        outcome = await slot.run(result.study_id)
                except WorkerError:  # the files have become dangerous since the run
                    outcome = _write_without_pictures(study, self._source, self._folder)
                self.without_pictures += not outcome.pictures
                page = f"{STUDIES_FOLDER}/{page_name(result.study_id)}"
                self.studies.append(
                    RunStudy(
                        result=result,
                        page=page,
                        finished=study.finished,
                        identity=outcome.identity,
                    )
                )
                self._on_page(len(self.studies), total)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(draw())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            pool.close()

    def finish(self) -> Path:
        """Remove pages of studies that are not in the run, and write the page of the run; return its path."""
        self.studies.sort(key=lambda study: study.result.study_id)
        names = {page_name(study.result.study_id) for study in self.studies}
        for old in [*self._folder.glob("*.html"), *self._folder.glob(".*.html.part")]:
            if old.name not in names:
                old.unlink()
        left_off = (
            len(self.studies) != self._run["studies"]["total"]
        )  # a later run was killed before it wrote its own
        run = {**self._run, "interrupted": True} if left_off else self._run
        write_page(self._index, run_page(RunContent(run=run, studies=self.studies)))
        return self._index


@dataclass(frozen=True, kw_only=True)
class PageOutcome:
    """The outcome of drawing a page: whether it has pictures, and the person it names, if asked for."""

    pictures: bool
    identity: Identity | None


def _write_without_pictures(
    recorded: RecordedStudy, source: StudySource, folder: Path
) -> PageOutcome:
    """Write the page of a study that cannot be read or drawn again."""
    content = page_without_pictures(recorded, source, LOST, run_page=_BACK)
    write_page(folder / page_name(recorded.result.study_id), study_page(content))
    return PageOutcome(pictures=False, identity=content.identity)


# -- in the worker process ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PageFactory:
    """Creates the worker that draws pages."""

    ledger: Path
    folder: Path
    source: StudySource

    def __call__(self) -> tuple[PageWorker, Facts]:
        """Open the ledger and return the worker."""
        return PageWorker(self), {}


class PageWorker:
    """Draws the pages of studies, given their ids."""

    def __init__(self, plan: PageFactory) -> None:
        self._plan = plan
        self._reader = LedgerReader(plan.ledger)

    def run(self, task: str) -> tuple[PageOutcome, Facts]:
        """Write the page of the study whose id is ``task``."""
        return self._drawn(task), {}

    def _drawn(self, study_id: str) -> PageOutcome:
        recorded = self._reader.study(study_id)
        folder = self._plan.folder
        try:
            content = study_content(recorded, self._plan.source, run_page=_BACK)
            text = study_page(content)
        except Exception:  # noqa: BLE001 - a study that cannot be drawn costs its pictures alone
            return _write_without_pictures(recorded, self._plan.source, folder)
        write_page(folder / page_name(recorded.result.study_id), text)
        return PageOutcome(
            pictures=content.no_pictures is None, identity=content.identity
        )
