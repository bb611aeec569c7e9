"""A worker's end of the model process: a ``Backend`` whose model runs elsewhere."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.backends.base import Device, TensorInfo, check_inputs
from spine_engine.errors import BackendError, BundleError
from spine_engine.scheduler.batching.shared_arrays import ArrayChannel, connected
from spine_engine.scheduler.task import CompanionLostError

RECONNECT_S: Final = 2.0
"""A new process listens within half a second on a busy machine; models are opened after that, while workers wait."""

_REFUSALS: Final = {error.__name__: error for error in (BackendError, BundleError)}


class ServedBackend:
    """The model of one role in the model process. See ``Backend`` for the contract."""

    def __init__(self, address: str, role: str) -> None:
        """Connect, and have the model opened if it is not.

        Raises:
            BackendError, BundleError: the model cannot be had.
            CompanionLostError: nothing answers.
        """
        self._address, self._role = address, role
        self._channel: ArrayChannel | None = None
        self._generation = 0
        said = self._connect()
        self.inputs, self.outputs = _infos(said["inputs"]), _infos(said["outputs"])
        self.device = Device(**said["device"])

    def run(
        self, inputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float32]]:
        """Run the model once, in whatever company.

        Raises:
            CompanionLostError: the model process died; the next call connects to the one in its place.
            MemoryError: it had too little memory for this request.
            RuntimeError: the model raised on this request.
        """
        check_inputs(self.inputs, inputs)
        if (
            self._channel is not None and self._channel.ended
        ):  # by a process that died since; another is in its place
            self.close()
        if self._channel is None:
            self._connect()
        assert self._channel is not None
        try:
            self._channel.send({}, inputs)
            answer = self._channel.receive()
        except OSError:
            answer = None
        if answer is None:
            self.close()
            raise CompanionLostError(self._generation)
        message, outputs = answer
        if "error" in message:
            raise (
                MemoryError
                if message["memory"]
                else RuntimeError(f"the {self._role} raised {message['error']}")
            )
        return {name: array.copy() for name, array in outputs.items()}

    def close(self) -> None:
        """Hang up."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _reached(self) -> socket.socket:
        """Connect; where nobody listens, wait a little for the process that takes the place of one that died."""
        deadline = time.monotonic() + RECONNECT_S
        while True:
            try:
                return connected(self._address)
            except OSError:
                if time.monotonic() > deadline:
                    raise CompanionLostError from None
                time.sleep(0.02)

    def _connect(self) -> dict[str, Any]:
        channel = ArrayChannel(self._reached())
        try:
            channel.send({"role": self._role})
            answer = channel.receive()
        except OSError:
            answer = None
        if answer is None:
            channel.close()
            raise CompanionLostError
        said, _ = answer
        if "refused" in said:
            channel.close()
            raise _REFUSALS.get(said["refused"], BackendError)(said["why"])
        self._channel, self._generation = channel, said["generation"]
        return said


def _infos(said: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(info["name"], tuple(info["shape"])) for info in said)
