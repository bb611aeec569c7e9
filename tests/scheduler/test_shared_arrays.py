"""Arrays between two ends of a socket: whole, in memory that is handed over once, grows, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spine_engine.scheduler.batching import shared_arrays as room
from spine_engine.scheduler.batching.shared_arrays import (
    ArrayChannel,
    connected,
    listening,
    own_peer,
)

pytestmark = pytest.mark.skipif(
    sys.platform != "linux",
    reason="memory is shared on Linux only: not shown elsewhere",
)

MEBIBYTE = 1 << 20


@pytest.fixture
def ends():
    one, other = (
        ArrayChannel(end)
        for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    )
    yield one, other
    one.close()
    other.close()


def numbers(*shape, start=0.0):
    return np.arange(
        start, start + np.prod(shape, dtype=int), dtype=np.float32
    ).reshape(shape)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@settings(max_examples=30, deadline=None)
@given(shapes=st.lists(st.lists(st.integers(1, 5), max_size=4), max_size=5))
def test_messages_and_arrays_of_any_shape_arrive_whole(shapes):
    one, other = (
        ArrayChannel(end)
        for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    )
    sent = {f"a{k}": numbers(*shape, start=1000 * k) for k, shape in enumerate(shapes)}
    for message in ({"role": "grader"}, {}):
        one.send(message, sent)
        got, arrays = other.receive()
        assert got == message
        assert list(arrays) == list(sent)
        for name, array in sent.items():
            assert (arrays[name].shape, arrays[name].dtype) == (array.shape, np.float32)
            np.testing.assert_array_equal(arrays[name], array)
    one.close()
    other.close()


@pytest.mark.parametrize("first", [1, 15, 16, 17, 32])
def test_arrays_begin_at_cache_lines_and_do_not_overlap(ends, first):
    one, other = ends
    one.send(
        {}, {"a": numbers(first), "b": numbers(3, start=-3), "c": numbers(2, start=7)}
    )
    _, arrays = other.receive()
    assert [array.ctypes.data % 64 for array in arrays.values()] == [0, 0, 0]
    assert arrays["a"].tolist() == list(range(first))
    assert (arrays["b"].tolist(), arrays["c"].tolist()) == ([-3, -2, -1], [7, 8])


def test_what_is_sent_is_copied_whatever_its_strides(ends):
    one, other = ends
    array = numbers(4, 6)
    one.send({}, {"a": array[:, ::2].T})
    array[:] = -1
    assert other.receive()[1]["a"].tolist() == numbers(4, 6)[:, ::2].T.tolist()


def test_memory_is_handed_over_once_and_again_only_when_it_has_to_grow(
    ends, monkeypatch
):
    one, other = ends
    handed = []
    really = socket.send_fds
    monkeypatch.setattr(
        socket, "send_fds", lambda *args: (handed.append(args[2]), really(*args))[1]
    )
    before = descriptors()
    sizes = [
        1,
        MEBIBYTE // 4,
        5,
        MEBIBYTE // 4 + 1,
        MEBIBYTE // 2,
        MEBIBYTE // 2 + 1,
        3,
    ]
    counts = []
    for size in sizes:
        one.send({}, {"a": numbers(size)})
        np.testing.assert_array_equal(other.receive()[1]["a"], numbers(size))
        counts.append(len(handed))
    assert counts == [1, 1, 1, 2, 2, 3, 3], "whole mebibytes of four-byte numbers"
    assert descriptors() == before + 2, (
        "each side keeps its mapping, which is a descriptor, and no other"
    )


def test_the_next_message_overwrites_what_the_last_one_brought(ends):
    one, other = ends
    one.send({}, {"a": numbers(3)})
    _, arrays = other.receive()
    one.send({}, {"a": numbers(3, start=10)})
    assert arrays["a"].tolist() == [10, 11, 12]
    other.send({}, {"b": numbers(3, start=20)})  # each side has memory of its own
    assert arrays["a"].tolist() == [10, 11, 12]
    assert one.receive()[1]["b"].tolist() == [20, 21, 22]


def test_a_message_may_be_long(ends):
    one, other = ends
    one.send({"why": "x" * 60_000})
    assert other.receive()[0] == {"why": "x" * 60_000}


def test_the_end_is_told_and_looking_for_it_takes_nothing_away(ends):
    one, other = ends
    assert not other.ended
    one.send({"n": 1})
    assert not other.ended
    assert other.receive()[0] == {"n": 1}
    one.close()
    assert other.ended
    assert other.receive() is None
    with pytest.raises(OSError, match="pipe"):
        other.send({})
    other.close()
    assert other.ended, "what is closed on this side has ended, too"


def test_a_side_that_hangs_up_unheard_keeps_nothing():
    before = descriptors()
    one, other = (
        ArrayChannel(end)
        for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    )
    one.send({}, {"a": numbers(2)})
    one.close()
    other.close()
    del one, other
    assert descriptors() == before


def test_memory_that_cannot_be_had_is_a_memory_error_and_leaks_nothing(
    ends, monkeypatch
):
    one, other = ends
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(
            os,
            "memfd_create",
            lambda *_: (_ for _ in ()).throw(OSError(24, "Too many open files")),
        )
        with pytest.raises(
            MemoryError, match="no memory to share: Too many open files"
        ):
            one.send({}, {"a": numbers(2)})
    one.send({}, {"a": numbers(2)})

    def refuse(descriptor, size):
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(room, "mmap", SimpleNamespace(mmap=refuse))
        with pytest.raises(
            MemoryError, match="no memory to share: Cannot allocate memory"
        ):
            other.receive()
    assert descriptors() == before + 1, "the sender's own mapping"


def test_an_address_is_no_file_and_nobody_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = descriptors()
    with pytest.raises(ConnectionRefusedError):
        connected("spine-test-nobody")
    listener = listening(f"spine-test-{os.getpid()}")
    assert listener.getsockname() == f"\0spine-test-{os.getpid()}".encode()
    assert not list(Path().iterdir())
    mine = connected(f"spine-test-{os.getpid()}")
    theirs, _ = listener.accept()
    assert own_peer(mine)
    assert own_peer(theirs)
    mine.send(json.dumps({"n": 1}).encode())
    assert theirs.recv(100) == b'{"n": 1}', "a packet stays one"
    for end in (mine, theirs, listener):
        end.close()
    assert descriptors() == before


def test_the_listener_of_another_user_is_refused_and_hung_up_on(monkeypatch):
    address = f"spine-test-{os.getpid()}-other"
    listener = listening(address)
    before = descriptors()
    monkeypatch.setattr(os, "getuid", lambda: 123456)
    with pytest.raises(PermissionError, match=f"{address} belongs to another user"):
        connected(address)
    assert descriptors() == before
    theirs, _ = listener.accept()
    assert theirs.recv(1) == b""
    assert not own_peer(theirs)
    theirs.close()
    listener.close()
