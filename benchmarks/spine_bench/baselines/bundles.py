"""Bundles of the size that others run, with random weights.

``coatnet0`` is the packaged detector with a CoAtNet-0 grader at 96^3 voxels; ``coatnet3-vfr`` SpineNet's three networks
with a CoAtNet-3 grader (``coatnet_rmlp_3_rw``) at 128^3. Both graders have five heads and the older pipelines' 1 mm
voxels and grid range. Speed does not depend on the weights, so they are random, batch norms set to what they meet, so
that numbers keep the size they have in a trained network; what the bundles grade means nothing. bfloat16 is allowed
untested, as a trained network of these kinds is run in it (docs/families.md). Each network's weights are kept beside
its ONNX file for the baselines that need PyTorch.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional

from spine_bench.baselines.steering import steered
from spine_bench.baselines.weights import KINDS
from spine_bench.findings import Findings, Table, chosen
from spine_engine.bundle import Bundle, write_manifest
from spine_engine.bundle.manifest import ModelEntry, Models
from spine_export.onnx import SPINENET_FACES, export_module, grader_face
from spine_export.parts import grader_entry, spinenet_entry
from spine_training.grader.model import Grader, GraderConfig, save_grader

# Where they are kept: made once, used by every measurement.
FOLDER: Final = Path("build/bench/bundles")

# Root mean square of the latents, with cut-points at -1.5 and 1.5: every grade occurs, as from a trained grader.
LATENT_SPREAD: Final = 2.0


def coatnet0(out: Path) -> Bundle:
    """Make the packaged detector with a CoAtNet-0 grader at 96^3: 25.7 GFLOP a level."""
    packaged = Bundle.open()
    for file in packaged.detector.files:
        shutil.copyfile(packaged.path / file.file, out / file.file)
    return _written(
        out,
        "coatnet0",
        {"detector": packaged.detector, "grader": _grader(out, "coatnet_0_rw_224", 96)},
    )


def coatnet3_vfr(out: Path) -> Bundle:
    """Make SpineNet's networks with a CoAtNet-3 grader at 128^3: 556 GFLOP a level."""
    entries: dict[str, Any] = {}
    for role, kind in KINDS.items():
        face = SPINENET_FACES[kind]
        net = steered(kind, torch.rand(1, *face.example[1:]))
        path = export_module(net, out / f"{role}.onnx", face)
        torch.save(
            {
                "net": net.net.state_dict(),
                "shown": net.shown,
                "scale": net.scale,
            },
            out / f"{role}.pt",
        )
        entries[role] = replace(spinenet_entry(path, kind), precisions=("f32", "bf16"))
    entries["grader"] = _grader(out, "coatnet_rmlp_3_rw", 128)
    return _written(out, "coatnet3-vfr", entries)


BUNDLES: Final[dict[str, Callable[[Path], Bundle]]] = {
    "coatnet0": coatnet0,
    "coatnet3-vfr": coatnet3_vfr,
}


def measure(
    names: Annotated[str, typer.Option(help="Which, with commas.")] = ",".join(BUNDLES),
    folder: Annotated[
        Path, typer.Option(metavar="DIR", help="Where they are kept.")
    ] = FOLDER,
) -> Findings:
    """Make the bundles that are not there yet and say where they are."""
    bundles = [open_bundle(name, folder) for name in chosen(names, BUNDLES, "bundle")]
    return Findings(
        tables=[
            Table(
                title="Bundles",
                columns=("bundle", "MB", "digest"),
                rows=[
                    (
                        str(bundle.path),
                        f"{_size_bytes(bundle) / 1e6:.0f}",
                        bundle.digest,
                    )
                    for bundle in bundles
                ],
            )
        ],
        record=[bundle.facts for bundle in bundles],
    )


def _size_bytes(bundle: Bundle) -> int:
    return sum(path.stat().st_size for path in bundle.path.glob("*.onnx"))


def open_bundle(name: str, folder: Path = FOLDER) -> Bundle:
    """Open a bundle, made now if it is not there yet."""
    place = folder / name
    if not (place / "bundle.json").is_file():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torch and timm_3d deprecate what they themselves use
            BUNDLES[name](place)
    return Bundle.open(place)


@torch.no_grad()
def plausible_grader(config: GraderConfig, grids: Tensor) -> Grader:
    """Return a grader with random weights whose batch norms have seen ``grids (N, C, D, H, W)``.

    Activations have the size they have in a trained net; heads are scaled until their latents spread over the
    cut-points.
    """
    torch.manual_seed(0)
    grader = Grader(config).train()
    for module in grader.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the plain mean of what is seen
    for batch in torch.split(grids, 4):
        grader.latents(batch)
    grader.eval()
    linear: list[nn.Linear] = [head.get_submodule("0") for head in grader.heads]  # type: ignore[misc]
    for layer in linear:
        nn.init.normal_(layer.weight)
    scale = LATENT_SPREAD / float(grader.latents(grids).square().mean().sqrt())
    for layer in linear:
        layer.weight.mul_(scale)
        layer.bias.mul_(scale)
    return grader


def _grader(out: Path, backbone: str, side: int) -> ModelEntry:
    """Make a grader of five heads for ``side``^3 voxels of 1 mm."""
    config = GraderConfig(
        backbone=backbone,
        shape=(side,) * 3,
        spacing_mm=(1.0,) * 3,
        offset_mm=(0.0,) * 3,
        coordinates=False,
    )
    noise = functional.interpolate(
        torch.rand(2, 3, 8, 8, 8),
        (side,) * 3,
        mode="trilinear",
    )
    grader = plausible_grader(config, noise)
    path = export_module(grader, out / "grader.onnx", grader_face(grader))
    save_grader(grader, out / "grader.pt")
    return grader_entry(
        path, config, normalisation="grid_range", precisions=("f32", "bf16")
    )


def _written(out: Path, name: str, entries: dict[str, Any]) -> Bundle:
    manifest = replace(
        Bundle.open().manifest,
        name=name,
        version="1",
        licence="none: random weights",
        intended_use="Measuring speed. The weights are random: what it grades means nothing.",
        training_data=(),
        metrics={},
        models=Models(**entries),
    )
    write_manifest(out, manifest)
    return Bundle.open(out)
