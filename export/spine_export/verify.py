"""An exported file against the PyTorch model that it came from, in every runtime and precision of this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spine_engine.backends import Precision, open_backend
from spine_engine.detection import Detection, detect
from spine_engine.detection.spec import DetectorSpec
from spine_engine.errors import BackendError, OutputError
from spine_engine.manifest import DetectorEntry, GraderEntry, ModelEntry
from spine_engine.parity import LevelParity, Parity, Runner, Sample, compare_detectors, compare_graders

F32 = NDArray[np.float32]

F32_TOLERANCE: Final = 1e-4
"""Largest |difference| of probabilities, or of outputs as a share of the largest, between exact computations."""

WAYS: Final[Mapping[Precision, Sequence[tuple[str, Precision]]]] = {
    "f32": (("onnxruntime", "f32"), ("openvino", "f32"), ("openvino", "bf16")),
    "f16": (("onnxruntime", "f16"),),
}
"""Runtimes and precisions that a file of each precision is run in."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far raw outputs moved, as a share of the largest output."""

    largest: float

    @property
    def passed(self) -> bool:
        """Whether they are the same but for rounding."""
        return self.largest <= F32_TOLERANCE

    def __str__(self) -> str:
        """Return a line for people."""
        return f"outputs moved by {self.largest:.2g} of the largest, at most"


Outcome = Parity | LevelParity | Difference


class TorchRunner:
    """A PyTorch module as something that can be compared: one input, one output, on the CPU."""

    def __init__(self, module: nn.Module, output: str) -> None:
        self._module = module.eval()
        self._output = output

    def run(self, inputs: Mapping[str, F32]) -> dict[str, F32]:
        """Run the module once."""
        (array,) = inputs.values()
        with torch.inference_mode():
            found: torch.Tensor = self._module(torch.from_numpy(array))
        return {self._output: found.float().numpy()}


def verify(
    module: nn.Module,
    path: Path,
    entry: ModelEntry,
    precision: Precision,
    samples: Sequence[Sample],
    worst: Path | None = None,
) -> dict[str, Outcome]:
    """Compare an exported file with its module.

    Args:
        module: in float32.
        path: the file.
        entry: what a manifest would say of it: graders and detectors are compared by their answers on samples, other
            networks by their outputs for noise.
        precision: of the file.
        samples: what is compared on.
        worst: folder for the worst case of each way, as ``.npz``.

    Returns:
        The outcome by way, such as ``openvino bf16``; ways that this machine lacks are left out.

    Raises:
        OutputError: ``worst`` cannot be made.
    """
    if worst is not None:
        try:
            worst.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {worst}: {error.strerror}") from None
    reference = TorchRunner(module, entry.outputs[0].name)
    found: dict[str, Outcome] = {}
    for runtime, width in WAYS[precision]:
        try:
            backend = open_backend(path, name=runtime, precision=width, threads=torch.get_num_threads())
        except BackendError:
            if runtime == "openvino" and width == "f32":
                raise
            continue
        kept = None if worst is None else worst / f"{path.stem}-{runtime}-{width}.npz"
        found[f"{runtime} {width}"] = _compare(entry, reference, backend, samples, kept)
        backend.close()
    return found


def agrees(found: Mapping[str, Outcome], precision: Precision) -> bool:
    """Whether a file of a precision gives its module's answers; what runtimes make of f32 in bf16 is only told."""
    own = [outcome for way, outcome in found.items() if way.endswith(precision)]
    return bool(own) and all(
        outcome.largest <= F32_TOLERANCE if precision == "f32" and isinstance(outcome, Parity) else outcome.passed
        for outcome in own
    )


def _compare(
    entry: ModelEntry, reference: Runner, other: Runner, samples: Sequence[Sample], worst: Path | None
) -> Outcome:
    if isinstance(entry, GraderEntry):
        return compare_graders(reference, other, entry, samples, worst)
    if isinstance(entry, DetectorEntry) and entry.spec is not None:
        return compare_detectors(_way(reference, entry.spec), _way(other, entry.spec), samples, worst)
    return _compare_outputs(entry, reference, other, worst)


def _way(runner: Runner, spec: DetectorSpec) -> Callable[..., Detection]:
    return lambda series: detect(series, runner, spec)


def _compare_outputs(entry: ModelEntry, reference: Runner, other: Runner, worst: Path | None) -> Difference:
    """Compare what two ways give for noise in the usual shape, in batches of 1 and 2."""
    name, gives = entry.inputs[0].name, entry.outputs[0].name
    if entry.profile is None:
        raise ValueError(f"{entry.file} has no profile to take a shape from")
    item = entry.profile.usual[1:]
    largest = 0.0
    for batch in (1, 2):
        noise = np.random.default_rng(batch).random((batch, *item), np.float32)
        first, second = (runner.run({name: noise})[gives] for runner in (reference, other))
        largest = max(largest, float(np.abs(first - second).max() / max(np.abs(first).max(), 1e-9)))
        if worst is not None:
            np.savez_compressed(worst, input=noise, reference=first, other=second)
    return Difference(largest=largest)
