"""A worker's end and the model process's end of a conversation, both here: answers, errors, ways to be cut off."""

from __future__ import annotations

import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest

from spine_engine.backends.base import Device, TensorInfo
from spine_engine.errors import BackendError, BundleError, OutputError
from spine_engine.scheduler.batching import client
from spine_engine.scheduler.batching import server as models_room
from spine_engine.scheduler.batching.batcher import BatchPolicy
from spine_engine.scheduler.batching.client import ServedBackend
from spine_engine.scheduler.batching.shared_arrays import (
    ArrayChannel,
    connected,
    listening,
)
from spine_engine.scheduler.task import CompanionLostError

pytestmark = pytest.mark.skipif(
    sys.platform != "linux",
    reason="models are shared on Linux only: not shown elsewhere",
)


class Squares:
    """Squares; raises on 1, has no memory for 4, and says a great deal on 6."""

    inputs = (TensorInfo("x", (None, None)),)
    outputs = (TensorInfo("y", (None, None)),)
    device = Device("fake", "GPU.0", "f16")

    def run(self, inputs):
        x = inputs["x"]
        if (x[:, 0] == 1).any():
            raise FloatingPointError("one")
        if (x[:, 0] == 4).any():
            raise MemoryError
        if (x[:, 0] == 6).any():
            raise ValueError("long " * 1000)
        return {"y": x * x}

    def close(self):
        pass


class Server:
    """Answers at an address from threads of this process, as the model process does, until told otherwise."""

    def __init__(self):
        self.address = f"spine-test-{os.getpid()}-{id(self)}"
        self.opened, self.connections, self.backends = [], [], []
        self.generation = 1
        self.converse = models_room._Connections(self.open, 1).converse
        self._listener = listening(self.address)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def open(self, role):
        self.opened.append(role)
        if role == "nothing":
            raise BundleError("this bundle has no nothing")
        if role == "tpu":
            raise BackendError("no TPU here")
        if role == "odd":
            raise OutputError("of a kind that no worker expects")
        if role == "broken":
            raise ZeroDivisionError("a fault of ours")
        return Squares(), BatchPolicy(sizes=(1, 2, 4, 8), max_delay_ms=1.0)

    def backend(self, role="squares"):
        """A worker's end of a conversation about a model."""
        self.backends.append(ServedBackend(self.address, role))
        return self.backends[-1]

    def restart(self):
        """Drop all conversations, as a process that dies does; another takes its place."""
        former = list(self.connections)
        self.generation += 1
        self.converse = models_room._Connections(self.open, self.generation).converse
        for connection in former:
            connection.shutdown(socket.SHUT_RDWR)

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection.dup())
            self._threads.append(
                threading.Thread(target=self.converse, args=(connection,), daemon=True)
            )
            self._threads[-1].start()

    def close(self):
        """Hang up on everyone and wait for the threads, so that no socket is left to another test."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for connection in self.connections:
            with suppress(OSError):  # the other side has hung up
                connection.shutdown(socket.SHUT_RDWR)
        for each in (*self.backends, *self.connections):
            each.close()
        for thread in self._threads[1:]:
            thread.join(60)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def ask(backend, *values):
    return (
        backend.run({"x": np.array([[value] for value in values], np.float32)})["y"]
        .ravel()
        .tolist()
    )


def test_a_shared_model_answers_like_one_of_ones_own(server):
    backend = server.backend()
    assert (backend.inputs, backend.outputs, backend.device) == (
        Squares.inputs,
        Squares.outputs,
        Squares.device,
    )
    assert ask(backend, 5, 7) == [25, 49]
    first = backend.run({"x": np.full((3, 2), 8, np.float32)})["y"]
    assert ask(backend, 7) == [49]
    assert first.tolist() == [[64, 64]] * 3, "what came before is the caller's own"
    assert first.flags.writeable
    backend.close()
    assert ask(backend, 8) == [64], "it connects again"
    backend.close()
    backend.close()
    assert server.opened == ["squares"], "a model is opened once"


def test_what_the_model_would_refuse_is_refused_before_it_is_sent(server, monkeypatch):
    backend = server.backend()
    monkeypatch.setattr(ArrayChannel, "send", lambda *_: pytest.fail("sent"))
    with pytest.raises(ValueError, match=r"takes \['x'\], got \['z'\]"):
        backend.run({"z": np.zeros((1, 1), np.float32)})
    with pytest.raises(ValueError, match="float32, got float64"):
        backend.run({"x": np.zeros((1, 1))})


def test_an_error_of_the_model_belongs_to_the_one_who_asked(server):
    backend, other = server.backend(), server.backend()
    with pytest.raises(
        RuntimeError, match=r"^the squares raised FloatingPointError: one$"
    ):
        ask(backend, 1)
    with pytest.raises(MemoryError):
        ask(backend, 4)
    with pytest.raises(RuntimeError, match="ValueError: long long") as caught:
        ask(backend, 6)
    assert len(str(caught.value)) == len("the squares raised ") + 1000
    assert ask(backend, 9) == [81], "the conversation goes on"
    assert ask(other, 10) == [100]


@pytest.mark.parametrize(
    ("role", "error", "message"),
    [
        ("nothing", BundleError, "^this bundle has no nothing$"),
        ("tpu", BackendError, "^no TPU here$"),
        ("odd", BackendError, "^of a kind that no worker expects$"),
        (
            "broken",
            BackendError,
            r"^the model cannot be opened: ZeroDivisionError\('a fault of ours'\)$",
        ),
    ],
)
def test_a_model_that_cannot_be_had_is_refused_as_it_would_be_at_home(
    server, role, error, message
):
    for _ in range(2):
        with pytest.raises(error, match=message):
            server.backend(role)
    assert server.opened == [role, role], (
        "what failed is tried again for the next who asks"
    )


def test_many_workers_ask_at_once_and_each_gets_its_own(server):
    backends = [server.backend() for _ in range(4)]
    asked = [[(10 * number + k) / 2 for k in range(20)] for number in (1, 2, 3, 5)]

    def all_of(backend, values):
        return [ask(backend, value)[0] for value in values if value != 6]

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(all_of, backends, asked))
    assert answers == [[value**2 for value in values if value != 6] for values in asked]
    assert server.opened == ["squares"]


def test_a_process_that_is_replaced_between_two_questions_is_not_noticed(server):
    backend = server.backend()
    server.restart()
    assert ask(backend, 5) == [25]
    assert len(server.opened) == 2


def test_a_death_during_a_question_names_the_process_that_died(server, monkeypatch):
    server.restart()  # the second process
    backend = server.backend()
    for generation in (2, 3):
        with monkeypatch.context() as patch:
            patch.setattr(
                "spine_engine.scheduler.batching.batcher.Batcher.run",
                lambda *_: server.restart(),
            )
            with pytest.raises(CompanionLostError) as caught:
                ask(backend, 5)
        assert caught.value.generation == generation
        assert ask(backend, 5) == [25], "the next question goes to the one in its place"


def test_a_process_that_hangs_up_while_it_is_greeted_is_gone(server):
    server.converse = lambda connection: (
        connection.shutdown(socket.SHUT_RDWR),
        connection.close(),
    )
    with pytest.raises(CompanionLostError) as caught:
        server.backend()
    assert caught.value.generation == 0


def test_a_worker_waits_for_the_process_that_takes_a_dead_ones_place(
    server, monkeypatch
):
    tries, slept = [], []

    def late(address):
        tries.append(address)
        if len(tries) < 4:
            raise ConnectionRefusedError
        return connected(address)

    monkeypatch.setattr(client, "connected", late)
    monkeypatch.setattr(
        client, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=slept.append)
    )
    backend = server.backend()
    assert ask(backend, 5) == [25]
    assert slept == [0.02] * 3


def test_a_half_sent_request_ends_only_its_own_conversation(server):
    channel = ArrayChannel(connected(server.address))
    channel.send({"role": "squares"})
    channel.receive()
    channel.close()
    silent = ArrayChannel(connected(server.address))
    silent.close()  # before it has said which model
    backend = server.backend()
    assert ask(backend, 5) == [25]
    backend.close()


def test_other_users_are_not_let_in(server, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 123456)
    with pytest.raises(PermissionError):
        connected(server.address)
