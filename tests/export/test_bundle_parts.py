"""Bundles from other people's weights: graders of the older pipelines, SpineNet's networks, INT8."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the export extra")
pytest.importorskip("timm_3d", reason="needs the export extra")
pytest.importorskip("onnxscript", reason="needs the export extra")

from typer.testing import CliRunner  # noqa: E402

from spine_engine.errors import UsageError  # noqa: E402
from spine_engine.opened import OpenModels  # noqa: E402
from spine_engine.options import RunOptions  # noqa: E402
from spine_engine.parity import phantom_samples  # noqa: E402
from spine_export import bundle as bundles  # noqa: E402
from spine_export.__main__ import app  # noqa: E402
from spine_export.bundle import write_bundle  # noqa: E402
from spine_export.sources import PipelineConfig, SpineNetFiles  # noqa: E402
from spine_training.detector.model import LevelHeatmapNet  # noqa: E402
from spine_training.grader.model import Grader, GraderConfig  # noqa: E402

TINY = GraderConfig(backbone="narrow_conv_8", shape=(8, 12, 16), coordinates=False)
DESCRIBED = {"backbone": "narrow_conv_8", "shape": [8, 12, 16], "spacing_mm": [2, 2, 2], "offset_mm": [0, 18, 0]}

pytestmark = pytest.mark.filterwarnings("ignore")  # torch, timm_3d and NNCF deprecate what they themselves use


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An untrained detector, and a grader as a file of weights alone."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    grader = Grader(TINY)
    for head in grader.heads:
        torch.nn.init.normal_(head[0].weight, std=2.0)
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in grader.state_dict().items()}}, folder / "g.pt"
    )
    torch.save({"config": {}, "model": LevelHeatmapNet().state_dict()}, folder / "detector.pt")
    (folder / "g.json").write_text(json.dumps(DESCRIBED))
    return folder, grader.eval()


def test_a_file_of_weights_and_its_description_make_a_bundle(files, tmp_path):
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
    entry = bundle.grader
    assert (entry.normalisation, entry.grid.spacing_mm) == ("grid_range", (2.0, 2.0, 2.0))
    assert entry.grid.center_offset_mm == (0.0, 18.0, 0.0)
    image = np.random.default_rng(1).random((3, 3, *TINY.shape), dtype=np.float32)
    with torch.inference_mode():
        wanted = grader(torch.from_numpy(image)).numpy()
    model = bundle.open_model(entry, precision="f32")
    np.testing.assert_allclose(model.run({"image": image})["probabilities"], wanted, atol=1e-5)  # no mirror image


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown key 'colour'; want a JSON object of shape, backbone"),
        ({"shape": [8, 12]}, "have three numbers each"),
        ({"shape": "cube"}, "cannot use"),
        ({"shape": None}, "the key 'shape' is missing"),
        ({"pool": "sum"}, "pool is avg or max, got 'sum'"),
        ({"normalisation": "z_score"}, "normalisation is series_window or grid_range, got 'z_score'"),
    ],
)
def test_a_description_that_says_something_wrong_is_refused(change, message, tmp_path):
    content = {key: value for key, value in {**DESCRIBED, **change}.items() if value is not None}
    (tmp_path / "d.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=message) as caught:
        PipelineConfig.read(tmp_path / "d.json")
    assert "\n" not in str(caught.value)


class Pool(torch.nn.Module):
    """Stands for the appearance network: 139 million parameters are not needed to walk the way."""

    def forward(self, volumes):
        return volumes.mean(dim=(1, 2, 3)).repeat(1, 2)[:, :24]


def test_spinenets_networks_make_a_detector(files, tmp_path, monkeypatch):
    nets = {
        "vfr": torch.nn.Conv2d(1, 13, 3, padding=1),
        "appearance": Pool(),
        "context": torch.nn.Conv2d(1, 1, 3, padding=1),
    }
    monkeypatch.setattr(bundles, "load_spinenet", lambda path, kind: nets[kind])
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
    models = bundle.manifest.models
    assert models.detector.decoder == "vfr"
    assert len(models.detector.output_channels) == 13
    assert models.vertebra_context.profile.largest == (16, 1, 1024, 24)
    opened = OpenModels(bundle, RunOptions(precision="f32"))
    found = opened.find_levels(phantom_samples(1)[0].sagittal)  # a random convolution finds nothing
    assert {disc.source for disc in found.levels.values()} == {"prior"}
    opened.close()


def test_spinenets_networks_come_together(files):
    folder, _ = files
    words = ["bundle", "--out", "x", "--name", "x", "--grader", str(folder / "g.pt"), "--vfr", str(folder / "g.pt")]
    ended = CliRunner().invoke(app, words)
    assert isinstance(ended.exception, UsageError)
    assert "--vfr, --appearance and --context together" in str(ended.exception)


def test_int8_is_kept_where_it_passes_and_runs_when_asked_for(files, tmp_path):
    pytest.importorskip("nncf", reason="needs the int8 extra")
    folder, _ = files
    bundle = write_bundle(
        tmp_path,
        name="small",
        version="1",
        detector=folder / "detector.pt",
        grader=folder / "g.pt",
        described={"grader": PipelineConfig.read(folder / "g.json")},
        int8=True,
        phantoms=1,
        say=lambda line: None,
    )
    figures = bundle.grader.parity["int8"]
    passed = figures["mean"] <= 0.005 and figures["changed"] == 0
    assert ("int8" in bundle.grader.precisions) is passed
    assert (tmp_path / "grader.int8.onnx").exists() is passed
    assert figures["mean"] > bundle.grader.parity["f16"]["mean"]
    opened = OpenModels(bundle, RunOptions())
    assert opened.devices["grader"].precision != "int8"  # never by itself
    opened.close()
    if passed:
        opened = OpenModels(bundle, RunOptions(precision="int8"))
        assert (opened.devices["grader"].precision, opened.devices["detector"].precision) == ("int8", "f32")
        opened.close()


def test_an_exported_file_is_compared_with_its_model(files, tmp_path):
    folder, _ = files
    words = ["grader", str(folder / "g.pt"), "--described", str(folder / "g.json"), "--verify"]
    out = tmp_path / "g.onnx"
    ended = CliRunner().invoke(app, [*words, "--out", str(out), "--worst", str(tmp_path / "worst")])
    assert ended.exit_code == 0, ended.output
    assert "openvino f32: probabilities moved by" in ended.output
    assert (tmp_path / "worst" / "g-openvino-f32.npz").exists()
    half = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "h.onnx"), "--precision", "f16"])
    assert half.exit_code == 0, half.output
    assert "onnxruntime f16: probabilities moved by" in half.output


def test_a_file_that_strays_from_its_model_is_told(files, tmp_path, monkeypatch):
    folder, _ = files
    monkeypatch.setattr("spine_export.verify.F32_TOLERANCE", 0.0)
    words = ["grader", str(folder / "g.pt"), "--described", str(folder / "g.json"), "--verify"]
    ended = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "g.onnx")])
    assert ended.exit_code == 1
    assert "does not give the model's answers" in ended.output
