"""Whatever arrives, and whatever the model does: each request is answered once, with its own answer, in time."""

from __future__ import annotations

from collections import Counter

import pytest
from batch_clock import POISON, Call, Timeline
from hypothesis import given, settings
from hypothesis import strategies as st

from spine_engine.scheduler.batching.batcher import BatchPolicy

arrivals = st.lists(
    st.tuples(
        st.integers(0, 40).map(lambda tick: tick / 100),
        st.integers(1, 11),  # items
        st.booleans() | st.just(False),  # whether one of them is poisoned
    ),
    min_size=1,
    max_size=12,
)
policies = st.builds(
    lambda sizes, delay: BatchPolicy(sizes=tuple(sorted(sizes)), max_delay_ms=delay),
    st.sets(st.integers(1, 8), min_size=1, max_size=4),
    st.sampled_from([0.0, 10.0, 75.0]),
)


@settings(max_examples=50, deadline=None)
@given(
    arrivals=arrivals,
    policy=policies,
    takes_s=st.sampled_from([0.0, 0.03, 0.2]),
    fixed=st.booleans(),
)
def test_every_request_is_answered_once_with_its_own(arrivals, policy, takes_s, fixed):
    number = iter(range(100, 10_000))  # no two items alike
    requests = [
        (
            at,
            [float(next(number)) for _ in range(1 if fixed else items)]
            + [POISON] * poisoned,
        )
        for at, items, poisoned in sorted(arrivals)
    ]
    with pytest.MonkeyPatch.context() as patch:
        line = Timeline(patch, policy, takes_s=takes_s, fixed=1 if fixed else None)
        asked = line.play(*requests)
    most = policy.sizes[-1]
    for (at, values), one in zip(requests, asked, strict=True):
        if POISON in values:
            assert isinstance(one.answer, ValueError)
        else:
            assert one.answer == [[2 * value] for value in values]
        assert one.answered_at >= at
    assert line.calls
    if fixed:
        assert [call.values for call in line.calls] == [
            values for _, values in requests
        ]
        return
    assert {len(call.values) for call in line.calls} <= set(policy.sizes)
    told = line.batcher.counts
    assert told.calls == len(line.calls)
    assert told.items + told.padding == sum(len(call.values) for call in line.calls)
    tried = Counter(
        value
        for call in line.calls
        for value in call.values
        if value not in (0.0, POISON)
    )
    assert set(tried) == {value for _, values in requests for value in values} - {
        POISON
    }
    halvings = most.bit_length()  # a batch of n requests is halved at most log2 n times
    assert max(tried.values()) <= 1 + halvings
    if not any(POISON in values for _, values in requests):
        assert max(tried.values()) == 1
        assert_called_in_time(line.calls, requests, policy, takes_s)


def assert_called_in_time(
    calls: list[Call], requests: list, policy: BatchPolicy, takes_s: float
) -> None:
    """Oldest first; the model is never idle longer than the oldest request may wait, and a full batch never waits."""
    most, delay = policy.sizes[-1], policy.max_delay_ms / 1000
    parts = [
        (at, values[k : k + most])
        for at, values in requests
        for k in range(0, len(values), most)
    ]
    in_order = [value for _, values in parts for value in values]
    assert [value for call in calls for value in call.values if value] == in_order, (
        "oldest first"
    )
    came = {value: at for at, values in parts for value in values}
    free_at = 0.0
    for call in calls:
        oldest = came[call.values[0]]
        before = {
            value
            for earlier in calls
            if earlier.at < call.at
            for value in earlier.values
        }
        waiting = [
            at
            for at, values in parts
            for value in values
            if value not in before and at <= call.at + 1e-9
        ]
        earlier_full = (
            sorted(waiting)[most - 1] if len(waiting) >= most else float("inf")
        )
        due = max(free_at, min(oldest + delay, earlier_full))
        if takes_s:  # calls of no length share their moment, and then cannot be told apart by time
            assert call.at == pytest.approx(due)
        free_at = call.at + takes_s
