"""``onnxruntime``: the bundle's ONNX files in plain ONNX Runtime on the CPU, one study at a time.

Sessions have the library's default options, which take every core. Files are read with pydicom; the slices' geometry,
the reading of the detector's maps and the level grids are the engine's own.
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from spine_bench.baselines.grading import finder, sagittal, warm_up_study
from spine_bench.baselines.reading import PydicomReader
from spine_bench.baselines.serial import Clock, SerialSystem
from spine_bench.harness.interfaces import Sample
from spine_engine.backends import Backend, Device
from spine_engine.backends.onnxruntime import OnnxRuntimeBackend
from spine_engine.bundle import Bundle, read_model
from spine_engine.grading import grade
from spine_engine.manifest import ModelEntry
from spine_engine.options import usable_cpus


class OnnxRuntimeSystem(SerialSystem):
    """See the module's description."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self._bundle = bundle
        self._reader = PydicomReader()

    def load(self) -> None:
        """Open a session for every model and grade a phantom."""
        entries = self._bundle.manifest.models.by_role()
        self._networks = {role: session(self._bundle, entry) for role, entry in entries.items()}
        self._find = finder(self._bundle, self._networks, every_slice=True)
        study = warm_up_study()
        grade(study, self._find(sagittal(study)).levels, self._networks["grader"], self._bundle.grader)

    def answer(self, sample: Sample, clock: Clock) -> NDArray[np.float64]:
        """Read, detect, cut the levels, grade."""
        entry = self._bundle.grader
        with clock.stage("read"):
            study = self._reader.read(sample)
        with clock.stage("detect"):
            detection = self._find(sagittal(study))
        with clock.stage("voxelize and grade"):
            return grade(study, detection.levels, self._networks["grader"], entry).probabilities

    def facts(self) -> dict[str, object]:
        """Return the runtime, its threads and the reader."""
        return {
            "bundle": self._bundle.facts,
            "runtime": f"onnxruntime {version('onnxruntime')}, CPUExecutionProvider, default session options",
            "precision": "f32",
            "threads": usable_cpus(),
            "processes": 1,
            "reader": f"pydicom {version('pydicom')}",
        }


def session(bundle: Bundle, entry: ModelEntry, threads: int | None = None) -> Backend:
    """Open a session as ONNX Runtime's documentation does; without ``threads`` it takes every core."""
    import onnxruntime

    content, options = read_model(bundle.path, entry), onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    plain = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return OnnxRuntimeBackend(plain, Device("onnxruntime", "CPU", "f32"))
