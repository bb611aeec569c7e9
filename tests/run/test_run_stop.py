"""A run that is stopped finishes what is open and writes its files; one that is aborted ends at once without."""

import asyncio
import json
import threading
from functools import partial

import pytest
from fakes import FakeWorker, discover, opened, start, write_exam

from spine_engine.errors import OutputError
from spine_engine.run.dispatcher import Progress
from spine_engine.run.ledger import Ledger


def exams(root, *deeds):
    for index, deed in enumerate(deeds):
        write_exam(root, f"f{index}", f"1.{index}", deed)


def in_thread(run):
    """Finish the run in a thread, which keeps what it gave."""

    def finish():
        thread.summary = run.finish()

    thread = threading.Thread(target=finish)
    thread.start()
    return thread


def names(out):
    return sorted(path.name for path in out.glob("*.[cj]*"))


def test_a_stopped_run_finishes_what_is_open_writes_its_files_and_goes_on_later(
    root, out, in_process
):
    exams(root, "grade", "wait a", "grade", "grade")
    run = start(root, out)
    finished = in_thread(run)
    in_process.await_wait("a")
    run.stop()
    assert run.progress.stopped
    assert not in_process.pools[0].ended
    in_process.let_go("a")
    finished.join()
    summary = finished.summary
    assert (
        summary.interrupted,
        summary.exit_code,
        summary.studies,
        summary.walked,
    ) == (True, 130, 2, 2)
    assert opened(root) == ["f0", "f1"]
    assert names(out) == ["predictions.csv", "run.json", "studies.jsonl"]
    assert len((out / "studies.jsonl").read_text().splitlines()) == 2
    assert json.loads((out / "run.json").read_text())["interrupted"] is True
    for index in range(4):
        write_exam(root, f"f{index}", f"1.{index}", "wait a" if index == 1 else "grade")
    again = start(root, out).finish()
    assert (again.studies, again.walked, again.resumed, again.exit_code) == (4, 2, 2, 0)
    assert opened(root) == ["f0", "f1", "f2", "f3"]


def test_a_run_that_is_stopped_before_it_begins_walks_nothing(root, out, in_process):
    exams(root, "grade")
    run = start(root, out)
    run.stop()
    summary = run.finish()
    assert (summary.interrupted, summary.walked, opened(root)) == (True, 0, [])
    assert names(out) == ["predictions.csv", "run.json", "studies.jsonl"]


def test_a_stopped_run_forgets_nothing_that_it_has_not_met(root, out, in_process):
    exams(root, "grade", "grade", "grade")
    start(root, out).finish()
    write_exam(root, "f0", "1.0", "graded otherwise")
    run = start(root, out)
    for _ in run:
        run.stop()
    assert run.summary.studies == 3
    assert start(root, out).finish().studies == 3


def test_a_stopped_run_puts_no_scattered_study_together(root, out, in_process):
    write_exam(root, "a", "1")
    write_exam(root, "b", "1", "second half")
    run = start(root, out)
    for number, _ in enumerate(run):
        if number == 1:
            run.stop()
    assert opened(root)[:2] == ["a", "b"]
    assert start(root, out).finish().studies == 1
    assert opened(root).count("//merged/1") == 1


def test_stopping_while_scattered_studies_are_put_together_leaves_the_rest(
    root, out, in_process
):
    class Stopping(FakeWorker):
        def outcome(self, unit):
            if unit.key.startswith("//"):
                run.stop()
            return super().outcome(unit)

    for name, study in zip("abcdef", "112233", strict=True):
        write_exam(root, name, study, name)
    run = start(root, out, worker=Stopping)
    summary = run.finish()
    assert opened(root) == [*"abcdef", "//merged/1"]
    assert run.progress.found == 6 + 2  # one was put together and one was next
    assert summary.interrupted
    start(root, out).finish()
    assert opened(root)[7:] == ["//merged/2", "//merged/3"]


def test_a_run_stopped_there_keeps_what_earlier_runs_put_together(
    root, out, in_process
):
    class Stopping(FakeWorker):
        def outcome(self, unit):
            if unit.key.startswith("//"):
                run.stop()
            return super().outcome(unit)

    for name, study in (("a", "1"), ("b", "1"), ("c", "2"), ("d", "2")):
        write_exam(root, name, study, name)
    start(root, out).finish()
    write_exam(root, "b", "1", "otherwise")
    run = start(root, out, worker=Stopping)
    run.finish()
    assert opened(root)[6:] == ["b", "//merged/1"]
    assert start(root, out).finish().walked == 0


def test_a_second_stop_and_a_stop_after_the_end_do_nothing(root, in_process):
    exams(root, "grade")
    run = start(root, None)
    run.finish()
    run.stop()
    run.abort()
    assert run.summary.exit_code == 0


def test_an_aborted_run_ends_its_workers_and_writes_no_files(root, out, in_process):
    exams(root, "grade", "wait a", "grade")
    run = start(root, out)
    finished = in_thread(run)
    in_process.await_wait("a")
    run.abort()
    finished.join()
    assert in_process.pools
    assert all(pool.ended for pool in in_process.pools)
    assert (run.summary.interrupted, run.summary.exit_code, run.summary.walked) == (
        True,
        130,
        1,
    )
    assert names(out) == []
    assert run.progress.stopped
    summary = start(root, out, worker=partial(FakeWorker, waited=True)).finish()
    assert (summary.resumed, summary.walked) == (1, 2)


def test_a_run_that_is_aborted_before_it_begins_walks_nothing(root, out, in_process):
    exams(root, "grade")
    run = start(root, out)
    run.abort()
    assert run.finish().interrupted
    assert (opened(root), names(out)) == ([], [])


def test_leaving_the_loop_ends_the_run_at_once(root, out, in_process):
    exams(root, "grade", "wait a", "grade")
    run = start(root, out)
    for result in run:
        in_process.await_wait("a")
        assert result.study_id == "1.0"
        break
    assert not run._thread.is_alive()
    assert all(pool.ended for pool in in_process.pools)
    assert opened(root) == ["f0", "f1"]
    assert names(out) == []


def test_an_error_in_the_reader_ends_the_run(root, in_process):
    exams(root, "grade", "wait a")
    run = start(root, None)

    def read():
        for _ in run:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()
    assert not run._thread.is_alive()


def test_a_run_can_be_carried_out_once(root, in_process):
    exams(root, "grade")
    run = start(root, None)
    run.finish()
    with pytest.raises(RuntimeError, match="once"):
        run.finish()

    async def again():
        async for _ in run:
            pass

    with pytest.raises(RuntimeError, match="once"):
        asyncio.run(again())


def test_an_error_of_the_run_lets_what_was_read_stand(root, out, in_process):
    def broken(folder):
        yield from discover(folder)
        raise OutputError("gone")

    exams(root, "grade")
    results = iter(start(root, out, discover=broken))
    with pytest.raises(OutputError, match="gone"):
        list(results)
    assert start(root, out).finish().studies == 1


def test_results_are_in_the_ledger_before_they_are_told(root, out, in_process):
    exams(root, "grade", "grade")
    run = start(root, out)
    told = []
    finish = Ledger.finish

    def noted(self, unit, results, refused):
        told.append(("recorded", unit.key))
        return finish(self, unit, results, refused)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "finish", noted)
        told.extend(("told", result.study_id) for result in run)
    assert told.index(("recorded", "f0")) < told.index(("told", "1.0"))
    assert told.index(("recorded", "f1")) < told.index(("told", "1.1"))


def test_progress_says_how_far_the_run_is(root, out, in_process):
    assert Progress() == Progress(
        found=0, resumed=0, processed=0, refused=0, discovering=True, stopped=False
    )
    exams(root, "grade", "prior", "die", "wait a")
    (root / "README").write_text("no exam")
    run = start(root, out, max_attempts=1)
    finished = in_thread(run)
    in_process.await_wait("a")
    for _ in range(5000):
        if not run.progress.discovering:
            break
        finished.join(0.01)
    progress = run.progress
    assert (
        progress.found,
        progress.processed,
        progress.refused,
        progress.discovering,
    ) == (4, 3, 1, False)
    assert dict(progress.statuses) == {"graded": 1, "prior": 1, "failed": 1}
    assert dict(progress.stage_seconds) == {"read": 0.001, "grade": 0.002}
    in_process.let_go("a")
    finished.join()
    assert (progress.processed, progress.resumed, progress.stopped) == (4, 0, False)
    run = start(root, out)
    run.finish()
    assert (run.progress.found, run.progress.processed, run.progress.resumed) == (
        4,
        0,
        4,
    )
