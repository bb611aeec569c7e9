"""From turns to the figures that are shown: medians over rounds, and ratios taken within a round."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from spine_bench.harness.loadgen import Scenario
from spine_bench.harness.result import Result, Turn
from spine_bench.harness.stages import StageTimes

ENGINE: Final = "engine"

# A server's answers must keep this many times the median latency of a study alone.
SERVER_BOUND: Final = 3.0

# Simulated studies: the 99th percentile repeats within 3 % at 75 % load.
ARRIVALS: Final = 50_000

# Shares of the workers' capacity that are tried.
LOADS: Final = tuple(round(0.05 * k, 2) for k in range(1, 20))


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure's median over rounds, its smallest and its largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Sum up the values of the rounds; None when there are none."""
        return (
            cls(median=median(values), low=min(values), high=max(values))
            if values
            else None
        )


def turns_of(result: Result, system: str, scenario: Scenario) -> dict[int, Turn]:
    """Return a system's turns by round."""
    return {
        turn.round: turn
        for turn in result.turns
        if turn.system == system and turn.scenario == scenario
    }


def rate(
    result: Result, system: str, scenario: Scenario = Scenario.OFFLINE
) -> Spread | None:
    """Return a system's graded studies a second."""
    return Spread.of(
        [turn.studies_per_s for turn in turns_of(result, system, scenario).values()]
    )


def speedup(result: Result, system: str, over: str) -> Spread | None:
    """Return how many times the studies a second of ``over`` a system reaches offline, compared round by round.

    Rounds in which ``over`` graded nothing are left out.
    """
    mine = turns_of(result, system, Scenario.OFFLINE)
    other = turns_of(result, over, Scenario.OFFLINE)
    common = [k for k in mine if k in other and other[k].studies_per_s]
    return Spread.of([mine[k].studies_per_s / other[k].studies_per_s for k in common])


def failed(result: Result, system: str) -> tuple[int, int]:
    """Return how many answers of a system in all scenarios held no grades, and how many answers it gave."""
    turns = [turn for turn in result.turns if turn.system == system]
    return sum(sum(turn.failures.values()) for turn in turns), sum(
        turn.studies for turn in turns
    )


def latency(result: Result, system: str, name: str) -> float | None:
    """Return the median over rounds of one of a system's single-stream latencies, such as ``p50_s``."""
    turns = turns_of(result, system, Scenario.SINGLE_STREAM).values()
    return median(getattr(turn.latencies, name) for turn in turns) if turns else None


def efficiency(result: Result, *, together: bool = False) -> Spread | None:
    """Return the engine's pipeline efficiency offline, round by round.

    That is the core-seconds that the stages of a study need when each runs alone at its best, over the core-seconds
    that a study took: cores x wall time / studies. With ``together`` the stages were measured with all cores at work.
    """
    return Spread.of(
        [
            sum((look.together_s if together else look.alone_s).values())
            * rate
            / result.machine.cores
            for look, rate in _looks(result)
        ]
    )


def inference_share(result: Result) -> Spread | None:
    """Return the engine's studies a second offline as a share of the bare models', round by round."""
    return Spread.of(
        [rate / look.inference_studies_per_s for look, rate in _looks(result)]
    )


def _looks(result: Result) -> list[tuple[StageTimes, float]]:
    """Return each look at the stages with the engine's studies a second offline in the same round."""
    turns = turns_of(result, ENGINE, Scenario.OFFLINE)
    return [
        (look, turns[k].studies_per_s)
        for k, look in enumerate(result.stages)
        if k in turns
    ]


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
    probes = [
        turn
        for turn in result.turns
        if turn.system == system and turn.scenario == Scenario.SERVER
    ]
    offline = rate(result, system)
    if not probes or not offline or not offline.median or probes[0].bound_s is None:
        return None
    best = max(
        (turn.rate or 0.0 for turn in probes if turn.verdict == "valid"), default=None
    )
    return ServerFigure(
        bound_s=probes[0].bound_s,
        rate=best,
        share=None if best is None else best / offline.median,
        possible=bearable_load(result.machine.cores, [1.0], SERVER_BOUND),
        probes=tuple(sorted(probes, key=lambda turn: turn.rate or 0.0)),
    )


# -- how much load a queue in front of equal workers can bear before its slowest answers come too late
#
# Arrivals are Poisson, each study goes whole to the first free of the workers, first come first served: M/G/c, or M/D/c
# when every study takes the same. Simulated, because M/D/c has no handy formula for percentiles.


def slowest_percentile(
    load: float,
    servers: int,
    service_s: Sequence[float],
    percent: float = 99.0,
) -> float:
    """Return the latency (wait and service) that ``percent`` of the studies keep, in seconds.

    Args:
        load: arrivals as a share of what the workers can do, below 1.
        servers: workers.
        service_s: what studies take, drawn from with equal chances; one number for constant service.
        percent: which percentile.
    """
    rng = np.random.default_rng(0)
    services = rng.choice(np.asarray(service_s, np.float64), ARRIVALS)
    arrivals = np.cumsum(rng.exponential(services.mean() / (load * servers), ARRIVALS))
    free = [0.0] * servers
    latencies = np.empty(ARRIVALS)
    for k, (arrival, service) in enumerate(
        zip(arrivals.tolist(), services.tolist(), strict=True)
    ):
        end = max(heapq.heappop(free), arrival) + service
        heapq.heappush(free, end)
        latencies[k] = end - arrival
    return float(np.percentile(latencies, percent))


def bearable_load(servers: int, service_s: Sequence[float], bound_s: float) -> float:
    """Return the highest of ``LOADS`` at which 99 % of the studies keep ``bound_s``; 0 when none does."""
    low, high = 0, len(LOADS)
    while low < high:  # latencies rise with the load
        middle = (low + high) // 2
        if slowest_percentile(LOADS[middle], servers, service_s) <= bound_s:
            low = middle + 1
        else:
            high = middle
    return LOADS[low - 1] if low else 0.0
