"""What may be chosen about a run, its defaults and bounds; the codes a run ends with; the errors."""

import dataclasses
import os
import pickle
import re
from pathlib import Path

import pytest

from spine_engine import errors
from spine_engine.errors import Reason, StudyError, UsageError, Warn
from spine_engine.options import RunOptions, usable_cpus
from spine_engine.run.summary import RunSummary

DOCS = Path(__file__).parents[2] / "docs"


def test_nothing_chosen_means_this():
    assert dataclasses.asdict(RunOptions()) == {
        "workers": None, "threads": None, "schedule": "auto", "max_batch": 32, "max_delay_ms": 2.0,
        "max_memory_bytes": None, "backend": "openvino", "device": "cpu", "precision": "auto", "timeout_s": 300.0,
        "max_attempts": 2, "series_descriptions": None, "detector": True, "centers": None,
    }  # fmt: skip


BOUNDS = {
    "workers": (1, 256, 1),
    "threads": (1, 256, 1),
    "max_batch": (1, 1024, 1),
    "max_delay_ms": (0, 1000, 0.001),
    "timeout_s": (0.001, 86_400, 0.001),
    "max_attempts": (1, 10, 1),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_number_within_its_bounds_is_taken_and_one_just_outside_is_named(name):
    least, most, step = BOUNDS[name]
    for value in (least, most):
        assert getattr(RunOptions(**{name: value}), name) == value
    for value in (least - step, most + step, -1):
        with pytest.raises(
            UsageError, match=rf"^{name} must be .* got {re.escape(str(value))}$"
        ):
            RunOptions(**{name: value})


@pytest.mark.parametrize("name", ["backend", "device", "precision"])
def test_an_empty_word_is_refused(name):
    with pytest.raises(UsageError, match=f"{name} must not be empty"):
        RunOptions(**{name: ""})


def test_a_schedule_is_one_of_three():
    for schedule in ("auto", "study", "batch"):
        assert RunOptions(schedule=schedule).schedule == schedule
    with pytest.raises(
        UsageError, match="schedule must be one of auto, study, batch, got 'both'"
    ):
        RunOptions(schedule="both")


@pytest.fixture
def cpus(monkeypatch):
    def usable(count):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(count)))

    return usable


@pytest.mark.parametrize(
    ("schedule", "device", "batched"),
    [
        ("auto", "cpu", False), ("auto", "CPU", False), ("auto", "cuda", True), ("auto", "gpu.1", True),
        ("study", "cuda", False), ("batch", "cpu", True),
    ],
)  # fmt: skip
def test_models_are_shared_where_asked_or_off_the_cpu(schedule, device, batched):
    assert RunOptions(schedule=schedule, device=device).batched is batched


@pytest.mark.parametrize(
    ("count", "options", "workers", "threads"),
    [
        (6, {}, 6, 1),
        (6, {"schedule": "batch"}, 9, 6),
        (5, {"schedule": "batch"}, 8, 5),  # half as many more, rounded up
        (1, {"schedule": "batch"}, 2, 1),
        (6, {"workers": 2, "threads": 3}, 2, 3),
        (6, {"workers": 2, "schedule": "batch", "threads": 1}, 2, 1),
        (300, {}, 256, 1),
        (200, {"schedule": "batch"}, 256, 200),
        (300, {"schedule": "batch"}, 256, 256),
    ],
)
def test_workers_and_threads_come_from_the_cpus_where_left_open(
    cpus, count, options, workers, threads
):
    cpus(count)
    chosen = RunOptions(**options)
    assert (chosen.worker_count, chosen.thread_count) == (workers, threads)


def test_usable_cpus_are_those_of_this_process_and_at_least_one(cpus, monkeypatch):
    cpus(7)
    assert usable_cpus() == 7
    cpus(0)
    assert usable_cpus() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert usable_cpus() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus() == 1


CODES = {
    "SpineEngineError": 1, "UsageError": 2, "BundleError": 3, "BackendError": 4, "OutputBusyError": 5, "OutputError": 6
}  # fmt: skip


@pytest.mark.parametrize("name", CODES)
def test_each_error_has_its_exit_code(name):
    error = getattr(errors, name)
    assert error.exit_code == CODES[name]
    assert issubclass(error, errors.SpineEngineError)
    assert str(error("one line")) == "one line"


def test_an_error_of_a_study_carries_its_reason_across_processes():
    error = pickle.loads(pickle.dumps(StudyError(Reason.TOO_LARGE, "9 GB")))
    assert (error.reason, error.detail, str(error)) == (
        Reason.TOO_LARGE,
        "9 GB",
        "too_large: 9 GB",
    )
    assert str(StudyError(Reason.TOO_LARGE)) == "too_large"


@pytest.mark.parametrize(("codes", "heading"), [(Reason, "reason"), (Warn, "warning")])
def test_every_code_is_its_name_and_is_documented(codes, heading):
    text = (DOCS / "reasons.md").read_text(encoding="utf-8")
    table = text.split("## Warnings")[codes is Warn]
    documented = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    assert documented, heading
    assert sorted(documented) == sorted(str(code) for code in codes)
    assert all(code.value == code.name.lower() for code in codes)


def summary(**changed):
    values = {
        "engine_version": "9", "bundle": {"name": "b"}, "devices": {"grader": {"device": "cpu"}},
        "options": {"workers": 2}, "interrupted": False, "statuses": {"graded": 2}, "reasons": {}, "refused_files": {},
        "refused_examples": [], "walked": 2, "resumed": 0, "wall_s": 4.0, "stage_seconds": {},
        "peak_memory_bytes": {"main": 1, "workers": [2], "total": 3},
    }  # fmt: skip
    return RunSummary(**{**values, **changed})


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({}, 0),
        ({"statuses": {"graded": 1, "prior": 1}}, 8),
        ({"statuses": {"graded": 1, "failed": 1}}, 8),
        ({"statuses": {"prior": 2}}, 8),
        ({"statuses": {}}, 8),
        ({"refused_files": {"not_an_image": 9, "corrupt_file": 2}}, 0),
        ({"refused_files": {"unreadable": 1}}, 8),
        ({"refused_files": {"out_of_memory": 1}}, 8),
        ({"incomplete": 1}, 8),
        ({"refused_files": {"worker_died": 1}}, 8),
        ({"refused_files": {"timeout": 1}}, 8),
        ({"refused_files": {"internal_error": 1}}, 8),
        ({"refused_files": {"worker_died": 0}}, 0),
        ({"interrupted": True}, 130),
        ({"interrupted": True, "statuses": {"failed": 1}}, 130),
    ],
)
def test_a_run_ends_with_this_code(changed, code):
    assert summary(**changed).exit_code == code


def test_run_json_holds_this():
    record = summary(
        statuses={"failed": 1, "graded": 2}, reasons={"timeout": 1, "no_sagittal": 0},
        refused_files={"not_an_image": 3, "unreadable": 1}, refused_examples=[("x", "unreadable")], walked=2, resumed=4,
        incomplete=1, digests={"a": "b"}, series_tables={"used": ["t"]},
        wall_s=7.12345, stage_seconds={"read": 1.23456, "grade": 0.5},
    ).record()  # fmt: skip
    assert record == {
        "engine_version": "9",
        "note": "Research use only; not a medical device.",
        "bundle": {"name": "b"},
        "devices": {"grader": {"device": "cpu"}},
        "options": {"workers": 2},
        "interrupted": False,
        "shard": "1/1",
        "missing_shards": [],
        "studies": {"total": 3, "graded": 2, "prior": 0, "failed": 1, "incomplete": 1},
        "reasons": {"no_sagittal": 0, "timeout": 1},
        "refused_files": {
            "total": 4,
            "by_reason": {"not_an_image": 3, "unreadable": 1},
        },
        "refused_examples": [{"path": "x", "reason": "unreadable"}],
        "units": {"walked": 2, "resumed": 4},
        "wall_s": 7.123,
        "studies_per_s": 0.2808,
        "stage_seconds": {"grade": 0.5, "read": 1.235},
        "peak_memory_bytes": {"main": 1, "workers": [2], "total": 3},
        "series_tables": {"used": ["t"]},
        "sha256": {"a": "b"},
    }
    assert list(record["reasons"]) == ["no_sagittal", "timeout"]
    assert list(record["stage_seconds"]) == ["grade", "read"]
    assert list(record["studies"]) == [
        "total",
        "graded",
        "prior",
        "failed",
        "incomplete",
    ]
    assert summary(wall_s=0.0).record()["studies_per_s"] == 0.0
    assert summary(statuses={"graded": 2, "prior": 1}).studies == 3
