"""Trained checkpoints -> a bundle that the engine opens, each model in every precision that passes parity."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from spine_engine.backends import AskedPrecision
from spine_engine.backends.base import Model
from spine_engine.bundle import MANIFEST_FILE, Bundle, write_manifest
from spine_engine.bundle.manifest import (
    GraderEntry,
    Manifest,
    Models,
    manifest_text,
    parse_manifest,
)
from spine_engine.detection.spec import DetectorSpec
from spine_engine.errors import BundleError, UsageError
from spine_engine.phantom.samples import Sample, phantom_samples
from spine_engine.pipeline.parity import grader_inputs
from spine_export.int8 import quantize
from spine_export.onnx_file import BESIDE
from spine_export.parts import (
    Part,
    detector_entry,
    detector_part,
    grader_part,
    spinenet_part,
)
from spine_export.precisions import Entries, Way, opened, prove
from spine_export.sources import BundleRecipe, SpineNetFiles
from spine_export.verify import TorchRunner
from spine_training.fit import read_checkpoint
from spine_training.spinenet import SpineNetKind

SPINENET_ROLES: Final[dict[str, SpineNetKind]] = {
    "detector": "vfr",
    "vertebra_appearance": "appearance",
    "vertebra_context": "context",
}
"""The kind of SpineNet's network in each role of a bundle."""

CALIBRATION_PHANTOMS: Final = 24
"""Phantoms whose grids INT8 finds the ranges of activations on: 120 levels, none of those it is then compared on."""


def write_bundle(
    out: Path,
    recipe: BundleRecipe,
    say: Callable[[str], None] = print,
) -> Bundle:
    """Export checkpoints into ``out``, find the precisions they may run in, and open the bundle to prove it.

    Args:
        out: the bundle's folder; an older bundle there is replaced once the new one has been opened.
        recipe: checkpoints, name and card.
        say: takes a line about each model.

    Raises:
        BundleError: the engine would not accept the written bundle.
        UsageError: a file is no such checkpoint, or the models make no bundle.
    """
    about = _about(recipe)
    samples = phantom_samples(recipe.phantoms)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        work = Path(folder)
        entries = _finished_detector(recipe, work)
        for group in _groups(recipe):
            entries |= _exported(group, work, samples, recipe.int8, say)
        models = Models(**entries)
        write_manifest(
            work,
            _with_facts(replace(about, models=models), recipe.own_checkpoints),
        )
        Bundle.open(work)
        _put(work, out)
    return Bundle.open(out)


def _groups(recipe: BundleRecipe) -> Iterator[dict[str, Part]]:
    """Yield the models of a bundle by role, those together that only together give an answer."""
    if isinstance(recipe.detector, SpineNetFiles):
        files = recipe.detector
        yield {
            role: spinenet_part(getattr(files, kind), kind)
            for role, kind in SPINENET_ROLES.items()
        }
    elif recipe.detector_checkpoint is not None:
        yield {"detector": detector_part(recipe.detector_checkpoint)}
    for role, path in recipe.graders.items():
        calibration = recipe.calibration if role == "grader" else None
        yield {
            role: grader_part(
                path,
                recipe.described.get(role),
                calibration,
                role=role,
                weights=recipe.weights,
            )
        }


def _finished_detector(recipe: BundleRecipe, work: Path) -> Entries:
    """Copy a detector that is exported already, and return its entries by role; none where it is a checkpoint.

    That of a bundle keeps the precisions proven for it; an ONNX file alone runs in float32.
    """
    source = None if recipe.packaged else recipe.detector
    if recipe.packaged or (isinstance(source, Path) and source.is_dir()):
        bundle = Bundle.open(source)  # type: ignore[arg-type]
        entries: Entries = {
            role: entry
            for role, entry in bundle.manifest.models.by_role().items()
            if not isinstance(entry, GraderEntry)
        }
        for file in (file for entry in entries.values() for file in entry.files):
            shutil.copyfile(bundle.path / file.file, work / file.file)
        return entries
    if isinstance(source, Path) and source.suffix == ".onnx":
        copied = Path(shutil.copyfile(source, work / "detector.onnx"))
        return {"detector": detector_entry(copied, DetectorSpec())}
    return {}


def _about(recipe: BundleRecipe) -> Manifest:
    """Return the manifest of a future bundle, with the packaged bundle's models for now.

    Raises:
        UsageError: the name or the card is not allowed in a manifest.
    """
    about = replace(
        Bundle.open().manifest,
        version=recipe.version,
        licence=recipe.card.licence,
        intended_use=recipe.card.intended_use,
        training_data=recipe.card.training_data,
        metrics=recipe.card.metrics,
    )
    try:
        return parse_manifest(manifest_text(replace(about, name=recipe.name)))
    except (BundleError, ValueError) as error:
        raise UsageError(f"the name or the card makes no bundle: {error}") from None


def _with_facts(manifest: Manifest, checkpoints: Mapping[str, Path]) -> Manifest:
    """Return a manifest with the training data and metrics of the checkpoints, where the card has none."""
    contents = {role: read_checkpoint(path) for role, path in checkpoints.items()}
    trained = {
        role: str(content.get("settings", {}).get("data", ""))
        for role, content in contents.items()
    }
    measured = {
        f"{role}.{key}": value
        for role, each in contents.items()
        for key, value in _figures_of(each).items()
    }
    return replace(
        manifest,
        training_data=manifest.training_data
        or tuple(f"{role}: {data}" for role, data in trained.items() if data),
        metrics=manifest.metrics or measured,
    )


def _put(work: Path, out: Path) -> None:
    """Move a finished bundle to its place; files of the former bundle are removed, others stay."""
    out.mkdir(exist_ok=True)
    try:
        models = (
            parse_manifest((out / MANIFEST_FILE).read_bytes()).models.by_role().values()
        )
        old = {file.file for entry in models for file in entry.files}
    except (OSError, BundleError):
        old = set()
    for path in sorted(work.iterdir(), key=lambda path: path.name == MANIFEST_FILE):
        os.replace(path, out / path.name)
        old.discard(path.name)
    for stale in old:
        (out / stale).unlink(missing_ok=True)


def _exported(
    group: Mapping[str, Part],
    out: Path,
    samples: Sequence[Sample],
    int8: bool,
    say: Callable[[str], None],
) -> Entries:
    """Export models that answer together, in every precision, and keep those that pass."""
    files = {role: out / f"{role}.onnx" for role in group}
    halves = {role: out / f"{role}.f16.onnx" for role in group}
    for role, part in group.items():
        for path, width in ((files[role], "f32"), (halves[role], "f16")):
            part.export(path, width)  # type: ignore[arg-type]
            if path.with_name(path.name + BESIDE).exists():
                raise UsageError(
                    f"{path.name} is beyond the 2 GB that a model of a bundle may have"
                )
    entries: Entries = {
        role: part.describe(files[role]) for role, part in group.items()
    }
    ways: dict[AskedPrecision, Way] = {
        "bf16": opened(files, entries, "bf16"),
        "f16": _in_half(group),
    }
    variants: dict[AskedPrecision, Mapping[str, Path]] = {"f16": halves}
    first = next(iter(entries.values()))
    if int8 and isinstance(first, GraderEntry):
        own = {role: out / f"{role}.int8.onnx" for role in group}
        unseen = phantom_samples(CALIBRATION_PHANTOMS, start=len(samples))
        for role, path in own.items():
            quantize(
                files[role],
                grader_inputs(first, unseen),
                path,
            )
        variants["int8"] = own
        ways["int8"] = opened(own, entries, "int8")
    sizes = [
        f"{role} {path.stat().st_size / 1e6:.1f} MB" for role, path in files.items()
    ]
    say(
        f"{', '.join(sizes)} in f32; {', '.join(ways)} tried on {len(samples)} phantoms"
    )
    return prove(entries, out, samples, ways, variants, say)


def _in_half(group: Mapping[str, Part]) -> Way:
    """Return a function that opens models in PyTorch's half precision, as a GPU computes their f16 files."""

    @contextmanager
    def way() -> Iterator[list[Model]]:
        yield [
            TorchRunner(
                part.module,
                part.face.outputs[0],
                half=True,
            )
            for part in group.values()
        ]

    return way


def _figures_of(content: Mapping[str, Any]) -> dict[str, float]:
    """Return a checkpoint's last figures on held-out data."""
    history = content.get("history", [])
    kept = ("metric", "prior", "best")
    return {
        key: round(float(history[-1][key]), 4)
        for key in kept
        if history and key in history[-1]
    }
