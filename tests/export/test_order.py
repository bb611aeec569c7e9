"""A 1x1 convolution goes before the enlargement it would follow, wherever that changes nothing but the work."""

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="needs the export extra: no export is shown"
)
onnx = pytest.importorskip("onnx", reason="needs the export extra: no export is shown")
pytest.importorskip("onnxscript", reason="needs the export extra: no export is shown")
pytest.importorskip(
    "onnxruntime",
    reason="onnxruntime is not installed: exported files are not shown to run in it",
)

import onnx_ir as ir  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402
from torch import nn  # noqa: E402

from spine_engine.backends import open_backend  # noqa: E402
from spine_export.onnx import BATCH, Face, export_module  # noqa: E402
from spine_export.order import narrow_before_enlarging  # noqa: E402

IMAGE = (6, 5, 7)
TWICE = [1.0, 1.0, 2.0, 2.0]
LINEAR = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}


class Picture:
    """A graph over pictures of six channels, written down node by node."""

    def __init__(self):
        self.nodes, self.weights, self.last = [], [], "image"

    def then(self, kind, *weights, **said):
        """Add a node that reads the last one; None is an input that is left out."""
        names = []
        for values in weights:
            names.append("" if values is None else f"w{len(self.weights)}")
            if values is not None:
                self.weights.append(
                    numpy_helper.from_array(np.asarray(values, np.float32), names[-1])
                )
        given, self.last = self.last, f"y{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [given, *names], [self.last], **said))
        return self

    def enlarged(self, factors=TWICE, **said):
        return self.then("Resize", None, factors, **{**LINEAR, **said})

    def convolved(self, given, made, side=1, **said):
        draw = np.random.default_rng(made)
        shape = (made, given // said.get("group", 1), side, side)
        return self.then(
            "Conv", draw.normal(size=shape), draw.normal(size=made), **said
        )

    def model(self, *outputs):
        image = helper.make_tensor_value_info(
            "image", onnx.TensorProto.FLOAT, ["n", *IMAGE]
        )
        outputs = [onnx.ValueInfoProto(name=name) for name in (outputs or (self.last,))]
        graph = helper.make_graph(self.nodes, "g", [image], outputs, self.weights)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
        )
        return onnx.shape_inference.infer_shapes(
            model, strict_mode=True, data_prop=True
        )


def answer(content):
    backend = open_backend(content, name="onnxruntime", precision="f32")
    image = np.random.default_rng(0).random((3, *IMAGE), np.float32)
    found = backend.run({"image": image})
    backend.close()
    return found


def order_of(model, moved):
    """Reorder a graph, compare the answers, and return its convolutions and enlargements in their order."""
    graph = ir.from_proto(model)
    assert narrow_before_enlarging(graph) == moved
    after = ir.to_proto(graph)
    onnx.checker.check_model(after, full_check=True)
    wanted, found = answer(model.SerializeToString()), answer(after.SerializeToString())
    assert wanted.keys() == found.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5)
    return [
        node.op_type for node in after.graph.node if node.op_type in {"Conv", "Resize"}
    ]


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"coordinate_transformation_mode": "align_corners"},
        {
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
        {"factors": [1.0, 1.0, 1.0, 3.0]},
    ],
    ids=["bilinear", "corners", "nearest", "one axis"],
)
@pytest.mark.parametrize("channels", [3, 6])
def test_a_1x1_convolution_goes_first(said, channels):
    model = Picture().enlarged(**said).convolved(6, channels).then("Relu").model()
    assert order_of(model, 1) == ["Conv", "Resize"]


@pytest.mark.parametrize(
    "last",
    [
        {"made": 3, "side": 3, "pads": [1, 1, 1, 1]},
        {"made": 3, "side": 3},
        {"made": 3, "pads": [1, 1, 1, 1]},
        {"made": 3, "pads": [0, 0, 0, 1]},
        {"made": 3, "strides": [2, 2]},
        {"made": 3, "strides": [1, 2]},
        {"made": 3, "group": 3},
        {"made": 7},
    ],
    ids=[
        "3x3",
        "3x3 bare",
        "padded",
        "padded on one side",
        "strided",
        "strided on one axis",
        "grouped",
        "more channels",
    ],
)
def test_what_would_change_numbers_or_work_stays(last):
    assert order_of(
        Picture().enlarged().convolved(6, **last).then("Relu").model(), 0
    ) == ["Resize", "Conv"]


@pytest.mark.parametrize(
    "said",
    [{"mode": "cubic"}, {"factors": [1.0, 1.0, 0.5, 2.0]}, {"antialias": 1}],
    ids=["cubic", "shrinks", "antialias"],
)
def test_what_is_no_plain_enlargement_stays(said):
    assert order_of(
        Picture().enlarged(**said).convolved(6, 3).then("Relu").model(), 0
    ) == ["Resize", "Conv"]


def test_an_enlargement_with_another_reader_stays():
    picture = Picture().enlarged()
    picture.convolved(6, 6).nodes.append(
        helper.make_node("Add", ["y0", picture.last], ["both"])
    )
    assert order_of(picture.model("both"), 0) == ["Resize", "Conv"]


def test_an_enlargement_that_is_an_answer_stays():
    picture = Picture().enlarged().convolved(6, 3).then("Relu")
    assert order_of(picture.model("y0", picture.last), 0) == ["Resize", "Conv"]


def test_two_in_a_row_and_a_graph_that_ends_in_its_convolution():
    model = Picture().enlarged().convolved(6, 4).enlarged().convolved(4, 2).model()
    assert order_of(model, 1) == ["Conv", "Resize", "Resize", "Conv"]


def test_what_the_exporter_writes_is_known_for_an_enlargement(tmp_path):
    torch.manual_seed(0)
    ways = [
        {"mode": "bilinear"},
        {"mode": "bilinear", "align_corners": True},
        {"mode": "nearest"},
    ]
    layers = [
        (nn.Upsample(scale_factor=2, **way), nn.Conv2d(6 - k, 5 - k, 1), nn.ReLU())
        for k, way in enumerate(ways)
    ]
    module = nn.Sequential(*(layer for three in layers for layer in three)).eval()
    face = Face(
        example=(2, *IMAGE), inputs=("image",), outputs=("maps",), dynamic=BATCH
    )
    path = export_module(module, tmp_path / "moved.onnx", face)
    image = np.random.default_rng(0).random((3, *IMAGE), np.float32)
    with torch.no_grad():
        wanted = module(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(answer(path)["maps"], wanted, atol=1e-5)
    kinds = [
        node.op_type
        for node in onnx.load(path).graph.node
        if node.op_type in {"Conv", "Resize"}
    ]
    assert kinds == ["Conv", "Resize"] * 3
