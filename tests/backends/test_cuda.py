"""One GPU's stream, buffers and graphs, over a pretended CUDA: sizes, directions, errors, all of it freed."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from pretended_gpu import CudaError, PretendedCuda

from spine_engine.backends import cuda as room
from spine_engine.backends.cuda import Gpu, GpuInfo, choose, gpus
from spine_engine.errors import BackendError


@pytest.fixture
def cuda(monkeypatch):
    cuda = PretendedCuda(
        ("NVIDIA L4", 8, 9), ("NVIDIA T4", 7, 5), ("NVIDIA RTX PRO", 12, 0)
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(runtime=cuda))
    return cuda


def test_every_gpu_is_told_in_cudas_order(cuda):
    assert gpus() == (
        GpuInfo("NVIDIA L4", "sm89"),
        GpuInfo("NVIDIA T4", "sm75"),
        GpuInfo("NVIDIA RTX PRO", "sm120"),
    )


def test_no_gpu_no_driver_and_no_bindings_are_three_different_lines(cuda, monkeypatch):
    monkeypatch.setattr(cuda, "cudaGetDeviceCount", lambda: (CudaError.cudaSuccess, 0))
    with pytest.raises(BackendError) as caught:
        gpus()
    assert (
        str(caught.value)
        == "there is no NVIDIA GPU here: choose openvino, or look at CUDA_VISIBLE_DEVICES"
    )
    monkeypatch.setattr(
        cuda, "cudaGetDeviceCount", lambda: (CudaError.cudaErrorNoDevice, None)
    )
    with pytest.raises(BackendError) as caught:
        gpus()
    assert str(caught.value) == (
        "no NVIDIA GPU can be used here (CUDA reports cudaErrorNoDevice): install its driver, or choose openvino"
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError) as caught:
        gpus()
    assert str(caught.value).startswith("cuda-bindings is not installed (")
    assert str(caught.value).endswith(
        '): pip install "spine-mri-engine[tensorrt]" (cuda-bindings comes with it)'
    )


def test_an_error_of_cuda_is_named(cuda, monkeypatch):
    monkeypatch.setattr(
        cuda, "cudaSetDevice", lambda index: (CudaError.cudaErrorInvalidValue,)
    )
    with pytest.raises(BackendError, match=r"^CUDA reports cudaErrorInvalidValue$"):
        choose(7)


def test_what_is_uploaded_comes_back_in_order_and_only_when_it_is_waited_for(cuda):
    gpu = Gpu(1)
    assert (cuda.device, gpu.stream) == (1, 1)
    first, second = gpu.buffer(6), gpu.buffer(6)
    assert cuda.sizes == [24, 24, 24, 24], "four bytes a number, twice each"
    assert first.host.shape == (6,)
    assert first.host.dtype == np.float32
    first.host[:] = np.arange(6)
    gpu.upload(first, 4)
    gpu.download(type(first)(first.address, second.host), 3)
    second.host[:] = -1
    assert second.host.tolist() == [-1] * 6
    gpu.wait()
    assert second.host.tolist() == [0, 1, 2, -1, -1, -1], "no more than was asked for"
    gpu.close()
    assert (cuda.live, cuda.hosts, cuda.streams) == ({}, set(), {})
    gpu.close()


def test_memory_of_nothing_is_memory_of_one_byte(cuda):
    gpu = Gpu(0)
    gpu.memory(0)
    gpu.memory(7)
    assert cuda.sizes == [1, 7]
    gpu.close()
    assert not cuda.live


def test_the_gpu_is_chosen_again_before_use_and_before_it_is_freed(cuda):
    gpu = Gpu(2)
    choose(0)
    gpu.use()
    assert cuda.device == 2
    choose(0)
    gpu.close()
    assert cuda.device == 2


def test_a_gpu_that_is_lost_is_let_go_of_all_the_same(cuda, monkeypatch):
    gpu = Gpu(0)
    gpu.memory(4)
    monkeypatch.setattr(
        cuda, "cudaSetDevice", lambda index: (CudaError.cudaErrorNoDevice,)
    )
    gpu.close()
    assert not cuda.live


def test_a_recorded_graph_runs_when_it_is_launched_and_not_before(cuda):
    gpu = Gpu(0)
    buffer = gpu.buffer(2)
    buffer.host[:] = 5
    graph = gpu.capture(lambda: gpu.upload(buffer, 2))
    gpu.wait()
    address = np.ctypeslib.as_array(
        (room.ctypes.c_float * 2).from_address(buffer.address)
    )
    assert np.isnan(address).all(), "recorded, not run"
    for _ in range(2):
        gpu.launch(graph)
    gpu.wait()
    assert address.tolist() == [5, 5]
    assert cuda.launches == 2
    gpu.close()
    assert not cuda.graphs


@pytest.mark.parametrize("how", ["cuda refuses", "the work fails"])
def test_what_cannot_be_recorded_is_none_and_its_error_is_taken_away(cuda, how):
    gpu = Gpu(0)

    def fail() -> None:
        raise BackendError("cannot be queued while recording")

    cuda.refuses_capture = how == "cuda refuses"
    assert gpu.capture(fail if how == "the work fails" else lambda: None) is None
    assert cuda.errors_cleared == 1
    assert not cuda.graphs
    gpu.wait()
    gpu.close()


def test_a_fault_in_the_work_that_is_none_of_cudas_is_raised(cuda):
    gpu = Gpu(0)

    def fault() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        gpu.capture(fault)


def test_a_stream_of_its_own_does_not_wait_for_the_default_one(cuda, monkeypatch):
    flags = []
    real = cuda.cudaStreamCreateWithFlags
    monkeypatch.setattr(
        cuda,
        "cudaStreamCreateWithFlags",
        lambda flag: (flags.append(flag), real(flag))[1],
    )
    Gpu(0).close()
    assert flags == [1]
