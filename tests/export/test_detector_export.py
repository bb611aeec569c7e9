"""The exported detector answers as its checkpoint does, under either runtime."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the export extra is not installed")
onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
pytest.importorskip("onnxscript", reason="the export extra is not installed")
onnxruntime = pytest.importorskip(
    "onnxruntime",
    reason="onnxruntime is not installed: exported files are not shown to run in it",
)

from spine_engine.backends import open_backend  # noqa: E402
from spine_export.onnx import DETECTOR, export_module, half_weights  # noqa: E402
from spine_export.parts import detector_part  # noqa: E402
from spine_training.detector.evaluate import TorchBackend  # noqa: E402
from spine_training.detector.model import Deployed, LevelHeatmapNet  # noqa: E402


@pytest.mark.filterwarnings("ignore")
def test_large_weights_are_kept_in_half_and_slices_may_be_of_any_size(tmp_path):
    torch.manual_seed(0)
    module = Deployed(
        torch.nn.Conv2d(1, 32, 4, stride=2, padding=1)
    ).eval()  # stands for the net: 512 weights
    path = export_module(module, tmp_path / "net.onnx", DETECTOR)
    kinds = {
        tuple(tensor.dims): tensor.data_type
        for tensor in onnx.load(path).graph.initializer
    }
    assert kinds[32, 1, 4, 4] == onnx.TensorProto.FLOAT16
    assert kinds[(32,)] == onnx.TensorProto.FLOAT
    for shape in ((1, 1, 32, 320), (3, 1, 160, 128), (64, 1, 320, 32)):
        slices = np.random.default_rng(1).random(shape, np.float32)
        with torch.no_grad():
            wanted = module(torch.from_numpy(slices)).numpy()
        for runtime in ("onnxruntime", "openvino"):
            backend = open_backend(path, name=runtime, precision="f32")
            found = backend.run({"slices": slices})
            backend.close()
            assert list(found) == ["heatmaps"]
            assert 0 < np.abs(found["heatmaps"] - wanted).max() < 2e-3


@pytest.mark.parametrize(("size", "halved"), [(511, False), (512, True)])
def test_weights_from_512_are_kept_in_half(size, halved):
    helper, f32 = onnx.helper, onnx.TensorProto.FLOAT
    weights = [
        onnx.numpy_helper.from_array(np.linspace(0.1, 1.1, size, dtype=np.float32), "w")
    ]
    x, y = (helper.make_tensor_value_info(name, f32, ["n", size]) for name in "xy")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])], "g", [x], [y], weights
    )
    model = half_weights(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
        )
    )
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == (
        ["Cast", "Mul"] if halved else ["Mul"]
    )
    backend = open_backend(
        model.SerializeToString(), name="onnxruntime", precision="f32"
    )
    found = backend.run({"x": np.ones((2, size), np.float32)})["y"]
    backend.close()
    np.testing.assert_allclose(
        found[1], np.linspace(0.1, 1.1, size), rtol=1e-3 if halved else 1e-6
    )


def test_a_checkpoint_is_exported_as_the_net_that_the_engine_decodes(tmp_path):
    torch.manual_seed(0)
    torch.save(
        {"config": {}, "model": LevelHeatmapNet().state_dict()}, tmp_path / "net.pt"
    )
    part = detector_part(tmp_path / "net.pt")
    assert part.face is DETECTOR
    assert isinstance(part.module, Deployed)
    assert sum(tensor.numel() * 2 for tensor in part.module.parameters()) <= 5_000_000
    slices = np.random.default_rng(1).random((2, 1, 64, 96), np.float32)
    wanted = TorchBackend(tmp_path / "net.pt").run({"slices": slices})["heatmaps"]
    with torch.inference_mode():
        found = part.module(torch.from_numpy(slices)).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("exported_once")
def test_the_exported_model_answers_as_the_checkpoint(tmp_path):
    torch.manual_seed(0)
    torch.save(
        {"config": {}, "model": LevelHeatmapNet().state_dict()}, tmp_path / "net.pt"
    )
    path = detector_part(tmp_path / "net.pt").export(tmp_path / "net.onnx")
    assert path.stat().st_size <= 5_000_000
    outputs = [o.name for o in onnxruntime.InferenceSession(str(path)).get_outputs()]
    assert outputs == ["heatmaps"]
    backends = [
        TorchBackend(tmp_path / "net.pt"),
        open_backend(path, name="onnxruntime", precision="f32"),
        open_backend(path, name="openvino", precision="f32"),
    ]
    for shape in ((1, 1, 64, 96), (3, 1, 160, 128)):
        slices = np.random.default_rng(1).random(shape, np.float32)
        torch_maps, ort_maps, openvino_maps = (
            backend.run({"slices": slices})["heatmaps"] for backend in backends
        )
        assert np.abs(ort_maps - openvino_maps).max() < 1e-3
        assert (
            np.abs(ort_maps - torch_maps).max() < 2e-2
        )  # the file's weights are float16
