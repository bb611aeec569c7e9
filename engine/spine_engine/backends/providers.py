"""The execution providers of ONNX Runtime that models may be run on, and what each is told."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from spine_engine.backends.base import Profile
from spine_engine.errors import BackendError

INSTALL: Final = 'pip install "spine-mri-engine[onnxruntime]"'
_GPU_PACKAGE: Final = (
    'pip uninstall onnxruntime && pip install "spine-mri-engine[cuda]"'
)

ON_THE_PROCESSOR: Final = frozenset(
    {
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
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)
"""Operations that compute shapes and indices: ONNX Runtime leaves those on the processor on purpose (its providers'
``GetCpuPreferredNodes``). Anything else there is what the GPU's provider did not take."""


@dataclass(frozen=True, kw_only=True)
class Provider:
    """How a device is had.

    Attributes:
        name: ONNX Runtime's name of the provider.
        install: the line that installs it.
        options: its options, from the GPU's number and the precision of the file.
        shapes: what its options for the smallest, usual and largest shape begin with, where it wants to know them.
        keeps: whether it keeps compiled engines in a folder.
        plugin: whether it is a package of its own that has to be registered.
    """

    name: str
    install: str
    options: Callable[[int, str], dict[str, str]]
    shapes: str = ""
    keeps: bool = False
    plugin: bool = False

    def all_options(
        self,
        index: int,
        precision: str,
        profile: Profile | None,
        input_name: str,
        folder: Path | None,
    ) -> dict[str, str]:
        """Return its options for one model: shapes of its one input, and a folder of ours for what it keeps."""
        options = self.options(index, precision)
        if profile is not None and self.shapes:
            for which, shape in (
                ("min", profile.smallest),
                ("opt", profile.usual),
                ("max", profile.largest),
            ):
                options[f"{self.shapes}_{which}_shapes"] = (
                    f"{input_name}:{'x'.join(map(str, shape))}"
                )
        if folder is not None and self.keeps:
            options |= {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": str(folder),
            }
            options |= {
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": str(folder),
            }
        return options


def _processor(index: int, precision: str) -> dict[str, str]:
    return {}


def _cuda(index: int, precision: str) -> dict[str, str]:
    # no TF32, or f32 would not be f32; an exhaustive search picks by timing, not the same at every start
    return {
        "device_id": str(index),
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
    }


def _tensorrt(index: int, precision: str) -> dict[str, str]:
    typed = {
        "trt_fp16_enable": str(int(precision == "f16")),
        "trt_int8_enable": str(int(precision == "int8")),
    }
    return {"device_id": str(index), **typed}


PROVIDERS: Final = {
    "CPU": Provider(name="CPUExecutionProvider", install=INSTALL, options=_processor),
    "CUDA": Provider(name="CUDAExecutionProvider", install=_GPU_PACKAGE, options=_cuda),
    "TENSORRT": Provider(
        name="TensorrtExecutionProvider",
        install=f'{_GPU_PACKAGE} "tensorrt<11" (the provider is linked with TensorRT 10)',
        options=_tensorrt,
        shapes="trt_profile",
        keeps=True,
    ),
    "NVTENSORRTRTX": Provider(
        name="NvTensorRTRTXExecutionProvider",
        install=f"pip uninstall onnxruntime-gpu && {INSTALL} onnxruntime-ep-nv-tensorrt-rtx",
        options=_processor,
        shapes="nv_profile",
        plugin=True,
    ),
}
"""By the name of the device that they are asked for with."""


def is_here(runtime: Any, provider: Provider) -> bool:
    """Whether this installation has the provider; a plug-in has to find a GPU, too."""
    return provider.name in runtime.get_available_providers() or bool(
        plugin_devices(runtime, provider)
    )


def plugin_devices(runtime: Any, provider: Provider) -> list[Any]:
    """Return the devices that a plug-in provider offers, after registering it."""
    if provider.plugin:
        _register(runtime)
    return [
        device for device in runtime.get_ep_devices() if device.ep_name == provider.name
    ]


@cache
def _register(runtime: Any) -> None:
    """Register the plug-in of TensorRT-RTX, once in a process; without its package nothing happens.

    Raises:
        BackendError: it is installed, but does not load.
    """
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as plugin
    except ImportError:
        return
    try:
        runtime.register_execution_provider_library(
            plugin.get_ep_name(), plugin.get_library_path()
        )
    except Exception as error:  # noqa: BLE001 - the runtime's exceptions have no common base of their own
        why = str(error).splitlines()[0]
        raise BackendError(
            f"onnxruntime-ep-nv-tensorrt-rtx is installed but does not load: {why}"
        ) from None


@cache
def load_gpu_libraries(runtime: Any) -> None:
    """Load CUDA and cuDNN from their Python packages, where they are; what is missing the session will name."""
    with contextlib.redirect_stdout(
        io.StringIO()
    ):  # it prints about each one it does not find
        runtime.preload_dlls()
