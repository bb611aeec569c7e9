"""``spine-engine bench``: how fast the engine is, beside what people use today."""

from __future__ import annotations

import os.path
import shlex
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spine_engine.errors import OutputError, UsageError

if TYPE_CHECKING:
    from spine_bench.harness.library import StudyLibrary
    from spine_bench.harness.loadgen import Scenario
    from spine_bench.harness.result import Result

DEFAULT_SYSTEMS = "engine,onnxruntime,notebook,tuned-torch,tuned-torch-lean,limit,null"
PHANTOMS = 16
"""Phantom studies when no folder is given: as many as the stages keep in memory."""

FOLDER_STUDIES = 64
"""Studies of a folder: all of them stay in the page cache (1.5 GB)."""

FEWEST_SERVER_QUERIES = 459
"""With fewer, none of them late, LoadGen does not yet believe that 99 % are in time: 0.99 ** 459 < 1 %."""

SERVER_QUERIES = 838
"""LoadGen believes as much of so many with two of them late: at two thirds of what queueing theory allows a server,
one answer in 500 is late."""

OPEN_S = 45.0
"""Rough mean, on two cores, until a system is open and warm; the null system takes none, compiling takes minutes."""
LOOK_S = 15.0
"""Rough shortest look at the stages on two cores: each walks all studies once alone, once with all processes."""
SERVER_S = 340.0
"""Rough length of the engine's two server runs: 838 studies each at about five a second."""

app = typer.Typer(add_completion=False, rich_markup_mode=None)

Chart = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the chart: .svg or .png.")]
Markdown = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the page of docs/benchmarks.md.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables.")]


class Scenarios(StrEnum):
    """What ``--scenario`` takes."""

    OFFLINE = "offline"
    SINGLE_STREAM = "single-stream"
    SERVER = "server"
    ALL = "all"


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    folder: Annotated[
        Path | None, typer.Option("--input", metavar="DIR", help="Folder of studies; phantoms are made if not given.")
    ] = None,
    systems: Annotated[
        str, typer.Option(help="Which systems, with commas; one of your own as module:function.")
    ] = DEFAULT_SYSTEMS,
    scenario: Annotated[
        Scenarios, typer.Option(help="How studies come; 'server' and 'all' measure the others too.")
    ] = Scenarios.ALL,
    rounds: Annotated[int, typer.Option(min=1, help="How often each system has its turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of a turn, for each system and scenario.")] = 10.0,
    studies: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help=f"Studies: {PHANTOMS} phantoms, {FOLDER_STUDIES} of DIR."),
    ] = None,
    server_queries: Annotated[
        int, typer.Option(min=FEWEST_SERVER_QUERIES, help="Studies of each of the two server runs.")
    ] = SERVER_QUERIES,
    stages: Annotated[bool, typer.Option("--stages/--no-stages", help="Measure the engine's stages too.")] = True,
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Bundle of models; the packaged one if not given.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result as JSON.")] = None,
    chart: Chart = None,
    markdown: Markdown = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast systems grade studies: throughput, latency, memory, and where the engine's time goes.

    Example: spine-engine bench --systems engine,onnxruntime,null --out result.json --chart result.svg
    """
    if context.invoked_subcommand is not None:
        return
    from spine_bench.harness.figures import ENGINE, failed
    from spine_bench.harness.rounds import Plan, measure
    from spine_bench.harness.systems import check_name
    from spine_engine.bundle import Bundle

    names = tuple(dict.fromkeys(name.strip() for name in systems.split(",") if name.strip()))
    if not names:
        raise UsageError(f"--systems names none; choose from {DEFAULT_SYSTEMS}")
    for name in names:
        check_name(name)
    _check_loadgen()
    typer.echo(f"takes about {_minutes(names, _scenarios(scenario), rounds, seconds, stages)} min on 2 cores", err=True)
    facts = Bundle.open(bundle).facts
    plan = Plan(
        systems=names,
        scenarios=_scenarios(scenario),
        rounds=rounds,
        seconds=seconds,
        server_queries=server_queries,
        stages=stages,
    )
    result = measure(_library(folder, studies), bundle, facts, plan, lambda line: typer.echo(line, err=True))
    if out is not None:
        result.write(out)
    _tell(result, chart, markdown, as_json)
    failures, answers = failed(result, ENGINE)
    if failures:
        typer.echo(f"the engine failed {failures} of {answers} studies; they do not count as throughput", err=True)
    if failures or not result.turns:
        raise typer.Exit(1)


@app.command("compare")
def compare_command(
    before: Annotated[Path, typer.Argument(help="A result that 'bench --out' wrote.")],
    after: Annotated[Path, typer.Argument(help="Another over the same studies.")],
) -> None:
    """Say how many times faster each system became from one result to another.

    Example: spine-engine bench compare monday.json friday.json
    """
    from spine_bench.harness.compare import compare, differences
    from spine_bench.harness.page import shown
    from spine_bench.harness.result import Result

    old, new = Result.read(before), Result.read(after)
    shown([compare(old, new)], differences(old, new))


@app.command("show")
def show_command(
    result: Annotated[Path, typer.Argument(help="A result that 'bench --out' wrote.")],
    chart: Chart = None,
    markdown: Markdown = None,
    as_json: AsJson = False,
) -> None:
    """Show a result again, draw its chart, write its page; nothing is measured.

    Example: spine-engine bench show result.json --chart docs/benchmarks.svg --markdown docs/benchmarks.md
    """
    from spine_bench.harness.result import Result

    _tell(Result.read(result), chart, markdown, as_json)


def _scenarios(wanted: Scenarios) -> tuple[Scenario, ...]:
    """Return the scenarios to measure; a server's bound and rates come from the two others."""
    from spine_bench.harness.loadgen import Scenario

    if wanted in (Scenarios.ALL, Scenarios.SERVER):
        return tuple(Scenario)
    return (Scenario(wanted.value),)


def _library(folder: Path | None, studies: int | None) -> StudyLibrary:
    from spine_bench.harness.library import folder_library, phantom_library

    if folder is not None:
        return folder_library(folder, studies or FOLDER_STUDIES)
    typer.echo("phantoms: made now unless they are there already", err=True)
    return phantom_library(studies or PHANTOMS)


def _minutes(names: Sequence[str], scenarios: Sequence[Scenario], rounds: int, seconds: float, stages: bool) -> int:
    """Return about how long a measurement takes."""
    from spine_bench.harness.figures import ENGINE
    from spine_bench.harness.loadgen import Scenario
    from spine_bench.harness.tables import NULL

    systems = sum(name != NULL for name in names)
    plain = sum(scenario is not Scenario.SERVER for scenario in scenarios)
    total_s = systems * (OPEN_S + rounds * plain * seconds)
    if ENGINE in names:
        total_s += rounds * max(seconds, LOOK_S) * stages + SERVER_S * (Scenario.SERVER in scenarios)
    return max(1, round(total_s / 60))


def without_folders(words: Sequence[str]) -> list[str]:
    """Return a command's words with only the file names of --input, --bundle, and whatever lies outside this folder."""
    shown: list[str] = []
    for word in words:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        named = option if equals else shown[-1] if shown else ""
        path = Path(value)
        if named in ("--input", "--bundle") or path.is_absolute() or path.parts[:1] in (("..",), ("~",)):
            value = path.name or path.resolve().name
        shown.append(option + equals + value)
    return shown


def _check_loadgen() -> None:
    """Say now what is missing, not when every system has warmed up."""
    from spine_bench.harness.loadgen import loadgen_module

    loadgen_module()


def _tell(result: Result, chart: Path | None, markdown: Path | None, as_json: bool) -> None:
    from spine_bench.harness.page import page, shown
    from spine_bench.harness.tables import notes, tables

    if chart is not None:
        from spine_bench.harness.chart import draw

        draw(result, chart)
    if markdown is not None:
        command = shlex.join(["spine-engine", *without_folders(sys.argv[1:])])
        beside = None if chart is None else Path(os.path.relpath(chart, markdown.parent)).as_posix()
        try:
            markdown.write_text(page(result, command=command, chart=beside), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {markdown}: {error.strerror}; choose another place") from error
    if as_json:
        typer.echo(result.text())
    else:
        shown(tables(result), notes(result))
