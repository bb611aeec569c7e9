"""What shapes a profile may have, what inputs a model takes, and what a refusal says it got."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from spine_engine.backends import (
    BACKENDS,
    BackendStatus,
    Profile,
    TensorInfo,
    available_backends,
    open_backend,
)
from spine_engine.backends import fake as fake_backend
from spine_engine.backends import openvino as openvino_backend
from spine_engine.backends.base import check_inputs
from spine_engine.errors import BackendError


def test_a_profile_may_be_one_shape_and_its_batches_its_ends():
    profile = Profile(smallest=(1, 2), usual=(1, 2), largest=(4, 2), batches=(1, 4))
    assert Profile(smallest=(1,), usual=(1,), largest=(1,)).batches == ()
    assert (profile.smallest, profile.usual, profile.largest) == (
        (1, 2),
        (1, 2),
        (4, 2),
    )


@pytest.mark.parametrize(
    ("smallest", "usual", "largest", "batches", "message"),
    [
        (
            (),
            (),
            (),
            (),
            "three shapes of the same length with sides of at least 1, got ",
        ),
        (
            (1, 0),
            (1, 2),
            (1, 2),
            (),
            r"sides of at least 1, got \(\(1, 0\), \(1, 2\), \(1, 2\)\)",
        ),
        ((1,), (1, 2), (1, 2), (), "the same length"),
        ((1, 2), (1, 2), (1,), (), "the same length"),
        (
            (2, 2),
            (1, 2),
            (4, 2),
            (),
            r"must ascend: smallest, usual, largest; got \(\(2, 2\), ",
        ),
        ((1, 2), (5, 2), (4, 2), (), "must ascend"),
        ((1, 2), (1, 3), (4, 2), (), "must ascend"),
        (
            (2, 2),
            (2, 2),
            (4, 2),
            (1,),
            r"batches must ascend within 2\.\.4, got \(1,\)",
        ),
        (
            (2, 2),
            (2, 2),
            (4, 2),
            (5,),
            r"batches must ascend within 2\.\.4, got \(5,\)",
        ),
        ((1, 2), (1, 2), (4, 2), (2, 1), "batches must ascend"),
        ((1, 2), (1, 2), (4, 2), (2, 2), "batches must ascend"),
    ],
)
def test_profiles_that_make_no_sense_are_refused_with_what_was_got(
    smallest, usual, largest, batches, message
):
    with pytest.raises(ValueError, match=message):
        Profile(smallest=smallest, usual=usual, largest=largest, batches=batches)


WANTED = (TensorInfo("a", (None, 2, 3)), TensorInfo("b", (4,)))


def inputs(**changes: Any) -> dict[str, np.ndarray]:
    given = {"a": np.zeros((1, 2, 3), np.float32), "b": np.zeros(4, np.float32)}
    return {
        name: array for name, array in {**given, **changes}.items() if array is not None
    }


@pytest.mark.parametrize("batch", [1, 7])
def test_a_dimension_that_may_vary_takes_any_size(batch):
    assert check_inputs(WANTED, inputs(a=np.zeros((batch, 2, 3), np.float32))) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b": None}, r"the model takes \['a', 'b'\], got \['a'\]"),
        (
            {"c": np.zeros(1, np.float32)},
            r"the model takes \['a', 'b'\], got \['a', 'b', 'c'\]",
        ),
        (
            {"a": np.zeros((1, 2, 4), np.float32)},
            r"input a must have the shape \(None, 2, 3\), got \(1, 2, 4\)",
        ),
        (
            {"a": np.zeros((2, 3), np.float32)},
            r"input a must have the shape \(None, 2, 3\), got \(2, 3\)",
        ),
        ({"a": np.zeros((1, 1, 2, 3), np.float32)}, r"got \(1, 1, 2, 3\)"),
        ({"a": np.zeros((0, 2, 3), np.float32)}, r"got \(0, 2, 3\)"),
        (
            {"b": np.zeros(5, np.float32)},
            r"input b must have the shape \(4,\), got \(5,\)",
        ),
        (
            {"b": np.zeros(4, np.float64)},
            "input b must be C-contiguous float32, got float64",
        ),
        (
            {"b": np.zeros(4, np.int32)},
            "input b must be C-contiguous float32, got int32",
        ),
        (
            {"b": np.zeros(8, np.float32)[::2]},
            "input b must be C-contiguous float32, got float32",
        ),
        (
            {"a": np.zeros((1, 3, 2), np.float32).transpose(0, 2, 1)},
            "input a must be C-contiguous",
        ),
    ],
)
def test_inputs_that_are_not_the_models_are_refused_with_what_was_got(changes, message):
    with pytest.raises(ValueError, match=message):
        check_inputs(WANTED, inputs(**changes))


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What a runtime is handed by ``open_backend``."""
    handed: list[tuple[Any, ...]] = []
    for module in (openvino_backend, fake_backend):
        monkeypatch.setattr(module, "open_model", lambda *given: handed.append(given))
    return handed


def test_what_was_asked_for_reaches_the_runtime(handed, model: bytes, tmp_path):
    profile = Profile(smallest=(1,), usual=(1,), largest=(2,))
    open_backend(model, device="gpu.1", precision="f16", threads=3, profile=profile)
    open_backend(b"{}", name="fake")
    (tmp_path / "m.onnx").write_bytes(model)
    open_backend(tmp_path / "m.onnx")
    assert handed == [
        (model, "GPU.1", "f16", 3, profile),
        (b"{}", "CPU", "auto", 1, None),
        (model, "CPU", "auto", 1, None),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "tpu"},
            "unknown backend 'tpu': choose one of openvino, onnxruntime, tensorrt, tensorrt-rtx, fake",
        ),
        (
            {"precision": "f8"},
            "unknown precision 'f8': choose one of auto, bf16, f16, f32, int8",
        ),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"threads": -1}, "threads must be at least 1, got -1"),
    ],
)
def test_wrong_options_are_named_with_the_right_ones(
    handed, model: bytes, options, message
):
    with pytest.raises(BackendError) as caught:
        open_backend(model, **options)
    assert str(caught.value) == message
    assert not handed


def test_the_models_of_the_fake_are_not_read_as_onnx_and_those_of_others_are(handed):
    open_backend(b"rubbish", name="fake")
    with pytest.raises(BackendError, match="no ONNX model"):
        open_backend(b"rubbish", name="openvino")
    assert len(handed) == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(BackendError) as caught:
        open_backend(tmp_path)
    assert str(caught.value) == f"cannot read the model {tmp_path}: Is a directory"


def test_the_backends_are_told_in_their_order(monkeypatch: pytest.MonkeyPatch):
    assert BACKENDS == ("openvino", "onnxruntime", "tensorrt", "tensorrt-rtx", "fake")
    states = available_backends()
    assert [state.name for state in states] == list(BACKENDS)
    assert states[-1] == BackendStatus("fake", True, "", ("CPU",), "")
    assert all(bool(state.reason) is not state.available for state in states)


LISTING = {
    "inputs": [{"name": "x", "shape": [None, 2]}],
    "outputs": [
        {"name": "probabilities", "shape": [None, 5, 3]},
        {"name": "maps", "shape": [None, None]},
    ],
}


def test_the_fake_answers_each_item_by_itself_and_the_same_every_time():
    backend = open_backend(json.dumps(LISTING).encode(), name="fake")
    x = np.random.default_rng(0).random((3, 2), np.float32)
    answers = backend.run({"x": x})
    assert answers["probabilities"].shape == (3, 5, 3)
    assert answers["maps"].shape == (3, 2)
    assert answers["probabilities"].min() >= 0
    np.testing.assert_allclose(answers["probabilities"].sum(-1), 1, atol=1e-6)
    alone = open_backend(json.dumps(LISTING).encode(), name="fake").run({"x": x[1:2]})
    np.testing.assert_array_equal(
        alone["probabilities"][0], answers["probabilities"][1]
    )
    assert len(np.unique(answers["probabilities"][:, 0, 0])) == 3


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            LISTING,
            {"precision": "f16"},
            "pretends to run on CPU in f32, not on CPU in f16",
        ),
        (LISTING, {"device": "gpu"}, "not on GPU in auto"),
        (
            {"inputs": []},
            {},
            'wants a JSON text with "inputs" and "outputs", not a real model',
        ),
        ({"inputs": [{}], "outputs": []}, {}, "not a real model"),
        ([], {}, "not a real model"),
    ],
)
def test_the_fake_refuses_what_it_cannot_pretend(content, options, message):
    with pytest.raises(BackendError, match=message):
        open_backend(json.dumps(content).encode(), name="fake", **options)
