"""Ctrl-C and SIGTERM: the first finishes what is in flight, the second ends at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fakes
import pytest
from fakes import opened, write_exam

from spine_engine.cli.run import stopping_on_signals
from spine_engine.run.dispatcher import Progress

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import fakes
from spine_engine.cli.run import stopping_on_signals
if __name__ == "__main__":
    work = fakes.start(Path(sys.argv[1]), Path(sys.argv[2]), workers=1)
    with stopping_on_signals(work):
        sys.exit(work.finish().exit_code)
"""


def test_ctrl_c_at_a_terminal_reaches_the_workers_too_and_the_study_in_flight_is_finished(
    tmp_path,
):
    root, out = tmp_path / "input", tmp_path / "out"
    for index in range(3):
        write_exam(root, f"f{index}", f"1.{index}", "sleep 1")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=str(Path(fakes.__file__).parent)))
    command = [sys.executable, str(script), str(root), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 120
    while not opened(root):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(
        process.pid, signal.SIGINT
    )  # as a terminal does: to every process of the group
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert b"finishing the studies in flight; interrupt again to stop at once\n" in said
    assert b"Traceback" not in said
    assert opened(root) == ["f0"]
    (line,) = (out / "studies.jsonl").read_text().splitlines()
    assert json.loads(line)["status"] == "graded"


class Work:
    """A run that only remembers what it was told."""

    def __init__(self):
        self.progress, self.told = Progress(), []

    def stop(self):
        self.progress.stopped = True
        self.told.append("stop")

    def abort(self):
        self.told.append("abort")


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_a_run_and_the_second_aborts_it(first, second, capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    work = Work()
    with stopping_on_signals(work):
        signal.raise_signal(first)
        assert work.told == ["stop"]
        assert capsys.readouterr() == (
            "",
            "finishing the studies in flight; interrupt again to stop at once\n",
        )
        signal.raise_signal(second)
        assert work.told == ["stop", "abort"]
        assert capsys.readouterr() == ("", "")
    assert [
        signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
    ] == before


def test_signals_are_as_before_after_an_error():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError), stopping_on_signals(Work()):
        raise ZeroDivisionError
    assert [
        signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
    ] == before
