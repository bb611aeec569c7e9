"""What TensorRT's builders are told, over a pretended one: typing, shapes, the GPU, timings; what is refused."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from pretended_builder import PretendedBuilderLibrary
from pretended_gpu import PretendedCuda, Type

from spine_engine.backends import Profile, engines, open_backend
from spine_engine.backends.engines import (
    RTX,
    TENSORRT,
    build_engine,
    engine_key,
    reopen_engine,
)
from spine_engine.errors import BackendError

PROFILE = Profile(
    smallest=(1, 2, 8, 8), usual=(2, 2, 16, 16), largest=(4, 2, 48, 48), batches=(1, 2)
)
BOTH = pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])


@pytest.fixture
def library(monkeypatch):
    """Both runtimes with their builders, and an NVIDIA L4 and a T4, pretended."""
    trt = PretendedBuilderLibrary()
    trt.cuda = PretendedCuda(("NVIDIA L4", 8, 9), ("NVIDIA T4", 7, 5))
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(runtime=trt.cuda))
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, trt)
    caches = (engines.load_library, engines._listener)
    for cached in caches:
        cached.cache_clear()
    yield trt
    for cached in caches:
        cached.cache_clear()


def built(model: bytes, runtime: str, **options) -> list[list[int]]:
    """Build an engine; return the shapes that it was built for."""
    engine = build_engine(
        model,
        **{"runtime": runtime, "capability": "sm89", "profile": PROFILE, **options},
    )
    assert engine.startswith(b"plan")
    shapes: list[list[int]] = json.loads(engine[4:])
    return shapes


@BOTH
def test_a_network_is_strongly_typed_without_tf32_for_the_shapes_of_its_profile(
    library, model, runtime
):
    assert built(model, runtime) == [[1, 2, 8, 8], [2, 2, 16, 16], [4, 2, 48, 48]]
    assert library.parsed == [model]
    assert library.networks == [1 << 3]
    (config,) = library.configs
    assert "tf32" not in config.flags


def test_rtx_is_told_its_capability_and_that_memory_is_ours(library, model):
    built(model, "tensorrt-rtx", capability="SM75")
    (config,) = library.configs
    assert (config.num_compute_capabilities, config.capabilities) == (1, [("SM75", 0)])
    assert config.flags == {"user"}
    assert config.hardware_compatibility_level == "none"
    assert not config.timings
    assert library.cuda.device == -1, "no GPU is touched"


def test_tensorrt_builds_on_the_gpu_of_that_capability_for_all_of_its_kind(
    library, model
):
    built(model, "tensorrt", capability="sm75")
    (config,) = library.configs
    assert config.hardware_compatibility_level == "same"
    assert config.capabilities == []
    assert library.cuda.device == 1
    built(model, "tensorrt")
    assert library.cuda.device == 0
    with pytest.raises(BackendError) as caught:
        built(model, "tensorrt", capability="sm90")
    assert str(caught.value) == (
        "tensorrt builds on the GPU itself: want one of sm90, this machine has NVIDIA L4 (sm89), NVIDIA T4 (sm75)"
    )


def test_timings_are_kept_for_the_gpu_they_were_measured_on_and_forgotten_when_they_do_not_fit(
    library, model, make_model
):
    built(model, "tensorrt", capability="sm75")
    built(make_model(seed=1), "tensorrt", capability="sm75")
    built(model, "tensorrt", capability="sm89")
    assert [config.timings for config in library.configs] == [
        [b""],
        [b"timings"],
        [b""],
    ]
    library.takes_timings = False
    built(make_model(seed=2), "tensorrt", capability="sm75")
    assert library.configs[-1].timings == [b""]


def test_timings_of_another_driver_are_not_set(library, model, make_model, monkeypatch):
    built(model, "tensorrt")
    real = type(library.configs[0]).set_timing_cache
    monkeypatch.setattr(
        type(library.configs[0]),
        "set_timing_cache",
        lambda *args: real(*args) and args[1].content == b"",
    )
    built(make_model(seed=1), "tensorrt")
    assert library.configs[-1].timings == [b"timings", b""]


@BOTH
def test_attention_may_be_decomposed_and_other_layers_are_left_alone(
    library, model, runtime
):
    built(model, runtime)
    plain, attention = library.layers
    assert attention.attention.decomposable
    assert isinstance(attention, PretendedBuilderLibrary.IAttentionInputLayer)
    assert not hasattr(plain, "attention")


def test_a_version_without_attention_builds_all_the_same(library, model, monkeypatch):
    monkeypatch.setattr(PretendedBuilderLibrary, "LayerType", SimpleNamespace())
    library.layers = library.layers[:1]
    built(model, "tensorrt-rtx")


@BOTH
@pytest.mark.parametrize(
    ("state", "profile", "message"),
    [
        (
            {"shape": (-1, 2, 16, 16)},
            None,
            r"input image varies in shape \(-1, 2, 16, 16\): an engine needs a profile",
        ),
        (
            {"shape": (-1, 3, -1, -1)},
            PROFILE,
            r"the profile's shape \(1, 2, 8, 8\) does not fit input image \(-1, 3,",
        ),
        (
            {"shape": (-1, 2, -1, 48)},
            PROFILE,
            r"the profile's shape \(1, 2, 8, 8\) does not fit",
        ),
        ({"shape": (-1, 2, -1)}, PROFILE, "does not fit input image"),
        (
            {"inputs": 2},
            PROFILE,
            "engines are built for models of one input, this one has 2",
        ),
        ({"inputs": 0}, PROFILE, "this one has 0"),
        ({"input_type": Type.HALF}, PROFILE, "image must be float32, got HALF"),
        ({"result_type": Type.HALF}, PROFILE, "maps must be float32, got HALF"),
    ],
)
def test_models_that_no_engine_is_built_for(
    library, model, runtime, state, profile, message
):
    for name, value in state.items():
        setattr(library, name, value)
    with pytest.raises(BackendError, match=message):
        built(model, runtime, profile=profile)
    with pytest.raises(BackendError, match=message):  # nothing was kept
        built(model, runtime, profile=profile)


@BOTH
def test_a_model_of_fixed_shape_needs_no_profile(library, model, runtime):
    library.shape = (3, 2, 16, 16)
    assert built(model, runtime, profile=None) == [[3, 2, 16, 16]] * 3


@pytest.mark.parametrize(
    ("refuses", "runtime", "doing"),
    [
        ("profile", "tensorrt", "take the profile of"),
        ("capability", "tensorrt-rtx", "build"),
        ("build", "tensorrt", "build"),
        ("build", "tensorrt-rtx", "build"),
    ],
)
def test_a_builder_that_refuses_is_quoted_with_its_last_error(
    library, model, runtime, refuses, doing
):
    library.refuses = refuses
    with pytest.raises(BackendError) as caught:
        built(model, runtime)
    assert (
        str(caught.value)
        == f"{runtime} cannot {doing} the model for sm89: it does not say why"
    )
    if refuses == "build":
        library.says = [
            ("ERROR", "first"),
            ("INTERNAL_ERROR", "no\n  room"),
            ("WARNING", "last"),
            ("INFO", "x"),
        ]
        with pytest.raises(
            BackendError, match=rf"^{runtime} cannot build the model for sm89: no room$"
        ):
            built(model, runtime)


def test_an_earlier_error_is_not_told_of_a_later_model(library, model, make_model):
    library.refuses, library.says = "build", [("ERROR", "no room")]
    with pytest.raises(BackendError, match="no room"):
        built(model, "tensorrt")
    library.says = []
    with pytest.raises(BackendError, match="it does not say why"):
        built(make_model(seed=1), "tensorrt")


def test_the_first_three_errors_of_the_parser_are_told(library, model):
    library.parse_errors = [
        ("Sorcery", "n1", "no plugin"),
        ("A", "n2", "b"),
        ("C", "n3", "d"),
        ("E", "n4", "f"),
    ]
    with pytest.raises(BackendError) as caught:
        built(model, "tensorrt-rtx")
    assert (
        str(caught.value)
        == "tensorrt-rtx cannot read the model: Sorcery n1: no plugin; A n2: b; C n3: d"
    )


def test_whatever_shapes_an_engine_is_part_of_its_name_and_what_does_not_is_not(
    library, model, make_model
):
    other = Profile(smallest=(1, 2, 8, 8), usual=(1, 2, 16, 16), largest=(4, 2, 48, 48))
    names = [
        engine_key(RTX, model, "sm89", PROFILE),
        engine_key(TENSORRT, model, "sm89", PROFILE),
        engine_key(RTX, make_model(seed=1), "sm89", PROFILE),
        engine_key(RTX, model, "sm75", PROFILE),
        engine_key(RTX, model, "sm89", other),
        engine_key(RTX, model, "sm89", None),
    ]
    library.__class__.__version__, before = "99.2", library.__version__
    try:
        names.append(engine_key(RTX, model, "sm89", PROFILE))
    finally:
        library.__class__.__version__ = before
    assert len(set(names)) == 7
    launches = Profile(
        smallest=(1, 2, 8, 8), usual=(2, 2, 16, 16), largest=(4, 2, 48, 48)
    )
    assert engine_key(RTX, model, "sm89", launches) == names[0]


def test_weights_in_other_files_are_refused_before_the_builder_sees_them(library):
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
    with pytest.raises(BackendError, match="another file"):
        built(outside, "tensorrt-rtx")
    assert not library.parsed


def test_what_is_built_is_what_the_backend_opens(library, model, monkeypatch):
    monkeypatch.setattr(
        PretendedBuilderLibrary, "open", lambda self, plan, logger: seen.append(plan)
    )
    seen: list[bytes] = []
    engine = build_engine(model, runtime="tensorrt", capability="sm89", profile=PROFILE)
    with pytest.raises(
        BackendError,
        match=r"cannot open its engine for NVIDIA L4 \(sm89\): it does not say why",
    ):
        open_backend(model, name="tensorrt", device="GPU", profile=PROFILE)
    assert seen == [engine, engine], "one from the cache, one built again"
    assert len(library.configs) == 2


@pytest.mark.parametrize(
    ("errors", "gpus", "opened"),
    [
        (["Cuda Runtime (no device)", "another"], 0, False),
        (["Cuda Runtime (no device)"], 1, None),  # with a GPU that is no excuse
        (["a bad header", "Cuda Runtime (no device)"], 0, None),
        ([], 0, None),
    ],
)
def test_an_engine_that_does_not_open_is_excused_by_a_missing_gpu_alone(
    library, monkeypatch, errors, gpus, opened
):
    def refuse(self, plan, logger):
        for error in errors:
            logger.log(SimpleNamespace(name="ERROR"), error)

    monkeypatch.setattr(PretendedBuilderLibrary, "open", refuse)
    monkeypatch.setattr(library.cuda, "cudaGetDeviceCount", lambda: (0, gpus))
    if opened is False:
        assert reopen_engine(b"plan", runtime="tensorrt-rtx") is False
    else:
        first = errors[0] if errors else "it does not say why"
        with pytest.raises(BackendError) as caught:
            reopen_engine(b"plan", runtime="tensorrt-rtx")
        assert str(caught.value) == f"tensorrt-rtx refuses the engine: {first}"


def test_an_engine_that_opens_is_told(library):
    assert (
        reopen_engine(
            b"plan" + json.dumps([[1, 2, 8, 8]] * 3).encode(), runtime="tensorrt"
        )
        is True
    )


def test_capabilities_are_sorted_by_number_and_asked_of_rtx_alone(library):
    assert engines.capabilities(RTX) == ("sm75", "sm89", "sm120")
    assert engines.capabilities(TENSORRT) == ()
    assert engines.has_gpu()
    library.cuda.devices = ()
    assert not engines.has_gpu()


def test_a_library_may_go_by_two_names_and_the_first_error_is_told(
    library, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", library)
    engines.load_library.cache_clear()
    assert engines.load_library(RTX) is library
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    engines.load_library.cache_clear()
    with pytest.raises(BackendError) as caught:
        engines.load_library(RTX)
    assert "tensorrt-rtx is not installed (import of tensorrt_rtx halted" in str(
        caught.value
    )
    assert str(caught.value).endswith('): pip install "spine-mri-engine[tensorrt-rtx]"')
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    engines.load_library.cache_clear()
    with pytest.raises(
        BackendError,
        match=r'tensorrt is not installed .*: pip install "spine-mri-engine\[tensorrt\]"',
    ):
        engines.load_library(TENSORRT)
