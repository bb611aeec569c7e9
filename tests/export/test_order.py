"""A 1x1 convolution goes before the enlargement it would follow, wherever that changes nothing but the work."""

from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the export extra: no export is shown")
onnx = pytest.importorskip("onnx", reason="needs the export extra: no export is shown")
pytest.importorskip("onnxscript", reason="needs the export extra: no export is shown")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: exported files are not shown to run in it")

from torch import nn  # noqa: E402

from spine_engine.backends import open_backend  # noqa: E402
from spine_export.onnx import BATCH, Face, export_module  # noqa: E402

FACE = Face(example=(2, 6, 5, 7), inputs=("image",), outputs=("maps",), dynamic=BATCH)


def enlarged(mode="bilinear", align_corners=False):
    return nn.Upsample(scale_factor=2, mode=mode, align_corners=align_corners if mode != "nearest" else None)


class Shared(nn.Module):
    """Somebody else reads what is enlarged."""

    def __init__(self):
        super().__init__()
        self.enlarge, self.conv = enlarged(), nn.Conv2d(6, 6, 1)

    def forward(self, x):
        y = self.enlarge(x)
        return torch.relu(self.conv(y) + y)


def order_of(module, path, precision="f32"):
    """Export it, compare the answers, and return its convolutions and enlargements in their order."""
    torch.manual_seed(0)
    export_module(module, path, FACE, precision=precision)
    image = torch.rand(3, *FACE.example[1:])
    backend = open_backend(path, name="onnxruntime")
    found = backend.run({"image": image.numpy()})["maps"]
    backend.close()
    with torch.no_grad():
        wanted = module(image).numpy()
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < (1e-5 if precision == "f32" else 1e-2)
    return [node.op_type for node in onnx.load(path).graph.node if node.op_type in {"Conv", "Resize"}]


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_a_1x1_convolution_goes_first(tmp_path, mode, align_corners):
    module = nn.Sequential(enlarged(mode, align_corners), nn.Conv2d(6, 3, 1), nn.ReLU())
    assert order_of(module, tmp_path / "moved.onnx") == ["Conv", "Resize"]


@pytest.mark.parametrize(
    "last",
    [
        nn.Conv2d(6, 3, 3, padding=1),
        nn.Conv2d(6, 3, 1, padding=1),
        nn.Conv2d(6, 3, 1, stride=2),
        nn.Conv2d(6, 3, 1, groups=3),
        nn.Conv2d(6, 12, 1),
    ],
    ids=["3x3", "padded", "strided", "grouped", "more channels"],
)
def test_what_would_change_numbers_or_work_stays(tmp_path, last):
    module = nn.Sequential(enlarged(), last, nn.ReLU())
    assert order_of(module, tmp_path / "kept.onnx") == ["Resize", "Conv"]


def test_an_enlargement_with_another_reader_stays(tmp_path):
    assert order_of(Shared(), tmp_path / "shared.onnx") == ["Resize", "Conv"]


def test_two_in_a_row_and_a_graph_that_ends_in_its_convolution(tmp_path):
    module = nn.Sequential(enlarged(), nn.Conv2d(6, 4, 1), enlarged(), nn.Conv2d(4, 2, 1))
    order = order_of(module, tmp_path / "two.onnx")
    assert Counter(order) == {"Conv": 2, "Resize": 2}
    assert order[0] == "Conv"


def test_a_half_precision_file_keeps_the_order_of_its_proof(tmp_path):
    module = nn.Sequential(enlarged(), nn.Conv2d(6, 3, 1), nn.ReLU())
    assert order_of(module, tmp_path / "half.onnx", "f16") == ["Resize", "Conv"]
