"""Under a limit of memory a model call proves that its answer is its own."""

import resource
from dataclasses import replace

import numpy as np
import pytest

from spine_engine.backends import checked
from spine_engine.backends.base import Device, Profile, TensorInfo
from spine_engine.backends.checked import CheckedBackend, memory_is_limited

PROFILE = Profile(smallest=(1, 1, 2, 2), usual=(4, 1, 2, 2), largest=(8, 1, 4, 4))


class Doubling:
    """Doubles its input; ``fault`` says what it does instead from a call on."""

    inputs = (TensorInfo("x", (None, 1, None, None)),)
    outputs = (TensorInfo("y", (None, 1, None, None)),)
    device = Device("fake", "CPU", "f32")

    def __init__(self, fault=None, since=99):
        self.fault, self.since, self.calls, self.last, self.closed = (
            fault,
            since,
            0,
            None,
            False,
        )

    def run(self, inputs):
        self.calls += 1
        answer = 2 * inputs["x"]
        if self.calls >= self.since:
            if self.fault == "zeros":
                answer = np.zeros_like(answer)
            elif self.fault == "the last answer" and self.last is not None:
                answer = np.resize(self.last, answer.shape).astype(np.float32)
            elif self.fault == "the first of the batch":
                answer[1:] = answer[:1]
        self.last = answer
        return {"y": answer}

    def close(self):
        self.closed = True


def slices(count=3, seed=1):
    return {"x": np.random.default_rng(seed).random((count, 1, 2, 2), np.float32)}


def test_sound_answers_pass_and_close_closes():
    model = Doubling()
    backend = CheckedBackend(model, PROFILE)
    assert (backend.inputs, backend.outputs, backend.device) == (
        model.inputs,
        model.outputs,
        model.device,
    )
    np.testing.assert_array_equal(backend.run(slices())["y"], 2 * slices()["x"])
    backend.close()
    assert model.closed


@pytest.mark.parametrize("fault", ["zeros", "the last answer"])
def test_a_model_that_does_not_compute_is_not_opened(fault):
    with pytest.raises(MemoryError):
        CheckedBackend(Doubling(fault, since=1), PROFILE)


@pytest.mark.parametrize(
    "fault", ["zeros", "the last answer", "the first of the batch"]
)
@pytest.mark.parametrize("count", [1, 3])
def test_an_answer_that_is_not_its_own_is_want_of_memory(fault, count):
    if (fault, count) == ("the first of the batch", 1):
        count = 2
    backend = CheckedBackend(
        Doubling(fault, since=4), PROFILE
    )  # three calls when it is opened
    with pytest.raises(MemoryError):
        backend.run(slices(count))


def test_slices_that_are_alike_may_have_one_answer():
    backend = CheckedBackend(Doubling(), PROFILE)
    same = {"x": np.repeat(slices(1)["x"], 3, axis=0)}
    np.testing.assert_array_equal(backend.run(same)["y"], 2 * same["x"])


def test_a_model_of_unknown_sizes_is_checked_within_a_batch_alone():
    model = Doubling("the first of the batch", since=2)
    backend = CheckedBackend(model, None)
    assert model.calls == 0
    backend.run(slices())
    assert model.calls == 1
    with pytest.raises(MemoryError):
        backend.run(slices())


def test_fixed_sizes_need_no_profile():
    model = Doubling()
    model.inputs = (replace(model.inputs[0], shape=(None, 1, 2, 2)),)
    CheckedBackend(model, None).run(slices())
    assert (
        model.calls == 5
    )  # three when it is opened, one for the request and one to prove it


@pytest.mark.parametrize(
    ("space", "data", "limited"),
    [
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, False),
        (2 << 30, resource.RLIM_INFINITY, True),
        (resource.RLIM_INFINITY, 2 << 30, True),
        (4 << 30, 4 << 30, False),
    ],
)
def test_memory_is_limited_by_either_limit(monkeypatch, space, data, limited):
    limits = {resource.RLIMIT_AS: space, resource.RLIMIT_DATA: data}
    monkeypatch.setattr(
        resource, "getrlimit", lambda kind: (limits[kind], resource.RLIM_INFINITY)
    )
    assert memory_is_limited() is limited


def test_the_known_requests_differ():
    one, other = (checked._noise({"x": (1, 2)}, seed)["x"] for seed in checked._SEEDS)
    assert not np.array_equal(one, other)
