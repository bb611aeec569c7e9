"""Arrays between two processes of one user: a message over a local socket, the arrays in memory that both have mapped.

Each side owns the memory it writes to and hands it over once, as a file descriptor, and again when it had to grow. No
name appears in any file system, so nothing is left behind when either side dies.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[np.float32]]

MESSAGE_BYTES: Final = 64 * 1024
"""A message holds names and shapes only; a few hundred bytes."""
_ALIGNMENT: Final = 64
"""Arrays begin at multiples of a cache line, which is also what vector loads like best."""
_GROWTH: Final = 1 << 20
"""Memory grows by whole mebibytes, so that slightly larger requests do not each map anew."""


def listening(address: str) -> socket.socket:
    """Return a socket that listens at ``address``, a name in Linux' abstract namespace: no file stands for it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"\0{address}")
    listener.listen(1024)
    return listener


def connected(address: str) -> socket.socket:
    """Return a socket connected to ``address``.

    Raises:
        OSError: nobody listens there, or somebody who is not this user.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(f"\0{address}")
        if not own_peer(connection):
            raise PermissionError(f"{address} belongs to another user")
    except OSError:
        connection.close()
        raise
    return connection


def own_peer(connection: socket.socket) -> bool:
    """Whether the process at the other end belongs to this user: an abstract name has no permissions of its own."""
    _, user, _ = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    )
    return bool(user == os.getuid())


class ArrayChannel:
    """One end of a connection: sends and receives messages with arrays, one at a time, from one thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._own: mmap.mmap | None = None
        self._descriptor = -1
        self._theirs: mmap.mmap | None = None

    @property
    def ended(self) -> bool:
        """Whether the other side has hung up, as far as can be told while no answer is due."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def send(self, message: Mapping[str, Any], arrays: Tensors | None = None) -> None:
        """Send ``message`` and copies of ``arrays``; those sent before are overwritten.

        Raises:
            OSError: the other side is gone.
            MemoryError: there is no memory to share, or there are too many files open.
        """
        places = self._place(arrays or {})
        text = json.dumps({"message": message, "arrays": places}).encode()
        if self._descriptor < 0:
            self._socket.sendall(text)
        else:
            socket.send_fds(self._socket, [text], [self._descriptor])
            self._forget_descriptor()

    def receive(self) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]] | None:
        """Return the next message and views of its arrays, valid until the other side sends again; None at the end.

        Raises:
            OSError: the connection broke.
        """
        text, descriptors, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, 1)
        for descriptor in descriptors:
            try:
                self._theirs = _mapped(descriptor)
            finally:
                os.close(descriptor)
        if not text:
            return None
        content = json.loads(text)
        return content["message"], {
            name: self._view(*place) for name, place in content["arrays"].items()
        }

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
        self._forget_descriptor()

    def _place(self, arrays: Tensors) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Copy the arrays into the memory of this side; return where each begins, and its shape."""
        places, end = {}, 0
        for name, array in arrays.items():
            places[name] = (end, array.shape)
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        own = self._with_room(end)
        for name, array in arrays.items():
            np.copyto(
                np.frombuffer(own, np.float32, array.size, places[name][0]).reshape(
                    array.shape
                ),
                array,
            )
        return places

    def _with_room(self, size: int) -> mmap.mmap:
        """Return memory of at least ``size`` bytes: what there is, or new memory that the other side has yet to map."""
        if self._own is None or len(self._own) < size:
            self._forget_descriptor()
            try:
                self._descriptor = os.memfd_create("spine-engine", os.MFD_CLOEXEC)
                os.ftruncate(self._descriptor, -(-max(size, 1) // _GROWTH) * _GROWTH)
            except OSError as error:
                raise MemoryError(f"no memory to share: {error.strerror}") from None
            self._own = _mapped(self._descriptor)
        return self._own

    def _forget_descriptor(self) -> None:
        """Close the descriptor of the memory written to, once the other side has it; the mapping stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _view(self, start: int, shape: list[int]) -> NDArray[np.float32]:
        assert self._theirs is not None
        count = int(np.prod(shape))
        return np.frombuffer(self._theirs, np.float32, count, start).reshape(shape)


def _mapped(descriptor: int) -> mmap.mmap:
    """Map all of a file in memory.

    Raises:
        MemoryError: it cannot be mapped.
    """
    try:
        return mmap.mmap(descriptor, 0)
    except OSError as error:
        raise MemoryError(f"no memory to share: {error.strerror}") from None
