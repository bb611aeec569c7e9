"""``spine-engine evaluate``: predictions against a truth file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spine_engine.errors import OutputError
from spine_engine.results import write_lines

if TYPE_CHECKING:
    from spine_training.evaluation.report import Difference, Report

REPORT_FILE = "report.json"
CONFUSION_FILE = "confusion.csv"
RELIABILITY_FILE = "reliability.csv"


def evaluate(
    predictions: Annotated[
        Path, typer.Option(help="A predictions.csv, as `run` writes it.")
    ],
    truth: Annotated[
        Path, typer.Option(help="Labels in the layout of RSNA's train.csv.")
    ],
    against: Annotated[
        Path | None,
        typer.Option(help="Second predictions.csv to compare with, study by study."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole report as JSON.")
    ] = False,
    bootstrap: Annotated[
        int, typer.Option(min=100, help="Resamples of the confidence intervals.")
    ] = 1000,
    seed: Annotated[
        int,
        typer.Option(
            min=0, help="Seed of the resamples; the same seed gives the same intervals."
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.json, two CSV tables and pictures."),
    ] = None,
) -> None:
    """Score predictions with the official RSNA 2024 metric: its parts, confidence intervals, calibration, confusion.

    Example: spine-engine evaluate --predictions results/predictions.csv --truth train.csv
    """
    from spine_training.evaluation.report import compare_arrays, evaluate_arrays
    from spine_training.evaluation.tables import matched, read_predictions, read_truth

    labels = read_truth(truth)
    tables = read_predictions(predictions)
    rows = matched(tables, labels, predictions)
    report = evaluate_arrays(
        rows,
        labels.grades,
        resamples=bootstrap,
        seed=seed,
    )
    ignored = len(tables) - len(labels.studies)
    content: dict[str, Any] = {
        "ignored_studies": ignored,
        "resamples": bootstrap,
        "seed": seed,
        **asdict(report),
        "comparison": None,
    }
    comparison, other = None, None
    if against is not None:
        others = matched(
            read_predictions(against),
            labels,
            against,
        )
        if out is not None:
            other = evaluate_arrays(
                others,
                labels.grades,
                resamples=bootstrap,
                seed=seed,
            )
        comparison = compare_arrays(
            rows,
            others,
            labels.grades,
            resamples=bootstrap,
            seed=seed,
        )
        content["comparison"] = {
            name: asdict(difference) for name, difference in comparison.items()
        }
    text = json.dumps(
        content,
        indent=2,
        allow_nan=False,
    )
    written: tuple[str, ...] = ()
    if out is not None:
        written = _write(out, text, report) + _draw(out, report, other, comparison)
    if as_json:
        typer.echo(text)
        return
    from rich.console import Console

    from spine_training.evaluation.show import comparison_table
    from spine_training.evaluation.show import tables as shown

    console = Console(highlight=False, markup=False)
    console.print(*shown(report), sep="\n\n")
    if comparison is not None:
        console.print(
            "",
            comparison_table(
                comparison,
                str(predictions),
                str(against),
            ),
            sep="\n",
        )
    if ignored:
        console.print(
            f"{ignored} studies of {predictions} are not in {truth} and were ignored"
        )
    if out is not None:
        console.print(f"Report: {out}/{', '.join(written)}")


def _write(folder: Path, text: str, report: Report) -> tuple[str, ...]:
    """Write the three files of a report; return their names.

    Raises:
        OutputError: the folder cannot be written.
    """
    from spine_training.evaluation.show import confusion_lines, reliability_lines

    make_folder(folder)
    write_lines(folder / REPORT_FILE, [text])
    write_lines(folder / CONFUSION_FILE, confusion_lines(report))
    write_lines(folder / RELIABILITY_FILE, reliability_lines(report))
    return REPORT_FILE, CONFUSION_FILE, RELIABILITY_FILE


def _draw(
    folder: Path,
    report: Report,
    other: Report | None,
    comparison: dict[str, Difference] | None,
) -> tuple[str, ...]:
    """Write the pictures of a report and return their names.

    Without matplotlib a line says so, and pictures of an earlier report are removed.

    Raises:
        OutputError: the folder cannot be written.
    """
    from spine_training.drawing import NoMatplotlibError
    from spine_training.evaluation.pictures import PICTURES, write_pictures

    try:
        return write_pictures(folder, report, other, comparison)
    except NoMatplotlibError as error:
        for name in PICTURES:
            (folder / name).unlink(missing_ok=True)
        typer.echo(str(error), err=True)
        return ()


def make_folder(folder: Path) -> None:
    """Make a folder for results.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror}; name another folder"
        ) from error
