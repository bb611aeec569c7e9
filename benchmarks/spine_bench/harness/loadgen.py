"""Drives a system through MLPerf LoadGen, and keeps a book of its own beside it.

LoadGen decides when a query is issued, how a server's arrivals are spread and whether a run is long enough to be
believed. Its results are not MLPerf results and must not be called so. What it does not do for studies that take
seconds is in ``docs/decisions/0012-harness.md``.
"""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib import import_module
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from spine_bench.harness.interfaces import Answer, StudyLibrary, SystemUnderTest
from spine_engine.errors import UsageError

# Share of a server run's latencies that must lie within the latency bound.
PERCENTILE: Final = 0.99

NOT_ANSWERED: Final = "not answered in time"


class Scenario(StrEnum):
    """How queries come: all at once; the next when the last is answered; at random, as in a clinic."""

    OFFLINE = "offline"
    SINGLE_STREAM = "single-stream"
    SERVER = "server"


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a system is to bear.

    Attributes:
        scenario: how queries come.
        queries: how many, one study each. Every study comes equally often, give or take one.
        seed: of the order of the studies and of a server's arrivals.
        rate: a server's arrivals a second; no other scenario has one.
        bound_s: the latency that 99 % of a server's answers must keep.
        timeout_s: when this much time has passed, what is not answered has failed.
    """

    scenario: Scenario
    queries: int
    seed: int = 0
    rate: float | None = None
    bound_s: float | None = None
    timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        if self.queries < 1 or self.timeout_s <= 0:
            raise ValueError("a load has at least one query and some time")
        server = self.scenario is Scenario.SERVER
        if (self.rate is not None, self.bound_s is not None) != (server, server):
            raise ValueError(
                "a server run needs rate and bound_s, the other scenarios have neither"
            )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a load. Plain data: it crosses process borders.

    Attributes:
        wall_s: from the first query to the last answer.
        latencies_s: from issue to answer, of every query, in the order of the answers.
        failures: why queries were not graded, with counts.
        stage_seconds: what the system said of its stages, mean of all queries.
        valid: LoadGen's verdict: long enough to be believed, and the bound kept; and every study was graded.
        doubts: what LoadGen, or the book, found wanting.
        cpu_s: processor seconds a query of all the system's processes, where the caller has them.
    """

    wall_s: float
    latencies_s: tuple[float, ...]
    failures: Mapping[str, int]
    stage_seconds: Mapping[str, float]
    valid: bool
    doubts: tuple[str, ...]
    cpu_s: float = 0.0

    @property
    def studies_per_s(self) -> float:
        """Studies graded a second: failures are answers, but no throughput."""
        return (len(self.latencies_s) - sum(self.failures.values())) / self.wall_s

    @property
    def answers_per_s(self) -> float:
        """Queries answered a second, failed ones among them: what says how many a turn can hold."""
        return len(self.latencies_s) / self.wall_s

    def percentile(self, percent: float) -> float:
        """Return a latency in seconds: the smallest that so many percent of the answers keep."""
        return float(np.percentile(self.latencies_s, percent, method="inverted_cdf"))


def drive(system: SystemUnderTest, library: StudyLibrary, load: Load) -> Outcome:
    """Put an opened and warmed-up system under a load, and wait until every query is answered or its time is up.

    Raises:
        UsageError: LoadGen is not installed.
    """
    loadgen = loadgen_module()
    order = np.random.default_rng(load.seed).permutation(len(library))
    studies = cycle([library[int(index)] for index in order])
    book = _Book(
        lambda query: loadgen.QuerySamplesComplete(
            [loadgen.QuerySampleResponse(query, 0, 0)]
        )
    )

    def issue(queries: Sequence[Any]) -> None:
        book.issued([query.id for query in queries])
        for query in queries:
            system.submit(next(studies), partial(book.close, query.id))

    sut = loadgen.ConstructSUT(issue, lambda: None)
    qsl = loadgen.ConstructQSL(
        1, 1, lambda indices: None, lambda indices: None
    )  # see 0012: which study is ours to say
    watch = threading.Timer(load.timeout_s, book.give_up)
    watch.daemon = True
    try:
        with tempfile.TemporaryDirectory(prefix="spine-bench-") as folder:
            watch.start()
            loadgen.StartTestWithLogSettings(
                sut,
                qsl,
                _settings(loadgen, load),
                _log_settings(loadgen, folder),
                "",
            )
            summary = (Path(folder) / "mlperf_log_summary.txt").read_text(
                encoding="utf-8"
            )
    finally:
        watch.cancel()
        loadgen.DestroyQSL(qsl)
        loadgen.DestroySUT(sut)
    return book.outcome(summary)


class _Book:
    """When each query was issued and answered; the first answer counts, and only that reaches LoadGen."""

    def __init__(self, complete: Callable[[int], None]) -> None:
        self._complete = complete
        self._lock = threading.Lock()
        self._open: dict[int, float] = {}
        self._began = 0.0
        self._ended = 0.0
        self._latencies: list[float] = []
        self._failures: Counter[str] = Counter()
        self._stages: Counter[str] = Counter()
        self._again = 0
        self._late = False

    def issued(self, queries: Sequence[int]) -> None:
        now = perf_counter()
        with self._lock:
            self._began = self._began or now
            self._open.update(dict.fromkeys(queries, now))
        if self._late:
            self.give_up()

    def give_up(self) -> None:
        """Answer what is open, and what is still to come, with a failure: LoadGen itself would wait for ever."""
        with self._lock:
            self._late = True
            left = list(self._open)
        for query in left:
            self.close(query, Answer(probabilities=None, failure=NOT_ANSWERED))

    def close(self, query: int, answer: Answer) -> None:
        now = perf_counter()
        with self._lock:
            began = self._open.pop(query, None)
            if began is None:
                self._again += not self._late
                return
            self._ended = now
            self._latencies.append(now - began)
            if answer.failure is not None or answer.probabilities is None:
                self._failures[answer.failure or "no probabilities"] += 1
            self._stages.update(answer.stage_seconds)
        self._complete(query)

    def outcome(self, summary: str) -> Outcome:
        """Sum the book up; what it found wanting is said beside LoadGen's own doubts."""
        found = {
            "queries were answered twice": self._again,
            "studies were not graded": self._failures.total(),
        }
        doubts = [f"{count} {what}" for what, count in found.items() if count]
        return Outcome(
            wall_s=self._ended - self._began,
            latencies_s=tuple(self._latencies),
            failures=dict(self._failures),
            stage_seconds={
                stage: seconds / len(self._latencies)
                for stage, seconds in self._stages.items()
            },
            valid="Result is : VALID" in summary and not (doubts or self._late),
            doubts=(*doubts_of(summary), *doubts),
        )


def doubts_of(summary: str) -> tuple[str, ...]:
    """Return what LoadGen's summary calls not satisfied, and its count of errors, a line each.

    Its warnings are left out: every run has one, that its own log grew.
    """
    lines = [" ".join(line.split()) for line in summary.splitlines()]
    return (
        *[line.split(":")[0].strip() + ": no" for line in lines if line.endswith("NO")],
        *(line for line in lines if "ERROR" in line),
    )


def _settings(loadgen: Any, load: Load) -> Any:
    """Return LoadGen's settings; the number of queries is what ends a run, so that it can be said beforehand."""
    settings = {
        "mode": loadgen.TestMode.PerformanceOnly,
        "scenario": getattr(
            loadgen.TestScenario, load.scenario.name.title().replace("_", "")
        ),
        "min_duration_ms": 0,
        "min_query_count": load.queries,
        **dict.fromkeys(
            ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"), load.seed
        ),
        "offline_expected_qps": 1.0,
    }
    if load.rate is not None and load.bound_s is not None:
        settings |= {
            "server_target_qps": load.rate,
            "server_target_latency_ns": int(load.bound_s * 1e9),
            "server_target_latency_percentile": PERCENTILE,
        }
    return _set(loadgen.TestSettings(), settings)


def _log_settings(loadgen: Any, folder: str) -> Any:
    settings = _set(loadgen.LogSettings(), {"enable_trace": False})
    _set(settings.log_output, {"outdir": folder, "copy_summary_to_stdout": False})
    return settings


def _set(settings: Any, values: Mapping[str, object]) -> Any:
    for name, value in values.items():
        setattr(settings, name, value)
    return settings


def loadgen_module() -> Any:
    """Return LoadGen. Raises ``UsageError`` when it is not installed."""
    try:
        return import_module("mlperf_loadgen")
    except ModuleNotFoundError:
        raise UsageError(
            "measuring needs LoadGen: in a clone, pip install '.[bench]' (or 'make bench')"
        ) from None
