"""What TensorRT-RTX's kernels are kept under and when, and what a context may refuse; over a pretended GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spine_engine.backends import Profile, open_backend
from spine_engine.backends import tensorrt as room
from spine_engine.errors import BackendError

PROFILE = Profile(
    smallest=(1, 2, 8, 8), usual=(2, 2, 16, 16), largest=(4, 2, 48, 48), batches=(2,)
)
BOTH = pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])


def opened(model, name="tensorrt-rtx", profile=PROFILE, **options):
    return open_backend(
        model,
        name=name,
        device=options.pop("device", "GPU"),
        profile=profile,
        **options,
    )


def image(*shape):
    return {"image": np.ones(shape, np.float32)}


@pytest.fixture
def stored(monkeypatch):
    """The names under which kernels are kept, once for each time."""
    stored: list[str] = []
    real = room.store_compiled
    monkeypatch.setattr(
        room,
        "store_compiled",
        lambda key, content: (stored.append(key), real(key, content)),
    )
    return stored


def test_kernels_are_kept_when_a_shape_is_new_and_not_again(model, pretended, stored):
    backend = opened(model)
    assert len(stored) == 1, "the recorded shapes"
    for shape in (
        (2, 2, 16, 16),
        (3, 2, 16, 16),
        (3, 2, 16, 16),
        (2, 2, 16, 16),
        (1, 2, 8, 8),
    ):
        backend.run(image(*shape))
    assert len(stored) == 3
    assert len(set(stored)) == 1
    backend.close()
    again = opened(model)
    again.run(image(3, 2, 16, 16))
    assert len(stored) == 3, "nothing new"
    again.close()


def test_a_shape_is_looked_at_for_new_kernels_once(model, pretended, monkeypatch):
    kept = []
    real = room.RtxContexts.keep
    monkeypatch.setattr(
        room.RtxContexts, "keep", lambda self: (kept.append(1), real(self))
    )
    backend = opened(model)
    for _ in range(3):
        backend.run(image(1, 2, 8, 8))
        backend.run(image(2, 2, 16, 16))
    assert len(kept) == 2
    backend.close()


def test_without_recorded_shapes_nothing_is_kept_before_a_run(model, pretended, stored):
    backend = opened(
        model,
        profile=Profile(
            smallest=(1, 2, 8, 8), usual=(2, 2, 16, 16), largest=(4, 2, 48, 48)
        ),
    )
    assert stored == []
    backend.run(image(2, 2, 16, 16))
    assert len(stored) == 1
    backend.close()


def test_kernels_of_another_model_gpu_profile_or_version_are_others(
    model, make_model, pretended, stored, monkeypatch
):
    other = Profile(
        smallest=(1, 2, 8, 8),
        usual=(2, 2, 16, 16),
        largest=(4, 2, 48, 48),
        batches=(1, 2),
    )
    opened(model).close()
    opened(make_model(seed=1)).close()
    opened(model, profile=other).close()
    pretended.cuda.devices = (("NVIDIA L40", 8, 9),)
    opened(model).close()
    monkeypatch.setattr(type(pretended), "__version__", "99.2")
    opened(model).close()
    assert len(set(stored)) == 5


def test_tensorrt_keeps_no_kernels(model, pretended, stored, cache: Path):
    backend = opened(model, "tensorrt")
    backend.run(image(1, 2, 8, 8))
    backend.close()
    assert not stored
    assert len(list(cache.glob("*.blob"))) == 1


@BOTH
def test_a_context_that_cannot_be_made_is_said_and_nothing_is_left(
    model, pretended, name, monkeypatch
):
    monkeypatch.setattr(
        "pretended_gpu.PretendedEngine.create_execution_context",
        lambda self, given: None,
    )
    with pytest.raises(
        BackendError,
        match=f"^{name} cannot make an execution context: it does not say why$",
    ):
        opened(model, name)
    assert not pretended.cuda.live
    assert not pretended.cuda.streams


@BOTH
def test_a_shape_that_the_engine_refuses_is_said(model, pretended, name, monkeypatch):
    backend = opened(model, name)
    monkeypatch.setattr(
        "pretended_gpu.PretendedContext.set_input_shape",
        lambda self, name, shape: False,
    )
    with pytest.raises(
        BackendError,
        match=rf"^{name} refuses the input shape \(3, 2, 8, 8\): it does not say why$",
    ):
        backend.run(image(3, 2, 8, 8))
    backend.close()


@BOTH
def test_every_run_is_on_the_gpu_that_was_asked_for(model, pretended, name):
    pretended.cuda.devices = (("NVIDIA L4", 8, 9), ("NVIDIA L4", 8, 9))
    backend, first = opened(model, name, device="GPU.1"), opened(model, name)
    assert pretended.cuda.device == 0
    backend.run(image(2, 2, 16, 16))
    assert pretended.cuda.device == 1
    first.run(image(2, 2, 16, 16))
    assert pretended.cuda.device == 0
    for each in (backend, first):
        each.close()


@BOTH
@pytest.mark.parametrize(
    ("precision", "named"),
    [("auto", "f32"), ("f32", "f32"), ("f16", "f16"), ("int8", "int8")],
)
def test_the_precision_is_the_files(model, pretended, name, precision, named):
    backend = opened(model, name, precision=precision)
    assert (
        backend.device.backend,
        backend.device.device,
        backend.device.precision,
    ) == (name, "GPU", named)
    backend.close()


@BOTH
@pytest.mark.parametrize("device", ["GPU.", "GPU.x", "GPUS", "CUDA", "XGPU"])
def test_devices_that_are_none(model, pretended, name, device):
    with pytest.raises(
        BackendError,
        match=rf"^{name} runs on the device GPU \(GPU\.1 is the second\), not on {device.upper()}$",
    ):
        opened(model, name, device=device)
