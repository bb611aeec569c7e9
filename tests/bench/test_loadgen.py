"""LoadGen drives systems in three scenarios, and the book beside it sees what systems do wrong."""

from collections import Counter

import pytest
from bench_fakes import FakeSystem, Reversed, Twice, failing

from spine_bench.harness.loadgen import NOT_ANSWERED, Load, Scenario, doubts_of, drive
from spine_bench.harness.systems import NullSystem

pytest.importorskip("mlperf_loadgen")


def driven(system, library, load):
    system.open()
    try:
        return drive(system, library, load)
    finally:
        system.close()


def test_offline_asks_everything_at_once_and_every_study_equally_often(library):
    system = FakeSystem()
    outcome = driven(system, library, Load(scenario=Scenario.OFFLINE, queries=52))
    assert len(outcome.latencies_s) == len(system.seen) == 52
    assert set(Counter(system.seen).values()) == {10, 11}
    assert outcome.valid
    assert not outcome.failures
    assert (
        20 < outcome.studies_per_s <= 2000
    )  # two workers of a millisecond; a busy machine sleeps longer
    assert outcome.percentile(100) > 5 * outcome.percentile(
        1
    )  # the last waited for all the others


def test_single_stream_asks_one_at_a_time(library):
    system = FakeSystem(workers=1, service_s=0.002)
    outcome = driven(system, library, Load(scenario=Scenario.SINGLE_STREAM, queries=64))
    assert len(outcome.latencies_s) == 64
    assert outcome.valid
    assert 0.002 <= outcome.percentile(50) < 0.02
    assert outcome.wall_s >= sum(outcome.latencies_s) * 0.99


def test_a_short_single_stream_is_measured_but_not_believed(library):
    outcome = driven(
        FakeSystem(), library, Load(scenario=Scenario.SINGLE_STREAM, queries=3)
    )
    assert len(outcome.latencies_s) == 3
    assert not outcome.valid
    assert any("Early stopping" in doubt for doubt in outcome.doubts)


def test_a_server_is_valid_below_its_capacity_and_invalid_above(library):
    def served(rate, bound_s, queries):
        load = Load(
            scenario=Scenario.SERVER, queries=queries, rate=rate, bound_s=bound_s
        )
        return driven(FakeSystem(service_s=0.002), library, load)

    calm = served(300.0, 2.0, 470)
    assert calm.valid
    assert calm.studies_per_s == pytest.approx(300, rel=0.5)
    flooded = served(20_000.0, 0.01, 470)
    assert not flooded.valid
    assert any("Performance constraints" in doubt for doubt in flooded.doubts)
    assert flooded.percentile(99) > 0.01


def test_the_order_of_studies_is_the_seeds(library):
    def order(seed, queries=5):
        system = FakeSystem(workers=1)
        driven(
            system, library, Load(scenario=Scenario.OFFLINE, queries=queries, seed=seed)
        )
        return system.seen

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert (
        order(1, queries=2) == order(1)[:2]
    )  # a slow system sees the first of what a fast one sees


def test_answers_may_come_in_any_order(library):
    outcome = driven(
        Reversed(workers=1), library, Load(scenario=Scenario.OFFLINE, queries=20)
    )
    assert len(outcome.latencies_s) == 20
    assert outcome.valid


def test_failures_are_answers_with_a_reason(library):
    outcome = driven(
        FakeSystem(deed=failing), library, Load(scenario=Scenario.OFFLINE, queries=10)
    )
    assert outcome.failures == {"corrupt_file": 2}
    assert outcome.stage_seconds == {"read": pytest.approx(0.4)}


@pytest.mark.parametrize("scenario", [Scenario.OFFLINE, Scenario.SINGLE_STREAM])
def test_what_is_never_answered_fails_when_its_time_is_up(library, scenario):
    system = FakeSystem(deed=lambda sample: None)
    outcome = driven(system, library, Load(scenario=scenario, queries=4, timeout_s=0.3))
    assert outcome.failures == {NOT_ANSWERED: 4}
    assert not outcome.valid
    assert outcome.wall_s < 5


def test_answering_twice_is_seen(library):
    outcome = driven(Twice(), library, Load(scenario=Scenario.OFFLINE, queries=7))
    assert len(outcome.latencies_s) == 7
    assert not outcome.valid
    assert "7 queries were answered twice" in outcome.doubts


def test_the_harness_costs_less_than_a_tenth_of_a_millisecond_a_study(library):
    outcome = driven(
        NullSystem(library, None),
        library,
        Load(scenario=Scenario.SINGLE_STREAM, queries=2000),
    )
    assert outcome.percentile(50) < 1e-4


@pytest.mark.parametrize(
    "wrong",
    [
        {"scenario": Scenario.SERVER},
        {"scenario": Scenario.OFFLINE, "rate": 1.0, "bound_s": 1.0},
        {"scenario": Scenario.OFFLINE, "queries": 0},
    ],
)
def test_a_load_must_make_sense(wrong):
    with pytest.raises(ValueError):
        Load(**{"queries": 1, **wrong})


def test_doubts_are_what_the_summary_calls_unsatisfied():
    summary = "Result is : INVALID\n  Min duration satisfied : Yes\n  Early stopping satisfied: NO\n\n1 warning\n"
    assert doubts_of(summary) == ("Early stopping satisfied: no",)
