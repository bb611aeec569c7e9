"""An exported file against the PyTorch model that it came from, in every runtime and precision of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spine_engine.backends import AskedPrecision, open_backend
from spine_engine.backends.base import Model
from spine_engine.bundle.manifest import DetectorEntry, GraderEntry, ModelEntry
from spine_engine.errors import BackendError, UsageError
from spine_engine.phantom.samples import Sample
from spine_engine.pipeline.parity import LevelParity, Parity, ask, compare, keep_worst
from spine_export.half import HalfArithmetic, narrowed

F32 = NDArray[np.float32]

TOLERANCES: Final[Mapping[AskedPrecision, float]] = {"f32": 1e-4, "f16": 5e-3}
"""Largest |difference| of probabilities in f32, and of other outputs as a share of the largest, by a file's precision:
float32 sums in another order, or float16's eleven bits through a deep network."""

WAYS: Final[Mapping[AskedPrecision, Sequence[tuple[str, AskedPrecision]]]] = {
    "f32": (("onnxruntime", "f32"), ("openvino", "f32"), ("openvino", "bf16")),
    "f16": (("onnxruntime", "f16"),),
}
"""Runtimes and precisions that a file of each precision is run in."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The distance by which raw outputs moved, as a share of the largest output, and its tolerance."""

    largest: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Return whether they are the same but for rounding."""
        return self.largest <= self.tolerance

    def __str__(self) -> str:
        """Return a line to print."""
        return f"outputs moved by {self.largest:.2g} of the largest, at most"


Outcome = Parity | LevelParity | Difference


class TorchRunner:
    """A PyTorch module behind the engine's model protocol: one input, one output, on the CPU.

    With ``half`` it computes in float16 as a GPU would.
    """

    def __init__(
        self,
        module: nn.Module,
        output: str,
        *,
        half: bool = False,
    ) -> None:
        self._module = (narrowed(module) if half else module).eval()
        self._output = output
        self._arithmetic = HalfArithmetic() if half else nullcontext()

    def run(self, inputs: Mapping[str, F32]) -> dict[str, F32]:
        """Run the module once."""
        (array,) = inputs.values()
        with torch.inference_mode(), self._arithmetic:
            output: torch.Tensor = self._module(torch.from_numpy(array))
        return {self._output: output.float().numpy()}


def verify(
    module: nn.Module,
    path: Path,
    entry: ModelEntry,
    precision: AskedPrecision,
    samples: Sequence[Sample],
    worst: Path | None = None,
) -> dict[str, Outcome]:
    """Compare an exported file with its module.

    Args:
        module: in float32.
        path: the file.
        entry: the file's entry in a manifest: graders and detectors are compared by their answers on samples, other
            networks by their outputs for noise.
        precision: the file's precision.
        samples: studies to compare on.
        worst: folder for the worst case of each way, as ``.npz``.

    Returns:
        The outcome by way, such as ``openvino bf16``; ways that this machine lacks are left out.

    Raises:
        OutputError: the worst case cannot be written.
    """
    reference = TorchRunner(module, entry.outputs[0].name)
    answers = isinstance(entry, GraderEntry) or (
        isinstance(entry, DetectorEntry) and entry.spec is not None
    )
    wanted = ask(entry, [reference], samples) if answers else None
    outcomes: dict[str, Outcome] = {}
    for runtime, width in WAYS[precision]:
        try:
            threads = torch.get_num_threads()
            backend = open_backend(
                path,
                name=runtime,
                precision=width,
                threads=threads,
                profile=entry.profile,
            )
        except BackendError:
            if runtime == "openvino" and width == "f32":
                raise
            continue
        kept = None if worst is None else worst / f"{path.stem}-{runtime}-{width}.npz"
        if wanted is None:
            outcomes[f"{runtime} {width}"] = _outputs(
                entry,
                reference,
                backend,
                TOLERANCES[precision],
                kept,
            )
        else:
            answers_here = ask(entry, [backend], samples)
            outcomes[f"{runtime} {width}"] = compare(wanted, answers_here)
            if kept is not None:
                keep_worst(kept, entry, samples, wanted, answers_here)
        backend.close()
    return outcomes


def agrees(outcomes: Mapping[str, Outcome], precision: AskedPrecision) -> bool:
    """Return whether a file of a precision gives its module's answers; f32 run in bf16 is reported, not judged.

    Raises:
        UsageError: no runtime of this machine runs it, or its answers hold nothing to compare.
    """
    own = [outcome for way, outcome in outcomes.items() if way.split()[-1] == precision]
    if not own:
        raise UsageError(
            'nothing here runs the file, so nothing was compared: pip install "spine-mri-engine[onnxruntime]"'
        )
    if any(isinstance(outcome, LevelParity) and not outcome.found for outcome in own):
        raise UsageError(
            "the model finds no level in any phantom, so nothing was compared: is it trained?"
        )
    return all(
        outcome.largest <= TOLERANCES["f32"]
        if precision == "f32" and isinstance(outcome, Parity)
        else outcome.passed
        for outcome in own
    )


def _outputs(
    entry: ModelEntry,
    reference: Model,
    other: Model,
    tolerance: float,
    worst: Path | None,
) -> Difference:
    """Compare the outputs of two models for noise in the usual shape, in batches of 1 and 2."""
    if entry.profile is None:
        raise ValueError(f"{entry.file} has no profile to take a shape from")
    name, gives = entry.inputs[0].name, entry.outputs[0].name
    largest = -1.0
    for batch in (1, 2):
        noise = np.random.default_rng(batch).random(
            (batch, *entry.profile.usual[1:]),
            np.float32,
        )
        first, second = (
            runner.run({name: noise})[gives] for runner in (reference, other)
        )
        share = float(np.abs(first - second).max() / max(np.abs(first).max(), 1e-9))
        if share > largest:
            largest = share
            if worst is not None:
                worst.parent.mkdir(parents=True, exist_ok=True)
                np.savez_compressed(
                    worst,
                    input=noise,
                    reference=first,
                    other=second,
                )
    return Difference(largest=largest, tolerance=tolerance)
