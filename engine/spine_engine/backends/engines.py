"""Engines of TensorRT and TensorRT-RTX: built from ONNX, kept in the user's cache, reopened.

The two share one API. What differs: TensorRT builds on the GPU that will run the engine and measures kernels there;
TensorRT-RTX builds for a named compute capability, with no GPU at hand, and finishes the kernels when it runs. Networks
are strongly typed: the precision is that of the file. TF32 is off, or f32 would not be f32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Final

from spine_engine.backends.base import Profile
from spine_engine.backends.cache import (
    cache_key,
    compiled_once,
    drop_compiled,
    load_compiled,
    store_compiled,
)
from spine_engine.backends.cuda import GpuInfo, choose, gpus
from spine_engine.backends.external import refuse_external_data
from spine_engine.errors import BackendError

_RECIPE: Final = "1: strongly typed, no TF32, decomposable attention"
"""How engines are built here; it is part of their key, so change it with ``_build``."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """One of the two runtimes.

    Attributes:
        name: the backend's.
        modules: what may be imported for it, the first that is there.
        install: the line that installs it.
        ahead: whether it builds for a compute capability that is not at hand.
    """

    name: str
    modules: tuple[str, ...]
    install: str
    ahead: bool


TENSORRT: Final = Library(
    name="tensorrt",
    modules=("tensorrt",),
    install='pip install "spine-mri-engine[tensorrt]"',
    ahead=False,
)
RTX: Final = Library(
    name="tensorrt-rtx",
    modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
    install='pip install "spine-mri-engine[tensorrt-rtx]"',
    ahead=True,
)
LIBRARIES: Final = {library.name: library for library in (TENSORRT, RTX)}


@cache
def load_library(library: Library) -> Any:
    """Return the runtime's module.

    Raises:
        BackendError: it is not installed.
    """
    errors = []
    for name in library.modules:
        try:
            return import_module(name)
        except (
            ImportError,
            OSError,
            RuntimeError,
        ) as error:  # its libraries may be missing, not it
            errors.append(str(error).splitlines()[0])
    raise BackendError(
        f"{library.name} is not installed ({errors[0]}): {library.install}"
    )


def capabilities(library: Library) -> tuple[str, ...]:
    """Return the compute capabilities that the runtime builds for by name (``sm89``); none where it needs the GPU."""
    if not library.ahead:
        return ()
    names = load_library(library).ComputeCapability.__members__
    return tuple(
        sorted(
            (name.lower() for name in names if name.startswith("SM")),
            key=lambda name: int(name[2:]),
        )
    )


def build_engine(
    model: bytes, *, runtime: str, capability: str, profile: Profile | None = None
) -> bytes:
    """Return the engine of an ONNX model, from the user's cache or built and kept there.

    It is kept under the key that the backend looks up on a GPU of that capability, with the same profile.

    Args:
        model: the model, all its weights inside.
        runtime: ``tensorrt`` or ``tensorrt-rtx``; the second needs no GPU.
        capability: the compute capability to build for, such as ``sm89``.
        profile: the shapes to build for; a model of fixed shape needs none.

    Raises:
        BackendError: the runtime is missing, does not build for the capability here, or cannot build the model.
    """
    if runtime not in LIBRARIES:
        raise BackendError(
            f"{runtime!r} builds no engines ahead of time: choose {' or '.join(LIBRARIES)}"
        )
    library, capability = LIBRARIES[runtime], capability.lower()
    refuse_external_data(model)
    gpu = None if library.ahead else _choose_gpu(capability)
    return engine_of(library, model, capability, profile, gpu)


def engine_of(
    library: Library,
    model: bytes,
    capability: str,
    profile: Profile | None,
    gpu: GpuInfo | None,
) -> bytes:
    """Return a model's engine, from the cache or built by one process while others wait; errors as ``build_engine``."""
    known = capabilities(library)
    if known and capability not in known:
        other = "tensorrt, or onnxruntime on CUDA, may run there"
        raise BackendError(
            f"{library.name} builds for {', '.join(known)}, not for {capability}: {other}"
        )
    key = engine_key(library, model, capability, profile)
    return compiled_once(key, lambda: _build(library, model, capability, profile, gpu))


def forget_engine(
    library: Library, model: bytes, capability: str, profile: Profile | None
) -> None:
    """Delete a kept engine that turned out to be unusable."""
    drop_compiled(engine_key(library, model, capability, profile))


def engine_key(
    library: Library, model: bytes, capability: str, profile: Profile | None
) -> str:
    """Return the name of an engine in the cache."""
    version = str(load_library(library).__version__)
    shapes = (
        "any"
        if profile is None
        else f"{profile.smallest} {profile.usual} {profile.largest}"
    )
    return cache_key(model, library.name, version, capability, shapes, _RECIPE)


def reopen_engine(engine: bytes, *, runtime: str) -> bool:
    """Hand an engine to the runtime's deserialiser: True when it opens, False when only a GPU to open it on is missing.

    Without a GPU the deserialiser checks the plan as a whole (header, version, size, table of contents, end mark) and
    then stops at the first call of CUDA; weights and kernels are not looked at.

    Raises:
        BackendError: it refuses the engine, or is not installed.
    """
    library = LIBRARIES[runtime]
    said = listener(library)
    if load_library(library).Runtime(said).deserialize_cuda_engine(engine) is not None:
        return True
    # it ends with a CUDA error of its own whatever it said first, so the first error tells
    why = said.errors[0] if said.errors else "it does not say why"
    if "Cuda Runtime" in why and not has_gpu():
        return False
    raise BackendError(f"{library.name} refuses the engine: {why}")


def has_gpu() -> bool:
    """Whether CUDA shows this process a GPU."""
    try:
        return bool(gpus())
    except BackendError:
        return False


def listener(library: Library) -> Any:
    """Return the runtime's logger, which prints nothing and keeps the ``errors`` since this call, each on one line.

    There is one in a process and it lives as long: the runtime goes on using the first that it was ever given.
    """
    said = _listener(library)
    said.errors.clear()
    return said


@cache
def _listener(library: Library) -> Any:
    base = load_library(library).ILogger  # so the class is only known now

    def begin(self: Any) -> None:
        base.__init__(self)
        self.errors = []

    def log(self: Any, severity: Any, message: str) -> None:
        if severity.name in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(" ".join(message.split()))

    return type("Listener", (base,), {"__init__": begin, "log": log})()


def _choose_gpu(capability: str) -> GpuInfo:
    """Return this machine's first GPU of a compute capability, after making it this thread's."""
    here = gpus()
    for index, gpu in enumerate(here):
        if gpu.capability == capability:
            choose(index)
            return gpu
    found = ", ".join(f"{gpu.name} ({gpu.capability})" for gpu in here)
    raise BackendError(
        f"tensorrt builds on the GPU itself: want one of {capability}, this machine has {found}"
    )


def _build(
    library: Library,
    model: bytes,
    capability: str,
    profile: Profile | None,
    gpu: GpuInfo | None,
) -> bytes:
    trt, said = load_library(library), listener(library)

    def checked(value: Any, doing: str) -> Any:
        if value is None or value is False:
            why = said.errors[-1] if said.errors else "it does not say why"
            raise BackendError(
                f"{library.name} cannot {doing} the model for {capability}: {why}"
            )
        return value

    builder = trt.Builder(said)
    network = builder.create_network(
        1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    parser = trt.OnnxParser(
        network, said
    )  # the network's weights are the parser's, so it has to stay
    if not parser.parse(model):
        wrong = [parser.get_error(n) for n in range(parser.num_errors)]
        why = "; ".join(
            f"{error.node_operator()} {error.node_name()}: {error.desc()}"
            for error in wrong[:3]
        )
        raise BackendError(f"{library.name} cannot read the model: {why}")
    _decompose_attention(trt, network)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    name, shapes = _input_shapes(trt, network, profile)
    optimisation = builder.create_optimization_profile()
    optimisation.set_shape(name, *shapes)
    checked(config.add_optimization_profile(optimisation) != -1, "take the profile of")
    if library.ahead:
        config.set_flag(
            trt.BuilderFlag.REQUIRE_USER_ALLOCATION
        )  # or launches cannot be recorded as graphs
        config.num_compute_capabilities = 1
        target = getattr(trt.ComputeCapability, capability.upper())
        checked(config.set_compute_capability(target, 0), "build")
        return bytes(
            checked(builder.build_serialized_network(network, config), "build")
        )
    # an engine then serves every GPU of its capability, as its key says
    config.hardware_compatibility_level = (
        trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    )
    with_timings = _timing_cache(trt, config, gpu.name if gpu else "")
    engine = bytes(checked(builder.build_serialized_network(network, config), "build"))
    with_timings()
    return engine


def _timing_cache(trt: Any, config: Any, gpu_name: str) -> Callable[[], None]:
    """Give the builder what was measured on this GPU before; return what keeps the new measurements."""
    key = cache_key(b"", "kernel timings", str(trt.__version__), gpu_name)
    kept = config.create_timing_cache(load_compiled(key) or b"")
    if kept is None or not config.set_timing_cache(
        kept, False
    ):  # it was another driver's
        config.set_timing_cache(config.create_timing_cache(b""), False)

    def keep() -> None:
        store_compiled(key, bytes(config.get_timing_cache().serialize()))

    return keep


def _input_shapes(
    trt: Any, network: Any, profile: Profile | None
) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """Return the one input's name and the smallest, usual and largest shape to build for."""
    if network.num_inputs != 1:
        raise BackendError(
            f"engines are built for models of one input, this one has {network.num_inputs}"
        )
    tensors = [
        network.get_input(0),
        *(network.get_output(n) for n in range(network.num_outputs)),
    ]
    for tensor in tensors:
        if tensor.dtype != trt.DataType.FLOAT:
            raise BackendError(
                f"{tensor.name} must be float32, got {tensor.dtype.name}"
            )
    name, wanted = str(tensors[0].name), tuple(tensors[0].shape)
    if profile is None:
        if min(wanted) < 0:
            raise BackendError(
                f"input {name} varies in shape {wanted}: an engine needs a profile of the shapes to run"
            )
        return name, (wanted,) * 3
    shapes = (profile.smallest, profile.usual, profile.largest)
    for shape in shapes:
        if len(shape) != len(wanted) or any(
            w not in (-1, s) for w, s in zip(wanted, shape, strict=True)
        ):
            raise BackendError(
                f"the profile's shape {shape} does not fit input {name} {wanted}"
            )
    return name, shapes


def _decompose_attention(trt: Any, network: Any) -> None:
    """Let attention without a kernel of its own be built from smaller operations (ONNX opset 23's ``Attention``)."""
    kind = getattr(
        trt.LayerType, "ATTENTION_INPUT", None
    )  # early versions of 10 have none
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == kind:
            layer.__class__ = (
                trt.IAttentionInputLayer
            )  # the binding gives the base class
            layer.attention.decomposable = True
