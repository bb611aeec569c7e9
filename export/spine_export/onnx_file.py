"""PyTorch modules -> ONNX graphs -> files, with no trace of the machine that exported.

A file holds its weights up to the 2 GB that Protocol Buffers allow; beyond, they lie in one file beside it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from spine_engine import __version__

OPSET: Final = 20
"""Version of ONNX's operators, which OpenVINO 2025.4, ONNX Runtime 1.22 and TensorRT-RTX 1.3 and newer read."""

INLINE_BYTES: Final = 2_000_000_000
"""Weights that a file holds itself: Protocol Buffers end at 2^31 - 1 bytes, and the graph needs some of them."""

BESIDE: Final = ".data"
"""Suffix that the file of weights adds to the name of its ONNX file."""

_FUSED: Final = "fused_attn"
"""Name in timm_3d's attention blocks of the switch between PyTorch's kernel and plain products."""


def trace(
    model: nn.Module,
    example: Tensor,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: Mapping[int, Any],
    opset: int = OPSET,
) -> ir.Model:
    """Turn a module of one input into an ONNX graph that shares the module's weights.

    Args:
        model: put into evaluation mode. Its fused attention, which does not export, is off meanwhile.
        example: an input with a batch of 2; the exporter takes sizes of 0 and 1 for constants.
        inputs, outputs: their names in the graph.
        dynamic_shapes: ``torch.export.Dim`` by axis of the input.
        opset: version of ONNX's operators.
    """
    with (
        _plain_attention(model.eval()),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=(dict(dynamic_shapes),),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return program.model


def write_onnx(
    model: ir.Model,
    path: Path,
    *,
    notes: Mapping[str, str],
    inline_bytes: int = INLINE_BYTES,
) -> Path:
    """Write a graph as an ONNX file that says what made it, and check it: structure, types and every shape.

    Args:
        model: its notes of the exporter and its large tensors are taken out.
        path: the file; its folder is made. Weights that do not fit go to the same name and ``BESIDE``.
        notes: kept in the file's metadata beside the opset and the versions of the tools.
        inline_bytes: weights that the file holds itself; more lie beside it.

    Raises:
        onnx.checker.ValidationError: the exporter wrote a graph that is not valid.
    """
    forget_source(model)
    model.producer_name, model.producer_version = "spine-engine", __version__
    tools = {name: version(name) for name in ("torch", "onnxscript", "timm-3d")}
    model.metadata_props.update(
        {
            **notes,
            **tools,
            "opset": str(model.opset_imports[""]),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + BESIDE)
    beside.unlink(missing_ok=True)
    tensors = (value.const_value for value in model.graph.initializers.values())
    weights = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    ir.save(
        model,
        path,
        external_data=beside.name if weights > inline_bytes else None,
    )
    onnx.checker.check_model(path, full_check=True)
    return path


def forget_source(model: ir.Model) -> None:
    """Drop the exporter's notes: they hold stack traces with the paths of the machine that exported."""
    model.functions.clear()
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    noted: list[Any] = [model, model.graph]
    for node in model.graph.all_nodes():
        noted.append(node)
        values.extend(node.outputs)
    for part in (*noted, *values):
        part.doc_string = None
        part.metadata_props.clear()


@contextlib.contextmanager
def _plain_attention(model: nn.Module) -> Iterator[None]:
    """Switch off timm_3d's fused attention, which the exporter cannot follow in windows (MaxViT); same numbers."""
    fused = [module for module in model.modules() if getattr(module, _FUSED, False)]
    for module in fused:
        setattr(module, _FUSED, False)
    try:
        yield
    finally:
        for module in fused:
            setattr(module, _FUSED, True)
