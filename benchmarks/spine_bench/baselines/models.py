"""Model against model: ``python -m spine_bench.baselines.models [BUNDLE ...]``.

Each network of each bundle in OpenVINO, ONNX Runtime and PyTorch, and a matrix product as the roof. Every contestant
lives in a process of its own, opened and warm before the first round, and works only when it is its turn, so that no
thread pool spins while another is measured. In a round each has about a second; a contestant's figure is the median
over the rounds, a ratio the median of the ratios within each round. Both are taken of wall time and of processor time:
where others use the machine as well, the second is to be trusted, and more so with ``--threads 1``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from spine_bench.baselines.roofline import GFLOP, Width, openvino_product, torch_product
from spine_engine.backends.processor import has_native_bf16
from spine_engine.bundle import Bundle
from spine_engine.errors import BackendError
from spine_engine.manifest import ModelEntry
from spine_engine.options import usable_cpus

REFERENCE: Final = "openvino bf16"
"""What the engine runs; ratios are of the others to it."""

WAYS: Final = (
    REFERENCE,
    "openvino f32",
    "onnxruntime f32",
    "torch eager f32",
    "torch autocast bf16",
    "torch compiled bf16",
)
ROOFS: Final = ("torch bf16", "openvino bf16", "torch f32", "openvino f32")
ROUNDS: Final = 5
SECONDS: Final = 1.0
WARM_UP: Final = 2


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


Seconds = tuple[float, float]
"""Wall and processor seconds of an item."""


class Contestant:
    """A process that runs one thing when it is asked to."""

    def __init__(self, make: Callable[..., Callable[[], object]], *arguments: Any, items: int = 1) -> None:
        context = multiprocessing.get_context("spawn")
        self._mine, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._items = items

    def ready(self) -> str:
        """Wait until it is open and warm; return what went wrong, or nothing."""
        try:
            return str(self._mine.recv())
        except EOFError:
            return "it died"

    def turn(self, seconds: float) -> Seconds:
        """Let it work for about ``seconds``; return the seconds of an item."""
        self._mine.send(seconds)
        wall, processor = self._mine.recv()
        return wall / self._items, processor / self._items

    def close(self) -> None:
        """End it."""
        self._mine.close()
        self._process.join(10)
        self._process.kill()


def _serve(pipe: Any, make: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what it does itself when it compiles
            call = make(*arguments)
            for _ in range(WARM_UP):
                call()
        pipe.send("")
    except Exception as error:  # noqa: BLE001 - it is a line of the table
        pipe.send(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}")
        return
    while True:
        try:
            seconds = pipe.recv()
        except EOFError:
            return
        wall, processor, count = time.perf_counter(), time.process_time(), 0
        while count == 0 or time.perf_counter() - wall < seconds:
            call()
            count += 1
        pipe.send(((time.perf_counter() - wall) / count, (time.process_time() - processor) / count))


def network(subject: Subject, way: str, threads: int) -> Callable[[], object]:
    """Return a call of a network in one way, on noise."""
    bundle = Bundle.open(subject.bundle)
    entry = bundle.manifest.models.by_role()[subject.role]
    given = {entry.inputs[0].name: noise(entry, subject.batch)}
    runtime, *_, width = way.split()
    if runtime == "torch":
        return _torch_network(bundle, subject.role, way, given, threads)
    if runtime == "onnxruntime":
        from spine_bench.baselines.ort import session

        backend = session(bundle, entry, threads)
    else:
        backend = bundle.open_model(entry, precision=width, threads=threads)  # type: ignore[arg-type]
    return lambda: backend.run(given)


def _torch_network(
    bundle: Bundle, role: str, way: str, given: Mapping[str, np.ndarray[Any, Any]], threads: int
) -> Callable[[], object]:
    import torch

    from spine_bench.baselines.grading import TorchNetwork
    from spine_bench.baselines.tuned import compile_network
    from spine_bench.baselines.weights import torch_model

    torch.set_num_threads(threads)
    module = torch_model(bundle, role)
    if "compiled" in way:
        if not shutil.which("g++"):
            raise BackendError("torch.compile needs a C++ compiler: apt-get install g++")
        module = compile_network(module)
    bf16 = way.endswith("bf16")
    entry = bundle.manifest.models.by_role()[role]
    plain = TorchNetwork(module, entry, bf16=bf16, channels_last=bf16)
    return lambda: plain.run(given)


def noise(entry: ModelEntry, batch: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return an input of the usual size."""
    if entry.profile is None:
        raise BackendError(f"{entry.file} has no profile to take an input's shape from: export it again")
    return np.random.default_rng(0).random((batch, *entry.profile.usual[1:]), np.float32)


def subjects_of(folder: Path | None, roles: Sequence[str] | None = None) -> list[Subject]:
    """Return the networks of a bundle, or those of ``roles``, as the engine calls them; PyTorch counts the work."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from spine_bench.baselines.weights import torch_model

    bundle = Bundle.open(folder)
    subjects = []
    for role, entry in bundle.manifest.models.by_role().items():
        if roles and role not in roles:
            continue
        module = torch_model(bundle, role)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            module(torch.from_numpy(noise(entry, 1)))
        batch = entry.profile.usual[0] if entry.profile else 1
        subjects.append(Subject(bundle=bundle.path, role=role, batch=batch, gflop=counter.get_total_flops() / 1e9))
    return subjects


def compete(
    subject: Subject, ways: Sequence[str], rounds: int, threads: int, seconds: float
) -> tuple[list[Row], dict[str, str]]:
    """Let every way take its turn on a network; return the rows, and by way why it did not take part."""
    entered = {way: Contestant(network, subject, way, threads, items=subject.batch) for way in ways}
    for roof in ROOFS:
        runtime, width = roof.split()
        make = torch_product if runtime == "torch" else openvino_product
        entered[f"roof {roof}"] = Contestant(make, cast(Width, width), threads)
    try:
        faults = {name: fault for name, one in entered.items() if (fault := one.ready())}
        present = {name: one for name, one in entered.items() if name not in faults}
        turns: dict[str, list[Seconds]] = {name: [] for name in present}
        for _ in range(rounds):
            for name, one in present.items():
                turns[name].append(one.turn(seconds))
    finally:
        for one in entered.values():
            one.close()
    return rows_of(subject, turns), faults


def rows_of(subject: Subject, turns: Mapping[str, Sequence[Seconds]]) -> list[Row]:
    """Return a row for every contestant from its turns, roofs among them."""
    rows = []
    for name, own in turns.items():
        width = name.split()[-1]
        roofs = [turns[roof] for roof in turns if roof.startswith("roof") and roof.endswith(width)]
        share = [_share(subject, own, roofs, clock) for clock in (0, 1)]
        ratio = [_ratio(own, turns.get(REFERENCE, ()), clock) for clock in (0, 1)]
        is_roof = name.startswith("roof")
        rows.append(
            Row(
                subject=subject.name,
                way=name,
                wall_ms=1e3 * statistics.median(each[0] for each in own),
                processor_ms=1e3 * statistics.median(each[1] for each in own),
                wall_ratio=0.0 if is_roof else ratio[0],
                processor_ratio=0.0 if is_roof else ratio[1],
                wall_roof=0.0 if is_roof else share[0],
                processor_roof=0.0 if is_roof else share[1],
            )
        )
    return rows


def _ratio(own: Sequence[Seconds], reference: Sequence[Seconds], clock: int) -> float:
    ratios = [one[clock] / other[clock] for one, other in zip(own, reference, strict=False)]
    return statistics.median(ratios) if ratios else 0.0


def _share(subject: Subject, own: Sequence[Seconds], roofs: Sequence[Sequence[Seconds]], clock: int) -> float:
    """Return the share of the better product's arithmetic a second, round by round."""
    shares = [
        (subject.gflop / one[clock]) / max(GFLOP / roof[number][clock] for roof in roofs)
        for number, one in enumerate(own)
        if roofs
    ]
    return statistics.median(shares) if shares else 0.0


def benchmark_app(subject: Subject, threads: int, seconds: int = 5) -> float | None:
    """Return calls a second of OpenVINO's own ``benchmark_app``, a stream a core; None where it is not installed."""
    program = shutil.which("benchmark_app", path=str(Path(sys.executable).parent)) or shutil.which("benchmark_app")
    if program is None:
        return None
    entry = Bundle.open(subject.bundle).manifest.models.by_role()[subject.role]
    shape = ",".join(map(str, noise(entry, subject.batch).shape))
    words = ["-m", str(subject.bundle / entry.file), "-shape", f"[{shape}]", "-d", "CPU", "-hint", "none"]
    words += ["-nstreams", str(threads), "-nthreads", str(threads), "-t", str(seconds)]
    words += ["-infer_precision", "bf16" if has_native_bf16() else "f32"]
    ended = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    found = re.search(r"Throughput:\s*([\d.]+)", ended.stdout)
    return float(found[1]) if found else None


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| network | way | ms an item, wall | processor | times the reference, wall | processor | of the roof, wall |"
        " processor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = [f"{value:.2f}" if value else "" for value in (row.wall_ratio, row.processor_ratio)]
        shares = [f"{value:.0%}" if value else "" for value in (row.wall_roof, row.processor_roof)]
        cells = [row.subject, row.way, f"{row.wall_ms:.2f}", f"{row.processor_ms:.2f}", *ratios, *shares]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write JSON where asked; 1 when a contestant did not take part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="*", type=Path, help="bundles' folders; the packaged one by default")
    parser.add_argument("--roles", nargs="*", help="only these networks")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a turn")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    missing: dict[str, str] = {}
    apps: dict[str, float | None] = {}
    subjects = [subject for folder in options.bundles or [None] for subject in subjects_of(folder, options.roles)]
    for subject in subjects:
        found, faults = compete(subject, options.ways, options.rounds, options.threads, options.seconds)
        rows += found
        missing |= {f"{subject.name}: {way}": fault for way, fault in faults.items()}
        apps[subject.name] = benchmark_app(subject, options.threads)
        print(table(found), flush=True)
        print(f"{subject.name}: {subject.gflop:.2f} GFLOP an item; benchmark_app: {apps[subject.name]} calls a second")
    for name, fault in missing.items():
        print(f"{name} did not take part: {fault}", file=sys.stderr)
    if options.json is not None:
        settings = {"threads": options.threads, "rounds": options.rounds, "seconds": options.seconds}
        versions = {name: version(name) for name in ("openvino", "onnxruntime", "torch")}
        content = {
            "settings": settings,
            "versions": versions,
            "gflop": {subject.name: subject.gflop for subject in subjects},
            "rows": [asdict(row) for row in rows],
            "benchmark_app_per_s": apps,
            "missing": missing,
        }
        options.json.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
