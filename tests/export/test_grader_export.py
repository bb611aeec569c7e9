"""A tiny grader to ONNX and into a bundle: the same numbers in both runtimes, and the engine opens it."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
onnx = pytest.importorskip("onnx", reason="needs the export extra")
pytest.importorskip("onnxscript", reason="needs the export extra")
pytest.importorskip("timm_3d", reason="needs the train extra")

from spine_engine.anatomy import CONDITIONS  # noqa: E402
from spine_engine.backends import open_backend  # noqa: E402
from spine_engine.bundle import Bundle  # noqa: E402
from spine_engine.errors import BundleError  # noqa: E402
from spine_export.__main__ import card_metrics  # noqa: E402
from spine_export.bundle import write_bundle, write_grader_card  # noqa: E402
from spine_export.onnx import export_grader  # noqa: E402
from spine_export.parity import compare, reduced_precisions  # noqa: E402
from spine_training.grader.model import MIRRORED_HEADS, Grader, GraderConfig, save_grader  # noqa: E402

PARITY = 1e-4
TINY = GraderConfig(backbone="narrow_conv_8", shape=(8, 12, 16))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    grader = Grader(TINY)
    for head in grader.heads:  # fresh heads say nearly the same of everything
        torch.nn.init.normal_(head[0].weight, std=2.0)
    save_grader(grader, folder / "grader.pt")
    return export_grader(folder / "grader.pt", folder / "grader.onnx"), folder / "grader.onnx"


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_both_runtimes_agree_with_pytorch_for_any_batch(exported, runtime):
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    model, path = exported
    backend = open_backend(path.read_bytes(), name=runtime, precision="f32")
    for batch in (1, 3, 5):
        image = np.random.default_rng(batch).random((batch, 3, *TINY.shape), dtype=np.float32)
        with torch.no_grad():
            wanted = model(torch.from_numpy(image)).numpy()
        found = backend.run({"image": image})["probabilities"]
        assert found.shape == (batch, len(CONDITIONS), 3)
        assert np.abs(found - wanted).max() <= PARITY
        mirrored = backend.run({"image": np.ascontiguousarray(image[..., ::-1])})["probabilities"]
        assert np.abs(mirrored[:, list(MIRRORED_HEADS)] - found).max() <= 1e-6
        assert np.abs(mirrored - found).max() > 10 * PARITY  # the model does tell the sides apart
    backend.close()


def test_the_file_says_nothing_of_the_machine_it_was_made_on(exported):
    content = exported[1].read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content


@pytest.fixture
def parts(exported, tmp_path):
    value = onnx.helper.make_tensor_value_info
    channels = 14
    weight = onnx.numpy_helper.from_array(np.zeros((channels, 1, 2, 2), np.float32), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["slices", "w"], ["heatmaps"], strides=[2, 2])],
        "detector",
        [value("slices", onnx.TensorProto.FLOAT, ["N", 1, "H", "W"])],
        [value("heatmaps", onnx.TensorProto.FLOAT, ["N", channels, "h", "w"])],
        [weight],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "d.onnx")
    card = {"training_data": ["detector: nothing"], "metrics": {"fold_0": {"what": "one fold", "mm": 2}}}
    (tmp_path / "d.json").write_text(json.dumps(card))
    write_grader_card(tmp_path / "g.json", TINY, {"phantom_metric": 0.3}, ["grader: random weights"])
    return tmp_path / "d.onnx", tmp_path / "d.json", exported[1], tmp_path / "g.json"


def test_a_bundle_opens_and_says_what_it_holds(parts, tmp_path):
    bundle = write_bundle(*parts, tmp_path / "bundle", name="tiny", version="0.1.0")
    again = Bundle.open(tmp_path / "bundle")
    assert again.digest == bundle.digest
    assert again.manifest.metrics == {"detector.fold_0.mm": 2.0, "grader.phantom_metric": 0.3}
    assert "detector.fold_0: one fold" in again.manifest.training_data
    assert again.grader.grid.shape == TINY.shape
    assert again.grader.inputs[0].shape == (None, 3, *TINY.shape)
    assert "esearch only" in again.manifest.intended_use
    model = again.open_model(again.grader, name="openvino")
    rows = model.run({"image": np.zeros((5, 3, *TINY.shape), np.float32)})["probabilities"]
    assert np.allclose(rows.sum(-1), 1, atol=1e-5)
    model.close()


def test_a_changed_model_is_refused(parts, tmp_path):
    write_bundle(*parts, tmp_path / "bundle", name="tiny", version="0.1.0")
    path = tmp_path / "bundle" / "grader.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="SHA-256"):
        Bundle.open(tmp_path / "bundle")


def test_a_card_that_hides_its_training_data_is_refused(parts, tmp_path):
    parts[1].write_text(json.dumps({"metrics": {}}))
    with pytest.raises(ValueError, match="lacks training_data"):
        write_bundle(*parts, tmp_path / "bundle", name="tiny", version="0.1.0")


def test_card_figures_come_from_the_evaluation():
    parts = {"canal": 0.1, "foraminal": 0.2, "subarticular": 0.3, "any_severe_canal": 0.4}
    exact = {"studies": 7, "metric": 0.25, "best": 0.2, "prior": 0.79, "calibration_error": 0.01, **parts}
    figures = {"true_boxes": exact, "strayed_boxes": {**exact, "metric": 0.27}, "consistency": {"mirrored": 0.001}}
    card = card_metrics(figures)
    assert (card["phantom_metric"], card["phantom_metric_strayed_boxes"]) == (0.25, 0.27)
    assert card["phantom_difference_mirrored"] == 0.001


def test_parity_counts_only_grades_that_were_sure():
    first = np.array([[[0.52, 0.48, 0.0]], [[0.7, 0.3, 0.0]]], np.float32)
    second = np.array([[[0.48, 0.52, 0.0]], [[0.4, 0.6, 0.0]]], np.float32)
    close = compare(first[:1], second[:1])
    assert (close.changed, close.largest) == (0, pytest.approx(0.04))
    assert compare(first, second).changed == 1
    assert not compare(first, second).passed
    assert compare(first, first).passed


def test_a_trained_precision_is_measured_against_float32(exported):
    grids = np.random.default_rng(0).random((10, 3, *TINY.shape))
    for parity in reduced_precisions(exported[1].read_bytes(), grids).values():
        assert 0 < parity.largest < 0.2
