"""Post-training INT8: explicit quantise and dequantise nodes around the products of an exported model.

One file serves OpenVINO and the TensorRTs. It is an option to be proven for each model, never a default
(docs/decisions/0009-export.md).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from spine_engine.errors import UsageError

PRODUCTS: Final = ("Conv", "MatMul", "Gemm")
"""Operators that are quantised. With the sums and activations between them too, as NNCF does by itself, the shipped
grader's probabilities move by 0.057 on average; with the products alone by 0.15, and with the first and last of them
left wide by 0.0034."""

MAX_GRIDS: Final = 300
"""NNCF's own default: ranges of activations settle within a few hundred inputs."""


def quantize(model: Path, grids: NDArray[np.float32], out: Path) -> None:
    """Write ``model`` with its inner products in INT8; inputs, outputs, the first and the last products stay float.

    Args:
        model: an exported ONNX model with one input.
        grids: inputs ``(N, ...)`` to find the ranges of activations on, drawn as the model will see them.
        out: the file to write.

    Raises:
        UsageError: NNCF is not installed, or the model has no inner product.
    """
    os.environ.setdefault("NNCF_CI", "1")  # no usage statistics leave the machine
    try:
        import nncf
    except ImportError as error:
        raise UsageError(
            f'INT8 needs NNCF ({error}): pip install "spine-mri-engine[int8]"'
        ) from None
    proto = onnx.load(model)
    name = proto.graph.input[0].name
    products = [node for node in proto.graph.node if node.op_type in PRODUCTS]
    kinds = {node.op_type for node in proto.graph.node} - set(PRODUCTS)
    wide = {products[0].name, *_heads(proto)} if products else set()
    if len(wide) >= len(products):
        raise UsageError(
            f"{model.name} has no product between its first and last layer: there is nothing to quantise"
        )
    nncf.set_log_level(40)
    quantized = nncf.quantize(
        proto,
        nncf.Dataset(
            [grid[None] for grid in grids[:MAX_GRIDS]],
            lambda grid: {name: np.ascontiguousarray(grid)},
        ),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=min(len(grids), MAX_GRIDS),
        ignored_scope=nncf.IgnoredScope(
            names=sorted(wide),
            types=sorted(kinds),
            validate=False,
        ),
    )
    onnx.checker.check_model(quantized, full_check=True)
    out.write_bytes(quantized.SerializeToString(deterministic=True))


def _heads(proto: onnx.ModelProto) -> set[str]:
    """Return the names of the last products: those that no other product follows."""
    makers = {output: node for node in proto.graph.node for output in node.output}
    followed: set[str] = set()
    waiting = [
        name
        for node in proto.graph.node
        if node.op_type in PRODUCTS
        for name in node.input
    ]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in followed:
            followed.add(node.name)
            waiting.extend(node.input)
    return {
        node.name for node in proto.graph.node if node.op_type in PRODUCTS
    } - followed
