"""``spine-engine report OUT``: writes pages of a run and of its studies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from spine_engine.report.write import Report


def report(
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Output folder of a run.")
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="DIR",
            help="Folder with the DICOM files, if it has moved.",
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Bundle of the run, if it has moved."),
    ] = None,
    series_descriptions: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV", help="Table of series that the run used, if it has moved."
        ),
    ] = None,
    with_identity: Annotated[
        bool,
        typer.Option(
            "--with-identity",
            help="Show patients' names, descriptions and paths on the pages.",
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Number of processes; by default one for each usable CPU.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print paths and counts of the report as JSON."),
    ] = False,
) -> None:
    """Write OUT/report: a page of the run, worst studies first, and a page of each study with what the models saw.

    The pages are single files that fetch nothing. They name no patient unless --with-identity is given.

    Example: spine-engine report results
    """
    from spine_engine.report.write import Moved

    moved = Moved(root=folder, bundle=bundle, series_descriptions=series_descriptions)
    written = write_with_progress(
        output, moved=moved, with_identity=with_identity, workers=workers
    )
    record = {
        "index": str(written.index),
        "studies": written.studies,
        "without_pictures": written.without_pictures,
        "wall_s": round(written.wall_s, 3),
    }
    typer.echo(json.dumps(record) if as_json else closing_line(written))


def write_with_progress(output: Path, **asked: Any) -> Report:
    """Write the report of a run with a progress bar on standard error if that is a terminal.

    ``asked`` and errors are those of ``write_report``; Ctrl-C ends the command with a message and the exit code 130.
    """
    from spine_engine.report.write import write_report

    try:
        with _bar() as on_page:
            return write_report(output, **asked, on_page=on_page)
    except KeyboardInterrupt:
        typer.echo(
            "Interrupted: the report is not complete; the same command writes it again.",
            err=True,
        )
        raise typer.Exit(130) from None


def closing_line(written: Report) -> str:
    """Return the line that names the report's index and counts its studies."""
    without = (
        f", {written.without_pictures} without pictures"
        if written.without_pictures
        else ""
    )
    return f"Report: {written.index} ({written.studies} studies{without}; {written.wall_s:.1f} s)"


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(
        console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("pages", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
