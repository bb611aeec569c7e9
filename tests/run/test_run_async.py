"""A run inside somebody's event loop."""

import asyncio
import threading

import pytest
from fakes import start, write_exam

from spine_engine.errors import BackendError

pytestmark = pytest.mark.usefixtures("in_process")


def exams(root, *deeds):
    for index, deed in enumerate(deeds):
        write_exam(root, f"f{index}", f"1.{index}", deed)


def test_the_event_loop_goes_on_while_a_study_is_walked(root, in_process):
    exams(root, "grade", "wait a", "grade")
    ticks = []

    async def tick():
        while not in_process.waiting:
            await asyncio.sleep(0.001)
        for number in range(10):
            ticks.append(number)
            await asyncio.sleep(0.001)
        in_process.let_go("a")

    async def scenario():
        ticking = asyncio.create_task(tick())
        found = [(result.study_id, len(ticks)) async for result in start(root, None)]
        await ticking
        return found

    stuck = threading.Timer(30, lambda: in_process.waiting and in_process.let_go("a"))
    stuck.start()
    found = asyncio.run(scenario())
    stuck.cancel()
    assert [study_id for study_id, _ in found] == ["1.0", "1.1", "1.2"]
    assert found[1][1] == found[2][1] == 10


def test_leaving_the_loop_ends_the_run_before_the_loop_goes_on(root, out, in_process):
    exams(root, "grade", "wait a")

    async def leave():
        run = start(root, out)
        async for _ in (results := aiter(run)):
            in_process.await_wait("a")
            break
        await results.aclose()
        return run

    run = asyncio.run(leave())
    assert all(pool.ended for pool in in_process.pools)
    assert not run._thread.is_alive()
    assert run.summary.interrupted
    assert not (out / "predictions.csv").exists()


def test_cancelling_the_consumer_ends_the_run(root, in_process):
    exams(root, "grade", "wait a")

    async def cancelled():
        async def consume():
            async for _ in start(root, None):
                got.set()

        got = asyncio.Event()
        task = asyncio.create_task(consume())
        await got.wait()
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    assert asyncio.run(cancelled())
    assert in_process.pools
    assert all(pool.ended for pool in in_process.pools)


def test_an_error_of_the_run_is_raised_in_the_loop(root):
    exams(root, "grade", "no-model grader")

    async def scenario():
        async for _ in start(root, None):
            pass

    with pytest.raises(BackendError, match="no grader here"):
        asyncio.run(scenario())
