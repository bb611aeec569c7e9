"""A backend with no runtime and no weights: right shapes, plausible values, the same bytes every time.

Its "model" is a JSON text: ``{"inputs": [{"name", "shape"}], "outputs": [{"name", "shape"}]}`` with null for a
dimension that may vary; an output takes such a dimension from the same axis of the first input.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence

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
from spine_engine.errors import BackendError


class FakeBackend:
    """Answers each item of a batch from a checksum of that item alone; rows of ``probabilities`` sum to 1."""

    def __init__(
        self, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.device = Device("fake", "CPU", "f32")
        self._open = True

    def run(
        self, inputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float32]]:
        """Return made-up outputs."""
        if not self._open:
            raise ValueError("this model has been closed")
        check_inputs(self.inputs, inputs)
        first = inputs[self.inputs[0].name]
        seeds = [zlib.crc32(item.tobytes()) for item in first]
        return {
            info.name: self._answer(info, first.shape, seeds) for info in self.outputs
        }

    def close(self) -> None:
        """Refuse to run from now on."""
        self._open = False

    def _answer(
        self, info: TensorInfo, like: tuple[int, ...], seeds: list[int]
    ) -> NDArray[np.float32]:
        shape = [
            like[axis] if size is None else size for axis, size in enumerate(info.shape)
        ]
        items = [
            np.random.default_rng(seed).random(shape[1:], np.float32) for seed in seeds
        ]
        values = np.stack(items)
        return (
            values / values.sum(axis=-1, keepdims=True)
            if info.name == "probabilities"
            else values
        )


def open_model(
    model: bytes, device: str, precision: str, threads: int, profile: Profile | None
) -> Backend:
    """Make a fake with the inputs and outputs that ``model`` lists."""
    if device != "CPU" or precision not in ("auto", "f32"):
        raise BackendError(
            f"the fake backend pretends to run on CPU in f32, not on {device} in {precision}"
        )
    try:
        listing = json.loads(model)
        tensors = [
            [TensorInfo(t["name"], tuple(t["shape"])) for t in listing[side]]
            for side in ("inputs", "outputs")
        ]
    except (ValueError, KeyError, TypeError):
        raise BackendError(
            'the fake backend wants a JSON text with "inputs" and "outputs", not a real model'
        ) from None
    return FakeBackend(*tensors)


def status() -> BackendStatus:
    """Return that the fake is there, as it always is."""
    return BackendStatus("fake", True, "", ("CPU",), "")
