"""Which models a worker opens and how, and what they take."""

import dataclasses

import numpy as np
import pytest
from made_studies import OPTIONS, FakeModel, write_bundles

from spine_engine.bundle import Bundle
from spine_engine.errors import BundleError
from spine_engine.options import RunOptions
from spine_engine.pipeline import models as models_room
from spine_engine.pipeline import unit_worker
from spine_engine.pipeline.models import (
    PipelineModels,
    TimedModel,
    in_two_stages,
    open_role,
)
from spine_engine.pipeline.unit_worker import UnitWorker


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A bundle of each kind, written once."""
    return write_bundles(tmp_path_factory.mktemp("bundles"))


@pytest.mark.parametrize(
    ("name", "detector", "opened_at_once", "fallback"),
    [
        ("two", True, ["detector", "grader"], False),
        ("all", True, ["detector", "grader"], True),
        (
            "vfr",
            True,
            ["detector", "grader", "vertebra_appearance", "vertebra_context"],
            False,
        ),
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
        return FakeModel(role)

    options = dataclasses.replace(OPTIONS, detector=detector)
    models = PipelineModels(bundles[name], options, opener)
    assert roles == opened_at_once
    assert list(models.devices) == opened_at_once
    two_stages = in_two_stages(bundles[name], options)
    assert two_stages == ("grader" in opened_at_once)
    assert (models.grader is not None, models.detector is not None) == (
        two_stages,
        two_stages,
    )
    whole = models.whole_study_grader()
    assert (whole is not None) == fallback
    assert models.whole_study_grader() is whole
    wanted = opened_at_once + ["whole_study_grader"] * (fallback and two_stages)
    assert roles == wanted
    assert {role: device.backend for role, device in models.devices.items()} == {
        role: role for role in wanted
    }


@pytest.mark.parametrize("name", ["all", "vfr", "whole"])
def test_every_model_is_closed(bundles, name):
    made = []

    def opener(role):
        made.append(FakeModel(role))
        return made[-1]

    models = PipelineModels(bundles[name], OPTIONS, opener)
    models.whole_study_grader()
    assert [model.closed for model in made] == [0] * len(made)
    models.close()
    assert len(made) == {"all": 3, "vfr": 4, "whole": 1}[name]
    assert [model.closed for model in made] == [1] * len(made)


def test_a_run_without_the_detector_finds_no_levels(bundles):
    models = PipelineModels(bundles["whole"], OPTIONS, FakeModel)
    with pytest.raises(ValueError, match="no detector"):
        models.find_levels([[]])


def test_levels_are_found_by_the_decoder_of_the_bundle_with_its_networks_in_order(
    bundles, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        models_room,
        "level_finder",
        lambda *given: asked.append(given) or (lambda series: (series, "found")),
    )
    for name in ("two", "vfr"):
        models = PipelineModels(bundles[name], OPTIONS, FakeModel)
        assert models.find_levels([["a"], ["b"]]) == ([["a"], ["b"]], "found")
    (decoder, spec, networks), (other, no_spec, three) = asked
    assert (decoder, spec) == ("level_heatmaps", bundles["two"].detector.spec)
    assert [network.device.backend for network in networks] == ["detector"]
    assert (other, no_spec) == ("vfr", None)
    assert [network.device.backend for network in three] == [
        "detector",
        "vertebra_appearance",
        "vertebra_context",
    ]


def test_a_model_adds_up_its_time_even_where_it_fails(monkeypatch):
    ticks = iter([10.0, 12.0, 100.0, 103.0])
    monkeypatch.setattr(models_room, "perf_counter", lambda: next(ticks))
    backend = FakeModel("grader")
    model = TimedModel("entry", backend)
    assert (model.entry, model.seconds) == ("entry", 0.0)
    assert (model.inputs, model.outputs, model.device) == (
        backend.inputs,
        backend.outputs,
        backend.device,
    )
    assert model.run({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[2, 2]]
    assert model.seconds == 2.0
    backend.error = FloatingPointError("x")
    with pytest.raises(FloatingPointError):
        model.run({"x": np.ones((1, 2), np.float32)})
    assert model.seconds == 5.0


def test_a_model_is_opened_as_the_run_asks(bundles, monkeypatch):
    asked = []
    monkeypatch.setattr(
        Bundle,
        "open_model",
        lambda *given, **named: asked.append((given, named)) or FakeModel(),
    )
    options = RunOptions(
        backend="onnxruntime", device="CUDA:1", precision="bf16", threads=7
    )
    open_role(bundles["all"], options, "whole_study_grader")
    assert asked == [
        (
            (bundles["all"], bundles["all"].manifest.models.whole_study_grader),
            {
                "name": "onnxruntime",
                "device": "CUDA:1",
                "precision": "bf16",
                "threads": 7,
            },
        )
    ]
    with pytest.raises(BundleError, match="whole_study_grader"):
        open_role(bundles["two"], options, "whole_study_grader")


def test_a_worker_asks_a_shared_model_where_it_is_told_of_one(bundles, monkeypatch):
    asked = []
    monkeypatch.setattr(
        unit_worker,
        "ServedBackend",
        lambda address, role: asked.append((address, role)) or FakeModel(role),
    )
    args = (
        bundles["two"].path,
        bundles["two"].path,
        bundles["two"].digest,
        OPTIONS,
        None,
    )
    made = UnitWorker(*args, "there")
    assert asked == [("there", "detector"), ("there", "grader")]
    assert set(made.facts) == {"detector", "grader"}
    UnitWorker(*args)
    assert len(asked) == 2
