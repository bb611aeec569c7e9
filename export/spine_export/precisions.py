"""The precisions in which exported models may run: each is tried on phantoms and kept only where it passes parity.

float32 under OpenVINO is the reference. bf16 is what OpenVINO computes a float32 file in when told to; INT8 is a file
of its own, which OpenVINO runs. f16 is a file of its own for GPUs: on a CPU ONNX Runtime and OpenVINO compute it in
float32, so that overflow would never show, and PyTorch's half arithmetic stands for the GPU's (``HalfArithmetic``).

Models that only together give an answer (SpineNet's three) are proven together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from spine_engine.backends import AskedPrecision, open_backend
from spine_engine.backends.base import Model
from spine_engine.bundle import file_facts
from spine_engine.bundle.manifest import ModelEntry, ModelFile
from spine_engine.errors import BackendError, StudyError
from spine_engine.phantom.samples import Sample
from spine_engine.pipeline.parity import LevelParity, Parity, ask, compare

Entries = dict[str, Any]
"""Models by role: one grader, or all that a detector needs."""

Files = Mapping[str, Path]
"""A file for each role."""

Way = Callable[[], Any]
"""Opens the models that answer together, in their order, as a context manager."""


def prove(
    entries: Entries,
    folder: Path,
    samples: Sequence[Sample],
    ways: Mapping[AskedPrecision, Way],
    variants: Mapping[AskedPrecision, Files],
    say: Callable[[str], None],
) -> Entries:
    """Try reduced precisions on models that answer together.

    Args:
        entries: the exported models, in float32, by role.
        folder: folder of their files.
        samples: studies that the answers are compared on.
        ways: functions that open the models in each precision that is tried.
        variants: files of the same models by precision; those that fail are deleted.
        say: takes a line about each precision.

    Returns:
        The entries with the precisions that passed, their files, and the figures of all that were tried.

    Raises:
        BackendError: the models do not run in float32 at all.
    """
    first = next(iter(entries.values()))
    with opened(
        {role: folder / entry.file for role, entry in entries.items()},
        entries,
        "f32",
    )() as models:
        reference = ask(first, models, samples)
    parities: dict[AskedPrecision, Parity | LevelParity] = {}
    for precision, way in ways.items():
        try:
            with way() as models:
                parities[precision] = compare(reference, ask(first, models, samples))
        except (
            BackendError,
            RuntimeError,
        ) as error:  # PyTorch raises RuntimeError for what it cannot compute here
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            say(f"  {precision} not tried: {reason}")
            continue
        except StudyError as error:
            say(f"  {precision} refused: {error}")
            continue
        say(
            f"  {precision} {'passed' if parities[precision].passed else 'refused'}: {parities[precision]}"
        )
    passed = tuple(precision for precision, parity in parities.items() if parity.passed)
    for own in (own for precision, own in variants.items() if precision not in passed):
        for path in own.values():
            path.unlink()
    kept = {
        precision: own for precision, own in variants.items() if precision in passed
    }
    figures = {str(precision): parity.figures for precision, parity in parities.items()}
    return {
        role: _said(entry, role, passed, kept, figures)
        for role, entry in entries.items()
    }


def opened(files: Files, entries: Entries, precision: AskedPrecision) -> Way:
    """Return a function that opens files under OpenVINO in a precision, with the profiles of their entries."""

    @contextmanager
    def way() -> Iterator[list[Model]]:
        with ExitStack() as stack:
            models: list[Model] = []
            for role, path in files.items():
                profile = entries[role].profile
                backend = open_backend(
                    path,
                    name="openvino",
                    precision=precision,
                    profile=profile,
                )
                stack.callback(backend.close)
                models.append(backend)
            yield models

    return way


def _said(
    entry: ModelEntry,
    role: str,
    passed: tuple[AskedPrecision, ...],
    variants: Mapping[AskedPrecision, Files],
    figures: dict[str, dict[str, float]],
) -> ModelEntry:
    files = {
        str(precision): ModelFile(**file_facts(own[role]))  # type: ignore[arg-type]
        for precision, own in variants.items()
    }
    return replace(
        entry,
        precisions=("f32", *passed),  # type: ignore[arg-type]
        variants=files,
        parity=figures,
    )
