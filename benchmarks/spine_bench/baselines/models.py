"""Model against model: each network of a bundle in OpenVINO, ONNX Runtime and PyTorch; a matrix product as the roof.

Every contestant lives in a process of its own, opened and warm before the first round, and works only when it is its
turn, so that no thread pool spins while another is measured. In a round each has about a second; a contestant's figure
is the median over the rounds, a ratio the median of the ratios within each round. Both are taken of wall time and of
processor time: where others use the machine as well, the second is to be trusted, and more so with ``--threads 1``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final, cast

import numpy as np
import openvino
import torch
import typer
from openvino import opset13 as ops
from torch.utils.flop_counter import FlopCounterMode

from spine_bench.baselines.grading import TorchNetwork
from spine_bench.baselines.ort import session
from spine_bench.baselines.tuned import compile_network
from spine_bench.baselines.weights import noise, torch_model
from spine_bench.findings import BundleFolder, Findings, Table, chosen, progress
from spine_bench.harness.host import lone_worker
from spine_bench.harness.interfaces import told
from spine_engine.backends import AskedPrecision, Backend
from spine_engine.backends.processor import has_native_bf16
from spine_engine.bundle import Bundle
from spine_engine.errors import BackendError
from spine_engine.options import usable_cpus

# Rows and columns of the matrices: 17.2 GFLOP a product; 1024 and 4096 reached the same within the noise.
SIDE: Final = 2048

GFLOP: Final = 2 * SIDE**3 / 1e9

Call = Callable[[], object]

# What the engine runs; ratios are of the others to it.
REFERENCE: Final = "openvino bf16"

WAYS: Final = (
    REFERENCE,
    "openvino f32",
    "onnxruntime f32",
    "torch eager f32",
    "torch autocast bf16",
    "torch compiled bf16",
)
WARM_UP: Final = 2
APP_S: Final = 5
COLUMNS: Final = (
    *(
        "network",
        "way",
        "ms an item, wall",
        "processor",
        "times the reference, wall",
        "processor",
    ),
    *("of the roof, wall", "processor"),
)

# Wall and processor seconds of an item.
Seconds = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network to be run: its bundle's folder, its role, items a call, and its arithmetic an item."""

    bundle: Path
    role: str
    batch: int
    gflop: float

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"{self.bundle.name} {self.role}, batch {self.batch}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contestant on one network, an item: median wall and processor ms, how often slower than the reference by
    either, and the share of the best matrix product of the same width by either; 0 where there is none."""

    subject: str
    way: str
    wall_ms: float
    processor_ms: float
    wall_ratio: float
    processor_ratio: float
    wall_roof: float
    processor_roof: float

    @property
    def cells(self) -> tuple[str, ...]:
        """As tables show it."""
        return (
            self.subject,
            self.way,
            f"{self.wall_ms:.2f}",
            f"{self.processor_ms:.2f}",
            *[
                f"{value:.2f}" if value else ""
                for value in (self.wall_ratio, self.processor_ratio)
            ],
            *[
                f"{value:.0%}" if value else ""
                for value in (self.wall_roof, self.processor_roof)
            ],
        )


def measure(
    bundle: BundleFolder = None,
    roles: Annotated[str, typer.Option(help="Only these networks, with commas.")] = "",
    ways: Annotated[
        str, typer.Option(help="Which contestants, with commas.")
    ] = ",".join(WAYS),
    rounds: int = 5,
    threads: int = usable_cpus(),
    seconds: Annotated[float, typer.Option(help="Of a turn.")] = 1.0,
) -> Findings:
    """Compare the runtimes on each network of a bundle, beside what the machine's arithmetic reaches at its best."""
    rows: list[Row] = []
    missing: dict[str, str] = {}
    apps: dict[str, float | None] = {}
    subjects = subjects_of(bundle, roles)
    for subject in subjects:
        progress(f"{subject.name}: {subject.gflop:.2f} GFLOP an item")
        turns, faults = compete(
            subject,
            chosen(ways, WAYS, "contestant"),
            rounds,
            threads,
            seconds,
        )
        rows += rows_of(subject, turns)
        missing |= {f"{subject.name}: {way}": fault for way, fault in faults.items()}
        apps[subject.name] = benchmark_app(subject, threads)
    return Findings(
        tables=[
            Table(
                title="Models",
                columns=COLUMNS,
                rows=[row.cells for row in rows],
            )
        ],
        notes=[
            f"{name}: benchmark_app reaches {rate} calls a second"
            for name, rate in apps.items()
        ],
        record={
            "settings": {"threads": threads, "rounds": rounds, "seconds": seconds},
            "versions": {
                name: version(name) for name in ("openvino", "onnxruntime", "torch")
            },
            "gflop": {subject.name: subject.gflop for subject in subjects},
            "rows": [asdict(row) for row in rows],
            "benchmark_app_per_s": apps,
            "missing": missing,
        },
        failure="; ".join(
            f"{name} did not take part: {fault}" for name, fault in missing.items()
        ),
    )


def subjects_of(folder: Path | None, roles: str = "") -> list[Subject]:
    """Return the networks of a bundle, or those of ``roles``, as the engine calls them; PyTorch counts the work."""
    bundle = Bundle.open(folder)
    entries = bundle.manifest.models.by_role()
    subjects = []
    for role in chosen(roles or ",".join(entries), entries, "network"):
        module = torch_model(bundle, role)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            module(torch.from_numpy(noise(entries[role])))
        profile = entries[role].profile
        subjects.append(
            Subject(
                bundle=bundle.path,
                role=role,
                batch=profile.usual[0] if profile else 1,
                gflop=counter.get_total_flops() / 1e9,
            )
        )
    return subjects


def compete(
    subject: Subject, ways: Sequence[str], rounds: int, threads: int, seconds: float
) -> tuple[dict[str, list[Seconds]], dict[str, str]]:
    """Let every way take its turn on a network, and every product; return the turns, and by way why it has none."""
    makers: dict[str, Callable[[], Call]] = {
        **{way: partial(network, subject, way, threads) for way in ways},
        **{
            f"roof {name}": partial(product, threads)
            for name, product in PRODUCTS.items()
        },
    }
    turns: dict[str, list[Seconds]] = {}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(lone_worker()) for name in makers}
        opened = {
            name: workers[name].submit(_open, make) for name, make in makers.items()
        }
        faults = {
            name: told(error, 100)
            for name, future in opened.items()
            if (error := future.exception())
        }
        for name in [name for name in makers if name not in faults] * rounds:
            turns.setdefault(name, []).append(
                workers[name]
                .submit(_turn, seconds, 1 if name.startswith("roof") else subject.batch)
                .result()
            )
    return turns, faults


def rows_of(subject: Subject, turns: Mapping[str, Sequence[Seconds]]) -> list[Row]:
    """Return a row for every contestant from its turns, roofs among them."""
    rows = []
    for name, own in turns.items():
        others = {} if name.startswith("roof") else turns
        roofs = [
            other
            for roof, other in others.items()
            if roof.startswith("roof") and roof[-4:] == name[-4:]
        ]
        figures = {
            f"{clock}_{kind}": value
            for number, clock in enumerate(("wall", "processor"))
            for kind, value in _figures(
                subject, own, others.get(REFERENCE, ()), roofs, number
            ).items()
        }
        rows.append(Row(subject=subject.name, way=name, **figures))
    return rows


def _figures(
    subject: Subject,
    own: Sequence[Seconds],
    reference: Sequence[Seconds],
    roofs: Sequence[Sequence[Seconds]],
    clock: int,
) -> dict[str, float]:
    """Return ms an item, times the reference, and the share of the better product's arithmetic, round by round."""
    seconds = [turn[clock] for turn in own]
    best = [
        max(GFLOP / turn[clock] for turn in turns) for turns in zip(*roofs, strict=True)
    ]
    return {
        "ms": 1e3 * median(seconds),
        "ratio": median(
            [one / other[clock] for one, other in zip(seconds, reference, strict=False)]
            or [0.0]
        ),
        "roof": median(
            [
                subject.gflop / one / roof
                for one, roof in zip(seconds, best, strict=False)
            ]
            or [0.0]
        ),
    }


def benchmark_app(subject: Subject, threads: int) -> float | None:
    """Return calls a second of OpenVINO's own ``benchmark_app``, a stream a core; None where it is not installed."""
    program = shutil.which(
        "benchmark_app", path=str(Path(sys.executable).parent)
    ) or shutil.which("benchmark_app")
    if program is None:
        return None
    entry = Bundle.open(subject.bundle).entry(subject.role)
    shape = ",".join(map(str, noise(entry, subject.batch).shape))
    words = [
        "-m",
        str(subject.bundle / entry.file),
        "-shape",
        f"[{shape}]",
        "-d",
        "CPU",
        "-hint",
        "none",
    ]
    words += [
        "-nstreams",
        str(threads),
        "-nthreads",
        str(threads),
        "-t",
        str(APP_S),
    ]
    words += ["-infer_precision", "bf16" if has_native_bf16() else "f32"]
    ended = subprocess.run(
        [program, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Throughput:\s*([\d.]+)", ended.stdout)
    return float(found[1]) if found else None


# -- in the process of a contestant ------------------------------------------------------------------------------------

_call: Call | None = None


def _open(make: Callable[[], Call]) -> None:
    global _call
    warnings.simplefilter(
        "ignore"
    )  # torch warns of what it does itself when it compiles
    _call = make()
    for _ in range(WARM_UP):
        _call()


def _turn(seconds: float, items: int) -> Seconds:
    """Make calls of so many items for about so long; return the wall and processor seconds of an item."""
    assert _call is not None
    wall = time.perf_counter()
    processor = time.process_time()
    count = 0
    while count == 0 or time.perf_counter() - wall < seconds:
        _call()
        count += items
    return (time.perf_counter() - wall) / count, (
        time.process_time() - processor
    ) / count


def network(subject: Subject, way: str, threads: int) -> Call:
    """Return a call of a network in one way, on noise."""
    bundle = Bundle.open(subject.bundle)
    entry = bundle.entry(subject.role)
    runtime, *_, width = way.split()
    if runtime == "torch":
        backend = _torch_network(bundle, subject.role, way, threads)
    elif runtime == "onnxruntime":
        backend = session(bundle, entry, threads)
    else:
        backend = bundle.open_model(
            entry, precision=cast(AskedPrecision, width), threads=threads
        )
    return partial(backend.run, {entry.inputs[0].name: noise(entry, subject.batch)})


def _torch_network(bundle: Bundle, role: str, way: str, threads: int) -> Backend:
    torch.set_num_threads(threads)
    module = torch_model(bundle, role)
    if "compiled" in way:
        if not shutil.which("g++"):
            raise BackendError(
                "torch.compile needs a C++ compiler: apt-get install g++"
            )
        module = compile_network(module)
    return TorchNetwork(module, bundle.entry(role), bf16=way.endswith("bf16"))


# -- the roof: large matrix products in bfloat16 and float32


def torch_product(kind: torch.dtype, threads: int) -> Call:
    """Return a matrix product of PyTorch's (oneDNN)."""
    torch.set_num_threads(threads)
    a, b, out = (torch.randn(SIDE, SIDE, dtype=kind) for _ in range(3))

    @torch.inference_mode()
    def product() -> object:
        return torch.matmul(a, b, out=out)

    return product


def openvino_product(width: str, threads: int) -> Call:
    """Return a matrix product of OpenVINO's, with a constant right side as a model's weights are."""
    given: Any = ops.parameter([SIDE, SIDE], np.float32)
    weights = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    model = openvino.Model(
        [ops.matmul(given, ops.constant(weights), False, False)],
        [given],
        "product",
    )
    options = {
        "INFERENCE_PRECISION_HINT": width,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    request = (
        openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    )
    left = openvino.Tensor(
        weights, shared_memory=True
    )  # it does not keep its array alive: the closure does
    keeper = (weights, left, model)

    def product() -> object:
        request.set_input_tensor(keeper[1])
        return request.infer()

    return product


PRODUCTS: Final[dict[str, Callable[[int], Call]]] = {
    "torch bf16": partial(torch_product, torch.bfloat16),
    "openvino bf16": partial(openvino_product, "bf16"),
    "torch f32": partial(torch_product, torch.float32),
    "openvino f32": partial(openvino_product, "f32"),
}
