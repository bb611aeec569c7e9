"""Requests of many threads become few calls of a model, each gets its own answer, and an error finds its culprit."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from spine_engine.backends.base import Device, TensorInfo
from spine_engine.scheduler.batching.batcher import Batcher, BatchPolicy


class Doubler:
    """Doubles its input, notes the sizes it was called with, and refuses batches that hold a poisoned item."""

    device = Device("fake", "CPU", "f32")
    outputs = (TensorInfo("y", (None, None)),)

    def __init__(self, *, fixed=None, held=None):
        self.inputs = (TensorInfo("x", (fixed, None)),)
        self.sizes, self.closed, self.held = [], False, held

    def run(self, inputs):
        if self.held is not None:
            self.held.wait(10)
        x = inputs["x"]
        self.sizes.append(len(x))
        if (x == 13).any():
            raise ValueError("poison")
        return {"y": x * 2}

    def close(self):
        self.closed = True


def policy(*sizes, delay_ms=1000.0):
    return BatchPolicy(sizes=sizes, max_delay_ms=delay_ms)


def asked(batcher, arrays):
    """Ask from a thread each; return each answer or exception."""

    def ask(array):
        try:
            return batcher.run({"x": array})["y"]
        except Exception as error:  # noqa: BLE001
            return error

    with ThreadPoolExecutor(len(arrays)) as threads:
        return list(threads.map(ask, arrays))


def items(*values):
    return np.array([[value] for value in values], np.float32)


def test_requests_that_wait_together_are_one_call_and_each_gets_its_own_part():
    model = Doubler()
    batcher = Batcher(model, policy(1, 2, 4))
    answers = asked(batcher, [items(1), items(2, 3), items(4)])
    batcher.close()
    assert [answer.tolist() for answer in answers] == [[[2]], [[4], [6]], [[8]]]
    assert model.sizes == [4]
    assert (batcher.counts.calls, batcher.counts.items, batcher.counts.padding) == (
        1,
        4,
        0,
    )
    assert model.closed


def test_an_idle_model_that_may_not_wait_takes_what_came_while_it_was_busy():
    held = threading.Event()
    model = Doubler(held=held)
    batcher = Batcher(model, policy(1, 2, 4, 8, delay_ms=0.0))
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(batcher.run, {"x": items(0)})
        while batcher.busy_since is None:
            time.sleep(0.001)
        rest = [threads.submit(batcher.run, {"x": items(value)}) for value in (1, 2, 3)]
        while len(batcher._waiting) < 3:
            time.sleep(0.001)
        held.set()
        assert [future.result()["y"].tolist() for future in (first, *rest)] == [
            [[0]],
            [[2]],
            [[4]],
            [[6]],
        ]
    batcher.close()
    assert model.sizes == [1, 4]
    assert batcher.counts.padding == 1


def test_items_of_different_shapes_never_meet_and_oldest_goes_first():
    model = Doubler()
    batcher = Batcher(model, policy(1, 2, 4, delay_ms=20.0))
    answers = asked(
        batcher,
        [
            np.ones((1, 3), np.float32),
            np.ones((2, 5), np.float32),
            np.ones((1, 3), np.float32),
        ],
    )
    batcher.close()
    assert [answer.shape for answer in answers] == [(1, 3), (2, 5), (1, 3)]
    assert sorted(model.sizes) == [2, 2]


def test_a_request_larger_than_the_largest_batch_is_cut():
    model = Doubler()
    batcher = Batcher(model, policy(1, 2, 4, delay_ms=0.0))
    answer = batcher.run({"x": items(*range(10))})["y"]
    batcher.close()
    assert answer.ravel().tolist() == [2 * value for value in range(10)]
    assert max(model.sizes) == 4


def test_a_batch_that_raises_is_halved_until_the_culprit_stands_alone():
    model = Doubler()
    batcher = Batcher(model, policy(8))
    answers = asked(batcher, [items(value) for value in (1, 2, 13, 4, 5, 6, 7, 8)])
    batcher.close()
    assert isinstance(answers[2], ValueError)
    good = [answer for k, answer in enumerate(answers) if k != 2]
    assert [answer.tolist() for answer in good] == [
        [[2 * value]] for value in (1, 2, 4, 5, 6, 7, 8)
    ]
    assert batcher.counts.calls <= 1 + 2 * 3


def test_a_model_of_a_fixed_batch_takes_requests_as_they_are():
    model = Doubler(fixed=2)
    batcher = Batcher(model, policy(8))
    answers = asked(batcher, [items(1, 2), items(3, 4)])
    batcher.close()
    assert [answer.tolist() for answer in answers] == [[[2], [4]], [[6], [8]]]
    assert model.sizes == [2, 2]


def test_a_closed_batcher_answers_with_an_error_and_leaves_nobody_waiting():
    held = threading.Event()
    batcher = Batcher(Doubler(held=held), policy(1, delay_ms=0.0))
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(batcher.run, {"x": items(1)})
        while batcher.busy_since is None:
            time.sleep(0.001)
        late = threads.submit(batcher.run, {"x": items(2)})
        while not batcher._waiting:
            time.sleep(0.001)
        closing = threads.submit(batcher.close)
        while not batcher._closed:
            time.sleep(0.001)
        held.set()
        closing.result(10)
        assert first.result(10)["y"].tolist() == [[2]]
        with pytest.raises(RuntimeError, match="closed"):
            late.result(10)
    with pytest.raises(RuntimeError, match="closed"):
        batcher.run({"x": items(1)})
