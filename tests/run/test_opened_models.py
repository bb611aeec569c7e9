"""Which models a worker opens and how, what a run plans, and in what batches shared models are called."""

import dataclasses

import numpy as np
import pytest
from walk_fakes import ALL_THREE, OPTIONS, TWO_STAGES, WHOLE, detection, write_bundle

from spine_engine import opened, walk
from spine_engine.backends import Device, Profile, TensorInfo
from spine_engine.bundle import Bundle
from spine_engine.errors import BundleError
from spine_engine.opened import OpenModel, OpenModels, in_two_stages, open_role
from spine_engine.options import RunOptions
from spine_engine.resources import Resources


class Model:
    """A backend that notes what it is asked and that it was closed."""

    inputs = (TensorInfo("x", (None, 2)),)
    outputs = (TensorInfo("y", (None, 2)),)

    def __init__(self, role="model", error=None):
        self.role, self.error, self.closed = role, error, 0
        self.device = Device(role, "CPU", "f32")

    def run(self, inputs):
        if self.error:
            raise self.error
        return {"y": inputs["x"] * 2}

    def close(self):
        self.closed += 1


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A bundle of each kind, written once."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {name: write_bundle(folder / name, roles=roles) for name, roles in
            {"two": TWO_STAGES, "all": ALL_THREE, "whole": WHOLE}.items()}  # fmt: skip
    return made | {"vfr": write_bundle(folder / "vfr", "vfr")}


@pytest.mark.parametrize(
    ("name", "detector", "opened_at_once", "fallback"),
    [
        ("two", True, ["detector", "grader"], False),
        ("all", True, ["detector", "grader"], True),
        ("vfr", True, ["detector", "grader", "vertebra_appearance", "vertebra_context"], False),
        ("whole", True, ["whole_study_grader"], True),
        ("all", False, ["whole_study_grader"], True),
        ("two", False, [], False),
    ],
)
def test_what_every_study_needs_is_opened_at_once_and_the_fallback_when_first_needed(
    bundles, name, detector, opened_at_once, fallback
):
    roles = []

    def opener(role):
        roles.append(role)
        return Model(role)

    options = dataclasses.replace(OPTIONS, detector=detector)
    models = OpenModels(bundles[name], options, opener)
    assert roles == opened_at_once
    assert list(models.devices) == opened_at_once
    two_stages = in_two_stages(bundles[name], options)
    assert two_stages == ("grader" in opened_at_once)
    assert (models.grader is not None, models.detector is not None) == (two_stages, two_stages)
    whole = models.whole_study_grader()
    assert (whole is not None) == fallback
    assert models.whole_study_grader() is whole
    wanted = opened_at_once + ["whole_study_grader"] * (fallback and two_stages)
    assert roles == wanted
    assert {role: device.backend for role, device in models.devices.items()} == {role: role for role in wanted}


@pytest.mark.parametrize("name", ["all", "vfr", "whole"])
def test_every_model_is_closed(bundles, name):
    made = []

    def opener(role):
        made.append(Model(role))
        return made[-1]

    models = OpenModels(bundles[name], OPTIONS, opener)
    models.whole_study_grader()
    assert [model.closed for model in made] == [0] * len(made)
    models.close()
    assert len(made) == {"all": 3, "vfr": 4, "whole": 1}[name]
    assert [model.closed for model in made] == [1] * len(made)


def test_a_run_without_the_detector_finds_no_levels(bundles):
    models = OpenModels(bundles["whole"], OPTIONS, Model)
    with pytest.raises(ValueError, match="no detector"):
        models.find_levels([[]])


def test_levels_are_found_by_the_decoder_of_the_bundle_with_its_networks_in_order(bundles, monkeypatch):
    asked = []
    monkeypatch.setattr(
        opened, "level_finder", lambda *given: asked.append(given) or (lambda series: (series, "found"))
    )
    for name in ("two", "vfr"):
        models = OpenModels(bundles[name], OPTIONS, Model)
        assert models.find_levels([["a"], ["b"]]) == ([["a"], ["b"]], "found")
    (decoder, spec, networks), (other, no_spec, three) = asked
    assert (decoder, spec) == ("level_heatmaps", bundles["two"].detector.spec)
    assert [network.device.backend for network in networks] == ["detector"]
    assert (other, no_spec) == ("vfr", None)
    assert [network.device.backend for network in three] == ["detector", "vertebra_appearance", "vertebra_context"]


def test_an_open_model_adds_up_its_time_even_where_it_fails(monkeypatch):
    ticks = iter([10.0, 12.0, 100.0, 103.0])
    monkeypatch.setattr(opened, "perf_counter", lambda: next(ticks))
    backend = Model("grader")
    model = OpenModel("entry", backend)
    assert (model.entry, model.seconds) == ("entry", 0.0)
    assert (model.inputs, model.outputs, model.device) == (backend.inputs, backend.outputs, backend.device)
    assert model.run({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[2, 2]]
    assert model.seconds == 2.0
    backend.error = FloatingPointError("x")
    with pytest.raises(FloatingPointError):
        model.run({"x": np.ones((1, 2), np.float32)})
    assert model.seconds == 5.0


def test_a_model_is_opened_as_the_run_asks(bundles, monkeypatch):
    asked = []
    monkeypatch.setattr(Bundle, "open_model", lambda *given, **named: asked.append((given, named)) or Model())
    options = RunOptions(backend="onnxruntime", device="CUDA:1", precision="bf16", threads=7)
    open_role(bundles["all"], options, "whole_study_grader")
    assert asked == [
        (
            (bundles["all"], bundles["all"].manifest.models.whole_study_grader),
            {"name": "onnxruntime", "device": "CUDA:1", "precision": "bf16", "threads": 7},
        )
    ]
    with pytest.raises(BundleError, match="whole_study_grader"):
        open_role(bundles["two"], options, "whole_study_grader")


# ---- what a run plans ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("timeout_s", "call_s"), [(300.0, 150.0), (400.0, 150.0), (100.0, 50.0), (298.0, 149.0)])
def test_a_call_of_a_shared_model_may_take_half_a_studys_time_and_150_seconds_at_most(
    tmp_path, bundles, monkeypatch, timeout_s, call_s
):
    made = []

    class Process:
        address = "there"

        def __init__(self, factory, *, call_timeout_s):
            made.append((factory, call_timeout_s))

    monkeypatch.setattr(walk, "ModelProcess", Process)
    options = dataclasses.replace(OPTIONS, schedule="batch", timeout_s=timeout_s)
    plan = walk.plan_walk(tmp_path, bundles["two"], options)
    ((factory, seconds),) = made
    assert seconds == call_s
    assert isinstance(plan.models, Process)
    assert (factory.func, factory.args) == (
        walk.ServedModels,
        (bundles["two"].path, bundles["two"].digest, options),
    )
    assert plan.factory.args[:4] == (tmp_path, bundles["two"].path, bundles["two"].digest, options)
    assert plan.factory.args[5] == "there"


def test_workers_with_models_of_their_own_share_no_process(tmp_path, bundles):
    plan = walk.plan_walk(tmp_path, bundles["two"], dataclasses.replace(OPTIONS, schedule="study"))
    assert plan.models is None
    assert plan.factory.args[5] is None
    assert plan.discover is walk.discover


def test_memory_is_divided_for_every_model_of_the_bundle(tmp_path, bundles, monkeypatch):
    asked = []

    def divided(options, *, model_bytes):
        asked.append((options, model_bytes))
        return Resources(workers=3, memory=None)

    monkeypatch.setattr(walk, "divided", divided)
    assert walk.plan_walk(tmp_path, bundles["all"], OPTIONS).resources.workers == 3
    files = [bundles["all"].path / name for name in ("detector.onnx", "grader.onnx", "whole.onnx")]
    assert asked == [(OPTIONS, sum(file.stat().st_size for file in files))]


def test_a_walk_asks_a_shared_model_where_it_is_told_of_one(bundles, monkeypatch):
    asked = []
    monkeypatch.setattr(walk, "RemoteBackend", lambda address, role: asked.append((address, role)) or Model(role))
    args = (bundles["two"].path, bundles["two"].path, bundles["two"].digest, OPTIONS, None)
    made = walk.StudyWalk(*args, "there")
    assert asked == [("there", "detector"), ("there", "grader")]
    assert set(made.devices) == {"detector", "grader"}
    walk.StudyWalk(*args)
    assert len(asked) == 2


def test_the_series_table_that_decides_is_told_apart_by_what_it_says(tmp_path, bundles):
    rows = ["1,2,Sagittal T1", "1,3,Axial T2"]

    def told(name, *lines):
        path = tmp_path / name
        path.write_text("study_id,series_id,series_description\n" + "".join(f"{line}\n" for line in lines))
        options = dataclasses.replace(OPTIONS, series_descriptions=path)
        return walk.plan_walk(tmp_path, bundles["two"], options).series_descriptions

    one = told("a.csv", *rows)
    assert len(one) == 64
    assert told("b.csv", *rows[::-1]) == one  # the order of its lines decides nothing
    others = [
        told("c.csv", rows[0]),
        told("d.csv", rows[0], "1,3,Sagittal T2/STIR"),
        told("e.csv", rows[0], "2,3,Axial T2"),
    ]
    assert len({one, *others}) == 4


# ---- batches of shared models -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "most", "profile", "sizes"),
    [
        ("detector", 8, None, (1, 2, 4, 8)),
        ("detector", 9, None, (1, 2, 4, 8)),
        ("detector", 1, None, (1,)),
        ("grader", 32, None, (5, 10, 20)),
        ("grader", 9, None, (5,)),
        ("grader", 4, None, (4,)),  # a study's five levels are then called in parts
        ("whole_study_grader", 4, None, (1, 2, 4)),
        ("detector", 32, ((1, 4, 16), (1, 4)), (1, 2, 4, 8, 16)),
        ("detector", 32, ((1, 4, 16), (3, 6)), (1, 2, 3, 4, 6, 8, 16)),
        ("detector", 5, ((1, 4, 16), (3, 5, 6)), (1, 2, 3, 4, 5)),
        ("grader", 32, ((1, 5, 16), (1, 5)), (1, 5, 10)),
    ],
)
def test_shared_models_are_called_with_these_batches(bundles, monkeypatch, role, most, profile, sizes):
    options = dataclasses.replace(OPTIONS, max_batch=most, max_delay_ms=3.5)
    served = walk.ServedModels(bundles["all"].path, bundles["all"].digest, options)
    entry = bundles["all"].entry(role)
    if profile is not None:
        (least, usual, largest), batches = profile
        rest = tuple(size or 64 for size in entry.inputs[0].shape[1:])
        shapes = {"smallest": (least, *rest), "usual": (usual, *rest), "largest": (largest, *rest)}
        entry = dataclasses.replace(entry, profile=Profile(**shapes, batches=batches))
    model = Model(role)
    monkeypatch.setattr(Bundle, "entry", lambda _, asked: {role: entry}[asked])
    monkeypatch.setattr(
        walk, "open_role", lambda bundle, given, asked: model if (given, asked) == (options, role) else None
    )
    backend, policy = served(role)
    assert backend is model
    assert policy.sizes == sizes
    assert policy.max_delay_ms == 3.5


def test_a_bundle_that_changed_since_is_refused_by_shared_models_too(bundles):
    with pytest.raises(BundleError, match="'fake' was changed while the run started"):
        walk.ServedModels(bundles["two"].path, "0" * 64, OPTIONS)


def test_levels_are_told_in_their_own_order():
    found = detection()
    backwards = dataclasses.replace(found, levels=dict(reversed(list(found.levels.items()))))
    assert list(walk.level_results(backwards)) == ["l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1"]
    assert walk.level_results(backwards) == walk.level_results(found)
    assert walk.level_results(found)["l5_s1"].center_mm == (0.0, 0.0, -60.0)
