"""Bundles from other people's weights: graders of the older pipelines, SpineNet's networks, INT8."""

import json
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="needs the export extra: no export is shown"
)
onnx = pytest.importorskip("onnx", reason="needs the export extra: no export is shown")
pytest.importorskip("timm_3d", reason="needs the export extra: no export is shown")
pytest.importorskip("onnxscript", reason="needs the export extra: no export is shown")

from typer.testing import CliRunner  # noqa: E402

from spine_engine.bundle import Bundle, packaged_folder, write_manifest  # noqa: E402
from spine_engine.bundle.manifest import DetectorEntry  # noqa: E402
from spine_engine.detection.levels import Detection  # noqa: E402
from spine_engine.errors import BackendError, UsageError  # noqa: E402
from spine_engine.options import RunOptions  # noqa: E402
from spine_engine.phantom.samples import phantom_samples  # noqa: E402
from spine_engine.pipeline.models import PipelineModels  # noqa: E402
from spine_engine.pipeline.parity import grader_inputs  # noqa: E402
from spine_export import bundle as bundle_room  # noqa: E402
from spine_export import parts, precisions  # noqa: E402
from spine_export.__main__ import app  # noqa: E402
from spine_export.int8 import quantize  # noqa: E402
from spine_export.onnx import SPINENET_FACES  # noqa: E402
from spine_export.precisions import opened, prove  # noqa: E402
from spine_export.sources import BundleRecipe, Card, PipelineConfig, SpineNetFiles  # noqa: E402
from spine_training.detector.model import LevelHeatmapNet  # noqa: E402
from spine_training.grader.model import Grader, GraderConfig  # noqa: E402


def write_bundle(out, say=print, **given):
    return bundle_room.write_bundle(out, BundleRecipe(**given), say=say)


TINY = GraderConfig(backbone="narrow_conv_8", shape=(8, 12, 16), coordinates=False)
DESCRIBED = {
    "recipe": "native",
    "backbone": "narrow_conv_8",
    "shape": [8, 12, 16],
    "spacing_mm": [2, 2, 2],
    "offset_mm": [0, 18, 0],
}

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore"
    ),  # torch, timm_3d and NNCF deprecate what they themselves use
    pytest.mark.usefixtures("exported_once", "tiny_detector"),
]


@pytest.fixture
def halves(exported_once, monkeypatch):
    """Let a file in f16 be that in f32, which takes half the time: no CPU runs it. What was exported, in order."""
    really, asked = parts.export_module, []

    def export(model, path, face, *, precision):
        asked.append((path.name, precision))
        return really(model, path, face, precision="f32")

    monkeypatch.setattr(parts, "export_module", export)
    return asked


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An untrained detector, and a grader as a file of weights alone."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    grader = Grader(TINY)
    for head in grader.heads:
        torch.nn.init.normal_(head[0].weight, std=2.0)
    torch.save(
        {
            "state_dict": {
                f"module.{name}": value for name, value in grader.state_dict().items()
            }
        },
        folder / "g.pt",
    )
    torch.save(
        {"config": {}, "model": LevelHeatmapNet().state_dict()}, folder / "detector.pt"
    )
    (folder / "g.json").write_text(json.dumps(DESCRIBED))
    return folder, grader.eval()


def test_a_file_of_weights_and_its_description_make_a_bundle(files, halves, tmp_path):
    folder, grader = files
    config = PipelineConfig.read(folder / "g.json")
    bundle = write_bundle(
        tmp_path,
        name="old",
        version="1",
        detector=folder / "detector.pt",
        grader=folder / "g.pt",
        described={"grader": config},
        phantoms=1,
        say=lambda line: None,
    )
    detectors, graders = (
        [(f"{role}.onnx", "f32"), (f"{role}.f16.onnx", "f16")]
        for role in ("detector", "grader")
    )
    assert halves == [*detectors, *graders]
    entry = bundle.grader
    assert (entry.normalisation, entry.grid.spacing_mm) == (
        "grid_range",
        (2.0, 2.0, 2.0),
    )
    assert entry.grid.center_offset_mm == (0.0, 18.0, 0.0)
    image = np.random.default_rng(1).random((3, 3, *TINY.shape), dtype=np.float32)
    with torch.inference_mode():
        wanted = grader(torch.from_numpy(image)).numpy()
    model = bundle.open_model(entry, precision="f32")
    np.testing.assert_allclose(
        model.run({"image": image})["probabilities"], wanted, atol=1e-5
    )  # no mirror image


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown key 'colour'; known are shape, backbone"),
        (
            {"recipe": None},
            'it must name the recipe of its grids: "recipe" is one of native, rsna2024-whole-256',
        ),
        (
            {"recipe": "rsna2024-level-128"},
            "shape must be .128, 128, 128., as the recipe rsna2024-level-128 implies",
        ),
        ({"recipe": "other"}, "there is no recipe 'other'; there are native"),
        ({"shape": [8, 12]}, "grader.shape: want 3 entries, got 2"),
        ({"shape": "123"}, 'grader.shape: got "123"'),
        ({"shape": [8, 12, 16.5]}, "grader.shape.2.: got 16.5, want a whole number"),
        ({"spacing_mm": [2, 2, 0]}, "spacing"),
        ({"backbone": 7}, "grader.backbone: got 7"),
        ({"shape": None}, "the key 'shape' is missing"),
        ({"pool": "sum"}, "'sum' is none of avg, max"),
        (
            {"normalisation": "z_score"},
            "'z_score' is none of series_window, grid_range",
        ),
    ],
)
def test_a_description_that_says_something_wrong_is_refused(change, message, tmp_path):
    content = {
        key: value
        for key, value in {**DESCRIBED, **change}.items()
        if value is not None
    }
    (tmp_path / "d.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=message) as caught:
        PipelineConfig.read(tmp_path / "d.json")
    assert "\n" not in str(caught.value)


def written_down(kind, path):
    """Write a graph that stands for one of SpineNet's networks: it has its face, and means nothing."""
    helper, f32, draw = onnx.helper, onnx.TensorProto.FLOAT, np.random.default_rng(0)
    channels = {"vfr": 13, "context": 1}
    if kind == "appearance":
        given, name = ("volumes", ["n", 1, 224, 224, 16]), "scores"
        nodes = [
            helper.make_node("ReduceMean", ["volumes", "axes"], ["mean"], keepdims=0),
            helper.make_node("Concat", ["mean", "mean"], ["twice"], axis=1),
            helper.make_node("Slice", ["twice", "first", "last", "axis"], [name]),
        ]
        weights = {"axes": [1, 2, 3], "first": [0], "last": [24], "axis": [1]}
        weights = [
            onnx.numpy_helper.from_array(np.array(values), key)
            for key, values in weights.items()
        ]
        shape = ["n", 24]
    else:
        given, name = ("patches", ["n", 1, 224, 224]), "maps"
        if kind == "context":
            given, name = ("columns", ["n", 1, "rows", 24]), "scores"
        nodes = [helper.make_node("Conv", [given[0], "w"], [name], pads=[1, 1, 1, 1])]
        weights = [draw.normal(size=(channels[kind], 1, 3, 3)).astype(np.float32) / 3]
        weights = [onnx.numpy_helper.from_array(weights[0], "w")]
        shape = ["n", channels[kind], *given[1][2:]]
    x, y = (
        helper.make_tensor_value_info(given[0], f32, given[1]),
        helper.make_tensor_value_info(name, f32, shape),
    )
    model = helper.make_model(
        helper.make_graph(nodes, kind, [x], [y], weights),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def test_spinenets_networks_make_a_detector(files, tmp_path, monkeypatch):
    really_export, exports = parts.export_module, []

    def export(model, path, face, *, precision):
        kind = getattr(model, "kind", None)
        if kind is None:
            return really_export(model, path, face, precision="f32")
        exports.append((kind, path.name, precision))
        assert face is SPINENET_FACES[kind]
        return written_down(kind, path)

    def load(path, kind):
        net = torch.nn.Identity()
        net.kind = kind
        return net

    monkeypatch.setattr(parts, "export_module", export)
    monkeypatch.setattr(parts, "load_spinenet", load)
    asked = []
    really = precisions.ask

    def ask(entry, models, samples):
        """Ask graders; three networks over a study take seconds in each precision, and are asked once below."""
        if not isinstance(entry, DetectorEntry):
            return really(entry, models, samples)
        asked.append(len(models))
        levels = {
            level: replace(disc, source="prior")
            for level, disc in samples[0].levels.items()
        }
        return [Detection(levels, (), ())]

    monkeypatch.setattr(precisions, "ask", ask)
    folder, _ = files
    bundle = write_bundle(
        tmp_path,
        name="spine",
        version="1",
        detector=SpineNetFiles(vfr=folder, appearance=folder, context=folder),
        grader=folder / "g.pt",
        described={"grader": PipelineConfig.read(folder / "g.json")},
        phantoms=1,
        say=lambda line: None,
    )
    assert sorted(exports) == [
        ("appearance", "vertebra_appearance.f16.onnx", "f16"),
        ("appearance", "vertebra_appearance.onnx", "f32"),
        ("context", "vertebra_context.f16.onnx", "f16"),
        ("context", "vertebra_context.onnx", "f32"),
        ("vfr", "detector.f16.onnx", "f16"),
        ("vfr", "detector.onnx", "f32"),
    ]
    models = bundle.manifest.models
    assert models.detector.decoder == "vfr"
    assert (
        models.detector.precisions == models.vertebra_context.precisions == ("f32",)
    ), "nothing found proves nothing"
    assert len(asked) >= 2
    assert set(asked) == {3}, "all three answer together"
    assert len(models.detector.output_channels) == 13
    assert models.vertebra_context.profile.largest == (16, 1, 1024, 24)
    all_three = PipelineModels(bundle, RunOptions(precision="f32"))
    found = all_three.find_levels(
        phantom_samples(1)[0].study.sagittal_stacks
    )  # a random convolution finds nothing
    assert {disc.source for disc in found.levels.values()} == {"prior"}
    all_three.close()


def test_a_name_or_a_card_that_makes_no_bundle_is_refused_before_any_work(
    files, tmp_path
):
    folder, _ = files
    given = {
        "detector": folder / "detector.pt",
        "grader": folder / "g.pt",
        "version": "1",
    }
    with pytest.raises(UsageError, match="name must be a plain word"):
        write_bundle(tmp_path / "b", name="my bundle", **given)
    with pytest.raises(UsageError, match="makes no bundle"):
        write_bundle(
            tmp_path / "b",
            name="x",
            card=Card(metrics={"score": float("nan")}),
            **given,
        )
    with pytest.raises(
        UsageError, match="a whole_study_grader is described, but none is given"
    ):
        write_bundle(
            tmp_path / "b",
            name="x",
            described={"whole_study_grader": PipelineConfig(shape=(8, 8, 8))},
            **given,
        )
    assert not (tmp_path / "b").exists()


def test_only_files_of_the_former_bundle_are_replaced(files, halves, tmp_path):
    folder, _ = files
    out = tmp_path / "b"
    shutil.copytree(packaged_folder(), out)
    (out / "mine.onnx").write_bytes(b"no part of it")
    options = {"name": "x", "version": "1", "phantoms": 1, "say": lambda line: None}
    given = {"detector": folder / "detector.pt", "grader": folder / "g.pt"}
    config = PipelineConfig.read(folder / "g.json")
    with pytest.raises(UsageError, match="is no checkpoint"):
        write_bundle(
            out,
            **options,
            **{**given, "grader": folder / "g.json"},
            described={"grader": config},
        )
    assert (
        Bundle.open(out).digest == Bundle.open().digest
    )  # a failure leaves what was there
    write_bundle(out, **options, **given, described={"grader": config})
    assert (out / "mine.onnx").exists()
    assert not (
        out / "detector.f16.onnx"
    ).exists()  # an untrained detector proves nothing
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_spinenets_networks_come_together(files):
    folder, _ = files
    words = [
        "bundle",
        "--out",
        "x",
        "--name",
        "x",
        "--grader",
        str(folder / "g.pt"),
        "--vfr",
        str(folder / "g.pt"),
    ]
    ended = CliRunner().invoke(app, words)
    assert isinstance(ended.exception, UsageError)
    assert "--vfr, --appearance and --context together" in str(ended.exception)


@pytest.mark.slow
def test_the_shipped_grader_passes_in_int8_and_runs_so_only_when_asked_for(tmp_path):
    pytest.importorskip(
        "nncf",
        reason="needs the int8 extra: that INT8 passes parity, and runs only when asked, is not shown",
    )
    shutil.copytree(packaged_folder(), tmp_path, dirs_exist_ok=True)
    manifest = Bundle.open().manifest
    entry, file = manifest.models.grader, tmp_path / "grader.int8.onnx"
    quantize(
        tmp_path / entry.file, grader_inputs(entry, phantom_samples(6, start=2)), file
    )
    graph = onnx.load(file).graph
    follow = {name: node.op_type for node in graph.node for name in node.input}
    ends = {
        follow[node.output[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear"
    }
    assert ends == {"Conv"}
    lines, ways = [], {"int8": opened({"grader": file}, {"grader": entry}, "int8")}
    proven = prove(
        {"grader": entry},
        tmp_path,
        phantom_samples(2),
        ways,
        {"int8": {"grader": file}},
        lines.append,
    )
    assert proven["grader"].precisions == ("f32", "int8"), lines
    assert 1e-4 < proven["grader"].parity["int8"]["mean"] <= 0.005
    models = replace(manifest.models, grader=proven["grader"])
    write_manifest(tmp_path, replace(manifest, models=models))
    bundle = Bundle.open(tmp_path)
    by_itself = PipelineModels(bundle, RunOptions())
    assert by_itself.devices["grader"].precision == "f32"
    asked = PipelineModels(bundle, RunOptions(precision="int8"))
    assert asked.devices["grader"].precision == "int8"
    assert asked.devices["detector"].precision != "int8"
    by_itself.close()
    asked.close()


def always(shape, probabilities):
    """Return a grader that says the same of every grid."""
    helper, f32 = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Unsqueeze", ["nothing", "behind"], ["row"]),
        helper.make_node("Add", ["row", "said"], ["probabilities"]),
    ]
    constants = {
        "axes": np.arange(1, 5),
        "zero": np.float32(0),
        "behind": np.array([1, 2]),
    }
    constants["said"] = np.tile(np.array(probabilities, np.float32), (1, 5, 1))
    weights = [
        onnx.numpy_helper.from_array(np.asarray(values), name)
        for name, values in constants.items()
    ]
    image = helper.make_tensor_value_info("image", f32, ["n", 3, *shape])
    graph = helper.make_graph(
        nodes,
        "g",
        [image],
        [helper.make_tensor_value_info("probabilities", f32, ["n", 5, 3])],
        weights,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def test_a_precision_that_fails_leaves_no_file_and_says_why(tmp_path):
    shutil.copytree(packaged_folder(), tmp_path, dirs_exist_ok=True)
    entry, file = Bundle.open().grader, tmp_path / "other.onnx"
    onnx.save(
        always(entry.grid.shape, [0.1, 0.2, 0.7]), file
    )  # another model altogether
    lines, ways = (
        [],
        {
            "int8": opened({"grader": file}, {"grader": entry}, "f32"),
            "bf16": nothing_runs,
        },
    )
    proven = prove(
        {"grader": entry},
        tmp_path,
        phantom_samples(1),
        ways,
        {"int8": {"grader": file}},
        lines.append,
    )
    assert proven["grader"].precisions == ("f32",)
    assert set(proven["grader"].parity) == {"int8"}
    assert not file.exists()
    assert lines[0].startswith("  int8 refused: probabilities moved by")
    assert lines[1] == "  bf16 not tried: not on this processor"


@contextmanager
def nothing_runs():
    raise BackendError("not on this processor")
    yield


@pytest.fixture
def one_phantom(monkeypatch):
    monkeypatch.setattr(
        "spine_export.__main__.phantom_samples", lambda: phantom_samples(1)
    )


@pytest.mark.slow
@pytest.mark.usefixtures("one_phantom")
def test_an_exported_file_is_compared_with_its_model(files, tmp_path):
    folder, _ = files
    words = [
        "grader",
        str(folder / "g.pt"),
        "--described",
        str(folder / "g.json"),
        "--verify",
    ]
    out = tmp_path / "g.onnx"
    ended = CliRunner().invoke(
        app, [*words, "--out", str(out), "--worst", str(tmp_path / "worst")]
    )
    assert ended.exit_code == 0, ended.output
    assert "openvino f32: probabilities moved by" in ended.output
    assert (tmp_path / "worst" / "g-openvino-f32.npz").exists()
    half = CliRunner().invoke(
        app, [*words, "--out", str(tmp_path / "h.onnx"), "--precision", "f16"]
    )
    assert half.exit_code == 0, half.output
    assert "onnxruntime f16: probabilities moved by" in half.output


@pytest.mark.usefixtures("one_phantom")
def test_a_file_that_strays_from_its_model_is_told(files, tmp_path, monkeypatch):
    folder, _ = files
    monkeypatch.setattr("spine_export.verify.TOLERANCES", {"f32": 0.0})
    words = [
        "grader",
        str(folder / "g.pt"),
        "--described",
        str(folder / "g.json"),
        "--verify",
    ]
    ended = CliRunner().invoke(
        app,
        [*words, "--out", str(tmp_path / "g.onnx"), "--worst", str(tmp_path / "worst")],
    )
    assert ended.exit_code == 1
    moved = re.search(
        r"openvino f32: probabilities moved by \S+ on average, (\S+) at most, 0 grades",
        ended.output,
    )
    assert 0 < float(moved[1]) <= 1e-4, (
        "no more than the rounding that is allowed by default"
    )
    assert (tmp_path / "worst" / "g-openvino-f32.npz").exists()
    assert "does not give the model's answers" in ended.output
