"""The packaged models as TensorRT-RTX engines, built here whether or not there is a GPU; and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spine_engine.backends import Profile, engines
from spine_engine.backends.engines import (
    RTX,
    build_engine,
    capabilities,
    has_gpu,
    load_library,
    reopen_engine,
)
from spine_engine.bundle import Bundle
from spine_engine.errors import BackendError
from spine_export.engines import build_engines

# shapes: the detector takes one slice whose sides are multiples of 32, the grader up to eight levels at once
PROFILES = {
    "detector": Profile(
        smallest=(1, 1, 32, 32), usual=(1, 1, 192, 192), largest=(1, 1, 320, 320)
    ),
    "grader": Profile(
        smallest=(1, 3, 24, 40, 48),
        usual=(5, 3, 24, 40, 48),
        largest=(8, 3, 24, 40, 48),
        batches=(5,),
    ),
}


@pytest.fixture(autouse=True)
def bindings() -> None:
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason=f"TensorRT-RTX is not installed: {RTX.install}"
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "spine-mri-engine"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    opened = Bundle.open()
    models = opened.manifest.models
    entries = {
        role: replace(entry, profile=PROFILES[role])
        for role, entry in models.by_role().items()
    }
    return replace(
        opened, manifest=replace(opened.manifest, models=replace(models, **entries))
    )


def grader(bundle: Bundle) -> bytes:
    return (bundle.path / bundle.grader.file).read_bytes()


def test_the_packaged_bundle_is_built_for_sm89_and_found_again(
    bundle, cache, monkeypatch
):
    lines: list[str] = []
    built = build_engines(bundle, "sm89", say=lines.append)
    files = sum(
        1 + len(entry.variants) for entry in bundle.manifest.models.by_role().values()
    )
    assert len(built) == len(lines) == files
    assert {engine.role for engine in built} == {"detector", "grader"}
    assert all(engine.size_bytes > 1_000_000 for engine in built)
    assert not any(engine.opened for engine in built) or has_gpu()
    assert len(list(cache.glob("*.blob"))) == files

    def build_again(*_: object) -> bytes:
        raise AssertionError("built again")

    monkeypatch.setattr(engines, "_build", build_again)
    again = build_engines(bundle, "SM89", say=lines.append)
    assert [engine.size_bytes for engine in again] == [
        engine.size_bytes for engine in built
    ]
    with pytest.raises(AssertionError, match="built again"):
        build_engines(bundle, "sm86", say=lines.append)


def test_a_changed_engine_in_the_cache_is_built_again(bundle, cache):
    good = build_engine(
        grader(bundle),
        runtime="tensorrt-rtx",
        capability="sm89",
        profile=PROFILES["grader"],
    )
    (entry,) = cache.glob("*.blob")
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 1
    entry.write_bytes(content)
    again = build_engine(
        grader(bundle),
        runtime="tensorrt-rtx",
        capability="sm89",
        profile=PROFILES["grader"],
    )
    assert reopen_engine(again, runtime="tensorrt-rtx") is has_gpu()
    assert abs(len(again) - len(good)) < len(good) / 20, (
        "kernels are chosen by timing, so not the same bytes"
    )
    assert entry.read_bytes()[32:] == again


@pytest.mark.parametrize(
    "spoil",
    [
        lambda engine: b"",
        lambda engine: b"rubbish" * 100,
        lambda engine: engine[:64],
        lambda engine: engine[:-1],
        lambda engine: engine + b"x",
        lambda engine: bytes([engine[0] ^ 1]) + engine[1:],
        lambda engine: engine[:64] + bytes([engine[64] ^ 1]) + engine[65:],
        lambda engine: engine[:-1] + bytes([engine[-1] ^ 1]),
    ],
    ids=["empty", "rubbish", "header", "cut", "longer", "magic", "contents", "end"],
)
def test_the_deserialiser_refuses_what_is_no_engine_even_without_a_gpu(
    small_engine, spoil
):
    assert reopen_engine(small_engine, runtime="tensorrt-rtx") is has_gpu()
    with pytest.raises(BackendError, match="refuses the engine"):
        reopen_engine(spoil(small_engine), runtime="tensorrt-rtx")


@pytest.fixture(scope="module")
def small_engine(bindings_module) -> bytes:
    from spine_engine.backends.engines import _build

    return _build(RTX, attention_model(), "sm89", ATTENTION, None)


@pytest.fixture(scope="module")
def bindings_module() -> None:
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason=f"TensorRT-RTX is not installed: {RTX.install}"
    )


ATTENTION = Profile(smallest=(1, 16, 64), usual=(2, 16, 64), largest=(4, 16, 64))


def attention_model() -> bytes:
    """Return ``x (n, 16, 64) -> y``: opset 23's Attention, which TensorRT builds only where it may be decomposed."""
    onnx = pytest.importorskip("onnx")
    helper, f32 = onnx.helper, onnx.TensorProto.FLOAT
    # three tensors of their own: one as query, key and value at once crashes the builder of TensorRT-RTX 1.7.1
    nodes = [helper.make_node("Mul", ["x", f"w{name}"], [name]) for name in "qkv"]
    nodes.append(
        helper.make_node(
            "Attention", ["q", "k", "v"], ["y"], q_num_heads=2, kv_num_heads=2
        )
    )
    weights = [
        onnx.numpy_helper.from_array(np.full(64, n + 1, np.float32), f"w{name}")
        for n, name in enumerate("qkv")
    ]
    x, y = (helper.make_tensor_value_info(name, f32, ["n", 16, 64]) for name in "xy")
    graph = helper.make_graph(nodes, "attention", [x], [y], weights)
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11
    ).SerializeToString()
    return content


def linear_model(
    kind: str = "f32", inputs: int = 1, size: object = "n", operation: str = "Sum"
) -> bytes:
    """Return a sum of inputs of a type, each ``(n, 4)``."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    typed = {"f32": onnx.TensorProto.FLOAT, "f16": onnx.TensorProto.FLOAT16}[kind]
    names = [f"x{n}" for n in range(inputs)]
    given = [helper.make_tensor_value_info(name, typed, [size, 4]) for name in names]
    nodes = [helper.make_node(operation, [*names, "w"], ["y"])]
    weight = onnx.numpy_helper.from_array(
        np.ones(4, np.float16 if kind == "f16" else np.float32), "w"
    )
    graph = helper.make_graph(
        nodes,
        "g",
        given,
        [helper.make_tensor_value_info("y", typed, [size, 4])],
        [weight],
    )
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    ).SerializeToString()
    return content


@pytest.mark.parametrize(
    ("model", "profile", "message"),
    [
        (
            lambda: linear_model("f16"),
            ((1, 4), (2, 4), (3, 4)),
            "x0 must be float32, got HALF",
        ),
        (
            lambda: linear_model(inputs=2),
            ((1, 4), (2, 4), (3, 4)),
            "one input, this one has 2",
        ),
        (
            lambda: linear_model(),
            None,
            r"input x0 varies in shape \(-1, 4\): an engine needs a profile",
        ),
        (
            lambda: linear_model(),
            ((1, 5), (2, 5), (3, 5)),
            r"\(1, 5\) does not fit input x0 \(-1, 4\)",
        ),
        (lambda: linear_model(), ((1, 4, 1),) * 3, "does not fit"),
        (
            lambda: linear_model(operation="Sorcery"),
            ((1, 4),) * 3,
            "cannot read the model: Sorcery.*Plugin not found",
        ),
    ],
    ids=["type", "inputs", "no profile", "wrong profile", "wrong rank", "unknown"],
)
def test_models_that_no_engine_is_built_for(model, profile, message):
    shapes = (
        Profile(smallest=profile[0], usual=profile[1], largest=profile[2])
        if profile
        else None
    )
    with pytest.raises(BackendError, match=message):
        build_engine(model(), runtime="tensorrt-rtx", capability="sm89", profile=shapes)


def test_a_model_of_fixed_shape_needs_no_profile():
    engine = build_engine(
        linear_model(size=3), runtime="tensorrt-rtx", capability="sm89"
    )
    assert reopen_engine(engine, runtime="tensorrt-rtx") is has_gpu()


def test_the_capabilities_are_the_librarys_own(bundle):
    known = capabilities(RTX)
    assert "sm89" in known
    assert known == tuple(sorted(known, key=lambda name: int(name[2:])))
    assert len(known) == len(
        [
            name
            for name in dir(load_library(RTX).ComputeCapability)
            if name.startswith("SM")
        ]
    )
    with pytest.raises(
        BackendError,
        match=rf"grader.onnx|detector.onnx.*builds for {', '.join(known)}, not for sm90",
    ):
        build_engines(bundle, "sm90", say=print)


def test_three_dimensions_in_f32_are_too_much_for_turing(bundle):
    with pytest.raises(
        BackendError, match="3D convolution is not supported"
    ) as refusal:
        build_engine(
            grader(bundle),
            runtime="tensorrt-rtx",
            capability="sm75",
            profile=PROFILES["grader"],
        )
    assert "\n" not in str(refusal.value)


def test_nothing_is_built_that_could_not_be_kept(bundle, cache):
    cache.mkdir(mode=0o755)
    cache.chmod(0o755)
    with pytest.raises(BackendError, match="XDG_CACHE_HOME"):
        build_engines(bundle, "sm89")
