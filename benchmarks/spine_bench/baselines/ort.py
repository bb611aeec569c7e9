"""``onnxruntime``: the bundle's ONNX files in plain ONNX Runtime on the CPU, one study at a time.

Sessions have the library's default options, which take every core. Files are read with pydicom; the slices' geometry,
the reading of the detector's maps and the level grids are the engine's own.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import onnxruntime

from spine_bench.baselines.grading import EngineWay
from spine_bench.baselines.pool import PooledSystem
from spine_bench.baselines.reading import read_study
from spine_bench.harness.interfaces import StudyLibrary
from spine_engine.backends import Backend, Device
from spine_engine.backends.onnxruntime import OnnxRuntimeBackend
from spine_engine.bundle import Bundle, read_model
from spine_engine.bundle.manifest import ModelEntry
from spine_engine.options import usable_cpus


def system(library: StudyLibrary, folder: Path | None) -> PooledSystem:
    """Make the system; see the module's description."""
    return PooledSystem("onnxruntime", folder, _grader)


def _grader(bundle: Bundle) -> EngineWay:
    """Open a session for every model and grade a phantom."""
    entries = bundle.manifest.models.by_role()
    networks = {role: session(bundle, entry) for role, entry in entries.items()}
    facts = {
        "runtime": f"onnxruntime {version('onnxruntime')}, CPUExecutionProvider, default session options",
        "precision": "f32",
        "threads": usable_cpus(),
        "reader": f"pydicom {version('pydicom')}",
    }
    return EngineWay(bundle, networks, read_study, every_slice=True, facts=facts)


def session(bundle: Bundle, entry: ModelEntry, threads: int | None = None) -> Backend:
    """Open a session as ONNX Runtime's documentation does; without ``threads`` it takes every core."""
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    plain = onnxruntime.InferenceSession(
        read_model(bundle.path, entry),
        options,
        providers=["CPUExecutionProvider"],
    )
    return OnnxRuntimeBackend(plain, Device("onnxruntime", "CPU", "f32"))
