"""A run holds only so much at a time: units found ahead, results that wait, studies at work. Bounds by counting."""

import asyncio
import threading
import weakref

import pytest
from fakes import FakeWorker, Later, discover, opened, start, write_exam

from spine_engine.dicom.discovery import InputFile, WorkUnit

SHORT_S = 0.25
"""Long enough for what has no bound to run on; what is bound never does, however slow the machine is."""


class Pulled:
    """Discovery of many units (one exam, named again and again) that counts what the run took of it."""

    def __init__(self, expected, count=400, study_id="1"):
        self.expected, self.count, self.study_id, self.number = (
            expected,
            count,
            study_id,
            0,
        )
        self.reached, self.passed = threading.Event(), threading.Event()

    def __call__(self, root):
        for index in range(self.count):
            self.number += 1
            if self.number == self.expected:
                self.reached.set()
            if self.number > self.expected:
                self.passed.set()
            yield WorkUnit(f"u{index:03}", (InputFile("a/exam", 9),), f"{index}")


def in_thread(run):
    finished = threading.Thread(target=run.finish)
    finished.start()
    return finished


@pytest.mark.parametrize("workers", [1, 3])
def test_discovery_is_64_units_ahead_of_the_workers_and_no_more(
    root, in_process, workers
):
    write_exam(root, "a", "1", "wait w")
    # at work, one taken that waits for a worker, 64 that wait to be taken, one in discovery's hand
    found = Pulled(expected=workers + 1 + 64 + 1)
    run = start(root, None, discover=found, workers=workers)
    finished = in_thread(run)
    assert found.reached.wait(60)
    assert not found.passed.wait(SHORT_S)
    assert run.progress.found == found.expected - 1
    run.abort()
    finished.join()
    assert found.number == found.expected


class NamedWorker(FakeWorker):
    """Says the study that the unit names, so that one exam may stand for many studies."""

    def outcome(self, unit):
        outcome = super().outcome(unit)
        (result,) = outcome.results
        object.__setattr__(result, "study_id", unit.study_id)
        return outcome


def test_a_result_waits_for_its_reader_however_long_that_takes(
    root, in_process, monkeypatch
):
    """The reader comes after the writer has asked for room a thousand times, without a clock."""
    write_exam(root, "a", "1")
    run = start(root, None, discover=Pulled(expected=0, count=80), worker=NamedWorker)
    asked, room = 0, threading.Event()
    put = run._results.put_nowait

    def asking(result):
        nonlocal asked
        asked += 1
        if asked == 1000:
            room.set()
        put(result)

    async def at_once(_):
        await no_time(0)

    no_time = asyncio.sleep
    monkeypatch.setattr("spine_engine.run.run.asyncio.sleep", at_once)
    monkeypatch.setattr(run._results, "put_nowait", asking)
    results = iter(run)
    first = next(results)
    assert room.wait(60)
    assert [first.study_id, *(result.study_id for result in results)] == [
        f"{index}" for index in range(80)
    ]


@pytest.mark.parametrize("workers", [1, 3])
def test_no_study_is_begun_while_64_results_wait_for_a_reader(
    root, in_process, workers
):
    write_exam(root, "a", "1")
    begun = 1 + 64 + workers  # read, waiting, and one in the hand of each worker
    enough, more = threading.Event(), threading.Event()

    class Counting(NamedWorker):
        def outcome(self, unit):
            count = len(opened(root)) + 1
            if count == begun:
                enough.set()
            if count > begun:
                more.set()
            return super().outcome(unit)

    run = start(
        root,
        None,
        discover=Pulled(expected=0, count=100),
        workers=workers,
        worker=Counting,
    )
    results = iter(run)
    next(results)
    assert enough.wait(60)
    assert not more.wait(SHORT_S)
    assert len(opened(root)) == begun
    assert len(list(results)) == 99
    assert run.summary.walked == 100


def test_studies_that_lay_in_one_folder_do_not_let_discovery_run_further_ahead(
    root, in_process
):
    class Held(FakeWorker):
        def outcome(self, unit):
            if unit.key == "u080" and not self.waited:
                raise Later("w")
            return super().outcome(unit)

    for name in "abcdefgh":
        write_exam(root, "flat", f"1.{name}", name=name)
    write_exam(root, "a", "1")
    (flat,) = (unit for unit in discover(root) if unit.key == "flat")
    found = Pulled(
        expected=80 + 1 + 1 + 64 + 1
    )  # done before, at work, taken, waiting, in discovery's hand

    def both(root):
        yield flat
        yield from found(root)

    run = start(root, None, discover=both, worker=Held)
    finished = in_thread(run)
    in_process.await_wait("w")
    assert sum(key.startswith("flat#") for key in opened(root)) == 8
    assert found.reached.wait(30)
    assert not found.passed.wait(SHORT_S)
    run.abort()
    finished.join()


def test_a_reader_that_leaves_while_results_wait_ends_the_run(root, out, in_process):
    write_exam(root, "a", "1")
    full = threading.Event()

    class Filling(NamedWorker):
        def outcome(self, unit):
            if len(opened(root)) >= 65:
                full.set()
            return super().outcome(unit)

    run = start(root, out, discover=Pulled(expected=0, count=100), worker=Filling)
    for _ in run:
        assert full.wait(60)
        break
    assert not run._thread.is_alive()
    assert len(opened(root)) < 100
    assert not (out / "predictions.csv").exists()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_as_many_studies_are_at_work_as_there_are_workers(root, in_process, workers):
    for index in range(12):
        write_exam(root, f"f{index:02}", f"1.{index}", "turns 300")
    assert start(root, None, workers=workers).finish().walked == 12
    assert in_process.most_in_flight == workers
    assert len(in_process.pools) == workers


def test_no_more_workers_are_started_than_there_are_studies(root, in_process):
    for name in "ab":
        write_exam(root, name, name)
    start(root, None, workers=8).finish()
    assert len(in_process.pools) <= 2


def test_memory_does_not_hold_the_results(root, out, in_process):
    alive, most = [], 0

    class Remembering(NamedWorker):
        def outcome(self, unit):
            nonlocal most
            outcome = super().outcome(unit)
            alive[:] = [reference for reference in alive if reference() is not None]
            alive.append(weakref.ref(outcome.results[0]))
            most = max(most, len(alive))
            return outcome

    write_exam(root, "a", "1")
    run = start(root, out, discover=Pulled(expected=0, count=150), worker=Remembering)
    assert (
        sum(1 for _ in run) == 150
    )  # more than may be found ahead: discovery goes on when units are done
    assert most <= 64 + 4
    assert len((out / "predictions.csv").read_text().splitlines()) == 1 + 150 * 25


def test_a_stopped_discovery_is_not_asked_for_more(root, in_process):
    write_exam(root, "a", "1", "wait w")
    stopped, more = threading.Event(), threading.Event()

    def slow(root):
        yield WorkUnit("u0", (InputFile("a/exam", 9),), "0")
        assert stopped.wait(60)
        yield WorkUnit("u1", (InputFile("a/exam", 9),), "1")
        more.set()

    run = start(root, None, discover=slow)
    finished = in_thread(run)
    in_process.await_wait("w")
    run.stop()
    stopped.set()
    assert not more.wait(SHORT_S)
    in_process.let_go("w")
    finished.join()
    assert run.summary.walked == 1


def test_the_order_of_the_input_is_the_order_of_work(root, in_process):
    for index in range(5):
        write_exam(root, f"f{index}", f"1.{index}")
    start(root, None).finish()
    assert (
        opened(root)
        == [unit.key for unit in discover(root)]
        == ["f0", "f1", "f2", "f3", "f4"]
    )
