"""``spine-engine merge``: joins the results of shards into those of one run."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from spine_engine.options import RunOptions


def merge(
    shards: Annotated[
        list[Path],
        typer.Argument(metavar="OUT...", help="Output folders of run --shard I/N."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", metavar="ALL", help="Folder for the results; made if missing."
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="DIR",
            help="The studies; by default where the shards read them.",
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Bundle of the shards; by default the packaged one."
        ),
    ] = None,
    series_descriptions: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV", help="Table of the series' roles, where the shards had one."
        ),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust", help="Use models of any operators, untried, as in run."
        ),
    ] = False,
) -> None:
    """Join the results of shards into the files that one run would have written.

    Studies whose files were spread over several shards are graded once more, from all their files. The same command
    may be given again when more shards have ended.

    Example: spine-engine merge results/1 results/2 --output results/all

    Exit codes are those of run; 8 also where a shard is missing or has not ended.
    """
    from spine_engine.cli.progress import shown
    from spine_engine.cli.run import closing_lines, stopping_on_signals
    from spine_engine.engine import Engine
    from spine_engine.run.ledger import LEDGER_FILE, LedgerReader

    with closing(LedgerReader(shards[0] / LEDGER_FILE)) as reader:
        facts = reader.facts()
    engine = Engine.open(
        bundle, options=_options(facts, series_descriptions), trust=trust
    )
    work = engine.merge(shards, folder or facts["input"], output)
    with stopping_on_signals(work), shown(work.progress):
        summary = work.finish()
    for line in closing_lines(summary, output, packaged=bundle is None):
        typer.echo(line)
    raise typer.Exit(summary.exit_code)


def _options(facts: dict[str, str], series_descriptions: Path | None) -> RunOptions:
    """Return the options of the run that a ledger's facts describe."""
    from spine_engine.options import RunOptions

    threads = facts["threads"]
    return RunOptions(
        backend=facts["backend"],
        device=facts["device"],
        precision=facts["precision"],
        schedule="batch" if facts["schedule"] == "batch" else "study",
        threads=int(threads) if threads.isdigit() else None,
        detector=facts["detector"] == "on",
        series_descriptions=series_descriptions,
    )
