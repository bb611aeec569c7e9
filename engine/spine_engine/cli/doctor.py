"""``spine-engine doctor``: shows what this machine can run, what is missing, and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Final

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from spine_engine._version import __version__
from spine_engine.backends import BackendStatus, available_backends
from spine_engine.backends.cache import cache_folder
from spine_engine.backends.processor import has_native_bf16, instruction_sets
from spine_engine.bundle import Bundle
from spine_engine.bundle.manifest import ModelEntry
from spine_engine.errors import SpineEngineError
from spine_engine.options import RunOptions, usable_cpus
from spine_engine.run.tuning import remembered

PACKAGES: Final = (
    "numpy",
    "numba",
    "pydicom",
    "imagecodecs",
    "openvino",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-nv-tensorrt-rtx",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "cuda-bindings",
)
INSTRUCTION_SETS: Final = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "bf16",
)
"""Instruction sets by which the runtimes choose their kernels."""

_ANY_SIZE = 64
"""Size of a variable dimension in the trial run: a multiple of every stride of the packaged models."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The trial run of one model of the packaged bundle on zeros: its device, precision and times."""

    role: str
    device: str
    precision: str
    load_ms: float
    run_ms: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """The findings of ``doctor``. ``exit_code`` is 0 if ``spine-engine run`` would work."""

    engine: str
    python: str
    platform: str
    cpus: int
    memory_gb: float
    instruction_sets: tuple[str, ...]
    packages: dict[str, str | None]
    backends: tuple[BackendStatus, ...]
    bundle: dict[str, str] | None
    trials: tuple[Trial, ...]
    tuned: str | None
    cache: str | None
    problems: tuple[str, ...]
    exit_code: int


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object.")
    ] = False,
) -> None:
    """Show what this machine can run and what is missing; the exit code is 0 when a run would work.

    Example: spine-engine doctor --json
    """
    report = examine()
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
    else:
        _print(report)
    raise typer.Exit(report.exit_code)


def examine() -> Report:
    """Examine the machine, the packages and the packaged bundle, and run the bundle's models once."""
    problems = []
    trials = []
    facts = None
    setting = None
    exit_code = 0
    try:
        bundle = Bundle.open()
        facts = bundle.facts
        setting = remembered(bundle, RunOptions())
        trials = [
            _try(bundle, role, entry)
            for role, entry in bundle.manifest.models.by_role().items()
        ]
    except SpineEngineError as error:
        problems.append(str(error))
        exit_code = error.exit_code
    folder = cache_folder()
    if folder is None:
        problems.append(
            "no safe cache folder: models are compiled at every start; set XDG_CACHE_HOME to one of your own"
        )
    return Report(
        engine=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cpus=usable_cpus(),
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        instruction_sets=tuple(
            name for name in INSTRUCTION_SETS if name in instruction_sets()
        ),
        packages={name: _version(name) for name in PACKAGES},
        backends=available_backends(),
        bundle=facts,
        trials=tuple(trials),
        tuned=setting.words if setting is not None else None,
        cache=str(folder) if folder else None,
        problems=tuple(problems),
        exit_code=exit_code,
    )


def _try(bundle: Bundle, role: str, entry: ModelEntry) -> Trial:
    """Load a model and run it once on zeros."""
    begun = time.perf_counter()
    backend = bundle.open_model(entry)
    loaded = time.perf_counter()
    (info,) = backend.inputs
    shape = [
        (size or _ANY_SIZE) if axis else (size or 1)
        for axis, size in enumerate(info.shape)
    ]
    backend.run({info.name: np.zeros(shape, np.float32)})
    done = time.perf_counter()
    backend.close()
    return Trial(
        role=role,
        device=f"{backend.device.backend} {backend.device.device}",
        precision=backend.device.precision,
        load_ms=round(1e3 * (loaded - begun), 1),
        run_ms=round(1e3 * (done - loaded), 1),
    )


def _print(report: Report) -> None:
    console = Console(highlight=False, markup=False)
    machine = Table(
        title=f"spine-engine {report.engine}", show_header=False, title_justify="left"
    )
    machine.add_column()
    machine.add_column(overflow="fold")
    machine.add_row(
        "python", f"{report.python} ({sys.implementation.name}), {report.platform}"
    )
    machine.add_row(
        "processor",
        f"{report.cpus} of {os.cpu_count()} cores usable; {' '.join(report.instruction_sets)}",
    )
    machine.add_row(
        "computes bf16", "yes" if has_native_bf16() else "no: models run in f32"
    )
    machine.add_row("memory", f"{report.memory_gb} GB")
    installed = [
        f"{name} {number}" for name, number in report.packages.items() if number
    ]
    machine.add_row("packages", ", ".join(installed))
    for backend in report.backends:
        state = (
            f"{backend.version} on {', '.join(backend.devices)}"
            if backend.available
            else backend.reason
        )
        machine.add_row(backend.name, state.strip())
    if report.bundle:
        machine.add_row(
            "bundle",
            f"{report.bundle['name']} {report.bundle['version']}, digest {report.bundle['digest']}",
        )
    for trial in report.trials:
        took = f"loaded in {trial.load_ms} ms, ran in {trial.run_ms} ms"
        machine.add_row(trial.role, f"{trial.device} in {trial.precision}: {took}")
    machine.add_row(
        "tuned",
        report.tuned
        or "no: 'spine-engine tune' measures how this machine runs fastest",
    )
    machine.add_row("model cache", report.cache or "none")
    console.print(machine)
    for problem in report.problems:
        console.print(f"problem: {problem}")
    console.print("ready to run" if report.exit_code == 0 else "a run would fail")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
