"""ONNX Runtime on the CPU: runs everywhere, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spine_engine.backends import BackendStatus
from spine_engine.backends.base import Backend, Device, TensorInfo, check_inputs
from spine_engine.errors import BackendError

INSTALL = 'pip install "spine-mri-engine[onnxruntime]"'
_PROVIDERS = {"CPU": "CPUExecutionProvider"}


class OnnxRuntimeBackend:
    """A session of ONNX Runtime. See ``Backend`` for the contract."""

    def __init__(self, session: Any, device: Device) -> None:
        self.inputs = tuple(_info(node) for node in session.get_inputs())
        self.outputs = tuple(_info(node) for node in session.get_outputs())
        self.device = device
        self._session = session

    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Run the model once."""
        if self._session is None:
            raise ValueError("this model has been closed")
        check_inputs(self.inputs, inputs)
        names = [info.name for info in self.outputs]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))

    def close(self) -> None:
        """Release the session."""
        self._session = None


def open_model(model: bytes, device: str, precision: str, threads: int) -> Backend:
    """Open a session and check that it runs as asked."""
    runtime = _import()
    provider = _PROVIDERS.get(device)
    if provider is None:
        raise BackendError(f"the onnxruntime backend runs on {', '.join(_PROVIDERS)} only, got {device!r}")
    if precision not in ("auto", "f32"):
        raise BackendError("onnxruntime computes in f32 on a CPU: ask for the precision f32 or auto, or use openvino")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # noqa: BLE001 - the runtime's exceptions have no common base of their own
        raise BackendError(f"onnxruntime cannot load the model: {str(error).splitlines()[0]}") from None
    if session.get_providers()[0] != provider:
        raise BackendError(f"asked onnxruntime for {provider}, got {session.get_providers()[0]}")
    return OnnxRuntimeBackend(session, Device("onnxruntime", device, "f32"))


def status() -> BackendStatus:
    """Return ONNX Runtime's version, or why it cannot be used."""
    try:
        runtime = _import()
    except BackendError as error:
        return BackendStatus("onnxruntime", False, "", (), str(error))
    return BackendStatus("onnxruntime", True, str(runtime.__version__), tuple(_PROVIDERS), "")


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"onnxruntime is not installed ({error}): {INSTALL}") from None
    return onnxruntime


def _info(node: Any) -> TensorInfo:
    if node.type != "tensor(float)":
        raise BackendError(f"{node.name} must be float32, got {node.type}")
    return TensorInfo(str(node.name), tuple(size if isinstance(size, int) else None for size in node.shape))
