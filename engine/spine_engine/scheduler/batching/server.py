"""One process that owns the models and answers every worker in batches: the shape for GPUs.

The workers read, cut and decide as ever, each on its own core; only ``Backend.run`` goes to this process, where the
requests of all studies in flight become few calls. A call that raises costs the request that is to blame; a call that
does not come back, or takes the process down, ends it: the studies in flight are tried again, one alone at a time, with
a new one.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from spine_engine.backends.base import Backend
from spine_engine.errors import BackendError, SpineEngineError
from spine_engine.scheduler.batching.batcher import Batcher, BatchPolicy
from spine_engine.scheduler.batching.shared_arrays import (
    ArrayChannel,
    connected,
    listening,
    own_peer,
)
from spine_engine.scheduler.process import (
    START_TIMEOUT_S,
    no_main_module,
    peak_memory_bytes,
    prepare_process,
)

OpenModel = Callable[[str], tuple[Backend, BatchPolicy]]
"""Opens the model of a role, in the model process; what it raises as ``SpineEngineError`` is raised in the worker."""

ModelsFactory = Callable[[], OpenModel]
"""Makes that function inside the model process; picklable."""

_WATCH_S: Final = 1.0
"""How often the process looks whether a call of a model hangs."""
_FULL_S: Final = 0.1
"""How long it waits before it accepts again when it has too many files open."""


class ModelServer:
    """The parent's handle on the model process: started when first needed, replaced when it has died.

    Args:
        factory: makes the opener of models inside the process.
        call_timeout_s: a call of a model that takes longer is hung, and ends the process.

    Attributes:
        address: where workers find it, the same for every process that takes its place.
        generation: how many processes there have been.
    """

    def __init__(self, factory: ModelsFactory, *, call_timeout_s: float) -> None:
        self._factory = factory
        self._call_timeout_s = call_timeout_s
        self._process: Any = None
        self._peak_bytes = 0
        self._changing = threading.Lock()
        self._closed = threading.Event()
        self.address = f"spine-engine-{secrets.token_hex(16)}"
        self.generation = 0

    def ensure(self, *, gone: int | None = None) -> None:
        """Start the process unless it runs; return when it can be asked.

        Args:
            gone: the one that is known to be of no use any more, and is to be replaced.

        Raises:
            BackendError: it does not start.
        """
        with self._changing:
            alive = self._process is not None and self._process.is_alive()
            if not alive or gone == self.generation:
                self._end()
                if (
                    not self._start() and not self._start()
                ):  # one death while starting may be bad luck, two are not
                    raise BackendError(
                        "the process of the models died twice while it started; run 'spine-engine doctor'"
                    )

    def _start(self) -> bool:
        """Start a process; return whether it can be asked."""
        self.generation += 1
        context = multiprocessing.get_context("spawn")
        serving = (self.address, self._factory, self._call_timeout_s, self.generation)
        self._process = context.Process(
            target=_serve, args=serving, name="models", daemon=True
        )
        with no_main_module():
            self._process.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._closed.is_set():
            try:
                connected(self.address).close()
                return True
            except OSError:
                if not self._process.is_alive() or time.monotonic() > deadline:
                    break
                time.sleep(0.01)
        self._end()
        return False

    @property
    def peak_memory_bytes(self) -> int:
        """The highest resident memory that any of its processes has had, of those that could still be asked."""
        process = self._process
        if process is not None:
            self._peak_bytes = max(self._peak_bytes, peak_memory_bytes(process.pid))
        return self._peak_bytes

    def close(self) -> None:
        """End the process for good, also one that is just starting."""
        self._closed.set()
        with self._changing:
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._peak_bytes = self.peak_memory_bytes  # while it can still be asked
            self._process.kill()
            self._process.join()
            self._process = None


# -- in the model process ----------------------------------------------------------------------------------------------


def _serve(
    address: str, factory: ModelsFactory, call_timeout_s: float, generation: int
) -> None:
    prepare_process()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (hard, hard)
    )  # a worker takes three for each model
    served = _Connections(factory(), generation)
    threading.Thread(target=served.watch, args=(call_timeout_s,), daemon=True).start()
    listener = listening(address)
    while True:
        try:
            connection, _ = listener.accept()
        except (
            OSError
        ):  # too many files open: whoever waits is taken when another has hung up
            time.sleep(_FULL_S)
            continue
        if own_peer(connection):
            threading.Thread(
                target=served.converse, args=(connection,), daemon=True
            ).start()
        else:
            connection.close()


class _Connections:
    """The models opened so far, each with its batcher."""

    def __init__(self, open_model: OpenModel, generation: int) -> None:
        self._open_model = open_model
        self._generation = generation
        self._batchers: dict[str, Batcher] = {}
        self._opening = threading.Lock()

    def converse(self, connection: socket.socket) -> None:
        """Answer one worker until it hangs up: about one model, named in its first message."""
        channel = ArrayChannel(connection)
        try:
            batcher = self._introduced(channel)
            while batcher is not None and (asked := channel.receive()) is not None:
                try:
                    channel.send({}, batcher.run(asked[1]))
                except OSError:
                    raise
                except Exception as error:  # noqa: BLE001 - it is this request's error; its worker is told
                    said = f"{type(error).__name__}: {error}"[:1000]
                    channel.send(
                        {"error": said, "memory": isinstance(error, MemoryError)}
                    )
        except (
            OSError,
            MemoryError,
        ):  # the worker was killed, or what it sent cannot be had: it is told by the end
            pass
        finally:
            channel.close()

    def _introduced(self, channel: ArrayChannel) -> Batcher | None:
        """Open the model that a worker asks for and say what it is; None when it cannot be had."""
        opened = channel.receive()
        if opened is None:
            return None
        try:
            batcher = self._batcher(opened[0]["role"])
        except SpineEngineError as error:
            channel.send({"refused": type(error).__name__, "why": str(error)})
            return None
        except Exception as error:  # noqa: BLE001 - the worker must not take it for the death of this process
            channel.send(
                {
                    "refused": "BackendError",
                    "why": f"the model cannot be opened: {error!r}"[:1000],
                }
            )
            return None
        backend = batcher.backend
        infos = {
            side: [asdict(info) for info in getattr(backend, side)]
            for side in ("inputs", "outputs")
        }
        channel.send(
            {**infos, "device": asdict(backend.device), "generation": self._generation}
        )
        return batcher

    def watch(self, call_timeout_s: float) -> None:
        """End the process when a call of a model takes too long: nothing else can end the call."""
        while True:
            time.sleep(min(_WATCH_S, call_timeout_s / 4))
            for batcher in list(self._batchers.values()):
                since = batcher.busy_since
                if since is not None and time.monotonic() - since > call_timeout_s:
                    os.kill(os.getpid(), signal.SIGKILL)

    def _batcher(self, role: str) -> Batcher:
        with self._opening:
            if role not in self._batchers:
                self._batchers[role] = Batcher(*self._open_model(role))
            return self._batchers[role]
