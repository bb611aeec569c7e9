"""A folder of one-line 'exams' and a worker that does what the line says: grade, fail, die, hang, ...

An exam is ``<study id> <deed> [argument]``. Each opening of a unit is logged, so a test can count attempts. In a worker
process a deed is done for real; in the tests' own process (``inprocess``) a death or a hang is only told.
"""

import multiprocessing
import os
import signal
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from spine_engine.backends.base import Device
from spine_engine.dicom.discovery import InputFile, RefusedFile, WorkUnit
from spine_engine.errors import BackendError, Reason
from spine_engine.options import RunOptions
from spine_engine.pipeline.outcome import UnitOutcome
from spine_engine.results import (
    ROW_ORDER,
    SeriesResult,
    Status,
    StudyResult,
    in_millionths,
    ungraded,
)
from spine_engine.run.memory import Resources
from spine_engine.run.plan import RunPlan
from spine_engine.run.run import Run, RunIdentity
from spine_engine.run.shards import WHOLE
from spine_engine.scheduler import Facts


class Died(BaseException):
    """Told instead of dying, where the worker is no process of its own."""


class Hung(BaseException):
    """Told instead of never coming back."""


class Later(BaseException):
    """Told by a task that takes a while: some turns of the event loop, or until a test lets it go on by its name."""

    def __init__(self, until: str) -> None:
        super().__init__(until)
        self.until = until


def write_exam(
    root: Path, folder: str, study_id: str, deed: str = "grade", name: str = "exam"
) -> Path:
    path = root / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{study_id}\n{deed}", encoding="utf-8")
    return path


def discover(root: Path, *, order=sorted):
    for folder in order(path for path in root.iterdir() if path.is_dir()):
        files = tuple(
            InputFile(str(path.relative_to(root)), path.stat().st_size)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        )
        if files:
            study = (root / files[0].path).read_text("utf-8", "replace").split("\n")[0]
            study = None if folder.name == "nameless" else study
            yield WorkUnit(folder.name, files, study)
    for path in sorted(root.iterdir()):
        if path.is_file():
            yield RefusedFile(path.name, Reason.NOT_AN_IMAGE)


def graded(study_id: str, seed: bytes) -> StudyResult:
    rows = []
    for index in range(len(ROW_ORDER)):
        a, b, c = (1 + zlib.crc32(seed + bytes([index, k])) % 9973 for k in range(3))
        rows.append(in_millionths((a, b, c)))
    series = (
        SeriesResult(
            path="s", role="sagittal_t2", evidence="TE 100 ms", stacks=1, slices=15
        ),
    )
    return StudyResult(
        study_id=study_id,
        status=Status.GRADED,
        rows=tuple(rows),
        series=series,
        timings_ms={"read": 1.0, "grade": 2.0},
    )


@dataclass
class FakeWorker:
    root: Path
    log: Path
    devices: dict[str, Device] = field(
        default_factory=lambda: {"grader": Device("fake", "cpu", "f32")}
    )
    limit_bytes: int | None = None
    waited: bool = False

    @property
    def facts(self) -> Facts:
        return {role: asdict(device) for role, device in self.devices.items()}

    def run(self, task: WorkUnit) -> tuple[UnitOutcome, Facts]:
        return self.outcome(task), self.facts

    def outcome(self, unit: WorkUnit) -> UnitOutcome:
        if not self.waited:
            with self.log.open("a") as log:
                log.write(f"{unit.key}\n")
        exams = {}
        for entry in unit.files:
            study_id, deed = (self.root / entry.path).read_text("utf-8").split("\n")
            exams.setdefault(study_id, []).append((entry, deed))
        if len(exams) > 1:
            parts = (
                WorkUnit(f"{unit.key}#{name}", tuple(entry for entry, _ in part), name)
                for name, part in exams.items()
            )
            return UnitOutcome(split=tuple(parts))
        ((study_id, part),) = exams.items()
        patients = {deed for _, deed in part if deed.startswith("patient")}
        if len(patients) > 1:
            return UnitOutcome(
                results=(ungraded(study_id, Status.FAILED, Reason.UID_COLLISION),)
            )
        seed = "\n".join(sorted({deed for _, deed in part})).encode()
        for _, deed in part:
            try:
                self.do(deed)
            except MemoryError:
                return UnitOutcome(
                    results=(ungraded(study_id, Status.FAILED, Reason.OUT_OF_MEMORY),)
                )
            if deed == "prior":
                return UnitOutcome(
                    results=(ungraded(study_id, Status.PRIOR, Reason.NO_SAGITTAL),)
                )
            if deed == "no study":
                return UnitOutcome(
                    refused=(RefusedFile(part[0][0].path, Reason.CORRUPT_FILE),)
                )
        return UnitOutcome(results=(graded(study_id, study_id.encode() + seed),))

    def do(self, deed: str) -> None:
        word, _, argument = deed.partition(" ")
        in_process = multiprocessing.parent_process() is None
        if word == "die":
            self.die(in_process)
        elif word == "segfault":
            self.die(in_process, signal.SIGSEGV)
        elif word == "die-once":
            marker = self.log.with_name("died-" + argument)
            if not marker.exists():
                marker.touch()
                self.die(in_process)
        elif word == "hang":
            if in_process:
                raise Hung
            time.sleep(600)
        elif word == "sleep":
            time.sleep(0.0 if in_process else float(argument))
        elif word in ("turns", "wait"):
            if not self.waited:
                raise Later(argument)
        elif word == "open":
            self.devices[argument] = Device("fake", "cpu", "f32")
        elif word == "no-model":
            raise BackendError(f"no {argument} here")
        elif word == "allocate":
            self.allocate(int(argument) << 20, in_process)
        elif word == "raise":
            raise ZeroDivisionError("NAME OF PATIENT")

    def die(self, in_process: bool, number: int | None = None) -> None:
        if in_process:
            raise Died
        if number is None:
            os._exit(3)
        os.kill(os.getpid(), number)

    def allocate(self, size: int, in_process: bool) -> None:
        if not in_process:
            bytearray(size)
        elif self.limit_bytes is not None and size > self.limit_bytes:
            raise MemoryError


def made(
    kind: Callable[[Path, Path], FakeWorker], root: Path
) -> tuple[FakeWorker, Facts]:
    """Make a worker of that kind over the exams of ``root``."""
    worker = kind(root, root.parent / "opened.log")
    return worker, worker.facts


def no_backend() -> tuple[FakeWorker, Facts]:
    raise BackendError("no such backend here")


def dies_at_start() -> tuple[FakeWorker, Facts]:
    if multiprocessing.parent_process() is None:
        raise Died
    os._exit(9)


def start(
    root: Path,
    output: Path | None,
    *,
    worker=FakeWorker,
    factory=None,
    discover=discover,
    bundle="b1",
    resources=None,
    series="none",
    companion=None,
    shard=WHOLE,
    shards=(),
    **options,
) -> Run:
    """Begin a run over fake exams; ``factory`` takes the place of one that makes each ``worker``."""
    chosen = RunOptions(**{"workers": 1, **options})
    plan = RunPlan(
        root=root,
        discover=discover,
        factory=factory or partial(made, worker, root),
        resources=resources or Resources(workers=chosen.worker_count, memory=None),
        timeout_s=chosen.timeout_s,
        max_attempts=chosen.max_attempts,
        companion=companion,
        series_descriptions=series,
        shard=shard,
    )
    facts = {"name": "fake", "version": "1", "digest": bundle}
    identity = RunIdentity(
        bundle=facts, options=chosen, series_descriptions=series, shard=shard
    )
    run = Run(plan, output, identity=identity, shards=shards)
    STARTED.append(run)
    return run


STARTED: list[Run] = []
"""Every run that was begun, for :func:`end_all`."""


def end_all() -> None:
    """End the runs that a failed test has left behind: they would hold up the end of the program."""
    for run in STARTED:
        if run._thread is not None and run._thread.is_alive():
            run.abort()
            run._thread.join(60)
    STARTED.clear()


def opened(root: Path) -> list[str]:
    log = root.parent / "opened.log"
    return log.read_text().splitlines() if log.exists() else []
