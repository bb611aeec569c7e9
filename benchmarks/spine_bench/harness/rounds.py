"""A whole measurement: every system has its turn, round after round, so that a noisy machine slows all alike."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np

from spine_bench.harness.figures import ENGINE, SERVER_BOUND, bearable_load
from spine_bench.harness.host import Host, SystemFailedError, WarmUp
from spine_bench.harness.interfaces import StudyLibrary
from spine_bench.harness.loadgen import Load, Scenario
from spine_bench.harness.result import (
    SCHEMA,
    LibraryFacts,
    Result,
    Settings,
    SystemRecord,
    Turn,
    this_machine,
)
from spine_bench.harness.stages import StageBench, StageTimes, check_runtime
from spine_bench.harness.systems import BASELINES
from spine_engine._version import __version__
from spine_engine.errors import SpineEngineError
from spine_engine.options import usable_cpus

# Most queries of one turn: the null system would answer millions.
MAX_QUERIES: Final = 10_000

# A turn that takes so many times what was expected, and a minute at least, has failed.
PATIENCE: Final = 20.0

# Studies that an offline turn has at least for each core: the last of them leave cores idle for a quarter at most.
OFFLINE_EACH: Final = 4
# The same where a study takes longer than BRIEF_S.
OFFLINE_EACH_SLOW: Final = 2
BRIEF_S: Final = 1.0
# A system that takes longer for a study may have a turn of one: rounds of several would take minutes.
SLOW_S: Final = 5.0

# Shares, of what a worker a study can bear by queueing theory, at which a server is tried, by bisection: two runs. Of
# 838 studies each they take five to six minutes where ten studies a second are graded on two cores.
SERVER_SHARES: Final = (0.7, 0.85, 1.0)

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured; see ``result.Settings``. ``stages`` measures the engine's stages too, once a round."""

    systems: tuple[str, ...]
    scenarios: tuple[Scenario, ...]
    rounds: int = 5
    seconds: float = 10.0
    server_queries: int = 838
    stages: bool = True

    @property
    def minutes(self) -> int:
        """About how long the measurement takes on two cores."""
        plain = sum(scenario is not Scenario.SERVER for scenario in self.scenarios)
        # A system is open and warm after about 45 s (the null system at once), and a look at the stages takes 15 at
        # least: each walks all studies once alone, once with all processes. The engine's two server runs take 340 s.
        total_s = sum(name != "null" for name in self.systems) * (
            45.0 + self.rounds * plain * self.seconds
        )
        if ENGINE in self.systems:
            total_s += self.rounds * max(self.seconds, 15.0) * self.stages + 340.0 * (
                Scenario.SERVER in self.scenarios
            )
        return max(1, round(total_s / 60))


@dataclass
class _Contestant:
    """A system in the race, and how fast it has been so far."""

    host: Host
    warm: WarmUp
    alone_s: float
    answers_per_s: float
    problem: str | None = None

    def load(self, scenario: Scenario, seconds: float, seed: int) -> Load:
        """Return a load that lasts for about ``seconds``."""
        rate = self.answers_per_s if scenario is Scenario.OFFLINE else 1 / self.alone_s
        queries = int(np.clip(round(rate * seconds), 1, MAX_QUERIES))
        if scenario is Scenario.OFFLINE:
            queries = self._filled(queries)
        return Load(
            scenario=scenario,
            queries=queries,
            seed=seed,
            timeout_s=max(60.0, PATIENCE * max(seconds, queries / rate)),
        )

    def _filled(self, queries: int) -> int:
        """Return so many queries, or a few more, that no core waits for the others' last ones."""
        cores = usable_cpus()
        if self.alone_s > SLOW_S:
            return 1 if queries == 1 else ceil(queries / cores) * cores
        return (
            max(
                OFFLINE_EACH if self.alone_s < BRIEF_S else OFFLINE_EACH_SLOW,
                ceil(queries / cores),
            )
            * cores
        )


def measure(
    library: StudyLibrary,
    bundle: Path | None,
    bundle_facts: dict[str, str],
    plan: Plan,
    say: Say,
) -> Result:
    """Carry out ``plan``; a system that cannot be measured says why in its record, and the others go on.

    Args:
        library: the studies.
        bundle: the bundle's folder; None for the packaged one.
        bundle_facts: its name, version and digest.
        plan: what to measure.
        say: is told a line now and then.
    """
    began = datetime.now(UTC)
    library.read_once()
    race = _Race(library, bundle, plan, say)
    try:
        race.open()
        for round_ in range(plan.rounds):
            race.round(round_)
        if Scenario.SERVER in plan.scenarios:
            race.serve()
    finally:
        race.close()
    return Result(
        schema=SCHEMA,
        engine_version=__version__,
        date=began.isoformat(timespec="seconds"),
        machine=this_machine(),
        library=LibraryFacts.of(library),
        settings=Settings(
            scenarios=tuple(str(scenario) for scenario in plan.scenarios),
            rounds=plan.rounds,
            seconds=plan.seconds,
            server_queries=plan.server_queries,
            bundle=bundle_facts,
        ),
        systems=tuple(race.records()),
        turns=tuple(race.turns),
        stages=tuple(race.looks),
    )


class _Race:
    def __init__(
        self,
        library: StudyLibrary,
        bundle: Path | None,
        plan: Plan,
        say: Say,
    ) -> None:
        self._library = library
        self._bundle = bundle
        self._plan = plan
        self._say = say
        self._running: dict[str, _Contestant] = {}
        self._out: dict[str, str] = {}
        self._stages: StageBench | None = None
        self.turns: list[Turn] = []
        self.looks: list[StageTimes] = []

    def open(self) -> None:
        """Open every system, one after the other, and the stages."""
        for name in self._plan.systems:
            host = Host(name, self._library, self._bundle)
            try:
                warm = host.open()
            except SystemFailedError as error:
                host.close()
                self._leave_out(name, error)
                continue
            self._running[name] = _Contestant(
                host, warm, warm.alone_s, warm.studies_per_s
            )
            self._say(
                f"{name}: open and warm, about {warm.studies_per_s:.3g} studies/s"
            )
        if self._plan.stages and ENGINE in self._running:
            try:
                check_runtime(self._running[ENGINE].warm.facts)
                self._stages = StageBench(self._library, self._bundle)
            except (SpineEngineError, BrokenProcessPool) as error:
                self._leave_out("stages", error)

    def _leave_out(self, name: str, error: Exception) -> None:
        self._out[name] = str(error)
        self._say(f"{name}: left out: {error}")

    def round(self, round_: int) -> None:
        """Give each system its turn in each scenario, beginning with another one each time, then the stages."""
        names = list(self._running)
        first = round_ % max(1, len(names))
        for name in names[first:] + names[:first]:
            contestant = self._running[name]
            for scenario in self._plan.scenarios:
                if scenario is not Scenario.SERVER and contestant.problem is None:
                    self._turn(
                        name,
                        round_,
                        contestant.load(scenario, self._plan.seconds, round_),
                    )
        if self._stages is not None:
            try:
                self.looks.append(self._stages.measure(self._plan.seconds))
            except BrokenProcessPool as error:
                self._leave_out("stages", error)
                self._stages = None

    def serve(self) -> None:
        """Look for the highest rate of arrivals that stays valid. Baselines are spared: it takes long."""
        for name, contestant in self._running.items():
            if name not in (*BASELINES, "null") and contestant.problem is None:
                self._serve(name)

    def _serve(self, name: str) -> None:
        """Try a system as a server at two rates, by bisection."""
        turns: dict[str, list[Turn]] = {scenario: [] for scenario in Scenario}
        for turn in self.turns:
            if turn.system == name:
                turns[turn.scenario].append(turn)
        bound_s = SERVER_BOUND * median(
            turn.latencies.p50_s for turn in turns[Scenario.SINGLE_STREAM]
        )
        capacity = median(turn.studies_per_s for turn in turns[Scenario.OFFLINE])
        if not capacity:
            self._say(f"{name}: no server runs: it graded nothing offline")
            return
        bearable = capacity * bearable_load(usable_cpus(), [1.0], SERVER_BOUND)
        low = 0
        high = len(SERVER_SHARES)
        while low < high and self._running[name].problem is None:
            middle = (low + high) // 2
            rate = SERVER_SHARES[middle] * bearable
            load = Load(
                scenario=Scenario.SERVER,
                queries=self._plan.server_queries,
                seed=middle,
                rate=rate,
                bound_s=bound_s,
                timeout_s=max(60.0, PATIENCE * self._plan.server_queries / rate),
            )
            if self._turn(name, 0, load) == "valid":
                low = middle + 1
            else:
                high = middle

    def _turn(self, name: str, round_: int, load: Load) -> str:
        """Give a system a turn and return LoadGen's verdict; nothing when that is the system's end."""
        contestant = self._running[name]
        try:
            outcome = contestant.host.measure(load)
        except SystemFailedError as error:
            contestant.problem = f"{load.scenario}, round {round_ + 1}: {error}"
            self._say(f"{name}: {contestant.problem}")
            return ""
        turn = Turn.of(name, round_, load, outcome)
        self.turns.append(turn)
        if load.scenario is Scenario.OFFLINE:
            contestant.answers_per_s = outcome.answers_per_s
        elif load.scenario is Scenario.SINGLE_STREAM:
            contestant.alone_s = turn.latencies.mean_s
        self._say(_line(turn))
        return turn.verdict

    def records(self) -> list[SystemRecord]:
        """Return what is to be said of each system."""
        engine = self._running.get(ENGINE)
        records = [
            SystemRecord(name=name, problem=problem)
            for name, problem in self._out.items()
        ]
        for name, contestant in self._running.items():
            records.append(
                SystemRecord(
                    name=name,
                    facts=contestant.warm.facts,
                    open_s=contestant.warm.open_s,
                    peak_memory_bytes=contestant.host.peak_memory_bytes,
                    difference=_difference(contestant, engine),
                    problem=contestant.problem,
                )
            )
        return sorted(
            records,
            key=lambda record: [*self._plan.systems, "stages"].index(record.name),
        )

    def close(self) -> None:
        """End every process."""
        for contestant in self._running.values():
            contestant.host.close()
        if self._stages is not None:
            self._stages.close()


def _difference(contestant: _Contestant, engine: _Contestant | None) -> float | None:
    """Return the mean |probability difference| to the engine over the studies that both graded when they warmed up."""
    if engine is None or engine is contestant:
        return None
    theirs = contestant.warm.answers
    ours = engine.warm.answers
    common = sorted(theirs.keys() & ours.keys())
    return (
        float(np.mean([np.abs(theirs[k] - ours[k]).mean() for k in common]))
        if common
        else None
    )


def _line(turn: Turn) -> str:
    late = turn.latencies
    if turn.scenario == Scenario.OFFLINE:
        what = f"{turn.studies_per_s:.3g} studies/s"
    elif turn.rate is None:
        what = f"p50 {late.p50_s * 1e3:.3g} ms, p99 {late.p99_s * 1e3:.3g} ms"
    else:
        what = f"{turn.rate:.3g} studies/s arriving: p99 {late.p99_s * 1e3:.3g} ms, {turn.verdict}"
    failed = sum(turn.failures.values())
    return f"{turn.system}, {turn.scenario}, round {turn.round + 1}: {what} ({turn.studies} studies, {failed} failed)"
