"""``spine-engine tune``."""

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
"""Studies to walk where none are given: alike in size, so a few do."""
SEED: Final = 77
MOST: Final = 64
"""Of the studies given, the first this many are walked."""


def tune(
    folder: Annotated[
        Path | None, typer.Option("--input", metavar="DIR", help="Studies like yours; phantoms if not given.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Bundle of models; the packaged one if not given.")
    ] = None,
    backend: Annotated[str, typer.Option(help=f"Runtime of the models: {', '.join(BACKENDS)}.")] = "openvino",
    device: Annotated[str, typer.Option(help="Device asked of the runtime.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="How often each setting is measured.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure how this machine runs a bundle fastest, and remember it for 'run'. Takes a minute or two.

    What the command line of 'run' says goes before what was found.

    Example: spine-engine tune --input exams
    """
    from spine_engine.bundle import Bundle
    from spine_engine.options import RunOptions, usable_cpus
    from spine_engine.run.tuning import Workload, chosen, measure, remember, remembered, settings_to_try

    opened = Bundle.open(bundle)
    options = RunOptions(backend=backend, device=device)
    settings = settings_to_try(options, usable_cpus())
    with studies_to_walk(folder) as root:
        workload = Workload(root=root, units=_units(root), bundle=opened, options=options)
        measured = measure(workload, settings, rounds=rounds, done=lambda one: typer.echo(_line(one), err=True))
    best = chosen(measured)
    remember(opened, options, best)
    if as_json:
        record = {"chosen": asdict(best.setting), "measured": [asdict(one) for one in measured]}
        typer.echo(json.dumps(record, indent=2))
        return
    default = measured[0]
    for one in sorted(measured, key=lambda one: -one.rate):
        ratio = f"{one.rate / default.rate:.2f} x the default" if default.rate else ""
        typer.echo(f"{_line(one):72} {ratio} {'<- kept' if one is best else ''}".rstrip())
    if remembered(opened, options) == best.setting:
        typer.echo("'spine-engine run' uses it from now on, with this bundle, backend and device.")
    else:
        typer.echo("It could not be kept: there is no safe cache folder (see 'spine-engine doctor').")


def _line(one: Measured) -> str:
    said = f"{one.rate:6.2f} studies/s" if one.failure is None else f"cannot run: {one.failure}"
    return f"{one.setting.words}: {said}"


@contextmanager
def studies_to_walk(folder: Path | None) -> Iterator[Path]:
    """Lend the folder given, or one with phantoms."""
    if folder is not None:
        yield folder
        return
    from spine_engine.phantom import write_studies

    with tempfile.TemporaryDirectory(prefix="spine-engine-tune-") as made:
        typer.echo(f"making {PHANTOMS} phantom studies", err=True)
        for _ in write_studies(Path(made), PHANTOMS, SEED):
            pass
        yield Path(made)


def _units(root: Path) -> list[WorkUnit]:
    from spine_engine.dicom import WorkUnit, discover
    from spine_engine.run.folders import check_input

    found = (item for item in discover(check_input(root)) if isinstance(item, WorkUnit) and item.study_id is not None)
    units = list(islice(found, MOST))
    if not units:
        raise UsageError(f"{root} holds no DICOM study to tune with; name another, or none to use phantoms")
    return units
