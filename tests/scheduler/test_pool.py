"""Slots and their workers: how they start, die, are limited, and end. No process is started."""

import asyncio
import os
import sys
from concurrent.futures.process import BrokenProcessPool

import pytest
from fakes import Died, Hung
from pool_tasks import CPU, GPU, OUTCOME, done, made, pool_of, run

from spine_engine.errors import BackendError, Reason
from spine_engine.scheduler import SharedFaultError, WorkerError
from spine_engine.scheduler import pool as room
from spine_engine.scheduler.process import prepare_process
from spine_engine.scheduler.task import CompanionLostError


def test_a_worker_is_one_spawned_process_that_leaves_signals_alone(in_process):
    assert run(done(pool_of())) == OUTCOME
    (executor,) = in_process.pools
    assert executor.arguments == (1,)
    assert executor.named["initializer"] is prepare_process
    assert executor.named["mp_context"].get_start_method() == "spawn"


def test_a_worker_starts_with_one_thread_a_library_and_without_the_main_module(
    in_process, monkeypatch
):
    seen = []

    class Looking:
        def __init__(self, pool):
            self.pool = pool

        def submit(self, call, *arguments):
            if call is os.getpid:
                main = vars(sys.modules["__main__"])
                seen.append((dict(os.environ), "__file__" in main, main["__spec__"]))
            return self.pool.submit(call, *arguments)

        def shutdown(self, **how):
            self.pool.shutdown(**how)

    monkeypatch.setattr(
        room, "ProcessPoolExecutor", lambda *a, **n: Looking(in_process.pool(*a, **n))
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    run(done(pool_of()))
    ((environment, has_file, spec),) = seen
    for library in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
        assert environment[f"{library}_NUM_THREADS"] == "1"
    assert environment["MALLOC_MMAP_THRESHOLD_"] == str(64 * 2**20)
    assert environment["MALLOC_TRIM_THRESHOLD_"] == str(256 * 2**20)
    assert (has_file, spec) == (False, None)
    assert os.environ["OMP_NUM_THREADS"] == "8"


def test_a_worker_runs_task_after_task(in_process):
    async def scenario():
        pool = pool_of()
        for _ in range(3):
            await done(pool)
        pool.close()

    run(scenario())
    assert len(in_process.pools) == 1
    assert in_process.pools[0].ended


def test_the_worker_that_was_used_last_is_used_next(in_process):
    async def scenario():
        pool = pool_of(workers=3)
        await asyncio.gather(*(done(pool, "turns") for _ in range(2)))
        for _ in range(4):
            await done(pool)

    run(scenario())
    assert len(in_process.pools) == 2


def factory_failing(errors):
    left = list(errors)

    def factory():
        if left:
            raise left.pop(0)
        return made()

    return factory


def test_one_death_while_starting_is_forgiven_and_two_are_not(in_process):
    assert run(done(pool_of(factory_failing([Died()])))) == OUTCOME
    assert [pool.ended for pool in in_process.pools] == [True, False]
    with pytest.raises(
        BackendError,
        match=r"died twice while it loaded the models; run 'spine-engine doctor'",
    ):
        run(done(pool_of(factory_failing([Died()] * 2))))
    assert len(in_process.pools) == 4
    assert [pool.ended for pool in in_process.pools[2:]] == [True, True]


def test_a_worker_that_does_not_come_up_in_time_counts_as_dead(in_process, monkeypatch):
    monkeypatch.setattr(room, "START_TIMEOUT_S", 0.001)
    with pytest.raises(BackendError, match="died twice"):
        run(done(pool_of(factory_failing([Hung()] * 2))))


def test_what_a_worker_raises_while_it_starts_is_raised_and_the_worker_ended(
    in_process,
):
    with pytest.raises(ZeroDivisionError):
        run(done(pool_of(factory_failing([ZeroDivisionError()]))))
    assert [pool.ended for pool in in_process.pools] == [True]


class FakeCompanion:
    """A process of models that is never started."""

    def __init__(self):
        self.ensured = []
        self.closed = False
        self.peak_memory_bytes = 5

    def ensure(self, *, gone=None):
        self.ensured.append(gone)

    def close(self):
        self.closed = True


@pytest.mark.parametrize(("losses", "starts"), [(1, True), (9, True), (10, False)])
def test_shared_models_may_be_lost_nine_times_while_a_worker_starts(
    in_process, losses, starts
):
    models = FakeCompanion()
    pool = pool_of(
        factory_failing([CompanionLostError(n) for n in range(losses)]),
        companion=models,
    )
    if starts:
        assert run(done(pool)) == OUTCOME
    else:
        with pytest.raises(BackendError, match="the shared models die at once; run"):
            run(done(pool))
    assert models.ensured == [None, *range(losses)]
    assert len(in_process.pools) == losses + starts


def test_shared_models_start_before_the_worker_and_again_when_they_are_gone(in_process):
    models = FakeCompanion()

    async def scenario():
        pool = pool_of(companion=models)
        with pytest.raises(SharedFaultError) as lost:
            await done(pool, "gone")
        assert lost.value.reason is Reason.WORKER_DIED
        assert models.ensured == [None, 7]
        assert await done(pool) == OUTCOME
        assert pool.peak_memory_bytes[-1] == 5
        assert len(pool.peak_memory_bytes) == 2
        pool.close()

    run(scenario())
    assert len(in_process.pools) == 1  # the worker lives on
    assert models.closed


def test_a_worker_that_dies_is_replaced(in_process):
    async def scenario():
        pool = pool_of()
        with pytest.raises(WorkerError) as died:
            await done(pool, "die")
        assert died.value.reason is Reason.WORKER_DIED
        assert await done(pool) == OUTCOME

    run(scenario())
    assert [pool.ended for pool in in_process.pools] == [True, False]


def test_a_worker_that_died_while_idle_is_told_like_one_that_dies(in_process):
    async def scenario():
        pool = pool_of()
        await done(pool)
        in_process.pools[0].broken = True
        with pytest.raises(WorkerError) as died:
            await done(pool)
        assert died.value.reason is Reason.WORKER_DIED
        assert await done(pool) == OUTCOME

    run(scenario())
    assert len(in_process.pools) == 2


@pytest.fixture
def clock(monkeypatch):
    """Says how long each call was waited for; what hangs is out of time at once."""
    waited = []
    wait = asyncio.wait

    async def told(futures, *, timeout=None):
        waited.append(timeout)
        return await wait(futures, timeout=0.001)

    monkeypatch.setattr(asyncio, "wait", told)
    return waited


def test_starting_may_take_five_minutes_and_a_task_its_time_limit(in_process, clock):
    async def scenario():
        pool = pool_of(timeout_s=12.5)
        with pytest.raises(WorkerError) as out_of_time:
            await done(pool, "hang")
        assert out_of_time.value.reason is Reason.TIMEOUT

    run(scenario())
    assert clock == [300.0, 300.0, 12.5]
    assert in_process.pools[0].ended


def test_a_cancelled_task_ends_its_worker_and_gives_back_its_slot(in_process):
    async def scenario():
        pool = pool_of()
        task = asyncio.create_task(done(pool, "wait"))
        while not in_process.waiting:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert in_process.pools[0].ended
        assert await done(pool) == OUTCOME

    run(scenario())


def test_what_a_task_raises_is_raised_and_the_worker_lives_on(in_process):
    async def scenario():
        pool = pool_of()
        with pytest.raises(ZeroDivisionError):
            await done(pool, "raise")
        assert await done(pool) == OUTCOME

    run(scenario())
    assert len(in_process.pools) == 1


def test_facts_are_told_at_the_start_and_when_they_change(in_process):
    told = []

    async def scenario():
        pool = pool_of(on_facts=lambda facts: told.append(dict(facts)))
        for key in ("a", "open", "a"):
            await done(pool, key)

    run(scenario())
    assert told == [{"grader": CPU}, {"grader": CPU, "detector": GPU}]


def test_facts_that_are_refused_end_the_worker(in_process):
    def refuse(facts):
        raise BackendError("not this")

    with pytest.raises(BackendError, match="not this"):
        run(done(pool_of(on_facts=refuse)))
    assert in_process.pools[0].ended


def test_a_pool_that_breaks_at_its_first_call_is_a_death_while_starting(
    monkeypatch, in_process
):
    class Broken:
        def submit(self, *call):
            raise BrokenProcessPool("at once")

        def shutdown(self, **how):
            pass

    broken = [Broken(), Broken()]
    monkeypatch.setattr(
        room,
        "ProcessPoolExecutor",
        lambda *a, **n: broken.pop() if broken else in_process.pool(),
    )
    with pytest.raises(BackendError, match="died twice"):
        run(done(pool_of()))
    assert run(done(pool_of())) == OUTCOME


def test_a_worker_error_says_its_reason():
    assert str(WorkerError(Reason.TIMEOUT)) == "timeout"
    assert str(SharedFaultError()) == "worker_died"
