"""How an exported file is compared with its module: in which ways, over which inputs, what is kept and left out."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="needs the export extra: no export is shown"
)
pytest.importorskip("timm_3d", reason="needs the export extra: no export is shown")
onnx = pytest.importorskip("onnx", reason="needs the export extra: no export is shown")

from torch import nn  # noqa: E402

from spine_engine.backends import Profile, open_backend  # noqa: E402
from spine_engine.bundle.manifest import ModelEntry, TensorEntry  # noqa: E402
from spine_engine.errors import BackendError, UsageError  # noqa: E402
from spine_export import int8, verify  # noqa: E402
from spine_export.half import narrowed  # noqa: E402
from spine_export.verify import TorchRunner  # noqa: E402

PROFILE = Profile(smallest=(1, 3), usual=(2, 3), largest=(4, 3))


def entry(profile=PROFILE):
    facts = {"file": "m.onnx", "sha256": "0" * 64, "size_bytes": 1, "profile": profile}
    inputs, outputs = (
        TensorEntry(name="x", shape=(None, 3)),
        TensorEntry(name="y", shape=(None, 3)),
    )
    return ModelEntry(**facts, inputs=(inputs,), outputs=(outputs,))


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """Compare a module that doubles with backends that stray by so much; return what was found, opened, seen."""
    done = SimpleNamespace(opened=[], seen=[], closed=0)

    def compare(strays, precision="f32", worst=None, profile=PROFILE, missing=()):
        def open_backend(path, **options):
            way = f"{options['name']} {options['precision']}"
            if way in missing:
                raise BackendError("not here")
            done.opened.append((path, options))

            def run(inputs):
                done.seen.append(inputs["x"].copy())
                return {
                    "y": inputs["x"]
                    * 2
                    * (1 + strays.get(way, 0.0) * (len(inputs["x"]) == 2))
                }

            return SimpleNamespace(
                run=run, close=lambda: setattr(done, "closed", done.closed + 1)
            )

        monkeypatch.setattr(verify, "open_backend", open_backend)
        module = nn.Linear(3, 3, bias=False)
        nn.init.zeros_(module.weight)
        module.weight.data.fill_diagonal_(2.0)
        found = verify.verify(
            module, tmp_path / "m.onnx", entry(profile), precision, [], worst
        )
        return found, done

    return compare


def test_a_network_without_answers_is_compared_by_its_outputs_for_noise_of_two_sizes(
    compared, tmp_path
):
    found, done = compared({"openvino bf16": 0.01})
    assert list(found) == ["onnxruntime f32", "openvino f32", "openvino bf16"]
    assert [round(one.largest, 5) for one in found.values()] == [0.0, 0.0, 0.01]
    assert {one.tolerance for one in found.values()} == {1e-4}
    assert [len(x) for x in done.seen] == [1, 2] * 3
    assert all(
        x.min() >= 0 and x.max() < 1 and x.dtype == np.float32 for x in done.seen
    )
    assert not np.array_equal(done.seen[0][0], done.seen[1][0])
    np.testing.assert_array_equal(done.seen[0], done.seen[2])
    assert done.closed == 3
    path, options = done.opened[0]
    assert path == tmp_path / "m.onnx"
    assert options == {
        "name": "onnxruntime",
        "precision": "f32",
        "threads": torch.get_num_threads(),
        "profile": PROFILE,
    }


def test_a_half_file_runs_in_onnxruntime_and_may_move_further(compared):
    found, _ = compared({}, "f16")
    assert list(found) == ["onnxruntime f16"]
    assert found["onnxruntime f16"].tolerance == 5e-3


def test_ways_that_are_not_here_are_left_out_but_openvino_in_f32_must_be(compared):
    found, done = compared({}, missing=("onnxruntime f32", "openvino bf16"))
    assert list(found) == ["openvino f32"]
    assert done.closed == 1
    with pytest.raises(BackendError, match="not here"):
        compared({}, missing=("openvino f32",))


def test_the_worst_noise_of_each_way_is_kept(compared, tmp_path):
    compared({"openvino bf16": 0.5}, worst=tmp_path / "new" / "worst")
    kept = sorted(path.name for path in (tmp_path / "new" / "worst").iterdir())
    assert kept == [
        "m-onnxruntime-f32.npz",
        "m-openvino-bf16.npz",
        "m-openvino-f32.npz",
    ]
    with np.load(tmp_path / "new" / "worst" / "m-openvino-bf16.npz") as worst:
        assert worst["input"].shape == (2, 3)
        np.testing.assert_allclose(worst["other"], worst["reference"] * 1.5, rtol=1e-6)


def test_a_network_without_a_profile_has_no_shape_to_compare_in(compared):
    with pytest.raises(
        ValueError, match=r"^m\.onnx has no profile to take a shape from$"
    ):
        compared({}, profile=None)


def test_a_runner_evaluates_and_leaves_no_gradients():
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9)).train()
    runner, x = TorchRunner(module, "y"), np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(runner.run({"x": x})["y"], runner.run({"x": x})["y"])
    assert runner.run({"x": x})["y"].dtype == np.float32
    half = TorchRunner(module, "y", half=True)
    assert half.run({"x": x})["y"].dtype == np.float32
    assert module[0].weight.dtype == torch.float32
    assert 0 < np.abs(half.run({"x": x})["y"] - runner.run({"x": x})["y"]).max() < 1e-2


@pytest.mark.parametrize(
    ("weight", "fits"),
    [(65504.0, True), (-65504.0, True), (65536.0, False), (-70000.0, False)],
)
def test_weights_up_to_float16s_largest_are_narrowed(weight, fits):
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, weight)
    if fits:
        assert narrowed(module).core.weight.item() == weight
        return
    with pytest.raises(
        UsageError,
        match=r"a weight is beyond float16's largest number, 65504; export in f32",
    ):
        narrowed(module)


def network(*kinds):
    """Return an ONNX model of these operations in a row."""
    helper, last, nodes, weights = onnx.helper, "x", [], []
    for k, kind in enumerate(kinds):
        nodes.append(
            helper.make_node(
                kind,
                [last, f"w{k}"] if kind == "MatMul" else [last],
                [f"y{k}"],
                name=f"n{k}",
            )
        )
        last = f"y{k}"
        if kind == "MatMul":
            weights.append(
                onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), f"w{k}")
            )
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4])
        for name in ("x", last)
    )
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )


@pytest.mark.parametrize(
    "kinds", [("Relu",), ("MatMul",), ("MatMul", "Relu", "MatMul")]
)
def test_a_model_without_an_inner_product_has_nothing_to_quantise(tmp_path, kinds):
    pytest.importorskip(
        "nncf",
        reason="needs the int8 extra: that nothing is quantised at the ends is not shown",
    )
    onnx.save(network(*kinds), tmp_path / "m.onnx")
    with pytest.raises(
        UsageError, match=r"m\.onnx has no product between its first and last layer"
    ):
        int8.quantize(
            tmp_path / "m.onnx", np.zeros((1, 1, 4), np.float32), tmp_path / "out.onnx"
        )
    assert not (tmp_path / "out.onnx").exists()


def test_inner_products_are_quantised_and_the_first_and_last_are_not(tmp_path):
    pytest.importorskip(
        "nncf",
        reason="needs the int8 extra: that inner products are quantised is not shown",
    )
    onnx.save(
        network("MatMul", "Relu", "MatMul", "Relu", "MatMul", "Relu", "MatMul"),
        tmp_path / "m.onnx",
    )
    grids = np.random.default_rng(0).random((5, 4), np.float32)
    int8.quantize(tmp_path / "m.onnx", grids, tmp_path / "out.onnx")
    graph = onnx.load(tmp_path / "out.onnx").graph
    readers = {name: node.name for node in graph.node for name in node.input}
    quantised = {
        readers[node.output[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear"
    }
    assert quantised == {"n2", "n4"}
    backend = open_backend(tmp_path / "out.onnx", name="onnxruntime", precision="f32")
    (found,) = backend.run({"x": grids[:1]}).values()
    backend.close()
    assert 0 < np.abs(found - grids[:1]).max() < 0.1


def test_the_last_products_are_those_that_no_other_follows():
    assert int8._heads(
        network("MatMul", "Relu", "MatMul", "Relu", "MatMul", "Relu")
    ) == {"n4"}
    assert int8._heads(network("Relu")) == set()


def test_without_nncf_the_line_that_installs_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(
        UsageError,
        match=r'^INT8 needs NNCF \(.*\): pip install "spine-mri-engine\[int8\]"$',
    ):
        int8.quantize(
            tmp_path / "m.onnx", np.zeros((1, 4), np.float32), tmp_path / "out.onnx"
        )
