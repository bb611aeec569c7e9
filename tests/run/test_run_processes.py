"""Runs with real worker processes: what only they can show. Everything else is tested without (``inprocess``)."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import fakes
import psutil
import pytest
from fakes import opened, start, write_exam


def spawned():
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def files(out):
    lines = [
        json.loads(line) for line in (out / "studies.jsonl").read_text().splitlines()
    ]
    return (out / "predictions.csv").read_bytes(), [
        {**line, "timings_ms": {}} for line in lines
    ]


def test_a_worker_that_dies_hangs_or_raises_costs_its_own_study_and_no_other(root, out):
    for name, deed in {
        "1": "grade",
        "2": "segfault",
        "3": "raise",
        "4": "hang",
        "5": "grade",
    }.items():
        write_exam(root, name, name, deed)
    summary = start(root, out, timeout_s=2, max_attempts=1).finish()
    assert {line["study_id"]: line["reason"] for line in files(out)[1]} == {
        "1": None, "2": "worker_died", "3": "internal_error", "4": "timeout", "5": None
    }  # fmt: skip
    assert opened(root) == ["1", "2", "3", "4", "5"]
    assert all(b"PATIENT" not in path.read_bytes() for path in out.glob("*.*"))
    peaks = summary.peak_memory_bytes
    assert len(peaks["workers"]) == 1
    assert peaks["total"] == peaks["main"] + peaks["workers"][0]
    assert min(peaks["main"], *peaks["workers"]) > 10e6
    _, alive = psutil.wait_procs(spawned(), timeout=10)
    assert not alive


def test_leaving_the_loop_ends_the_workers_and_blames_no_study(root, out):
    for index in range(3):
        write_exam(root, f"f{index}", f"1.{index}", "grade" if index == 0 else "hang")
    for result in start(root, out):
        assert result.study_id == "1.0"
        break
    _, alive = psutil.wait_procs(spawned(), timeout=10)
    assert not alive
    with sqlite3.connect(out / "ledger.sqlite") as ledger:
        assert ledger.execute("SELECT sum(attempts) FROM units").fetchone() == (0,)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import fakes
if __name__ == "__main__":
    fakes.start(Path(sys.argv[1]), Path(sys.argv[2]), workers=2).finish()
"""


@pytest.fixture
def killed(root, out, tmp_path):
    """The workers of a run in a process of its own that was killed when the fifth unit was opened."""
    for index in range(10):
        write_exam(root, f"f{index}", f"1.{index}", "sleep 0.1")
    write_exam(root, "g", "1.3", "more of it")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=str(Path(fakes.__file__).parent)))
    process = subprocess.Popen(
        [sys.executable, str(script), str(root), str(out)], env={**os.environ}
    )
    try:
        deadline = time.monotonic() + 120
        while len(opened(root)) < 5:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        workers = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
    return workers


def test_kill_9_in_the_middle_and_a_second_run_give_the_same_bytes(
    root, out, tmp_path, killed, request
):
    assert killed
    _, alive = psutil.wait_procs(killed, timeout=10)
    assert not alive, "workers outlived the run"
    assert not (out / "predictions.csv").exists()
    request.getfixturevalue("in_process")
    summary = start(root, out, workers=2).finish()
    assert summary.exit_code == 0
    assert summary.resumed >= 2
    assert (
        len(opened(root)) <= 12 + 2
    )  # eleven units, one merged, at most two opened twice
    start(root, tmp_path / "fresh").finish()
    assert files(out) == files(tmp_path / "fresh")


GUARDLESS = """
import sys
sys.path.insert(0, {here!r})
print("begun")
from pathlib import Path
from fakes import start
print(sorted(result.study_id for result in start(Path({root!r}), None)))
"""


def test_a_script_needs_no_guard_and_need_not_be_a_file(root, tmp_path):
    write_exam(root, "a", "1.0")
    text = GUARDLESS.format(here=str(Path(fakes.__file__).parent), root=str(root))
    script = tmp_path / "script.py"
    script.write_text(text)
    for command, given in (([str(script)], None), (["-"], text)):
        ended = subprocess.run(
            [sys.executable, *command],
            input=given,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (ended.stdout, ended.returncode) == ("begun\n['1.0']\n", 0), ended.stderr
