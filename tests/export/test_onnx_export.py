"""Any module to ONNX: SpineNet's networks, weights beside the file, half precision, what the file says of itself."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="needs the export extra: no export is shown"
)
onnx = pytest.importorskip("onnx", reason="needs the export extra: no export is shown")
pytest.importorskip("onnxscript", reason="needs the export extra: no export is shown")
timm_3d = pytest.importorskip(
    "timm_3d", reason="needs the export extra: no export is shown"
)
onnxruntime = pytest.importorskip(
    "onnxruntime",
    reason="onnxruntime is not installed: exported files are not shown to run in it",
)

from onnx import TensorProto, numpy_helper  # noqa: E402

from spine_engine import __version__  # noqa: E402
from spine_engine.backends import open_backend  # noqa: E402
from spine_engine.errors import UsageError  # noqa: E402
from spine_export import parts  # noqa: E402
from spine_export.half import narrowed  # noqa: E402
from spine_export.onnx import (  # noqa: E402
    BATCH,
    OPSET,
    SPINENET_FACES,
    Face,
    export_module,
    grader_face,
)
from spine_export.parts import detector_part, grader_part, spinenet_part  # noqa: E402
from spine_export.verify import TorchRunner  # noqa: E402
from spine_training.detector.model import Deployed, LevelHeatmapNet  # noqa: E402
from spine_training.grader.model import (  # noqa: E402
    Grader,
    GraderConfig,
    MirrorAveraged,
    save_grader,
)
from spine_training.spinenet import SPINENETS  # noqa: E402

PARITY = 1e-4
HALF_PARITY = 5e-3
TINY = GraderConfig(backbone="narrow_conv_8", shape=(8, 12, 16), coordinates=False)


def made_grader() -> Grader:
    """A grader whose answers differ from image to image."""
    torch.manual_seed(0)
    grader = Grader(TINY)
    for head in grader.heads:
        torch.nn.init.normal_(head[0].weight, std=2.0)
    return grader.eval()


def grids(count: int) -> "torch.Tensor":
    return torch.rand(
        count, 3, *TINY.shape, generator=torch.Generator().manual_seed(count)
    )


def answers(path, given, name: str = "image", runtime: str = "onnxruntime"):
    backend = open_backend(
        path, name=runtime, precision="f32" if runtime == "openvino" else "auto"
    )
    (found,) = backend.run({name: given}).values()
    backend.close()
    return found


SMALL = Face(
    example=(2, 3, *TINY.shape), inputs=("image",), outputs=("features",), dynamic=BATCH
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The same small network with its weights inside and beside the file."""
    folder = tmp_path_factory.mktemp("written")
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv3d(3, 64, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool3d(1),
    ).eval()
    paths = [folder / "inside.onnx", folder / "beside.onnx"]
    for path, limit in zip(paths, (2**31 - 1, 10_000), strict=True):
        export_module(net, path, SMALL, inline_bytes=limit)
    return net, *paths


def test_weights_beyond_the_limit_lie_in_one_file_beside(written):
    net, inside, beside = written
    assert sorted(path.name for path in inside.parent.iterdir()) == [
        "beside.onnx",
        "beside.onnx.data",
        "inside.onnx",
    ]
    assert beside.stat().st_size < inside.stat().st_size / 2
    external = [
        t
        for t in onnx.load(beside, load_external_data=False).graph.initializer
        if t.external_data
    ]
    assert {
        entry.value
        for t in external
        for entry in t.external_data
        if entry.key == "location"
    } == {"beside.onnx.data"}
    first, second = (
        {t.name: t for t in onnx.load(path).graph.initializer}
        for path in (inside, beside)
    )
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert np.array_equal(
            numpy_helper.to_array(tensor), numpy_helper.to_array(second[name])
        )
    given = grids(3)
    with torch.no_grad():
        wanted = net(given).numpy()
    for path in (inside, beside):
        session = onnxruntime.InferenceSession(str(path))
        assert (
            np.abs(session.run(None, {"image": given.numpy()})[0] - wanted).max()
            <= PARITY
        )


def test_a_stale_file_of_weights_goes_and_the_same_model_gives_the_same_bytes(
    written, tmp_path
):
    net, inside, _ = written
    (tmp_path / "net.onnx.data").write_bytes(b"of an earlier export")
    path = export_module(net, tmp_path / "net.onnx", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert path.read_bytes() == inside.read_bytes()


def test_the_file_says_what_made_it_and_nothing_of_where(written):
    for path in written[1:]:
        proto = onnx.load(path, load_external_data=False)
        assert (proto.producer_name, proto.producer_version) == (
            "spine-engine",
            __version__,
        )
        notes = {prop.key: prop.value for prop in proto.metadata_props}
        assert notes.keys() == {"precision", "opset", "torch", "onnxscript", "timm-3d"}
        assert (notes["precision"], notes["opset"]) == ("f32", str(OPSET))
        assert [(opset.domain, opset.version) for opset in proto.opset_import] == [
            ("", OPSET)
        ]
        content = path.read_bytes()
        assert b"site-packages" not in content
        assert b".py" not in content
        onnx.checker.check_model(path, full_check=True)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_one_file_takes_every_batch(written, runtime):
    net, inside, _ = written
    for count in (1, 3, 8):
        given = grids(count)
        with torch.no_grad():
            wanted = net(given).numpy()
        assert (
            np.abs(answers(inside, given.numpy(), runtime=runtime) - wanted).max()
            <= PARITY
        )


def test_crossed_cutpoints_of_our_own_are_refused(tmp_path):
    grader = made_grader()
    with torch.no_grad():
        grader.heads[2][1].cutpoints.copy_(torch.tensor([1.0, -1.0]))
    save_grader(grader, tmp_path / "grader.pt")
    with pytest.raises(UsageError, match=r"do not ascend \(head 2: 1\.0, -1\.0\)"):
        grader_part(tmp_path / "grader.pt")


def types_of(path) -> dict[str, int]:
    proto = onnx.shape_inference.infer_shapes(
        onnx.load(path), check_type=True, strict_mode=True
    )
    values = [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]
    known = {value.name: value.type.tensor_type.elem_type for value in values}
    return known | {tensor.name: tensor.data_type for tensor in proto.graph.initializer}


def test_a_file_in_half_precision_is_strongly_typed_and_keeps_the_order_of_its_proof(
    tmp_path,
):
    torch.manual_seed(0)
    enlarge = torch.nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    net = torch.nn.Sequential(enlarge, torch.nn.Conv2d(6, 3, 1), torch.nn.ReLU()).eval()
    face = Face(
        example=(2, 6, 5, 7), inputs=("image",), outputs=("maps",), dynamic=BATCH
    )
    path = export_module(net, tmp_path / "half.onnx", face, precision="f16")
    types, graph = types_of(path), onnx.load(path).graph
    assert (types["image"], types["maps"]) == (TensorProto.FLOAT, TensorProto.FLOAT)
    assert {types[i] for n in graph.node if n.op_type == "Conv" for i in n.input} == {
        TensorProto.FLOAT16
    }
    assert [
        node.op_type for node in graph.node if node.op_type in {"Conv", "Resize"}
    ] == ["Resize", "Conv"]
    assert {prop.key: prop.value for prop in onnx.load(path).metadata_props}[
        "precision"
    ] == "f16"
    given = torch.rand(3, 6, 5, 7)
    with torch.no_grad():
        wanted = net(given).numpy()
    assert 0 < np.abs(answers(path, given.numpy()) - wanted).max() <= 1e-2


def test_a_grader_in_half_precision_computes_its_backbone_in_it_and_stays_close():
    grader = made_grader()
    model = MirrorAveraged(grader).eval()
    half = {name: tensor.dtype for name, tensor in narrowed(model).named_parameters()}
    backbone = {
        dtype for name, dtype in half.items() if name.startswith("grader.backbone.")
    }
    assert backbone == {torch.float16}
    heads = {
        dtype for name, dtype in half.items() if not name.startswith("grader.backbone.")
    }
    assert heads == {torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in grader.parameters())
    given = grids(3)
    with torch.no_grad():
        wanted = model(given).numpy()
    found = TorchRunner(model, "probabilities", half=True).run(
        {"image": given.numpy()}
    )["probabilities"]
    assert 0 < np.abs(found - wanted).max() <= HALF_PARITY


@pytest.mark.slow
def test_a_half_precision_grader_is_strongly_typed_and_close(tmp_path):
    grader = made_grader()
    model = MirrorAveraged(grader).eval()
    export_module(model, tmp_path / "half.onnx", grader_face(grader), precision="f16")
    assert all(parameter.dtype == torch.float32 for parameter in grader.parameters())
    types = types_of(tmp_path / "half.onnx")
    assert (types["image"], types["probabilities"]) == (
        TensorProto.FLOAT,
        TensorProto.FLOAT,
    )
    graph = onnx.load(tmp_path / "half.onnx").graph
    inputs = {
        kind: {types[i] for n in graph.node if n.op_type == kind for i in n.input}
        for kind in ("Conv", "Gemm")
    }
    assert inputs == {"Conv": {TensorProto.FLOAT16}, "Gemm": {TensorProto.FLOAT}}
    sigmoids = [
        types[node.output[0]] for node in graph.node if node.op_type == "Sigmoid"
    ]
    assert (
        sigmoids.count(TensorProto.FLOAT) == TINY.heads
    )  # the links; the others are the backbone's SiLU
    assert len(sigmoids) > TINY.heads
    for count in (1, 3):
        given = grids(count)
        with torch.no_grad():
            wanted = model(given).numpy()
        difference = np.abs(
            answers(tmp_path / "half.onnx", given.numpy()) - wanted
        ).max()
        assert 0 < difference <= HALF_PARITY


@pytest.mark.slow
def test_a_half_precision_detector_is_close(tmp_path):
    torch.manual_seed(0)
    net = LevelHeatmapNet().eval()
    torch.save({"config": {}, "model": net.state_dict()}, tmp_path / "net.pt")
    path = detector_part(tmp_path / "net.pt").export(tmp_path / "net.onnx", "f16")
    types = types_of(path)
    convolutions = [
        node for node in onnx.load(path).graph.node if node.op_type == "Conv"
    ]
    assert {types[name] for node in convolutions for name in node.input if name} == {
        TensorProto.FLOAT16
    }
    slices = torch.rand(3, 1, 64, 96)
    with torch.no_grad():
        wanted = Deployed(net)(slices).numpy()
    assert np.abs(answers(path, slices.numpy(), "slices") - wanted).max() <= 2e-2


def test_a_weight_that_float16_cannot_hold_is_refused(tmp_path):
    grader = made_grader()
    with torch.no_grad():
        grader.backbone.conv_stem.weight[0, 0, 0, 0, 0] = 1e5
    with pytest.raises(UsageError, match="beyond float16's largest number, 65504"):
        export_module(
            grader, tmp_path / "half.onnx", grader_face(grader), precision="f16"
        )


def test_norms_over_whole_maps_stay_wide():
    net = timm_3d.create_model("convnextv2_atto", num_classes=0).eval()
    for module in net.modules():
        if type(module).__name__ == "GlobalResponseNorm":
            torch.nn.init.ones_(module.weight)
    half = narrowed(copy.deepcopy(net))
    types = {name: tensor.dtype for name, tensor in half.named_parameters()}
    wide = {name for name, dtype in types.items() if dtype == torch.float32}
    assert len(wide) == 2 * 12
    assert all(".grn." in name for name in wide)
    given = torch.rand(1, 3, 32, 32, 32)
    with torch.no_grad():
        wanted, found = net(given), half(given)
    assert found.dtype == torch.float32
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 2e-2


SIZES = {
    "context": [(1, 1, 256, 24), (3, 1, 64, 24), (8, 1, 512, 24)],
    "appearance": [(1, 1, 224, 224, 16), (3, 1, 224, 224, 16)],
    "vfr": [(1, 1, 224, 224), (3, 1, 224, 224)],
}


def test_spinenets_columns_may_be_of_any_length_and_number(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Conv2d(
        1, 1, 3, padding=1
    ).eval()  # stands for the network: what is shown is its face
    path = export_module(net, tmp_path / "net.onnx", SPINENET_FACES["context"])
    for size in ((1, 1, 32, 24), (3, 1, 4096, 24)):
        given = torch.rand(size)
        with torch.no_grad():
            wanted = net(given).numpy()
        for runtime in ("onnxruntime", "openvino"):
            assert (
                np.abs(answers(path, given.numpy(), "columns", runtime) - wanted).max()
                <= PARITY
            )


@pytest.mark.parametrize(
    ("kind", "example", "inputs", "outputs", "free"),
    [
        ("vfr", (2, 1, 224, 224), ("patches",), ("maps",), {0}),
        ("appearance", (2, 1, 224, 224, 16), ("volumes",), ("scores",), {0}),
        ("context", (2, 1, 256, 24), ("columns",), ("scores",), {0, 2}),
    ],
)
def test_spinenets_networks_are_called_by_these_names_and_sizes(
    kind, example, inputs, outputs, free, monkeypatch
):
    monkeypatch.setattr(parts, "load_spinenet", lambda path, kind: (path, kind))
    part = spinenet_part("net.pt", kind)
    assert part.module == ("net.pt", kind)
    assert (part.face.example, part.face.inputs, part.face.outputs) == (
        example,
        inputs,
        outputs,
    )
    assert set(part.face.dynamic) == free


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["context", "appearance", "vfr"])
def test_spinenet_gives_the_same_maps_and_scores_in_both_runtimes(kind, tmp_path):
    torch.manual_seed(0)
    net = SPINENETS[kind]().eval()
    torch.save({"net": net.state_dict(), "loss": 0.1, "epoch": 3}, tmp_path / "net.pt")
    part = spinenet_part(tmp_path / "net.pt", kind)
    part.export(tmp_path / "net.onnx")
    assert {name: t.dtype for name, t in part.module.state_dict().items()} == {
        name: t.dtype for name, t in net.state_dict().items()
    }
    face = SPINENET_FACES[kind]
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    assert [
        value.name for value in (*session.get_inputs(), *session.get_outputs())
    ] == [*face.inputs, *face.outputs]
    for size in SIZES[kind]:
        given = torch.rand(size, generator=torch.Generator().manual_seed(size[0]))
        with torch.no_grad():
            wanted = net(given).numpy()
        for runtime in ("onnxruntime", "openvino"):
            found = answers(
                tmp_path / "net.onnx", given.numpy(), face.inputs[0], runtime
            )
            assert found.shape == wanted.shape
            assert np.abs(found - wanted).max() <= PARITY * max(
                1, np.abs(wanted).max()
            ), (runtime, size)
