"""Bundles of the size that others run, with random weights: ``python -m spine_bench.baselines.bundles``.

``coatnet0`` is the packaged detector with a CoAtNet-0 grader at 96^3 voxels; ``coatnet3-vfr`` SpineNet's three networks
with a CoAtNet-3 grader (``coatnet_rmlp_3_rw``) at 128^3. Both graders have five heads and the older pipelines' 1 mm
voxels and grid range. Speed does not depend on the weights, so they are random, batch norms set to what they meet, so
that numbers keep the size they have in a trained network; what the bundles grade means nothing. bfloat16 is allowed
untested, as a trained network of these kinds is run in it (docs/families.md). Each network's weights are kept beside
its ONNX file for the baselines that need PyTorch.
"""

from __future__ import annotations

import argparse
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from spine_bench.baselines.steering import Steered, steered
from spine_bench.baselines.weights import KINDS
from spine_engine.bundle import Bundle, write_manifest
from spine_engine.manifest import ModelEntry, Models
from spine_export.onnx import SPINENET_FACES, export_module, grader_face
from spine_export.parts import grader_entry, spinenet_entry
from spine_training.grader.model import Grader, GraderConfig, save_grader

FOLDER: Final = Path("build/bench/bundles")
"""Where they are kept: made once, used by every measurement."""

INTENDED_USE: Final = "Measuring speed. The weights are random: what it grades means nothing."

LATENT_SPREAD: Final = 2.0
"""Largest latent, with cut-points at -1.5 and 1.5: every grade occurs."""


def coatnet0(out: Path) -> Bundle:
    """Make the packaged detector with a CoAtNet-0 grader at 96^3: 25.7 GFLOP a level."""
    packaged = Bundle.open()
    for file in packaged.detector.files:
        shutil.copyfile(packaged.path / file.file, out / file.file)
    grader = _grader(out, "coatnet_0_rw_224", 96)
    return _written(out, "coatnet0", {"detector": packaged.detector, "grader": grader})


def coatnet3_vfr(out: Path) -> Bundle:
    """Make SpineNet's networks with a CoAtNet-3 grader at 128^3: 556 GFLOP a level."""
    entries: dict[str, Any] = {}
    for role, kind in KINDS.items():
        face = SPINENET_FACES[kind]
        net = steered(kind, torch.rand(1, *face.example[1:]))
        path = export_module(net, out / f"{role}.onnx", face)
        _keep(net, out / f"{role}.pt")
        entries[role] = replace(spinenet_entry(path, kind), precisions=("f32", "bf16"))
    entries["grader"] = _grader(out, "coatnet_rmlp_3_rw", 128)
    return _written(out, "coatnet3-vfr", entries)


BUNDLES: Final[dict[str, Callable[[Path], Bundle]]] = {"coatnet0": coatnet0, "coatnet3-vfr": coatnet3_vfr}


def open_bundle(name: str, folder: Path = FOLDER) -> Bundle:
    """Open a bundle, made now if it is not there yet."""
    place = folder / name
    if not (place / "bundle.json").is_file():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch and timm_3d deprecate what they themselves use
            BUNDLES[name](place)
    return Bundle.open(place)


def plausible_grader(backbone: str, side: int) -> Grader:
    """Return a grader of five heads for ``side``^3 voxels of 1 mm, random weights; see the module."""
    torch.manual_seed(0)
    config = GraderConfig(
        backbone=backbone, shape=(side,) * 3, spacing_mm=(1.0,) * 3, offset_mm=(0.0,) * 3, coordinates=False
    )
    grader = Grader(config)
    grids = functional.interpolate(torch.rand(2, 3, 8, 8, 8), (side,) * 3, mode="trilinear")
    with torch.no_grad():
        for module in grader.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None  # the plain mean of what is seen
        grader.train().latents(grids)
        largest = float(grader.eval().latents(grids).abs().max())
        for head in grader.heads:
            layer: nn.Linear = head.get_submodule("0")  # type: ignore[assignment]
            layer.weight.mul_(LATENT_SPREAD / largest)
            layer.bias.mul_(LATENT_SPREAD / largest)
    return grader


def _grader(out: Path, backbone: str, side: int) -> ModelEntry:
    grader = plausible_grader(backbone, side)
    path = export_module(grader, out / "grader.onnx", grader_face(grader))
    save_grader(grader, out / "grader.pt")
    return grader_entry(path, grader.config, normalisation="grid_range", precisions=("f32", "bf16"))


def _keep(net: Steered, path: Path) -> None:
    torch.save({"net": net.net.state_dict(), "shown": net.shown, "scale": net.scale}, path)


def _written(out: Path, name: str, entries: dict[str, Any]) -> Bundle:
    manifest = replace(
        Bundle.open().manifest,
        name=name,
        version="1",
        licence="none: random weights",
        intended_use=INTENDED_USE,
        training_data=(),
        metrics={},
        models=Models(**entries),
    )
    write_manifest(out, manifest)
    return Bundle.open(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the bundles that are not there yet and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default="all", choices=[*BUNDLES, "all"])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    for name in BUNDLES if "all" in options.names else options.names:
        bundle = open_bundle(name, options.folder)
        size = sum(path.stat().st_size for path in bundle.path.glob("*.onnx"))
        print(f"{bundle.path}: {size / 1e6:.0f} MB, digest {bundle.digest}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
