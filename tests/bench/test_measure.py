"""Systems take turns in processes of their own; what a system does wrong is its record and nobody else's trouble."""

import psutil
import pytest

from spine_bench.harness import rounds
from spine_bench.harness.figures import (
    bearable_load,
    failed,
    rate,
    slowest_percentile,
    speedup,
)
from spine_bench.harness.host import Host, SystemFailedError
from spine_bench.harness.loadgen import Load, Scenario
from spine_bench.harness.rounds import Plan, measure
from spine_bench.harness.tables import tables

pytest.importorskip("mlperf_loadgen")

TWO = (Scenario.OFFLINE, Scenario.SINGLE_STREAM)


@pytest.mark.slow
def test_a_race_of_two_with_one_that_breaks_and_one_that_dies(library):
    lines = []
    plan = Plan(
        systems=(
            "bench_fakes:fast",
            "bench_fakes:slow",
            "bench_fakes:broken",
            "bench_fakes:dying_later",
        ),
        scenarios=TWO,
        rounds=3,
        seconds=0.2,
    )
    result = measure(library, None, {"name": "none"}, plan, lines.append)
    records = {record.name: record for record in result.systems}
    assert list(records) == list(plan.systems)
    assert "ZeroDivisionError: not today" in records["bench_fakes:broken"].problem
    assert "its process died" in records["bench_fakes:dying_later"].problem
    assert records["bench_fakes:fast"].problem is None
    assert records["bench_fakes:fast"].facts == {
        "workers": "2",
        "models.grader": "none",
    }
    assert records["bench_fakes:fast"].peak_memory_bytes > 10e6
    for name in plan.systems[:2]:
        turns = [
            (turn.round, turn.scenario) for turn in result.turns if turn.system == name
        ]
        assert sorted(turns) == [
            (k, str(scenario)) for k in range(3) for scenario in TWO
        ]
    firsts = [
        next(turn.system for turn in result.turns if turn.round == k) for k in range(2)
    ]
    assert firsts[0] != firsts[1]
    ratio = speedup(result, "bench_fakes:fast", "bench_fakes:slow")
    assert 1.2 < ratio.median < 10  # 1 ms against 4 ms, and what sleeping costs
    assert any("left out" in line for line in lines)
    assert not [
        child
        for child in psutil.Process().children()
        if "bench_fakes" in " ".join(child.cmdline())
    ]


@pytest.mark.slow
def test_failures_are_no_throughput(library):
    plan = Plan(
        systems=("bench_fakes:failing_all", "bench_fakes:slow"),
        scenarios=TWO,
        rounds=1,
        seconds=0.1,
    )
    result = measure(library, None, {"name": "none"}, plan, lambda line: None)
    assert rate(result, "bench_fakes:failing_all").median == 0
    assert rate(result, "bench_fakes:slow").median > 20
    assert speedup(result, "bench_fakes:failing_all", "bench_fakes:slow").median == 0
    assert speedup(result, "bench_fakes:slow", "bench_fakes:failing_all") is None
    failures, answers = failed(result, "bench_fakes:failing_all")
    assert failures == answers > 0
    assert failed(result, "bench_fakes:slow")[0] == 0
    assert [table.rows for table in tables(result)]


@pytest.mark.parametrize(
    ("alone_s", "answers_per_s", "wanted"),
    [
        (0.2, 5.0, 16),  # 5 studies a second for 1 s
        (0.2, 17.1, 20),
        (2.0, 0.5, 8),
        (2.0, 9.0, 12),
        (8.0, 0.1, 1),
        (8.0, 2.0, 4),
    ],
)
def test_offline_turns_fill_every_core_to_the_end(
    monkeypatch, alone_s, answers_per_s, wanted
):
    monkeypatch.setattr(rounds, "usable_cpus", lambda: 4)
    contestant = rounds._Contestant(None, None, alone_s, answers_per_s)
    assert contestant.load(Scenario.OFFLINE, 1.0, 0).queries == wanted
    assert contestant.load(Scenario.SINGLE_STREAM, 1.0, 0).queries == max(
        1, round(1 / alone_s)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bound", "verdict", "shares"),
    [(1000.0, "valid", [0.85, 1.0]), (0.01, "invalid", [0.85, 0.7])],
)
def test_the_server_scenario_goes_up_when_a_rate_is_valid_and_down_when_not(
    library, monkeypatch, bound, verdict, shares
):
    monkeypatch.setattr(rounds, "SERVER_BOUND", bound)
    monkeypatch.setattr(rounds, "bearable_load", lambda *_: 0.5)
    plan = Plan(
        systems=("bench_fakes:fast",),
        scenarios=tuple(Scenario),
        rounds=1,
        seconds=0.3,
        server_queries=459,
    )
    result = measure(library, None, {"name": "none"}, plan, lambda line: None)
    probes = [turn for turn in result.turns if turn.scenario == "server"]
    offline = next(turn for turn in result.turns if turn.scenario == "offline")
    assert [probe.rate / offline.studies_per_s for probe in probes] == pytest.approx(
        [0.5 * share for share in shares]
    )
    assert {probe.verdict for probe in probes} == {verdict}
    alone = next(turn for turn in result.turns if turn.scenario == "single-stream")
    assert all(
        probe.bound_s == pytest.approx(bound * alone.latencies.p50_s)
        for probe in probes
    )


def test_a_process_that_dies_while_it_warms_up_is_told(library):
    host = Host("bench_fakes:dying", library, None)
    with pytest.raises(SystemFailedError, match="died"):
        host.open()
    host.close()


def test_a_system_is_ended_with_all_it_started(library):
    host = Host("bench_fakes:busy", library, None)
    warm = host.open()
    assert warm.alone_s > 0
    assert warm.answers[0].shape == (5, 5, 3)
    outcome = host.measure(Load(scenario=Scenario.OFFLINE, queries=20))
    assert outcome.cpu_s >= 0.018  # 20 ms of work a study
    children = psutil.Process().children(recursive=True)
    host.close()
    _, alive = psutil.wait_procs(
        [child for child in children if _is_worker(child)], timeout=10
    )
    assert not alive


def _is_worker(process):
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_a_system_that_is_not_there_says_what_to_install(library):
    host = Host("no_such_package:make", library, None)
    with pytest.raises(SystemFailedError, match="no_such_package"):
        host.open()
    host.close()


def test_a_queue_in_front_of_one_worker_is_as_theory_says():
    # M/D/1 at 50 % load: mean wait is rho / (2 (1 - rho)) = 0.5 services, so the median study waits less than that.
    assert slowest_percentile(0.5, 1, [1.0], 50) < 1.5
    assert slowest_percentile(0.5, 1, [1.0]) == pytest.approx(
        4.4, abs=0.4
    )  # P(W > t) falls as exp(-1.26 t)
    # M/D/2 at 75 % load: 4.9 services, so three times the service time is not to be had there.
    assert slowest_percentile(0.75, 2, [1.0]) == pytest.approx(4.9, abs=0.5)
    assert 0.5 <= bearable_load(2, [1.0], 3.0) <= 0.6
    assert bearable_load(16, [1.0], 3.0) >= 0.9
    assert bearable_load(1, [1.0], 0.5) == 0.0
