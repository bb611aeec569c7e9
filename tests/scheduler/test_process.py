"""What a process of the engine sets for itself and for those it starts."""

import multiprocessing
import os
import resource
import signal
import sys
import threading
import types

import pytest

from spine_engine.scheduler import process
from spine_engine.scheduler.process import (
    environment,
    limit_memory,
    no_main_module,
    peak_memory_bytes,
)

MIB = 1 << 20


def test_a_child_leaves_ctrl_c_and_sigterm_to_its_parent_and_ends_with_it(monkeypatch):
    set_to, started, ended = {}, [], []
    monkeypatch.setattr(signal, "signal", set_to.__setitem__)
    monkeypatch.setattr(
        multiprocessing, "parent_process", lambda: types.SimpleNamespace(sentinel=9)
    )
    monkeypatch.setattr(
        process.multiprocessing.connection,
        "wait",
        lambda waited: started.append(waited),
    )
    monkeypatch.setattr(os, "_exit", ended.append)
    process.prepare_process()
    for thread in threading.enumerate():
        if (
            thread is not threading.current_thread()
            and thread.daemon
            and thread.name.endswith("(_end_with)")
        ):
            thread.join()
    assert set_to == {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN}
    assert started == [[9]]
    assert ended == [1]


def test_a_process_that_is_no_child_watches_nobody(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    before = threading.active_count()
    process.prepare_process()
    assert threading.active_count() == before


def test_variables_are_held_for_a_moment_and_are_then_as_before(monkeypatch):
    monkeypatch.setenv("SPINE_TEST_A", "before")
    monkeypatch.delenv("SPINE_TEST_B", raising=False)
    held = {"SPINE_TEST_A": "1", "SPINE_TEST_B": "2"}
    with environment(held):
        assert {name: os.environ[name] for name in held} == held
    assert os.environ["SPINE_TEST_A"] == "before"
    assert "SPINE_TEST_B" not in os.environ
    with pytest.raises(ZeroDivisionError), environment(held):
        raise ZeroDivisionError
    assert os.environ["SPINE_TEST_A"] == "before"
    assert "SPINE_TEST_B" not in os.environ


@pytest.mark.parametrize("raises", [False, True])
def test_children_find_no_main_module_and_it_is_then_as_before(monkeypatch, raises):
    main = types.ModuleType("__main__")
    main.__file__, main.__spec__, main.other = "script.py", "spec", 5
    monkeypatch.setitem(sys.modules, "__main__", main)
    before = dict(vars(main))
    try:
        with no_main_module():
            assert vars(main) == {
                **{k: v for k, v in before.items() if k != "__file__"},
                "__spec__": None,
            }
            if raises:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert raises
    assert vars(main) == before


def test_a_main_module_without_a_file_stays_without(monkeypatch):
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    with no_main_module():
        assert not hasattr(main, "__file__")
    assert not hasattr(main, "__file__")
    assert main.__spec__ is None


@pytest.mark.parametrize(
    "hold", [no_main_module, lambda: environment({"SPINE_TEST_A": "1"})]
)
def test_children_are_started_one_at_a_time(hold):
    entered = threading.Event()

    def enter():
        with no_main_module():
            entered.set()

    with hold():
        other = threading.Thread(target=enter)
        other.start()
        assert not entered.wait(0.05)
        with environment({}):  # the thread that holds it may hold more
            pass
    other.join(30)
    assert entered.is_set()


@pytest.fixture
def limits(monkeypatch):
    """Limits by process id, (soft, hard), in place of the kernel's."""
    held = {5: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)}

    def prlimit(pid, which, new=None):
        assert which == resource.RLIMIT_DATA
        if pid not in held:
            raise ProcessLookupError
        before = held[pid]
        if new is not None:
            held[pid] = new
        return before

    monkeypatch.setattr(resource, "prlimit", prlimit)
    return held


@pytest.mark.parametrize(
    ("hard", "limit", "most", "given"),
    [
        (resource.RLIM_INFINITY, 400, 900, (400, 900)),
        (resource.RLIM_INFINITY, 900, 900, (900, 900)),
        (500, 400, 900, (400, 500)),  # a lower limit that it has already stays
        (300, 400, 900, (300, 300)),
        (1000, 400, 900, (400, 900)),
    ],
)
def test_a_process_is_held_to_its_limit_and_may_be_given_the_most_later(
    limits, hard, limit, most, given
):
    limits[5] = (hard, hard)
    limit_memory(5, limit, most)
    assert limits[5] == given


def test_a_process_that_is_gone_needs_no_limit(limits):
    limit_memory(6, 400, 900)
    assert list(limits) == [5]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_peak_of_a_process_is_read_in_bytes():
    with open("/proc/self/status", encoding="ascii") as status:
        kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    assert kib * 1024 <= peak_memory_bytes() < kib * 1024 * 1.2
    assert kib * 1024 <= peak_memory_bytes(os.getpid()) < kib * 1024 * 1.2
    assert peak_memory_bytes(2**22 + 1) == 0


def test_where_there_is_no_proc_the_system_is_asked(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    usage = types.SimpleNamespace(ru_maxrss=123)
    monkeypatch.setattr(
        resource,
        "getrusage",
        lambda who: usage if who == resource.RUSAGE_SELF else None,
    )
    monkeypatch.setattr(sys, "platform", "freebsd")
    assert peak_memory_bytes() == 123 * 1024
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory_bytes() == 123
    assert peak_memory_bytes(5) == 0


def test_the_time_to_start_is_five_minutes():
    assert process.START_TIMEOUT_S == 300
