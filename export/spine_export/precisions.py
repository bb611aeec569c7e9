"""In which precisions exported models may run: each is tried on phantoms and kept only where it passes parity.

float32 under OpenVINO is the reference. bf16 and f16 are what OpenVINO computes in when told to; files that are f16 or
int8 by themselves are proven in ONNX Runtime and OpenVINO on a CPU, and run in the TensorRTs on a GPU.

Models that only together give an answer (SpineNet's three) are proven together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from spine_engine.backends import Backend, Precision, open_backend
from spine_engine.bundle import file_facts
from spine_engine.detection import detect
from spine_engine.detection.spinenet import detect_vertebra_field
from spine_engine.errors import BackendError
from spine_engine.manifest import DetectorEntry, FileEntry, GraderEntry, ModelEntry
from spine_engine.parity import LevelParity, Parity, Sample, compare_detectors, compare_graders

OF_THE_RUNTIME: Final[tuple[Precision, ...]] = ("bf16", "f16")
"""What OpenVINO may be told to compute a float32 file in."""

TYPED_FILES: Final[Mapping[Precision, str]] = {"f16": "onnxruntime", "int8": "openvino"}
"""Precisions that live in a file of their own, and the runtime that proves them on a CPU."""

Entries = dict[str, Any]
"""Models by role: one grader, or all that a detector needs."""

Files = Mapping[str, Path]
"""A file for each role."""


def prove(
    entries: Entries, folder: Path, samples: Sequence[Sample], variants: Mapping[Precision, Files]
) -> tuple[Entries, dict[Precision, Parity | LevelParity]]:
    """Try every reduced precision that this machine has on models that answer together.

    Args:
        entries: the exported models, in float32, by role.
        folder: where their files lie.
        samples: what the answers are compared on.
        variants: files of the same models by precision; those that fail are deleted.

    Returns:
        The entries with the precisions that passed, and what was found of each that was tried.

    Raises:
        BackendError: the models do not run in float32 at all.
    """
    files = {role: folder / entry.file for role, entry in entries.items()}
    tries: list[tuple[Precision, str, Files]] = [(p, "openvino", files) for p in OF_THE_RUNTIME if p not in variants]
    tries += [(precision, TYPED_FILES[precision], own) for precision, own in variants.items()]
    found: dict[Precision, Parity | LevelParity] = {}
    with _opened(files, "openvino", "f32") as reference:
        for precision, runtime, own in tries:
            try:
                with _opened(own, runtime, precision) as other:
                    found[precision] = _compare(entries, reference, other, samples)
            except BackendError:  # the runtime does not compute in it here
                continue
    passed = tuple(precision for precision, parity in found.items() if parity.passed)
    for own in (own for precision, own in variants.items() if precision not in passed):
        for path in own.values():
            path.unlink()
    kept = {precision: own for precision, own in variants.items() if precision in passed}
    figures = {str(precision): parity.figures for precision, parity in found.items()}
    return {role: _said(entry, role, passed, kept, figures) for role, entry in entries.items()}, found


def _said(
    entry: ModelEntry,
    role: str,
    passed: tuple[Precision, ...],
    variants: Mapping[Precision, Files],
    figures: dict[str, dict[str, float]],
) -> ModelEntry:
    files = {str(precision): FileEntry(**file_facts(own[role])) for precision, own in variants.items()}  # type: ignore[arg-type]
    return replace(entry, precisions=("f32", *passed), variants=files, parity=figures)  # type: ignore[arg-type]


def _compare(
    entries: Entries, reference: list[Backend], other: list[Backend], samples: Sequence[Sample]
) -> Parity | LevelParity:
    first = next(iter(entries.values()))
    if isinstance(first, GraderEntry):
        return compare_graders(reference[0], other[0], first, samples)
    return compare_detectors(_way(first, reference), _way(first, other), samples)


def _way(entry: DetectorEntry, models: list[Backend]) -> Any:
    """Return how open models find the levels of a study."""
    if entry.decoder == "vfr":
        field_net, appearance, context = models
        return lambda series: detect_vertebra_field(series, field_net, appearance, context)
    return lambda series: detect(series, models[0], entry.spec)


@contextmanager
def _opened(files: Files, runtime: str, precision: Precision) -> Iterator[list[Backend]]:
    with ExitStack() as stack:
        models = []
        for path in files.values():
            models.append(open_backend(path, name=runtime, precision=precision))
            stack.callback(models[-1].close)
        yield models
