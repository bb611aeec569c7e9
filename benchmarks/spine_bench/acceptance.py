"""Measures what the engine promises, and writes it down.

Every figure comes from real runs of the command line over DICOM files on disk. Phantom studies are drawn and written
first; the real exams are used where ``SPINE_REAL_DATA`` names their folder.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import pydicom
import typer

from spine_bench.findings import Findings, Table, progress
from spine_bench.harness.interfaces import F64
from spine_engine._version import __version__
from spine_engine.anatomy import (
    CONDITIONS,
    LEVELS,
    MIRRORED_CONDITION,
    SEVERITIES,
    row_id,
)
from spine_engine.phantom import PhantomSpine, Protocol, draw_spine, render, write_study

# Phantoms from here on are for measurement only: detectors train on seeds from 700,000, graders from 10,000,000.
FIRST_SEED: Final = 910_000
# Added to a rendering seed for another scan of the same phantom.
ANOTHER_SCAN: Final = 50_000
# Poses turn the patient by up to this angle about a random axis.
MAX_POSE_DEG: Final = 20.0
# A disc counts as located within this distance (issue and truth both name disc centres).
LOCATED_MM: Final = 8.0
# Left and right count as different when their expected grades (0..2) differ by more than this.
CLEAR_DIFFERENCE: Final = 0.1


@dataclass(frozen=True)
class Figure:
    """One measured promise; ``met`` is None where nothing was promised."""

    name: str
    measured: str
    wanted: str = "-"
    met: bool | None = None

    @property
    def verdict(self) -> str:
        """``yes``, ``no``, or ``-`` where nothing was promised."""
        return "-" if self.met is None else "yes" if self.met else "no"


# -- running the command


def command(folder: Path, output: Path, *options: str) -> list[str]:
    """Return the command line of a run."""
    return [
        sys.executable,
        "-m",
        "spine_engine.cli",
        "run",
        "--input",
        str(folder),
        "--output",
        str(output),
        *options,
    ]


def run(
    folder: Path, output: Path, *options: str, **environment: str
) -> dict[str, Any]:
    """Run the engine and return its ``run.json``; keywords are variables of the environment.

    Raises:
        RuntimeError: it ended with anything but 0 (all graded) or 8 (some not graded).
    """
    done = subprocess.run(
        command(folder, output, *options),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 8):
        raise RuntimeError(
            f"the run ended with {done.returncode}: {done.stderr[-2000:]}"
        )
    record: dict[str, Any] = json.loads((output / "run.json").read_text())
    return record


def predictions(output: Path) -> dict[str, F64]:
    """Return ``predictions.csv`` as row id -> the three probabilities."""
    with (output / "predictions.csv").open(newline="") as file:
        return {
            row["row_id"]: np.array([float(row[str(s)]) for s in SEVERITIES])
            for row in csv.DictReader(file)
        }


def study_lines(output: Path) -> list[dict[str, Any]]:
    """Return the lines of ``studies.jsonl``."""
    return [
        json.loads(line) for line in (output / "studies.jsonl").read_text().splitlines()
    ]


def write_phantoms(
    folder: Path,
    spines: Iterable[PhantomSpine],
    *,
    scan: int = 0,
    follow_patient: bool = True,
) -> list[str]:
    """Render and write phantoms below ``folder``; return their study ids.

    Each spine has a protocol of its own, drawn from its seed. Another ``scan`` of it has other noise, coil sensitivity
    and tilts of the planes. ``follow_patient=False`` leaves the planes upright however the patient lies.
    """
    identifiers = []
    for spine in spines:
        study = render(
            spine,
            seed=spine.seed + scan * ANOTHER_SCAN,
            protocol=replace(Protocol.draw(spine.seed), follow_patient=follow_patient),
        )
        write_study(study, folder)
        identifiers.append(study.study_id)
    return identifiers


def phantoms(count: int) -> list[PhantomSpine]:
    """Draw the phantoms that every figure begins with."""
    return [draw_spine(FIRST_SEED + k) for k in range(count)]


# -- the promises


def real_exams(real_data: Path, work: Path) -> list[Figure]:
    """Every real exam is graded, and its discs are where the truth has them."""
    folder = real_data / "studies"
    run(folder, work / "real")
    truth = json.loads((folder / "truth.json").read_text())
    lines = study_lines(work / "real")
    graded = sum(line["status"] == "graded" for line in lines)
    errors_mm = np.concatenate([_errors_mm(line, truth) for line in lines])
    located = float(np.mean(errors_mm <= LOCATED_MM))
    return [
        Figure(
            "real exams graded (the packaged detector trained on them)",
            f"{graded} of {len(truth)}",
            "all",
            graded == len(truth),
        ),
        Figure(
            f"their discs at the right level within {LOCATED_MM:.0f} mm",
            f"{located:.1%} of {len(errors_mm)}, median error {np.median(errors_mm):.1f} mm",
            ">= 95 %",
            located >= 0.95,
        ),
    ]


def _errors_mm(line: dict[str, Any], truth: dict[str, Any]) -> F64:
    """Return how far the discs of a study are from their true places; infinity for one that was not found."""
    folder, *_ = line["series"][0]["path"].split("/")
    nowhere = [np.inf] * 3
    errors: F64 = np.linalg.norm(
        np.subtract(
            [
                line["levels"].get(level, {}).get("center_mm") or nowhere
                for level in truth[folder]
            ],
            list(truth[folder].values()),
        ),
        axis=1,
    )
    return errors


def mirror(work: Path, count: int) -> list[Figure]:
    """A mirrored study swaps left and right."""
    here, there = _graded_pairs(
        work,
        [spine.mirrored() for spine in phantoms(count)],
        mirrored=True,
    )
    followed, clear = _worse_side_follows(here, there)
    return [
        _small(
            f"{count} mirrored phantom studies: mean probability difference",
            here,
            there,
        ),
        Figure(
            "their worse side follows the mirror",
            f"{followed} of {clear}",
            "all",
            followed == clear > 0,
        ),
    ]


def pose(work: Path, count: int) -> list[Figure]:
    """A patient lying obliquely, scanned along the spine, gets the same grades."""
    name = f"{count} patients turned by up to {MAX_POSE_DEG:.0f} degrees and moved: mean probability difference"
    return [_small(name, *_graded_pairs(work, _posed(count)))]


def upright(work: Path, count: int) -> list[Figure]:
    """How much it changes when the planes do not follow the patient: every slice then cuts the spine askew."""
    return [
        _small(
            "the same with planes that stay upright",
            *_graded_pairs(work, _posed(count), follow_patient=False),
        )
    ]


def scan_again(work: Path, count: int) -> list[Figure]:
    """How much another scan of the same patient changes: the noise that the other differences stand beside."""
    name = f"{count} patients scanned a second time (other noise, coil, tilts): mean probability difference"
    return [
        Figure(
            name, _small(name, *_graded_pairs(work, phantoms(count), scan=1)).measured
        )
    ]


def _small(name: str, here: F64, there: F64) -> Figure:
    difference = float(np.abs(here - there).mean())
    return Figure(name, f"{difference:.4f}", "<= 0.02", difference <= 0.02)


def _posed(count: int) -> list[PhantomSpine]:
    rng = np.random.default_rng(FIRST_SEED)
    return [
        spine.posed(_rotation(rng), rng.uniform(-30, 30, 3))
        for spine in phantoms(count)
    ]


def _rotation(rng: np.random.Generator) -> F64:
    """Return a rotation ``(3, 3)`` by up to ``MAX_POSE_DEG`` about a random axis (Rodrigues' formula)."""
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    angle = np.radians(rng.uniform(0, MAX_POSE_DEG))
    cross = np.array(
        [
            [0, -z, y],
            [z, 0, -x],
            [-y, x, 0],
        ]
    )
    rotation: F64 = (
        np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    )
    return rotation


def _graded_pairs(
    work: Path,
    others: Sequence[PhantomSpine],
    *,
    mirrored: bool = False,
    **scanned: Any,
) -> tuple[F64, F64]:
    """Grade the phantoms as drawn, and in another form; return both ``(studies, conditions, levels, 3)``.

    Where the other form is mirrored, its conditions are swapped back.
    """
    identifiers = {
        "one": write_phantoms(work / "one", phantoms(len(others))),
        "two": write_phantoms(work / "two", others, **scanned),
    }
    conditions = {
        "one": CONDITIONS,
        "two": [
            MIRRORED_CONDITION[condition] if mirrored else condition
            for condition in CONDITIONS
        ],
    }
    grades = []
    for name, studies in identifiers.items():
        run(work / name, work / f"{name}-out")
        rows = predictions(work / f"{name}-out")
        ids = [
            row_id(study, condition, level)
            for study in studies
            for condition in conditions[name]
            for level in LEVELS
        ]
        grades.append(
            np.reshape(
                [rows[id_] for id_ in ids],
                (len(studies), len(CONDITIONS), len(LEVELS), -1),
            )
        )
    here, there = grades
    return here, there


def _worse_side_follows(here: F64, there: F64) -> tuple[int, int]:
    """Count the sided places whose worse side followed the mirror, and all whose sides clearly differ.

    Both are ``(studies, conditions, levels, 3)`` with the mirrored study's conditions already swapped back.
    """
    opposite = [
        CONDITIONS.index(MIRRORED_CONDITION[condition]) for condition in CONDITIONS
    ]
    left = [own for own, other in enumerate(opposite) if own < other]
    one, two = (
        (grades - grades[:, opposite])[:, left] @ np.arange(3.0)
        for grades in (here, there)
    )
    differs = np.abs(one) > CLEAR_DIFFERENCE
    return int((differs & (np.sign(one) == np.sign(two))).sum()), int(differs.sum())


def same_bytes(work: Path, count: int) -> list[Figure]:
    """One and two workers, shuffled files and a killed run give the same ``predictions.csv``."""
    folder = work / "same"
    write_phantoms(folder, phantoms(count))
    shuffle(folder, work / "shuffled")
    run(folder, work / "one", "--workers", "1")
    wanted = (work / "one" / "predictions.csv").read_bytes()
    run(folder, work / "two", "--workers", "2")
    run(work / "shuffled", work / "shuffled-out", "--workers", "2")
    killed_after = kill_in_the_middle(
        folder, work / "killed", at_least=max(1, count // 4)
    )
    run(folder, work / "killed")
    return [
        _equal(f"{count} phantoms, 2 workers against 1", wanted, work / "two"),
        _equal(
            "files and instance numbers shuffled into one folder a study",
            wanted,
            work / "shuffled-out",
        ),
        _equal(
            f"kill -9 after {killed_after} studies, then the same command",
            wanted,
            work / "killed",
        ),
    ]


def _equal(name: str, wanted: bytes, output: Path) -> Figure:
    same = (output / "predictions.csv").read_bytes() == wanted
    return Figure(
        f"predictions.csv: {name}",
        "same bytes" if same else "different bytes",
        "same bytes",
        same,
    )


def shuffle(folder: Path, target: Path) -> None:
    """Copy studies with random file names and instance numbers, each study's series mixed in one flat folder."""
    rng = np.random.default_rng(FIRST_SEED)
    for study in sorted(folder.iterdir()):
        files = sorted(study.rglob("*.dcm"))
        flat = target / f"s{rng.integers(1 << 40)}"
        flat.mkdir(parents=True)
        for number, path in zip(rng.permutation(len(files)), files, strict=True):
            dataset = pydicom.dcmread(path)
            dataset.InstanceNumber = int(number) + 1
            dataset.save_as(flat / f"{rng.integers(1 << 40):x}")


def kill_in_the_middle(folder: Path, output: Path, *, at_least: int) -> int:
    """Start a run, kill its main process with SIGKILL once ``at_least`` studies are recorded; return how many were.

    Raises:
        RuntimeError: the run ended before it could be killed.
    """
    process = subprocess.Popen(
        command(folder, output),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while _recorded(output) < at_least and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    if process.returncode != -signal.SIGKILL or (output / "predictions.csv").exists():
        raise RuntimeError(
            "the run had ended when it was killed; measure with more studies"
        )
    return _recorded(output)


def _recorded(output: Path) -> int:
    try:
        with closing(
            sqlite3.connect(
                f"file:{output / 'ledger.sqlite'}?mode=ro", timeout=30, uri=True
            )
        ) as ledger:
            return int(ledger.execute("SELECT count(*) FROM outcomes").fetchone()[0])
    except sqlite3.OperationalError:  # it is not there yet, or its tables are not
        return 0


def memory(work: Path, small: int, large: int) -> list[Figure]:
    """Peak memory does not grow with the number of studies."""
    write_phantoms(work / "large", phantoms(large))
    for study in sorted((work / "large").iterdir())[:small]:
        shutil.copytree(study, work / "small" / study.name, copy_function=os.link)
    few = run(work / "small", work / "small-out")
    many = run(work / "large", work / "large-out")
    peak, peak_many = (
        record["peak_memory_bytes"]["total"] / 1e6 for record in (few, many)
    )
    growth = peak_many / peak - 1
    return [
        Figure(
            f"peak memory of all processes, {large} studies against {small}",
            f"{peak_many:.0f} MB against {peak:.0f} MB ({growth:+.1%})",
            "within 10 %",
            abs(growth) <= 0.10,
        ),
        Figure(
            f"studies a second, {large} phantom studies, all cores",
            f"{many['studies_per_s']:.2f}",
        ),
    ]


# -- the trial


def measure(
    phantom_studies: Annotated[
        int, typer.Option("--phantoms", help="Phantoms for mirror and pose.")
    ] = 20,
    many: Annotated[int, typer.Option(help="Phantoms for the memory figure.")] = 200,
) -> Findings:
    """Measure what the engine promises, on files; on the real exams too where SPINE_REAL_DATA names their folder."""
    parts: dict[str, Callable[[Path], list[Figure]]] = {
        "mirror": partial(mirror, count=phantom_studies),
        "pose": partial(pose, count=phantom_studies),
        "upright": partial(upright, count=phantom_studies),
        "scan": partial(scan_again, count=phantom_studies),
        "bytes": partial(same_bytes, count=min(phantom_studies, 12)),
        "memory": partial(memory, small=max(1, many // 10), large=many),
    }
    real_data = os.environ.get("SPINE_REAL_DATA")
    if real_data:
        parts = {"real": partial(real_exams, Path(real_data)), **parts}
    figures: list[Figure] = []
    for name, part in parts.items():
        with tempfile.TemporaryDirectory(prefix=f"spine-{name}-") as work:
            progress(name)
            figures += part(Path(work))
    table = Table(
        title="Promises",
        columns=("promise", "measured", "wanted", "met"),
        rows=[
            (figure.name, figure.measured, figure.wanted, figure.verdict)
            for figure in figures
        ],
    )
    return Findings(
        tables=[table],
        notes=[]
        if real_data
        else ["SPINE_REAL_DATA is not set: the real exams are left out"],
        record=[asdict(figure) for figure in figures],
        page=page(table),
        failure="a promise is not kept"
        if any(figure.met is False for figure in figures)
        else "",
    )


def page(table: Table) -> str:
    """Return the figures as a Markdown page."""
    return f"""# What the engine promises, measured

`make accept`, spine-engine {__version__}, {date.today().isoformat()}, {os.cpu_count()} cores ({platform.machine()}), \
Python {platform.python_version()}. Phantoms are drawn from seeds never trained on.

{table.markdown()}
"""
