"""``docs/benchmarks.md``: how to measure, and what was measured, written from a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from spine_bench.harness.result import Result
from spine_bench.harness.tables import Table, notes, tables

HOW: Final = """\
## How to measure

```
make bench                                    # all of the above, from nothing: own set-up, phantoms, every system
spine-engine bench --systems engine           # the engine alone, on phantoms
spine-engine bench --input exams --out a.json # your studies; the result as JSON
spine-engine bench compare a.json b.json      # two results over the same studies
spine-engine bench show a.json --chart a.svg  # the tables and the chart of a result, without measuring again
```

Your own system takes part as `--systems engine,my_package.my_module:make_system`: a function of the library and the
bundle's folder that returns what `spine_bench.harness.interfaces.SystemUnderTest` describes.

## What the words mean

- **offline**: all studies are there at once; graded studies a second, failed ones do not count. **alone**
  (single-stream): the next study comes when the last is answered; latency, p90 only where every round had 10 studies
  and p99 where it had 100. **server**: studies arrive at random (Poisson); the highest of the rates tried at which 99 %
  of the answers come within three times the median latency of a study alone.
- **engine does**: how many times a system's studies a second the engine reaches, compared within each round.
- **difference**: mean |probability difference| to the engine's grades on the same studies. All systems run the models
  of the same bundle, so it says whether they do the same work.
- **pipeline efficiency**: the core-seconds that the stages of a study need when each runs alone at its best, over the
  core-seconds it took. **Bare models**: only the models, on the very inputs that the engine gives them.
- **peak memory**: proportional set size of all processes of a system together.

Every system lives in a process of its own and is warmed up first; only one works at a time. Load comes from MLPerf
LoadGen; these are not MLPerf results. `docs/decisions/0012-harness.md` says what was chosen and why.
"""


def page(result: Result, *, command: str, chart: str | None = None) -> str:
    """Return the page.

    Args:
        result: what was measured.
        command: the command that measured it.
        chart: where the chart is, relative to the page; None for no chart.
    """
    lines = ["# Benchmarks", "", f"Written by `{command}`; the figures are of that run.", ""]
    if chart is not None:
        lines += [f"![Studies a second of each system]({chart})", ""]
    for table in tables(result):
        lines += [f"## {table.title}", "", table.markdown(), ""]
    lines += [f"- {note}" for note in notes(result)]
    return "\n".join([*lines, "", HOW])


def shown(found: Sequence[Table], lines: Sequence[str]) -> None:
    """Print tables and the lines below them."""
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(highlight=False)
    for table in found:
        drawn = RichTable(title=table.title, title_justify="left", title_style="bold")
        for place, column in enumerate(table.columns):
            drawn.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
    for line in lines:
        console.print(line, markup=False)
