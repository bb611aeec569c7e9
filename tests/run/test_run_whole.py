"""Whole runs over fake exams: what the files hold, whatever happens on the way. No process is started."""

import csv
import json
import random
import shutil
import sqlite3
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from fakes import dies_at_start, discover, no_backend, opened, start, write_exam

from spine_engine.errors import BackendError, OutputBusyError, OutputError, UsageError
from spine_engine.run.folders import locked
from spine_engine.run.ledger import Ledger

pytestmark = pytest.mark.usefixtures("in_process")


def predictions(out):
    return (out / "predictions.csv").read_bytes()


def studies(out):
    lines = [
        json.loads(line) for line in (out / "studies.jsonl").read_text().splitlines()
    ]
    for line in lines:
        line["timings_ms"] = {}
    return lines


def by_id(out):
    return {
        study["study_id"]: (study["status"], study["reason"]) for study in studies(out)
    }


def manifest(out):
    return json.loads((out / "run.json").read_text())


def test_every_study_has_its_rows_and_its_line(root, out):
    for index in (10, 9, 2):
        write_exam(root, f"f{index}", f"1.{index}")
    write_exam(root, "p", "1.3", "prior")
    (root / "README").write_text("no exam")
    run = start(root, out)
    results = list(run)
    assert Counter(result.status for result in results) == {"graded": 3, "prior": 1}
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert len(rows) == 100
    assert [row[0].split("_")[0] for row in rows[::25]] == ["1.10", "1.2", "1.3", "1.9"]
    assert list(by_id(out)) == ["1.10", "1.2", "1.3", "1.9"]
    assert by_id(out)["1.3"] == ("prior", "no_sagittal")
    record = manifest(out)
    assert record["studies"] == {
        "total": 4,
        "graded": 3,
        "prior": 1,
        "failed": 0,
        "incomplete": 0,
    }
    assert record["refused_files"] == {"total": 1, "by_reason": {"not_an_image": 1}}
    assert record["devices"] == {
        "grader": {"backend": "fake", "device": "cpu", "precision": "f32"}
    }
    assert record["units"] == {"walked": 4, "resumed": 0}
    assert record["stage_seconds"] == {"grade": 0.006, "read": 0.003}
    assert record["options"]["workers"] == 1
    assert (
        record["peak_memory_bytes"]["total"] > record["peak_memory_bytes"]["main"] > 1e6
    )
    assert run.summary.exit_code == 8


def test_the_bytes_do_not_depend_on_workers_or_order(root, tmp_path):
    for index in range(8):
        write_exam(
            root, f"f{index}", f"1.{index}", "sleep 0.05" if index % 3 == 0 else "grade"
        )
    write_exam(root, "m", "1.1", "second part")  # a study met in two units
    start(root, tmp_path / "a", workers=1).finish()

    def shuffled(paths):
        return random.Random(4).sample(list(paths), k=9)

    start(
        root, tmp_path / "b", workers=2, discover=partial(discover, order=shuffled)
    ).finish()
    assert predictions(tmp_path / "a") == predictions(tmp_path / "b")
    assert studies(tmp_path / "a") == studies(tmp_path / "b")


def test_each_fault_costs_its_own_study_and_no_other(root, out):
    for name, deed in {
        "1": "grade", "2": "segfault", "3": "die-once c", "4": "hang", "5": "raise", "6": "sleep 0.1", "7": "no study"
    }.items():  # fmt: skip
        write_exam(root, name, name, deed)
    write_exam(root, "nameless", "8", "die")
    summary = start(root, out, workers=2, timeout_s=0.01).finish()
    assert by_id(out) == {
        "1": ("graded", None),
        "2": ("failed", "worker_died"),
        "3": ("graded", None),
        "4": ("failed", "timeout"),
        "5": ("failed", "internal_error"),
        "6": ("graded", None),
    }
    assert len(predictions(out).splitlines()) == 1 + 6 * 25
    assert Counter(opened(root)) == {
        "1": 1,
        "2": 2,
        "3": 2,
        "4": 2,
        "5": 1,
        "6": 1,
        "7": 1,
        "nameless": 2,
    }
    assert manifest(out)["refused_examples"] == [
        {"path": "7/exam", "reason": "corrupt_file"}, {"path": "nameless", "reason": "worker_died"},
    ]  # fmt: skip
    assert (
        next(study for study in studies(out) if study["study_id"] == "5")["detail"]
        == "ZeroDivisionError"
    )
    assert all(
        "PATIENT" not in path.read_text("utf-8", "replace") for path in out.iterdir()
    )
    assert summary.exit_code == 8


def test_several_studies_in_one_folder_are_walked_apart(root, out):
    for name in "xyz":
        write_exam(root, "flat", f"1.{name}", name=name)
    summary = start(root, out).finish()
    assert list(by_id(out)) == ["1.x", "1.y", "1.z"]
    assert (summary.exit_code, summary.walked) == (0, 3)
    again = start(root, out).finish()
    assert (again.walked, again.resumed) == (0, 3)
    assert len(opened(root)) == 4


def test_two_patients_under_one_id_are_never_merged(root, out):
    write_exam(root, "a", "1", "patient A")
    write_exam(root, "b", "1", "patient B")
    write_exam(root, "c", "2")
    start(root, out, workers=2).finish()
    assert by_id(out) == {"1": ("failed", "uid_collision"), "2": ("graded", None)}
    assert len(predictions(out).splitlines()) == 51


def test_a_model_that_a_study_needed_late_is_listed_with_what_it_ran_on(root, out):
    for number, deed in enumerate(["graded", "open whole_study_grader", "graded"]):
        write_exam(root, f"f{number}", f"1.{number}", deed)
    summary = start(root, out).finish()
    assert summary.exit_code == 0
    assert list(manifest(out)["devices"]) == ["grader", "whole_study_grader"]
    write_exam(root, "f9", "1.9")  # the next run does not need it
    assert list(start(root, out).finish().devices) == ["grader", "whole_study_grader"]


def test_a_model_that_cannot_be_opened_late_ends_the_run_and_counts_against_no_study(
    root, out
):
    write_exam(root, "a", "1")
    write_exam(root, "b", "2", "no-model whole_study_grader")
    for _ in range(4):  # more often than a study may fail
        with pytest.raises(BackendError, match="no whole_study_grader here"):
            start(root, out).finish()
    write_exam(root, "b", "2")
    assert start(root, out).finish().exit_code == 0


@pytest.mark.parametrize("detector", [True, False])
def test_results_with_and_without_the_detector_are_not_mixed(root, out, detector):
    write_exam(root, "a", "1")
    start(root, out, detector=detector).finish()
    assert manifest(out)["options"]["detector"] is detector
    with pytest.raises(OutputError, match="detector"):
        start(root, out, detector=not detector).finish()


def test_the_same_command_again_only_does_what_changed(root, out):
    for index in range(4):
        write_exam(root, f"f{index}", f"1.{index}")
    start(root, out).finish()
    before = predictions(out)
    (out / "predictions.csv").unlink()
    again = start(root, out)
    assert list(again) == []
    assert (again.summary.walked, again.summary.resumed, again.summary.exit_code) == (
        0,
        4,
        0,
    )
    assert predictions(out) == before
    assert manifest(out)["devices"] == {
        "grader": {"backend": "fake", "device": "cpu", "precision": "f32"}
    }
    write_exam(root, "f1", "1.1", "graded otherwise")
    shutil.rmtree(root / "f2")
    write_exam(root, "f9", "1.9")
    summary = start(root, out).finish()
    assert (summary.walked, summary.resumed) == (2, 2)
    assert list(by_id(out)) == ["1.0", "1.1", "1.3", "1.9"]
    assert predictions(out) != before


def test_results_made_with_another_bundle_or_option_are_not_mixed(root, out):
    write_exam(root, "a", "1")
    start(root, out).finish()
    with pytest.raises(
        OutputError, match=r"bundle b1, this run has b2; choose another output folder"
    ):
        start(root, out, bundle="b2").finish()
    with pytest.raises(OutputError, match="precision auto, this run has f32"):
        start(root, out, precision="f32").finish()
    other = root.parent / "other"
    write_exam(other, "a", "1")
    with pytest.raises(OutputError, match="input"):
        start(other, out).finish()
    assert (
        start(root, out, workers=2, timeout_s=9, max_attempts=5).finish().resumed == 1
    )


def test_an_output_inside_the_input_is_not_read_as_input(root):
    write_exam(root, "a", "1")
    out = root / "results" / "now"
    for _ in range(2):
        summary = start(root, out).finish()
        assert by_id(out) == {"1": ("graded", None)}
        assert summary.refused_files == {}
    with pytest.raises(UsageError, match="same folder"):
        start(root, root)


def test_an_output_in_use_is_refused(root, out):
    write_exam(root, "a", "1")
    with locked(out), pytest.raises(OutputBusyError, match="another run"):
        start(root, out).finish()
    assert start(root, out).finish().exit_code == 0


def test_an_output_that_cannot_be_written_is_refused(root, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "out", Path("/proc/spine-engine-out")):
        with pytest.raises(OutputError, match="cannot write"):
            start(root, place).finish()


def test_an_input_that_is_no_folder_is_wrong_usage(root, out, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(UsageError, match="give"):
            start(place, out)
    assert not out.exists()


def test_an_empty_input_is_not_a_success(root, out):
    summary = start(root, out).finish()
    assert summary.exit_code == 8
    assert predictions(out) == b"row_id,normal_mild,moderate,severe\n"


@pytest.mark.parametrize(
    ("factory", "message"),
    [(no_backend, "no such backend"), (dies_at_start, "died twice")],
)
def test_a_worker_that_cannot_start_ends_the_run(root, out, factory, message):
    for name in "abc":
        write_exam(root, name, name)
    with pytest.raises(BackendError, match=message):
        start(root, out, factory=factory, workers=2).finish()


def test_an_error_of_discovery_ends_the_run(root, out):
    def broken(folder):
        yield from discover(folder)
        raise UsageError("the folder went away")

    write_exam(root, "a", "1", "sleep 0.2")
    with pytest.raises(UsageError, match="went away"):
        start(root, out, discover=broken).finish()


def test_a_ledger_that_fails_in_the_middle_is_an_output_error(root, out, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    for name in "ab":
        write_exam(root, name, name)
    monkeypatch.setattr(Ledger, "finish", full)
    with pytest.raises(
        OutputError, match="disk is full; free space and run the command again"
    ):
        start(root, out).finish()


def test_without_an_output_nothing_is_kept(root):
    write_exam(root, "a", "1")
    run = start(root, None)
    (result,) = run
    assert result.study_id == "1"
    with pytest.raises(RuntimeError, match="once"):
        list(run)


def test_a_study_that_takes_the_whole_run_down_again_and_again_is_set_aside(root, out):
    for name in "abc":
        write_exam(root, name, name)
    first = start(root, out)
    units = {unit.key: unit for unit in discover(root)}
    out.mkdir()
    for attempts in ("ab", "ab", "a"):  # three runs that died with these studies open
        ledger = Ledger(out / "ledger.sqlite", first._identity.facts(first._plan.root))
        for key in attempts:
            ledger.meet(units[key])
            ledger.begin(units[key])
        ledger.close()
    assert first.finish().exit_code == 8
    assert by_id(out) == {
        "a": ("failed", "worker_died"),
        "b": ("graded", None),
        "c": ("graded", None),
    }
    assert opened(root) == ["b", "c"]
