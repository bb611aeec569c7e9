"""The one seam between the engine and the runtimes that execute ONNX models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TensorInfo:
    """Name and shape of a model's input or output; ``None`` marks a dimension that may vary."""

    name: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Device:
    """What a model really runs on, as the runtime reports it after loading."""

    backend: str
    device: str
    precision: str


class Backend(Protocol):
    """A loaded model.

    - Inputs and outputs are C-contiguous float32 arrays by tensor name; shapes follow ``inputs`` and ``outputs``.
    - ``run`` may not keep or change its inputs; the arrays it returns belong to the caller.
    - One object serves one thread at a time; open one for each worker.
    - The same inputs give the same bytes on one machine with one precision.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    device: Device

    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Run the model once. Raises ``ValueError`` when names, dtype or shapes are not the model's."""
        ...

    def close(self) -> None:
        """Release the model. Closing twice is allowed."""
        ...


def check_inputs(wanted: tuple[TensorInfo, ...], inputs: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise ``ValueError`` unless ``inputs`` are exactly the model's: names, float32, C-contiguous, shapes."""
    if set(inputs) != {info.name for info in wanted}:
        raise ValueError(f"the model takes {sorted(info.name for info in wanted)}, got {sorted(inputs)}")
    for info in wanted:
        array = inputs[info.name]
        fits = len(array.shape) == len(info.shape) and all(
            size in (None, got) for size, got in zip(info.shape, array.shape, strict=True)
        )
        if not fits or array.size == 0:
            raise ValueError(f"input {info.name} must have the shape {info.shape}, got {array.shape}")
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            raise ValueError(f"input {info.name} must be C-contiguous float32, got {array.dtype}")
