"""Measures what the engine promises, and writes it down: ``python -m spine_bench.acceptance``.

Every figure comes from real runs of the command line over DICOM files on disk. Phantom studies are drawn and written
first; the real exams are used where ``SPINE_REAL_DATA`` names their folder.
"""

from __future__ import annotations

import argparse
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
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import CONDITIONS, LEVELS, MIRRORED_CONDITION, SEVERITIES, Condition, row_id
from spine_engine.phantom import PhantomSpine, Protocol, draw_spine, render, write_study

FIRST_SEED: Final = 910_000
"""Phantoms from here on are for measurement only: detectors train on seeds from 700,000, graders from 10,000,000."""
ANOTHER_SCAN: Final = 50_000
"""Added to a rendering seed for another scan of the same phantom."""
MAX_POSE_DEG: Final = 20.0
"""Poses turn the patient by up to this angle about a random axis."""
LOCATED_MM: Final = 8.0
"""A disc counts as located within this distance (issue and truth both name disc centres)."""
CLEAR_DIFFERENCE: Final = 0.1
"""Left and right count as different when their expected grades (0..2) differ by more than this."""

Probabilities = NDArray[np.float64]


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
    return [sys.executable, "-m", "spine_engine.cli", "run", "--input", str(folder), "--output", str(output), *options]


def run(folder: Path, output: Path, *options: str) -> dict[str, Any]:
    """Run the engine and return its ``run.json``.

    Raises:
        RuntimeError: it ended with anything but 0 (all graded) or 8 (some not graded).
    """
    done = subprocess.run(command(folder, output, *options), capture_output=True, text=True, check=False)
    if done.returncode not in (0, 8):
        raise RuntimeError(f"the run ended with {done.returncode}: {done.stderr[-2000:]}")
    record: dict[str, Any] = json.loads((output / "run.json").read_text())
    return record


def predictions(output: Path) -> dict[str, Probabilities]:
    """Return ``predictions.csv`` as row id -> the three probabilities."""
    with (output / "predictions.csv").open(newline="") as file:
        return {row["row_id"]: np.array([float(row[str(s)]) for s in SEVERITIES]) for row in csv.DictReader(file)}


def study_lines(output: Path) -> list[dict[str, Any]]:
    """Return the lines of ``studies.jsonl``."""
    return [json.loads(line) for line in (output / "studies.jsonl").read_text().splitlines()]


def grades_of(rows: dict[str, Probabilities], study_id: str, conditions: Iterable[Condition]) -> Probabilities:
    """Return one study's probabilities ``(conditions, 5 levels, 3)``."""
    return np.array([[rows[row_id(study_id, condition, level)] for level in LEVELS] for condition in conditions])


def write_phantoms(
    folder: Path, spines: Iterable[PhantomSpine], *, scan: int = 0, follow_patient: bool = True
) -> list[str]:
    """Render and write phantoms below ``folder``; return their study ids.

    Each spine has a protocol of its own, drawn from its seed. Another ``scan`` of it has other noise, coil sensitivity
    and tilts of the planes. ``follow_patient=False`` leaves the planes upright however the patient lies.
    """
    identifiers = []
    for spine in spines:
        protocol = replace(Protocol.draw(spine.seed), follow_patient=follow_patient)
        study = render(spine, seed=spine.seed + scan * ANOTHER_SCAN, protocol=protocol)
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
    distances, graded = [], 0
    for line in study_lines(work / "real"):
        graded += line["status"] == "graded"
        name = line["series"][0]["path"].split("/")[0]
        for level, center_mm in truth[name].items():
            found = line["levels"].get(level, {}).get("center_mm")
            distances.append(np.inf if found is None else float(np.linalg.norm(np.subtract(found, center_mm))))
    located = float(np.mean(np.array(distances) <= LOCATED_MM))
    return [
        Figure(
            "real exams graded (the packaged detector trained on them)",
            f"{graded} of {len(truth)}",
            "all",
            graded == len(truth),
        ),
        Figure(
            f"their discs at the right level within {LOCATED_MM:.0f} mm",
            f"{located:.1%} of {len(distances)}, median error {np.median(distances):.1f} mm",
            ">= 95 %",
            located >= 0.95,
        ),
    ]


def mirror(work: Path, count: int) -> list[Figure]:
    """A mirrored study swaps left and right."""
    spines = phantoms(count)
    here, there = _graded_pairs(
        work, spines, write_phantoms(work / "two", [spine.mirrored() for spine in spines]), mirrored=True
    )
    difference = float(np.abs(here - there).mean())
    followed, clear = _worse_side_follows(here, there)
    return [
        Figure(
            f"{count} mirrored phantom studies: mean probability difference",
            f"{difference:.4f}",
            "<= 0.02",
            difference <= 0.02,
        ),
        Figure("their worse side follows the mirror", f"{followed} of {clear}", "all", followed == clear > 0),
    ]


def _graded_pairs(
    work: Path, spines: Sequence[PhantomSpine], others: list[str], *, mirrored: bool = False
) -> tuple[Probabilities, Probabilities]:
    """Grade phantoms as drawn, and their other form in ``work / "two"``; return both, conditions swapped back.

    Both are ``(studies, conditions, levels, 3)``.
    """
    plain = write_phantoms(work / "one", spines)
    run(work / "one", work / "one-out")
    run(work / "two", work / "two-out")
    one, two = predictions(work / "one-out"), predictions(work / "two-out")
    conditions = [MIRRORED_CONDITION[condition] if mirrored else condition for condition in CONDITIONS]
    here = np.array([grades_of(one, study_id, CONDITIONS) for study_id in plain])
    there = np.array([grades_of(two, study_id, conditions) for study_id in others])
    return here, there


def _worse_side_follows(here: Probabilities, there: Probabilities) -> tuple[int, int]:
    """Count the sided places whose sides clearly differ, and those of them whose worse side followed the mirror.

    Both are ``(studies, conditions, levels, 3)`` with the mirrored study's conditions already swapped back.
    """
    expected = [grades @ np.arange(3.0) for grades in (here, there)]
    followed = clear = 0
    for c, condition in enumerate(CONDITIONS):
        other = CONDITIONS.index(MIRRORED_CONDITION[condition])
        if other <= c:
            continue
        sides = [grade[:, c] - grade[:, other] for grade in expected]
        differs = np.abs(sides[0]) > CLEAR_DIFFERENCE
        clear += int(differs.sum())
        followed += int((differs & (np.sign(sides[0]) == np.sign(sides[1]))).sum())
    return followed, clear


def pose(work: Path, count: int) -> list[Figure]:
    """A patient lying obliquely, scanned along the spine, gets the same grades."""
    mean = _pose_difference(work, count, follow_patient=True)
    name = f"{count} patients turned by up to {MAX_POSE_DEG:.0f} degrees and moved: mean probability difference"
    return [Figure(name, f"{mean:.4f}", "<= 0.02", mean <= 0.02)]


def upright(work: Path, count: int) -> list[Figure]:
    """How much it changes when the planes do not follow the patient: every slice then cuts the spine askew."""
    mean = _pose_difference(work, count, follow_patient=False)
    return [Figure("the same with planes that stay upright", f"{mean:.4f}", "<= 0.02", mean <= 0.02)]


def _pose_difference(work: Path, count: int, *, follow_patient: bool) -> float:
    rng = np.random.default_rng(FIRST_SEED)
    spines = phantoms(count)
    posed = [spine.posed(_rotation(rng), rng.uniform(-30, 30, 3)) for spine in spines]
    here, there = _graded_pairs(work, spines, write_phantoms(work / "two", posed, follow_patient=follow_patient))
    return float(np.abs(here - there).mean())


def scan_again(work: Path, count: int) -> list[Figure]:
    """How much another scan of the same patient changes: the noise that the other differences stand beside."""
    spines = phantoms(count)
    here, there = _graded_pairs(work, spines, write_phantoms(work / "two", spines, scan=1))
    mean = float(np.abs(here - there).mean())
    name = f"{count} patients scanned a second time (other noise, coil, tilts): mean probability difference"
    return [Figure(name, f"{mean:.4f}")]


def _rotation(rng: np.random.Generator) -> Probabilities:
    """Return a rotation ``(3, 3)`` by up to ``MAX_POSE_DEG`` about a random axis (Rodrigues' formula)."""
    x, y, z = (axis := rng.normal(size=3)) / np.linalg.norm(axis)
    angle = np.radians(rng.uniform(0, MAX_POSE_DEG))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation: Probabilities = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return rotation


def same_bytes(work: Path, count: int) -> list[Figure]:
    """One and two workers, shuffled files and a killed run give the same ``predictions.csv``."""
    folder = work / "same"
    write_phantoms(folder, phantoms(count))
    shuffle(folder, work / "shuffled")
    run(folder, work / "one", "--workers", "1")
    wanted = (work / "one" / "predictions.csv").read_bytes()
    run(folder, work / "two", "--workers", "2")
    run(work / "shuffled", work / "shuffled-out", "--workers", "2")
    killed_after = kill_in_the_middle(folder, work / "killed", at_least=max(1, count // 4))
    run(folder, work / "killed")
    return [
        _equal(f"{count} phantoms, 2 workers against 1", wanted, work / "two"),
        _equal("files and instance numbers shuffled into one folder a study", wanted, work / "shuffled-out"),
        _equal(f"kill -9 after {killed_after} studies, then the same command", wanted, work / "killed"),
    ]


def _equal(name: str, wanted: bytes, output: Path) -> Figure:
    same = (output / "predictions.csv").read_bytes() == wanted
    return Figure(f"predictions.csv: {name}", "same bytes" if same else "different bytes", "same bytes", same)


def shuffle(folder: Path, target: Path) -> None:
    """Copy studies with random file names and instance numbers, each study's series mixed in one flat folder."""
    import pydicom

    rng = np.random.default_rng(FIRST_SEED)
    for study in sorted(path for path in folder.iterdir() if path.is_dir()):
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
        command(folder, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while (done := _recorded(output / "ledger.sqlite")) < at_least:
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with {process.returncode} after {done} studies, before it was killed")
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    if (output / "predictions.csv").exists():
        raise RuntimeError("the run had ended when it was killed; measure with more studies")
    return _recorded(output / "ledger.sqlite")


def _recorded(ledger: Path) -> int:
    if not ledger.exists():
        return 0
    connection = sqlite3.connect(ledger, timeout=30)
    try:
        return int(connection.execute("SELECT count(*) FROM outcomes").fetchone()[0])
    except sqlite3.OperationalError:  # its tables are not there yet
        return 0
    finally:
        connection.close()


def memory(work: Path, small: int, large: int) -> list[Figure]:
    """Peak memory does not grow with the number of studies."""
    write_phantoms(work / "large", phantoms(large))
    (work / "small").mkdir()
    for study in sorted(path for path in (work / "large").iterdir() if path.is_dir())[:small]:
        shutil.copytree(study, work / "small" / study.name, copy_function=os.link)
    one, two = run(work / "small", work / "small-out"), run(work / "large", work / "large-out")
    peaks = [record["peak_memory_bytes"]["total"] / 1e6 for record in (one, two)]
    growth = peaks[1] / peaks[0] - 1
    return [
        Figure(
            f"peak memory of all processes, {large} studies against {small}",
            f"{peaks[1]:.0f} MB against {peaks[0]:.0f} MB ({growth:+.1%})",
            "within 10 %",
            abs(growth) <= 0.10,
        ),
        Figure(f"studies a second, {large} phantom studies, all cores", f"{two['studies_per_s']:.2f}"),
    ]


# -- the page


def page(figures: Sequence[Figure]) -> str:
    """Return the figures as a Markdown page."""
    from spine_engine._version import __version__

    lines = [
        "# What the engine promises, measured",
        "",
        f"`make accept`, spine-engine {__version__}, {date.today().isoformat()}, {os.cpu_count()} cores "
        f"({platform.machine()}), Python {platform.python_version()}. Phantoms are drawn from seeds never trained on.",
        "",
        "| promise | measured | wanted | met |",
        "|---|---|---|---|",
        *(f"| {f.name} | {f.measured} | {f.wanted} | {f.verdict} |" for f in figures),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print, write the page; 1 when a promise is not kept."""
    parser = argparse.ArgumentParser(prog="python -m spine_bench.acceptance", description=__doc__)
    parser.add_argument("--page", type=Path, default=Path("docs/acceptance.md"), help="Markdown file to write")
    parser.add_argument("--phantoms", type=int, default=20, help="phantoms for mirror and pose (default 20)")
    parser.add_argument("--many", type=int, default=200, help="phantoms for the memory figure (default 200)")
    options = parser.parse_args()
    real_data = os.environ.get("SPINE_REAL_DATA")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="spine-acceptance-") as folder:
        parts: list[tuple[str, Callable[[Path], list[Figure]]]] = [
            ("mirror", lambda work: mirror(work, options.phantoms)),
            ("pose", lambda work: pose(work, options.phantoms)),
            ("upright", lambda work: upright(work, options.phantoms)),
            ("scan", lambda work: scan_again(work, options.phantoms)),
            ("bytes", lambda work: same_bytes(work, min(options.phantoms, 12))),
            ("memory", lambda work: memory(work, max(1, options.many // 10), options.many)),
        ]
        if real_data:
            parts.insert(0, ("real", lambda work: real_exams(Path(real_data), work)))
        else:
            print("SPINE_REAL_DATA is not set: the real exams are left out")
        for name, measure in parts:
            work = Path(folder) / name
            work.mkdir()
            for figure in measure(work):
                print(f"{figure.verdict:3} {figure.name}: {figure.measured} (wanted {figure.wanted})")
                figures.append(figure)
            shutil.rmtree(work)
    options.page.write_text(page(figures))
    print(f"written to {options.page}")
    return 1 if any(figure.met is False for figure in figures) else 0


if __name__ == "__main__":
    raise SystemExit(main())
