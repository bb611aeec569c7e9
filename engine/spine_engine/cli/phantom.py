"""``spine-engine phantom``: writes synthetic studies in the layout of the RSNA 2024 data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spine_engine.errors import OutputError, UsageError


def phantom(
    studies: Annotated[
        int, typer.Option(min=1, help="Number of studies to write.")
    ] = 3,
    output: Annotated[
        Path, typer.Option(help="Folder for the studies, new or empty.")
    ] = Path("phantoms"),
    seed: Annotated[
        int,
        typer.Option(
            min=0, help="Seed of all studies; the same seed writes the same bytes."
        ),
    ] = 0,
    shuffled: Annotated[
        bool, typer.Option("--shuffled", help="Number the instances in random order.")
    ] = False,
    rle: Annotated[
        bool,
        typer.Option("--rle", help="Write RLE Lossless pixels, as RSNA does (slower)."),
    ] = False,
) -> None:
    """Write synthetic lumbar MR studies with known anatomy and severity. Research use only.

    OUTPUT gets train_images/<study>/<series>/<n>.dcm, train.csv, train_series_descriptions.csv and
    train_label_coordinates.csv as in the RSNA 2024 data, and truth.json with disc centres, continuous narrowings and
    the reader's probabilities.

    Example: spine-engine phantom --studies 20 --output phantoms --seed 7
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from spine_engine.phantom import write_studies

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(
            f"--output {output} is not empty; phantoms need a new or an empty folder: name another one"
        )
    bar = (
        TextColumn("phantoms"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*bar) as progress:
            task = progress.add_task("phantoms", total=studies)
            for _ in write_studies(output, studies, seed, shuffled=shuffled, rle=rle):
                progress.advance(task)
    except OSError as error:
        raise OutputError(
            f"cannot write to {output}: {error.strerror}; free space or name another folder"
        ) from error
    typer.echo(f"{studies} studies in {output}")
