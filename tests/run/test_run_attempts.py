"""How often a study is tried, in what company, and what is held against it."""

import json

import pytest
from fakes import FakeWorker, Hung, discover, no_backend, opened, start, write_exam

from spine_engine.dicom.discovery import InputFile, RefusedFile, WorkUnit
from spine_engine.errors import BackendError, BundleError, OutputError, Reason
from spine_engine.pipeline.outcome import UnitOutcome
from spine_engine.run.ledger import Ledger
from spine_engine.run.memory import Resources
from spine_engine.scheduler import MemoryShare, SharedFaultError, WorkerSlot

MIB = 1 << 20
ALONE = frozenset()


def ended(run):
    return {
        result.study_id: (str(result.status), result.reason and str(result.reason))
        for result in run
    }


def state(out, unit):
    """What the ledger holds against a unit."""
    ledger = Ledger(out / "ledger.sqlite", {})
    known = ledger.meet(unit)
    ledger.close()
    return known.attempts, known.faults, known.last_fault


@pytest.mark.parametrize("most", [1, 2, 3, 10])
@pytest.mark.parametrize(
    ("deed", "reason"), [("die", "worker_died"), ("hang", "timeout")]
)
def test_a_study_is_tried_as_often_as_allowed_and_fails_with_what_ended_it(
    root, in_process, deed, reason, most
):
    write_exam(root, "a", "1", deed)
    assert ended(start(root, None, max_attempts=most, timeout_s=0.001)) == {
        "1": ("failed", reason)
    }
    assert opened(root) == ["a"] * most
    assert len(in_process.pools) == most


@pytest.mark.parametrize(
    ("most", "outcome"), [(1, ("failed", "worker_died")), (2, ("graded", None))]
)
def test_a_worker_that_dies_once_costs_one_attempt(
    root, out, in_process, most, outcome
):
    write_exam(root, "a", "1", "die-once a")
    assert ended(start(root, out, max_attempts=most)) == {"1": outcome}
    assert len(opened(root)) == most


def test_the_last_fault_is_the_reason(root, in_process):
    class Both(FakeWorker):
        def do(self, deed):
            if len(opened(root)) == 2:
                raise Hung
            super().do("die")

    write_exam(root, "a", "1")
    run = start(root, None, worker=Both, timeout_s=0.001)
    assert ended(run) == {"1": ("failed", "timeout")}


def test_a_study_that_killed_its_worker_is_tried_again_alone(root, in_process):
    write_exam(root, "a", "1", "turns 200")
    write_exam(root, "b", "2", "die-once b")
    write_exam(root, "c", "3", "turns 200")
    assert len(ended(start(root, None, workers=3))) == 3
    first, second = in_process.beside["b"]
    assert "a" in first
    assert second == ALONE


def test_no_study_is_begun_beside_one_that_runs_alone(root, in_process):
    class Slow(FakeWorker):
        def do(self, deed):
            super().do(deed)
            super().do("turns 300")

    write_exam(root, "a", "1", "die-once a")
    for name in "bcd":
        write_exam(root, name, name)
    start(root, None, workers=4, worker=Slow).finish()
    assert in_process.beside["a"][1] == ALONE
    assert all(
        "a" not in beside[-1] for key, beside in in_process.beside.items() if key != "a"
    )
    assert len(in_process.beside) == 4


def test_a_study_out_of_time_is_tried_again_in_company(root, in_process):
    write_exam(root, "a", "1", "wait a")
    write_exam(root, "b", "2", "hang")
    run = start(root, None, workers=2, timeout_s=86400)
    slot_result = WorkerSlot._result

    async def out_of_patience(
        self, future, timeout_s
    ):  # a study waits for "a"; the other's time is up at once
        hung = (
            timeout_s == 86400
            and "b" in in_process.in_flight
            and self._executor.key == "b"
        )
        return await slot_result(self, future, 0.001 if hung else timeout_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkerSlot, "_result", out_of_patience)
        results = iter(run)
        assert next(results).reason is Reason.TIMEOUT
    in_process.let_go("a")
    assert [result.study_id for result in results] == ["1"]
    assert in_process.beside["b"] == [frozenset("a"), frozenset("a")]


def test_a_study_that_vanished_with_the_whole_run_is_tried_alone(root, out, in_process):
    write_exam(root, "a", "1", "turns 200")
    write_exam(root, "b", "2")
    run = start(root, out, workers=2)
    begun(run, out, "b")
    assert len(ended(run)) == 2
    assert in_process.beside["b"] == [ALONE]


def begun(run, out, *keys):
    """Record attempts that ended with the whole run: by a power cut, or a kill of the main process."""
    out.mkdir(exist_ok=True)
    units = {unit.key: unit for unit in discover(run._plan.root)}
    ledger = Ledger(out / "ledger.sqlite", run._identity.facts(run._plan.root))
    for key in keys:
        ledger.meet(units[key])
        ledger.begin(units[key])
    ledger.close()


@pytest.mark.parametrize(
    ("before", "most", "tried"), [(1, 2, 1), (2, 2, 1), (3, 2, 0), (1, 1, 1), (2, 1, 0)]
)
def test_attempts_that_ended_with_the_whole_run_may_be_one_more_than_faults(
    root, out, in_process, before, most, tried
):
    write_exam(root, "a", "1")
    run = start(root, out, max_attempts=most)
    begun(run, out, *["a"] * before)
    assert ended(run) == {"1": ("graded", None) if tried else ("failed", "worker_died")}
    assert len(opened(root)) == tried


def test_faults_of_earlier_runs_count(root, out, in_process):
    write_exam(root, "a", "1", "die")
    run = start(root, out, max_attempts=3)
    begun(run, out, "a")
    ledger = Ledger(out / "ledger.sqlite", run._identity.facts(run._plan.root))
    (unit,) = discover(root)
    ledger.fault(unit, Reason.TIMEOUT)
    ledger.close()
    assert ended(run) == {"1": ("failed", "worker_died")}
    assert len(opened(root)) == 2


def test_the_reason_of_an_earlier_run_is_kept_when_nothing_is_tried_any_more(
    root, out, in_process
):
    write_exam(root, "a", "1")
    run = start(root, out, max_attempts=1)
    begun(run, out, "a")
    ledger = Ledger(out / "ledger.sqlite", run._identity.facts(run._plan.root))
    (unit,) = discover(root)
    ledger.fault(unit, Reason.TIMEOUT)
    ledger.close()
    assert ended(run) == {"1": ("failed", "timeout")}
    assert opened(root) == []


def test_a_unit_whose_study_is_not_known_is_a_refused_file_when_it_dies(
    root, out, in_process
):
    write_exam(root, "nameless", "8", "die")
    summary = start(root, out).finish()
    assert (summary.studies, dict(summary.refused_files)) == (0, {"worker_died": 1})
    assert summary.refused_examples == [("nameless", "worker_died")]
    assert summary.walked == 1


def test_an_error_of_the_engine_costs_one_attempt_and_says_its_type_alone(
    root, out, in_process
):
    write_exam(root, "a", "1", "raise")
    (result,) = start(root, out)
    assert (result.reason, result.detail) == (
        Reason.INTERNAL_ERROR,
        "ZeroDivisionError",
    )
    assert opened(root) == ["a"]
    assert "PATIENT" not in (out / "studies.jsonl").read_text()


@pytest.mark.parametrize("error", [BackendError, BundleError, OutputError])
def test_an_error_that_no_other_study_would_escape_ends_the_run_and_is_held_against_none(
    root, out, in_process, error
):
    class Refusing(FakeWorker):
        def do(self, deed):
            raise error("cannot go on")

    write_exam(root, "a", "1")
    run = start(root, out, worker=Refusing)
    with pytest.raises(error, match="cannot go on"):
        run.finish()
    assert opened(root) == ["a"]
    (unit,) = discover(root)
    assert state(out, unit) == (0, 0, None)
    assert not (out / "predictions.csv").exists()


def test_a_worker_that_cannot_start_is_held_against_no_study(root, out, in_process):
    write_exam(root, "a", "1")
    with pytest.raises(BackendError, match="no such backend here"):
        start(root, out, factory=no_backend).finish()
    (unit,) = discover(root)
    assert state(out, unit) == (0, 0, None)


def test_a_run_that_is_ended_takes_back_the_attempts_in_flight(root, out, in_process):
    write_exam(root, "a", "1", "grade")
    write_exam(root, "b", "2", "wait b")
    for result in start(root, out):
        assert result.study_id == "1"
        in_process.await_wait("b")
        break
    units = {unit.key: unit for unit in discover(root)}
    assert state(out, units["b"]) == (0, 0, None)
    assert opened(root) == ["a", "b"]


def lost_models(monkeypatch, losses):
    """Let the first attempts at a unit lose the shared models."""
    run, left = WorkerSlot.run, dict(losses)

    async def losing(self, unit):
        outcome = await run(self, unit)
        if left.get(unit.key, 0):
            left[unit.key] -= 1
            raise SharedFaultError
        return outcome

    monkeypatch.setattr(WorkerSlot, "run", losing)


@pytest.mark.parametrize(
    ("losses", "most", "outcome", "tries"),
    [
        (1, 2, ("graded", None), 2),
        (
            2,
            2,
            ("graded", None),
            3,
        ),  # the first is held against none: it may have been another's fault
        (3, 2, ("failed", "worker_died"), 3),
        (1, 1, ("graded", None), 2),
        (2, 1, ("failed", "worker_died"), 2),
    ],
)
def test_a_study_that_loses_the_shared_models_is_tried_alone(
    root, in_process, monkeypatch, losses, most, outcome, tries
):
    lost_models(monkeypatch, {"a": losses})
    write_exam(root, "a", "1")
    write_exam(root, "b", "2", "turns 300")
    assert ended(start(root, None, workers=2, max_attempts=most))["1"] == outcome
    assert len(in_process.beside["a"]) == tries
    assert in_process.beside["a"][1:] == [ALONE] * (tries - 1)


@pytest.mark.parametrize(
    ("usual", "alone", "needs", "reason", "tries"),
    [
        (400, 800, 399, None, 1),
        (400, 800, 401, None, 2),
        (400, 800, 800, None, 2),
        (400, 800, 801, "out_of_memory", 2),
        (800, 800, 801, "out_of_memory", 2),
    ],
)
def test_a_study_beyond_its_share_is_begun_again_alone_with_all_the_memory(
    root, out, in_process, usual, alone, needs, reason, tries
):
    write_exam(root, "a", "1", f"allocate {needs}")
    memory = MemoryShare(usual_bytes=usual * MIB, alone_bytes=alone * MIB)
    (result,) = start(
        root, out, resources=Resources(workers=2, memory=memory), max_attempts=1
    )
    assert result.reason == reason
    assert len(opened(root)) == tries
    given = [(usual * MIB, alone * MIB), (alone * MIB, alone * MIB)]
    assert [limit[1:] for limit in in_process.limits] == given[:tries]


def test_a_suspect_that_had_all_the_memory_is_not_begun_again(root, out, in_process):
    write_exam(root, "a", "1", "allocate 900")
    memory = MemoryShare(usual_bytes=400 * MIB, alone_bytes=800 * MIB)
    run = start(root, out, resources=Resources(workers=2, memory=memory))
    begun(run, out, "a")
    assert ended(run) == {"1": ("failed", "out_of_memory")}
    assert opened(root) == ["a"]


def test_a_study_that_ran_out_of_memory_is_tried_again_by_the_next_run(
    root, out, in_process
):
    write_exam(root, "a", "1", "allocate 900")
    memory = MemoryShare(usual_bytes=400 * MIB, alone_bytes=800 * MIB)
    assert start(
        root, out, resources=Resources(workers=1, memory=memory)
    ).finish().reasons == {"out_of_memory": 1}
    again = start(root, out, resources=Resources(workers=1, memory=memory)).finish()
    assert (again.resumed, again.walked, again.reasons) == (0, 1, {"out_of_memory": 1})
    more = MemoryShare(usual_bytes=1000 * MIB, alone_bytes=1000 * MIB)
    assert start(
        root, out, resources=Resources(workers=1, memory=more)
    ).finish().statuses == {"graded": 1}
    assert (
        start(root, out, resources=Resources(workers=1, memory=more)).finish().resumed
        == 1
    )


def test_without_a_ceiling_too_a_study_out_of_memory_is_tried_again_alone_by_another_worker(
    root, in_process
):
    class Poor(FakeWorker):
        def do(self, deed):
            raise MemoryError

    write_exam(root, "a", "1")
    run = start(root, None, worker=Poor)
    assert ended(run) == {"1": ("failed", "out_of_memory")}
    assert (len(opened(root)), in_process.limits) == (2, [])
    assert len(in_process.pools) == 2


class Splitting(FakeWorker):
    """Splits a folder and refuses one of its files; an unnamed part stays whole."""

    def outcome(self, unit):
        outcome = super().outcome(unit)
        if outcome.split:
            return UnitOutcome(
                split=outcome.split,
                refused=(RefusedFile("flat/odd", Reason.NOT_AN_IMAGE),),
            )
        return outcome


def test_a_folder_of_several_studies_is_counted_by_its_studies(root, out, in_process):
    for name in "xyz":
        write_exam(root, "flat", f"1.{name}", name=name)
    run = start(root, out, worker=Splitting)
    assert sorted(ended(run)) == ["1.x", "1.y", "1.z"]
    progress = run.progress
    assert (progress.found, progress.processed, progress.refused, progress.resumed) == (
        3,
        3,
        1,
        0,
    )
    assert dict(run.summary.refused_files) == {"not_an_image": 1}
    again = start(root, out, worker=Splitting)
    assert ended(again) == {}
    progress = again.progress
    assert (progress.found, progress.processed, progress.refused, progress.resumed) == (
        3,
        0,
        0,
        3,
    )
    assert dict(again.summary.refused_files) == {"not_an_image": 1}
    assert opened(root) == ["flat", "flat#1.x", "flat#1.y", "flat#1.z"]


def test_a_part_that_fails_does_not_bring_its_folder_back(root, out, in_process):
    write_exam(root, "flat", "1.x", name="x")
    write_exam(root, "flat", "1.y", "die", name="y")
    assert ended(start(root, out)) == {
        "1.x": ("graded", None),
        "1.y": ("failed", "worker_died"),
    }
    assert opened(root) == ["flat", "flat#1.x", "flat#1.y", "flat#1.y"]


def test_a_study_in_several_places_comes_once_more_from_all_of_them(
    root, out, in_process
):
    write_exam(root, "a", "1")
    write_exam(root, "b", "1", "second half")
    write_exam(root, "c", "2")
    run = start(root, out, workers=2)
    assert sorted(result.study_id for result in run) == ["1", "1", "1", "2"]
    assert (run.progress.found, run.progress.processed, run.summary.studies) == (
        4,
        4,
        2,
    )
    assert opened(root)[-1] == "//merged/1"
    assert len((out / "studies.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("gone", ["b", "ab"])
def test_what_came_of_all_places_is_forgotten_when_one_of_them_is_gone(
    root, out, tmp_path, in_process, gone
):
    write_exam(root, "a", "1")
    write_exam(root, "b", "1", "second half")
    write_exam(root, "c", "2")
    start(root, out).finish()

    def fewer(root):
        return (unit for unit in discover(root) if unit.key not in gone)

    assert ended(start(root, out, discover=fewer)) == {}
    start(root, tmp_path / "fresh", discover=fewer).finish()
    for file in ("predictions.csv", "studies.jsonl"):
        assert (out / file).read_bytes() == (tmp_path / "fresh" / file).read_bytes()


@pytest.mark.parametrize("deed", ["die", "hang"])
def test_a_scattered_study_that_dies_when_it_is_put_together_is_failed(
    root, out, in_process, deed
):
    class Fragile(FakeWorker):
        def do(self, word):
            super().do(deed if opened(root)[-1].startswith("//") else word)

    write_exam(root, "a", "1")
    write_exam(root, "b", "1", "second half")
    run = start(root, out, worker=Fragile, timeout_s=0.001)
    run.finish()
    (line,) = (
        json.loads(line) for line in (out / "studies.jsonl").read_text().splitlines()
    )
    assert (line["status"], line["reason"]) == (
        "failed",
        {"die": "worker_died", "hang": "timeout"}[deed],
    )


@pytest.mark.parametrize("results", ["none", "two", "another", "split"])
def test_files_that_do_not_read_as_one_study_together_are_a_collision(
    root, out, in_process, results
):
    class Odd(FakeWorker):
        def outcome(self, unit):
            outcome = super().outcome(unit)
            if not unit.key.startswith("//"):
                return outcome
            if results == "split":
                return UnitOutcome(
                    split=(WorkUnit("p", (InputFile("a/exam", 1),), "1"),)
                )
            (result,) = outcome.results
            other = type(result)(study_id="9", status=result.status, rows=result.rows)
            return UnitOutcome(
                results={"none": (), "two": (result, result), "another": (other,)}[
                    results
                ]
            )

    write_exam(root, "a", "1")
    write_exam(root, "b", "1", "second half")
    run = start(root, out, worker=Odd)
    run.finish()
    (line,) = (
        json.loads(line) for line in (out / "studies.jsonl").read_text().splitlines()
    )
    assert (line["study_id"], line["status"], line["reason"]) == (
        "1",
        "failed",
        "uid_collision",
    )


def test_files_refused_when_a_scattered_study_is_read_together_are_counted(
    root, out, in_process
):
    class Refusing(FakeWorker):
        def outcome(self, unit):
            outcome = super().outcome(unit)
            refused = (
                (RefusedFile("a/odd", Reason.CORRUPT_FILE),)
                if unit.key.startswith("//")
                else ()
            )
            return UnitOutcome(results=outcome.results, refused=refused)

    write_exam(root, "a", "1")
    write_exam(root, "b", "1", "second half")
    run = start(root, out, worker=Refusing)
    assert dict(run.finish().refused_files) == {"corrupt_file": 1}
    assert run.progress.refused == 1
