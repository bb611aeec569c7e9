"""Who runs beside whom, how much memory each worker may have, and which processes are ended."""

import asyncio
import multiprocessing

import pytest
from pool_tasks import OUTCOME, done, pool_of, run

from spine_engine.scheduler import MemoryShare, WorkerError
from spine_engine.scheduler import pool as room

MEMORY = MemoryShare(usual_bytes=400, alone_bytes=900)


def test_a_worker_has_its_usual_share_and_all_of_it_alone(in_process):
    async def scenario():
        pool = pool_of(workers=2, memory=MEMORY)
        await asyncio.gather(done(pool, "turns"), done(pool, "turns"))
        await done(pool)
        assert in_process.limits == [(-1, 400, 900), (-2, 400, 900)]
        await done(pool, alone=True)
        assert len(in_process.limits) == 3
        assert in_process.limits[2][1:] == (900, 900)
        assert [pool.ended for pool in in_process.pools].count(
            True
        ) == 1  # the other, whose memory was needed
        await done(pool)
        assert in_process.limits[3][1:] == (400, 900)
        pool.close()

    run(scenario())


def test_a_new_worker_is_limited_anew(in_process):
    async def scenario():
        pool = pool_of(memory=MEMORY)
        with pytest.raises(WorkerError):
            await done(pool, "die")
        await done(pool)

    run(scenario())
    assert in_process.limits == [(-1, 400, 900), (-2, 400, 900)]


def test_without_a_ceiling_nobody_is_limited_or_ended_for_one_that_runs_alone(
    in_process,
):
    async def scenario():
        pool = pool_of(workers=2)
        await asyncio.gather(done(pool, "turns"), done(pool, "turns"))
        await done(pool, alone=True)

    run(scenario())
    assert in_process.limits == []
    assert not any(pool.ended for pool in in_process.pools)


def test_the_highest_memory_of_each_worker_that_ran_is_known(in_process, monkeypatch):
    peaks = iter([30, 70, 50])
    monkeypatch.setattr(room, "peak_memory_bytes", lambda: next(peaks))

    async def scenario():
        pool = pool_of(workers=3)
        for _ in range(3):
            await done(pool)
        return pool.peak_memory_bytes

    assert run(scenario()) == [70]


class Child:
    def __init__(self, pid, killed):
        self.pid, self.killed = pid, killed

    def kill(self):
        self.killed.append(self.pid)


def test_ending_a_worker_kills_its_own_process_once_and_no_other(
    in_process, monkeypatch
):
    killed = []
    monkeypatch.setattr(
        multiprocessing,
        "active_children",
        lambda: [Child(pid, killed) for pid in (-3, -2, -1, 7)],
    )

    async def scenario():
        pool = pool_of(workers=2)
        await asyncio.gather(done(pool, "turns"), done(pool, "turns"))
        with pytest.raises(WorkerError):
            await done(pool, "die")
        first = list(killed)
        pool.close()
        pool.close()
        return first

    first = run(scenario())
    assert len(first) == 1
    assert sorted(killed) == [-2, -1]


def test_a_suspect_waits_for_all_and_all_wait_for_it(in_process):
    async def scenario():
        pool = pool_of(workers=3)
        running, beside = set(), {}

        async def unit(name, alone):
            async with pool.slot(alone=alone):
                running.add(name)
                for _ in range(5):
                    await asyncio.sleep(0)
                    beside.setdefault(name, set()).update(running)
                running.remove(name)

        plan = [
            ("a", False),
            ("b", False),
            ("s", True),
            ("c", False),
            ("t", True),
            ("d", False),
        ]
        await asyncio.gather(*(unit(name, alone) for name, alone in plan))
        return beside

    beside = run(scenario())
    assert beside["s"] == {"s"}
    assert beside["t"] == {"t"}
    assert beside["a"] == {"a", "b"}
    assert sorted(beside) == list("abcdst")


def test_a_suspect_that_is_cancelled_while_it_waits_holds_nobody_up(in_process):
    async def scenario():
        pool = pool_of(workers=3)
        busy = asyncio.create_task(done(pool, "wait"))
        while not in_process.waiting:
            await asyncio.sleep(0)
        suspect = asyncio.create_task(done(pool, alone=True))
        for _ in range(5):
            await asyncio.sleep(0)
        other = asyncio.create_task(done(pool))
        for _ in range(5):
            await asyncio.sleep(0)
        assert (
            len(in_process.pools) == 1
        )  # the other waits for the suspect, the suspect for the busy one
        suspect.cancel()
        assert await other == OUTCOME
        assert suspect.cancelled()
        in_process.let_go("w")
        assert await busy == OUTCOME
        assert await done(pool, alone=True) == OUTCOME

    run(scenario())


def test_a_failed_suspect_lets_the_others_go_on(in_process):
    async def scenario():
        pool = pool_of(workers=2)
        with pytest.raises(WorkerError):
            await done(pool, "die", alone=True)
        return await asyncio.gather(*(done(pool) for _ in range(4)))

    assert run(scenario()) == [OUTCOME] * 4
