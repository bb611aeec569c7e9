"""A whole measurement over systems whose answers and times are made up: turns, problems, records, server rates."""

from types import SimpleNamespace

import pytest

from spine_bench.harness import host, rounds
from spine_bench.harness.figures import failed, rate, speedup
from spine_bench.harness.host import MemoryWatch
from spine_bench.harness.loadgen import Scenario
from spine_bench.harness.rounds import Plan, measure
from spine_bench.harness.tables import tables

TWO = (Scenario.OFFLINE, Scenario.SINGLE_STREAM)


def race(library, hosts, deeds, **plan):
    hosts.deeds = deeds
    lines = []
    asked = {"scenarios": TWO, "rounds": 3, "seconds": 1.0, "stages": False, **plan}
    return measure(
        library,
        None,
        {"name": "none"},
        Plan(systems=tuple(deeds), **asked),
        lines.append,
    ), lines


def test_systems_take_turns_another_one_first_each_round(library, hosts):
    result, lines = race(
        library,
        hosts,
        {"a": {"service_s": 0.1}, "b": {"service_s": 0.2}, "c": {"service_s": 0.1}},
    )
    assert [(turn.round, turn.system, turn.scenario) for turn in result.turns] == [
        (round_, name, scenario)
        for round_, order in enumerate(("abc", "bca", "cab"))
        for name in order
        for scenario in ("offline", "single-stream")
    ]
    assert hosts.opened == list("abc")
    assert sorted(hosts.closed) == list("abc")
    assert speedup(result, "a", "b").median == pytest.approx(2.0)
    assert rate(result, "b").median == pytest.approx(5.0)
    assert len(lines) == 3 + 18
    assert "a, offline, round 1: 10 studies/s (10 studies, 0 failed)" in lines


def test_what_breaks_or_dies_is_told_and_the_others_go_on(library, hosts):
    deeds = {
        "a": {"service_s": 0.1},
        "b": {"broken": "ZeroDivisionError: not today"},
        "c": {"service_s": 0.1, "dies_after": 3},
    }
    result, lines = race(library, hosts, deeds)
    problems = {record.name: record.problem for record in result.systems}
    assert problems == {
        "a": None, "b": "ZeroDivisionError: not today", "c": "single-stream, round 2: its process died",
    }  # fmt: skip
    assert [record.name for record in result.systems] == list("abc")
    assert sum(turn.system == "c" for turn in result.turns) == 3
    assert sum(turn.system == "a" for turn in result.turns) == 6
    assert "b: left out: ZeroDivisionError: not today" in lines
    assert sorted(hosts.closed) == list("abc")


def test_records_hold_facts_memory_and_the_difference_to_the_engine(library, hosts):
    result, _ = race(
        library,
        hosts,
        {"engine": {"service_s": 0.1}, "b": {"service_s": 0.1, "away": 0.25}},
    )
    engine, other = result.systems
    assert (engine.facts, engine.open_s, engine.peak_memory_bytes) == (
        {"workers": "1"},
        2.0,
        6_000_000,
    )
    assert (engine.difference, other.difference) == (None, pytest.approx(0.25))
    alone, _ = race(library, hosts, {"b": {"service_s": 0.1}})
    assert alone.systems[0].difference is None


def test_failures_are_no_throughput(library, hosts):
    result, _ = race(
        library,
        hosts,
        {"a": {"service_s": 0.1, "failing": True}, "b": {"service_s": 0.1}},
        rounds=1,
    )
    assert rate(result, "a").median == 0
    assert rate(result, "b").median == pytest.approx(10)
    assert speedup(result, "a", "b").median == 0
    assert speedup(result, "b", "a") is None
    failures, answers = failed(result, "a")
    assert failures == answers == 20
    assert failed(result, "b") == (0, 20)
    assert [table.rows for table in tables(result)]


@pytest.mark.parametrize(
    ("bears", "shares", "verdicts"),
    [
        (1e9, [0.85, 1.0], ["valid", "valid"]),
        (0.0, [0.85, 0.7], ["invalid", "invalid"]),
        (4.4, [0.85, 1.0], ["valid", "invalid"]),
        (4.0, [0.85, 0.7], ["invalid", "valid"]),
    ],
)
def test_the_server_scenario_goes_up_when_a_rate_is_valid_and_down_when_not(
    library, hosts, monkeypatch, bears, shares, verdicts
):
    """Ten studies a second offline, half of which theory lets it bear."""
    monkeypatch.setattr(rounds, "bearable_load", lambda *_: 0.5)
    deeds = {"a": {"service_s": 0.1, "bears": bears}, "null": {"service_s": 0.1}}
    result, _ = race(
        library, hosts, deeds, rounds=1, scenarios=tuple(Scenario), server_queries=459
    )
    probes = [turn for turn in result.turns if turn.scenario == "server"]
    assert [(probe.system, probe.studies) for probe in probes] == [("a", 459)] * 2, (
        "the null system is spared"
    )
    assert [probe.rate / 10 for probe in probes] == pytest.approx(
        [0.5 * share for share in shares]
    )
    assert [probe.verdict for probe in probes] == verdicts
    assert [probe.bound_s for probe in probes] == pytest.approx(
        [0.3] * 2
    )  # three times a study alone


def test_a_system_that_graded_nothing_has_no_server_runs(library, hosts):
    deeds = {"a": {"service_s": 0.1, "failing": True}}
    result, lines = race(library, hosts, deeds, rounds=1, scenarios=tuple(Scenario))
    assert "a: no server runs: it graded nothing offline" in lines
    assert not [turn for turn in result.turns if turn.scenario == "server"]


# -- memory ------------------------------------------------------------------------------------------------------------


class MadeProcess:
    """A process with what it tells of its memory, look by look; an exception is raised."""

    def __init__(self, *looks, children=()):
        self._looks, self._children = list(looks), list(children)

    def children(self, recursive=False):
        assert recursive
        if isinstance(self._children[0] if self._children else None, Exception):
            raise self._children[0]
        return self._children

    def memory_full_info(self):
        found = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        if isinstance(found, Exception):
            raise found
        return found


def watching(monkeypatch, root):
    monkeypatch.setattr(host.psutil, "Process", lambda pid: root)
    return MemoryWatch(7)


def info(pss=None, rss=0):
    return (
        SimpleNamespace(rss=rss) if pss is None else SimpleNamespace(pss=pss, rss=rss)
    )


def test_peak_memory_is_that_of_the_whole_time_and_of_all_processes(monkeypatch):
    root = MadeProcess(
        info(100, 900),
        info(300, 900),
        info(50, 900),
        children=[MadeProcess(info(10, 500))],
    )
    watch = watching(monkeypatch, root)
    peaks = []
    for _ in range(3):
        watch._look()
        peaks.append(watch.peak_bytes)
    assert peaks == [110, 310, 310], (
        "the proportional size of the process and its child; the peak stays"
    )


def test_where_the_system_tells_no_proportional_size_the_resident_one_counts(
    monkeypatch,
):
    watch = watching(monkeypatch, MadeProcess(info(rss=70)))
    watch._look()
    assert watch.peak_bytes == 70


def test_a_process_that_ended_meanwhile_is_left_out(monkeypatch):
    gone = MadeProcess(host.psutil.NoSuchProcess(9))
    watch = watching(
        monkeypatch, MadeProcess(info(100), children=[gone, MadeProcess(info(5))])
    )
    watch._look()
    assert watch.peak_bytes == 105
    ended = watching(
        monkeypatch, MadeProcess(info(100), children=[host.psutil.NoSuchProcess(7)])
    )
    ended._look()
    assert ended.peak_bytes == 0


def test_a_watch_looks_when_it_begins_every_half_second_and_when_it_ends(monkeypatch):
    root = MadeProcess(info(1), info(2), info(3), info(9), info(4))
    watch = watching(monkeypatch, root)
    waited = []

    class Clock:
        def wait(self, seconds):
            waited.append(seconds)
            return len(waited) > 2

        def set(self):
            waited.append("set")

    watch._ended = Clock()
    with watch:
        watch._thread.join()
        assert watch.peak_bytes == 3
    assert watch.peak_bytes == 9
    assert waited == [0.5, 0.5, 0.5, "set"]
