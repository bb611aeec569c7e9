"""A run inside somebody's event loop, and from programs that multiprocessing usually cannot spawn from."""

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

import psutil
from fakes import start, write_exam


def exams(tmp_path, deeds):
    root = tmp_path / "input"
    for index, deed in enumerate(deeds):
        write_exam(root, f"f{index}", f"1.{index}", deed)
    return root


def spawned():
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_the_event_loop_goes_on_while_results_come(tmp_path):
    root = exams(tmp_path, ["sleep 0.3", "sleep 0.3", "grade"])
    ticks = []

    async def tick():
        while True:
            ticks.append(1)
            await asyncio.sleep(0.02)

    async def scenario():
        ticking = asyncio.create_task(tick())
        found = [result.study_id async for result in start(root, None)]
        ticking.cancel()
        return found

    assert sorted(asyncio.run(scenario())) == ["1.0", "1.1", "1.2"]
    assert len(ticks) > 10


def test_leaving_or_cancelling_the_loop_ends_the_workers(tmp_path):
    root = exams(tmp_path, ["grade", "sleep 30", "sleep 30"])

    async def leave():
        async for _ in (run := start(root, None)):
            break
        return run

    async def cancelled():
        async def consume():
            async for _ in start(root, None):
                got.set()

        got = asyncio.Event()
        task = asyncio.create_task(consume())
        await got.wait()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    asyncio.run(asyncio.wait_for(leave(), 60))
    asyncio.run(asyncio.wait_for(cancelled(), 60))
    _, alive = psutil.wait_procs(spawned(), timeout=10)
    assert not alive


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
print("begun")
from pathlib import Path
from fakes import start
print(sorted(result.study_id for result in start(Path({root!r}), None)))
"""


def test_a_script_needs_no_guard_and_need_not_be_a_file(tmp_path):
    root = exams(tmp_path, ["grade", "grade"])
    text = SCRIPT.format(here=str(Path(__file__).parent), root=str(root))
    script = tmp_path / "script.py"
    script.write_text(text)
    for command, given in (([str(script)], None), (["-"], text)):
        ended = subprocess.run(
            [sys.executable, *command], input=given, capture_output=True, text=True, timeout=120, check=False
        )
        assert (ended.stdout, ended.returncode) == ("begun\n['1.0', '1.1']\n", 0), ended.stderr
