# ruff: noqa: N815 - the names are those of CUDA and TensorRT
"""CUDA's runtime and TensorRT's, pretended in host memory: what is queued happens when the stream is waited for.

An engine takes ``image (n, 2, h, w)`` and gives ``maps (n, 3, h, w)``: the mean of the two channels, times 1, 2 and 3.
A recorded launch reads its context's shape when it is replayed, as a real one may: a context shared by two graphs gives
wrong numbers here, and memory that was never allocated, or was freed, is an error.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from enum import Enum, IntEnum
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np

from spine_engine.backends.base import Profile

NAMES = ("image", "maps")


class CudaError(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorStreamCaptureUnsupported = 900


class PretendedCuda:
    """Stands for the module ``cuda.bindings.runtime``."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, *devices: tuple[str, int, int]) -> None:
        self.devices = devices or (("NVIDIA L4", 8, 9),)
        self.live: dict[int, Any] = {}
        self.hosts: set[int] = set()
        self.errors_cleared = 0
        self.failing: set[str] = set()
        self.sizes: list[int] = []
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launches = 0
        self.refuses_capture = False
        self.room = 1 << 40
        self._recording: list[Callable[[], None]] | None = None
        self.device = -1

    def cudaGetDeviceCount(self):
        return (CudaError.cudaSuccess, len(self.devices))

    def cudaGetDeviceProperties(self, index):
        name, major, minor = self.devices[index]
        return CudaError.cudaSuccess, SimpleNamespace(
            name=name.encode(), major=major, minor=minor
        )

    def cudaSetDevice(self, index):
        self.device = index
        return (CudaError.cudaSuccess,)

    def cudaGetLastError(self):
        self.errors_cleared += 1
        return (CudaError.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags):
        stream = max(self.streams, default=0) + 1
        self.streams[stream] = []
        return CudaError.cudaSuccess, stream

    def cudaStreamDestroy(self, stream):
        del self.streams[stream]
        return (CudaError.cudaSuccess,)

    def cudaMalloc(self, size):
        if size > self.room:
            return CudaError.cudaErrorMemoryAllocation, None
        memory = ctypes.create_string_buffer(
            b"\xff" * size, size
        )  # not a number until written
        self.live[ctypes.addressof(memory)] = memory
        self.sizes.append(size)
        return CudaError.cudaSuccess, ctypes.addressof(memory)

    def cudaMallocHost(self, size):
        error, address = self.cudaMalloc(size)
        if not error:
            self.hosts.add(address)
        return error, address

    def cudaFree(self, address):
        assert address in self.live, "memory of the GPU is freed once"
        assert address not in self.hosts, "memory of the host is freed as such"
        del self.live[address]
        return (CudaError.cudaSuccess,)

    def cudaFreeHost(self, address):
        assert address in self.hosts, "memory of the GPU is freed as such"
        self.hosts.remove(address)
        del self.live[address]
        return (CudaError.cudaSuccess,)

    def owns(self, address, size):
        return any(
            start <= address and address + size <= start + len(m)
            for start, m in self.live.items()
        )

    def on_the_host(self, address):
        return any(
            start <= address < start + len(self.live[start]) for start in self.hosts
        )

    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        sides = {1: (False, True), 2: (True, False)}[kind]
        if not (self.owns(to, size) and self.owns(source, size)):
            return (CudaError.cudaErrorInvalidValue,)
        if (self.on_the_host(to), self.on_the_host(source)) != sides:
            return (CudaError.cudaErrorInvalidValue,)
        self.queue(stream, lambda: ctypes.memmove(to, source, size))
        return (CudaError.cudaSuccess,)

    def queue(self, stream, action):
        (self.streams[stream] if self._recording is None else self._recording).append(
            action
        )

    def cudaStreamSynchronize(self, stream):
        assert self._recording is None, "waiting while recording"
        for action in self.streams[stream]:
            action()
        self.streams[stream] = []
        return (CudaError.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream, mode):
        self._recording = []
        return (CudaError.cudaSuccess,)

    def cudaStreamEndCapture(self, stream):
        recorded, self._recording = self._recording, None
        if self.refuses_capture:
            return CudaError.cudaErrorStreamCaptureUnsupported, None
        return CudaError.cudaSuccess, recorded

    def cudaGraphInstantiate(self, graph, flags):
        self.graphs[id(graph)] = graph
        return CudaError.cudaSuccess, id(graph)

    def cudaGraphDestroy(self, graph):
        return (CudaError.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph):
        del self.graphs[graph]
        return (CudaError.cudaSuccess,)

    def cudaGraphLaunch(self, graph, stream):
        self.launches += 1
        self.streams[stream].extend(self.graphs[graph])
        return (CudaError.cudaSuccess,)


class Kind(Enum):
    INPUT = 1
    OUTPUT = 2


class Type(Enum):
    FLOAT = 0
    HALF = 1


class ComputeCapability(Enum):
    NONE = 0
    CURRENT = 1
    SM75 = 2
    SM89 = 3


class PretendedTensorRt:
    """Stands for the module ``tensorrt`` or ``tensorrt_rtx``."""

    __version__ = "99.1"
    TensorIOMode, DataType, ComputeCapability = Kind, Type, ComputeCapability
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="graph", DISABLED="none")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    class ILogger:
        pass

    def __init__(self, cuda: PretendedCuda) -> None:
        self.cuda = cuda
        self.contexts: list[Any] = []
        self.output_type = Type.FLOAT
        self.depends_on_data = False
        self.fails = False
        self.kernels_given: list[bytes] = []

    def Runtime(self, logger):
        return SimpleNamespace(
            deserialize_cuda_engine=lambda plan: self.open(plan, logger)
        )

    def open(self, plan, logger):
        if not plan.startswith(b"plan"):
            logger.log(SimpleNamespace(name="ERROR"), "this is\nno plan")
            return None
        return PretendedEngine(self, json.loads(plan[4:]))


def plan_of(profile: Profile) -> bytes:
    return (
        b"plan"
        + json.dumps([profile.smallest, profile.usual, profile.largest]).encode()
    )


class PretendedEngine:
    num_io_tensors = 2
    device_memory_size_v2 = 1000

    def __init__(self, trt, shapes) -> None:
        self.trt, self.shapes = trt, shapes

    def get_tensor_name(self, index):
        return NAMES[index]

    def get_tensor_mode(self, name):
        return Kind.INPUT if name == "image" else Kind.OUTPUT

    def get_tensor_dtype(self, name):
        return Type.FLOAT if name == "image" else self.trt.output_type

    def get_tensor_shape(self, name):
        return (-1, 2 if name == "image" else 3, -1, -1)

    def get_tensor_profile_shape(self, name, index):
        return self.shapes

    def create_execution_context(self, given):
        context = PretendedContext(self, given)
        self.trt.contexts.append(context)
        return context

    def create_runtime_config(self):
        config = SimpleNamespace(cache=None)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(
            config, "strategy", strategy
        )
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        config.create_runtime_cache = lambda: PretendedKernels(self.trt)
        return config


class PretendedKernels:
    def __init__(self, trt) -> None:
        self.trt, self.shapes = trt, set()

    def serialize(self):
        return json.dumps(sorted(self.shapes)).encode()

    def deserialize(self, content):
        self.trt.kernels_given.append(content)
        self.shapes = {tuple(shape) for shape in json.loads(content)}
        return True


class PretendedContext:
    def __init__(self, engine, given) -> None:
        self.engine, self.given, self.shape, self.memory = engine, given, None, None
        self.addresses: dict[str, int] = {}

    def set_device_memory(self, address, size):
        assert self.engine.trt.cuda.owns(address, size)
        self.memory = address

    def set_input_shape(self, name, shape):
        self.shape = shape
        smallest, _, largest = self.engine.shapes
        return all(
            a <= n <= b for a, n, b in zip(smallest, shape, largest, strict=True)
        )

    def get_tensor_shape(self, name):
        return (
            -1 if self.engine.trt.depends_on_data else self.shape[0],
            3,
            *self.shape[2:],
        )

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        trt = self.engine.trt
        if (
            trt.fails
            or self.memory is None
            or not self.addresses
            or stream not in trt.cuda.streams
        ):
            return False
        cache = getattr(self.given, "cache", None)
        if cache is not None:
            cache.shapes.add(tuple(self.shape))
        trt.cuda.queue(stream, self.compute)
        return True

    def compute(self):
        out = (self.shape[0], 3, *self.shape[2:])
        image = self.view("image", self.shape)
        self.view("maps", out)[:] = image.mean(1, keepdims=True) * np.arange(
            1, 4, dtype=np.float32
        ).reshape(1, 3, 1, 1)

    def view(self, name, shape):
        address = self.addresses[name]
        assert self.engine.trt.cuda.owns(address, 4 * prod(shape))
        return np.ctypeslib.as_array(
            (ctypes.c_float * prod(shape)).from_address(address)
        ).reshape(shape)
