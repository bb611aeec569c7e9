"""Grader checkpoint -> ONNX."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Final

import onnx
import torch

from spine_training.grader.model import Grader, MirrorAveraged, load_grader

OPSET: Final = 20
"""Read by OpenVINO 2025.4, ONNX Runtime 1.22 and TensorRT-RTX 1.3 and newer."""

IMAGE: Final = "image"
PROBABILITIES: Final = "probabilities"


def export_grader(checkpoint: Path, path: Path) -> MirrorAveraged:
    """Write a grader checkpoint as ONNX: ``image (N, C, D, H, W)`` -> ``probabilities (N, 5, 3)``, both float32.

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
    _forget_source(proto)
    onnx.checker.check_model(proto, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return model


def _forget_source(proto: onnx.ModelProto) -> None:
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
