"""A result as tables: rows of text once, shown on a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from spine_bench.harness.figures import (
    ENGINE,
    SERVER_BOUND,
    Spread,
    efficiency,
    failed,
    inference_share,
    latency,
    needed_s,
    rate,
    server,
    speedup,
    turns_of,
)
from spine_bench.harness.loadgen import Scenario
from spine_bench.harness.result import Result, SystemRecord
from spine_engine.bundle import PACKAGED

NULL: Final = "null"

WANTED_SPEEDUPS: Final = {"notebook": 40.0, "tuned-torch": 2.0, "onnxruntime": 5.0}
"""With the packaged bundle the engine is to do so many times the studies a second."""
WANTED_SHARE: Final = 0.85
WANTED_EFFICIENCY: Final = 0.90
WANTED_SERVER: Final = 0.75

LATENCY_QUERIES: Final = {"p50_s": 1, "p90_s": 10, "p99_s": 100}
"""Queries below which a percentile by rank is only the slowest of them."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A title, the names of the columns, and rows of as many cells; the first column is text, the others figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return the table as Markdown, its title not included."""
        lines = [_line(self.columns), "|---|" + "--:|" * (len(self.columns) - 1)]
        return "\n".join([*lines, *(_line(row) for row in self.rows)])


def tables(result: Result) -> list[Table]:
    """Return the tables that a result fills."""
    found = [
        throughput_table(result),
        latency_table(result),
        promises_table(result),
        stages_table(result),
        server_table(result),
    ]
    return [table for table in found if table is not None and table.rows]


def throughput_table(result: Result) -> Table:
    """One row a system: studies a second offline, how many times that the engine does, processor time, memory."""
    rows = []
    for record in _measured(result):
        times = speedup(result, ENGINE, record.name) if record.name not in (ENGINE, NULL) else None
        cost = Spread.of([turn.cpu_s for turn in turns_of(result, record.name, Scenario.OFFLINE).values()])
        memory = f"{record.peak_memory_bytes / 1e6:,.0f} MB"
        rows.append((record.name, _spread(rate(result, record.name)), _spread(times, "x"), _ms(cost), memory))
    columns = ("offline", "studies/s", "engine does", "core-ms a study", "peak memory")
    return Table(title="Throughput", columns=columns, rows=tuple(rows))


def latency_table(result: Result) -> Table:
    """One row a system: the latency of a study alone, as far as each round had studies enough, and its grades."""
    rows = []
    for record in _measured(result):
        fewest = min((t.studies for t in turns_of(result, record.name, Scenario.SINGLE_STREAM).values()), default=0)
        late = [
            latency(result, record.name, name) if fewest >= needed else None for name, needed in LATENCY_QUERIES.items()
        ]
        known = record.difference is not None and record.name != NULL
        difference = f"{record.difference:.4f}" if known else "-"
        rows.append((record.name, *(_time(seconds) for seconds in late), difference, _failed(result, record.name)))
    columns = ("alone", "p50", "p90", "p99", "difference", "failed")
    return Table(title="Latency and grades", columns=columns, rows=tuple(rows))


def _measured(result: Result) -> list[SystemRecord]:
    return [record for record in result.systems if any(turn.system == record.name for turn in result.turns)]


def promises_table(result: Result) -> Table | None:
    """What the packaged bundle is to reach, beside what was measured; None with another bundle."""
    if result.settings.bundle.get("name") != PACKAGED:
        return None
    figures: list[tuple[str, Spread | None, float]] = [
        (f"studies/s over {name}", speedup(result, ENGINE, name), wanted) for name, wanted in WANTED_SPEEDUPS.items()
    ]
    figures += [
        ("share of the bare models' studies/s", inference_share(result), WANTED_SHARE),
        ("pipeline efficiency, stages alone", efficiency(result), WANTED_EFFICIENCY),
    ]
    served = server(result, ENGINE)
    if served is not None:
        share = served.share or 0.0
        name = f"server rate with p99 <= {SERVER_BOUND:g} x p50 alone, over offline"
        figures.append((name, Spread(median=share, low=share, high=share), WANTED_SERVER))
    rows = tuple(
        (name, _spread(spread), f">= {wanted:g}", "yes" if spread.median >= wanted else "no")
        for name, spread, wanted in figures
        if spread is not None
    )
    if failed(result, ENGINE)[1]:
        none = "no" if failed(result, ENGINE)[0] else "yes"
        rows += (("no study failed", _failed(result, ENGINE), "0", none),)
    return Table(title="Promises", columns=("promise", "measured", "wanted", "met"), rows=rows)


def stages_table(result: Result) -> Table | None:
    """Core-seconds a study of the engine's stages, each alone, and what remains of them in the whole."""
    if not result.stages:
        return None
    rows = []
    for stage in result.stages[0].alone_s:
        looks = [(look.alone_s[stage], look.together_s[stage]) for look in result.stages]
        rows.append((stage, *(_ms(Spread.of(values)) for values in zip(*looks, strict=True))))
    sums = [(needed_s(look.alone_s), needed_s(look.together_s)) for look in result.stages]
    rows.append(("all stages", *(_ms(Spread.of(values)) for values in zip(*sums, strict=True))))
    turns = turns_of(result, ENGINE, Scenario.OFFLINE).values()
    taken = _ms(Spread.of([result.machine.cores / turn.studies_per_s for turn in turns if turn.studies_per_s]))
    spent = _ms(Spread.of([turn.cpu_s for turn in turns]))
    rows.append(("the engine offline, cores x wall time", taken, taken))
    rows.append(("the engine offline, processor time", spent, spent))
    rows.append(("pipeline efficiency", _spread(efficiency(result)), _spread(efficiency(result, together=True))))
    bare = Spread.of([look.inference_studies_per_s for look in result.stages])
    rows.append(("bare models, studies/s, all cores", "", _spread(bare)))
    rows.append(("the engine's share of that", "", _spread(inference_share(result))))
    return Table(
        title="Stages", columns=("core-ms a study", "one process", "a process for each core"), rows=tuple(rows)
    )


def server_table(result: Result) -> Table | None:
    """The engine's runs as a server."""
    figure, offline = server(result, ENGINE), rate(result, ENGINE)
    if figure is None or offline is None:
        return None
    rows = tuple(
        (
            f"{turn.rate or 0.0:.3g}",
            f"{(turn.rate or 0.0) / offline.median:.0%}",
            *(_time(seconds) for seconds in (turn.latencies.p50_s, turn.latencies.p99_s, figure.bound_s)),
            turn.verdict,
        )
        for turn in figure.probes
    )
    columns = ("arrivals/s", "of offline", "p50", "p99", "bound", "LoadGen")
    return Table(title="Server", columns=columns, rows=rows)


def notes(result: Result) -> list[str]:
    """Return the sentences that belong under the tables."""
    machine, library, settings = result.machine, result.library, result.settings
    bundle = f"{settings.bundle.get('name', '')} {settings.bundle.get('version', '')}"
    lines = [
        f"spine-engine {result.engine_version}, bundle {bundle}, {result.date}; {machine.cores} cores of "
        f"{machine.processor}, {machine.memory_bytes / 1e9:.0f} GB, {machine.system}, Python {machine.python}.",
        f"{library.studies} studies ({library.name}), {library.files} files, {library.size_bytes / 1e6:,.0f} MB, in "
        f"the page cache. {settings.rounds} rounds of {settings.seconds:g} s a system and scenario, systems in turns; "
        "figures are medians over the rounds with the smallest and the largest, ratios are taken within a round.",
        "Packages: " + ", ".join(f"{name} {version}" for name, version in machine.packages.items()) + ".",
    ]
    null = rate(result, NULL)
    if null is not None and null.median:
        alone = latency(result, NULL, "p50_s")
        lines.append(
            f"The harness itself costs {1e6 / null.median:.1f} us a study offline"
            + ("." if alone is None else f" and {alone * 1e6:.1f} us alone (the null system).")
        )
    served = server(result, ENGINE)
    if served is not None:
        lines.append(
            f"As a server with p99 <= {SERVER_BOUND:g} x p50 alone, a system that gives each study to one of "
            f"{machine.cores} workers can bear {served.possible:.0%} of its capacity at most (Poisson arrivals, equal "
            "studies: M/D/c)."
        )
    lines += [f"{r.name} was not measured to the end: {r.problem}" for r in result.systems if r.problem is not None]
    return lines


def _failed(result: Result, system: str) -> str:
    return "{} of {}".format(*failed(result, system))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _spread(spread: Spread | None, unit: str = "") -> str:
    if spread is None:
        return "-"
    if spread.low == spread.high:
        return f"{_short(spread.median)}{unit}"
    return f"{_short(spread.median)}{unit} ({_short(spread.low)} to {_short(spread.high)})"


def _ms(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return _spread(Spread(median=spread.median * 1e3, low=spread.low * 1e3, high=spread.high * 1e3))


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{_short(seconds)} s" if seconds >= 1 else f"{_short(seconds * 1e3)} ms"


def _short(value: float) -> str:
    """Return three digits, and no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
