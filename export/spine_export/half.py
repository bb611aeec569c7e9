"""Modules in float16 behind a float32 face, so that they export as strongly typed graphs.

TensorRT 11 and TensorRT-RTX take precision from the graph alone. Casting in PyTorch was chosen over casting the float32
ONNX: the converter that ships with ONNX Runtime 1.31 writes graphs of these models that ``onnx.checker`` refuses.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any, Final

import torch
from timm_3d.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spine_engine.errors import UsageError
from spine_training.detector.model import Deployed
from spine_training.grader.model import Grader

CORES: Final[dict[type[nn.Module], str]] = {Grader: "backbone", Deployed: "net"}
"""The part of a module that computes in float16: not the heads, the cumulative links or the sigmoid."""

WIDE_LAYERS: Final = (GlobalResponseNorm,)
"""Layers that stay float32: a norm over a whole map sums squares, which runtimes would write in float16."""

_LARGEST: Final = torch.finfo(torch.float16).max


PRODUCTS: Final = frozenset(
    {
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose2d",
        "linear",
        "matmul",
        "__matmul__",
        "bmm",
        "baddbmm",
    }
)
"""Names of PyTorch's functions that take nearly all of a network's time, and at which its CPU kernels for float16 are
slow (five times float32 on the packaged grader)."""


NO_HALF_KERNEL: Final = "not implemented for 'Half'"
"""PyTorch's words where the CPU has no float16 kernel of an operation."""


class HalfArithmetic(TorchFunctionMode):
    """Computes products of float16 as a GPU does, summed in float32 and rounded once, with a CPU's float32 kernels.

    What overflows becomes infinite, as in float16. All other operations run in float16 itself, but for those without a
    float16 kernel on the CPU (3-D average pooling), which are computed as products are.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        kwargs = kwargs or {}
        half = any(
            isinstance(value, Tensor) and value.dtype is torch.float16 for value in args
        )
        if not half:
            return func(*args, **kwargs)
        if getattr(func, "__name__", "") not in PRODUCTS:
            try:
                return func(*args, **kwargs)
            except RuntimeError as error:
                if NO_HALF_KERNEL not in str(error):
                    raise
        wide = [_wide(value) for value in args]
        return func(
            *wide,
            **{name: _wide(value) for name, value in kwargs.items()},
        ).half()


class Narrowed(nn.Module):
    """A module in float16 behind a float32 face."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, x: Tensor) -> Tensor:
        """Float32 in, float32 out."""
        y: Tensor = self.core(x.half())
        return y.float()


class Widened(nn.Module):
    """A module that computes in float32 amid float16."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, x: Tensor) -> Tensor:
        """Float16 in, float16 out."""
        y: Tensor = self.core(x.float())
        return y.half()


def narrowed(model: nn.Module) -> nn.Module:
    """Return a copy that computes in float16; what stays float32 shares its weights with ``model``.

    A grader's backbone, the detector's net (``CORES``) or else the whole module is narrowed, but for ``WIDE_LAYERS``.

    Raises:
        UsageError: a weight is too large for float16.
    """
    cores = [
        module.get_submodule(CORES[type(module)])
        for module in model.modules()
        if type(module) in CORES
    ]
    wide = {
        id(tensor)
        for module in model.modules()
        if isinstance(module, WIDE_LAYERS)
        for tensor in _tensors(module)
    }
    memo: dict[int, Tensor] = {id(tensor): tensor for tensor in _tensors(model)}
    for core in cores or [model]:
        memo |= {
            id(tensor): _half(tensor)
            for tensor in _tensors(core)
            if id(tensor) not in wide
        }
    copied = copy.deepcopy(model, memo)  # a tensor that the memo knows is not copied
    for module in list(copied.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, WIDE_LAYERS):
                setattr(module, name, Widened(child))
    for module in list(copied.modules()):
        if name := CORES.get(type(module), ""):
            setattr(
                module,
                name,
                Narrowed(module.get_submodule(name)),
            )
    return copied if cores else Narrowed(copied)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [
        tensor
        for tensor in chain(module.parameters(), module.buffers())
        if tensor.is_floating_point()
    ]


def _wide(value: Any) -> Any:
    return (
        value.float()
        if isinstance(value, Tensor) and value.dtype is torch.float16
        else value
    )


def _half(tensor: Tensor) -> Tensor:
    if tensor.numel() and float(tensor.detach().abs().max()) > _LARGEST:
        raise UsageError(
            f"a weight is beyond float16's largest number, {_LARGEST:.0f}; export in f32"
        )
    half = tensor.detach().half()
    return (
        nn.Parameter(half, requires_grad=False)
        if isinstance(tensor, nn.Parameter)
        else half
    )
