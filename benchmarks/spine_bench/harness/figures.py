"""From turns to the figures that are shown: medians over rounds, and ratios taken within a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from spine_bench.harness.loadgen import Scenario
from spine_bench.harness.queueing import bearable_load
from spine_bench.harness.result import Result, Turn

ENGINE: Final = "engine"

SERVER_BOUND: Final = 3.0
"""A server's answers must keep this many times the median latency of a study alone."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure's median over rounds, its smallest and its largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Sum up the values of the rounds; None when there are none."""
        return cls(median=median(values), low=min(values), high=max(values)) if values else None


def turns_of(result: Result, system: str, scenario: Scenario) -> dict[int, Turn]:
    """Return a system's turns by round."""
    return {turn.round: turn for turn in result.turns if turn.system == system and turn.scenario == scenario}


def rate(result: Result, system: str, scenario: Scenario = Scenario.OFFLINE) -> Spread | None:
    """Return a system's graded studies a second."""
    return Spread.of([turn.studies_per_s for turn in turns_of(result, system, scenario).values()])


def speedup(result: Result, system: str, over: str) -> Spread | None:
    """Return how many times the studies a second of ``over`` a system reaches offline, compared round by round.

    Rounds in which ``over`` graded nothing are left out.
    """
    mine, other = turns_of(result, system, Scenario.OFFLINE), turns_of(result, over, Scenario.OFFLINE)
    return Spread.of(
        [mine[k].studies_per_s / other[k].studies_per_s for k in mine if k in other and other[k].studies_per_s]
    )


def failed(result: Result, system: str) -> tuple[int, int]:
    """Return how many answers of a system in all scenarios held no grades, and how many answers it gave."""
    turns = [turn for turn in result.turns if turn.system == system]
    return sum(sum(turn.failures.values()) for turn in turns), sum(turn.studies for turn in turns)


def latency(result: Result, system: str, name: str) -> float | None:
    """Return the median over rounds of one of a system's single-stream latencies, such as ``p50_s``."""
    turns = turns_of(result, system, Scenario.SINGLE_STREAM).values()
    return median(getattr(turn.latencies, name) for turn in turns) if turns else None


def needed_s(stages: dict[str, float]) -> float:
    """Return the processor seconds of all stages of a study together."""
    return sum(stages.values())


def efficiency(result: Result, *, together: bool = False) -> Spread | None:
    """Return the engine's pipeline efficiency offline, round by round.

    That is the core-seconds that the stages of a study need when each runs alone at its best, over the core-seconds
    that a study took: cores x wall time / studies. With ``together`` the stages were measured with all cores at work.
    """
    turns = turns_of(result, ENGINE, Scenario.OFFLINE)
    cores = result.machine.cores
    return Spread.of(
        [
            needed_s(look.together_s if together else look.alone_s) * turns[k].studies_per_s / cores
            for k, look in enumerate(result.stages)
            if k in turns
        ]
    )


def inference_share(result: Result) -> Spread | None:
    """Return the engine's studies a second offline as a share of the bare models', round by round."""
    turns = turns_of(result, ENGINE, Scenario.OFFLINE)
    pairs = ((turns[k], look) for k, look in enumerate(result.stages) if k in turns)
    return Spread.of([turn.studies_per_s / look.inference_studies_per_s for turn, look in pairs])


@dataclass(frozen=True, kw_only=True)
class ServerFigure:
    """How a system does as a server.

    Attributes:
        bound_s: what 99 % of the answers had to keep.
        rate: the highest of the rates tried that LoadGen called valid; None when it called none so.
        share: that rate over the studies a second offline.
        possible: the share that a worker a study can reach at most, by queueing theory (see ``queueing``).
        probes: the runs, by rate.
    """

    bound_s: float
    rate: float | None
    share: float | None
    possible: float
    probes: tuple[Turn, ...]


def server(result: Result, system: str) -> ServerFigure | None:
    """Return how a system did as a server; None when that was not measured."""
    probes = [turn for turn in result.turns if turn.system == system and turn.scenario == Scenario.SERVER]
    offline = rate(result, system)
    if not probes or not offline or not offline.median or probes[0].bound_s is None:
        return None
    valid = [turn.rate for turn in probes if turn.verdict == "valid" and turn.rate is not None]
    best = max(valid, default=None)
    return ServerFigure(
        bound_s=probes[0].bound_s,
        rate=best,
        share=None if best is None else best / offline.median,
        possible=bearable_load(result.machine.cores, [1.0], SERVER_BOUND),
        probes=tuple(sorted(probes, key=lambda turn: turn.rate or 0.0)),
    )
