"""The runtimes that execute models, behind one protocol. Each is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol, cast, get_args

from spine_engine.backends.base import Backend, Device, Profile, TensorInfo
from spine_engine.backends.external import refuse_external_data
from spine_engine.errors import BackendError

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendStatus",
    "Device",
    "AskedPrecision",
    "Profile",
    "TensorInfo",
    "available_backends",
    "open_backend",
]

AskedPrecision = Literal["auto", "bf16", "f16", "f32", "int8"]
"""What a model computes in. OpenVINO is told, and takes ``auto`` for bf16 where the processor computes in it natively,
else f32. int8, and every precision elsewhere, is a property of the file and only named: ``auto`` is then f32, and bf16
is refused."""

BACKENDS = ("openvino", "onnxruntime", "tensorrt", "tensorrt-rtx", "fake")
"""The backends by name, the default first; each is the module of its name, with ``open_model`` and ``status``."""


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can be used here: its version and devices, or the reason and the line that installs it."""

    name: str
    available: bool
    version: str
    devices: tuple[str, ...]
    reason: str


class _Runtime(Protocol):
    """What each backend's module offers."""

    open_model: Callable[[bytes, str, str, int, Profile | None], Backend]
    status: Callable[[], BackendStatus]


def open_backend(
    model: Path | bytes,
    *,
    name: str = "openvino",
    device: str = "CPU",
    precision: AskedPrecision = "auto",
    threads: int = 1,
    profile: Profile | None = None,
) -> Backend:
    """Load an ONNX model into a runtime, on the device and in the precision asked for.

    Args:
        model: the model, or the file that holds it.
        name: one of ``BACKENDS``.
        device: the runtime's name of the device, in any case; it is used, or the call fails.
        precision: what the model computes in; see ``AskedPrecision``. Inputs and outputs are float32 always.
        threads: how many processor threads one ``run`` may use.
        profile: the input shapes to prepare for where the runtime specialises; a model of fixed shape needs none.

    Raises:
        BackendError: the runtime is not installed, has no such device or precision, or cannot read the model; the
            model keeps weights in other files.
    """
    if name not in BACKENDS:
        raise BackendError(
            f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}"
        )
    if precision not in get_args(AskedPrecision):
        raise BackendError(
            f"unknown precision {precision!r}: choose one of {', '.join(get_args(AskedPrecision))}"
        )
    if threads < 1:
        raise BackendError(f"threads must be at least 1, got {threads}")
    try:
        content = model.read_bytes() if isinstance(model, Path) else model
    except OSError as error:
        raise BackendError(
            f"cannot read the model {error.filename}: {error.strerror}"
        ) from None
    if name != "fake":  # whose models are no ONNX
        refuse_external_data(content)
    return _runtime(name).open_model(
        content, device.upper(), precision, threads, profile
    )


def available_backends() -> tuple[BackendStatus, ...]:
    """Return the state of each backend on this machine, in the order of ``BACKENDS``."""
    return tuple(_runtime(name).status() for name in BACKENDS)


def _runtime(name: str) -> _Runtime:
    return cast(
        _Runtime, import_module(f"spine_engine.backends.{name.replace('-', '_')}")
    )
