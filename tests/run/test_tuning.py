"""What ``tune`` measures, what it keeps, and which runs use it."""

import dataclasses
import json

import pytest
from test_run_walk import ALL_THREE, write_bundle
from typer.testing import CliRunner

from spine_engine import cli
from spine_engine.bundle import Bundle
from spine_engine.dicom import WorkUnit, discover
from spine_engine.engine import Engine
from spine_engine.errors import BackendError
from spine_engine.options import RunOptions, usable_cpus
from spine_engine.phantom import write_studies
from spine_engine.tuning import (
    Measured,
    Setting,
    chosen,
    default_setting,
    measure,
    remember,
    settings_to_try,
    tuned,
)

SETTING = Setting(workers=3, threads=2, schedule="batch", precision="f32")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle")


def measured(rate, **changed):
    return Measured(setting=dataclasses.replace(SETTING, **changed), rates=(rate, rate * 3, rate) if rate else ())


def test_the_fastest_is_chosen_and_the_default_stays_unless_something_is_clearly_faster():
    default, hardly, clearly = measured(10.0), measured(10.2, workers=4), measured(10.9, workers=5)
    assert chosen([default, hardly]) is default
    assert chosen([default, hardly, clearly]) is clearly
    broken = Measured(setting=SETTING, rates=(), failure="no such thing")
    assert chosen([broken, hardly]) is hardly
    with pytest.raises(BackendError, match="no such thing"):
        chosen([broken])


def test_what_is_tried_begins_with_the_default_and_holds_nothing_twice():
    for options in (RunOptions(), RunOptions(device="cuda"), RunOptions(precision="bf16")):
        for cpus in (1, 2, 16, 86, 384):
            tried = settings_to_try(options, cpus)
            for one in tried:
                dataclasses.replace(options, **dataclasses.asdict(one))  # options allow it
            assert tried[0] == default_setting(options)
            assert len(tried) == len(set(tried))
            assert {one.precision for one in tried} == ({"auto", "f32"} if options.precision == "auto" else {"bf16"})
    assert {one.schedule for one in settings_to_try(RunOptions(), 4)} == {"study"}  # shared models vary in last digits
    assert {one.schedule for one in settings_to_try(RunOptions(device="cuda"), 4)} == {"batch"}


@pytest.mark.usefixtures("cache")
def test_what_was_found_is_used_where_nothing_is_said_and_only_for_what_it_holds(bundle, tmp_path):
    assert tuned(RunOptions(), bundle) == RunOptions()
    remember(bundle, RunOptions(), Measured(setting=SETTING, rates=(1.0,)))
    found = tuned(RunOptions(), bundle)
    assert default_setting(found) == SETTING
    assert tuned(RunOptions(workers=1), bundle) == RunOptions(workers=1, precision="f32")
    assert tuned(RunOptions(schedule="study", precision="bf16"), bundle) == RunOptions(
        schedule="study", precision="bf16"
    )
    for other in (RunOptions(backend="onnxruntime"), RunOptions(device="cuda"), RunOptions(detector=False)):
        assert tuned(other, bundle) == other
    another = write_bundle(tmp_path / "another", roles=ALL_THREE)
    assert tuned(RunOptions(), another) == RunOptions()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    for _ in write_studies(folder, 1, 5):
        pass
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_studies_are_walked_in_each_setting_and_the_run_then_uses_the_best(root):
    bundle = Bundle.open()
    units = [item for item in discover(root) if isinstance(item, WorkUnit) and item.study_id]
    options = RunOptions()
    default = Setting(workers=1, threads=1, schedule="study", precision="auto")
    shared = dataclasses.replace(default, workers=2, schedule="batch")
    half = dataclasses.replace(default, precision="f16")
    told = []
    found = measure(root, units, bundle, options, [default, shared, half], rounds=1, done=told.append)
    assert [len(one.rates) for one in found] == [1, 1, 0]
    assert all(rate > 0 for one in found for rate in one.rates)
    assert "f16" in found[2].failure
    assert len(told) == 3
    remember(bundle, options, found[1])
    run = Engine(bundle, options).run(root)
    record = run.finish().record()
    assert (record["options"]["workers"], record["options"]["schedule"]) == (2, "batch")
    assert record["studies"]["total"] == 1


@pytest.mark.usefixtures("cache")
def test_the_command_measures_and_remembers(root, tmp_path, monkeypatch):
    def pretend(folder, units, bundle, options, settings, *, rounds, done):
        assert (folder, len(units), rounds) == (root, 1, 1)
        return [Measured(setting=setting, rates=(1.0,)) for setting in settings]

    monkeypatch.setattr("spine_engine.tuning.measure", pretend)
    words = ["tune", "--input", str(root), "--rounds", "1"]
    ended = CliRunner().invoke(cli.app, words)
    assert ended.exit_code == 0, ended.output
    assert f"{usable_cpus()} workers" in ended.output
    assert "<- kept" in ended.output
    assert tuned(RunOptions(), Bundle.open()).workers == usable_cpus()
    ended = CliRunner().invoke(cli.app, [*words, "--json"])
    assert json.loads(ended.stdout)["chosen"]["workers"] == usable_cpus()
    (tmp_path / "none").mkdir()
    words[2] = str(tmp_path / "none")
    ended = CliRunner().invoke(cli.app, words)
    assert ended.exit_code == 2
    assert "holds no DICOM study" in ended.output
