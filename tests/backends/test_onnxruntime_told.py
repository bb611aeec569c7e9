"""What ONNX Runtime is told on each device, over a pretended one that has it; and what its sessions really have."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from spine_engine.backends import Profile, available_backends, open_backend
from spine_engine.backends import onnxruntime as room
from spine_engine.backends.onnxruntime import refuse_work_on_the_processor
from spine_engine.backends.providers import ON_THE_PROCESSOR, PROVIDERS
from spine_engine.errors import BackendError

pytest.importorskip(
    "onnxruntime",
    reason="onnxruntime is not installed: nothing of its backend is shown",
)

PROFILE = Profile(
    smallest=(1, 2, 8, 8), usual=(2, 2, 16, 16), largest=(4, 2, 48, 48), batches=(1, 2)
)
X = {"image": np.random.default_rng(1).normal(size=(2, 2, 16, 16)).astype(np.float32)}
GPUS = {"CUDA": "CUDAExecutionProvider", "TENSORRT": "TensorrtExecutionProvider"}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_session_really_has_the_threads_that_were_asked_for(
    model: bytes, threads: int
):
    session = open_backend(model, name="onnxruntime", threads=threads)._session
    options = session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
    assert options.use_deterministic_compute
    assert options.log_severity_level == 4
    assert session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("device", ["CUDA", "TENSORRT"])
@pytest.mark.parametrize(("suffix", "index"), [("", "0"), (".0", "0"), (".1", "1")])
def test_the_gpu_that_was_asked_for_is_told(
    model, make_onnxruntime, device, suffix, index
):
    runtime = make_onnxruntime(*GPUS.values())
    backend = open_backend(
        model,
        name="onnxruntime",
        device=(device + suffix).lower(),
        precision="f16",
        threads=3,
    )
    opened = runtime.opened[-1]
    assert (opened.provider, opened.told["device_id"], opened.fallback) == (
        GPUS[device],
        index,
        0,
    )
    assert (
        backend.device.backend,
        backend.device.device,
        backend.device.precision,
    ) == (
        "onnxruntime",
        device + suffix,
        "f16",
    )
    assert opened.options.intra_op_num_threads == 3
    assert (
        opened.options.get_session_config_entry(
            "session.record_ep_graph_assignment_info"
        )
        == "1"
    )


def test_cuda_computes_f32_in_f32_and_the_same_at_every_start(model, make_onnxruntime):
    runtime = make_onnxruntime(GPUS["CUDA"])
    open_backend(model, name="onnxruntime", device="CUDA", profile=PROFILE)
    (opened,) = runtime.opened
    assert opened.told == {
        "device_id": "0",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
    }


@pytest.mark.parametrize(
    ("precision", "half", "int8"),
    [("auto", "0", "0"), ("f32", "0", "0"), ("f16", "1", "0"), ("int8", "0", "1")],
)
def test_tensorrt_is_told_the_files_precision_its_shapes_and_where_to_keep_engines(
    model, make_onnxruntime, cache, precision, half, int8
):
    runtime = make_onnxruntime(GPUS["TENSORRT"])
    open_backend(
        model,
        name="onnxruntime",
        device="TENSORRT",
        precision=precision,
        profile=PROFILE,
    )
    (lent,) = cache.glob("*.folder")
    assert runtime.opened[-1].told == {
        "device_id": "0",
        "trt_fp16_enable": half,
        "trt_int8_enable": int8,
        "trt_profile_min_shapes": "image:1x2x8x8",
        "trt_profile_opt_shapes": "image:2x2x16x16",
        "trt_profile_max_shapes": "image:4x2x48x48",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(lent),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(lent),
    }
    assert runtime.opened[0].provider == "CPUExecutionProvider", (
        "opened once on the processor, for the input's name"
    )


def test_tensorrt_without_a_profile_or_a_safe_cache_is_told_neither(
    model, make_onnxruntime, cache
):
    runtime = make_onnxruntime(GPUS["TENSORRT"])
    cache.mkdir(mode=0o755)
    cache.chmod(0o755)
    open_backend(model, name="onnxruntime", device="TENSORRT")
    (opened,) = runtime.opened
    assert set(opened.told) == {"device_id", "trt_fp16_enable", "trt_int8_enable"}


def test_engines_of_another_model_device_precision_profile_or_version_lie_in_another_folder(
    model, make_model, make_onnxruntime, cache
):
    runtime = make_onnxruntime(GPUS["TENSORRT"])
    other = Profile(smallest=(1, 2, 8, 8), usual=(2, 2, 16, 16), largest=(5, 2, 48, 48))
    runtime_options = {"name": "onnxruntime", "device": "TENSORRT", "profile": PROFILE}
    changes = [
        {},
        {"model": make_model(seed=1)},
        {"device": "TENSORRT.1"},
        {"precision": "f16"},
        {"profile": other},
        {"profile": None},
    ]
    for number, change in enumerate(changes):
        options = {**runtime_options, **change}
        open_backend(options.pop("model", model), **options)
        assert len(list(cache.glob("*.folder"))) == number + 1, change
    runtime.__version__ = "99.2"
    open_backend(model, **runtime_options)
    assert len(list(cache.glob("*.folder"))) == 7
    open_backend(model, **runtime_options, threads=2)
    assert len(list(cache.glob("*.folder"))) == 7, "threads shape no engine"


@pytest.mark.parametrize(
    ("device", "number"), [("NVTENSORRTRTX", 0), ("NVTENSORRTRTX.1", 1)]
)
def test_the_plug_in_is_registered_once_and_its_device_taken(
    model, make_onnxruntime, device, number
):
    runtime = make_onnxruntime(plugin_gpus=2)
    for _ in range(2):
        open_backend(model, name="onnxruntime", device=device, profile=PROFILE)
    assert runtime.registered == [("rtx", "/lib/rtx.so")]
    opened = runtime.opened[-1]
    assert [(taken.ep_name, taken.number) for taken in opened.devices] == [
        ("NvTensorRTRTXExecutionProvider", number)
    ]
    assert opened.told == {
        "nv_profile_min_shapes": "image:1x2x8x8",
        "nv_profile_opt_shapes": "image:2x2x16x16",
        "nv_profile_max_shapes": "image:4x2x48x48",
    }
    assert opened.fallback == 0


def test_a_gpu_that_the_plug_in_does_not_have_is_an_error_in_one_line(
    model, make_onnxruntime
):
    make_onnxruntime(plugin_gpus=1)
    with pytest.raises(
        BackendError,
        match=r"^onnxruntime cannot load the model: list index out of range$",
    ):
        open_backend(model, name="onnxruntime", device="NVTENSORRTRTX.1")


def test_a_plug_in_that_does_not_load_is_named(model, make_onnxruntime):
    runtime = make_onnxruntime(plugin_gpus=1)

    def fail(name: str, path: str) -> None:
        raise RuntimeError("libnvinfer is missing\nand more")

    runtime.register_execution_provider_library = fail
    with pytest.raises(BackendError) as caught:
        open_backend(model, name="onnxruntime", device="NVTENSORRTRTX")
    assert str(caught.value) == (
        "onnxruntime-ep-nv-tensorrt-rtx is installed but does not load: libnvinfer is missing"
    )
    state = room.status()
    assert (state.available, state.version, state.devices) == (False, "", ())
    assert "does not load" in state.reason


@pytest.mark.parametrize(
    ("providers", "plugin_gpus", "devices"),
    [
        ((), 0, ("CPU",)),
        (("CUDAExecutionProvider",), 0, ("CPU", "CUDA")),
        (tuple(GPUS.values()), 0, ("CPU", "CUDA", "TENSORRT")),
        ((), 1, ("CPU", "NVTENSORRTRTX")),
    ],
)
def test_doctor_learns_the_devices(make_onnxruntime, providers, plugin_gpus, devices):
    make_onnxruntime(*providers, plugin_gpus=plugin_gpus)
    state = next(state for state in available_backends() if state.name == "onnxruntime")
    assert (state.available, state.version, state.devices, state.reason) == (
        True,
        "99.1",
        devices,
        "",
    )


def test_libraries_are_loaded_once_for_gpus_alone_and_in_silence(
    model, make_onnxruntime, capfd
):
    runtime = make_onnxruntime(GPUS["CUDA"])
    open_backend(model, name="onnxruntime")
    assert runtime.preloaded == 0
    for _ in range(2):
        open_backend(model, name="onnxruntime", device="CUDA")
    assert runtime.preloaded == 1
    assert capfd.readouterr().out == ""


def test_a_session_that_gives_way_is_refused_and_named(model, make_onnxruntime):
    runtime = make_onnxruntime(GPUS["CUDA"])
    runtime.gives_way = True
    with pytest.raises(BackendError) as caught:
        open_backend(model, name="onnxruntime", device="CUDA")
    assert str(caught.value) == (
        "asked onnxruntime for CUDAExecutionProvider, got CPUExecutionProvider: its libraries or the GPU are missing: "
        'pip uninstall onnxruntime && pip install "spine-mri-engine[cuda]"'
    )


def test_work_that_is_left_behind_is_named_in_order_and_shapes_are_not_work(
    model, make_onnxruntime
):
    runtime = make_onnxruntime(GPUS["CUDA"])
    runtime.left_behind = ["Shape", "Resize", "Gather", "AveragePool"]
    with pytest.raises(BackendError) as caught:
        open_backend(model, name="onnxruntime", device="CUDA")
    assert str(caught.value) == (
        "CUDAExecutionProvider leaves AveragePool, Resize to the processor: choose another device or backend"
    )
    runtime.left_behind = ["Shape", "Gather"]
    assert open_backend(model, name="onnxruntime", device="CUDA").run(X)[
        "maps"
    ].shape == (2, 3, 16, 16)


SHAPE_WORK = (
    *(
        "Add",
        "Cast",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Div",
        "Equal",
        "Expand",
        "Floor",
        "Gather",
    ),
    *(
        "Identity",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Range",
        "ReduceProd",
        "Reshape",
        "Shape",
        "Size",
        "Slice",
        "Split",
    ),
    *("Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"),
)


def test_only_work_on_shapes_may_stay_behind():
    def session(*kinds: str) -> SimpleNamespace:
        nodes = [SimpleNamespace(op_type=kind) for kind in kinds]
        part = SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: nodes)
        return SimpleNamespace(get_provider_graph_assignment_info=lambda: [part])

    assert set(SHAPE_WORK) == ON_THE_PROCESSOR
    refuse_work_on_the_processor(session(*SHAPE_WORK), PROVIDERS["CUDA"])
    for work in (
        "Conv",
        "MatMul",
        "Gemm",
        "Relu",
        "Sigmoid",
        "Resize",
        "Softmax",
        "LayerNormalization",
        "Exp",
    ):
        with pytest.raises(BackendError, match=f"leaves {work} to the processor"):
            refuse_work_on_the_processor(session("Shape", work), PROVIDERS["CUDA"])


@pytest.mark.parametrize(
    ("device", "line"),
    [
        ("CUDA", 'pip uninstall onnxruntime && pip install "spine-mri-engine[cuda]"'),
        (
            "TENSORRT",
            'pip uninstall onnxruntime && pip install "spine-mri-engine[cuda]" "tensorrt<11" '
            "(the provider is linked with TensorRT 10)",
        ),
        (
            "NVTENSORRTRTX",
            'pip uninstall onnxruntime-gpu && pip install "spine-mri-engine[onnxruntime]" '
            "onnxruntime-ep-nv-tensorrt-rtx",
        ),
    ],
)
def test_a_provider_that_is_missing_is_named_with_its_line(
    model, make_onnxruntime, device, line
):
    make_onnxruntime("AzureExecutionProvider")
    with pytest.raises(BackendError) as caught:
        open_backend(model, name="onnxruntime", device=device)
    name = {**GPUS, "NVTENSORRTRTX": "NvTensorRTRTXExecutionProvider"}[device]
    found = "AzureExecutionProvider, CPUExecutionProvider"
    assert str(caught.value) == f"this onnxruntime has no {name}, only {found}: {line}"


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        (
            "CPU.0",
            "f32",
            "runs on CPU, CUDA, TENSORRT, NVTENSORRTRTX (CUDA.1 is the second GPU), not on 'CPU.0'",
        ),
        ("CUDA.-1", "f32", "not on 'CUDA.-1'"),
        ("OPENVINO", "f32", "not on 'OPENVINO'"),
        (
            "CPU",
            "bf16",
            "computes in what the file is in, not in bf16: ask for f32 or auto, or use openvino",
        ),
    ],
)
def test_what_it_does_not_have_is_refused(model, device, precision, message):
    with pytest.raises(BackendError) as caught:
        open_backend(model, name="onnxruntime", device=device, precision=precision)
    assert message in str(caught.value)


def test_a_bound_session_keeps_no_more_than_what_it_was_last_given(
    model, make_onnxruntime
):
    make_onnxruntime(GPUS["CUDA"])
    backend = open_backend(model, name="onnxruntime", device="CUDA")
    wanted = open_backend(model, name="onnxruntime").run(X)["maps"]
    kept = []
    for _ in range(3):
        given = X["image"].copy()
        kept.append(weakref.ref(given))
        np.testing.assert_array_equal(backend.run({"image": given})["maps"], wanted)
        del given
    gc.collect()
    assert [array() is None for array in kept] == [True, True, False]
    backend.close()
    gc.collect()
    assert kept[-1]() is None


@pytest.mark.parametrize("kind", ["f16", "int64"])
def test_models_of_another_type_are_refused(kind):
    onnx = pytest.importorskip(
        "onnx",
        reason="onnx is not installed: models of other types are not shown refused",
    )
    typed = {"f16": onnx.TensorProto.FLOAT16, "int64": onnx.TensorProto.INT64}[kind]
    x, y = (onnx.helper.make_tensor_value_info(name, typed, [1, 4]) for name in "xy")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y]
    )
    imports = [onnx.helper.make_opsetid("", 18)]
    content = onnx.helper.make_model(
        graph, opset_imports=imports, ir_version=10
    ).SerializeToString()
    said = {"f16": r"tensor\(float16\)", "int64": r"tensor\(int64\)"}[kind]
    with pytest.raises(BackendError, match=f"^x must be float32, got {said}$"):
        open_backend(content, name="onnxruntime")


def test_a_missing_runtime_is_named(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        BackendError,
        match=r'onnxruntime is not installed .*: pip install "spine-mri-engine\[onnxrun',
    ):
        open_backend(model, name="onnxruntime")
    assert not room.status().available


def test_nothing_is_kept_on_disk_for_the_processor_and_for_cuda(
    model, make_onnxruntime, cache: Path
):
    make_onnxruntime(GPUS["CUDA"])
    for device in ("CPU", "CUDA"):
        open_backend(model, name="onnxruntime", device=device, profile=PROFILE)
    assert not list(cache.glob("*.folder"))
