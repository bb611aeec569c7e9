"""``spine-engine tune``: measures the fastest settings of this machine for a bundle and saves them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from spine_engine.backends import BACKENDS
from spine_engine.errors import UsageError

if TYPE_CHECKING:
    from spine_engine.dicom import WorkUnit
    from spine_engine.run.tuning import Measured

PHANTOMS: Final = 4
"""Number of phantoms to run if no studies are given: they are alike in size, so a few are enough."""
SEED: Final = 77
MOST: Final = 64
"""Largest number of given studies to run, the first ones."""


def tune(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="DIR",
            help="Folder of typical studies; by default phantoms.",
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Bundle of models; by default the packaged one."
        ),
    ] = None,
    backend: Annotated[
        str, typer.Option(help=f"Runtime of the models: {', '.join(BACKENDS)}.")
    ] = "openvino",
    device: Annotated[str, typer.Option(help="Device of the runtime.")] = "cpu",
    rounds: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Number of measurements of each setting."
        ),
    ] = 3,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object.")
    ] = False,
) -> None:
    """Measure the fastest settings of this machine for a bundle and save them for 'run', in a minute or two.

    Options on the command line of 'run' take precedence over the saved settings.

    Example: spine-engine tune --input exams
    """
    from spine_engine.bundle.examination import open_examined
    from spine_engine.options import RunOptions, usable_cpus
    from spine_engine.run.tuning import (
        Workload,
        chosen,
        measure,
        remember,
        remembered,
        settings_to_try,
    )

    opened = open_examined(bundle, backend=backend)
    options = RunOptions(backend=backend, device=device)
    settings = settings_to_try(options, usable_cpus())
    with studies_to_walk(folder) as root:
        workload = Workload(
            root=root, units=_units(root), bundle=opened, options=options
        )
        measured = measure(
            workload,
            settings,
            rounds=rounds,
            done=lambda result: typer.echo(_line(result), err=True),
        )
    best = chosen(measured)
    remember(opened, options, best)
    if as_json:
        record = {
            "chosen": asdict(best.setting),
            "measured": [asdict(result) for result in measured],
        }
        typer.echo(json.dumps(record, indent=2))
        return
    default = measured[0]
    for result in sorted(measured, key=lambda result: -result.rate):
        ratio = (
            f"{result.rate / default.rate:.2f} x the default" if default.rate else ""
        )
        typer.echo(
            f"{_line(result):72} {ratio} {'<- chosen' if result is best else ''}".rstrip()
        )
    if remembered(opened, options) == best.setting:
        typer.echo(
            "'spine-engine run' uses it from now on, with this bundle, backend and device."
        )
    else:
        typer.echo(
            "It could not be saved: there is no safe cache folder (see 'spine-engine doctor')."
        )


def _line(result: Measured) -> str:
    outcome = (
        f"{result.rate:6.2f} studies/s"
        if result.failure is None
        else f"cannot run: {result.failure}"
    )
    return f"{result.setting.words}: {outcome}"


@contextmanager
def studies_to_walk(folder: Path | None) -> Iterator[Path]:
    """Yield the given folder, or a temporary folder with phantoms."""
    if folder is not None:
        yield folder
        return
    from spine_engine.phantom import write_studies

    with tempfile.TemporaryDirectory(prefix="spine-engine-tune-") as phantoms:
        typer.echo(f"making {PHANTOMS} phantom studies", err=True)
        for _ in write_studies(Path(phantoms), PHANTOMS, SEED):
            pass
        yield Path(phantoms)


def _units(root: Path) -> list[WorkUnit]:
    from spine_engine.dicom import WorkUnit, discover
    from spine_engine.run.folders import check_input

    items = discover(check_input(root))
    studies = (
        item
        for item in items
        if isinstance(item, WorkUnit) and item.study_id is not None
    )
    units = list(islice(studies, MOST))
    if not units:
        raise UsageError(
            f"{root} holds no DICOM study to tune with; name another, or none to use phantoms"
        )
    return units
