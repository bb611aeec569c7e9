"""Does the 5,000th study cost what the 50th does? Time, memory, the first result, discovery, resuming, the ledger.

Run ``python -m spine_bench.scale``. The studies are thin, so that 5,000 of them fit on any disk: five sagittal slices
of a phantom, every fourth pixel of each, under identifiers of their own. Everything is run on them as on any others,
with the packaged models; they cost about a fifth of a whole study, so what does not belong to one weighs five times.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pydicom

from spine_engine import Engine
from spine_engine.dicom import WorkUnit, discover
from spine_engine.dicom.discovery import FileEntry
from spine_engine.ledger import Ledger
from spine_engine.phantom import write_studies
from spine_engine.results import ROW_ORDER, SeriesResult, Status, StudyResult, in_millionths

SLICES, EVERY = 5, 4
SEED: Final = 500
UNIT_FILES: Final = 80
"""Files of a unit in the ledger's own measurement: what a study of three series has."""
LEDGER_STUDIES: Final = 2000

_STUDY, _SERIES, _INSTANCE = (f"2.25.1{kind}{'0' * 30}" for kind in (1, 2, 3))
"""Identifiers that stand in the template; the digits at their end are replaced study by study."""


@dataclass(frozen=True, kw_only=True)
class Walked:
    """A run over ``studies``: its rate from the first result to the last, and its peak memory."""

    studies: int
    studies_per_s: float
    first_result_s: float
    peak_bytes: int


def write_thin(folder: Path, count: int) -> None:
    """Write ``count`` thin studies, a folder each."""
    templates = _templates()
    for number in range(1, count + 1):
        place = folder / f"study{number:05}"
        place.mkdir(parents=True)
        for index, template in enumerate(templates):
            text = template
            for name in (_STUDY, _SERIES):
                text = text.replace(name.encode(), f"{name[:-8]}{number:08}".encode())
            instance = f"{_INSTANCE[:-8]}{number:05}{index:03}"
            (place / f"{index}.dcm").write_bytes(text.replace(_INSTANCE.encode(), instance.encode()))


def _templates() -> list[bytes]:
    """Return the middle slices of a phantom's sagittal T2 series, thinned out, as files."""
    with tempfile.TemporaryDirectory() as made:
        for _ in write_studies(Path(made), 1, SEED):
            pass
        descriptions = (Path(made) / "train_series_descriptions.csv").read_text().splitlines()
        study, series = next(line.split(",")[:2] for line in descriptions if "Sagittal T2" in line)
        files = [pydicom.dcmread(path) for path in (Path(made) / "train_images" / study / series).glob("*.dcm")]
        files.sort(key=lambda file: float(file.ImagePositionPatient[0]))
        middle = len(files) // 2
        return [_thinned(file, Path(made) / "thin.dcm") for file in files[middle - SLICES // 2 :][:SLICES]]


def _thinned(file: pydicom.Dataset, path: Path) -> bytes:
    pixels = np.ascontiguousarray(file.pixel_array[::EVERY, ::EVERY])
    file.Rows, file.Columns = pixels.shape
    file.PixelSpacing = [float(size) * EVERY for size in file.PixelSpacing]
    file.PixelData = pixels.tobytes()
    names = {"StudyInstanceUID": _STUDY, "SeriesInstanceUID": _SERIES, "SOPInstanceUID": _INSTANCE}
    for keyword, name in names.items():
        setattr(file, keyword, name)
    file.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(_INSTANCE)
    file.save_as(path)
    return path.read_bytes()


def walked(folder: Path, out: Path | None, begun: float) -> Walked:
    """Run over the studies of ``folder``."""
    run = Engine.open().run(folder, out)
    first = last = 0.0
    count = 0
    for result in run:
        last = time.time()
        first = first or last
        count += 1
        if result.status is not Status.GRADED:
            raise SystemExit(f"{result.study_id}: {result.status} {result.reason}")
    assert run.summary is not None
    rate = (count - 1) / (last - first) if count > 1 else 0.0
    peak = run.summary.peak_memory_bytes["total"]
    return Walked(studies=count, studies_per_s=rate, first_result_s=first - begun, peak_bytes=peak)


def in_process(folder: Path, out: Path | None) -> Walked:
    """Run in a process of its own, as the command line does; its time counts from before that process was started."""
    words = [sys.executable, "-m", "spine_bench.scale", "--walk", str(folder), "--begun", repr(time.time())]
    ended = subprocess.run(
        [*words, *(["--out", str(out)] if out else [])], check=True, stdout=subprocess.PIPE, text=True
    )
    return Walked(**json.loads(ended.stdout))


def discovery_ms(folder: Path) -> float:
    """Return the milliseconds a file that finding the studies takes."""
    begun, files = time.perf_counter(), 0
    for item in discover(folder):
        files += len(item.files) if isinstance(item, WorkUnit) else 1
    return 1e3 * (time.perf_counter() - begun) / files


def ledger_ms(folder: Path) -> float:
    """Return the milliseconds of processor time that the ledger takes for a study: met, begun, finished."""
    ledger = Ledger(folder / "ledger.sqlite", {"made": "up"})
    rows = tuple(in_millionths((1, 2, 3)) for _ in ROW_ORDER)
    series = tuple(SeriesResult(path=f"s{k}", role=None, evidence="none", stacks=1, slices=15) for k in range(3))
    begun = time.process_time()
    for number in range(LEDGER_STUDIES):
        name = f"2.25.{number:039}"
        files = tuple(FileEntry(f"{name}/series/{index:04}.dcm", 250_000) for index in range(UNIT_FILES))
        unit = WorkUnit(name, files, name)
        ledger.meet(unit)
        ledger.begin(unit)
        ledger.finish(unit, [StudyResult(study_id=name, status=Status.GRADED, rows=rows, series=series)], [])
    ledger.close()
    return 1e3 * (time.process_time() - begun) / LEDGER_STUDIES


def main() -> None:
    """Measure and print; with ``--walk`` only run over a folder, for the measurement above it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--few", type=int, default=50)
    parser.add_argument("--many", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5, help="runs over the few; their median counts")
    parser.add_argument("--folder", type=Path, help="where to write the studies; a temporary one if not given")
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--walk", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.walk:
        print(json.dumps(asdict(walked(arguments.walk, arguments.out, arguments.begun))))
        return
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="spine-scale-"))
    try:
        report(measured(folder, arguments.few, arguments.many, arguments.rounds), as_json=arguments.as_json)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)


def measured(folder: Path, few: int, many: int, rounds: int) -> dict[str, float]:
    """Write the studies and measure everything on them; return the figures by name."""
    for name, count in (("few", few), ("many", many)):
        if not (folder / name).exists():
            write_thin(folder / name, count)
    shutil.rmtree(folder / "out", ignore_errors=True)
    small = [in_process(folder / "few", None) for _ in range(rounds + 1)][1:]  # the first compiles what is not cached
    large = in_process(folder / "many", folder / "out")
    command = [sys.executable, "-m", "spine_engine.cli", "run", "--json"]
    command += ["--input", str(folder / "many"), "--output", str(folder / "out")]
    begun = time.perf_counter()
    again = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    resumed = time.perf_counter() - begun
    if json.loads(again.stdout)["units"] != {"walked": 0, "resumed": many}:
        raise SystemExit("the second run did not resume all studies")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        ledger = ledger_ms(Path(place))
    rate = float(np.median([one.studies_per_s for one in small]))
    peak = float(np.median([one.peak_bytes for one in small]))
    return {
        f"studies a second, {few}": rate,
        f"studies a second, {many}": large.studies_per_s,
        "rate, many / few": large.studies_per_s / rate,
        f"peak memory MB, {few}": peak / 1e6,
        f"peak memory MB, {many}": large.peak_bytes / 1e6,
        "peak memory, many / few": large.peak_bytes / peak,
        f"first result of {many}, s after the start": large.first_result_s,
        f"first result of {few}, s after the start": float(np.median([one.first_result_s for one in small])),
        "discovery, ms a file": discovery_ms(folder / "many"),
        f"resume over {many}, s": resumed,
        "ledger, ms of processor time a study": ledger,
    }


def report(figures: dict[str, float], *, as_json: bool) -> None:
    """Print the figures."""
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:45} {value:10.3f}")


if __name__ == "__main__":
    main()
