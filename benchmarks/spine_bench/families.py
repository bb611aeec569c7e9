"""What exports, how large it is and how far it strays, for the families of timm_3d: ``python -m spine_bench.families``.

Every model gets five cumulative-link heads, random weights and batch norms that have seen phantoms, so that activations
are of the size of a trained net's; heads are scaled until their latents spread over the cut-points. Differences are
those of the probabilities on grids of phantoms, over batches of 1, 3 and 8, against PyTorch in float32.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from spine_engine.anatomy import CONDITIONS
from spine_engine.backends import Backend, Precision, Profile, open_backend
from spine_engine.backends.engines import build_engine
from spine_engine.errors import BackendError
from spine_engine.manifest import GraderEntry, GridEntry, TensorEntry
from spine_engine.parity import compare_probabilities, grader_inputs, phantom_samples
from spine_engine.study import Role
from spine_export.onnx import export_module, grader_face
from spine_training.grader.model import Grader, GraderConfig

MODELS: Final = (
    "coatnet_0_rw_224",
    "coatnet_bn_0_rw_224",
    "coatnet_nano_cc_224",
    "coatnet_rmlp_0_rw_224",
    "coatnet_0_224",
    "coatnext_nano_rw_224",
    "maxvit_pico_rw_256",
    "maxvit_rmlp_pico_rw_256",
    "maxvit_rmlp_tiny_rw_256",
    "maxvit_tiny_pm_256",
    "maxvit_tiny_tf_224",
    "maxxvit_rmlp_nano_rw_256",
    "maxxvitv2_nano_rw_256",
    "efficientnet_b0",
    "tf_efficientnet_b3",
    "efficientnet_lite0",
    "efficientnetv2_rw_t",
    "tf_efficientnetv2_b0",
    "convnext_atto",
    "convnext_tiny",
    "convnextv2_atto",
    "convnextv2_tiny",
    "resnet18",
    "resnet50",
    "densenet121",
)
"""At least one of every kind of block in each family."""

BATCHES: Final = (1, 3, 8)
SIDE: Final = 64
"""Voxels: the smallest cube whose last maps, at a stride of 32, are no single voxel."""

SPACING_MM: Final = 1.5
"""96 mm of the patient, as level grids have."""

LATENT_SPREAD: Final = 2.0
"""Root mean square of the latents, with cut-points at -1.5 and 1.5: every grade occurs, as from a trained grader."""

F32_LIMIT: Final = 1e-4
CAPABILITY: Final = "sm89"
WAYS: Final[tuple[tuple[str, Precision], ...]] = (("onnxruntime", "f32"), ("openvino", "f32"), ("openvino", "bf16"))


@dataclass
class Row:
    """What was measured of one model.

    ``largest`` and ``mean`` are by way, such as ``openvino f32``; ``rounding`` is how far PyTorch's own float32 is from
    its float64, so that a difference can be told from a mistake.
    """

    model: str
    parameters: int = 0
    export_s: float = 0.0
    size_mb: float = 0.0
    largest: dict[str, float] = field(default_factory=dict)
    mean: dict[str, float] = field(default_factory=dict)
    rounding: float = 0.0
    engine: str = ""
    fault: str = ""

    @property
    def passed(self) -> bool:
        """Whether it exported, agrees in float32 everywhere, and its engine was built."""
        f32 = [value for way, value in self.largest.items() if way.endswith("f32")]
        return not self.fault and bool(f32) and max(f32) <= F32_LIMIT and self.engine.endswith("MB")


def measure(name: str, grids: NDArray[np.float32]) -> Row:
    """Export one model with random weights and measure it."""
    row = Row(name)
    try:
        grader = plausible_grader(name, grids)
        row.parameters = sum(parameter.numel() for parameter in grader.parameters())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            with _timed() as took:
                export_module(grader, path, grader_face(grader))
            row.export_s, row.size_mb = took[0], path.stat().st_size / 1e6
            content = path.read_bytes()
        with torch.inference_mode():
            wanted = [grader(torch.from_numpy(grids[:count])).numpy() for count in BATCHES]
        for runtime, precision in WAYS:
            _compare(row, content, runtime, precision, grids, wanted)
        row.rounding = float(np.abs(_exactly(grader, grids) - wanted[-1]).max())
        row.engine = _engine(content, grids.shape[1:])
    except Exception as error:  # noqa: BLE001 - a model that fails is a line of the table
        row.fault = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    return row


def plausible_grader(name: str, grids: NDArray[np.float32]) -> Grader:
    """Return a grader with random weights that behaves like a trained one; see the module's description."""
    torch.manual_seed(0)
    config = GraderConfig(backbone=name, shape=(SIDE,) * 3, spacing_mm=(SPACING_MM,) * 3, coordinates=False)
    grader = Grader(config)
    images = torch.from_numpy(grids)
    with torch.no_grad():
        grader.train()
        for module in grader.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = None  # the plain mean of what is seen
        for half in (images[:4], images[4:]):
            grader.latents(half)
        grader.eval()
        linear: list[torch.nn.Linear] = [head.get_submodule("0") for head in grader.heads]  # type: ignore[misc]
        for layer in linear:
            torch.nn.init.normal_(layer.weight)
        scale = LATENT_SPREAD / float(grader.latents(images).square().mean().sqrt())
        for layer in linear:
            layer.weight.mul_(scale)
            layer.bias.mul_(scale)
    return grader


def _exactly(grader: Grader, grids: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return a grader's probabilities computed in float64; it stays so."""
    with torch.inference_mode():
        features = grader.double().backbone(torch.from_numpy(grids).double())
        latents = torch.cat([head.get_submodule("0")(features) for head in grader.heads], dim=1)
        exact: NDArray[np.float64] = grader.grade(latents).numpy()
    return exact


def phantom_grids() -> NDArray[np.float32]:
    """Return grids ``(8, 3, 64, 64, 64)`` of phantoms."""
    probabilities = TensorEntry(name="probabilities", shape=(None, 5, 3))
    entry = GraderEntry(
        file="model.onnx",
        sha256="0" * 64,
        size_bytes=1,
        inputs=(TensorEntry(name="image", shape=(None, 3, SIDE, SIDE, SIDE)),),
        outputs=(probabilities,),
        channels=tuple(Role(channel) for channel in GraderConfig().channels),
        grid=GridEntry(shape=(SIDE,) * 3, spacing_mm=(SPACING_MM,) * 3, center_offset_mm=GraderConfig().offset_mm),
        output_channels=tuple(CONDITIONS),
    )
    return grader_inputs(entry, phantom_samples(2))[: max(BATCHES)]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown."""
    ways = [" ".join(way) for way in WAYS]
    heads = [
        "model",
        "M parameters",
        "export s",
        "ONNX MB",
        "own rounding",
        *ways,
        "bf16 mean",
        f"RTX {CAPABILITY}",
        "",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        if row.fault:
            lines.append(f"| {row.model} | {row.fault} |" + " |" * (len(heads) - 2))
            continue
        cells = [
            row.model,
            f"{row.parameters / 1e6:.1f}",
            f"{row.export_s:.0f}",
            f"{row.size_mb:.0f}",
            _number(row.rounding),
        ]
        cells += [_number(row.largest.get(way)) for way in ways]
        cells += [_number(row.mean.get("openvino bf16")), row.engine, "yes" if row.passed else "**no**"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(rows: Sequence[Row]) -> str:
    """Return the whole page."""
    packages = ("torch", "timm-3d", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt-rtx-cu13-bindings")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    passed = sum(row.passed for row in rows)
    return f"""# Families that export

Written by `make families` on {date.today()} ({platform.machine()}, no GPU; {versions}).

Each model of timm_3d below was built with five cumulative-link heads and random weights for grids of 3 x {SIDE}^3
voxels, exported with a dynamic batch, and run on phantom grids in batches of {", ".join(map(str, BATCHES))}. Columns
of runtimes give the largest |probability difference| against PyTorch in float32, `own rounding` that of PyTorch's
float32 against its float64 (a difference near it is rounding, not a mistake), `RTX` what TensorRT-RTX built without
a GPU. `yes`: exported, float32 within {F32_LIMIT:g} under both runtimes, engine built. Reduced precisions are
reported, not judged: they are judged on trained models, when a bundle is made.

{passed} of {len(rows)} pass.

{table(rows)}
"""


def _compare(
    row: Row,
    content: bytes,
    runtime: str,
    precision: Precision,
    grids: NDArray[np.float32],
    wanted: Sequence[NDArray[np.float32]],
) -> None:
    try:
        backend: Backend = open_backend(content, name=runtime, precision=precision, threads=2)
    except BackendError:
        if precision == "f32":
            raise
        return  # this processor does not compute in it
    found = [
        compare_probabilities(rows, backend.run({"image": np.ascontiguousarray(grids[: len(rows)])})["probabilities"])
        for rows in wanted
    ]
    backend.close()
    row.largest[f"{runtime} {precision}"] = max(parity.largest for parity in found)
    row.mean[f"{runtime} {precision}"] = max(parity.mean for parity in found)


def _engine(content: bytes, shape: tuple[int, ...]) -> str:
    profile = Profile(smallest=(1, *shape), usual=(5, *shape), largest=(max(BATCHES), *shape))
    try:
        with _timed() as took:
            engine = build_engine(content, runtime="tensorrt-rtx", capability=CAPABILITY, profile=profile)
    except BackendError as error:
        return str(error)[:80]
    return f"{took[0]:.0f} s, {len(engine) / 1e6:.0f} MB"


@contextmanager
def _timed() -> Iterator[list[float]]:
    took: list[float] = []
    began = time.perf_counter()
    yield took
    took.append(time.perf_counter() - began)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the models and write the page; 1 when one of them does not pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="names of timm_3d; all by default")
    parser.add_argument("--out", type=Path, help="Markdown page to write")
    options = parser.parse_args(arguments)
    grids = phantom_grids()
    rows: list[Row] = []
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # an engine that is kept takes no time to build
        for name in options.models:  # a process each: what one leaves behind is not the next one's
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                rows.append(pool.submit(measure, name, grids).result())
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    if options.out is not None:
        options.out.write_text(page(rows), encoding="utf-8")
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
