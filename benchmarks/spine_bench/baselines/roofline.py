"""What the machine's arithmetic reaches at its best: large matrix products in bfloat16 and float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np

SIDE: Final = 2048
"""Rows and columns of the matrices: 17.2 GFLOP a product; 1024 and 4096 reached the same within the noise."""

GFLOP: Final = 2 * SIDE**3 / 1e9

Width = Literal["bf16", "f32"]


def torch_product(width: Width, threads: int) -> Callable[[], object]:
    """Return a matrix product of PyTorch's (oneDNN)."""
    import torch

    torch.set_num_threads(threads)
    kind = torch.bfloat16 if width == "bf16" else torch.float32
    a, b = (torch.randn(SIDE, SIDE, dtype=kind) for _ in range(2))
    out = torch.empty(SIDE, SIDE, dtype=kind)

    def product() -> object:
        with torch.inference_mode():
            return torch.matmul(a, b, out=out)

    return product


def openvino_product(width: Width, threads: int) -> Callable[[], object]:
    """Return a matrix product of OpenVINO's, with a constant right side as a model's weights are."""
    import openvino
    from openvino import opset13 as ops

    given: Any = ops.parameter([SIDE, SIDE], np.float32)
    weights = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    model = openvino.Model([ops.matmul(given, ops.constant(weights), False, False)], [given], "product")
    options = {"INFERENCE_PRECISION_HINT": width, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    left = openvino.Tensor(weights, shared_memory=True)  # it does not keep its array alive: the closure does
    keeper = (weights, left, model)

    def product() -> object:
        request.set_input_tensor(keeper[1])
        return request.infer()

    return product
