"""A result as tables, two results beside each other, and the page of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from statistics import median
from typing import Final

import numpy as np

from spine_bench.findings import Table
from spine_bench.harness.figures import (
    ENGINE,
    SERVER_BOUND,
    Spread,
    efficiency,
    failed,
    inference_share,
    latency,
    rate,
    server,
    speedup,
    turns_of,
)
from spine_bench.harness.loadgen import Scenario
from spine_bench.harness.result import Result, SystemRecord
from spine_engine.bundle import PACKAGED
from spine_engine.errors import UsageError

NULL: Final = "null"

# Queries below which a percentile by rank is only the slowest of them.
LATENCY_QUERIES: Final = {"p50_s": 1, "p90_s": 10, "p99_s": 100}

# Share of all ratios that must lie on one side of 1 before a system has changed. Of pairs of equal runs of 5 rounds
# each, 3 % are then called changed (8 of the 252 orders of 10 rounds); of 3 rounds each, 10 %.
ONE_SIDED: Final = 0.9

HOW: Final = """\
## How to measure

```
make bench                                    # all of the above, from nothing: own set-up, phantoms, every system
spine-engine bench --systems engine           # the engine alone, on phantoms
spine-engine bench --input exams --out a.json # your studies; the result as JSON
spine-engine bench compare a.json b.json      # two results over the same studies
spine-engine bench show a.json --chart a.svg  # the tables and the chart of a result, without measuring again
spine-engine bench --help                     # what else is measured: reading, voxels, families, faults, scale, ...
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


def tables(result: Result) -> list[Table]:
    """Return the tables that a result fills."""
    makers = (
        throughput_table,
        latency_table,
        promises_table,
        stages_table,
        server_table,
    )
    return [table for table in (make(result) for make in makers) if table.rows]


def throughput_table(result: Result) -> Table:
    """One row a system: studies a second offline, how many times that the engine does, processor time, memory."""
    return Table(
        title="Throughput",
        columns=(
            "offline",
            "studies/s",
            "engine does",
            "core-ms a study",
            "peak memory",
        ),
        rows=[
            (
                record.name,
                _spread(rate(result, record.name)),
                _spread(
                    speedup(result, ENGINE, record.name)
                    if record.name not in (ENGINE, NULL)
                    else None,
                    "x",
                ),
                _ms(
                    [
                        turn.cpu_s
                        for turn in turns_of(
                            result, record.name, Scenario.OFFLINE
                        ).values()
                    ]
                ),
                f"{record.peak_memory_bytes / 1e6:,.0f} MB",
            )
            for record in _measured(result)
        ],
    )


def latency_table(result: Result) -> Table:
    """One row a system: the latency of a study alone, as far as each round had studies enough, and its grades."""
    return Table(
        title="Latency and grades",
        columns=("alone", "p50", "p90", "p99", "difference", "failed"),
        rows=[
            (
                record.name,
                *_latencies(result, record.name),
                "-"
                if record.difference is None or record.name == NULL
                else f"{record.difference:.4f}",
                _failed(result, record.name),
            )
            for record in _measured(result)
        ],
    )


def _measured(result: Result) -> list[SystemRecord]:
    return [
        record
        for record in result.systems
        if any(turn.system == record.name for turn in result.turns)
    ]


def _latencies(result: Result, system: str) -> list[str]:
    fewest = min(
        (
            turn.studies
            for turn in turns_of(result, system, Scenario.SINGLE_STREAM).values()
        ),
        default=0,
    )
    return [
        _time(latency(result, system, name) if fewest >= needed else None)
        for name, needed in LATENCY_QUERIES.items()
    ]


def promises_table(result: Result) -> Table:
    """What the packaged bundle is to reach, beside what was measured; empty with another bundle."""
    served = server(result, ENGINE)
    figures = {
        "studies/s over notebook": (speedup(result, ENGINE, "notebook"), 40.0),
        "studies/s over tuned-torch": (speedup(result, ENGINE, "tuned-torch"), 2.0),
        "studies/s over onnxruntime": (speedup(result, ENGINE, "onnxruntime"), 5.0),
        "share of the bare models' studies/s": (inference_share(result), 0.85),
        "pipeline efficiency, stages alone": (efficiency(result), 0.90),
        f"server rate with p99 <= {SERVER_BOUND:g} x p50 alone, over offline": (
            Spread.of([served.share or 0.0] if served else []),
            0.75,
        ),
    }
    rows = [
        (
            name,
            _spread(spread),
            f">= {least:g}",
            "yes" if spread.median >= least else "no",
        )
        for name, (spread, least) in figures.items()
        if spread is not None
    ]
    failures, answers = failed(result, ENGINE)
    if answers:
        rows.append(
            (
                "no study failed",
                _failed(result, ENGINE),
                "0",
                "no" if failures else "yes",
            )
        )
    return Table(
        title="Promises",
        columns=("promise", "measured", "wanted", "met"),
        rows=rows if result.settings.bundle.get("name") == PACKAGED else [],
    )


def stages_table(result: Result) -> Table:
    """Core-seconds a study of the engine's stages, each alone, and what remains of them in the whole."""
    looks = result.stages
    turns = turns_of(result, ENGINE, Scenario.OFFLINE).values()
    taken = _ms(
        [
            result.machine.cores / turn.studies_per_s
            for turn in turns
            if turn.studies_per_s
        ]
    )
    spent = _ms([turn.cpu_s for turn in turns])
    rows = [
        *(
            (
                stage,
                _ms([look.alone_s[stage] for look in looks]),
                _ms([look.together_s[stage] for look in looks]),
            )
            for stage in (looks[0].alone_s if looks else ())
        ),
        (
            "all stages",
            _ms([sum(look.alone_s.values()) for look in looks]),
            _ms([sum(look.together_s.values()) for look in looks]),
        ),
        ("the engine offline, cores x wall time", taken, taken),
        ("the engine offline, processor time", spent, spent),
        (
            "pipeline efficiency",
            _spread(efficiency(result)),
            _spread(efficiency(result, together=True)),
        ),
        (
            "bare models, studies/s, all cores",
            "",
            _spread(Spread.of([look.inference_studies_per_s for look in looks])),
        ),
        ("the engine's share of that", "", _spread(inference_share(result))),
    ]
    return Table(
        title="Stages",
        columns=("core-ms a study", "one process", "a process for each core"),
        rows=rows if looks else [],
    )


def server_table(result: Result) -> Table:
    """The engine's runs as a server."""
    figure = server(result, ENGINE)
    offline = rate(result, ENGINE)
    return Table(
        title="Server",
        columns=("arrivals/s", "of offline", "p50", "p99", "bound", "LoadGen"),
        rows=[
            (
                f"{turn.rate or 0.0:.3g}",
                f"{(turn.rate or 0.0) / offline.median:.0%}",
                _time(turn.latencies.p50_s),
                _time(turn.latencies.p99_s),
                _time(figure.bound_s),
                turn.verdict,
            )
            for turn in figure.probes
        ]
        if figure and offline
        else [],
    )


def notes(result: Result) -> list[str]:
    """Return the sentences that belong under the tables."""
    machine = result.machine
    library = result.library
    settings = result.settings
    bundle = f"{settings.bundle.get('name', '')} {settings.bundle.get('version', '')}"
    null = rate(result, NULL)
    alone = latency(result, NULL, "p50_s")
    served = server(result, ENGINE)
    lines = [
        f"spine-engine {result.engine_version}, bundle {bundle}, {result.date}; {machine.cores} cores of "
        f"{machine.processor}, {machine.memory_bytes / 1e9:.0f} GB, {machine.system}, Python {machine.python}.",
        f"{library.studies} studies ({library.name}), {library.files} files, {library.size_bytes / 1e6:,.0f} MB, in "
        f"the page cache. {settings.rounds} rounds of {settings.seconds:g} s a system and scenario, systems in turns; "
        "figures are medians over the rounds with the smallest and the largest, ratios are taken within a round.",
        "Packages: "
        + ", ".join(f"{name} {version}" for name, version in machine.packages.items())
        + ".",
    ]
    if null is not None and null.median:
        also = (
            "."
            if alone is None
            else f" and {alone * 1e6:.1f} us alone (the null system)."
        )
        lines.append(
            f"The harness itself costs {1e6 / null.median:.1f} us a study offline{also}"
        )
    if served is not None:
        lines.append(
            f"As a server with p99 <= {SERVER_BOUND:g} x p50 alone, a system that gives each study to one of "
            f"{machine.cores} workers can bear {served.possible:.0%} of its capacity at most (Poisson arrivals, equal "
            "studies: M/D/c)."
        )
    return lines + [
        f"{r.name} was not measured to the end: {r.problem}"
        for r in result.systems
        if r.problem
    ]


def page(result: Result, *, command: str, chart: str | None = None) -> str:
    """Return the page.

    Args:
        result: what was measured.
        command: the command that measured it.
        chart: where the chart is, relative to the page; None for no chart.
    """
    lines = [
        "# Benchmarks",
        "",
        f"Written by `{command}`; the figures are of that run.",
        "",
    ]
    if chart is not None:
        lines += [f"![Studies a second of each system]({chart})", ""]
    for table in tables(result):
        lines += [f"## {table.title}", "", table.markdown(), ""]
    lines += [f"- {note}" for note in notes(result)]
    return "\n".join([*lines, "", HOW])


def compare(before: Result, after: Result) -> Table:
    """Return how many times the studies a second of ``before`` each system reaches in ``after``.

    Rounds of two runs are no pairs, so every round of one is compared with every round of the other; the spread is the
    middle half of those ratios. A system that graded nothing in a round of ``before`` is left out.

    Raises:
        UsageError: the libraries differ, or no system was measured in both.
    """
    if before.library.digest != after.library.digest:
        raise UsageError(
            f"the results are over different studies ({before.library.name}; {after.library.name}) and cannot be "
            "compared: measure both with the same --input, or the same --studies"
        )
    rows = []
    for system, scenario in product(
        [r.name for r in before.systems], (Scenario.OFFLINE, Scenario.SINGLE_STREAM)
    ):
        old, new = (
            [t.studies_per_s for t in turns_of(r, system, scenario).values()]
            for r in (before, after)
        )
        if old and new and all(old):
            change = ratio(old, new)
            rows.append(
                (
                    system,
                    str(scenario),
                    f"{median(old):.3g}",
                    f"{median(new):.3g}",
                    f"{change.median:.3f} ({change.low:.3f} to {change.high:.3f})",
                    changed(old, new),
                )
            )
    if not rows:
        raise UsageError("no system was measured in both results")
    return Table(
        title="Comparison",
        columns=("system", "scenario", "studies/s before", "after", "ratio", ""),
        rows=rows,
    )


def ratio(before: list[float], after: list[float]) -> Spread:
    """Return the median and the middle half of all ratios ``after / before``."""
    low, middle, high = np.percentile(
        [new / old for old, new in product(before, after)],
        [25, 50, 75],
    )
    return Spread(
        median=float(middle),
        low=float(low),
        high=float(high),
    )


def changed(before: list[float], after: list[float]) -> str:
    """Return ``faster`` or ``slower`` when nearly all ratios ``after / before`` say so, else an empty text."""
    pairs = list(product(before, after))
    if sum(new > old for old, new in pairs) >= ONE_SIDED * len(pairs):
        return "faster"
    return (
        "slower"
        if sum(new < old for old, new in pairs) >= ONE_SIDED * len(pairs)
        else ""
    )


def differences(before: Result, after: Result) -> list[str]:
    """Return what else is different between two results, a line each."""
    old = _facts(before)
    new = _facts(after)
    return [
        f"{name}: {old.get(name, 'none')} before, {new.get(name, 'none')} after"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def _facts(result: Result) -> dict[str, object]:
    return {
        "engine": result.engine_version,
        "bundle": result.settings.bundle.get("digest", ""),
        "processor": result.machine.processor,
        "cores": result.machine.cores,
        "Python": result.machine.python,
        **result.machine.packages,
    }


def _failed(result: Result, system: str) -> str:
    return "{} of {}".format(*failed(result, system))


def _spread(spread: Spread | None, unit: str = "") -> str:
    if spread is None:
        return "-"
    around = (
        ""
        if spread.low == spread.high
        else f" ({_short(spread.low)} to {_short(spread.high)})"
    )
    return f"{_short(spread.median)}{unit}{around}"


def _ms(seconds: Sequence[float]) -> str:
    return _spread(Spread.of([value * 1e3 for value in seconds]))


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{_short(seconds)} s" if seconds >= 1 else f"{_short(seconds * 1e3)} ms"


def _short(value: float) -> str:
    """Return three digits, and no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return (
        f"{value:.1f}"
        if value >= 10
        else f"{value:.2f}"
        if value >= 0.1
        else f"{value:.2g}"
    )
