"""One suite that every backend passes: those that run here, and those of GPUs over pretended runtimes.

One skip for each runtime that is not here says what was not shown of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from spine_engine.backends import Backend, Profile, available_backends, open_backend
from spine_engine.errors import BackendError

FAKE = json.dumps(
    {
        "inputs": [{"name": "image", "shape": [None, 2, None, None]}],
        "outputs": [{"name": "maps", "shape": [None, 3, None, None]}],
    }
).encode()

PROFILE = Profile(
    smallest=(1, 2, 8, 8), usual=(2, 2, 16, 16), largest=(4, 2, 48, 48), batches=(1, 2)
)

RUNNERS = [
    "openvino CPU",
    "onnxruntime CPU",
    "onnxruntime CUDA",
    "onnxruntime TENSORRT",
    "onnxruntime NVTENSORRTRTX",
    "tensorrt GPU",
    "tensorrt-rtx GPU",
    "fake CPU",
]
PRETENDED = {
    "tensorrt GPU": "pretended",
    "tensorrt-rtx GPU": "pretended",
    "onnxruntime CUDA": "CUDAExecutionProvider",
    "onnxruntime TENSORRT": "TensorrtExecutionProvider",
    "onnxruntime NVTENSORRTRTX": "",
}
"""Runtimes of GPUs, by how they are pretended: the fixture, or the provider that an ONNX Runtime then has."""

Open = Callable[[], Backend]


def image(seed: int, *shape: int) -> dict[str, NDArray[np.float32]]:
    return {"image": np.random.default_rng(seed).normal(size=shape).astype(np.float32)}


@cache
def reason_to_skip(runner: str) -> str:
    name, device = runner.split()
    status = next(status for status in available_backends() if status.name == name)
    if not status.available:
        return status.reason
    here = any(found.startswith(device) for found in status.devices)
    return "" if here else f"{name} {status.version} has no device {device} here"


HERE = [runner for runner in RUNNERS if not reason_to_skip(runner)]


@pytest.fixture(params=[*HERE, *(f"{runner} pretended" for runner in PRETENDED)])
def runner(request: pytest.FixtureRequest) -> str:
    """Backend and device, such as ``onnxruntime CUDA``."""
    runner = str(request.param).removesuffix(" pretended")
    if runner != request.param:
        how = PRETENDED[runner]
        if how == "pretended":
            request.getfixturevalue("pretended")
        else:
            make = request.getfixturevalue("make_onnxruntime")
            make(*filter(None, [how]), plugin_gpus=0 if how else 1)
    return runner


@pytest.mark.parametrize("absent", [runner for runner in RUNNERS if runner not in HERE])
def test_what_is_not_shown_here(absent: str) -> None:
    part = (
        "what only the real one can show (its numbers, its memory) is not shown"
        if absent in PRETENDED
        else "not shown"
    )
    pytest.skip(f"{absent}: {part}: {reason_to_skip(absent)}")


@pytest.fixture
def content(runner: str, request: pytest.FixtureRequest) -> bytes:
    return FAKE if runner == "fake CPU" else request.getfixturevalue("model")


@pytest.fixture
def opened(runner: str, content: bytes) -> Open:
    name, device = runner.split()
    return lambda: open_backend(
        content, name=name, device=device, precision="f32", profile=PROFILE
    )


@pytest.fixture
def backend(opened: Open) -> Iterator[Backend]:
    backend = opened()
    yield backend
    backend.close()


def test_reports_tensors_and_what_it_runs_on(backend: Backend, runner: str) -> None:
    assert [(info.name, info.shape) for info in backend.inputs] == [
        ("image", (None, 2, None, None))
    ]
    assert [(info.name, info.shape) for info in backend.outputs] == [
        ("maps", (None, 3, None, None))
    ]
    assert f"{backend.device.backend} {backend.device.device}" == runner
    assert backend.device.precision == "f32"


def test_dynamic_shapes_and_no_memory_of_what_ran_before(
    opened: Open, backend: Backend
) -> None:
    shapes = [
        (1, 2, 20, 31),
        (3, 2, 16, 16),
        (2, 2, 16, 16),
        (2, 2, 40, 9),
        (1, 2, 16, 16),
        (1, 2, 20, 31),
    ]
    shapes += shapes[2:3]
    seen = [backend.run(image(7, *shape))["maps"] for shape in shapes]
    assert [got.shape for got in seen] == [(s[0], 3, *s[2:]) for s in shapes]
    for shape, got in zip(shapes, seen, strict=True):
        fresh = opened()
        assert np.array_equal(fresh.run(image(7, *shape))["maps"], got)
        fresh.close()


def test_inputs_are_left_alone_and_outputs_belong_to_the_caller(
    backend: Backend,
) -> None:
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
def test_wrong_inputs_are_a_value_error(
    backend: Backend, inputs: dict[str, NDArray[np.float32]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        backend.run(inputs)


def test_closing_twice_is_allowed_and_running_then_is_not(backend: Backend) -> None:
    backend.close()
    backend.close()
    with pytest.raises(ValueError, match="closed"):
        backend.run(image(1, 1, 2, 8, 8))


def test_a_model_that_is_none_and_a_device_that_is_not_there(
    runner: str, content: bytes
) -> None:
    name, device = runner.split()
    with pytest.raises(BackendError):
        open_backend(b"rubbish", name=name, device=device, profile=PROFILE)
    with pytest.raises(BackendError, match="NPU7"):
        open_backend(content, name=name, device="NPU7", profile=PROFILE)


def test_weights_in_other_files_are_refused_before_a_runtime_sees_the_model(
    runner: str,
) -> None:
    onnx = pytest.importorskip(
        "onnx",
        reason="onnx is not installed: weights in other files are not shown refused",
    )
    tensor = onnx.TensorProto(
        data_type=1, dims=[1], name="w", data_location=onnx.TensorProto.EXTERNAL
    )
    outside = onnx.ModelProto(
        graph=onnx.GraphProto(initializer=[tensor])
    ).SerializeToString()
    name, device = runner.split()
    why = (
        "not a real model" if name == "fake" else "another file"
    )  # whose models are no ONNX
    with pytest.raises(BackendError, match=why):
        open_backend(outside, name=name, device=device, profile=PROFILE)


def test_real_runtimes_agree(model: bytes) -> None:
    real = [runner for runner in HERE if runner != "fake CPU"]
    if len(real) < 2:
        pytest.skip(f"only {real} is installed: that runtimes agree is not shown")
    answers = []
    for name, device in (runner.split() for runner in real):
        backend = open_backend(
            model, name=name, device=device, precision="f32", profile=PROFILE
        )
        answers.append(backend.run(image(3, 2, 2, 33, 21))["maps"])
        backend.close()
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], atol=1e-5)
