"""``spine-engine inspect DIR``: what the engine sees in a folder, and why, without grading anything."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spine_engine.dicom import RefusedFile, RoleOverrides, WorkUnit, discover, read_unit
from spine_engine.errors import OutputError, UsageError
from spine_engine.results import study_key
from spine_engine.study import Series, Stack, Study


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with DICOM files, in any layout.")],
    series_descriptions: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Which series plays which part; one beside the input is found by itself."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a study, one a line.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also write a page: pictures, and the stacks drawn in space."),
    ] = None,
    with_identity: Annotated[
        bool,
        typer.Option("--with-identity", help="Say on the page who the patients are: names, descriptions, paths."),
    ] = False,
) -> None:
    """Show the studies of a folder: series, roles, stacks, and why.

    Example: spine-engine inspect ./studies --html seen.html
    """
    if with_identity and html is None:
        raise UsageError("--with-identity belongs to --html FILE; add the page, or leave it out")
    overrides = RoleOverrides.from_csv(series_descriptions) if series_descriptions else RoleOverrides.find(folder)
    console = Console(highlight=False)
    refused: Counter[str] = Counter()
    met: Counter[str] = Counter()

    def told() -> Iterator[tuple[WorkUnit, Study]]:
        """Yield the studies as they are met, each told on the terminal; count what is refused."""
        for found in _studies(folder, overrides):
            if isinstance(found, RefusedFile):
                refused[found.reason] += 1
                continue
            study = found[1]
            if as_json:
                typer.echo(json.dumps(study_record(study), allow_nan=False))
            else:
                console.print(study_table(study))
                if met[study.study_id]:
                    console.print(
                        "[yellow]this study also has files in a folder shown above; a run reads them together[/]"
                    )
            met[study.study_id] += 1
            yield found

    if html is None:
        for _ in told():
            pass
    else:
        _write_page(html, folder, told(), refused, with_identity=with_identity)
    counts = {reason: refused[reason] for reason in sorted(refused)}
    if as_json:
        typer.echo(json.dumps({"studies": met.total(), "refused": counts}))
        return
    console.print(f"{met.total()} studies")
    for reason, count in counts.items():
        console.print(f"{count} files or folders not read: {reason}")
    if html is not None:
        console.print(Text(f"page: {html}"), soft_wrap=True)


def _write_page(
    page: Path,
    folder: Path,
    studies: Iterator[tuple[WorkUnit, Study]],
    refused: Counter[str],
    *,
    with_identity: bool,
) -> None:
    """Write the page of ``studies`` as they come; ``refused`` is complete once they have.

    Raises:
        OutputError: the page cannot be written; it is opened before the first study is read.
    """
    from spine_engine.report.identity import identity_of
    from spine_engine.report.inspect_page import inspect_page

    persons = ((study, identity_of(folder, unit.files) if with_identity else None) for unit, study in studies)
    _put(page, "")
    _put(page, inspect_page(persons, refused))


def _put(page: Path, text: str) -> None:
    try:
        page.write_text(text, encoding="utf-8", errors="backslashreplace")  # file names may hold bytes that are no text
    except OSError as error:
        raise OutputError(f"cannot write {page}: {error.strerror}; name another file with --html") from error


def _studies(folder: Path, overrides: RoleOverrides) -> Iterator[tuple[WorkUnit, Study] | RefusedFile]:
    """Yield studies, each with its unit, and refused files as they are met, one study in memory at a time."""
    for found in discover(folder):
        if isinstance(found, RefusedFile):
            yield found
            continue
        waiting: list[WorkUnit] = [found]
        while waiting:
            unit = waiting.pop(0)
            reading = read_unit(folder, unit, overrides)
            waiting[:0] = reading.split
            yield from reading.refused
            yield from ((unit, study) for study in reading.studies)


def _stack_words(stack: Stack) -> str:
    """Describe a stack in one line: slices, matrix, spacing in mm."""
    count, rows, columns = stack.pixels.shape
    down, right = stack.spacing_mm
    return f"{count} x {rows} x {columns}, {stack.slice_spacing_mm:.2f} x {down:.2f} x {right:.2f} mm"


def study_table(study: Study) -> Table:
    """Return a table of one study's series for a terminal. Everything from the input is shown as plain text, and what
    UTF-8 cannot hold as escapes."""
    title = Text(f"study {study_key(study.study_id)}")
    if study.reason is not None:
        title.append(f"  cannot be graded: {study.reason}", style="red")
    caption = Text("warnings: " + ", ".join(study.warnings), style="yellow") if study.warnings else None
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", expand=False)
    table.add_column("series", overflow="fold")
    table.add_column("role", no_wrap=True)
    table.add_column("stacks (slices x rows x columns)", overflow="fold")
    table.add_column("why", overflow="fold")
    for series in study.series:
        role = Text(series.role or "-", style="green" if series.role else "dim")
        stacks = Counter(_stack_words(stack) for stack in series.stacks)
        lines = "\n".join(f"{count} of {words}" if count > 1 else words for words, count in stacks.items())
        why = series.evidence if series.reason is None else f"{series.reason}: {series.evidence}"
        table.add_row(Text(study_key(series.path)), role, Text(lines or "-"), Text(why))
    return table


def study_record(study: Study) -> dict[str, Any]:
    """Return one study as plain values for JSON; lengths in mm, points in patient LPS mm."""
    return {
        "study_id": study.study_id,
        "reason": study.reason,
        "warnings": list(study.warnings),
        "series": [_series_record(series) for series in study.series],
    }


def _series_record(series: Series) -> dict[str, Any]:
    return {
        "path": series.path,
        "role": series.role,
        "contrast": series.contrast,
        "evidence": series.evidence,
        "reason": series.reason,
        "slices": series.slices,
        "stacks": [
            {
                "slices": stack.pixels.shape[0],
                "rows": stack.pixels.shape[1],
                "columns": stack.pixels.shape[2],
                "slice_spacing_mm": round(stack.slice_spacing_mm, 4),
                "spacing_mm": list(stack.spacing_mm),
                "center_mm": [round(float(value), 3) for value in stack.center_mm],
            }
            for stack in series.stacks
        ],
    }
