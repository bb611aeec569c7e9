"""Checkpoints -> ONNX, with dynamic sizes, in float32 or in half precision, for every kind of model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import helper, numpy_helper
from torch import nn
from torch.export import Dim
from torch.nn.utils.fusion import fuse_conv_bn_eval

from spine_export.half import narrowed
from spine_export.onnx_file import INLINE_BYTES, OPSET, trace, write_onnx
from spine_export.order import narrow_before_enlarging
from spine_export.upsampling import SplitUpBlock
from spine_training.detector.model import (
    Deployed,
    LevelHeatmapNet,
    ResidualConvs,
    UpBlock,
)
from spine_training.grader.model import Grader
from spine_training.spinenet import SpineNetKind

IMAGE: Final = "image"
PROBABILITIES: Final = "probabilities"

MIN_HALF_ELEMENTS: Final = 512
"""Smallest initialiser of the detector that is stored in float16; smaller ones are biases."""

JOINED: Final = 1
"""The detector's smallest map on the way up stays joined: it takes 4 % of the time, and would add 0.2 MB to a file."""

Width = Literal["f32", "f16"]
"""Number format of a graph; its input, its output and a grader's cumulative link are float32 in both."""


@dataclass(frozen=True, kw_only=True)
class Face:
    """The interface of a model: one input, one output.

    Attributes:
        example: shape of an input with a batch of 2.
        inputs, outputs: names.
        dynamic: sizes that may differ from call to call, by axis of the input.
    """

    example: tuple[int, ...]
    inputs: tuple[str]
    outputs: tuple[str]
    dynamic: Mapping[int, Any]


BATCH: Final = {0: Dim("batch", min=1)}

DETECTOR: Final = Face(
    example=(2, 1, 192, 160),
    inputs=("slices",),
    outputs=("heatmaps",),
    dynamic={
        0: Dim("N", min=1, max=64),
        2: 32 * Dim("rows", min=1, max=10),
        3: 32 * Dim("columns", min=1, max=10),
    },
)

SPINENET_FACES: Final[dict[SpineNetKind, Face]] = {
    "vfr": Face(
        example=(2, 1, 224, 224),
        inputs=("patches",),
        outputs=("maps",),
        dynamic=BATCH,
    ),
    "appearance": Face(
        example=(2, 1, 224, 224, 16),
        inputs=("volumes",),
        outputs=("scores",),
        dynamic=BATCH,
    ),
    "context": Face(
        example=(2, 1, 256, 24),
        inputs=("columns",),
        outputs=("scores",),
        dynamic={**BATCH, 2: 16 * Dim("rows", min=2, max=256)},
    ),
}


def export_module(
    model: nn.Module,
    path: Path,
    face: Face,
    *,
    precision: Width = "f32",
    opset: int = OPSET,
    inline_bytes: int = INLINE_BYTES,
) -> Path:
    """Write any module of one input and one output as ONNX, and check the file.

    Args:
        model: in float32; put into evaluation mode, otherwise left as it is.
        path: the file. Its weights lie inside, or beyond ``inline_bytes`` in one file beside it.
        face: names and sizes.
        precision: ``f16`` makes a strongly typed graph that computes in float16 between a cast of its input and
            one of what its core gives; see ``narrowed``.
        opset: version of ONNX's operators.
        inline_bytes: largest file that holds its own weights.

    Raises:
        UsageError: a weight is too large for float16.
    """
    graph = trace(
        narrowed(model) if precision == "f16" else model,
        torch.zeros(face.example),
        inputs=face.inputs,
        outputs=face.outputs,
        dynamic_shapes=face.dynamic,
        opset=opset,
    )
    if (
        precision == "f32"
    ):  # an f16 file computes in the order that its proof in PyTorch did
        narrow_before_enlarging(graph)
    if isinstance(model, Deployed) and precision == "f32":
        graph = ir.from_proto(half_weights(ir.to_proto(graph)))
    return write_onnx(
        graph,
        path,
        notes={"precision": precision},
        inline_bytes=inline_bytes,
    )


def grader_face(grader: Grader) -> Face:
    """Return the interface of a grader."""
    example = (2, len(grader.config.channels), *grader.config.shape)
    return Face(
        example=example,
        inputs=(IMAGE,),
        outputs=(PROBABILITIES,),
        dynamic=BATCH,
    )


def folded(net: LevelHeatmapNet) -> LevelHeatmapNet:
    """Return a copy in eval mode: batch norms folded, maps on the way up not joined (``SplitUpBlock``).

    The ``JOINED`` smallest maps stay joined.
    """
    net = copy.deepcopy(net).eval()
    for block in net.modules():
        if isinstance(block, ResidualConvs):
            if not isinstance(block.norm_1, nn.BatchNorm2d) or not isinstance(
                block.norm_2, nn.BatchNorm2d
            ):
                raise TypeError("the net is folded already")
            block.conv_1 = fuse_conv_bn_eval(block.conv_1, block.norm_1)
            block.conv_2 = fuse_conv_bn_eval(block.conv_2, block.norm_2)
            block.norm_1 = block.norm_2 = nn.Identity()
    conv, norm = net.stem[0], net.stem[1]
    if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
        net.stem[0], net.stem[1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    for i, up in enumerate(net.up[: len(net.up) - JOINED]):
        if isinstance(up, UpBlock):
            net.up[i] = SplitUpBlock(up)
    return net


def half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store large float32 initialisers as float16, each followed by one Cast to float32 (folded by the runtimes)."""
    casts = []
    for tensor in list(model.graph.initializer):
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < MIN_HALF_ELEMENTS:
            continue
        name = tensor.name
        tensor.CopyFrom(
            numpy_helper.from_array(values.astype(np.float16), f"{name}_half")
        )
        casts.append(
            helper.make_node(
                "Cast",
                [f"{name}_half"],
                [name],
                to=onnx.TensorProto.FLOAT,
                name=f"{name}_widen",
            )
        )
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(casts + nodes)
    return model
