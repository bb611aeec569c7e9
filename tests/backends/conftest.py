"""Tiny models, made on the spot, and a private cache."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pretended_gpu import PretendedCuda, PretendedTensorRt, plan_of

from spine_engine.backends import engines


def conv_model(seed: int = 0, sizes: tuple[int | str, int | str] = ("h", "w")) -> bytes:
    """Return an ONNX model ``image (n, 2, h, w) -> maps (n, 3, h, w)``: three convolutions and a sigmoid.

    ``sizes`` are h and w, names where they vary.
    """
    onnx = pytest.importorskip(
        "onnx", reason="onnx is not installed: it builds the test models"
    )
    helper, numpy_helper, f32 = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
    rng = np.random.default_rng(seed)
    channels, nodes, weights, last = (2, 8, 8, 3), [], [], "image"
    for layer, (into, out) in enumerate(pairwise(channels)):
        kernel = rng.normal(size=(out, into, 3, 3)).astype(np.float32) / np.sqrt(
            9 * into
        )
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{layer}"))
        nodes.append(
            helper.make_node(
                "Conv", [last, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]
            )
        )
        nodes.append(
            helper.make_node(
                "Relu" if layer < 2 else "Sigmoid", [f"c{layer}"], [f"a{layer}"]
            )
        )
        last = f"a{layer}"
    nodes[-1].output[0] = "maps"
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("image", f32, ["n", 2, *sizes])],
        [helper.make_tensor_value_info("maps", f32, ["n", 3, *sizes])],
        weights,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    content: bytes = model.SerializeToString()
    return content


@pytest.fixture(scope="session")
def model() -> bytes:
    return conv_model()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., bytes]:
    return conv_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "spine-mri-engine"


@pytest.fixture
def make_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Put a pretended ONNX Runtime, with the providers named, in the place of the installed one, and return it."""
    pytest.importorskip(
        "onnxruntime",
        reason="onnxruntime is not installed: nothing of its backend is shown",
    )
    from pretended_onnxruntime import PretendedOnnxRuntime

    def make(*providers: str, plugin_gpus: int = 0) -> PretendedOnnxRuntime:
        runtime = PretendedOnnxRuntime(*providers, plugin_gpus=plugin_gpus)
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        plugin = SimpleNamespace(
            get_ep_name=lambda: "rtx", get_library_path=lambda: "/lib/rtx.so"
        )
        monkeypatch.setitem(
            sys.modules,
            "onnxruntime_ep_nv_tensorrt_rtx",
            plugin if plugin_gpus else None,
        )
        return runtime

    return make


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedTensorRt]:
    """Both runtimes and an NVIDIA L4, pretended; ``built`` lists the profiles that engines were built for."""
    trt = PretendedTensorRt(PretendedCuda())
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(runtime=trt.cuda))
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, trt)
    trt.built = []

    def build(library, model, capability, profile, gpu):
        trt.built.append((library.name, capability, profile))
        return plan_of(profile)

    monkeypatch.setattr(engines, "_build", build)
    for cached in (engines.load_library, engines._listener):
        cached.cache_clear()
    yield trt
    for cached in (engines.load_library, engines._listener):
        cached.cache_clear()
