"""What two runs must share to share an output folder: each part, changed alone, is refused by its name."""

from functools import partial

import pytest
from fakes import FakeWorker, start, write_exam

from spine_engine._version import __version__
from spine_engine.backends.base import Device
from spine_engine.dicom.discovery import discover as dicom_discover
from spine_engine.engine import Engine
from spine_engine.errors import OutputError, UsageError
from spine_engine.options import RunOptions
from spine_engine.run import tuning
from spine_engine.run.memory import Resources
from spine_engine.run.plan import RunPlan
from spine_engine.run.run import RunIdentity

pytestmark = pytest.mark.usefixtures("in_process")

BUNDLE = {"name": "n", "version": "1", "digest": "d1"}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with one exam, and the output folder of a run over it."""
    from inprocess import Workers

    place = tmp_path_factory.mktemp("identity")
    write_exam(place / "input", "a", "1")
    workers = Workers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spine_engine.scheduler.pool.ProcessPoolExecutor", workers.pool)
        assert start(place / "input", place / "out").finish().exit_code == 0
    return place / "input", place / "out"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"bundle": "b2"}, "bundle b1, this run has b2"),
        ({"backend": "onnxruntime"}, "backend openvino, this run has onnxruntime"),
        ({"device": "cpu:1", "schedule": "study"}, "device cpu, this run has cpu:1"),
        ({"precision": "f32"}, "precision auto, this run has f32"),
        ({"series": "table"}, "series descriptions none, this run has table"),
        ({"detector": False}, "detector on, this run has off"),
        ({"schedule": "batch", "threads": 1}, "schedule study, this run has batch"),
        ({"threads": 2}, "threads 1, this run has 2"),
    ],
)
def test_a_run_of_another_kind_is_refused_and_changes_nothing(done, changed, said):
    root, out = done
    before = (out / "predictions.csv").read_bytes()
    with pytest.raises(OutputError) as refused:
        start(root, out, **changed).finish()
    assert str(refused.value) == (
        f"{out} holds results made with {said}; choose another output folder, or delete that one to start again"
    )
    assert (out / "predictions.csv").read_bytes() == before
    assert start(root, out).finish().resumed == 1


def test_another_version_of_the_engine_is_refused(done, monkeypatch):
    monkeypatch.setattr("spine_engine.run.run.__version__", "99.0")
    with pytest.raises(OutputError, match=r"engine version .*, this run has 99\.0;"):
        start(*done).finish()


def test_another_input_is_refused(done, tmp_path):
    root, out = done
    write_exam(tmp_path / "other", "a", "1")
    with pytest.raises(
        OutputError, match=f"input {root}, this run has {tmp_path / 'other'};"
    ):
        start(tmp_path / "other", out).finish()


def test_models_that_run_on_something_else_are_refused(done):
    root, out = done
    write_exam(root, "b", "2")
    moved = partial(FakeWorker, devices={"grader": Device("fake", "npu", "f32")})
    with pytest.raises(
        OutputError, match=r'device of the grader \{.*"cpu".*\}, this run has \{.*"npu"'
    ):
        start(root, out, worker=moved).finish()
    (root / "b" / "exam").unlink()


@pytest.mark.parametrize(
    "changed",
    [
        {"workers": 2},
        {"timeout_s": 9.0},
        {"max_attempts": 5},
        {"schedule": "study"},  # what "auto" is on a CPU
        {"threads": 1},  # what is taken where none are given
        {"max_batch": 8},
        {"max_delay_ms": 0.5},
        {"max_memory_bytes": 1 << 33},
    ],
)
def test_what_decides_no_result_may_change_between_runs(done, changed):
    assert start(*done, **changed).finish().resumed == 1


def facts(**changed):
    return RunIdentity(
        bundle=BUNDLE, options=RunOptions(**changed), series_descriptions="s1"
    ).facts("in")


def test_the_facts_of_a_run_are_these():
    assert facts() == {
        "engine version": __version__, "bundle": "d1", "input": "in", "backend": "openvino", "device": "cpu",
        "precision": "auto", "series descriptions": "s1", "detector": "on", "centres": "none",
        "schedule": "study", "threads": "1",
        "shard": "1/1",
    }  # fmt: skip


def test_threads_count_on_a_cpu_alone():
    assert facts(threads=3)["threads"] == "3"
    assert facts(threads=3, device="CPU")["threads"] == "3"
    assert facts(threads=3, device="cuda")["threads"] == "-"
    assert facts(device="cuda")["schedule"] == "batch"


class FakeBundle:
    facts = BUNDLE


def engine_with(monkeypatch, options, asked):
    def plan(root, bundle, options):
        asked.append((root, bundle, options))
        return RunPlan(
            root=root, discover=dicom_discover, factory="factory", resources=Resources(workers=7, memory=None),
            timeout_s=1.0, max_attempts=1, series_descriptions="table of 3 series",
        )  # fmt: skip

    monkeypatch.setattr("spine_engine.run.plan.plan_run", plan)
    monkeypatch.setattr(
        tuning,
        "tuned",
        lambda options, bundle: RunOptions(workers=options.workers, threads=2),
    )
    return Engine(FakeBundle(), options)


def test_the_engine_plans_the_run_with_what_was_tuned_and_keeps_its_identity(
    root, out, monkeypatch
):
    asked = []
    run = engine_with(monkeypatch, RunOptions(workers=5), asked).run(
        str(root), str(out)
    )
    ((planned_root, bundle, options),) = asked
    assert (planned_root, bundle.facts, options) == (
        root,
        BUNDLE,
        RunOptions(workers=5, threads=2),
    )
    kept = run._identity.facts(run._plan.root)
    assert (kept["series descriptions"], kept["bundle"], kept["threads"]) == (
        "table of 3 series",
        "d1",
        "2",
    )
    assert kept["input"] == str(root)
    assert run.output == out
    assert (run._plan.discover, run._plan.factory, run._plan.resources.workers) == (
        dicom_discover,
        "factory",
        7,
    )


def test_the_engine_refuses_an_input_before_anything_is_planned(tmp_path, monkeypatch):
    asked = []
    with pytest.raises(UsageError, match="does not exist"):
        engine_with(monkeypatch, RunOptions(), asked).run(tmp_path / "missing")
    assert asked == []


def test_the_engine_opens_the_bundle_named_or_the_packaged_one(monkeypatch, tmp_path):
    from spine_engine.bundle import Bundle, examination

    monkeypatch.setattr(Bundle, "open", lambda path, trust: ("opened", path))
    tried = []
    monkeypatch.setattr(examination, "examine", tried.append)
    assert Engine.open().bundle == ("opened", None)
    assert Engine.open(str(tmp_path)).bundle == ("opened", tmp_path)
    assert tried == [("opened", tmp_path)]
    Engine.open(tmp_path, trust=True)
    assert len(tried) == 1
    assert Engine.open().options == RunOptions()
    assert Engine.open(options=RunOptions(workers=2)).options == RunOptions(workers=2)
