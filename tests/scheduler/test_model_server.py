"""The handle on the model process, and the process's own end, without one: who is let in, replaced, killed, when."""

from __future__ import annotations

import signal
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from spine_engine.backends.base import Device, TensorInfo
from spine_engine.errors import BackendError
from spine_engine.scheduler.batching import client
from spine_engine.scheduler.batching import server as room
from spine_engine.scheduler.batching.batcher import BatchPolicy
from spine_engine.scheduler.batching.server import ModelServer
from spine_engine.scheduler.batching.shared_arrays import ArrayChannel

pytestmark = pytest.mark.skipif(
    sys.platform != "linux",
    reason="models are shared on Linux only: not shown elsewhere",
)


class Process:
    """Stands for a child: alive until it is killed, or as told."""

    def __init__(self, world, options):
        self.world, self.options = world, options
        self.pid = 1000 + len(world.processes)
        self.started = self.alive = self.joined = self.killed = False

    def start(self):
        self.started, self.alive = True, self.world.starts_alive

    def is_alive(self):
        return self.alive

    def kill(self):
        self.alive, self.killed = False, True

    def join(self):
        self.joined = True


class World:
    """What a handle meets: children, a clock, and an address that answers or does not."""

    def __init__(self):
        self.processes, self.now, self.starts_alive = [], 0.0, True
        self.answers = lambda: True
        self.contexts, self.asked, self.hung_up, self.peaks = [], [], 0, {}

    def get_context(self, method):
        self.contexts.append(method)
        return SimpleNamespace(Process=self.make)

    def make(self, **options):
        self.processes.append(Process(self, options))
        return self.processes[-1]

    def connected(self, address):
        self.asked.append(address)
        if not self.answers():
            raise ConnectionRefusedError
        return SimpleNamespace(close=lambda: setattr(self, "hung_up", self.hung_up + 1))

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def world(monkeypatch):
    world = World()
    monkeypatch.setattr(room, "multiprocessing", world)
    monkeypatch.setattr(room, "connected", world.connected)
    monkeypatch.setattr(
        room, "time", SimpleNamespace(monotonic=lambda: world.now, sleep=world.sleep)
    )
    monkeypatch.setattr(room, "peak_memory_bytes", lambda pid: world.peaks.get(pid, 0))
    return world


def factory():
    raise AssertionError("only the child may call it")


def test_a_process_is_spawned_once_and_told_all_it_needs(world):
    handle = ModelServer(factory, call_timeout_s=7.0)
    assert (handle.generation, handle.peak_memory_bytes, world.processes) == (0, 0, [])
    handle.ensure()
    handle.ensure()
    (child,) = world.processes
    assert world.contexts == ["spawn"]
    told = child.options
    assert (told["target"], told["name"], told["daemon"]) == (
        room._serve,
        "models",
        True,
    )
    assert told["args"] == (handle.address, factory, 7.0, 1)
    assert (handle.generation, world.asked, world.hung_up) == (1, [handle.address], 1)
    assert handle.address.startswith("spine-engine-")
    assert handle.address != ModelServer(factory, call_timeout_s=7.0).address
    handle.close()
    assert child.killed
    assert child.joined


def test_one_that_died_is_replaced_at_the_same_address_and_one_that_lives_is_not(world):
    handle = ModelServer(factory, call_timeout_s=7.0)
    handle.ensure()
    world.processes[0].alive = False
    handle.ensure()
    assert [child.options["args"][3] for child in world.processes] == [1, 2]
    assert {child.options["args"][0] for child in world.processes} == {handle.address}
    assert world.processes[0].joined
    handle.ensure(gone=1)  # another worker has seen the death of the first
    assert handle.generation == 2
    handle.ensure(gone=2)  # it lives, but hangs
    assert handle.generation == 3
    assert world.processes[1].killed
    assert not world.processes[2].killed


@pytest.mark.parametrize("alive", [True, False])
def test_a_start_that_fails_is_tried_once_more_and_no_further(world, alive):
    world.starts_alive = alive
    world.answers = lambda: len(world.processes) == 2 and world.processes[1].alive
    handle = ModelServer(factory, call_timeout_s=7.0)
    if alive:
        handle.ensure()
        assert 300.0 <= world.now <= 300.1, "the first had five minutes to start"
        assert world.processes[0].killed
    else:
        with pytest.raises(
            BackendError, match="died twice while it started; run 'spine-engine doctor'"
        ):
            handle.ensure()
        assert world.now == 0.0, "nobody waits for the dead"
    assert handle.generation == len(world.processes) == 2


def test_a_process_that_takes_its_time_is_asked_again_every_hundredth_of_a_second(
    world,
):
    world.answers = lambda: world.now >= 0.05
    handle = ModelServer(factory, call_timeout_s=7.0)
    handle.ensure()
    assert (handle.generation, len(world.asked)) == (1, 6)
    assert world.now == pytest.approx(0.05)


def test_a_handle_that_is_closed_while_it_starts_gives_up_at_once(world):
    handle = ModelServer(factory, call_timeout_s=7.0)

    def answers():
        handle._closed.set()  # as close does before it waits for the start to end
        return False

    world.answers = answers
    with pytest.raises(BackendError):
        handle.ensure()
    assert world.now < 1
    assert all(child.killed and child.joined for child in world.processes)
    handle.close()
    handle.close()


def test_the_peak_is_that_of_the_largest_process_there_was(world):
    handle = ModelServer(factory, call_timeout_s=7.0)
    handle.ensure()
    world.peaks = {1000: 500}
    assert handle.peak_memory_bytes == 500
    world.peaks = {1000: 700, 1001: 300}
    handle.ensure(gone=1)  # asked before it is killed
    assert handle.peak_memory_bytes == 700
    world.peaks = {1001: 900}
    assert handle.peak_memory_bytes == 900
    handle.close()
    assert handle.peak_memory_bytes == 900


# -- inside the process ------------------------------------------------------------------------------------------------


class Backend:
    inputs = (TensorInfo("x", (None, None)),)
    outputs = (TensorInfo("y", (None, None)),)
    device = Device("fake", "GPU.0", "f16")

    def run(self, inputs):
        return {"y": inputs["x"] + 1}

    def close(self):
        pass


class Listener:
    """Gives what is scripted, one at a time, then ends the process."""

    def __init__(self, script):
        self.script = list(script)

    def accept(self):
        if not self.script:
            raise SystemExit
        given = self.script.pop(0)
        if isinstance(given, Exception):
            raise given
        return given, b""


@pytest.fixture
def serve(monkeypatch):
    """Run the process's main loop over scripted connections; what it did to itself is noted."""
    done = SimpleNamespace(slept=[], limits=[], prepared=0, watched=[], address=None)
    real = room.threading

    def serve(*script, own=lambda connection: True):
        def listening(address):
            done.address = address
            return Listener(script)

        def thread(**options):
            if options["target"].__name__ == "watch":
                done.watched.append((options["args"], options["daemon"]))
                return SimpleNamespace(start=lambda: None)
            assert options["daemon"]
            return real.Thread(**options)

        monkeypatch.setattr(room, "listening", listening)
        monkeypatch.setattr(room, "own_peer", own)
        monkeypatch.setattr(
            room,
            "prepare_process",
            lambda: setattr(done, "prepared", done.prepared + 1),
        )
        monkeypatch.setattr(room, "time", SimpleNamespace(sleep=done.slept.append))
        limits = SimpleNamespace(
            RLIMIT_NOFILE="files",
            getrlimit=lambda what: (1024, 4096) if what == "files" else None,
            setrlimit=lambda what, given: done.limits.append((what, given)),
        )
        monkeypatch.setattr(room, "resource", limits)
        monkeypatch.setattr(
            room, "threading", SimpleNamespace(Thread=thread, Lock=real.Lock)
        )
        with pytest.raises(SystemExit):
            room._serve(
                "here",
                lambda: (
                    lambda role: (
                        Backend(),
                        BatchPolicy(sizes=(1, 2), max_delay_ms=0.0),
                    )
                ),
                9.0,
                4,
            )
        return done

    return serve


def test_a_process_serves_its_own_user_alone_and_survives_too_many_open_files(serve):
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    foreign, refused = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = ArrayChannel(mine)
    channel.send({"role": "grader"})
    done = serve(
        refused,
        OSError(24, "Too many open files"),
        theirs,
        own=lambda end: end is not refused,
    )
    assert foreign.recv(1) == b"", "hung up on"
    said, _ = channel.receive()
    assert said["generation"] == 4
    assert said["device"] == {"backend": "fake", "device": "GPU.0", "precision": "f16"}
    assert said["inputs"] == [{"name": "x", "shape": [None, None]}]
    assert said["outputs"] == [{"name": "y", "shape": [None, None]}]
    channel.send({}, {"x": np.ones((1, 2), np.float32)})
    assert channel.receive()[1]["y"].tolist() == [[2, 2]]
    channel.close()
    foreign.close()
    assert (done.prepared, done.address, done.slept) == (1, "here", [0.1])
    assert done.limits == [("files", (4096, 4096))], "as many files as it may have"
    assert done.watched == [((9.0,), True)]


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("call_timeout_s", "busy_since", "killed_at"),
    [
        (10.0, 0.0, 11.0),  # looked at every second; ten seconds are still allowed
        (10.0, 0.5, 11.0),
        (10.0, 3.0, 14.0),
        (1.0, 0.0, 1.25),  # looked at four times as often as a call may last
    ],
)
def test_a_call_that_takes_longer_than_allowed_kills_the_process(
    monkeypatch, call_timeout_s, busy_since, killed_at
):
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds):
        clock.now += seconds
        if clock.now > 100:
            pytest.fail("nobody ended the hung call")

    def kill(pid, number):
        raise Killed(pid, number)

    monkeypatch.setattr(
        room, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    )
    monkeypatch.setattr(room, "os", SimpleNamespace(getpid=lambda: 77, kill=kill))
    served = room._Connections(lambda role: None, 1)
    served._batchers = {
        "idle": SimpleNamespace(busy_since=None),
        "hung": SimpleNamespace(busy_since=busy_since),
    }
    with pytest.raises(Killed) as caught:
        served.watch(call_timeout_s)
    assert caught.value.args == (77, signal.SIGKILL)
    assert clock.now == pytest.approx(killed_at)


def test_nobody_there_is_waited_for_two_seconds_and_no_longer(monkeypatch):
    clock, tries = SimpleNamespace(now=0.0), []

    def refuse(address):
        tries.append(address)
        raise ConnectionRefusedError

    def sleep(seconds):
        clock.now += seconds

    monkeypatch.setattr(
        client, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    )
    monkeypatch.setattr(client, "connected", refuse)
    with pytest.raises(client.CompanionLostError) as caught:
        client.ServedBackend("nowhere", "grader")
    assert caught.value.generation == 0
    assert 2.0 <= clock.now <= 2.05
    assert 100 <= len(tries) <= 103
    assert set(tries) == {"nowhere"}
