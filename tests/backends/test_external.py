"""A model with weights outside its file is refused, wherever in the model they are named."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from spine_engine.backends.external import refuse_external_data
from spine_engine.errors import BackendError

PLACES = [
    *(
        "initializer",
        "sparse_initializer",
        "sparse_indices",
        "constant",
        "tensors",
        "subgraph",
        "subgraphs",
    ),
    *(
        "sparse_value",
        "sparse_values",
        "function",
        "default",
        "training",
        "initialization",
    ),
]


def tensor(outside, location="../../weights"):
    value = numpy_helper.from_array(np.ones(4, np.float32), "w")
    if outside:
        value.ClearField("raw_data")
        value.data_location = TensorProto.EXTERNAL
        value.external_data.add(key="location", value=location)
    return value


def model_with(place, outside, location="../../weights"):
    value = tensor(outside, location)
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"
    )
    constant = helper.make_node("Constant", [], ["c"], value=value)
    nodes, initial, functions = [helper.make_node("Identity", ["x"], ["y"])], [], []
    if place == "initializer":
        initial.append(value)
    elif place == "constant":
        nodes.append(constant)
    elif place == "tensors":
        nodes.append(
            helper.make_node("Own", [], ["c"], domain="own", values=[value, value])
        )
    elif place == "subgraph":
        inner = helper.make_graph(
            [constant],
            "inner",
            [],
            [helper.make_tensor_value_info("c", TensorProto.FLOAT, [4])],
        )
        nodes.append(
            helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner)
        )
    elif place == "subgraphs":
        inner = helper.make_graph(
            [constant],
            "inner",
            [],
            [helper.make_tensor_value_info("c", TensorProto.FLOAT, [4])],
        )
        nodes.append(
            helper.make_node("Own", [], ["c"], domain="own", bodies=[inner, inner])
        )
    elif place in ("sparse_value", "sparse_values"):
        sparse = helper.make_sparse_tensor(
            value, numpy_helper.from_array(np.arange(4), "i"), [4]
        )
        given = sparse if place == "sparse_value" else [sparse, sparse]
        nodes.append(helper.make_node("Own", [], ["c"], domain="own", values=given))
    elif place == "function":
        imports = [helper.make_opsetid("", 18)]
        functions.append(
            helper.make_function("own", "f", [], ["c"], [constant], imports)
        )
    elif place == "default":
        imports, default = (
            [helper.make_opsetid("", 18)],
            helper.make_attribute("w", value),
        )
        functions.append(
            helper.make_function(
                "own", "f", [], ["c"], [constant], imports, [], [default]
            )
        )
        functions[-1].node.pop()
    graph = helper.make_graph(nodes, "g", [x], [y], initial)
    if place == "sparse_initializer":
        indices = numpy_helper.from_array(np.arange(4), "i")
        graph.sparse_initializer.append(helper.make_sparse_tensor(value, indices, [4]))
    if place == "sparse_indices":
        values = numpy_helper.from_array(np.ones(4, np.float32), "v")
        graph.sparse_initializer.append(helper.make_sparse_tensor(values, value, [4]))
    model = helper.make_model(graph, functions=functions)
    if place == "initialization":
        model.training_info.add(
            initialization=helper.make_graph([], "t", [], [], [value])
        )
    if place == "training":
        model.training_info.add(algorithm=helper.make_graph([], "t", [], [], [value]))
    return model.SerializeToString()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", ["../../etc/passwd", "weights.bin", "/etc/passwd"])
def test_weights_in_another_file_are_refused(place, location):
    with pytest.raises(BackendError, match="another file"):
        refuse_external_data(model_with(place, outside=True, location=location))


@pytest.mark.parametrize("place", PLACES)
def test_weights_inside_are_accepted(place):
    refuse_external_data(model_with(place, outside=False))


def test_an_unknown_group_hides_nothing():
    group = bytes(
        [0x7B, 0x08, 0x01, 0x7C]
    )  # field 15: start group, a number, end group
    refuse_external_data(group + model_with("initializer", outside=False))
    with pytest.raises(BackendError, match="another file"):
        refuse_external_data(group + model_with("initializer", outside=True))


def test_bits_that_parsers_drop_hide_nothing():
    location = bytes([0x0A, 4]) + b"path"  # an entry of external_data
    wide = bytes(
        [0xEA, 0x80, 0x80, 0x80, 0x10]
    )  # the tag of field 13, bytes, with bit 32 set
    flag = bytes([0x70]) + bytes(
        [0x81, 0x80, 0x80, 0x80, 0x10]
    )  # data_location: 2^32 + 1
    for tensor_bytes in (wide + bytes([len(location)]) + location, flag):
        graph = bytes([0x2A, len(tensor_bytes)]) + tensor_bytes
        with pytest.raises(BackendError):
            refuse_external_data(bytes([0x3A, len(graph)]) + graph)


@pytest.mark.parametrize(
    "content", [b"rubbish", b"\x0a\xff", b"\x0b", b"\x80" * 20, b"\x7c"]
)
def test_what_is_no_model_is_refused(content):
    with pytest.raises(BackendError, match="no ONNX model"):
        refuse_external_data(content)


def test_a_model_cut_short_is_refused():
    content = model_with("initializer", outside=False)
    with pytest.raises(BackendError, match="no ONNX model"):
        refuse_external_data(content[: len(content) // 2])


def test_external_data_is_refused_without_a_location_flag():
    value = tensor(outside=True)
    value.data_location = TensorProto.DEFAULT
    graph = helper.make_graph([], "g", [], [], [value])
    with pytest.raises(BackendError, match="another file"):
        refuse_external_data(onnx.ModelProto(graph=graph).SerializeToString())


def test_negative_numbers_take_ten_bytes_and_are_allowed():
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"
    )
    graph = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["y"], axis=-1)], "g", [x], [y]
    )
    assert b"\xff" * 9 + b"\x01" in helper.make_model(graph).SerializeToString()
    refuse_external_data(helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize(
    "field",
    [bytes([0x79]) + b"\xff" * 8, bytes([0x7D]) + b"\xff" * 4, bytes([0x78, 0x01])],
)
def test_fields_of_every_width_are_stepped_over(field):
    refuse_external_data(field + model_with("initializer", outside=False))
    with pytest.raises(BackendError, match="another file"):
        refuse_external_data(field + model_with("initializer", outside=True))


@pytest.mark.parametrize("size", [5, 40])
def test_a_field_that_runs_past_its_message_is_refused_although_the_file_goes_on(size):
    graph = bytes([0x2A, size]) + bytes(
        [0x08, 0x01, 0x08, 0x01]
    )  # an initialiser said to be longer than its graph
    content = bytes([0x3A, len(graph)]) + graph + bytes([0x08, 0x01]) * 30
    with pytest.raises(BackendError, match="no ONNX model"):
        refuse_external_data(content)


@pytest.mark.parametrize(
    "content",
    [
        b"\x7b",
        b"\x7b\x7b\x7c",
        b"\x7e",
        b"\x7f",
        b"\x79" + bytes(7),
        b"\x7d" + bytes(3),
    ],
)
def test_groups_that_do_not_end_and_fields_that_are_cut_short_are_refused(content):
    with pytest.raises(BackendError, match="no ONNX model"):
        refuse_external_data(content)
