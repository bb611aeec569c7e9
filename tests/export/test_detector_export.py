"""The exported detector answers as its checkpoint does, under either runtime."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the export extra is not installed")
pytest.importorskip("onnxscript", reason="the export extra is not installed")
onnxruntime = pytest.importorskip(
    "onnxruntime", reason="onnxruntime is not installed: exported files are not shown to run in it"
)

from spine_engine.backends import open_backend  # noqa: E402
from spine_export.parts import detector_part  # noqa: E402
from spine_training.detector.evaluate import TorchBackend  # noqa: E402
from spine_training.detector.model import LevelHeatmapNet  # noqa: E402


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("exported_once")
def test_the_exported_model_answers_as_the_checkpoint(tmp_path):
    torch.manual_seed(0)
    torch.save({"config": {}, "model": LevelHeatmapNet().state_dict()}, tmp_path / "net.pt")
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
        torch_maps, ort_maps, openvino_maps = (backend.run({"slices": slices})["heatmaps"] for backend in backends)
        assert np.abs(ort_maps - openvino_maps).max() < 1e-3
        assert np.abs(ort_maps - torch_maps).max() < 2e-2  # the file's weights are float16
