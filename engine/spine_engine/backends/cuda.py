"""One NVIDIA GPU's stream, buffers and graphs: the few calls of CUDA's runtime that a backend needs."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spine_engine.errors import BackendError

INSTALL = 'pip install "spine-mri-engine[tensorrt]" (cuda-bindings comes with it)'


@dataclass(frozen=True)
class GpuInfo:
    """A GPU of this machine; ``capability`` is its compute capability, written ``sm89``."""

    name: str
    capability: str


@dataclass(frozen=True)
class Buffer:
    """The same float32 numbers twice: ``address`` on the GPU, ``host`` in page-locked memory that it copies from."""

    address: int
    host: NDArray[np.float32]


def gpus() -> tuple[GpuInfo, ...]:
    """Return the GPUs that CUDA shows this process, in its order.

    Raises:
        BackendError: there is none, or its driver or ``cuda-bindings`` is missing.
    """
    cuda = _runtime()
    try:
        count = _done(cuda.cudaGetDeviceCount())
    except BackendError as error:
        raise BackendError(
            f"no NVIDIA GPU can be used here ({error}): install its driver, or choose openvino"
        ) from None
    if not count:
        raise BackendError(
            "there is no NVIDIA GPU here: choose openvino, or look at CUDA_VISIBLE_DEVICES"
        )
    found = []
    for index in range(count):
        properties = _done(cuda.cudaGetDeviceProperties(index))
        found.append(
            GpuInfo(properties.name.decode(), f"sm{properties.major}{properties.minor}")
        )
    return tuple(found)


def choose(index: int) -> None:
    """Make a GPU the calling thread's."""
    _done(_runtime().cudaSetDevice(index))


class Gpu:
    """A GPU with a stream of its own; everything taken from it is freed by ``close``. Serves one thread at a time."""

    def __init__(self, index: int) -> None:
        self._cuda = _runtime()
        self._index = index
        self._addresses: list[int] = []
        self._hosts: list[int] = []
        self._graphs: list[Any] = []
        self.use()
        self._stream: Any = _done(
            self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking)
        )

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it."""
        return int(self._stream)

    def use(self) -> None:
        """Make this the calling thread's GPU."""
        choose(self._index)

    def memory(self, size_bytes: int) -> int:
        """Return the address of new memory on the GPU, aligned to 256 bytes as CUDA's allocations are."""
        address = int(_done(self._cuda.cudaMalloc(max(size_bytes, 1))))
        self._addresses.append(address)
        return address

    def buffer(self, size: int) -> Buffer:
        """Return a new buffer of ``size`` float32 numbers."""
        address = self.memory(4 * size)
        host = int(_done(self._cuda.cudaMallocHost(4 * size)))
        self._hosts.append(host)
        return Buffer(
            address, np.ctypeslib.as_array((ctypes.c_float * size).from_address(host))
        )

    def upload(self, buffer: Buffer, size: int) -> None:
        """Queue the copy of the first ``size`` numbers to the GPU."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        _done(
            self._cuda.cudaMemcpyAsync(
                buffer.address, buffer.host.ctypes.data, 4 * size, kind, self._stream
            )
        )

    def download(self, buffer: Buffer, size: int) -> None:
        """Queue the copy of the first ``size`` numbers from the GPU."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _done(
            self._cuda.cudaMemcpyAsync(
                buffer.host.ctypes.data, buffer.address, 4 * size, kind, self._stream
            )
        )

    def wait(self) -> None:
        """Wait until everything queued is done."""
        _done(self._cuda.cudaStreamSynchronize(self._stream))

    def capture(self, work: Callable[[], None]) -> Any | None:
        """Record what ``work`` queues, without running it, as a graph; None where it cannot be recorded."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _done(self._cuda.cudaStreamBeginCapture(self._stream, mode))
        failed = False
        try:
            work()
        except BackendError:
            failed = True
        error, graph = self._cuda.cudaStreamEndCapture(self._stream)
        if failed or error:
            self._cuda.cudaGetLastError()  # or the next call would report it as its own
            return None
        executable = _done(self._cuda.cudaGraphInstantiate(graph, 0))
        _done(self._cuda.cudaGraphDestroy(graph))
        self._graphs.append(executable)
        return executable

    def launch(self, graph: Any) -> None:
        """Queue a recorded graph."""
        _done(self._cuda.cudaGraphLaunch(graph, self._stream))

    def close(self) -> None:
        """Free everything. Closing twice is allowed."""
        if self._stream is None:
            return
        with contextlib.suppress(BackendError):
            self.use()
        for graph in self._graphs:
            self._cuda.cudaGraphExecDestroy(graph)
        for address in self._addresses:
            self._cuda.cudaFree(address)
        for host in self._hosts:
            self._cuda.cudaFreeHost(host)
        self._cuda.cudaStreamDestroy(self._stream)
        self._stream = None


def _runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendError(
            f"cuda-bindings is not installed ({error}): {INSTALL}"
        ) from None
    return runtime


def _done(result: tuple[Any, ...]) -> Any:
    """Return what a call of CUDA gave, or raise what went wrong: its calls answer (error, values...)."""
    error, *values = result
    if error:
        raise BackendError(f"CUDA reports {error.name}")
    return values[0] if values else None
