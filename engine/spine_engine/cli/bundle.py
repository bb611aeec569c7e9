"""``spine-engine bundle verify|show``: verifies or describes a bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final, cast, get_args

import typer
from rich.console import Console
from rich.table import Table

from spine_engine.backends import AskedPrecision
from spine_engine.bundle import Bundle
from spine_engine.bundle.examination import apart, examine, time_allowed_s
from spine_engine.bundle.manifest import (
    DetectorEntry,
    GraderEntry,
    ModelEntry,
    manifest_text,
)
from spine_engine.errors import UsageError
from spine_engine.options import RunOptions

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Verify or describe a bundle.",
)

PARITY_S: Final = 3600.0
"""Comparing answers on many phantoms, and building engines for a GPU, take minutes."""

Folder = Annotated[
    Path | None,
    typer.Argument(
        metavar="[DIR]", help="Folder of the bundle; by default the packaged one."
    ),
]


@app.command()
def verify(
    folder: Folder = None,
    backend: Annotated[
        str, typer.Option(help="Runtime that loads the models.")
    ] = "openvino",
    device: Annotated[
        str, typer.Option(help="Device that the models are loaded on.")
    ] = "cpu",
    precision: Annotated[
        str, typer.Option(help=f"Precision: {', '.join(get_args(AskedPrecision))}.")
    ] = "auto",
    parity: Annotated[
        bool,
        typer.Option(
            "--parity",
            help="Also compare the models' outputs with those in float32, on phantoms.",
        ),
    ] = False,
    reference: Annotated[
        str, typer.Option(help="Runtime to compare with, on the CPU in f32.")
    ] = "openvino",
    studies: Annotated[
        int, typer.Option(min=1, help="Number of phantoms to compare on.")
    ] = 8,
    worst: Annotated[
        Path | None,
        typer.Option(help="Folder for the worst case of each model, as .npz."),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Allow any operator, and limit nothing.")
    ] = False,
) -> None:
    """Check the manifest, every digest, and each model's inputs and outputs; with --parity also the outputs' values.

    The models are loaded in a process of its own, with little memory and time, unless --trust is given.

    The exit code is 1 when outputs differ by more than the precision's tolerance.

    Example: spine-engine bundle verify ./my-bundle --parity --reference onnxruntime
    """
    if worst is not None and not parity:
        raise UsageError("--worst keeps what --parity finds: give both")
    if precision not in get_args(AskedPrecision):
        raise UsageError(
            f"--precision must be one of {', '.join(get_args(AskedPrecision))}, got {precision!r}"
        )
    bundle = Bundle.open(folder, trust=trust)
    asked = RunOptions(backend=backend, device=device, precision=precision)
    inside = (
        trust or folder is None or backend == "fake"
    )  # whose models no runtime reads
    opened = _opened(bundle, asked) if inside else _opened_apart(bundle, asked)
    for line in opened:
        typer.echo(line)
    typer.echo(
        f"{bundle.manifest.name} {bundle.manifest.version} is sound, digest {bundle.digest}"
    )
    if parity:
        from spine_engine.pipeline.parity import (
            bundle_parity,
        )  # numba takes a second that only this should pay

        given = (
            bundle,
            RunOptions(backend=reference, precision="f32"),
            asked,
            studies,
            worst,
        )
        found = (
            bundle_parity(*given)
            if inside
            else apart(bundle_parity, *given, bundle=bundle, time_s=PARITY_S)
        )
        for role, one in found.items():
            typer.echo(f"{role}: {one}: {'passed' if one.passed else 'REFUSED'}")
        if not all(one.passed for one in found.values()):
            raise typer.Exit(1)


def _opened_apart(bundle: Bundle, asked: RunOptions) -> list[str]:
    """Try the models in a process of its own, then load them as asked in another. Building engines takes long."""
    begun = time.monotonic()
    examine(bundle)
    left_s = max(1.0, time_allowed_s(bundle) - (time.monotonic() - begun))
    quick = asked.device.upper() == "CPU"
    return cast(
        "list[str]",
        apart(
            _opened, bundle, asked, bundle=bundle, time_s=left_s if quick else PARITY_S
        ),
    )


def _opened(bundle: Bundle, asked: RunOptions) -> list[str]:
    """Load every model as asked, and return a line about each."""
    lines = []
    for role, entry in bundle.manifest.models.by_role().items():
        precision = cast(AskedPrecision, asked.precision)
        model = bundle.open_model(
            entry, name=asked.backend, device=asked.device, precision=precision
        )
        ran = model.device
        model.close()
        lines.append(
            f"{role}: {entry.file} is as the manifest says, on {ran.backend} {ran.device} in {ran.precision}"
        )
    return lines


@app.command()
def show(
    folder: Folder = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the manifest unchanged.")
    ] = False,
) -> None:
    """Show a bundle's manifest: models, inputs, licence, training data, held-out results.

    Example: spine-engine bundle show
    """
    bundle = Bundle.open(folder, trust=True)  # nothing of it runs
    manifest = bundle.manifest
    if as_json:
        typer.echo(manifest_text(manifest), nl=False)
        return
    table = Table(
        title=f"{manifest.name} {manifest.version}",
        show_header=False,
        title_justify="left",
    )
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("digest", bundle.digest)
    table.add_row("licence", manifest.licence)
    table.add_row("intended use", manifest.intended_use)
    for role, entry in manifest.models.by_role().items():
        table.add_row(role, "\n".join(_described(entry)))
    table.add_row("trained on", "\n".join(manifest.training_data))
    table.add_row(
        "held out",
        "\n".join(f"{name}: {value:g}" for name, value in manifest.metrics.items()),
    )
    Console(highlight=False, markup=False).print(table)


def _described(entry: ModelEntry) -> list[str]:
    """Return the lines that describe one model."""
    lines = [
        f"{entry.file}, {entry.size_bytes / 1e6:.1f} MB, runs in {', '.join(entry.precisions)}"
    ]
    for precision, figures in entry.parity.items():
        verdict = "passed" if precision in entry.precisions else "refused"
        values = ", ".join(f"{name} {value:g}" for name, value in figures.items())
        lines.append(f"{precision} {verdict}: {values}")
    if isinstance(entry, DetectorEntry):
        size = f", pixels of {entry.spec.pixel_mm:g} mm" if entry.spec else ""
        lines.append(f"{entry.decoder}, {len(entry.output_channels)} maps{size}")
    if isinstance(entry, GraderEntry):
        shape, spacing = (
            "x".join(f"{value:g}" for value in row)
            for row in (entry.grid.shape, entry.grid.spacing_mm)
        )
        made = (
            f"of {spacing} mm"
            if entry.grid_recipe.is_native
            else f"by the recipe {entry.grid_recipe.name}"
        )
        lines.append(f"channels {', '.join(entry.channels)}; grid {shape} {made}")
        lines.append("calibrated" if entry.calibration else "not calibrated")
    return lines
