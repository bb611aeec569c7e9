"""Engines on a pretended GPU: what is built, kept, allocated, recorded and freed; and what is refused."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from pretended_gpu import CudaError, PretendedCuda, Type

from spine_engine.backends import (
    Backend,
    Profile,
    available_backends,
    engines,
    open_backend,
)
from spine_engine.backends import cuda as cuda_room
from spine_engine.backends.engines import RTX, TENSORRT, build_engine
from spine_engine.errors import BackendError

PROFILE = Profile(
    smallest=(1, 2, 8, 8), usual=(2, 2, 16, 16), largest=(4, 2, 48, 48), batches=(1, 2)
)
BOTH = pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])


def image(*shape, seed=0):
    return {"image": np.random.default_rng(seed).normal(size=shape).astype(np.float32)}


def want(inputs):
    return inputs["image"].mean(1, keepdims=True) * np.arange(
        1, 4, dtype=np.float32
    ).reshape(1, 3, 1, 1)


def opened(model, name, profile=PROFILE, **options) -> Backend:
    return open_backend(model, name=name, device="GPU", profile=profile, **options)


@BOTH
def test_memory_is_allocated_once_for_the_largest_shape_and_freed(
    model, pretended, name
):
    cuda = pretended.cuda
    backend = opened(model, name)
    scratch, image_bytes, maps_bytes = 1000, 4 * 4 * 2 * 48 * 48, 4 * 4 * 3 * 48 * 48
    assert sorted(cuda.sizes) == sorted(
        [scratch, image_bytes, image_bytes, maps_bytes, maps_bytes]
    )
    assert {context.memory for context in pretended.contexts} == {
        next(iter(cuda.live))
    }, "one scratch for all"
    for shape in ((4, 2, 48, 48), (2, 2, 16, 16), (1, 2, 8, 48), (3, 2, 16, 16)):
        inputs = image(*shape)
        np.testing.assert_allclose(backend.run(inputs)["maps"], want(inputs), rtol=1e-6)
    assert len(cuda.sizes) == 5
    backend.close()
    backend.close()
    assert not cuda.live
    assert not cuda.graphs
    assert not cuda.streams


def test_recorded_shapes_are_replayed_and_others_queued(model, pretended):
    backend, cuda = opened(model, "tensorrt"), pretended.cuda
    assert len(cuda.graphs) == 2
    assert len(pretended.contexts) == 3, (
        "one for each recorded shape, one for all others"
    )
    for n, (before, after) in enumerate(
        pairwise([(1, 2, 16, 16), (2, 2, 16, 16), (1, 2, 16, 16), (2, 2, 16, 16)])
    ):
        for shape in (before, after):
            inputs = image(*shape, seed=n)
            np.testing.assert_allclose(
                backend.run(inputs)["maps"], want(inputs), rtol=1e-6
            )
    assert cuda.launches == 6
    backend.run(image(3, 2, 16, 16))
    backend.run(image(1, 2, 16, 24))
    assert cuda.launches == 6
    backend.close()


def test_what_cannot_be_recorded_is_queued(model, pretended):
    pretended.cuda.refuses_capture = True
    backend = opened(model, "tensorrt")
    inputs = image(2, 2, 16, 16)
    np.testing.assert_allclose(backend.run(inputs)["maps"], want(inputs), rtol=1e-6)
    assert pretended.cuda.launches == 0
    backend.close()


def test_rtx_records_by_itself_and_its_kernels_are_kept(model, pretended):
    for started in range(2):
        backend = opened(model, "tensorrt-rtx")
        configs = [context.given for context in pretended.contexts[-3:]]
        assert [config.cuda_graph_strategy for config in configs] == [
            "none",
            "graph",
            "graph",
        ]
        assert {
            config.dynamic_shapes_kernel_specialization_strategy for config in configs
        } == {"eager"}
        assert not pretended.cuda.graphs
        assert len(pretended.kernels_given) == started
        backend.run(image(3, 2, 40, 40))
        backend.close()
    assert b"[3, 2, 40, 40]" in pretended.kernels_given[0]
    assert b"[2, 2, 16, 16]" in pretended.kernels_given[0]


@BOTH
@pytest.mark.parametrize("shape", [(5, 2, 16, 16), (1, 2, 4, 16), (1, 2, 16, 64)])
def test_shapes_outside_the_profile_are_refused(model, pretended, name, shape):
    backend = opened(model, name)
    with pytest.raises(ValueError, match=r"from \(1, 2, 8, 8\) to \(4, 2, 48, 48\)"):
        backend.run(image(*shape))
    backend.close()


@BOTH
def test_an_engine_is_built_once_for_a_capability_and_its_shapes(
    model, pretended, name
):
    opened(model, name).close()
    opened(model, name, precision="f16").close()
    assert pretended.built == [(name, "sm89", PROFILE)]
    other = Profile(smallest=(1, 2, 8, 8), usual=(2, 2, 16, 16), largest=(5, 2, 48, 48))
    opened(model, name, other).close()
    assert [profile for *_, profile in pretended.built] == [PROFILE, other]
    batches = Profile(
        smallest=other.smallest, usual=other.usual, largest=other.largest, batches=(1,)
    )
    opened(model, name, batches).close()
    assert len(pretended.built) == 2, "recorded launches are no part of the engine"


def test_an_engine_built_ahead_is_what_the_gpu_takes(model, pretended):
    build_engine(model, runtime="tensorrt-rtx", capability="SM89", profile=PROFILE)
    build_engine(model, runtime="tensorrt-rtx", capability="sm75", profile=PROFILE)
    assert [capability for _, capability, _ in pretended.built] == ["sm89", "sm75"]
    opened(model, "tensorrt-rtx").close()
    assert len(pretended.built) == 2
    pretended.__class__.__version__, before = "99.2", pretended.__version__
    try:
        opened(model, "tensorrt-rtx").close()
    finally:
        pretended.__class__.__version__ = before
    assert len(pretended.built) == 3, "another version needs another engine"


def test_an_engine_that_does_not_open_is_built_again(model, pretended):
    key = engines.engine_key(TENSORRT, model, "sm89", PROFILE)
    engines.store_compiled(key, b"of another driver")
    opened(model, "tensorrt").close()
    assert len(pretended.built) == 1
    pretended.open = lambda plan, logger: logger.log(
        SimpleNamespace(name="ERROR"), "no\nroom"
    )
    with pytest.raises(
        BackendError, match=r"cannot open its engine for NVIDIA L4 \(sm89\): no room"
    ):
        opened(model, "tensorrt")
    assert not pretended.cuda.streams


@BOTH
def test_a_failing_gpu_is_named_and_everything_is_freed(model, pretended, name):
    pretended.fails = True
    with pytest.raises(BackendError, match=f"{name} cannot run the engine"):
        opened(model, name)
    assert not pretended.cuda.live
    pretended.fails = False
    pretended.cuda.room = 5000
    with pytest.raises(BackendError, match="cudaErrorMemoryAllocation"):
        opened(model, name)
    assert not pretended.cuda.live
    assert not pretended.cuda.streams


@BOTH
def test_models_that_cannot_be_served(model, pretended, name):
    pretended.output_type = Type.HALF
    with pytest.raises(BackendError, match="maps must be float32, got HALF"):
        opened(model, name)
    pretended.output_type, pretended.depends_on_data = Type.FLOAT, True
    with pytest.raises(BackendError, match="depend on the data"):
        opened(model, name)


@BOTH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "CPU"}, "GPU.1 is the second"),
        (
            {"device": "GPU.2"},
            r"no device GPU.2 here, only GPU \(NVIDIA L4, sm89\), GPU.1 \(NVIDIA T4, sm75\)",
        ),
        ({"device": "GPU", "precision": "bf16"}, "not in bf16"),
    ],
)
def test_what_was_asked_for_is_had_or_refused(model, pretended, name, options, message):
    pretended.cuda.devices = (("NVIDIA L4", 8, 9), ("NVIDIA T4", 7, 5))
    with pytest.raises(BackendError, match=message):
        open_backend(model, name=name, profile=PROFILE, **options)
    second = open_backend(
        model, name=name, device="gpu.1", precision="f16", profile=PROFILE
    )
    assert (second.device.device, second.device.precision, pretended.cuda.device) == (
        "GPU.1",
        "f16",
        1,
    )
    assert pretended.built[-1][1] == "sm75"
    second.close()


def test_doctor_learns_the_devices_or_the_reason(pretended):
    def status(name):
        return next(status for status in available_backends() if status.name == name)

    assert status("tensorrt").devices == ("GPU (NVIDIA L4, sm89)",)
    pretended.cuda.devices = (("NVIDIA H200", 9, 0),)
    assert status("tensorrt").available
    assert not status("tensorrt-rtx").available
    assert (
        "sm75, sm89 only; here is GPU (NVIDIA H200, sm90): choose tensorrt"
        in status("tensorrt-rtx").reason
    )
    pretended.cuda.devices = ()
    assert "no NVIDIA GPU" in status("tensorrt").reason


def test_capabilities_that_are_not_built_for(model, pretended):
    with pytest.raises(BackendError, match=r"builds for sm75, sm89, not for sm90"):
        build_engine(model, runtime="tensorrt-rtx", capability="sm90", profile=PROFILE)
    with pytest.raises(
        BackendError, match=r"want one of sm90, this machine has NVIDIA L4 \(sm89\)"
    ):
        build_engine(model, runtime="tensorrt", capability="sm90", profile=PROFILE)
    with pytest.raises(BackendError, match="choose tensorrt or tensorrt-rtx"):
        build_engine(model, runtime="openvino", capability="sm89", profile=PROFILE)
    assert engines.capabilities(RTX) == ("sm75", "sm89")


def test_without_a_driver_or_the_bindings_the_line_says_so(monkeypatch):
    cuda = PretendedCuda()
    monkeypatch.setattr(cuda_room, "_runtime", lambda: cuda)
    assert cuda_room.gpus()[0].capability == "sm89"
    monkeypatch.setattr(
        cuda, "cudaGetDeviceCount", lambda: (CudaError.cudaErrorNoDevice, None)
    )
    with pytest.raises(BackendError, match=r"cudaErrorNoDevice.*install its driver"):
        cuda_room.gpus()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match="cuda-bindings is not installed"):
        cuda_room.gpus()
