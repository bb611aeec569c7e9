"""What a stranger's model is refused for: operators, places outside a tensor, sizes, time, death."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

onnx = pytest.importorskip(
    "onnx", reason="onnx is not installed: hostile models are not made"
)

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from spine_engine.bundle import Bundle, file_facts, packaged_folder  # noqa: E402
from spine_engine.bundle import examination as room  # noqa: E402
from spine_engine.bundle.examination import apart, examine  # noqa: E402
from spine_engine.bundle.operators import refuse_operators  # noqa: E402
from spine_engine.cli import app  # noqa: E402
from spine_engine.errors import BundleError  # noqa: E402

GRID = (3, 24, 40, 48)


def model_of(extra=(), constants=None, domains=("",), **given):
    """A grader of the packaged one's shape that adds 0 times ``x``, which the nodes ``extra`` make."""
    named = {
        "axes": np.array([1, 2, 3, 4], np.int64),
        "more": np.array([1, 2], np.int64),
        "none": np.float32(0),
        "k": np.zeros((1, 5, 3), np.float32),
    } | (constants or {})
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["m"], keepdims=0),
        helper.make_node("Unsqueeze", ["m", "more"], ["u"]),
        helper.make_node("Mul", ["u", "none"], ["z"]),
        helper.make_node("Add", ["z", "k"], ["p"]),
        *extra,
    ]
    if extra:
        nodes += [
            helper.make_node("Mul", ["x", "none"], ["y"]),
            helper.make_node("Add", ["p", "y"], ["r"]),
        ]
    nodes.append(
        helper.make_node("Softmax", ["r" if extra else "p"], ["probabilities"], axis=2)
    )
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *GRID])],
        [
            helper.make_tensor_value_info(
                "probabilities", TensorProto.FLOAT, ["batch", 5, 3]
            )
        ],
        [
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in named.items()
        ],
    )
    opsets = [
        helper.make_opsetid(domain, 20 if not domain else 1) for domain in domains
    ]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=10, **given
    ).SerializeToString()


def node(*given, **attributes):
    return helper.make_node(*given, **attributes)


def reduced(name):
    return node("ReduceMax", [name], ["x"], keepdims=0)


def bundle_of(tmp_path: Path, model: bytes) -> Path:
    """The packaged bundle with another grader."""
    folder = tmp_path / "bundle"
    shutil.copytree(packaged_folder(), folder)
    (folder / "grader.onnx").write_bytes(model)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["models"]["grader"].update(
        file_facts(folder / "grader.onnx"), variants={}, precisions=["f32"], parity={}
    )
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


AT = np.full((1, 1, 1, 1, 1), -49, np.int64)
LOOP_BODY = helper.make_graph(
    [node("Identity", ["go"], ["on"]), node("Identity", ["v"], ["w"])],
    "body",
    [
        helper.make_tensor_value_info(n, t, [])
        for n, t in (("i", 7), ("go", 9), ("v", 1))
    ],
    [helper.make_tensor_value_info(n, t, []) for n, t in (("on", 9), ("w", 1))],
)

NOT_ON_THE_LIST = {
    "scatter": [
        node("ScatterElements", ["image", "at", "by"], ["w"], axis=4),
        reduced("w"),
    ],
    "loop": [node("Loop", ["rounds", "true", "none"], ["x"], body=LOOP_BODY)],
    "if": [node("If", ["true"], ["x"], then_branch=LOOP_BODY, else_branch=LOOP_BODY)],
    "another domain": [node("Relu", ["m"], ["x"], domain="com.microsoft")],
}
TOLD = {"another domain": "domain 'com.microsoft'"}


@pytest.mark.parametrize("kind", NOT_ON_THE_LIST)
def test_operators_that_write_loop_or_are_not_onnx_s_own_are_named_and_trusted_only_by_name(
    tmp_path, kind
):
    constants = {
        "at": AT,
        "by": AT.astype(np.float32),
        "rounds": np.int64(2**62),
        "true": np.bool_(True),
    }
    folder = bundle_of(tmp_path, model_of(NOT_ON_THE_LIST[kind], constants))
    operator = NOT_ON_THE_LIST[kind][0].op_type
    said = TOLD.get(kind, f"operator '{operator}'")
    with pytest.raises(
        BundleError, match=rf"^grader\.onnx is refused: .*{said}.*--trust"
    ):
        Bundle.open(folder)
    assert Bundle.open(folder, trust=True).grader.file == "grader.onnx"


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (
            [
                node("Cast", ["m"], ["n"], to=7),
                node("Gather", ["image", "n"], ["w"]),
                reduced("w"),
            ],
            "a Gather takes",
        ),
        (
            [
                node("Cast", ["m"], ["n"], to=7),
                node("Expand", ["none", "n"], ["w"]),
                reduced("w"),
            ],
            "an? Expand takes",
        ),
        (
            [node("Relu", ["m"], ["w"]), node("Neg", ["m"], ["w"]), reduced("w")],
            "two nodes give one tensor",
        ),
        (
            [
                node("MaxPool", ["image"], ["w"], kernel_shape=[2] * 3, pads=[-1] * 6),
                reduced("w"),
            ],
            "attribute 'pads' is out of range",
        ),
    ],
)
def test_places_and_sizes_never_follow_from_a_picture(extra, said):
    with pytest.raises(BundleError, match=said):
        refuse_operators(model_of(extra), "m.onnx")


def test_functions_and_constants_larger_than_their_bytes_are_refused():
    body = helper.make_function(
        "own",
        "F",
        ["a"],
        ["b"],
        [node("Relu", ["a"], ["b"])],
        [helper.make_opsetid("", 20)],
    )
    with pytest.raises(BundleError, match="functions of its own"):
        refuse_operators(model_of(functions=[body]), "m.onnx")
    model = onnx.load_from_string(model_of())
    model.graph.initializer[0].dims[:] = [2**40]
    with pytest.raises(BundleError, match="larger than its bytes"):
        refuse_operators(model.SerializeToString(), "m.onnx")


def test_sizes_that_follow_from_shapes_are_allowed():
    extra = [
        node("Shape", ["image"], ["s"], start=0, end=1),
        node("Expand", ["none", "s"], ["e"]),
        node("ReduceMax", ["e"], ["x"], keepdims=0),
    ]
    refuse_operators(model_of(extra), "m.onnx")
    refuse_operators(model_of(), "m.onnx")


@pytest.mark.parametrize(
    "name", ["grader.onnx", "grader.f16.onnx", "detector.onnx", "detector.f16.onnx"]
)
def test_the_packaged_models_are_on_the_list(name):
    refuse_operators((packaged_folder() / name).read_bytes(), name)


TRIED = {
    "gather": (
        [node("Gather", ["image", "far"], ["w"], axis=4), reduced("w")],
        {"far": np.array([-49], np.int64)},
        "grader.onnx is refused: a Gather reads outside its tensor",
    ),
    "gather by shape": (
        [node("GatherND", ["image", "far"], ["w"]), reduced("w")],
        {"far": np.array([[0, 0, 10**6]], np.int64)},
        "grader.onnx is refused: a GatherND reads outside its tensor",
    ),
    "huge": (
        [
            node("Expand", ["none", "size"], ["w"]),
            node("Add", ["w", "m"], ["v"]),
            reduced("v"),
        ],
        {"size": np.array([2**34], np.int64)},
        "refused",
    ),
    "divide": (
        [
            node("Div", ["a", "b"], ["q"]),
            node("Cast", ["q"], ["f"], to=1),
            node("ReduceSum", ["f"], ["x"], keepdims=0),
        ],
        {"a": np.array([-(2**63)], np.int64), "b": np.array([-1], np.int64)},
        "refused",
    ),
}


@pytest.mark.parametrize("kind", TRIED)
def test_what_only_a_trial_shows_is_refused_in_one_line_within_ten_seconds(
    tmp_path, kind
):
    extra, constants, said = TRIED[kind]
    bundle = Bundle.open(bundle_of(tmp_path, model_of(extra, constants)))
    begun = time.monotonic()
    with pytest.raises(BundleError, match=said) as caught:
        examine(bundle)
    assert time.monotonic() - begun < 10
    assert "\n" not in str(caught.value)


def test_a_sane_bundle_passes_its_trial(tmp_path):
    examine(Bundle.open(bundle_of(tmp_path, model_of())))


def test_a_trial_that_takes_too_long_or_dies_refuses_the_bundle():
    bundle = Bundle.open()
    with pytest.raises(
        BundleError, match=r"^lumbar-small is refused: trying it took more than 1 s"
    ):
        apart(time.sleep, 60, bundle=bundle, time_s=1)
    with pytest.raises(
        BundleError,
        match=r"^lumbar-small is refused: the process that tried it died of SIGSEGV",
    ):
        apart(signal_itself, bundle=bundle, time_s=30)


def signal_itself():
    import os
    import signal

    os.kill(os.getpid(), signal.SIGSEGV)


def test_run_and_verify_say_so_with_the_exit_code_3(tmp_path):
    extra, constants, _ = TRIED["divide"]
    folder = bundle_of(tmp_path, model_of(extra, constants))
    (tmp_path / "in").mkdir()
    words = (
        "run",
        "--input",
        tmp_path / "in",
        "--output",
        tmp_path / "out",
        "--bundle",
        folder,
    )
    for asked in (words, ("bundle", "verify", folder)):
        done = CliRunner().invoke(app, [str(word) for word in asked])
        assert done.exit_code == 3
        assert done.stderr.startswith("spine-engine: lumbar-small is refused: ")
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert room.TIME_S < 10
