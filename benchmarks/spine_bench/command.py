"""``spine-engine bench``: how fast the engine is, beside what people use today; and every other trial by its name."""

from __future__ import annotations

import inspect
import os.path
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from spine_bench.findings import (
    AsJson,
    BundleFolder,
    Findings,
    Input,
    Markdown,
    Out,
    progress,
    tell,
)
from spine_bench.harness import figures
from spine_bench.harness.chart import draw
from spine_bench.harness.interfaces import FOLDER_STUDIES, PHANTOMS, library_of
from spine_bench.harness.loadgen import Scenario, loadgen_module
from spine_bench.harness.result import Result
from spine_bench.harness.rounds import Plan, measure
from spine_bench.harness.systems import check_name
from spine_bench.harness.tables import compare, differences, notes, page, tables
from spine_engine.bundle import Bundle
from spine_engine.errors import UsageError

DEFAULT_SYSTEMS = "engine,onnxruntime,notebook,tuned-torch,tuned-torch-lean,limit,null"

# With fewer, none of them late, LoadGen does not yet believe that 99 % are in time: 0.99 ** 459 < 1 %.
FEWEST_SERVER_QUERIES = 459

# LoadGen believes as much of so many with two of them late: at two thirds of what queueing theory allows a server, one
# answer in 500 is late.
SERVER_QUERIES = 838


@dataclass(frozen=True)
class Trial:
    """One thing that is measured.

    Attributes:
        measure: ``module:function``. The function's parameters are the options of the command; it returns ``Findings``.
        help: the line in the help of ``spine-engine bench``.
    """

    measure: str
    help: str


TRIALS: Final = {
    "acceptance": Trial(
        "spine_bench.acceptance:measure",
        "What the engine promises, on files; docs/acceptance.md.",
    ),
    "bundles": Trial(
        "spine_bench.baselines.bundles:measure",
        "Make bundles of the size that others run.",
    ),
    "decode": Trial(
        "spine_bench.decode:measure",
        "How fast studies are read, beside pydicom and dicomsdl.",
    ),
    "families": Trial(
        "spine_bench.families:measure",
        "Which backbones export, and how far they stray.",
    ),
    "faults": Trial(
        "spine_bench.faults:measure",
        "Runs in which workers die, raise and hang, by the hundred.",
    ),
    "gate": Trial(
        "spine_bench.gate:measure",
        "Which studies are refused a grade: other parts, turned, dealt, noise.",
    ),
    "models": Trial(
        "spine_bench.baselines.models:measure",
        "Each network in every runtime, beside the roof.",
    ),
    "pictures": Trial(
        "spine_bench.pictures:measure",
        "Make the pictures of the README and of docs/report.md.",
    ),
    "recipes": Trial(
        "spine_bench.recipes:measure",
        "How fast grids of recipes are, beside the engine's own.",
    ),
    "report": Trial(
        "spine_bench.report:measure",
        "How long the report of a run takes, and how large it is.",
    ),
    "same": Trial(
        "spine_bench.same:measure",
        "The same bytes as another git revision, and how fast.",
    ),
    "scale": Trial(
        "spine_bench.scale:measure",
        "Whether the 5,000th study costs what the 50th does.",
    ),
    "seconds": Trial(
        "spine_bench.baselines.seconds:measure",
        "Seconds a study of each system, and where they go.",
    ),
    "shards": Trial(
        "spine_bench.shards:measure",
        "Shards, some killed, merged: the same bytes as one run; a large merge.",
    ),
    "voxelizer": Trial(
        "spine_bench.voxelizer:measure",
        "How fast the voxelizer is, beside what people use.",
    ),
}


class TrialGroup(TyperGroup):
    """Lists the trials beside the commands of its own, and imports only the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands."""
        return [*super().list_commands(ctx), *TRIALS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; in place of a trial one that has its line in the help."""
        if cmd_name in TRIALS:
            return TyperCommand(cmd_name, help=TRIALS[cmd_name].help)
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that is called."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, trial_command(name) if name in TRIALS else command, rest


def trial_command(name: str) -> Any:
    """Return the command of a trial: the parameters of what measures it, and where its findings go.

    Raises:
        UsageError: a package that the trial needs is not installed.
    """
    module, _, function = TRIALS[name].measure.partition(":")
    try:
        measure = getattr(import_module(module), function)
    except ImportError as error:
        raise UsageError(
            f"'{name}' needs {error.name}: in a clone, pip install '.[all]'"
        ) from error

    def run(
        out: Out = None,
        markdown: Markdown = None,
        as_json: AsJson = False,
        **options: Any,
    ) -> None:
        tell(measure(**options), out, markdown, as_json)

    own = inspect.signature(measure, eval_str=True).parameters.values()
    *shared, _ = inspect.signature(run, eval_str=True).parameters.values()
    setattr(run, "__signature__", inspect.Signature([*own, *shared]))  # noqa: B010 - a function declares no such name
    run.__doc__ = measure.__doc__
    app = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    app.command(name)(run)
    return typer.main.get_command(app)


app = typer.Typer(cls=TrialGroup, add_completion=False, rich_markup_mode=None)

Chart = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw the chart: .svg or .png.")
]


class Scenarios(StrEnum):
    """What ``--scenario`` takes."""

    OFFLINE = "offline"
    SINGLE_STREAM = "single-stream"
    SERVER = "server"
    ALL = "all"

    @property
    def measured(self) -> tuple[Scenario, ...]:
        """The scenarios to measure; a server's bound and rates come from the two others."""
        if self in (Scenarios.ALL, Scenarios.SERVER):
            return tuple(Scenario)
        return (Scenario(self.value),)


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    folder: Input = None,
    systems: Annotated[
        str,
        typer.Option(
            help="Which systems, with commas; one of your own as module:function."
        ),
    ] = DEFAULT_SYSTEMS,
    scenario: Annotated[
        Scenarios,
        typer.Option(
            help="How studies come; 'server' and 'all' measure the others too."
        ),
    ] = Scenarios.ALL,
    rounds: Annotated[
        int, typer.Option(min=1, help="How often each system has its turn.")
    ] = 5,
    seconds: Annotated[
        float, typer.Option(min=0.01, help="Of a turn, for each system and scenario.")
    ] = 10.0,
    studies: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help=f"Studies: {PHANTOMS} phantoms, {FOLDER_STUDIES} of DIR.",
        ),
    ] = None,
    server_queries: Annotated[
        int,
        typer.Option(
            min=FEWEST_SERVER_QUERIES, help="Studies of each of the two server runs."
        ),
    ] = SERVER_QUERIES,
    stages: Annotated[
        bool,
        typer.Option("--stages/--no-stages", help="Measure the engine's stages too."),
    ] = True,
    bundle: BundleFolder = None,
    out: Out = None,
    chart: Chart = None,
    markdown: Markdown = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast systems grade studies: throughput, latency, memory, and where the engine's time goes.

    Example: spine-engine bench --systems engine,onnxruntime,null --out result.json --chart result.svg
    """
    if context.invoked_subcommand is not None:
        return
    names = tuple(
        dict.fromkeys(name.strip() for name in systems.split(",") if name.strip())
    )
    if not names:
        raise UsageError(f"--systems names none; choose from {DEFAULT_SYSTEMS}")
    for name in names:
        check_name(name)
    loadgen_module()  # what is missing is told now, not when every system has warmed up
    plan = Plan(
        systems=names,
        scenarios=scenario.measured,
        rounds=rounds,
        seconds=seconds,
        server_queries=server_queries,
        stages=stages,
    )
    progress(f"takes about {plan.minutes} min on 2 cores")
    tell(
        _found(
            measure(
                library_of(folder, studies),
                bundle,
                Bundle.open(bundle).facts,
                plan,
                progress,
            ),
            chart,
            markdown,
        ),
        out,
        markdown,
        as_json,
    )


@app.command("compare")
def compare_command(
    before: Annotated[Path, typer.Argument(help="A result that 'bench --out' wrote.")],
    after: Annotated[Path, typer.Argument(help="Another over the same studies.")],
    out: Out = None,
    markdown: Markdown = None,
    as_json: AsJson = False,
) -> None:
    """Say how many times faster each system became from one result to another.

    Example: spine-engine bench compare monday.json friday.json
    """
    old = Result.read(before)
    new = Result.read(after)
    table = compare(old, new)
    tell(
        Findings(
            tables=[table],
            notes=differences(old, new),
            record=asdict(table),
        ),
        out,
        markdown,
        as_json,
    )


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
    tell(
        replace(_found(Result.read(result), chart, markdown), failure=""),
        None,
        markdown,
        as_json,
    )


def _found(result: Result, chart: Path | None, markdown: Path | None) -> Findings:
    """Draw the chart of a result and return what is to be shown of it; the chart's place is relative to the page's."""
    beside = None
    if chart is not None:
        draw(result, chart)
        beside = Path(
            os.path.relpath(chart, markdown.parent if markdown else ".")
        ).as_posix()
    command = shlex.join(["spine-engine", *without_folders(sys.argv[1:])])
    failures, answers = figures.failed(result, figures.ENGINE)
    failure = "" if result.turns else "nothing was measured"
    if failures:
        failure = f"the engine failed {failures} of {answers} studies; they do not count as throughput"
    return Findings(
        tables=tables(result),
        notes=notes(result),
        record=asdict(result),
        page=page(result, command=command, chart=beside),
        failure=failure,
    )


def without_folders(words: Sequence[str]) -> list[str]:
    """Return a command's words with only the file names of --input, --bundle, and whatever lies outside this folder."""
    shown: list[str] = []
    for word in words:
        option, equals, value = (
            word.partition("=") if word.startswith("--") else ("", "", word)
        )
        named = option if equals else shown[-1] if shown else ""
        path = Path(value)
        if (
            named in ("--input", "--bundle")
            or path.is_absolute()
            or path.parts[:1] in (("..",), ("~",))
        ):
            value = path.name or path.resolve().name
        shown.append(option + equals + value)
    return shown
