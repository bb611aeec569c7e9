"""When a batch is called, how large it is, who is in it and in which order: in simulated time, every bound from both
sides."""

from __future__ import annotations

import numpy as np
import pytest
from batch_clock import POISON, Asked, Timeline

from spine_engine.backends.base import TensorInfo
from spine_engine.scheduler.batching.batcher import Batcher, BatchPolicy, doubling


def policy(*sizes: int, delay_ms: float = 100.0) -> BatchPolicy:
    return BatchPolicy(sizes=sizes, max_delay_ms=delay_ms)


def calls(line: Timeline) -> list[tuple[float, list[float]]]:
    return [(round(call.at, 6), call.values) for call in line.calls]


def test_a_lone_request_waits_exactly_as_long_as_allowed(monkeypatch):
    line = Timeline(monkeypatch, policy(4, delay_ms=250.0))
    (only,) = line.play((1.0, [5]))
    assert calls(line) == [(1.25, [5, 0, 0, 0])]
    assert (only.answer, only.answered_at) == ([[10]], 1.25)


def test_the_oldest_requests_wait_counts_not_the_last_ones(monkeypatch):
    line = Timeline(monkeypatch, policy(1, 2, 4, delay_ms=100.0))
    line.play((0.0, [1]), (0.06, [2]), (0.1, [3]), (0.11, [4]))
    assert calls(line) == [(0.1, [1, 2, 3, 0]), (0.21, [4])]


@pytest.mark.parametrize(
    ("items", "called"),
    [
        ([[1], [2], [3]], [(0.1, [1, 2, 3, 0])]),  # one short of the largest: it waits
        (
            [[1], [2], [3], [4]],
            [(0.03, [1, 2, 3, 4])],
        ),  # the largest exactly: at once, as the fourth comes
        ([[1, 2], [3], [4], [5]], [(0.02, [1, 2, 3, 4]), (0.13, [5])]),
        (
            [[1, 2, 3], [4, 5]],
            [(0.01, [1, 2, 3, 0]), (0.11, [4, 5])],
        ),  # full, but the two do not fit
    ],
)
def test_a_batch_that_is_full_is_called_at_once_and_one_that_is_not_waits(
    monkeypatch, items, called
):
    line = Timeline(monkeypatch, policy(1, 2, 4, delay_ms=100.0))
    asked = line.play(*((k / 100, values) for k, values in enumerate(items)))
    assert calls(line) == called
    assert [one.answer for one in asked] == [
        [[2 * value] for value in values] for values in items
    ]


def test_what_came_while_the_model_was_busy_goes_at_once_when_its_time_is_over(
    monkeypatch,
):
    line = Timeline(monkeypatch, policy(1, 2, 4, delay_ms=100.0), takes_s=1.0)
    line.play((0.0, [1]), (0.5, [2]), (0.6, [3]), (1.05, [4]))
    # the second and third have waited longer than a tenth of a second when the model is free again at 1.1
    assert calls(line) == [(0.1, [1]), (1.1, [2, 3, 4, 0])]


def test_a_busy_model_that_is_free_early_still_waits_for_the_rest_of_the_delay(
    monkeypatch,
):
    line = Timeline(monkeypatch, policy(1, 2, 4, delay_ms=100.0), takes_s=0.05)
    line.play((0.0, [1]), (0.12, [2]))
    assert calls(line) == [(0.1, [1]), (0.22, [2])]


def test_without_a_delay_nothing_waits(monkeypatch):
    line = Timeline(monkeypatch, policy(1, 2, 4, delay_ms=0.0))
    line.play((0.0, [1]), (0.5, [2, 3]))
    assert calls(line) == [(0.0, [1]), (0.5, [2, 3])]


def test_younger_ones_do_not_overtake_one_that_does_not_fit(monkeypatch):
    line = Timeline(monkeypatch, policy(4, delay_ms=0.0), takes_s=1.0)
    line.play((0.0, [9]), (0.1, [1, 2, 3]), (0.2, [4, 5]), (0.3, [6]))
    assert [values for _, values in calls(line)] == [
        [9, 0, 0, 0],
        [1, 2, 3, 0],
        [4, 5, 6, 0],
    ]


def test_items_of_another_shape_are_left_for_a_call_of_their_own_and_keep_their_place(
    monkeypatch,
):
    line = Timeline(monkeypatch, policy(4, delay_ms=0.0), takes_s=1.0)
    wide, slim = np.full((1, 3), 7, np.float32), np.full((1, 1), 1, np.float32)
    line.serve(
        [
            Asked(0.0, slim),
            Asked(0.1, wide),
            Asked(0.2, slim + 1),
            Asked(0.3, wide + 1),
            Asked(0.4, slim + 2),
        ]
    )
    assert [(call.values, call.width) for call in line.calls] == [
        ([1, 0, 0, 0], 1),
        ([7, 8, 0, 0], 3),  # older than the slim ones, so first
        ([2, 3, 0, 0], 1),
    ]


def test_only_items_of_the_oldests_shape_make_a_batch_full(monkeypatch):
    line = Timeline(monkeypatch, policy(2, delay_ms=100.0))
    slim, wide = np.ones((1, 1), np.float32), np.ones((2, 3), np.float32)
    line.serve([Asked(0.0, slim), Asked(0.01, wide)])
    assert [(round(call.at, 6), call.width) for call in line.calls] == [
        (0.1, 1),
        (0.1, 3),
    ]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [4]), (4, [4]), (5, [4, 4]), (8, [4, 4]), (9, [4, 4, 4]), (10, [4, 4, 4])],
)
def test_a_request_is_cut_only_where_it_is_larger_than_the_largest_batch(
    monkeypatch, count, sizes
):
    line = Timeline(monkeypatch, policy(4, delay_ms=0.0))
    (asked,) = line.play((0.0, list(range(1, count + 1))))
    assert [len(call.values) for call in line.calls] == sizes
    assert asked.answer == [[2 * value] for value in range(1, count + 1)]
    assert (line.batcher.counts.items, line.batcher.counts.padding) == (
        count,
        4 * len(sizes) - count,
    )


def test_a_call_of_exactly_a_size_gets_the_callers_own_array_and_a_padded_one_zeros(
    monkeypatch,
):
    seen = []
    line = Timeline(monkeypatch, policy(2, delay_ms=0.0))
    run = line.run
    line.run = lambda inputs: (seen.append(inputs["x"]), run(inputs))[1]
    asked = line.play((0.0, [3, 4]), (1.0, [5]))
    assert seen[0] is asked[0].array
    assert seen[1].tolist() == [[5], [0]]
    assert seen[1].dtype == np.float32


def test_a_batch_that_raises_is_halved_and_the_calls_come_in_this_order(monkeypatch):
    line = Timeline(monkeypatch, policy(1, 2, 4, 8, delay_ms=10.0))
    asked = line.play(*((0.0, [value]) for value in (1, 2, 3, 4, 5, POISON, 7, 8)))
    assert [values for _, values in calls(line)] == [
        [1, 2, 3, 4, 5, 13, 7, 8],
        [1, 2, 3, 4],
        [5, 13, 7, 8],
        [5, 13],
        [5],
        [13],
        [7, 8],
    ]
    assert isinstance(asked[5].answer, ValueError)
    assert [one.answer for one in asked if one is not asked[5]] == [
        [[2 * v]] for v in (1, 2, 3, 4, 5, 7, 8)
    ]
    assert line.batcher.counts.calls == 7


def test_a_batch_of_three_is_cut_after_the_first(monkeypatch):
    line = Timeline(monkeypatch, policy(1, 2, 4, delay_ms=10.0))
    line.play((0.0, [1]), (0.0, [2]), (0.0, [POISON]))
    assert [values for _, values in calls(line)] == [
        [1, 2, 13, 0],
        [1],
        [2, 13],
        [2],
        [13],
    ]


def test_an_error_of_a_whole_batch_only_costs_retries(monkeypatch):
    # as memory that a large batch needs and halves do not
    line = Timeline(
        monkeypatch,
        policy(1, 2, 4, delay_ms=10.0),
        fails=lambda values: MemoryError("too large") if len(values) > 2 else None,
    )
    asked = line.play(*((0.0, [value]) for value in (1, 2, 3, 4)))
    assert [one.answer for one in asked] == [[[2]], [[4]], [[6]], [[8]]]
    assert [len(call.values) for call in line.calls] == [4, 2, 2]


def test_one_request_alone_that_raises_is_not_tried_again(monkeypatch):
    line = Timeline(monkeypatch, policy(1, 2, 4, delay_ms=10.0))
    (asked,) = line.play((0.0, [1, POISON, 3]))
    assert isinstance(asked.answer, ValueError)
    assert len(line.calls) == 1


def test_a_model_of_a_fixed_batch_neither_waits_nor_joins_nor_pads(monkeypatch):
    line = Timeline(monkeypatch, policy(1, 8, delay_ms=100.0), fixed=3, takes_s=1.0)
    asked = line.play((0.0, [1, 2, 3]), (0.1, [4, 5, 6]), (0.2, [7, 8, 9]))
    assert calls(line) == [(0.0, [1, 2, 3]), (1.0, [4, 5, 6]), (2.0, [7, 8, 9])]
    assert [one.answer for one in asked] == [
        [[2], [4], [6]],
        [[8], [10], [12]],
        [[14], [16], [18]],
    ]


def test_counts_tell_calls_items_padding_and_seconds_in_the_model(monkeypatch):
    line = Timeline(monkeypatch, policy(2, 4, delay_ms=10.0), takes_s=0.25)
    line.play((0.0, [1]), (0.0, [2]), (0.0, [3]), (5.0, [POISON]))
    counts = line.batcher.counts
    assert (counts.calls, counts.items, counts.padding) == (2, 4, 2)
    assert counts.seconds == pytest.approx(0.5)
    assert line.batcher.busy_since is None
    assert line.closed_model


@pytest.mark.parametrize(
    ("unit", "most", "sizes"),
    [
        (5, 32, (5, 10, 20)),
        (5, 40, (5, 10, 20, 40)),
        (5, 39, (5, 10, 20)),
        (5, 4, (5,)),
        (1, 1, (1,)),
        (3, 6, (3, 6)),
    ],
)
def test_sizes_double_as_far_as_allowed(unit, most, sizes):
    assert doubling(unit, most) == sizes


@pytest.mark.parametrize(
    ("items", "size"), [(1, 2), (2, 2), (3, 6), (6, 6), (7, 8), (8, 8)]
)
def test_the_next_larger_size_takes_a_batch(items, size):
    sizes = policy(2, 6, 8)
    assert sizes.padded(items) == size
    assert sizes.largest == 8


@pytest.mark.parametrize(
    ("sizes", "delay", "message"),
    [
        ((), 1.0, r"must be positive and ascend, got \(\)"),
        ((0, 1), 1.0, r"must be positive and ascend, got \(0, 1\)"),
        ((4, 2), 1.0, r"ascend, got \(4, 2\)"),
        ((2, 2), 1.0, r"ascend, got \(2, 2\)"),
        ((1,), -0.001, "must not be negative, got -0.001"),
        ((1,), float("nan"), "got nan"),
    ],
)
def test_a_policy_is_refused_with_what_was_got(sizes, delay, message):
    with pytest.raises(ValueError, match=message):
        BatchPolicy(sizes=sizes, max_delay_ms=delay)


def test_a_policy_may_have_one_size_of_one_and_no_delay():
    assert BatchPolicy(sizes=(1,), max_delay_ms=0.0).largest == 1


@pytest.mark.parametrize("other", ["input", "output"])
def test_a_model_of_two_inputs_or_of_a_fixed_output_takes_requests_one_by_one(
    monkeypatch, other
):
    line = Timeline(monkeypatch, policy(4, delay_ms=100.0))
    more = TensorInfo("z", (None, None) if other == "input" else (1, None))
    if other == "input":
        line.inputs = (*line.inputs, more)
    else:
        line.outputs = (*line.outputs, more)
    line.batcher = Batcher(line, policy(4, delay_ms=100.0))
    line.play((0.0, [1]), (0.0, [2]))
    assert calls(line) == [(0.0, [1]), (0.0, [2])]
