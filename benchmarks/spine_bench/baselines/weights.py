"""The networks of a bundle as PyTorch modules: the same weights, read out of its ONNX files, and proven to be.

A detector's weights and those of the packaged grader lie in the ONNX file under the names of their state dicts, batch
norms folded into the convolutions before them. Bundles of ``spine_bench.baselines.bundles`` keep each network's state
dict beside its file, since an ONNX file does not say which backbone it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from spine_bench.baselines.steering import Steered
from spine_bench.harness.interfaces import F32
from spine_engine.bundle import Bundle
from spine_engine.bundle.manifest import DetectorEntry, GraderEntry, ModelEntry
from spine_engine.errors import BackendError, BundleError
from spine_export.onnx import folded
from spine_training.detector.model import Deployed, LevelHeatmapNet
from spine_training.grader.model import (
    Grader,
    GraderConfig,
    MirrorAveraged,
    load_grader,
)
from spine_training.spinenet import SPINENETS, SpineNetKind

# Largest difference to ONNX, of probabilities as they are, of other outputs as a share of the largest: what float32
# moves when it sums in another order (spine_export.verify).
TOLERANCE: Final = 1e-4

# How spine_export.onnx.half_weights names a weight that is stored in float16 and widened when it is loaded.
HALF: Final = "_half"

# How the exporter names the bias that a folded batch norm leaves a convolution.
FOLDED_BIAS: Final = ".weight_bias"

ModuleT = TypeVar("ModuleT", bound=nn.Module)

KINDS: Final[Mapping[str, SpineNetKind]] = {
    "detector": "vfr",
    "vertebra_appearance": "appearance",
    "vertebra_context": "context",
}


def torch_models(bundle: Bundle) -> dict[str, nn.Module]:
    """Return every network of a bundle by role, in float32 and evaluation mode, each proven to answer as its ONNX.

    Raises:
        BackendError: a network answers otherwise than its ONNX file.
        BundleError: the weights of a network are not available.
    """
    return {
        role: torch_model(bundle, role) for role in bundle.manifest.models.by_role()
    }


def torch_model(bundle: Bundle, role: str) -> nn.Module:
    """Return one network of a bundle; see ``torch_models``."""
    entry = bundle.entry(role)
    file = bundle.path / entry.file
    beside = bundle.path / f"{role}.pt"
    if isinstance(entry, GraderEntry):
        module = (
            load_grader(beside) if beside.is_file() else _packaged_grader(file, entry)
        )
    elif isinstance(entry, DetectorEntry) and entry.decoder == "level_heatmaps":
        module = _filled(Deployed(folded(LevelHeatmapNet())), named_weights(file), file)
    else:
        module = _spinenet(beside, KINDS[role])
    check_same(bundle, entry, module.eval())
    return module


def check_same(bundle: Bundle, entry: ModelEntry, module: nn.Module) -> float:
    """Return how far a module's answer is from its ONNX file's under OpenVINO in float32, for noise of one item.

    Raises:
        BackendError: farther than ``TOLERANCE``.
    """
    given = noise(entry)
    backend = bundle.open_model(entry, precision="f32", threads=torch.get_num_threads())
    wanted = backend.run({entry.inputs[0].name: given})[entry.outputs[0].name]
    backend.close()
    with torch.inference_mode():
        found = module(torch.from_numpy(given)).float().numpy()
    if isinstance(module, Steered):
        wanted = module.own(wanted)
        found = module.own(found)
    scale = (
        1.0
        if isinstance(entry, GraderEntry)
        else max(float(np.abs(wanted).max()), 1e-9)
    )
    largest = float(np.abs(found - wanted).max()) / scale
    if not largest <= TOLERANCE:
        raise BackendError(
            f"PyTorch moves the outputs of {entry.file} by {largest:.2g}, at most {TOLERANCE:g} is rounding: "
            "these are not the weights of the bundle; make it again"
        )
    return largest


def noise(entry: ModelEntry, items: int = 1) -> F32:
    """Return an input of the usual size."""
    if entry.profile is None:
        raise BundleError(
            f"{entry.file} has no profile to take an input's shape from: export it again"
        )
    return np.random.default_rng(1).random(
        (items, *entry.profile.usual[1:]),
        np.float32,
    )


def _packaged_grader(path: Path, entry: GraderEntry) -> nn.Module:
    """Return a grader of this project's default backbone, averaged with its mirror image where the file is."""
    named = named_weights(path)
    weights = {name.removeprefix("grader."): tensor for name, tensor in named.items()}
    stem = weights.get("backbone.conv_stem.weight")
    config = GraderConfig(
        shape=entry.grid.shape,
        spacing_mm=entry.grid.spacing_mm,
        offset_mm=entry.grid.center_offset_mm,
        channels=tuple(entry.channels),
        coordinates=stem is not None and stem.shape[1] > len(entry.channels),
    )
    grader = _filled(_folded(Grader(config), weights), weights, path)
    return MirrorAveraged(grader) if weights.keys() != named.keys() else grader


def _spinenet(path: Path, kind: SpineNetKind) -> nn.Module:
    """Read one of SpineNet's networks with the answer that ``bundles`` steers it to from beside the ONNX file."""
    if not path.is_file():
        raise BundleError(
            f"{path.name} is not beside the bundle's ONNX files: PyTorch needs its state dict there"
        )
    content: dict[str, Any] = torch.load(path, weights_only=True)
    with torch.device("meta"):
        net = SPINENETS[kind]()
    net.load_state_dict(content["net"], assign=True)
    return Steered(net, content["shown"], float(content["scale"]))


def named_weights(path: Path) -> dict[str, Tensor]:
    """Return the initialisers of an ONNX file by name, those stored in half precision widened."""
    initialisers = onnx.load(path).graph.initializer
    values = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in initialisers
    }
    return {
        **values,
        **{
            name.removesuffix(HALF): tensor.float()
            for name, tensor in values.items()
            if name.endswith(HALF)
        },
    }


def _folded(module: Grader, weights: Mapping[str, Tensor]) -> Grader:
    """Give convolutions the biases that folded batch norms left, and put what follows a batch norm in its place."""
    for name, layer in list(module.named_modules()):
        bias = weights.get(f"{name}{FOLDED_BIAS}")
        if isinstance(layer, nn.Conv3d) and bias is not None:
            layer.bias = nn.Parameter(bias)
        if isinstance(layer, nn.BatchNorm3d):
            parent, _, own = name.rpartition(".")
            setattr(
                module.get_submodule(parent),
                own,
                getattr(layer, "act", nn.Identity()),
            )
    return module


def _filled(module: ModuleT, weights: Mapping[str, Tensor], path: Path) -> ModuleT:
    """Load a module's state dict from an ONNX file's initialisers; raise ``BundleError`` where they do not fit."""
    state = {}
    for name, own in module.state_dict().items():
        found = weights.get(
            name, weights.get(f"{name.removesuffix('.bias')}{FOLDED_BIAS}")
        )
        if found is None or found.shape != own.shape:
            raise BundleError(
                f"{path.name} holds no {name} {tuple(own.shape)}: its network is none that PyTorch is given here; "
                f"put its checkpoint beside it as {path.stem}.pt"
            )
        state[name] = found
    module.load_state_dict(state)
    return module
