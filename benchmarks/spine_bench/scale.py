"""Does the 5,000th study cost what the 50th does? Time, memory, the first result, discovery, resuming, the ledger.

The studies are thin, so that 5,000 of them fit on any disk: five sagittal slices of a phantom, of 96 x 96 pixels, each
study under an identifier of its own. Everything is run on them as on any others, with the packaged models; they cost
about a fifth of a whole study, so what does not belong to one weighs five times.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final, NamedTuple

import numpy as np
import typer

from spine_bench.findings import Findings, Work, figures_found
from spine_bench.harness.host import lone_worker
from spine_bench.harness.interfaces import folder_library, write_copies
from spine_engine import Engine, Status, StudyResult
from spine_engine.anatomy import LEVELS
from spine_engine.dicom import WorkUnit, discover
from spine_engine.dicom.discovery import InputFile
from spine_engine.phantom import Protocol, write_studies
from spine_engine.results import ROW_ORDER, LevelResult, SeriesResult, in_millionths
from spine_engine.run.ledger import Ledger
from spine_engine.study import Source

SLICES: Final = 5
MATRIX: Final = 96
SEED: Final = 500
# Files of a unit in the ledger's own measurement: what a study of three series has.
UNIT_FILES: Final = 80
LEDGER_STUDIES: Final = 2000


class Walked(NamedTuple):
    """A run: studies, their rate from the first result to the last, when the first came, and peak memory."""

    studies: int
    studies_per_s: float
    first_result_s: float
    peak_bytes: int


def measure(
    few: int = 50,
    many: int = 5000,
    rounds: Annotated[
        int, typer.Option(help="Runs over the few; their median counts.")
    ] = 5,
    folder: Work = None,
) -> Findings:
    """Compare runs over few and over many thin studies: rate, memory, first result, resuming."""
    with (
        nullcontext(folder)
        if folder
        else TemporaryDirectory(prefix="spine-scale-") as place
    ):
        return figures_found("Scale", measured(Path(place), few, many, rounds))


def measured(
    folder: Path,
    few: int,
    many: int,
    rounds: int,
) -> dict[str, float]:
    """Write the studies and measure everything on them; return the figures by name."""
    for name, count in (("few", few), ("many", many)):
        if not (folder / name).exists():
            write_thin(folder / name, count)
    shutil.rmtree(folder / "out", ignore_errors=True)
    small = [in_process(folder / "few", None) for _ in range(rounds + 1)][
        1:
    ]  # the first compiles what is not cached
    large = in_process(folder / "many", folder / "out")
    began = time.perf_counter()
    again = in_process(folder / "many", folder / "out")
    resumed_s = time.perf_counter() - began
    if again.studies:
        raise RuntimeError(f"the second run did {again.studies} studies again")
    _, rate, first_s, peak = np.median(small, axis=0)
    return {
        f"studies a second, {few}": rate,
        f"studies a second, {many}": large.studies_per_s,
        "rate, many / few": large.studies_per_s / rate,
        f"peak memory MB, {few}": peak / 1e6,
        f"peak memory MB, {many}": large.peak_bytes / 1e6,
        "peak memory, many / few": large.peak_bytes / peak,
        f"first result of {many}, s after the start": large.first_result_s,
        f"first result of {few}, s after the start": first_s,
        "discovery, ms a file": discovery_ms(folder / "many"),
        f"resume over {many}, s": resumed_s,
        "ledger, ms of processor time a study": ledger_ms(),
    }


def in_process(folder: Path, out: Path | None) -> Walked:
    """Run in a process of its own, as the command line does; its time counts from before that process was started."""
    began = time.time()
    with lone_worker() as worker:
        return worker.submit(walked, folder, out, began).result()


def walked(folder: Path, out: Path | None, began: float) -> Walked:
    """Run over the studies of ``folder``, those that are recorded already left out."""
    run = Engine.open().run(folder, out)
    times = []
    for result in run:
        times.append(time.time())
        if result.status is not Status.GRADED:
            raise RuntimeError(f"{result.study_id}: {result.status} {result.reason}")
    assert run.summary is not None
    return Walked(
        studies=len(times),
        studies_per_s=(len(times) - 1) / (times[-1] - times[0])
        if len(times) > 1
        else 0.0,
        first_result_s=times[0] - began if times else 0.0,
        peak_bytes=run.summary.peak_memory_bytes["total"],
    )


def discovery_ms(folder: Path) -> float:
    """Return the milliseconds a file that finding the studies takes."""
    began = time.perf_counter()
    files = sum(
        len(item.files) if isinstance(item, WorkUnit) else 1
        for item in discover(folder)
    )
    return 1e3 * (time.perf_counter() - began) / files


def ledger_ms() -> float:
    """Return the milliseconds of processor time that the ledger takes for a study: met, begun, finished."""
    with TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite", {"made": "up"})
        began = time.process_time()
        for unit, result in made_up_studies(LEDGER_STUDIES):
            ledger.meet(unit)
            ledger.begin(unit)
            ledger.finish(unit, [result], [])
        ledger.close()
        return 1e3 * (time.process_time() - began) / LEDGER_STUDIES


def made_up_studies(count: int) -> Iterator[tuple[WorkUnit, StudyResult]]:
    """Yield studies that were never read, with results as long as those of real ones."""
    random = np.random.default_rng(0)
    axes = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    for number in range(count):
        name = f"2.25.{number:039}"
        files = tuple(
            InputFile(f"{name}/series/{index:04}.dcm", 250_000)
            for index in range(UNIT_FILES)
        )
        levels = {
            level: LevelResult(
                center_mm=tuple(random.normal(0, 50, 3)),
                axes=axes,
                size_mm=(10.0, 34.0, 47.0),
                confidence=float(random.random()),
                source=Source.DETECTOR,
            )
            for level in LEVELS
        }
        series = tuple(
            SeriesResult(
                path=f"{name}/series{index}",
                role="sagittal_t2",
                evidence="TE 100 ms",
                stacks=1,
                slices=15,
            )
            for index in range(3)
        )
        rows = (tuple(row) for row in random.dirichlet((8, 2, 1), len(ROW_ORDER)))
        result = StudyResult(
            study_id=name,
            status=Status.GRADED,
            rows=tuple(in_millionths(row) for row in rows),
            series=series,
            levels=levels,
        )
        yield WorkUnit(name, files, name), result


def write_thin(folder: Path, count: int) -> None:
    """Write ``count`` thin studies, a folder each."""
    thin = Protocol(
        sagittal=("t2",),
        axial="none",
        sagittal_slices=SLICES,
        sagittal_matrix=MATRIX,
    )
    with TemporaryDirectory() as made:
        deque(write_studies(Path(made), 1, SEED, protocol=thin), maxlen=0)
        write_copies(folder_library(Path(made)), folder, count)
