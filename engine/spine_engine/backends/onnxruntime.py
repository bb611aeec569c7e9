"""ONNX Runtime: runs everywhere on the CPU, and on NVIDIA GPUs by CUDA, TensorRT or TensorRT-RTX."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
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
from spine_engine.backends.cache import cache_key, sealed_folder
from spine_engine.backends.providers import (
    INSTALL,
    ON_THE_PROCESSOR,
    PROVIDERS,
    Provider,
    is_here,
    load_gpu_libraries,
    plugin_devices,
)
from spine_engine.errors import BackendError

PRECISIONS: Final = ("f32", "f16", "int8")
"""What a file may be typed in; ONNX Runtime computes in what the file says."""


class OnnxRuntimeBackend:
    """A session of ONNX Runtime. See ``Backend`` for the contract."""

    def __init__(self, session: Any, device: Device) -> None:
        self.inputs = tuple(_info(node) for node in session.get_inputs())
        self.outputs = tuple(_info(node) for node in session.get_outputs())
        self.device = device
        self._session = session

    def run(
        self, inputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float32]]:
        """Run the model once."""
        if self._session is None:
            raise ValueError("this model has been closed")
        check_inputs(self.inputs, inputs)
        names = [info.name for info in self.outputs]
        return dict(zip(names, self._answers(names, inputs), strict=True))

    def close(self) -> None:
        """Release the session."""
        self._session = None

    def _answers(
        self, names: list[str], inputs: Mapping[str, NDArray[np.float32]]
    ) -> Any:
        return self._session.run(names, dict(inputs))


class BoundBackend(OnnxRuntimeBackend):
    """A session on a GPU whose inputs and outputs are bound: each crosses the bus once, and nothing is looked up."""

    def __init__(self, session: Any, device: Device) -> None:
        super().__init__(session, device)
        self._binding = session.io_binding()

    def close(self) -> None:
        """Release the session."""
        self._binding = None
        super().close()

    def _answers(
        self, names: list[str], inputs: Mapping[str, NDArray[np.float32]]
    ) -> Any:
        binding = self._binding
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name in names:
            binding.bind_output(
                name
            )  # into fresh memory of the host: the shape may change from run to run
        self._session.run_with_iobinding(binding)
        answers = binding.copy_outputs_to_cpu()
        binding.clear_binding_inputs()
        binding.clear_binding_outputs()
        return answers


def open_model(
    model: bytes, device: str, precision: str, threads: int, profile: Profile | None
) -> Backend:
    """Open a session and check that it runs as asked."""
    runtime = _import()
    match = re.fullmatch(r"(\w+?)(?:\.(\d+))?", device)
    provider = PROVIDERS.get(match[1]) if match else None
    if match is None or provider is None or (match[1] == "CPU" and match[2]):
        raise BackendError(
            f"onnxruntime runs on {', '.join(PROVIDERS)} (CUDA.1 is the second GPU), not on {device!r}"
        )
    if precision not in ("auto", *PRECISIONS):
        raise BackendError(
            f"onnxruntime computes in what the file is in, not in {precision}: ask for f32 or auto, or use openvino"
        )
    if not is_here(runtime, provider):
        found = ", ".join(runtime.get_available_providers())
        raise BackendError(
            f"this onnxruntime has no {provider.name}, only {found}: {provider.install}"
        )
    wanted = "f32" if precision == "auto" else precision
    key = cache_key(
        model, "onnxruntime", str(runtime.__version__), device, wanted, repr(profile)
    )
    with sealed_folder(key) if provider.keeps else nullcontext() as folder:
        wishes = _Wishes(provider, int(match[2] or 0), wanted, threads, profile, folder)
        session = _session(runtime, model, wishes)
    opened = OnnxRuntimeBackend if match[1] == "CPU" else BoundBackend
    return opened(session, Device("onnxruntime", device, wanted))


def status() -> BackendStatus:
    """Return ONNX Runtime's version and devices, or why it cannot be used."""
    try:
        runtime = _import()
        devices = tuple(
            device
            for device, provider in PROVIDERS.items()
            if is_here(runtime, provider)
        )
    except BackendError as error:
        return BackendStatus("onnxruntime", False, "", (), str(error))
    return BackendStatus("onnxruntime", True, str(runtime.__version__), devices, "")


def refuse_work_on_the_processor(session: Any, provider: Provider) -> None:
    """Raise unless all of a session's work is on its provider; shapes may be computed on the processor.

    Raises:
        BackendError: naming the operations that are not.
    """
    parts = session.get_provider_graph_assignment_info()
    left = {
        node.op_type
        for part in parts
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
    }
    if left := left - ON_THE_PROCESSOR:
        raise BackendError(
            f"{provider.name} leaves {', '.join(sorted(left))} to the processor: choose another device or backend"
        )


@dataclass(frozen=True)
class _Wishes:
    """How a session is to run: where, in which precision, on how many threads, for which shapes, keeping what where."""

    provider: Provider
    index: int
    precision: str
    threads: int
    profile: Profile | None
    folder: Path | None


def _session(runtime: Any, model: bytes, wishes: _Wishes) -> Any:
    """Return a session with all its work on the provider."""
    provider = wishes.provider
    options = _options(runtime, wishes.threads)
    on_gpu = provider is not PROVIDERS["CPU"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of here is checked below
            if on_gpu:
                load_gpu_libraries(runtime)
                options.add_session_config_entry(
                    "session.record_ep_graph_assignment_info", "1"
                )
            shaped = wishes.profile is not None and provider.shapes
            name = _input_name(runtime, model) if shaped else ""
            chosen = provider.all_options(
                wishes.index, wishes.precision, wishes.profile, name, wishes.folder
            )
            if provider.plugin:
                device = plugin_devices(runtime, provider)[wishes.index]
                options.add_provider_for_devices([device], chosen)
                session = runtime.InferenceSession(model, options, enable_fallback=0)
            else:
                listed = [(provider.name, chosen)]
                session = runtime.InferenceSession(
                    model, options, providers=listed, enable_fallback=0
                )
    except Exception as error:  # noqa: BLE001 - the runtime's exceptions have no common base of their own
        raise BackendError(
            f"onnxruntime cannot load the model: {str(error).splitlines()[0]}"
        ) from None
    if session.get_providers()[0] != provider.name:
        why = f"its libraries or the GPU are missing: {provider.install}"
        raise BackendError(
            f"asked onnxruntime for {provider.name}, got {session.get_providers()[0]}: {why}"
        )
    if on_gpu:
        refuse_work_on_the_processor(session, provider)
    return session


def _options(runtime: Any, threads: int) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    return options


def _input_name(runtime: Any, model: bytes) -> str:
    """Return the name of a model's one input, for the options that must be said before it is opened."""
    options = _options(runtime, 1)
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return str(
        runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        .get_inputs()[0]
        .name
    )


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"onnxruntime is not installed ({error}): {INSTALL}"
        ) from None
    return onnxruntime


def _info(node: Any) -> TensorInfo:
    if node.type != "tensor(float)":
        raise BackendError(f"{node.name} must be float32, got {node.type}")
    return TensorInfo(
        str(node.name),
        tuple(size if isinstance(size, int) else None for size in node.shape),
    )
