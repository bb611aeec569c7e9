"""What ``tune`` measures, what it keeps, and which runs use it."""

import dataclasses
from collections import Counter
from functools import partial

import pytest
from fakes import FakeWorker, made, opened, write_exam
from fakes import discover as fake_discover
from made_studies import ALL_THREE, write_bundle

from spine_engine.bundle import Bundle
from spine_engine.dicom import WorkUnit, discover
from spine_engine.engine import Engine
from spine_engine.errors import BackendError, Reason, UsageError
from spine_engine.options import RunOptions
from spine_engine.phantom import write_studies
from spine_engine.pipeline.outcome import UnitOutcome
from spine_engine.results import Status, ungraded
from spine_engine.run.memory import Resources
from spine_engine.run.plan import RunPlan
from spine_engine.run.tuning import (
    Measured,
    Setting,
    Workload,
    chosen,
    default_setting,
    measure,
    remember,
    remembered,
    settings_to_try,
    tuned,
)
from spine_engine.scheduler import MemoryShare, WorkerError

SETTING = Setting(workers=3, threads=2, schedule="batch", precision="f32")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle")


def measured(rate, **changed):
    return Measured(
        setting=dataclasses.replace(SETTING, **changed),
        rates=(rate, rate * 3, rate) if rate else (),
    )


def test_the_fastest_is_chosen_and_the_default_stays_unless_something_is_clearly_faster():
    default, hardly, clearly = (
        measured(10.0),
        measured(10.2, workers=4),
        measured(10.9, workers=5),
    )
    assert chosen([default, hardly]) is default
    assert chosen([default, hardly, clearly]) is clearly
    broken = Measured(setting=SETTING, rates=(), failure="no such thing")
    assert chosen([broken, hardly]) is hardly
    with pytest.raises(BackendError, match="no such thing"):
        chosen([broken])


@pytest.mark.parametrize(
    ("rate", "kept"), [(10.3, False), (10.301, True), (10.0, False)]
)
def test_a_setting_is_kept_from_three_per_cent_on(rate, kept):
    default, other = measured(10.0), measured(rate, workers=4)
    assert chosen([default, other]) is (other if kept else default)


def test_a_default_that_cannot_run_gives_way_to_any_and_names_its_reason_when_none_can():
    broken = [
        Measured(setting=SETTING, rates=(), failure=why) for why in ("first", "second")
    ]
    assert chosen([broken[0], measured(0.1)]).rate == 0.1
    with pytest.raises(BackendError, match="first"):
        chosen(broken)
    with pytest.raises(BackendError, match="nothing could be measured"):
        chosen([Measured(setting=SETTING, rates=())])


def test_the_rate_of_a_setting_is_the_median_of_its_rounds():
    assert Measured(setting=SETTING, rates=(1.0, 9.0, 2.0)).rate == 2.0
    assert Measured(setting=SETTING, rates=()).rate == 0.0


def test_a_setting_is_said_in_words():
    assert SETTING.words == "3 workers with shared models, 2 threads, f32"
    own = dataclasses.replace(SETTING, schedule="study")
    assert own.words == "3 workers with models of their own, 2 threads, f32"


@pytest.mark.parametrize(
    ("cpus", "options", "expected"),
    [
        # (workers, threads, schedule, precision), the default first
        (4, {}, [(4, 1, "study", "auto"), (5, 1, "study", "auto"), (2, 2, "study", "auto"), (4, 1, "study", "f32")]),
        (2, {}, [(2, 1, "study", "auto"), (3, 1, "study", "auto"), (1, 2, "study", "auto"), (2, 1, "study", "f32")]),
        (1, {}, [(1, 1, "study", "auto"), (2, 1, "study", "auto"), (1, 1, "study", "f32")]),
        (5, {"precision": "bf16"}, [(5, 1, "study", "bf16"), (6, 1, "study", "bf16"), (2, 2, "study", "bf16")]),
        (256, {"precision": "f32"}, [(256, 1, "study", "f32"), (128, 2, "study", "f32")]),
        (
            4,
            {"device": "CUDA"},
            [(6, 4, "batch", "auto"), (4, 4, "batch", "auto"), (8, 4, "batch", "auto"), (12, 4, "batch", "auto"),
             (6, 4, "batch", "f32")],
        ),
        (200, {"device": "cuda", "precision": "f16"}, [(256, 200, "batch", "f16"), (200, 200, "batch", "f16")]),
    ],
)  # fmt: skip
def test_these_settings_are_tried(monkeypatch, cpus, options, expected):
    monkeypatch.setattr("spine_engine.options.usable_cpus", lambda: cpus)
    tried = settings_to_try(RunOptions(**options), cpus)
    assert [dataclasses.astuple(one) for one in tried] == expected


def test_what_is_tried_begins_with_the_default_and_holds_nothing_twice():
    for options in (
        RunOptions(),
        RunOptions(device="cuda"),
        RunOptions(precision="bf16"),
    ):
        for cpus in (1, 2, 16, 86, 384):
            tried = settings_to_try(options, cpus)
            for one in tried:
                dataclasses.replace(
                    options, **dataclasses.asdict(one)
                )  # options allow it
            assert tried[0] == default_setting(options)
            assert len(tried) == len(set(tried))
            assert {one.precision for one in tried} == (
                {"auto", "f32"} if options.precision == "auto" else {"bf16"}
            )
    assert {one.schedule for one in settings_to_try(RunOptions(), 4)} == {
        "study"
    }  # shared models vary in last digits
    assert {one.schedule for one in settings_to_try(RunOptions(device="cuda"), 4)} == {
        "batch"
    }


@pytest.mark.usefixtures("cache")
def test_what_was_found_is_used_where_nothing_is_said_and_only_for_what_it_holds(
    bundle, tmp_path
):
    assert tuned(RunOptions(), bundle) == RunOptions()
    remember(bundle, RunOptions(), Measured(setting=SETTING, rates=(1.0,)))
    found = tuned(RunOptions(), bundle)
    assert default_setting(found) == SETTING
    assert tuned(RunOptions(workers=1), bundle) == RunOptions(
        workers=1, precision="f32"
    )
    assert tuned(RunOptions(schedule="study", precision="bf16"), bundle) == RunOptions(
        schedule="study", precision="bf16"
    )
    for other in (
        RunOptions(backend="onnxruntime"),
        RunOptions(device="cuda"),
        RunOptions(detector=False),
    ):
        assert tuned(other, bundle) == other
    assert tuned(RunOptions(threads=1), bundle) == RunOptions(
        threads=1, precision="f32"
    )
    assert tuned(RunOptions(device="CPU"), bundle).workers == 3
    assert tuned(RunOptions(precision="bf16"), bundle) == RunOptions(
        workers=3, threads=2, schedule="batch", precision="bf16"
    )
    assert remembered(bundle, RunOptions()) == SETTING
    another = write_bundle(tmp_path / "another", roles=ALL_THREE)
    assert tuned(RunOptions(), another) == RunOptions()


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    for _ in write_studies(folder, 1, 5):
        pass
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_studies_are_walked_in_each_setting_and_the_run_then_uses_the_best(phantoms):
    bundle = Bundle.open()
    units = [
        item
        for item in discover(phantoms)
        if isinstance(item, WorkUnit) and item.study_id
    ]
    options = RunOptions()
    default = Setting(workers=1, threads=1, schedule="study", precision="auto")
    shared = dataclasses.replace(default, workers=2, schedule="batch")
    half = dataclasses.replace(default, precision="f16")
    told = []
    found = measure(
        work(phantoms, units, bundle, options),
        [default, shared, half],
        rounds=1,
        done=told.append,
    )
    assert [len(one.rates) for one in found] == [1, 1, 0]
    assert all(rate > 0 for one in found for rate in one.rates)
    assert "f16" in found[2].failure
    assert len(told) == 3
    remember(bundle, options, found[1])
    run = Engine(bundle, options).run(phantoms)
    record = run.finish().record()
    assert (record["options"]["workers"], record["options"]["schedule"]) == (2, "batch")
    assert record["studies"]["total"] == 1


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("changed", ["version", "cpus", "instructions", "machine"])
def test_what_was_found_on_another_machine_or_version_is_not_used(
    bundle, monkeypatch, changed
):
    remember(bundle, RunOptions(), Measured(setting=SETTING, rates=(1.0,)))
    assert tuned(RunOptions(), bundle).workers == 3
    name, value = {
        "version": ("__version__", "99.0"),
        "cpus": ("usable_cpus", lambda: 999),
        "instructions": ("instruction_sets", lambda: {"none"}),
        "machine": ("platform.machine", lambda: "other"),
    }[changed]
    monkeypatch.setattr(f"spine_engine.run.tuning.{name}", value)
    assert tuned(RunOptions(), bundle) == RunOptions()


def work(root, units, bundle, options):
    return Workload(root=root, units=units, bundle=bundle, options=options)


def pretended(monkeypatch, rates):
    """Measure without walking: each setting's rates in turn, or the error it ends with."""
    asked = []

    async def rate(workload, setting):
        options = dataclasses.replace(workload.options, **dataclasses.asdict(setting))
        asked.append(
            (
                options.workers,
                options.schedule,
                options.threads,
                options.precision,
                options.backend,
            )
        )
        given = rates[options.workers].pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    monkeypatch.setattr("spine_engine.run.tuning._rate", rate)
    return asked


def test_settings_are_measured_in_turns_and_one_that_cannot_run_only_once(monkeypatch):
    settings = [dataclasses.replace(SETTING, workers=n) for n in (1, 2, 3)]
    rates = {
        1: [5.0, 6.0],
        2: [BackendError("no such"), 9.0],
        3: [7.0, WorkerError(Reason.TIMEOUT)],
    }
    asked = pretended(monkeypatch, rates)
    told = []
    options = RunOptions(backend="onnxruntime")
    found = measure(
        work("root", [], None, options), settings, rounds=2, done=told.append
    )
    assert [workers for workers, *_ in asked] == [1, 2, 3, 1, 3]
    assert {rest for _, *rest in map(list, asked) for rest in [tuple(rest)]} == {
        ("batch", 2, "f32", "onnxruntime")
    }
    assert [(one.setting.workers, one.rates, one.failure) for one in found] == [
        (1, (5.0, 6.0), None), (2, (), "no such"), (3, (7.0,), "timeout"),
    ]  # fmt: skip
    assert [(one.setting.workers, len(one.rates)) for one in told] == [
        (1, 1),
        (2, 0),
        (3, 1),
        (1, 2),
        (3, 1),
    ]


@pytest.fixture
def pretend_plan(root, in_process, monkeypatch):
    """Plans whose workers are fake, over two exams; returns the options that were planned with, and the units."""
    planned = []
    for name in "ab":
        write_exam(root, name, name)

    def plan(folder, bundle, options):
        planned.append(options)
        memory = MemoryShare(usual_bytes=4, alone_bytes=9)
        return RunPlan(
            root=root, discover=fake_discover, factory=partial(made, FakeWorker, root),
            resources=Resources(workers=options.workers, memory=memory), timeout_s=options.timeout_s, max_attempts=2,
        )  # fmt: skip

    monkeypatch.setattr("spine_engine.run.tuning.plan_run", plan)
    return planned


@pytest.mark.parametrize("workers", [1, 3])
def test_every_worker_walks_one_study_uncounted_and_four_each_are_timed(
    root, in_process, pretend_plan, monkeypatch, workers
):
    times = iter([100.0, 100.0 + 8.0])
    monkeypatch.setattr(
        "spine_engine.run.tuning.time.perf_counter", lambda: next(times)
    )
    setting = dataclasses.replace(SETTING, workers=workers, schedule="study")
    (found,) = measure(
        work(root, list(fake_discover(root)), None, RunOptions(timeout_s=9)),
        [setting],
        rounds=1,
    )
    assert found.rates == (workers * 4 / 8.0,)
    assert Counter(opened(root)).total() == workers * 5
    assert opened(root)[:2] == (["a", "b"] if workers > 1 else ["a", "a"])
    assert len(in_process.pools) == workers
    assert all(pool.ended for pool in in_process.pools)
    assert {limit[1:] for limit in in_process.limits} == {(4, 9)}
    (options,) = pretend_plan
    assert (options.workers, options.threads, options.schedule, options.timeout_s) == (
        workers,
        2,
        "study",
        9,
    )


def test_a_study_that_fails_cannot_be_tuned_with(
    root, in_process, pretend_plan, monkeypatch
):
    write_exam(root, "b", "b", "raise")

    class Failing(FakeWorker):
        def outcome(self, unit):
            return UnitOutcome(
                results=(ungraded("1", Status.FAILED, Reason.TOO_LARGE),)
            )

    monkeypatch.setattr("test_tuning.FakeWorker", Failing)
    setting = dataclasses.replace(SETTING, workers=1, schedule="study")
    with pytest.raises(
        UsageError,
        match="a study failed; tune with studies that 'spine-engine run' can grade",
    ):
        measure(
            work(root, list(fake_discover(root)), None, RunOptions()),
            [setting],
            rounds=1,
        )
    assert all(pool.ended for pool in in_process.pools)


def test_a_worker_that_dies_while_tuning_is_a_setting_that_cannot_run(
    root, in_process, pretend_plan
):
    write_exam(root, "a", "a", "die")
    setting = dataclasses.replace(SETTING, workers=1, schedule="study")
    (found,) = measure(
        work(root, list(fake_discover(root)), None, RunOptions()), [setting], rounds=2
    )
    assert (found.rates, found.failure) == ((), "worker_died")
    assert opened(root) == ["a"]
