"""What a run plans, and in what batches shared models are called."""

import dataclasses

import pytest
from made_studies import OPTIONS, FakeModel, write_bundle, write_bundles

from spine_engine.backends import Profile
from spine_engine.bundle import Bundle
from spine_engine.dicom import discover
from spine_engine.errors import BundleError, UsageError
from spine_engine.run import plan as plan_room
from spine_engine.run.memory import Resources
from spine_engine.run.plan import ServedModels, plan_run


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A bundle of each kind, written once."""
    return write_bundles(tmp_path_factory.mktemp("bundles"))


@pytest.mark.parametrize(
    ("timeout_s", "call_s"),
    [(300.0, 150.0), (400.0, 150.0), (100.0, 50.0), (298.0, 149.0)],
)
def test_a_call_of_a_shared_model_may_take_half_a_studys_time_and_150_seconds_at_most(
    tmp_path, bundles, monkeypatch, timeout_s, call_s
):
    made = []

    class Process:
        address = "there"

        def __init__(self, factory, *, call_timeout_s):
            made.append((factory, call_timeout_s))

    monkeypatch.setattr(plan_room, "ModelServer", Process)
    options = dataclasses.replace(OPTIONS, schedule="batch", timeout_s=timeout_s)
    plan = plan_run(tmp_path, bundles["two"], options)
    ((factory, seconds),) = made
    assert seconds == call_s
    assert isinstance(plan.companion, Process)
    assert (factory.func, factory.args) == (
        ServedModels,
        (bundles["two"].path, bundles["two"].digest, options),
    )
    assert plan.factory.args[:4] == (
        tmp_path,
        bundles["two"].path,
        bundles["two"].digest,
        options,
    )
    assert plan.factory.args[5] == "there"


def test_workers_with_models_of_their_own_share_no_process(tmp_path, bundles):
    plan = plan_run(
        tmp_path, bundles["two"], dataclasses.replace(OPTIONS, schedule="study")
    )
    assert plan.companion is None
    assert plan.factory.args[5] is None
    assert plan.discover is discover


def test_memory_is_divided_for_every_model_of_the_bundle(
    tmp_path, bundles, monkeypatch
):
    asked = []

    def divide_memory(options, *, model_bytes):
        asked.append((options, model_bytes))
        return Resources(workers=3, memory=None)

    monkeypatch.setattr(plan_room, "divide_memory", divide_memory)
    assert plan_run(tmp_path, bundles["all"], OPTIONS).resources.workers == 3
    files = [
        bundles["all"].path / name
        for name in ("detector.onnx", "grader.onnx", "whole.onnx")
    ]
    assert asked == [(OPTIONS, sum(file.stat().st_size for file in files))]


def test_the_series_table_that_decides_is_told_apart_by_what_it_says(tmp_path, bundles):
    rows = ["1,2,Sagittal T1", "1,3,Axial T2"]

    def told(name, *lines):
        path = tmp_path / name
        path.write_text(
            "study_id,series_id,series_description\n"
            + "".join(f"{line}\n" for line in lines)
        )
        options = dataclasses.replace(OPTIONS, series_descriptions=path)
        return plan_run(tmp_path, bundles["two"], options).series_descriptions

    one = told("a.csv", *rows)
    assert len(one) == 64
    assert told("b.csv", *rows[::-1]) == one  # the order of its lines decides nothing
    others = [
        told("c.csv", rows[0]),
        told("d.csv", rows[0], "1,3,Sagittal T2/STIR"),
        told("e.csv", rows[0], "2,3,Axial T2"),
    ]
    assert len({one, *others}) == 4


def test_series_descriptions_are_part_of_what_decides_the_results(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    root = tmp_path / "images"
    (root / "1").mkdir(parents=True)
    assert plan_run(root, bundle, OPTIONS).series_descriptions == "none"
    table = tmp_path / "train_series_descriptions.csv"
    table.write_text("study_id,series_id,series_description\n1,2,Sagittal T1\n")
    found = plan_run(root, bundle, OPTIONS).series_descriptions
    given = dataclasses.replace(OPTIONS, series_descriptions=table)
    assert found == plan_run(root, bundle, given).series_descriptions != "none"
    assert plan_run(root, bundle, OPTIONS).series_tables == {
        "used": [table.name],
        "left_out": {},
    }
    with pytest.raises(UsageError, match="missing"):
        plan_run(
            root,
            bundle,
            dataclasses.replace(OPTIONS, series_descriptions=tmp_path / "missing.csv"),
        )


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
def test_shared_models_are_called_with_these_batches(
    bundles, monkeypatch, role, most, profile, sizes
):
    options = dataclasses.replace(OPTIONS, max_batch=most, max_delay_ms=3.5)
    served = ServedModels(bundles["all"].path, bundles["all"].digest, options)
    entry = bundles["all"].entry(role)
    if profile is not None:
        (least, usual, largest), batches = profile
        rest = tuple(size or 64 for size in entry.inputs[0].shape[1:])
        shapes = {
            "smallest": (least, *rest),
            "usual": (usual, *rest),
            "largest": (largest, *rest),
        }
        entry = dataclasses.replace(entry, profile=Profile(**shapes, batches=batches))
    model = FakeModel(role)
    monkeypatch.setattr(Bundle, "entry", lambda _, asked: {role: entry}[asked])
    monkeypatch.setattr(
        plan_room,
        "open_role",
        lambda bundle, given, asked: (
            model if (given, asked) == (options, role) else None
        ),
    )
    backend, policy = served(role)
    assert backend is model
    assert policy.sizes == sizes
    assert policy.max_delay_ms == 3.5


def test_a_bundle_that_changed_since_is_refused_by_shared_models_too(bundles):
    with pytest.raises(BundleError, match="'fake' was changed while the run started"):
        ServedModels(bundles["two"].path, "0" * 64, OPTIONS)
