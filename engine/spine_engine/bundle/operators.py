"""What a model from somebody else may be made of: a list of operators, read from its bytes before a runtime sees it.

The list is what PyTorch's exporter, and so ``spine_export``, writes for the networks of ``docs/families.md``:
arithmetic, convolutions, norms, attention, recurrent layers. Not on it is what can run for ever (``Loop``, ``Scan``),
write where it is told (``Scatter*``), or bring code of its own (other domains, functions). Sizes and places may follow
from constants and from shapes, never from a picture's values: what one trial shows of them then holds for every study.

Field numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Final

from spine_engine.backends.external import fields, refuse_external_data
from spine_engine.errors import BackendError, BundleError

_NAMES: Final = """
Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast CastLike Ceil Celu Clip Concat Constant
ConstantOfShape Conv ConvInteger ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Dropout
DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm
GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity
InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg Not Or
PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2
ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round Selu
Shape Sigmoid Sign Sin Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tanh
ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
"""

OPERATORS: Final = frozenset(_NAMES.split())
"""Every operator that a model may use without being trusted; all are of ONNX's own domain."""

_PLACES: Final[dict[str, tuple[int, ...]]] = {
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Expand": (1,),
    "GRU": (4,),
    "Gather": (1,),
    "GatherElements": (1,),
    "GatherND": (1,),
    "LSTM": (4,),
    "Pad": (1, 3),
    "RNN": (4,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
} | {name: (1,) for name in OPERATORS if name.startswith("Reduce")}
"""Inputs that say how large an answer is or where it is read from, by operator."""

MAX_NODES: Final = 50_000
"""The largest network of docs/families.md has under 3,000 nodes."""

MAX_ATTRIBUTE: Final = 1 << 20
"""Kernels, strides, pads and axes are far smaller; the largest value is the end of a slice that means 'all'."""

_ATTRIBUTE_NAMES: Final = frozenset(
    {"kernel_shape", "strides", "pads", "dilations", "output_padding", "output_shape"}
)

_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTION = 7, 20, 25
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_INPUT, _GRAPH_SPARSE = 1, 5, 11, 15
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR, _ATTRIBUTE_INTS = 1, 3, 5, 8
_ATTRIBUTE_GRAPHS: Final = frozenset({6, 11, 22, 23})
_TENSOR_DIMS, _TENSOR_KIND, _TENSOR_NAME, _TENSOR_STRINGS = 1, 2, 8, 8
_VALUE_NAME = 1

Span = tuple[int, int]


@dataclass
class _Node:
    """One node: its operators (as many as its bytes name), domains, inputs, outputs and attributes' places."""

    operators: list[str] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: list[Span] = field(default_factory=list)


def refuse_operators(model: bytes, name: str) -> None:
    """Raise unless a model is made of what the list above allows.

    Args:
        model: its bytes.
        name: what a refusal calls it: its file.

    Raises:
        BundleError: it is not.
    """
    try:
        refuse_external_data(model)
        _check_model(memoryview(model))
    except BackendError as error:
        raise BundleError(f"{name}: {error}") from None
    except (IndexError, ValueError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{name} is refused: {error}; --trust runs models of people you trust"
        ) from None


def _check_model(view: memoryview) -> None:
    graphs: list[Span] = []
    for number, value in fields(view, 0, len(view)):
        if number in (_MODEL_TRAINING, _MODEL_FUNCTION):
            raise ValueError("it brings functions of its own")
        if number == _MODEL_GRAPH and not isinstance(value, int):
            graphs.append(value)
    if len(graphs) != 1:
        raise ValueError(f"it has {len(graphs)} graphs, not one")
    _check_graph(view, graphs[0])


def _check_graph(view: memoryview, graph: Span) -> None:
    """Raise unless every node is allowed and takes sizes and places from constants and shapes alone."""
    pictures: set[str] = set()
    nodes: list[_Node] = []
    for number, value in fields(view, *graph):
        if isinstance(value, int):
            continue
        if number == _GRAPH_SPARSE:
            raise ValueError("it has sparse tensors")
        if number == _GRAPH_TENSOR:
            _check_tensor(view, value)
        elif number == _GRAPH_INPUT:
            pictures.update(_texts(view, value, _VALUE_NAME))
        elif number == _GRAPH_NODE:
            nodes.append(_node(view, value))
    _check_nodes(view, nodes, pictures)


def _check_nodes(view: memoryview, nodes: list[_Node], pictures: set[str]) -> None:
    """Raise unless nodes, in their order, are allowed; ``pictures`` are the graph's inputs."""
    if len(nodes) > MAX_NODES:
        raise ValueError(f"it has more than {MAX_NODES} nodes")
    made = [name for node in nodes for name in node.outputs if name]
    if len(made) != len(set(made)):
        raise ValueError("two nodes give one tensor")
    from_pictures = pictures.union(made)
    for node in nodes:
        _check_node(view, node, from_pictures)
        if node.operators[0] in ("Shape", "Size") or from_pictures.isdisjoint(
            node.inputs
        ):
            from_pictures.difference_update(set(node.outputs) - pictures)


def _check_node(view: memoryview, node: _Node, from_pictures: set[str]) -> None:
    """Raise unless a node is allowed; ``from_pictures`` are the tensors that may follow from a picture's values."""
    for domain in node.domains:
        if domain not in ("", "ai.onnx"):
            raise ValueError(f"it uses an operator of the domain {domain[:40]!r}")
    if len(node.operators) != 1:
        raise ValueError("a node names no operator, or several")
    operator = node.operators[0]
    if operator not in OPERATORS:
        raise ValueError(
            f"it uses the operator {operator[:40]!r}, which is not on the list"
        )
    for place in _PLACES.get(operator, ()):
        if place < len(node.inputs) and node.inputs[place] in from_pictures:
            raise ValueError(
                f"a {operator} takes sizes or places from the values of a picture"
            )
    for attribute in node.attributes:
        _check_attribute(view, attribute)


def _node(view: memoryview, span: Span) -> _Node:
    node = _Node()
    lists = {
        _NODE_INPUT: node.inputs,
        _NODE_OUTPUT: node.outputs,
        _NODE_OPERATOR: node.operators,
        _NODE_DOMAIN: node.domains,
    }
    for number, value in fields(view, *span):
        if isinstance(value, int):
            continue
        if number in lists:
            lists[number].append(_text(view, value))
        elif number == _NODE_ATTRIBUTE:
            node.attributes.append(value)
    return node


def _check_attribute(view: memoryview, span: Span) -> None:
    """Raise where an attribute holds a graph, a tensor larger than its bytes, or a kernel's size beyond reason."""
    names = set(_texts(view, span, _ATTRIBUTE_NAME))
    for number, value in fields(view, *span):
        if number in _ATTRIBUTE_GRAPHS:
            raise ValueError("a node has a graph or a sparse tensor of its own")
        if number == _ATTRIBUTE_TENSOR and not isinstance(value, int):
            _check_tensor(view, value)
        if number in (_ATTRIBUTE_INT, _ATTRIBUTE_INTS) and names & _ATTRIBUTE_NAMES:
            for size in _numbers(view, value):
                if not 0 <= size <= MAX_ATTRIBUTE:
                    raise ValueError(f"an attribute {min(names)!r} is out of range")


def _check_tensor(view: memoryview, span: Span) -> None:
    """Raise where a constant says that it is larger than the bytes that it has, or holds texts."""
    dims: list[int] = []
    for number, value in fields(view, *span):
        if number == _TENSOR_DIMS:
            dims += _numbers(view, value)
        if number == _TENSOR_KIND and value == _TENSOR_STRINGS:
            raise ValueError("it has a tensor of texts")
    if (
        min(dims, default=0) < 0
        or len(dims) > 16
        or prod(dims) > 2 * (span[1] - span[0])
    ):  # two in a byte at most
        raise ValueError("a constant says that it is larger than its bytes")


def _numbers(view: memoryview, value: int | Span) -> Iterator[int]:
    """Yield the whole numbers of a field that may be packed, as signed 64-bit."""
    if isinstance(value, int):
        yield value - (1 << 64) if value >> 63 else value
        return
    at, end = value
    while at < end:
        number = shift = 0
        while view[at] & 0x80 and shift < 63:
            number |= (view[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
        number |= view[at] << shift
        at += 1
        yield number - (1 << 64) if number >> 63 else number


def _texts(view: memoryview, span: Span, wanted: int) -> Iterator[str]:
    for number, value in fields(view, *span):
        if number == wanted and not isinstance(value, int):
            yield _text(view, value)


def _text(view: memoryview, span: Span) -> str:
    return bytes(view[span[0] : span[1]]).decode("utf-8")
