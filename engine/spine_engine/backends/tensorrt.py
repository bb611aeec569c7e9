"""TensorRT and TensorRT-RTX: engines on an NVIDIA GPU, specialised in the shapes of a profile."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.backends import BackendStatus
from spine_engine.backends.base import (
    Backend,
    Device,
    Profile,
    TensorInfo,
    check_inputs,
)
from spine_engine.backends.cache import cache_key, load_compiled, store_compiled
from spine_engine.backends.cuda import Buffer, Gpu, GpuInfo, gpus
from spine_engine.backends.engines import (
    TENSORRT,
    Library,
    capabilities,
    engine_of,
    forget_engine,
    listener,
    load_library,
)
from spine_engine.errors import BackendError

Shape = tuple[int, ...]

PRECISIONS: Final = ("f32", "f16", "int8")
"""What a file may be typed in; both runtimes compute in what the file says."""


class Contexts:
    """Makes the execution contexts of one engine of TensorRT; they get their working memory from outside.

    Holds the runtime, too, which has to outlive its engine.
    """

    records_graphs = False
    """Whether a context records its launches by itself."""

    def __init__(self, trt: Any, runtime: Any, engine: Any) -> None:
        self._trt, self._runtime, self._engine = trt, runtime, engine

    def new(self, *, fixed: bool) -> Any:
        """Return a context, or None where there is no memory for it; ``fixed`` when it will see one shape only."""
        return self._engine.create_execution_context(
            self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )

    def keep(self) -> None:
        """Store what running a new shape has brought."""


class RtxContexts(Contexts):
    """Those of TensorRT-RTX, which finishes its kernels on the GPU: at once for each shape, and kept between runs.

    By default it answers from general kernels until the special ones are ready: the same input would then not always
    give the same bytes.
    """

    records_graphs = True

    def __init__(self, trt: Any, runtime: Any, engine: Any, key: str) -> None:
        super().__init__(trt, runtime, engine)
        self._key = key
        self._kernels = engine.create_runtime_config().create_runtime_cache()
        self._kept = load_compiled(key) or b""
        if self._kept:
            self._kernels.deserialize(
                self._kept
            )  # what is of another GPU or driver it refuses, and starts anew

    def new(self, *, fixed: bool) -> Any:
        """Return a context; see ``Contexts``."""
        trt, config = self._trt, self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        config.set_runtime_cache(self._kernels)
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        graphs = trt.CudaGraphStrategy
        config.cuda_graph_strategy = (
            graphs.WHOLE_GRAPH_CAPTURE if fixed else graphs.DISABLED
        )
        return self._engine.create_execution_context(config)

    def keep(self) -> None:
        """Store the kernels if there are new ones."""
        content = bytes(self._kernels.serialize())
        if content != self._kept:
            store_compiled(self._key, content)
            self._kept = content


@dataclass(frozen=True, kw_only=True)
class _Launch:
    """A context set to one input shape, the shapes it then gives, and its recorded graph if it has one."""

    context: Any
    outputs: tuple[Shape, ...]
    graph: Any = None


class EngineBackend:
    """An engine with a stream of its own, buffers for its largest shape and recorded launches. See ``Backend``.

    The contexts share one block of working memory, since they run one after the other. Each recorded shape has a
    context to itself, as the guides of both runtimes advise: a graph belongs to the state it was recorded in.

    Args:
        opened: the runtime's module, the opened engine, and the runtime's logger, with ``errors``.
        gpu: closed with the backend.
        device: what it runs on.
        contexts: makes them.
        batches: batch sizes, at the usual other dimensions, to keep launches for.
    """

    def __init__(
        self,
        opened: tuple[Any, Any, Any],
        gpu: Gpu,
        device: Device,
        contexts: Contexts,
        batches: tuple[int, ...],
    ) -> None:
        trt, engine, said = opened
        self.device = device
        self._engine, self._said, self._gpu, self._contexts = (
            engine,
            said,
            gpu,
            contexts,
        )
        names = [str(engine.get_tensor_name(n)) for n in range(engine.num_io_tensors)]
        into = [
            name
            for name in names
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        ]
        self.inputs = tuple(_info(trt, engine, name) for name in into)
        self.outputs = tuple(
            _info(trt, engine, name) for name in names if name not in into
        )
        (self._input,) = self.inputs
        shapes = engine.get_tensor_profile_shape(self._input.name, 0)
        self._smallest, usual, self._largest = (
            tuple(int(size) for size in shape) for shape in shapes
        )
        self._scratch = gpu.memory(engine.device_memory_size_v2)
        self._any = self._context(fixed=False)
        largest = self._set(self._any, self._largest)
        sizes = (self._largest, *largest.outputs)
        self._buffers: tuple[Buffer, ...] = tuple(
            gpu.buffer(prod(shape)) for shape in sizes
        )
        self._bind(self._any)
        self._seen: set[Shape] = set()
        self._fixed = {
            shape: self._record(shape)
            for shape in ((batch, *usual[1:]) for batch in batches)
        }
        if batches:
            contexts.keep()

    def run(
        self, inputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float32]]:
        """Run the model once; the outputs are fresh copies."""
        if self._engine is None:
            raise ValueError("this model has been closed")
        check_inputs(self.inputs, inputs)
        array = inputs[self._input.name]
        limits = zip(self._smallest, array.shape, self._largest, strict=True)
        if any(not low <= size <= high for low, size, high in limits):
            between = f"a shape from {self._smallest} to {self._largest}"
            raise ValueError(
                f"input {self._input.name} must have {between}, got {array.shape}"
            )
        self._gpu.use()
        self._buffers[0].host[: array.size] = array.reshape(-1)
        launch = self._fixed.get(array.shape) or self._set(self._any, array.shape)
        if launch.graph is None:
            self._queue(launch, array.size)
        else:
            self._gpu.launch(launch.graph)
        self._gpu.wait()
        if array.shape not in self._seen and array.shape not in self._fixed:
            self._seen.add(array.shape)
            self._contexts.keep()
        answers = zip(self.outputs, self._buffers[1:], launch.outputs, strict=True)
        return {
            info.name: buffer.host[: prod(shape)].reshape(shape).copy()
            for info, buffer, shape in answers
        }

    def close(self) -> None:
        """Release the engine and everything on the GPU."""
        if self._engine is None:
            return
        del self._any, self._contexts, self._buffers
        self._fixed, self._engine = {}, None
        self._gpu.close()

    def _context(self, *, fixed: bool) -> Any:
        """Return a new context on the shared working memory."""
        context = self._contexts.new(fixed=fixed)
        if context is None:
            raise BackendError(
                f"{self.device.backend} cannot make an execution context: {_why(self._said)}"
            )
        context.set_device_memory(self._scratch, self._engine.device_memory_size_v2)
        return context

    def _bind(self, context: Any) -> None:
        for info, buffer in zip(
            (self._input, *self.outputs), self._buffers, strict=True
        ):
            context.set_tensor_address(info.name, buffer.address)

    def _set(self, context: Any, shape: Shape) -> _Launch:
        """Return the launch of a shape, unrecorded."""
        if not context.set_input_shape(self._input.name, shape):
            raise BackendError(
                f"{self.device.backend} refuses the input shape {shape}: {_why(self._said)}"
            )
        outputs = tuple(
            tuple(int(n) for n in context.get_tensor_shape(info.name))
            for info in self.outputs
        )
        if any(size < 0 for output in outputs for size in output):
            raise BackendError(
                f"the shapes of the outputs {outputs} depend on the data: such a model cannot be run"
            )
        return _Launch(context=context, outputs=outputs)

    def _record(self, shape: Shape) -> _Launch:
        """Return a launch to keep for one shape, after running it once, which finishes what a new shape needs."""
        context = self._context(fixed=True)
        self._bind(context)
        launch = self._set(context, shape)
        self._buffers[0].host[: prod(shape)] = 0
        self._queue(launch, prod(shape))
        self._gpu.wait()
        if self._contexts.records_graphs:
            return launch
        return replace(
            launch, graph=self._gpu.capture(lambda: self._queue(launch, prod(shape)))
        )

    def _queue(self, launch: _Launch, size: int) -> None:
        """Queue one run: the input to the GPU, the engine, the outputs back."""
        self._gpu.upload(self._buffers[0], size)
        if not launch.context.execute_async_v3(self._gpu.stream):
            raise BackendError(
                f"{self.device.backend} cannot run the engine: {_why(self._said)}"
            )
        for buffer, shape in zip(self._buffers[1:], launch.outputs, strict=True):
            self._gpu.download(buffer, prod(shape))


def open_engine(
    library: Library,
    model: bytes,
    device: str,
    precision: str,
    threads: int,
    profile: Profile | None,
) -> Backend:
    """Build the model's engine for the GPU, or take it from the cache, and open it."""
    if precision not in ("auto", *PRECISIONS):
        offered = f"{', '.join(PRECISIONS)}, whichever the file is in"
        raise BackendError(
            f"{library.name} computes in {offered}, not in {precision}: ask for f32 or auto"
        )
    match = re.fullmatch(r"GPU(?:\.(\d+))?", device)
    if match is None:
        raise BackendError(
            f"{library.name} runs on the device GPU (GPU.1 is the second), not on {device}"
        )
    trt, here, index = load_library(library), gpus(), int(match[1] or 0)
    if index >= len(here):
        raise BackendError(
            f"{library.name} has no device {device} here, only {', '.join(_shown(here))}"
        )
    said, gpu = listener(library), Gpu(index)
    try:
        runtime = trt.Runtime(said)
        engine = _opened(library, runtime, said, model, here[index], profile)
        contexts = Contexts(trt, runtime, engine)
        if library.ahead:
            key = cache_key(
                model, "kernels", str(trt.__version__), here[index].name, repr(profile)
            )
            contexts = RtxContexts(trt, runtime, engine, key)
        runs_as = Device(
            library.name, device, "f32" if precision == "auto" else precision
        )
        return EngineBackend(
            (trt, engine, said),
            gpu,
            runs_as,
            contexts,
            profile.batches if profile else (),
        )
    except BaseException:
        gpu.close()
        raise


def library_status(library: Library) -> BackendStatus:
    """Return the runtime's version and the GPUs it can run on, or why it cannot be used."""
    version = ""
    try:
        version = str(load_library(library).__version__)
        here, known = gpus(), capabilities(library)
        if known and not any(gpu.capability in known for gpu in here):
            raise BackendError(
                f"it runs on {', '.join(known)} only; here is {', '.join(_shown(here))}: choose tensorrt"
            )
        return BackendStatus(library.name, True, version, _shown(here), "")
    except BackendError as error:
        reason = (
            f"{version} can build engines, not run them: {error}"
            if version and library.ahead
            else str(error)
        )
        return BackendStatus(library.name, False, version, (), reason)


open_model = partial(open_engine, TENSORRT)
status = partial(library_status, TENSORRT)


def _opened(
    library: Library,
    runtime: Any,
    said: Any,
    model: bytes,
    gpu: GpuInfo,
    profile: Profile | None,
) -> Any:
    """Return the opened engine; one from the cache that does not open here is built again."""
    for _ in range(2):
        engine = runtime.deserialize_cuda_engine(
            engine_of(library, model, gpu.capability, profile, gpu)
        )
        if engine is not None:
            return engine
        forget_engine(library, model, gpu.capability, profile)
    raise BackendError(
        f"{library.name} cannot open its engine for {gpu.name} ({gpu.capability}): {_why(said)}"
    )


def _info(trt: Any, engine: Any, name: str) -> TensorInfo:
    if engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
        raise BackendError(
            f"{name} must be float32, got {engine.get_tensor_dtype(name).name}"
        )
    return TensorInfo(
        name,
        tuple(
            int(size) if size >= 0 else None for size in engine.get_tensor_shape(name)
        ),
    )


def _shown(here: tuple[GpuInfo, ...]) -> tuple[str, ...]:
    """Return the devices as they are asked for, with their names: ``GPU.1 (NVIDIA L4, sm89)``."""
    return tuple(
        f"GPU{f'.{n}' if n else ''} ({gpu.name}, {gpu.capability})"
        for n, gpu in enumerate(here)
    )


def _why(said: Any) -> str:
    return said.errors[-1] if said.errors else "it does not say why"
