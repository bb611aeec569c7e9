"""``spine-engine demo``: makes phantom studies, grades them and compares the grades with the truth."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spine_engine.anatomy import CONDITIONS, LEVELS, Condition, Level
from spine_engine.errors import OutputError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from spine_engine.results import StudyResult

STUDIES = 3
SEED = 2024
_SHORT = ("mild", "mod", "sev")
_HEADS = {
    Condition.SPINAL_CANAL_STENOSIS: "canal",
    Condition.LEFT_NEURAL_FORAMINAL_NARROWING: "foramen L",
    Condition.RIGHT_NEURAL_FORAMINAL_NARROWING: "foramen R",
    Condition.LEFT_SUBARTICULAR_STENOSIS: "recess L",
    Condition.RIGHT_SUBARTICULAR_STENOSIS: "recess R",
}


def demo(
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder to work in, new or empty; by default a temporary one.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of worker processes; by default one for each usable CPU.",
        ),
    ] = None,
) -> None:
    """Make three phantom studies, grade them and show the grades beside the truth.

    Example: spine-engine demo --output demo
    """
    from rich.console import Console

    from spine_engine.cli.progress import shown
    from spine_engine.cli.report import write_with_progress
    from spine_engine.cli.run import DEMONSTRATION, stopping_on_signals
    from spine_engine.engine import Engine
    from spine_engine.options import RunOptions

    engine = Engine.open(options=RunOptions(workers=workers))
    folder = _workplace(output)
    studies = folder / "studies"
    typer.echo(f"making {STUDIES} phantom studies in {studies}", err=True)
    truth = _make_phantoms(studies)
    work = engine.run(studies, folder / "results")
    with stopping_on_signals(work), shown(work.progress):
        results = sorted(work, key=lambda result: result.study_id)
    assert work.summary is not None
    Console(highlight=False).print(grades_table(results, truth))
    for line in agreement(results, truth):
        typer.echo(line)
    typer.echo(
        f"Results: {folder}/results/predictions.csv, studies.jsonl, run.json; the studies: {studies}"
    )
    if not work.summary.interrupted:
        typer.echo(
            f"To look at: {write_with_progress(folder / 'results', workers=workers).index}"
        )
    typer.echo(
        f"Took {work.summary.wall_s:.1f} s, model loading included. {DEMONSTRATION}"
    )
    raise typer.Exit(work.summary.exit_code)


def _workplace(output: Path | None) -> Path:
    if output is None:
        return Path(tempfile.mkdtemp(prefix="spine-engine-demo-"))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(
            f"--output {output} is not empty; the demo needs a new or an empty folder: name another one"
        )
    return output


def _make_phantoms(folder: Path) -> dict[str, Any]:
    from spine_engine.phantom import write_studies

    try:
        for _ in write_studies(folder, STUDIES, SEED):
            pass
        truth: dict[str, Any] = json.loads(
            (folder / "truth.json").read_text(encoding="utf-8")
        )
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror}; free space or name another folder"
        ) from error
    return truth


def grades_table(results: Iterable[StudyResult], truth: Mapping[str, Any]) -> Table:
    """Return a row for each study and level: the likeliest grade of each condition, and the true one if it differs."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="likeliest grade (truth, where it is another)",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for head in ("study", "level", *_HEADS.values()):
        table.add_column(head, no_wrap=True)
    for number, result in enumerate(results, start=1):
        table.add_section()
        for level in LEVELS:
            cells = [
                Text(_cell(result, condition, level, truth)) for condition in _HEADS
            ]
            table.add_row(
                str(number) if level is LEVELS[0] else "",
                level.upper().replace("_", "-"),
                *cells,
            )
    return table


def _cell(
    result: StudyResult, condition: Condition, level: Level, truth: Mapping[str, Any]
) -> str:
    grade = _grade(result, condition, level)
    true = _true_grade(truth, result.study_id, condition, level)
    return _SHORT[grade] if grade == true else f"{_SHORT[grade]} ({_SHORT[true]})"


def agreement(results: Iterable[StudyResult], truth: Mapping[str, Any]) -> list[str]:
    """Return lines that compare the grades and the places of the discs with the truth."""
    equal = rows = 0
    distances_mm = []
    for result in results:
        for level in LEVELS:
            place = result.levels.get(level)
            if place is not None and place.center_mm is not None:
                true_mm = truth[result.study_id]["levels"][str(level)]["center_mm"]
                distances_mm.append(math.dist(place.center_mm, true_mm))
            for condition in CONDITIONS:
                rows += 1
                equal += _grade(result, condition, level) == _true_grade(
                    truth, result.study_id, condition, level
                )
    line = f"{equal} of {rows} grades are the phantom's own."
    if distances_mm:
        mean_mm = sum(distances_mm) / len(distances_mm)
        line += f" Discs lie {mean_mm:.1f} mm from the truth on average, {max(distances_mm):.1f} mm at most."
    return [line]


def _grade(result: StudyResult, condition: Condition, level: Level) -> int:
    probabilities = list(result.probabilities(condition, level).values())
    return probabilities.index(max(probabilities))


def _true_grade(
    truth: Mapping[str, Any], study_id: str, condition: Condition, level: Level
) -> int:
    return int(
        truth[study_id]["levels"][str(level)]["conditions"][str(condition)]["grade"]
    )
