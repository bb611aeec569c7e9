"""``OUT/report``: the page of a run and one of each study, written by worker processes from what the ledger holds."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from spine_engine.backends.base import Device
from spine_engine.bundle import Bundle
from spine_engine.dicom import RoleOverrides, WorkUnit
from spine_engine.errors import OutputError, UsageError
from spine_engine.ledger import LEDGER_FILE, LedgerReader
from spine_engine.options import usable_cpus
from spine_engine.output import check_input
from spine_engine.report.content import RunContent, RunStudy, StudyContent
from spine_engine.report.reading import LOST, StudySource, page_without_pictures, study_content
from spine_engine.report.run_page import run_page
from spine_engine.report.study_page import study_page
from spine_engine.results import RUN_FILE, Status
from spine_engine.scheduler import Scheduler, UnitOutcome, WorkerError

REPORT_FOLDER: Final = "report"
INDEX_FILE: Final = "index.html"
STUDIES_FOLDER: Final = "studies"

PAGE_TIMEOUT_S: Final = 300.0
"""Reading a study and drawing its page takes a tenth of a second; this is for a disk that hangs."""

_UID: Final = re.compile(r"[0-9][0-9.]{0,63}")
"""Study ids that are file names as they are (PS3.5 9.1)."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written: the page of the run, how many studies it has, how many of them without pictures."""

    index: Path
    studies: int
    without_pictures: int
    wall_s: float


def write_report(
    output: Path,
    *,
    root: Path | None = None,
    bundle: Path | None = None,
    with_identity: bool = False,
    workers: int | None = None,
    on_page: Callable[[int, int], None] = lambda done, of: None,
) -> Report:
    """Write ``output/report``: ``index.html`` and a page for each study, self-contained, from a finished run.

    The studies' files are read again for the pictures; what has changed since, or cannot be read, has a page without.

    Args:
        output: the output folder of the run.
        root: the input folder, where it has moved since.
        bundle: the bundle the run used, where that has moved.
        with_identity: show names, descriptions and paths; without it nothing on the pages names a patient.
        workers: processes that draw pages; one for each usable CPU if not given.
        on_page: told after each page how many are done, of how many.

    Raises:
        UsageError: ``root`` is no folder, or the bundle is not the one of the run.
        BundleError: the bundle is missing or damaged.
        OutputError: ``output`` is not the output folder of a run, or cannot be written.
    """
    begun = time.monotonic()
    run = _run_record(output)
    reader = LedgerReader(output / LEDGER_FILE)
    try:
        source = _source(reader, run, root, bundle, with_identity=with_identity)
        folder = output / REPORT_FOLDER
        writing = _Writing(output, folder, source, run, on_page)
        try:
            (folder / STUDIES_FOLDER).mkdir(parents=True, exist_ok=True)
            asyncio.run(writing.write_all(reader, workers or usable_cpus()))
            index = writing.finish()
        except OSError as error:
            raise OutputError(f"cannot write to {folder}: {error.strerror}; free space and try again") from error
    finally:
        reader.close()
    bare = sum(1 for study in writing.studies if study.result.status is Status.FAILED)
    missing = len(writing.studies) if source.root is None else bare + len(writing.lost)
    return Report(index=index, studies=len(writing.studies), without_pictures=missing, wall_s=time.monotonic() - begun)


def _run_record(output: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((output / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OutputError(
            f"{output} holds no {RUN_FILE}: name the output folder of a run that has ended; the same 'spine-engine "
            "run' goes on with one that has not"
        ) from None
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read {output / RUN_FILE}: {error}; run again") from error
    return record


def _source(
    reader: LedgerReader, run: Mapping[str, Any], root: Path | None, bundle: Path | None, *, with_identity: bool
) -> StudySource:
    used = Bundle.open(bundle or (Path(run["bundle"]["path"]) if run["bundle"]["path"] else None))
    if used.digest != reader.fact("bundle"):
        raise UsageError(
            f"the run used the bundle {run['bundle']['name']} {run['bundle']['version']}, digest "
            f"{run['bundle']['digest'][:12]}; {used.path} has {used.digest[:12]}: name the run's with --bundle"
        )
    found = check_input(root) if root is not None else Path(reader.fact("input") or "")
    there = found.is_dir()
    stated = run["options"]["series_descriptions"]
    overrides = RoleOverrides()
    if there:
        overrides = RoleOverrides.find(found) if stated is None else RoleOverrides.from_csv(Path(stated))
    return StudySource(
        root=found if there else None,
        overrides=overrides,
        grader=used.manifest.models.grader,
        provenance=tuple(_provenance(run)),
        with_identity=with_identity,
    )


def _provenance(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "spine-engine", run["engine_version"]
    yield "bundle", f"{run['bundle']['name']} {run['bundle']['version']}"
    yield "bundle digest (SHA-256)", run["bundle"]["digest"]
    for role, device in sorted(run["devices"].items()):
        yield role.replace("_", " "), ", ".join(f"{key} {value}" for key, value in device.items())
    yield "schedule", str(run["options"]["schedule"])


def page_name(study_id: str) -> str:
    """Return the file name of a study's page: its id where that is a UID, else a digest of it."""
    plain = study_id if _UID.fullmatch(study_id) else hashlib.sha256(study_id.encode()).hexdigest()[:32]
    return f"{plain}.html"


class _Writing:
    """The pages of one report, as they are written."""

    def __init__(
        self,
        output: Path,
        folder: Path,
        source: StudySource,
        run: Mapping[str, Any],
        on_page: Callable[[int, int], None],
    ) -> None:
        self._ledger, self._folder, self._source, self._run = output / LEDGER_FILE, folder, source, run
        self._on_page = on_page
        self.studies: list[RunStudy] = []
        self.lost: set[str] = set()

    async def write_all(self, reader: LedgerReader, workers: int) -> None:
        """Write the page of every study."""
        total = self._run["studies"]["total"]
        scheduler = Scheduler(
            PageFactory(self._ledger, self._folder / STUDIES_FOLDER, self._source),
            workers=min(workers, max(1, total)),
            timeout_s=PAGE_TIMEOUT_S,
        )
        recorded = reader.studies()

        async def draw() -> None:
            for study in recorded:
                name, result = page_name(study.result.study_id), study.result
                try:
                    async with scheduler.slot() as slot:
                        await slot.walk(WorkUnit(key=study.unit.key, files=(), study_id=result.study_id))
                except WorkerError:  # the files have become dangerous since the run
                    self.lost.add(result.study_id)
                    content = page_without_pictures(study, self._source, LOST, run_page=f"../{INDEX_FILE}")
                    _write_page(self._folder / STUDIES_FOLDER / name, content)
                page = f"{STUDIES_FOLDER}/{name}"
                identity = self._source.identity(study.unit.files[:1])
                self.studies.append(RunStudy(result=result, page=page, finished=study.finished, identity=identity))
                self._on_page(len(self.studies), total)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(draw())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            scheduler.close()

    def finish(self) -> Path:
        """Write the page of the run and remove pages of studies that are not in it; return its path."""
        self.studies.sort(key=lambda study: study.result.study_id)
        names = {page_name(study.result.study_id) for study in self.studies}
        for old in (self._folder / STUDIES_FOLDER).glob("*.html"):
            if old.name not in names:
                old.unlink()
        index = self._folder / INDEX_FILE
        index.write_text(run_page(RunContent(run=self._run, studies=self.studies)), encoding="utf-8")
        return index


def _write_page(path: Path, content: StudyContent) -> None:
    path.write_text(study_page(content), encoding="utf-8")


# -- in the worker process ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PageFactory:
    """Makes the walk that draws pages."""

    ledger: Path
    folder: Path
    source: StudySource

    def __call__(self) -> PageWalk:
        """Open the ledger."""
        return PageWalk(self)


class PageWalk:
    """Draws the pages of studies, by their ids."""

    def __init__(self, plan: PageFactory) -> None:
        self.devices: Mapping[str, Device] = {}
        self._plan = plan
        self._reader = LedgerReader(plan.ledger)

    def __call__(self, unit: WorkUnit) -> UnitOutcome:
        """Write the page of one study."""
        assert unit.study_id is not None
        recorded = self._reader.study(unit.study_id)
        back = f"../{INDEX_FILE}"
        try:
            content = study_content(recorded, self._plan.source, run_page=back)
        except (MemoryError, Exception):  # noqa: BLE001 - a study that cannot be drawn costs its pictures alone
            content = page_without_pictures(recorded, self._plan.source, LOST, run_page=back)
        _write_page(self._plan.folder / page_name(recorded.result.study_id), content)
        return UnitOutcome()
