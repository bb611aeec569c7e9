"""What is kept of a precision that passes or fails, what a comparison is worth, what makes no bundle: no model runs."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="needs the export extra: no export is shown"
)
pytest.importorskip("timm_3d", reason="needs the export extra: no export is shown")
pytest.importorskip("onnxscript", reason="needs the export extra: no export is shown")

from spine_engine.backends import cache as cache_room  # noqa: E402
from spine_engine.bundle import Bundle, file_facts, write_manifest  # noqa: E402
from spine_engine.errors import (  # noqa: E402
    BackendError,
    BundleError,
    Reason,
    StudyError,
    UsageError,
)
from spine_engine.pipeline.parity import LevelParity, Parity  # noqa: E402
from spine_export import bundle as bundle_room  # noqa: E402
from spine_export import engines as engines_room  # noqa: E402
from spine_export import precisions  # noqa: E402
from spine_export.pipelines import open_grader  # noqa: E402
from spine_export.sources import BundleRecipe, Card, PipelineConfig, SpineNetFiles  # noqa: E402
from spine_export.verify import TOLERANCES, WAYS, Difference, agrees  # noqa: E402

ENTRY = Bundle.open().grader
SURE, OTHER = np.tile([0.9, 0.1, 0.0], (2, 5, 1)), np.tile([0.1, 0.9, 0.0], (2, 5, 1))


def way(answer):
    @contextmanager
    def opened():
        if isinstance(answer, BackendError):
            raise answer
        yield [answer]

    return opened


@pytest.fixture
def proven(tmp_path, monkeypatch):
    """Prove the packaged grader with ways that give what they are told; return its entry, the lines, the files left."""

    def said(entry, models, samples):
        if isinstance(models[0], StudyError):
            raise models[0]
        return models[0]

    monkeypatch.setattr(precisions, "ask", said)
    opened = []
    monkeypatch.setattr(
        precisions,
        "opened",
        lambda files, entries, precision: (
            opened.append((files, precision)),
            way(SURE),
        )[1],
    )

    def prove(ways, variants=("f16", "int8")):
        files = {name: {"grader": tmp_path / f"g.{name}.onnx"} for name in variants}
        for own in files.values():
            own["grader"].write_bytes(own["grader"].name.encode())
        lines = []
        entries = precisions.prove(
            {"grader": ENTRY}, tmp_path, [], ways, files, lines.append
        )
        assert opened[-1] == ({"grader": tmp_path / ENTRY.file}, "f32"), (
            "float32 is the reference"
        )
        return (
            entries["grader"],
            lines,
            sorted(path.name for path in tmp_path.glob("g.*")),
        )

    return prove


def test_a_precision_that_passes_is_named_with_its_file_and_one_that_fails_loses_it(
    proven, tmp_path
):
    near = SURE + np.array([-0.001, 0.001, 0.0])
    entry, lines, left = proven(
        {"bf16": way(near), "f16": way(OTHER), "int8": way(SURE)}
    )
    assert entry.precisions == ("f32", "bf16", "int8")
    assert left == ["g.int8.onnx"]
    assert list(entry.variants) == ["int8"]
    assert entry.variants["int8"].size_bytes == len(b"g.int8.onnx")
    assert (
        entry.variants["int8"].sha256 == file_facts(tmp_path / "g.int8.onnx")["sha256"]
    )
    assert entry.parity == {
        "bf16": {"mean": 0.000667, "largest": 0.001, "changed": 0.0},
        "f16": {"mean": 0.533, "largest": 0.8, "changed": 10.0},
        "int8": {"mean": 0.0, "largest": 0.0, "changed": 0.0},
    }
    assert lines == [
        "  bf16 passed: probabilities moved by 0.00067 on average, 0.001 at most, 0 grades",
        "  f16 refused: probabilities moved by 0.53 on average, 0.8 at most, 10 grades",
        "  int8 passed: probabilities moved by 0 on average, 0 at most, 0 grades",
    ]


def test_one_changed_sure_grade_keeps_a_precision_out(proven):
    changed = SURE.copy()
    changed[1, 3] = [0.45, 0.55, 0.0]
    entry, _, _ = proven({"bf16": way(changed)})
    assert entry.precisions == ("f32",)
    assert entry.parity["bf16"]["changed"] == 1


def test_what_cannot_be_tried_or_finds_nothing_is_told_and_left_out(proven):
    ways = {
        "bf16": way(BackendError("not on this processor")),
        "f16": way(StudyError(Reason.NOT_LOCALIZED, "no disc")),
        "int8": way(SURE),
    }
    entry, lines, left = proven(ways)
    assert lines[:2] == [
        "  bf16 not tried: not on this processor",
        "  f16 refused: not_localized: no disc",
    ]
    assert entry.precisions == ("f32", "int8")
    assert set(entry.parity) == {"int8"}
    assert left == ["g.int8.onnx"]


def test_a_model_that_does_not_run_in_float32_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(
        precisions, "opened", lambda *_: way(BackendError("no runtime"))
    )
    with pytest.raises(BackendError, match="no runtime"):
        precisions.prove({"grader": ENTRY}, tmp_path, [], {}, {}, print)


def test_models_are_opened_in_order_with_their_profiles_and_all_closed(
    monkeypatch, tmp_path
):
    asked, closed = [], []

    def open_backend(path, **options):
        asked.append((path.name, options))
        if path.name == "third":
            raise BackendError("no room")
        return SimpleNamespace(close=lambda: closed.append(path.name))

    monkeypatch.setattr(precisions, "open_backend", open_backend)
    entries = {
        "a": SimpleNamespace(profile="p"),
        "b": SimpleNamespace(profile=None),
        "c": SimpleNamespace(profile="q"),
    }
    files = {"a": tmp_path / "first", "b": tmp_path / "second", "c": tmp_path / "third"}
    two = {role: files[role] for role in "ab"}
    with precisions.opened(two, entries, "bf16")() as models:
        assert len(models) == 2
        assert not closed
    assert asked == [
        ("first", {"name": "openvino", "precision": "bf16", "profile": "p"}),
        ("second", {"name": "openvino", "precision": "bf16", "profile": None}),
    ]
    assert sorted(closed) == ["first", "second"]
    closed.clear()
    with (
        pytest.raises(BackendError, match="no room"),
        precisions.opened(files, entries, "f32")(),
    ):
        pass
    assert sorted(closed) == ["first", "second"]


def probabilities(largest, mean=0.0, changed=0):
    return Parity(mean=mean, largest=largest, changed=changed)


@pytest.mark.parametrize(
    ("found", "precision", "agree"),
    [
        ({"onnxruntime f32": probabilities(1e-4)}, "f32", True),
        ({"onnxruntime f32": probabilities(1.1e-4)}, "f32", False),
        (
            {
                "onnxruntime f32": probabilities(0.0),
                "openvino f32": probabilities(2e-4),
            },
            "f32",
            False,
        ),
        (
            {
                "openvino f32": probabilities(0.0),
                "openvino bf16": probabilities(0.9, 0.9, 7),
            },
            "f32",
            True,
        ),  # only told
        ({"onnxruntime f16": probabilities(0.04, 0.005)}, "f16", True),
        ({"onnxruntime f16": probabilities(0.04, 0.0051)}, "f16", False),
        ({"onnxruntime f16": probabilities(0.04, 0.0, 1)}, "f16", False),
        ({"openvino f32": LevelParity(largest_mm=0.5, found=4)}, "f32", True),
        ({"openvino f32": LevelParity(largest_mm=0.6, found=4)}, "f32", False),
        ({"openvino f32": Difference(largest=1e-4, tolerance=1e-4)}, "f32", True),
        ({"openvino f32": Difference(largest=2e-4, tolerance=1e-4)}, "f32", False),
    ],
)
def test_a_file_agrees_with_its_model_where_every_way_of_its_precision_does(
    found, precision, agree
):
    assert agrees(found, precision) is agree


def test_nothing_compared_is_no_agreement():
    with pytest.raises(
        UsageError,
        match=r'nothing here runs the file, .*pip install "spine-mri-engine\[onnxruntime\]"',
    ):
        agrees({"openvino bf16": probabilities(0.0)}, "f32")
    with pytest.raises(
        UsageError,
        match="the model finds no level in any phantom, so nothing was compared",
    ):
        agrees({"openvino f32": LevelParity(largest_mm=0.0, found=0)}, "f32")


def test_the_ways_and_how_far_each_may_move():
    assert dict(TOLERANCES) == {"f32": 1e-4, "f16": 5e-3}
    assert {precision: list(ways) for precision, ways in WAYS.items()} == {
        "f32": [("onnxruntime", "f32"), ("openvino", "f32"), ("openvino", "bf16")],
        "f16": [("onnxruntime", "f16")],
    }
    assert (
        str(Difference(largest=0.01234, tolerance=1.0))
        == "outputs moved by 0.012 of the largest, at most"
    )


# -- engines built ahead -----------------------------------------------------------------------------------------------


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Build the engines of a bundle over a builder that only notes; return what it was asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []

    def build(model, **options):
        asked.append((model, options))
        return b"engine" * len(asked)

    monkeypatch.setattr(engines_room, "build_engine", build)
    monkeypatch.setattr(
        engines_room, "reopen_engine", lambda engine, runtime: len(engine) > 6
    )
    return asked


def bundle_with(tmp_path, passed, files):
    """Return a bundle whose grader passed in these precisions and has these files."""
    manifest = Bundle.open().manifest
    for entry in manifest.models.by_role().values():
        (tmp_path / entry.file).write_bytes(
            (Bundle.open().path / entry.file).read_bytes()
        )
    variants = {}
    for name in files:
        (tmp_path / f"grader.{name}.onnx").write_bytes(name.encode())
        variants[name] = manifest_file(tmp_path / f"grader.{name}.onnx")
    grader = replace(manifest.models.grader, precisions=passed, variants=variants)
    detector = replace(manifest.models.detector, precisions=("f32",), variants={})
    write_manifest(
        tmp_path,
        replace(
            manifest, models=replace(manifest.models, detector=detector, grader=grader)
        ),
    )
    return Bundle.open(tmp_path, trust=True)  # its variants are no models


def manifest_file(path):
    from spine_engine.bundle.manifest import ModelFile

    return ModelFile(**file_facts(path))


def test_engines_are_built_of_every_file_whose_precision_passed(built, tmp_path):
    (tmp_path / "b").mkdir()
    bundle = bundle_with(tmp_path / "b", ("f32", "f16"), ("f16", "int8"))
    lines = []
    engines = engines_room.build_engines(bundle, "sm89", say=lines.append)
    assert [(engine.role, engine.precision) for engine in engines] == [
        ("detector", "f32"),
        ("grader", "f32"),
        ("grader", "f16"),
    ]
    assert built[-1][0] == b"f16"
    assert built[1][1] == {
        "runtime": "tensorrt-rtx",
        "capability": "sm89",
        "profile": bundle.grader.profile,
    }
    assert [engine.size_bytes for engine in engines] == [6, 12, 18]
    assert [engine.opened for engine in engines] == [False, True, True]
    assert lines[0].startswith("detector f32: 0.0 MB in ")
    assert lines[0].endswith(" s, in order, not opened: that takes the GPU")
    assert lines[1].endswith(" s, opened")


def test_a_model_that_cannot_be_built_is_named_by_its_file(
    built, tmp_path, monkeypatch
):
    def refuse(model, **options):
        raise BackendError("no kernel")

    monkeypatch.setattr(engines_room, "build_engine", refuse)
    with pytest.raises(
        BackendError, match=rf"^{Bundle.open().detector.file}: no kernel$"
    ):
        engines_room.build_engines(Bundle.open(), "sm89", runtime="tensorrt", say=print)


def test_engines_need_a_place_and_unchanged_models(built, tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    bundle = bundle_with(tmp_path / "b", ("f32",), ())
    (tmp_path / "b" / bundle.grader.file).write_bytes(b"x")
    with pytest.raises(BundleError, match="bytes, the manifest says"):
        engines_room.build_engines(bundle, "sm89", say=print)
    monkeypatch.setattr(engines_room, "cache_folder", lambda: None)
    with pytest.raises(
        BackendError,
        match="no safe cache folder to keep engines in: set XDG_CACHE_HOME",
    ):
        engines_room.build_engines(bundle, "sm89", say=print)
    assert cache_room.cache_folder() is not None


# -- what is given -----------------------------------------------------------------------------------------------------


class Trap:
    """What a pickle holds that runs code when it is opened."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "described", [None, PipelineConfig(shape=(8, 12, 16), backbone="narrow_conv_8")]
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_file_whose_pickle_runs_code_is_refused_and_runs_none(
    tmp_path, described, wrapped
):
    marker, path = tmp_path / "ran", tmp_path / "g.pt"
    trap = (
        {"config": {}, "model": {}, "extra": Trap(marker)} if wrapped else Trap(marker)
    )
    torch.save(trap, path)
    with pytest.raises(UsageError):
        open_grader(path, described)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file would have"


def test_the_card_is_what_people_say(tmp_path):
    assert Card().licence == "not stated: the weights belong to whoever trained them"
    assert Card().intended_use == "Research only; not a medical device."
    path = tmp_path / "card.json"
    path.write_text(json.dumps({"metrics": {"a": {"b": {"c": 1}, "d": 2.5}, "e": 3}}))
    assert Card.read(path).metrics == {"a.b.c": 1.0, "a.d": 2.5, "e": 3.0}
    for text, message in (
        ("[]", "card: want an object, got []"),
        ('{"metrics": {"a": "b"}}', 'card.metrics.a: got "b", want a number'),
        ('{"training_data": "x"}', 'card.training_data: got "x", want a list'),
    ):
        path.write_text(text)
        with pytest.raises(UsageError) as caught:
            Card.read(path)
        assert str(caught.value) == f"cannot use {path}: {message}"
    path.write_text("{")
    with pytest.raises(
        UsageError, match=rf"^cannot read {path}: .*; want a JSON object$"
    ):
        Card.read(path)
    with pytest.raises(
        UsageError, match=r"No such file or directory.*; want a JSON object"
    ):
        Card.read(tmp_path / "none")


def test_a_description_has_these_defaults_and_takes_a_backbone_as_an_object(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(
        json.dumps(
            {
                "recipe": "native",
                "shape": [8, 12, 16],
                "backbone": {"family": "x", "depths": [1, 2]},
            }
        )
    )
    config = PipelineConfig.read(path)
    assert json.loads(config.backbone) == {"family": "x", "depths": [1, 2]}
    assert (config.pool, config.spacing_mm, config.offset_mm) == (
        "avg",
        (1.0, 1.0, 1.0),
        (0.0, 0.0, 0.0),
    )
    assert (config.normalisation, config.shape) == ("grid_range", (8, 12, 16))


GIVEN = {"name": "b", "version": "1"}
FILES = SpineNetFiles(vfr=Path("v"), appearance=Path("a"), context=Path("c"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {},
            "needs a grader, a whole-study grader or both; give --grader or --whole-study",
        ),
        ({"detector": Path("d")}, "needs a grader, a whole-study grader or both"),
        (
            {"whole_study": Path("w"), "detector": FILES},
            "a detector needs a level grader; give --grader, or leave",
        ),
        (
            {"whole_study": Path("w"), "calibration": object()},
            "a calibration is of a level grader's probabilities",
        ),
        (
            {
                "whole_study": Path("w"),
                "described": {"grader": PipelineConfig(shape=(8, 8, 8))},
            },
            "a grader is described, but none is given",
        ),
    ],
)
def test_what_makes_no_bundle_is_refused_before_anything_is_read(
    tmp_path, given, message
):
    with pytest.raises(UsageError, match=message):
        bundle_room.write_bundle(tmp_path / "b", BundleRecipe(**GIVEN, **given))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "figures"),
    [
        ({}, {}),
        ({"history": []}, {}),
        (
            {
                "history": [
                    {"metric": 0.1},
                    {"metric": 0.23456, "prior": 1, "best": 0.2, "loss": 3.0},
                ]
            },
            None,
        ),
        ({"history": [{"metric": 0.1}, {"loss": 3.0}]}, {}),
    ],
)
def test_a_checkpoints_last_figures_are_told(content, figures):
    wanted = (
        {"metric": 0.2346, "prior": 1.0, "best": 0.2} if figures is None else figures
    )
    assert bundle_room._figures_of(content) == wanted


def test_facts_come_from_the_checkpoints_where_the_card_says_nothing(
    tmp_path, monkeypatch
):
    contents = {
        "g": {"settings": {"data": "exams"}, "history": [{"metric": 0.5}]},
        "d": {"settings": {}, "history": [{"best": 0.25}]},
        "w": {},
    }
    monkeypatch.setattr(
        bundle_room, "read_checkpoint", lambda path: contents[path.name]
    )
    manifest = replace(Bundle.open().manifest, training_data=(), metrics={})
    paths = {
        "detector": Path("d"),
        "grader": Path("g"),
        "whole_study_grader": Path("w"),
    }
    told = bundle_room._with_facts(manifest, paths)
    assert told.training_data == ("grader: exams",)
    assert told.metrics == {"detector.best": 0.25, "grader.metric": 0.5}
    said = replace(manifest, training_data=("mine",), metrics={"own": 1.0})
    assert bundle_room._with_facts(said, paths) == said


def test_the_manifest_is_moved_last_and_only_the_former_bundles_files_go(
    tmp_path, monkeypatch
):
    work, out = tmp_path / "work", tmp_path / "out"
    for folder in (work, out):
        folder.mkdir()
    bundle_with(out, ("f32", "f16"), ("f16",))
    (out / "notes.txt").write_bytes(b"mine")
    bundle_with(work, ("f32",), ())
    moved = []
    really = os.replace
    monkeypatch.setattr(
        os, "replace", lambda a, b: (moved.append(Path(b).name), really(a, b))
    )
    bundle_room._put(work, out)
    assert moved[-1] == "bundle.json"
    assert len(moved) == 3
    assert (out / "notes.txt").exists()
    assert not (out / "grader.f16.onnx").exists()
    assert Bundle.open(out).grader.variants == {}
