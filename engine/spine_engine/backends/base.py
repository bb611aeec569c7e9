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
    """What a model really runs on, as the runtime reports it after loading.

    ``precision`` is OpenVINO's own word; the other runtimes compute in what the file is, so there it is what the file
    was given as, as bundles name each file's.
    """

    backend: str
    device: str
    precision: str


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The input shapes that a runtime with shape-specialised engines prepares for (TensorRT's optimisation profile).

    Attributes:
        smallest, usual, largest: shapes of the one input; any shape between the outer two runs, the middle one fastest.
        batches: batch sizes at the other dimensions of ``usual`` that recur, ascending: what fixed launches (CUDA
            graphs) are kept for.
    """

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]
    batches: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        shapes = (self.smallest, self.usual, self.largest)
        if (
            len({len(shape) for shape in shapes}) != 1
            or min(self.smallest, default=0) < 1
        ):
            raise ValueError(
                f"a profile is three shapes of the same length with sides of at least 1, got {shapes}"
            )
        if any(
            not low <= middle <= high for low, middle, high in zip(*shapes, strict=True)
        ):
            raise ValueError(
                f"a profile's shapes must ascend: smallest, usual, largest; got {shapes}"
            )
        if list(self.batches) != sorted({*self.batches}) or any(
            not self.smallest[0] <= batch <= self.largest[0] for batch in self.batches
        ):
            raise ValueError(
                f"batches must ascend within {self.smallest[0]}..{self.largest[0]}, got {self.batches}"
            )


class Model(Protocol):
    """What can be asked: a backend, or anything that answers like one, such as the PyTorch model it came from."""

    def run(
        self, inputs: Mapping[str, NDArray[np.float32]]
    ) -> Mapping[str, NDArray[np.float32]]:
        """Run the model once: arrays by tensor name in and out, C-contiguous float32."""
        ...


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

    def run(
        self, inputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float32]]:
        """Run the model once. Raises ``ValueError`` when names, dtype or shapes are not the model's."""
        ...

    def close(self) -> None:
        """Release the model. Closing twice is allowed."""
        ...


def check_inputs(
    wanted: tuple[TensorInfo, ...], inputs: Mapping[str, NDArray[np.float32]]
) -> None:
    """Raise ``ValueError`` unless ``inputs`` are exactly the model's: names, float32, C-contiguous, shapes."""
    if set(inputs) != {info.name for info in wanted}:
        raise ValueError(
            f"the model takes {sorted(info.name for info in wanted)}, got {sorted(inputs)}"
        )
    for info in wanted:
        array = inputs[info.name]
        fits = len(array.shape) == len(info.shape) and all(
            size in (None, got)
            for size, got in zip(info.shape, array.shape, strict=True)
        )
        if not fits or array.size == 0:
            raise ValueError(
                f"input {info.name} must have the shape {info.shape}, got {array.shape}"
            )
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            raise ValueError(
                f"input {info.name} must be C-contiguous float32, got {array.dtype}"
            )
