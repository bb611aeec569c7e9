"""One suite that every backend passes; one that is not installed is skipped with its reason."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from spine_engine.backends import BACKENDS, Backend, available_backends, open_backend
from spine_engine.errors import BackendError

FAKE = json.dumps(
    {
        "inputs": [{"name": "image", "shape": [None, 2, None, None]}],
        "outputs": [{"name": "maps", "shape": [None, 3, None, None]}],
    }
).encode()


def image(seed: int, *shape: int) -> dict[str, NDArray[np.float32]]:
    return {"image": np.random.default_rng(seed).normal(size=shape).astype(np.float32)}


@pytest.fixture(params=BACKENDS)
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    status = next(status for status in available_backends() if status.name == chosen)
    if not status.available:
        pytest.skip(status.reason)
    return chosen


@pytest.fixture
def content(name: str, request: pytest.FixtureRequest) -> bytes:
    return FAKE if name == "fake" else request.getfixturevalue("model")


@pytest.fixture
def backend(name: str, content: bytes) -> Iterator[Backend]:
    opened = open_backend(content, name=name, precision="f32")
    yield opened
    opened.close()


def test_reports_tensors_and_what_it_runs_on(backend: Backend, name: str) -> None:
    assert [(info.name, info.shape) for info in backend.inputs] == [("image", (None, 2, None, None))]
    assert [(info.name, info.shape) for info in backend.outputs] == [("maps", (None, 3, None, None))]
    assert (backend.device.backend, backend.device.device, backend.device.precision) == (name, "CPU", "f32")


def test_dynamic_shapes_and_no_memory_of_what_ran_before(name: str, content: bytes, backend: Backend) -> None:
    shapes = [(1, 2, 20, 31), (3, 2, 16, 16), (2, 2, 40, 9), (1, 2, 20, 31)]
    seen = [backend.run(image(7, *shape))["maps"] for shape in shapes]
    assert [got.shape for got in seen] == [(s[0], 3, *s[2:]) for s in shapes]
    assert np.array_equal(seen[0], seen[3])
    for shape, got in zip(shapes, seen, strict=True):
        fresh = open_backend(content, name=name, precision="f32")
        assert np.array_equal(fresh.run(image(7, *shape))["maps"], got)
        fresh.close()


def test_inputs_are_left_alone_and_outputs_belong_to_the_caller(backend: Backend) -> None:
    inputs = image(1, 2, 2, 12, 12)
    kept = inputs["image"].copy()
    first = backend.run(inputs)["maps"]
    copy = first.copy()
    other = backend.run(image(2, 2, 2, 12, 12))["maps"]
    assert np.array_equal(inputs["image"], kept)
    assert np.array_equal(first, copy)
    assert not np.array_equal(first, other)
    assert first.dtype == np.float32
    assert first.flags.c_contiguous
    assert first.flags.writeable


def test_the_input_may_be_freed_or_changed_after_a_run(backend: Backend) -> None:
    inputs = image(1, 1, 2, 12, 12)
    want = backend.run(inputs)["maps"]
    inputs["image"][:] = 0
    assert np.array_equal(backend.run(image(1, 1, 2, 12, 12))["maps"], want)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "takes"),
        ({"picture": np.zeros((1, 2, 8, 8), np.float32)}, "picture"),
        ({"image": np.zeros((1, 3, 8, 8), np.float32)}, "shape"),
        ({"image": np.zeros((2, 8, 8), np.float32)}, "shape"),
        ({"image": np.zeros((0, 2, 8, 8), np.float32)}, "shape"),
        ({"image": np.zeros((1, 2, 8, 8), np.float64)}, "float32"),
        ({"image": np.zeros((1, 2, 8, 16), np.float32)[..., ::2]}, "contiguous"),
    ],
)
def test_wrong_inputs_are_a_value_error(backend: Backend, inputs: dict[str, NDArray[np.float32]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backend.run(inputs)


def test_closing_twice_is_allowed_and_running_then_is_not(backend: Backend) -> None:
    backend.close()
    backend.close()
    with pytest.raises(ValueError, match="closed"):
        backend.run(image(1, 1, 2, 8, 8))


def test_a_model_that_is_none_and_a_device_that_is_not_there(name: str, content: bytes) -> None:
    with pytest.raises(BackendError):
        open_backend(b"rubbish", name=name)
    with pytest.raises(BackendError, match="NPU7"):
        open_backend(content, name=name, device="NPU7")


def test_real_runtimes_agree(model: bytes) -> None:
    real = [s.name for s in available_backends() if s.available and s.name != "fake"]
    if len(real) < 2:
        pytest.skip("one runtime is installed: nothing to compare")
    one, two = (open_backend(model, name=n, precision="f32").run(image(3, 2, 2, 33, 21))["maps"] for n in real[:2])
    np.testing.assert_allclose(one, two, atol=1e-5)
