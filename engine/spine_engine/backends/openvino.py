"""OpenVINO: the default backend, and on CPUs the fastest (3-7 times ONNX Runtime on the models measured)."""

from __future__ import annotations

import io
import platform
import sys
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any, Final, cast

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
from spine_engine.backends.cache import (
    cache_key,
    drop_compiled,
    load_compiled,
    store_compiled,
)
from spine_engine.backends.processor import has_native_bf16, instruction_sets
from spine_engine.errors import BackendError

INSTALL = "pip install openvino"

_UNWRITTEN: Final = np.uint32(0x7FC0DEAD)
"""A NaN that no computation gives: what outputs hold before a call."""

Sizes = tuple[tuple[int, int], ...]


class OpenVinoBackend:
    """A model compiled by OpenVINO, one stream, one request. See ``Backend`` for the contract.

    Args:
        compiled: the model.
        device: what it runs on.
        singly: it is compiled for one item, and a batch is run item by item.
    """

    def __init__(self, compiled: Any, device: Device, *, singly: bool = False) -> None:
        self.inputs = tuple(_info(port, singly) for port in compiled.inputs)
        self.outputs = tuple(_info(port, singly) for port in compiled.outputs)
        self.device = device
        self._singly = singly
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    def run(
        self, inputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float32]]:
        """Run the model on the caller's arrays, without copying them; the outputs are fresh copies."""
        if self._request is None:
            raise ValueError("this model has been closed")
        check_inputs(self.inputs, inputs)
        if not self._singly:
            return self._infer(inputs)
        (count,) = {len(array) for array in inputs.values()}
        if count == 1:
            return self._infer(inputs)
        items = [
            self._infer({name: array[i : i + 1] for name, array in inputs.items()})
            for i in range(count)
        ]
        return {
            info.name: np.concatenate([item[info.name] for item in items])
            for info in self.outputs
        }

    def _infer(
        self, inputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float32]]:
        import openvino

        for info, port in zip(self.inputs, self._compiled.inputs, strict=True):
            try:
                self._request.set_tensor(
                    port, openvino.Tensor(inputs[info.name], shared_memory=True)
                )
            except RuntimeError:  # a size beyond the profile
                wanted, got = port.get_partial_shape(), inputs[info.name].shape
                raise ValueError(
                    f"input {info.name} must have the shape {wanted}, got {got}"
                ) from None
        for info in self.outputs:
            self._request.get_tensor(info.name).data.view(np.uint32)[...] = _UNWRITTEN
        try:
            self._request.infer()
        except RuntimeError as error:
            raise (MemoryError() if _short_of_memory(error) else error) from None
        answers = {
            info.name: np.array(
                self._request.get_tensor(info.name).data,
                np.float32,
                order="C",
                copy=True,
            )
            for info in self.outputs
        }
        if any(
            (answer.view(np.uint32) == _UNWRITTEN).any() for answer in answers.values()
        ):
            raise MemoryError  # the runtime says nothing when it lacks the memory to compute
        return answers

    def close(self) -> None:
        """Release the model."""
        self._request = self._compiled = None


def open_model(
    model: bytes, device: str, precision: str, threads: int, profile: Profile | None
) -> Backend:
    """Compile ``model``, or take it compiled from the cache, and check that it runs as asked.

    An int8 model carries its precision in itself; what it leaves wide runs as ``auto`` would. On a CPU a model is
    compiled for one item, of the sizes in its profile alone: what is known of a size makes it faster
    (docs/decisions/0009-export.md).
    """
    core, version = _core()
    if device not in core.available_devices:
        raise BackendError(
            f"openvino has no device {device!r} here, only {', '.join(core.available_devices)}"
        )
    wanted = (
        ("bf16" if has_native_bf16() else "f32")
        if precision in ("auto", "int8")
        else precision
    )
    if device == "CPU" and (
        wanted == "f16" or (wanted == "bf16" and not has_native_bf16())
    ):
        raise BackendError(
            f"this processor does not compute in {wanted}: ask for the precision f32 or auto"
        )
    options = {
        "INFERENCE_PRECISION_HINT": wanted,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # workers of one thread each would all be pinned to the same core
        "EXECUTION_MODE_HINT": "PERFORMANCE",
    }
    item = _item_sizes(profile) if device == "CPU" else None
    compiled = _compile(core, version, model, device, options, item)
    runs_on = [str(name) for name in compiled.get_property("EXECUTION_DEVICES")]
    runs_in = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
    if runs_on != [device] or runs_in != wanted:
        raise BackendError(
            f"asked openvino for {device} in {wanted}, got {'+'.join(runs_on)} in {runs_in}"
        )
    found = Device("openvino", device, "int8" if precision == "int8" else runs_in)
    return OpenVinoBackend(
        compiled,
        found,
        singly=item is not None and _is_for(item, compiled.inputs[0], batch=1),
    )


def status() -> BackendStatus:
    """Return OpenVINO's version and devices, or why it cannot be used."""
    try:
        core, version = _core()
    except BackendError as error:
        return BackendStatus("openvino", False, "", (), str(error))
    return BackendStatus("openvino", True, version, tuple(core.available_devices), "")


def _item_sizes(profile: Profile | None) -> Sizes | None:
    """Return the smallest and the largest size of each dimension of one item, where a profile has batches of them."""
    if profile is None or profile.smallest[0] != 1 or profile.largest[0] == 1:
        return None
    return tuple(zip(profile.smallest[1:], profile.largest[1:], strict=True))


def _is_for(item: Sizes, port: Any, *, batch: int | None) -> bool:
    """Whether an input has this batch and beside it those sizes fixed that every such item shares."""
    return _shape(port) == (
        batch,
        *(low if low == high else None for low, high in item),
    )


def _compile(
    core: Any,
    version: str,
    model: bytes,
    device: str,
    options: dict[str, Any],
    item: Sizes | None,
) -> Any:
    flags = " ".join(f"{name}={value}" for name, value in sorted(options.items()))
    machine = f"{platform.machine()} {' '.join(sorted(instruction_sets()))}"
    hardware = str(core.get_property(device, "FULL_DEVICE_NAME"))
    key = cache_key(
        model, "openvino", version, device, hardware, machine, flags, str(item)
    )
    blob = load_compiled(key)
    if blob is not None:
        try:
            return core.import_model(io.BytesIO(blob), device, options)
        except RuntimeError:
            drop_compiled(key)
    try:
        network = core.read_model(model)
        if item is not None and _is_for(item, network.inputs[0], batch=None):
            network.reshape([1, *item])
        compiled = core.compile_model(network, device, options)
    except RuntimeError as error:
        if _short_of_memory(error):
            raise MemoryError from None
        raise BackendError(
            f"openvino cannot load the model: {_last_line(error)}"
        ) from None
    store_compiled(key, compiled.export_model().getvalue())
    return compiled


def without_telemetry() -> None:
    """Keep this process from loading openvino-telemetry; to be called before openvino is first imported.

    As it is imported, OpenVINO looks up an analytics host and writes a client id into the user's home. Where the
    package cannot be imported, OpenVINO puts a stub of its own in its place; an entry of ``None`` makes an import fail.
    """
    cast("dict[str, ModuleType | None]", sys.modules)["openvino_telemetry"] = None


@cache
def _core() -> tuple[Any, str]:
    """Return the runtime, one in each process, and its version."""
    without_telemetry()
    try:
        import openvino
    except ImportError as error:
        raise BackendError(f"openvino is not installed ({error}): {INSTALL}") from None
    return openvino.Core(), str(openvino.__version__).split("-")[0]


def _info(port: Any, singly: bool) -> TensorInfo:
    if str(port.get_element_type().get_type_name()) != "f32":
        raise BackendError(
            f"{port.get_any_name()} must be float32, got {port.get_element_type().get_type_name()}"
        )
    shape = _shape(port)
    return TensorInfo(str(port.get_any_name()), (None, *shape[1:]) if singly else shape)


def _shape(port: Any) -> tuple[int | None, ...]:
    return tuple(
        None if size.is_dynamic else int(size.get_length())
        for size in port.get_partial_shape()
    )


def _short_of_memory(error: RuntimeError) -> bool:
    """Whether the runtime failed for want of memory, which it says in words: a failed allocation, or oneDNN's own."""
    return any(
        word in str(error)
        for word in ("bad_alloc", "allocat", "out of memory", "out_of_memory")
    )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
