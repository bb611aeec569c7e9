"""Trained checkpoints -> a bundle that the engine opens, each model in every precision that passes parity."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from spine_engine.backends import Precision
from spine_engine.bundle import MANIFEST_FILE, Bundle, write_manifest
from spine_engine.errors import BundleError, UsageError
from spine_engine.manifest import (
    Calibration,
    GraderEntry,
    Manifest,
    Models,
    manifest_text,
    parse_manifest,
)
from spine_engine.parity import PHANTOMS, Runner, Sample, grader_inputs, phantom_samples
from spine_export.int8 import quantize
from spine_export.onnx_file import BESIDE
from spine_export.parts import Part, detector_part, grader_part, spinenet_part
from spine_export.precisions import Entries, Way, opened, prove
from spine_export.sources import Card, PipelineConfig, SpineNetFiles
from spine_export.verify import TorchRunner
from spine_training.fit import read_checkpoint
from spine_training.spinenet import SpineNetKind

SPINENET_ROLES: Final[dict[str, SpineNetKind]] = {
    "detector": "vfr",
    "vertebra_appearance": "appearance",
    "vertebra_context": "context",
}
"""The part that each of SpineNet's networks plays in a bundle."""

CALIBRATION_PHANTOMS: Final = 24
"""Phantoms whose grids INT8 finds the ranges of activations on: 120 levels, none of those it is then compared on."""


def write_bundle(
    out: Path,
    *,
    name: str,
    version: str,
    detector: Path | SpineNetFiles | None = None,
    grader: Path | None = None,
    whole_study: Path | None = None,
    described: Mapping[str, PipelineConfig] | None = None,
    calibration: Calibration | None = None,
    card: Card | None = None,
    int8: bool = False,
    phantoms: int = PHANTOMS,
    say: Callable[[str], None] = print,
) -> Bundle:
    """Export checkpoints into ``out``, find the precisions they may run in, and open the bundle to prove it.

    Args:
        out: the bundle's folder; a bundle that is there is replaced once the new one has been opened.
        name, version: of the bundle.
        detector: a checkpoint of ``train``, or SpineNet's three; it belongs to ``grader``.
        grader, whole_study: checkpoints of ``train``, or of the older pipelines where ``described`` has their role.
        described: what files of weights alone do not say, by ``grader`` and ``whole_study_grader``.
        calibration: of the level grader's probabilities.
        card: what the checkpoints cannot say.
        int8: also try the graders in INT8.
        phantoms: how many precisions are compared on.
        say: takes a line about each model.

    Raises:
        BundleError: the engine would not accept what was written.
        UsageError: a file is no such checkpoint, or the models make no bundle.
    """
    if grader is None and whole_study is None:
        raise UsageError("a bundle needs a grader, a whole-study grader or both; give --grader or --whole-study")
    if (grader is None) != (detector is None):
        raise UsageError("a level grader and a detector need each other; give both --detector and --grader")
    if grader is None and calibration is not None:
        raise UsageError("a calibration is of a level grader's probabilities; give --grader, or leave it out")
    card, described = card or Card(), described or {}
    given = {"detector": detector, "grader": grader, "whole_study_grader": whole_study}
    if unused := sorted(role for role in described if given.get(role) is None):
        raise UsageError(f"a {unused[0]} is described, but none is given")
    about = _about(name, version, card)
    samples = phantom_samples(phantoms)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        work = Path(folder)
        entries: Entries = {}
        if detector is not None:
            entries |= _exported(_detectors(detector), work, samples, int8, say)
        for role, path in {"grader": grader, "whole_study_grader": whole_study}.items():
            if path is not None:
                part = grader_part(path, described.get(role), calibration if role == "grader" else None, role=role)
                entries |= _exported({role: part}, work, samples, int8, say)
        own = {role: path for role, path in given.items() if isinstance(path, Path) and role not in described}
        write_manifest(work, _with_facts(replace(about, models=Models(**entries)), own))
        Bundle.open(work)
        _put(work, out)
    return Bundle.open(out)


def _about(name: str, version: str, card: Card) -> Manifest:
    """Return the manifest of the bundle to be, with the packaged bundle's models for now.

    Raises:
        UsageError: the name or the card would make no manifest.
    """
    about = replace(
        Bundle.open().manifest,
        version=version,
        licence=card.licence,
        intended_use=card.intended_use,
        training_data=card.training_data,
        metrics=card.metrics,
    )
    try:
        return parse_manifest(manifest_text(replace(about, name=name)))
    except (BundleError, ValueError) as error:
        raise UsageError(f"the name or the card makes no bundle: {error}") from None


def _with_facts(manifest: Manifest, checkpoints: Mapping[str, Path]) -> Manifest:
    """Return a manifest that says what the checkpoints of ``train`` say, where the card does not."""
    contents = {role: read_checkpoint(path) for role, path in checkpoints.items()}
    trained = {role: str(content.get("settings", {}).get("data", "")) for role, content in contents.items()}
    measured = {f"{role}.{key}": value for role, each in contents.items() for key, value in _figures_of(each).items()}
    return replace(
        manifest,
        training_data=manifest.training_data or tuple(f"{role}: {data}" for role, data in trained.items() if data),
        metrics=manifest.metrics or measured,
    )


def _put(work: Path, out: Path) -> None:
    """Move a finished bundle to its place; files of the bundle that was there go, others stay."""
    out.mkdir(exist_ok=True)
    try:
        models = parse_manifest((out / MANIFEST_FILE).read_bytes()).models.by_role().values()
        old = {file.file for entry in models for file in entry.files}
    except (OSError, BundleError):
        old = set()
    for path in sorted(work.iterdir(), key=lambda path: path.name == MANIFEST_FILE):
        os.replace(path, out / path.name)
        old.discard(path.name)
    for stale in old:
        (out / stale).unlink(missing_ok=True)


def _exported(
    group: Mapping[str, Part], out: Path, samples: Sequence[Sample], int8: bool, say: Callable[[str], None]
) -> Entries:
    """Export models that answer together, in every precision, and keep those that pass."""
    files = {role: out / f"{role}.onnx" for role in group}
    halves = {role: out / f"{role}.f16.onnx" for role in group}
    for role, part in group.items():
        for path, width in ((files[role], "f32"), (halves[role], "f16")):
            part.export(path, width)  # type: ignore[arg-type]
            if path.with_name(path.name + BESIDE).exists():
                raise UsageError(f"{path.name} is beyond the 2 GB that a model of a bundle may have")
    entries: Entries = {role: part.describe(files[role]) for role, part in group.items()}
    ways: dict[Precision, Way] = {"bf16": opened(files, entries, "bf16"), "f16": _in_half(group)}
    variants: dict[Precision, Mapping[str, Path]] = {"f16": halves}
    first = next(iter(entries.values()))
    if int8 and isinstance(first, GraderEntry):
        own = {role: out / f"{role}.int8.onnx" for role in group}
        unseen = phantom_samples(CALIBRATION_PHANTOMS, start=len(samples))
        for role, path in own.items():
            quantize(files[role], grader_inputs(first, unseen), path)
        variants["int8"], ways["int8"] = own, opened(own, entries, "int8")
    sizes = [f"{role} {path.stat().st_size / 1e6:.1f} MB" for role, path in files.items()]
    say(f"{', '.join(sizes)} in f32")
    return prove(entries, out, samples, ways, variants, say)


def _in_half(group: Mapping[str, Part]) -> Way:
    """Return how PyTorch runs models in half precision: what a GPU does with their f16 files."""

    @contextmanager
    def way() -> Iterator[list[Runner]]:
        yield [TorchRunner(part.module, part.face.outputs[0], half=True) for part in group.values()]

    return way


def _detectors(source: Path | SpineNetFiles) -> dict[str, Part]:
    if isinstance(source, Path):
        return {"detector": detector_part(source)}
    return {role: spinenet_part(getattr(source, kind), kind) for role, kind in SPINENET_ROLES.items()}


def _figures_of(content: Mapping[str, Any]) -> dict[str, float]:
    """Return a checkpoint's last figures on what was held out."""
    history = content.get("history", [])
    kept = ("metric", "prior", "best")
    return {key: round(float(history[-1][key]), 4) for key in kept if history and key in history[-1]}
