"""ONNX Runtime's providers: asked for and had, with all the work on them; and the bound path, run on the CPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from spine_engine.backends import Profile, open_backend
from spine_engine.backends import onnxruntime as backend_module
from spine_engine.backends.base import Device
from spine_engine.backends.onnxruntime import BoundBackend, refuse_work_on_the_processor
from spine_engine.backends.providers import PROVIDERS, Provider
from spine_engine.errors import BackendError

runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

PROFILE = Profile(smallest=(1, 2, 8, 8), usual=(2, 2, 16, 16), largest=(4, 2, 48, 48))


@pytest.mark.parametrize("device", ["CUDA", "TENSORRT", "NVTENSORRTRTX", "cuda.1"])
def test_a_provider_that_is_not_installed_is_named_with_the_line_that_installs_it(
    model: bytes, device: str
) -> None:
    provider = PROVIDERS[device.upper().split(".")[0]]
    if provider.name in runtime.get_available_providers():
        pytest.skip(f"{provider.name} is installed")
    with pytest.raises(
        BackendError,
        match=rf"no {provider.name}, only .*CPUExecutionProvider.*pip install",
    ):
        open_backend(model, name="onnxruntime", device=device)


@pytest.mark.parametrize("device", ["CPU.1", "GPU", "CUDA.x", "CUDA.", ""])
def test_devices_that_are_none(model: bytes, device: str) -> None:
    with pytest.raises(
        BackendError, match="runs on CPU, CUDA, TENSORRT, NVTENSORRTRTX"
    ):
        open_backend(model, name="onnxruntime", device=device)


def test_the_precision_is_the_files(model: bytes) -> None:
    for precision, named in (("auto", "f32"), ("f16", "f16"), ("int8", "int8")):
        assert (
            open_backend(
                model, name="onnxruntime", precision=precision
            ).device.precision
            == named
        )
    with pytest.raises(BackendError, match="not in bf16"):
        open_backend(model, name="onnxruntime", precision="bf16")


def test_a_provider_that_gives_way_to_the_processor_is_refused(
    model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as when CUDA's libraries are missing: the session opens, but on the processor
    monkeypatch.setattr(backend_module, "is_here", lambda runtime, provider: True)
    monkeypatch.setattr(backend_module, "load_gpu_libraries", lambda runtime: None)
    with pytest.raises(
        BackendError,
        match="asked onnxruntime for CUDAExecutionProvider, got CPUExecutionProvider",
    ):
        open_backend(model, name="onnxruntime", device="CUDA")


def test_work_left_to_the_processor_is_refused_and_shapes_are_not(model: bytes) -> None:
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = runtime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"]
    )
    with pytest.raises(
        BackendError, match=r"CUDAExecutionProvider leaves .*Conv.* to the processor"
    ):
        refuse_work_on_the_processor(session, PROVIDERS["CUDA"])

    def part(provider: str, *kinds: str) -> SimpleNamespace:
        return SimpleNamespace(
            ep_name=provider,
            get_nodes=lambda: [SimpleNamespace(op_type=kind) for kind in kinds],
        )

    parts = [
        part("CUDAExecutionProvider", "Conv"),
        part("CPUExecutionProvider", "Shape", "Gather", "Concat"),
    ]
    refuse_work_on_the_processor(
        SimpleNamespace(get_provider_graph_assignment_info=lambda: parts),
        PROVIDERS["CUDA"],
    )


def test_the_bound_path_gives_what_a_plain_run_gives(model: bytes) -> None:
    plain = open_backend(model, name="onnxruntime", precision="f32")
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    bound = BoundBackend(session, Device("onnxruntime", "CPU", "f32"))
    kept = []
    for shape in ((2, 2, 16, 16), (1, 2, 9, 30), (2, 2, 16, 16)):
        inputs = {
            "image": np.random.default_rng(1).normal(size=shape).astype(np.float32)
        }
        got = bound.run(inputs)["maps"]
        np.testing.assert_allclose(got, plain.run(inputs)["maps"], atol=1e-6)
        assert got.flags.writeable
        kept.append((got, got.copy()))
        inputs["image"][:] = 0
    assert all(np.array_equal(got, copy) for got, copy in kept), (
        "outputs belong to the caller"
    )
    bound.close()
    bound.close()
    with pytest.raises(ValueError, match="closed"):
        bound.run({})


def test_what_tensorrt_and_rtx_are_told(tmp_path: Path) -> None:
    told = PROVIDERS["TENSORRT"].all_options(1, "f16", PROFILE, "image", tmp_path)
    assert told["device_id"] == "1"
    assert (told["trt_fp16_enable"], told["trt_int8_enable"]) == ("1", "0")
    assert told["trt_profile_max_shapes"] == "image:4x2x48x48"
    assert told["trt_engine_cache_path"] == str(tmp_path)
    assert not any(
        "cache" in key
        for key in PROVIDERS["TENSORRT"].all_options(0, "f32", PROFILE, "image", None)
    )
    rtx = PROVIDERS["NVTENSORRTRTX"].all_options(0, "f32", PROFILE, "image", None)
    assert set(rtx) == {f"nv_profile_{which}_shapes" for which in ("min", "opt", "max")}
    assert (
        PROVIDERS["CUDA"].all_options(0, "f32", PROFILE, "image", None)["use_tf32"]
        == "0"
    )


def test_the_input_is_asked_for_its_name(model: bytes) -> None:
    assert backend_module._input_name(runtime, model) == "image"


def test_every_device_but_the_processor_is_checked_for_work_left_behind(
    model: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the processor's own provider under another device's name: it opens, and then has all the work
    pretender = Provider(
        name="CPUExecutionProvider",
        install="",
        options=lambda *_: {},
        shapes="trt_profile",
        keeps=True,
    )
    monkeypatch.setitem(PROVIDERS, "TENSORRT", pretender)
    monkeypatch.setattr(backend_module, "load_gpu_libraries", lambda runtime: None)
    with pytest.raises(BackendError, match=r"leaves .*Conv.* to the processor"):
        open_backend(model, name="onnxruntime", device="TENSORRT", profile=PROFILE)
    (lent,) = cache.glob("*.folder")
    assert lent.stat().st_mode & 0o777 == 0o700
