"""What a run shows while it goes on: lines where nobody watches, a bar on a terminal. No time passes."""

import io
import threading
from collections import Counter

import pytest
import rich.console
import rich.progress

from spine_engine.cli import progress as shown_progress
from spine_engine.cli.progress import not_graded, shown
from spine_engine.run.dispatcher import Progress


class Ended:
    """An event that is waited for a number of times; each wait moves the run on."""

    def __init__(self, *steps):
        self.steps, self.waited = list(steps), []

    def wait(self, timeout):
        self.waited.append(timeout)
        if not self.steps:
            return True
        self.steps.pop(0)()
        return False


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [1000.0]
    monkeypatch.setattr(shown_progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds_and_none_that_says_the_same(clock, capsys):
    progress = Progress(found=9, resumed=1)

    def on(seconds, **values):
        def step():
            clock[0] += seconds
            for name, value in values.items():
                setattr(progress, name, value)

        return step

    failed = Counter({"graded": 3, "prior": 2, "failed": 1})
    ended = Ended(
        on(10, processed=5),
        on(0),
        on(10, processed=6, statuses=failed, discovering=False),
        on(5, found=8),
    )
    shown_progress._lines(progress, ended)
    assert ended.waited == [10.0] * 5
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "6 of 9+ studies, 0.50 a second, 0 not graded",
        "7 of 9 studies, 0.30 a second, 3 not graded",
        "7 of 8 studies, 0.24 a second, 3 not graded",
    ]


def test_no_time_at_all_is_no_rate():
    assert (
        shown_progress._state(Progress(processed=3), 0.0)
        == "3 of 0+ studies, 0.00 a second, 0 not graded"
    )


def test_studies_that_were_not_graded_are_those_with_the_prior_and_the_failed():
    assert (
        not_graded(Progress(statuses=Counter({"graded": 7, "prior": 2, "failed": 3})))
        == 5
    )


@pytest.mark.parametrize(("terminal", "painter"), [(True, "_bar"), (False, "_lines")])
def test_a_bar_is_for_terminals_and_lines_for_the_rest(monkeypatch, terminal, painter):
    painted, begun = [], threading.Event()

    def paint(name):
        def painting(progress, ended):
            begun.set()
            painted.append((name, progress.found, ended.wait(60)))

        return painting

    for name in ("_bar", "_lines"):
        monkeypatch.setattr(shown_progress, name, paint(name))
    monkeypatch.setattr(
        shown_progress.sys.stderr, "isatty", lambda: terminal, raising=False
    )

    def fail():
        assert begun.wait(60)
        raise ZeroDivisionError

    with (
        pytest.raises(ZeroDivisionError),
        shown(Progress(found=4)),
    ):  # it is told of the end, however that comes
        fail()
    assert painted == [(painter, 4, True)]


def test_the_bar_tells_what_the_lines_tell(clock, monkeypatch):
    told = []

    class Bar(rich.progress.Progress):
        def update(self, task, **fields):
            super().update(task, **fields)
            told.append(
                {
                    **fields,
                    "text": " ".join(self.columns[2](self.tasks[0]).plain.split()),
                }
            )

    class Console(rich.console.Console):
        def __init__(self, *, stderr):
            assert stderr
            super().__init__(file=io.StringIO())

    monkeypatch.setattr(rich.console, "Console", Console)
    monkeypatch.setattr(rich.progress, "Progress", Bar)
    progress = Progress(found=9, resumed=1, processed=5, statuses=Counter({"prior": 2}))

    def later():
        clock[0] += 10
        progress.discovering, progress.stopped, progress.processed = False, True, 8

    def first():
        clock[0] += 10

    ended = Ended(first, later)
    shown_progress._bar(progress, ended)
    assert ended.waited == [0.2] * 3
    assert told == [
        {"description": "studies", "completed": 6, "total": None, "of": "9+", "rate": 0.5, "bad": 2,
         "text": "6/9+ 0.50/s 2 not graded"},
        {"description": "stopping", "completed": 9, "total": 9, "of": 9, "rate": 0.4, "bad": 2,
         "text": "9/9 0.40/s 2 not graded"},
    ]  # fmt: skip
