"""What exports, how large it is and how far it strays, for the families of timm_3d.

Every model gets five cumulative-link heads and random weights that behave like trained ones (``baselines.bundles``).
Differences are those of the probabilities on grids of phantoms, over batches of 1, 3 and 8, against PyTorch in float32.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
import typer

from spine_bench.baselines.bundles import plausible_grader
from spine_bench.findings import Findings, Table, progress
from spine_bench.harness.host import lone_worker
from spine_bench.harness.interfaces import F32, F64, told
from spine_engine.backends import AskedPrecision, Profile, open_backend
from spine_engine.backends.engines import build_engine
from spine_engine.bundle.examination import check_places
from spine_engine.bundle.operators import refuse_operators
from spine_engine.errors import BackendError
from spine_engine.phantom.samples import phantom_samples
from spine_engine.pipeline.level_grids import level_grids
from spine_engine.pipeline.parity import compare_probabilities
from spine_export.onnx import export_module, grader_face
from spine_training.grader.model import Grader, GraderConfig

# At least one of every kind of block in each family.
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

BATCHES: Final = (1, 3, 8)
# Voxels: the smallest cube whose last maps, at a stride of 32, are no single voxel.
SIDE: Final = 64

# 96 mm of the patient, as level grids have.
SPACING_MM: Final = 1.5

F32_LIMIT: Final = 1e-4
CAPABILITY: Final = "sm89"
WAYS: Final[tuple[tuple[str, AskedPrecision], ...]] = (
    ("onnxruntime", "f32"),
    ("openvino", "f32"),
    ("openvino", "bf16"),
)
PACKAGES: Final = (
    "torch",
    "timm-3d",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt-rtx-cu13-bindings",
)


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
        return (
            not self.fault
            and bool(f32)
            and max(f32) <= F32_LIMIT
            and self.engine.endswith("MB")
        )

    @property
    def cells(self) -> tuple[str, ...]:
        """As the page shows it."""
        if self.fault:
            return (self.model, self.fault, *[""] * (len(WAYS) + 6))
        return (
            self.model,
            f"{self.parameters / 1e6:.1f}",
            f"{self.export_s:.0f}",
            f"{self.size_mb:.0f}",
            f"{self.rounding:.1e}",
            *(_number(self.largest.get(" ".join(way))) for way in WAYS),
            _number(self.mean.get("openvino bf16")),
            self.engine,
            "yes" if self.passed else "**no**",
        )


def measure(
    models: Annotated[
        str, typer.Option(help="Names of timm_3d, with commas.")
    ] = ",".join(MODELS),
) -> Findings:
    """Export models of every family and run them in every runtime here."""
    layout = _config("unused").layout
    samples = phantom_samples(2)
    grids = np.concatenate(
        [level_grids(sample.study, sample.levels, layout)[0] for sample in samples]
    )[: max(BATCHES)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = (
            cache  # an engine that is kept takes no time to build
        )
        for name in models.split(","):
            with (
                lone_worker() as worker
            ):  # a process each: what one leaves behind is not the next one's
                rows.append(worker.submit(measured, name, grids).result())
            progress(" | ".join(rows[-1].cells))
    table = table_of(rows)
    return Findings(
        tables=[table],
        record=[asdict(row) for row in rows],
        page=page(rows, table),
        failure="" if all(row.passed for row in rows) else "not every model passes",
    )


def measured(name: str, grids: F32) -> Row:
    """Export one model with random weights and measure it."""
    row = Row(name)
    try:
        _measure(row, grids)
    except Exception as error:  # noqa: BLE001 - a model that fails is a line of the table
        row.fault = told(error, 120)
    return row


def _measure(row: Row, grids: F32) -> None:
    grader = plausible_grader(_config(row.model), torch.from_numpy(grids))
    row.parameters = sum(parameter.numel() for parameter in grader.parameters())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        began = time.perf_counter()
        export_module(grader, path, grader_face(grader))
        row.export_s = time.perf_counter() - began
        content = path.read_bytes()
    row.size_mb = len(content) / 1e6
    refuse_operators(content, row.model)
    check_places(content, (1, *grids.shape[1:]))
    with torch.inference_mode():
        wanted = [grader(torch.from_numpy(grids[:count])).numpy() for count in BATCHES]
    for runtime, precision in WAYS:
        _compare(row, content, (runtime, precision), grids, wanted)
    row.rounding = float(np.abs(_exactly(grader, grids) - wanted[-1]).max())
    row.engine = _engine(content, grids.shape[1:])


def _config(backbone: str) -> GraderConfig:
    return GraderConfig(
        backbone=backbone,
        shape=(SIDE,) * 3,
        spacing_mm=(SPACING_MM,) * 3,
        coordinates=False,
    )


def _compare(
    row: Row,
    content: bytes,
    way: tuple[str, AskedPrecision],
    grids: F32,
    wanted: Sequence[F32],
) -> None:
    runtime, precision = way
    try:
        backend = open_backend(content, name=runtime, precision=precision, threads=2)
    except BackendError:
        if precision == "f32":
            raise
        return  # this processor does not compute in it
    answers = [
        backend.run({"image": np.ascontiguousarray(grids[: len(rows)])})[
            "probabilities"
        ]
        for rows in wanted
    ]
    backend.close()
    found = [compare_probabilities(*pair) for pair in zip(wanted, answers, strict=True)]
    row.largest[" ".join(way)] = max(parity.largest for parity in found)
    row.mean[" ".join(way)] = max(parity.mean for parity in found)


def _exactly(grader: Grader, grids: F32) -> F64:
    """Return a grader's probabilities computed in float64; it stays so."""
    with torch.inference_mode():
        features = grader.double().backbone(torch.from_numpy(grids).double())
        exact: F64 = grader.grade(
            torch.cat(
                [head.get_submodule("0")(features) for head in grader.heads], dim=1
            )
        ).numpy()
    return exact


def _engine(content: bytes, shape: tuple[int, ...]) -> str:
    profile = Profile(
        smallest=(1, *shape),
        usual=(5, *shape),
        largest=(max(BATCHES), *shape),
    )
    began = time.perf_counter()
    try:
        engine = build_engine(
            content, runtime="tensorrt-rtx", capability=CAPABILITY, profile=profile
        )
    except BackendError as error:
        return str(error)[:80]
    return f"{time.perf_counter() - began:.0f} s, {len(engine) / 1e6:.0f} MB"


def table_of(rows: Sequence[Row]) -> Table:
    """Return the rows as a table."""
    columns = (
        *("model", "M parameters", "export s", "ONNX MB", "own rounding"),
        *[" ".join(way) for way in WAYS],
        "bf16 mean",
        f"RTX {CAPABILITY}",
        "",
    )
    return Table(
        title="Families",
        columns=columns,
        rows=[row.cells for row in rows],
    )


def page(rows: Sequence[Row], table: Table) -> str:
    """Return the whole page."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
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

{table.markdown()}
"""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
