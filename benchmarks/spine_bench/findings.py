"""What a trial found, and the one place that shows it: tables on a terminal, a Markdown page, a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from spine_engine.errors import UsageError
from spine_engine.results import write_lines

Input = Annotated[
    Path | None,
    typer.Option(
        "--input",
        metavar="DIR",
        help="Folder of studies; phantoms are made if not given.",
    ),
]
Work = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        metavar="DIR",
        help="Where studies are written and kept; nowhere by default.",
    ),
]
BundleFolder = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        metavar="DIR",
        help="Bundle of models; the packaged one if not given.",
    ),
]
Out = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the result as JSON.")
]
Markdown = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the result as a page.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON instead of tables.")
]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A title, the names of the columns, and rows of as many cells; the first column is text, the others figures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table as Markdown, its title not included."""
        return "\n".join(
            [
                *[_line(self.columns), "|---|" + "--:|" * (len(self.columns) - 1)],
                *(_line(row) for row in self.rows),
            ]
        )


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a trial found.

    Attributes:
        tables: its figures, for a terminal.
        notes: sentences that belong under the tables.
        record: its figures, for a JSON file.
        page: its Markdown page; the tables under their titles where there is none.
        failure: why the command ends with 1; nothing where it does not.
    """

    tables: Sequence[Table]
    notes: Sequence[str] = ()
    record: Any
    page: str = ""
    failure: str = ""

    def markdown(self) -> str:
        """Return the page."""
        return self.page or "\n".join(
            [
                *[f"## {table.title}\n\n{table.markdown()}\n" for table in self.tables],
                "\n".join(f"- {note}" for note in self.notes),
            ]
        )


def figures_found(title: str, figures: Mapping[str, float]) -> Findings:
    """Return findings of a figure a line."""
    return Findings(
        tables=[
            Table(
                title=title,
                columns=("figure", "value"),
                rows=[(name, f"{value:.3f}") for name, value in figures.items()],
            )
        ],
        record=dict(figures),
    )


def tell(
    findings: Findings,
    out: Path | None,
    markdown: Path | None,
    as_json: bool,
) -> None:
    """Write what is asked for, print the tables or the JSON, and end the command with 1 where the trial failed.

    Raises:
        OutputError: a file cannot be written.
    """
    text = json.dumps(findings.record, indent=2, allow_nan=False)
    if out is not None:
        write_lines(out, [text])
    if markdown is not None:
        write_lines(markdown, [findings.markdown().rstrip("\n")])
    if as_json:
        typer.echo(text)
    else:
        _print(findings)
    if findings.failure:
        typer.echo(findings.failure, err=True)
        raise typer.Exit(1)


def _print(findings: Findings) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(highlight=False)
    for table in findings.tables:
        drawn = RichTable(title=table.title, title_justify="left", title_style="bold")
        for place, column in enumerate(table.columns):
            drawn.add_column(
                column, justify="left" if place == 0 else "right", overflow="fold"
            )
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
    for note in findings.notes:
        console.print(note, markup=False)


def progress(line: str) -> None:
    """Tell whoever waits how far a trial is."""
    typer.echo(line, err=True)


def chosen(words: str, known: Iterable[str], what: str) -> list[str]:
    """Return the names in a text that lists them with commas.

    Raises:
        UsageError: one of them is not known, or there is none.
    """
    names = list(
        dict.fromkeys(word.strip() for word in words.split(",") if word.strip())
    )
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UsageError(
            f"no {what} {', '.join(unknown)!r}: choose from {', '.join(known)}"
        )
    return names


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
