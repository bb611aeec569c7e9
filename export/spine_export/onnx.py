"""Checkpoints -> ONNX, with dynamic sizes and no trace of the machine that exported."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from spine_training.detector.model import ConvBlock, Deployed, LevelHeatmapNet, load_detector
from spine_training.grader.model import Grader, MirrorAveraged, load_grader

OPSET: Final = 20
"""Read by OpenVINO 2025.4, ONNX Runtime 1.22 and TensorRT-RTX 1.3 and newer."""

IMAGE: Final = "image"
PROBABILITIES: Final = "probabilities"

MIN_HALF_ELEMENTS: Final = 512
"""Initialisers of the detector smaller than this stay float32: biases."""


def export_grader(checkpoint: Path, path: Path) -> MirrorAveraged:
    """Write a grader checkpoint as ONNX: ``image (N, C, D, H, W)`` -> ``probabilities (N, heads, 3)``, both float32.

    The graph averages the image with its mirror image, so mirrored inputs give exactly exchanged sides.

    Returns:
        The PyTorch model that the file computes: what parity is measured against.

    Raises:
        ValueError: the checkpoint is no grader's.
    """
    return export_model(load_grader(checkpoint), path)


def export_model(grader: Grader, path: Path) -> MirrorAveraged:
    """Write a grader in memory as ONNX; see ``export_grader``."""
    model = MirrorAveraged(grader).eval()
    shape = (len(grader.config.channels), *grader.config.shape)
    example = torch.zeros(2, *shape)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[IMAGE],
            output_names=[PROBABILITIES],
            dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    proto = program.model_proto
    forget_source(proto)
    onnx.checker.check_model(proto, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return model


def folded(net: LevelHeatmapNet) -> LevelHeatmapNet:
    """A copy in eval mode with every batch norm folded into the convolution before it, weights rounded to float16."""
    net = copy.deepcopy(net).eval()
    for block in net.modules():
        if isinstance(block, ConvBlock):
            if not isinstance(block.norm_1, nn.BatchNorm2d) or not isinstance(block.norm_2, nn.BatchNorm2d):
                raise TypeError("the net is folded already")
            block.conv_1 = fuse_conv_bn_eval(block.conv_1, block.norm_1)
            block.conv_2 = fuse_conv_bn_eval(block.conv_2, block.norm_2)
            block.norm_1 = block.norm_2 = nn.Identity()
    conv, norm = net.stem[0], net.stem[1]
    if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
        net.stem[0], net.stem[1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return net


def half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store large float32 initialisers as float16, each followed by one Cast to float32 (folded by the runtimes)."""
    casts = []
    for tensor in list(model.graph.initializer):
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < MIN_HALF_ELEMENTS:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(
            helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT, name=f"{name}_widen")
        )
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(casts + nodes)
    return model


def export_detector(checkpoint: Path, path: Path) -> Path:
    """Write the averaged weights of `checkpoint` as ONNX to `path`.

    Input `slices (N, 1, H, W)`, output `heatmaps (N, K, H / 2, W / 2)`, float32; H and W multiples of 32.
    """
    deployed = Deployed(folded(load_detector(checkpoint))).eval()
    batch, rows, columns = (torch.export.Dim(n, min=1, max=m) for n, m in (("N", 64), ("rows", 10), ("columns", 10)))
    program = torch.onnx.export(
        deployed,
        (torch.zeros(2, 1, 192, 160),),
        dynamo=True,
        input_names=["slices"],
        output_names=["heatmaps"],
        dynamic_shapes={"slices": {0: batch, 2: 32 * rows, 3: 32 * columns}},
        opset_version=18,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    model = half_weights(program.model_proto)
    forget_source(model)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def forget_source(proto: onnx.ModelProto) -> None:
    """Drop the exporter's notes: they hold stack traces with the paths of the machine that exported."""
    proto.doc_string = ""
    del proto.metadata_props[:]
    for value in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
        value.doc_string = ""
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    del proto.graph.metadata_props[:]
    del proto.functions[:]
