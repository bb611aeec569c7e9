"""``spine-engine inspect DIR``: shows what the engine sees in a folder, and why, without grading anything."""

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
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder with DICOM files, in any layout."),
    ],
    series_descriptions: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Table of the series' roles; one beside the input is used by default.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object per study, one per line."),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Also write a page with pictures, and the stacks drawn in space.",
        ),
    ] = None,
    with_identity: Annotated[
        bool,
        typer.Option(
            "--with-identity",
            help="Show patients' names, descriptions and paths on the page.",
        ),
    ] = False,
) -> None:
    """Show the studies of a folder: series, roles, the evidence for each role, and stacks.

    Example: spine-engine inspect ./studies --html seen.html
    """
    if with_identity and html is None:
        raise UsageError(
            "--with-identity needs --html FILE: add --html, or leave --with-identity out"
        )
    overrides = (
        RoleOverrides.from_csv(series_descriptions)
        if series_descriptions
        else RoleOverrides.find(folder)
    )
    shown = _Shown(as_json=as_json)
    studies = shown.studies(_studies(folder, overrides))
    if html is None:
        for _ in studies:
            pass
    else:
        _write_page(html, folder, studies, shown.refused, with_identity=with_identity)
    shown.end(html)


class _Shown:
    """Shows each study of a folder when it is read, and the counts at the end."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(highlight=False)
        self._shown: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def studies(
        self, items: Iterator[tuple[WorkUnit, Study] | RefusedFile]
    ) -> Iterator[tuple[WorkUnit, Study]]:
        """Show and yield the studies, and count the refused files."""
        for item in items:
            if isinstance(item, RefusedFile):
                self.refused[item.reason] += 1
                continue
            self._show(item[1])
            yield item

    def _show(self, study: Study) -> None:
        if self._as_json:
            typer.echo(json.dumps(study_record(study), allow_nan=False))
        else:
            self._console.print(study_table(study))
            if self._shown[study.study_id]:
                note = "this study also has files in a folder shown above; a run reads them together"
                self._console.print(f"[yellow]{note}[/]")
        self._shown[study.study_id] += 1

    def end(self, page: Path | None) -> None:
        """Show the number of studies, the refused files by reason, and the path of the page."""
        counts = {reason: self.refused[reason] for reason in sorted(self.refused)}
        total = self._shown.total()
        if self._as_json:
            typer.echo(json.dumps({"studies": total, "refused": counts}))
            return
        self._console.print(f"{total} studies")
        for reason, count in counts.items():
            self._console.print(f"{count} files or folders not read: {reason}")
        if page is not None:
            self._console.print(Text(f"page: {page}"), soft_wrap=True)


def _write_page(
    page: Path,
    folder: Path,
    studies: Iterator[tuple[WorkUnit, Study]],
    refused: Counter[str],
    *,
    with_identity: bool,
) -> None:
    """Write the page of ``studies`` while they are read; ``refused`` is complete after the last one.

    Raises:
        OutputError: the page cannot be written; it is created before the first study is read.
    """
    from spine_engine.report.identity import identity_of
    from spine_engine.report.inspect_page import inspect_page

    persons = (
        (study, identity_of(folder, unit.files) if with_identity else None)
        for unit, study in studies
    )
    _put(page, "")
    _put(page, inspect_page(persons, refused))


def _put(page: Path, text: str) -> None:
    try:
        page.write_text(
            text, encoding="utf-8", errors="backslashreplace"
        )  # file names may hold bytes that are not text
    except OSError as error:
        raise OutputError(
            f"cannot write {page}: {error.strerror}; name another file with --html"
        ) from error


def _studies(
    folder: Path, overrides: RoleOverrides
) -> Iterator[tuple[WorkUnit, Study] | RefusedFile]:
    """Yield studies, each with its unit, and refused files in the order of discovery; hold one study in memory."""
    for item in discover(folder):
        if isinstance(item, RefusedFile):
            yield item
            continue
        waiting: list[WorkUnit] = [item]
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
    """Return a table of one study's series for a terminal.

    Text from the input is shown as plain text; characters that UTF-8 cannot hold are escaped.
    """
    title = Text(f"study {study_key(study.study_id)}")
    if study.reason is not None:
        title.append(f"  cannot be graded: {study.reason}", style="red")
    caption = (
        Text("warnings: " + ", ".join(study.warnings), style="yellow")
        if study.warnings
        else None
    )
    table = Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        expand=False,
    )
    table.add_column("series", overflow="fold")
    table.add_column("role", no_wrap=True)
    table.add_column("stacks (slices x rows x columns)", overflow="fold")
    table.add_column("why", overflow="fold")
    for series in study.series:
        role = Text(series.role or "-", style="green" if series.role else "dim")
        stacks = Counter(_stack_words(stack) for stack in series.stacks)
        lines = "\n".join(
            f"{count} of {words}" if count > 1 else words
            for words, count in stacks.items()
        )
        why = (
            series.evidence
            if series.reason is None
            else f"{series.reason}: {series.evidence}"
        )
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
