"""A trained detector as ONNX: batch norms folded, weights stored as float16 and widened on load, sizes dynamic."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from spine_training.detector.model import ConvBlock, Deployed, LevelHeatmapNet

#: Initialisers smaller than this stay float32 (biases).
MIN_HALF_ELEMENTS = 512


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


def export_onnx(checkpoint: Path, path: Path) -> Path:
    """Write the averaged weights of `checkpoint` as ONNX to `path` (through a temporary file and a rename).

    Input `slices (N, 1, H, W)`, output `heatmaps (N, K, H / 2, W / 2)`, float32; H and W multiples of 32.
    """
    net = LevelHeatmapNet()
    net.load_state_dict(torch.load(checkpoint, weights_only=True)["ema"])
    deployed = Deployed(folded(net)).eval()
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
    for text in model.graph.node:
        del text.metadata_props[:]
        text.doc_string = ""
    model.producer_name, model.doc_string = "spine_training.detector", ""
    onnx.checker.check_model(model, full_check=True)
    temporary = path.with_suffix(".tmp")
    onnx.save(model, temporary)
    os.replace(temporary, path)
    return path
