"""``run.json``: what it says of the options, the files not used, the time and the memory of a run."""

import json
from pathlib import Path

import pytest
from fakes import start, write_exam

from spine_engine._version import __version__
from spine_engine.options import RunOptions
from spine_engine.pipeline import unit_worker
from spine_engine.run.memory import Resources
from spine_engine.scheduler import MemoryShare

pytestmark = pytest.mark.usefixtures("in_process")


def record(out):
    return json.loads((out / "run.json").read_text())


def test_the_options_are_those_that_really_ran(root, out, monkeypatch):
    monkeypatch.setattr("spine_engine.options.usable_cpus", lambda: 6)
    write_exam(root, "a", "1")
    memory = MemoryShare(usual_bytes=1 << 30, alone_bytes=1 << 31)
    resources = Resources(workers=2, memory=memory)
    start(
        root,
        out,
        workers=None,
        resources=resources,
        series_descriptions=Path("a/table.csv"),
        max_memory_bytes=1 << 32,
    ).finish()
    assert record(out)["options"] == {
        "workers": 2, "threads": 1, "schedule": "study", "max_batch": 32, "max_delay_ms": 2.0,
        "max_memory_bytes": 1 << 32, "backend": "openvino", "device": "cpu", "precision": "auto", "timeout_s": 300.0,
        "max_attempts": 2, "series_descriptions": "a/table.csv", "detector": True, "centers": None,
    }  # fmt: skip


def test_without_a_ceiling_of_memory_a_run_has_the_workers_of_its_options(
    root, out, in_process
):
    for name in "abc":
        write_exam(root, name, name, "turns 30000")
    start(root, out, workers=3).finish()
    assert record(out)["options"]["workers"] == 3
    assert record(out)["options"]["series_descriptions"] is None
    assert in_process.most_in_flight == 3
    assert in_process.limits == []


class FakeModels:
    """Shared models that are never started."""

    peak_memory_bytes = 50

    def __init__(self):
        self.told = []

    def ensure(self, *, gone=None):
        self.told.append("ensure")

    def close(self):
        self.told.append("close")


def test_a_run_with_shared_models_says_so_and_ends_them(root, out):
    models = FakeModels()
    write_exam(root, "a", "1")
    start(root, out, companion=models, schedule="batch", threads=1).finish()
    assert record(out)["options"]["schedule"] == "batch"
    assert models.told == ["ensure", "close"]
    assert record(out)["peak_memory_bytes"]["workers"][-1] == 50


def test_the_first_hundred_files_that_were_not_used_are_named_and_all_are_counted(
    root, out
):
    for number in range(101):
        (root / f"{number:03}").write_text("")
    start(root, out).finish()
    refused = record(out)["refused_files"]
    assert refused == {"total": 101, "by_reason": {"not_an_image": 101}}
    examples = record(out)["refused_examples"]
    assert [example["path"] for example in examples] == [
        f"{number:03}" for number in range(100)
    ]


def test_time_and_memory_are_those_of_the_run(root, out, monkeypatch):
    times = iter([100.0, 108.0])
    monkeypatch.setattr(
        "spine_engine.run.run.time.monotonic", lambda: next(times, 108.0)
    )
    monkeypatch.setattr("spine_engine.run.run.peak_memory_bytes", lambda: 1000)
    monkeypatch.setattr("spine_engine.scheduler.pool.peak_memory_bytes", lambda: 300)
    for name in "ab":
        write_exam(root, name, name)
    start(root, out).finish()
    said = record(out)
    assert (said["wall_s"], said["studies_per_s"]) == (8.0, 0.25)
    assert said["peak_memory_bytes"] == {"main": 1000, "workers": [300], "total": 1300}
    assert said["stage_seconds"] == {"grade": 0.004, "read": 0.002}
    assert said["engine_version"] == __version__
    assert said["bundle"] == {"name": "fake", "version": "1", "digest": "b1"}


def test_a_run_hands_its_limits_to_the_pool(root, monkeypatch):
    class SeenError(Exception):
        pass

    def pool(factory, **how):
        raise SeenError(factory, how)

    monkeypatch.setattr("spine_engine.run.plan.WorkerPool", pool)
    memory, models = MemoryShare(usual_bytes=1, alone_bytes=2), FakeModels()
    resources = Resources(workers=4, memory=memory)
    run = start(
        root,
        None,
        factory="factory",
        resources=resources,
        companion=models,
        timeout_s=7.5,
    )
    with pytest.raises(SeenError) as seen:
        run.finish()
    factory, how = seen.value.args
    how.pop("on_facts")
    assert (factory, how) == (
        "factory",
        {"workers": 4, "timeout_s": 7.5, "memory": memory, "companion": models},
    )


@pytest.mark.parametrize("timeout_s", [7.5, RunOptions().timeout_s])
def test_the_time_limit_of_a_study_bounds_its_reading_too(root, monkeypatch, timeout_s):
    from types import SimpleNamespace

    from fakes import discover

    read = []

    def read_unit(folder, unit, overrides, limits):
        read.append((folder, unit.key, overrides, limits.study_s))
        return SimpleNamespace(studies=(), split=(), refused=())

    monkeypatch.setattr(unit_worker, "read_unit", read_unit)
    monkeypatch.setattr(unit_worker, "opened_bundle", lambda path, digest: "bundle")
    monkeypatch.setattr(
        unit_worker,
        "PipelineModels",
        lambda *how: SimpleNamespace(devices={}, grader=None),
    )
    write_exam(root, "a", "1")
    (unit,) = discover(root)
    unit_worker.UnitWorker(
        root, Path("b"), "d", RunOptions(timeout_s=timeout_s), "overrides"
    ).run(unit)
    assert read == [(root, "a", "overrides", timeout_s)]
