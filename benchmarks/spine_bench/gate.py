"""Which studies are refused a grade: lumbar spines, the same made unfit, and other parts of the body."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from spine_bench.findings import Findings, Table, progress
from spine_engine import Stack, Study, StudyPipeline
from spine_engine.dicom import discover, read_unit
from spine_engine.dicom.discovery import WorkUnit
from spine_engine.dicom.overrides import RoleOverrides
from spine_engine.errors import UsageError
from spine_engine.phantom.samples import phantom_samples
from spine_engine.pipeline.gate import TURNS

Change = Callable[[Stack], Stack]

SEED: Final = 0


def measure(
    lumbar: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="DIR",
            help="Studies of lumbar spines; $SPINE_REAL_DATA/studies by default.",
        ),
    ] = None,
    other: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Studies of other parts; $SPINE_REAL_DATA/not-lumbar by default.",
        ),
    ] = None,
    phantoms: int = 20,
    unfit: Annotated[
        int, typer.Option(help="Lumbar studies that are made unfit, in six ways each.")
    ] = 25,
) -> Findings:
    """Count the studies that are graded and refused, by what they are."""
    data = os.environ.get("SPINE_REAL_DATA")
    lumbar = lumbar or (Path(data, "studies") if data else None)
    other = other or (Path(data, "not-lumbar") if data else None)
    counts: dict[str, Counter[str]] = {}
    with StudyPipeline.open() as pipeline:

        def note(what: str, study: Study) -> None:
            result = pipeline.grade(study)
            reason = str(result.reason) if result.reason else "graded"
            counts.setdefault(what, Counter())[reason] += 1

        good = [sample.study for sample in phantom_samples(phantoms)]
        for study in good:
            note("phantoms", study)
        for study in _studies(lumbar):
            note("lumbar spines", study)
            if len(good) < phantoms + unfit:
                good.append(study)
        for study in _studies(other):
            note("other parts", study)
        for study in good[-unfit:]:
            for name, change in _changes():
                note(name, _changed(study, change))
    graded = {what: count["graded"] for what, count in counts.items()}
    total = {what: count.total() for what, count in counts.items()}
    return Findings(
        tables=(
            Table(
                title="Graded or refused",
                columns=("studies", "number", "graded", "refused"),
                rows=[
                    (what, str(total[what]), str(graded[what]), _reasons(count))
                    for what, count in counts.items()
                ],
            ),
        ),
        record={what: dict(count) for what, count in counts.items()},
    )


def _reasons(count: Counter[str]) -> str:
    return ", ".join(
        f"{reason} {n}" for reason, n in sorted(count.items()) if reason != "graded"
    )


def _studies(folder: Path | None) -> Iterator[Study]:
    if folder is None:
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder of studies")
    overrides = RoleOverrides.find(folder)
    for unit in discover(folder):
        if isinstance(unit, WorkUnit):
            progress(unit.key)
            yield from read_unit(folder, unit, overrides).studies


def _changes() -> Iterator[tuple[str, Change]]:
    random = np.random.default_rng(SEED)
    for turn in TURNS:
        yield f"turned: {turn.__name__.strip('_').replace('_', ' ')}", turn
    yield (
        "slices dealt",
        lambda stack: replace(
            stack, pixels=stack.pixels[random.permutation(len(stack.pixels))]
        ),
    )
    yield (
        "noise",
        lambda stack: replace(
            stack,
            pixels=random.integers(0, 1000, stack.pixels.shape).astype(np.uint16),
        ),
    )


def _changed(study: Study, change: Change) -> Study:
    series = (
        replace(one, stacks=tuple(map(change, one.stacks))) for one in study.series
    )
    return replace(study, series=tuple(series))
