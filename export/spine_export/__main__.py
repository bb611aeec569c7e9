"""``spine-engine export``: checkpoints to ONNX, to bundles, and to engines built ahead of time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from spine_engine.bundle import Bundle
from spine_engine.errors import UsageError
from spine_engine.phantom.samples import PHANTOMS, phantom_samples
from spine_export.bundle import write_bundle
from spine_export.engines import build_engines
from spine_export.onnx import Width
from spine_export.parts import Part, detector_part, grader_part, spinenet_part
from spine_export.sources import BundleRecipe, Card, PipelineConfig, SpineNetFiles
from spine_export.verify import agrees, verify
from spine_training.checkpoints import Averaging
from spine_training.evaluation.calibration import read_calibration
from spine_training.spinenet import SpineNetKind

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
)

Onnx = Annotated[Path, typer.Option(help="The ONNX file to write.")]
Precision = Annotated[
    Width, typer.Option(help="Number format of the file: f32, or f16 for GPUs.")
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Compare the file with PyTorch in every runtime of this machine.",
    ),
]
Worst = Annotated[
    Path | None,
    typer.Option(help="Folder for the worst case of each way, as .npz; with --verify."),
]
Described = Annotated[
    Path | None,
    typer.Option(
        help="JSON: backbone, recipe, pool, ...; for a file of weights of the older pipelines."
    ),
]
WeightsOption = Annotated[
    Averaging | None,
    typer.Option(
        "--weights",
        help="Which weights of a file that has both; averaged ones (ema) by default.",
    ),
]


@app.command("detector")
def detector_command(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of train detector.")],
    out: Onnx,
    precision: Precision = "f32",
    check: Verify = False,
    worst: Worst = None,
) -> None:
    """Export a detector.

    Example: spine-engine export detector build/detector/last.pt --out build/detector.onnx --verify
    """
    _export(
        detector_part(checkpoint),
        out,
        precision,
        check,
        worst,
    )


@app.command("grader")
def grader_command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint of train grader or whole-study, or a file of weights."
        ),
    ],
    out: Onnx,
    described: Described = None,
    weights: WeightsOption = None,
    precision: Precision = "f32",
    check: Verify = False,
    worst: Worst = None,
) -> None:
    """Export a grader of either kind, ours or of the older pipelines.

    Example: spine-engine export grader coatnet.pt --described coatnet.json --out coatnet.onnx --verify
    """
    config = None if described is None else PipelineConfig.read(described)
    _export(
        grader_part(checkpoint, config, weights=weights),
        out,
        precision,
        check,
        worst,
    )


@app.command("spinenet")
def spinenet_command(
    kind: Annotated[SpineNetKind, typer.Argument(help="Kind of the network.")],
    checkpoint: Annotated[
        Path, typer.Argument(help="Published checkpoint of the network.")
    ],
    out: Onnx,
    precision: Precision = "f32",
    check: Verify = False,
    worst: Worst = None,
) -> None:
    """Export one of SpineNet's networks. Its licence covers weights and outputs, and is non-commercial.

    Example: spine-engine export spinenet vfr detect-vfr.pt --out vfr.onnx
    """
    _export(
        spinenet_part(checkpoint, kind),
        out,
        precision,
        check,
        worst,
    )


@app.command("bundle")
def bundle_command(
    out: Annotated[
        Path, typer.Option(help="Folder of the bundle; its files are replaced.")
    ],
    name: Annotated[
        str, typer.Option(help="Name of the bundle: letters, digits and dashes.")
    ],
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "0.1.0",
    detector: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint of train detector, its ONNX file, a bundle, or packaged, the default."
        ),
    ] = None,
    vfr: Annotated[
        Path | None, typer.Option(help="SpineNet's detector, in place of --detector.")
    ] = None,
    appearance: Annotated[
        Path | None, typer.Option(help="SpineNet's appearance network; with --vfr.")
    ] = None,
    context: Annotated[
        Path | None, typer.Option(help="SpineNet's context network; with --vfr.")
    ] = None,
    grader: Annotated[
        Path | None, typer.Option(help="Checkpoint of train grader, or weights.")
    ] = None,
    grader_described: Described = None,
    whole_study: Annotated[
        Path | None, typer.Option(help="Checkpoint of train whole-study, or weights.")
    ] = None,
    whole_study_described: Described = None,
    weights: WeightsOption = None,
    calibration: Annotated[
        Path | None, typer.Option(help="JSON file that train calibration wrote.")
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(help="Licence, intended use, training data and metrics, JSON."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also try INT8 for the graders.")
    ] = False,
    phantoms: Annotated[
        int,
        typer.Option(min=1, help="Number of phantoms that precisions are compared on."),
    ] = PHANTOMS,
) -> None:
    """Export checkpoints into a bundle, find the precisions they may run in, and open it.

    Example: spine-engine export bundle --detector build/detector/last.pt --grader build/grader/last.pt
    --name mine --out build/bundle
    """
    described = {
        "grader": grader_described,
        "whole_study_grader": whole_study_described,
    }
    recipe = BundleRecipe(
        name=name,
        version=version,
        detector=_detector(detector, vfr, appearance, context),
        grader=grader,
        whole_study=whole_study,
        described={
            role: PipelineConfig.read(path)
            for role, path in described.items()
            if path is not None
        },
        weights=weights,
        calibration=None if calibration is None else read_calibration(calibration),
        card=Card() if card is None else Card.read(card),
        int8=int8,
        phantoms=phantoms,
    )
    bundle = write_bundle(out, recipe)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(
        f"{out}: {bundle.manifest.name} {bundle.manifest.version}, {size / 1e6:.1f} MB, digest {bundle.digest[:12]}"
    )


@app.command("engines")
def engines_command(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]", help="The bundle; by default the packaged one."
        ),
    ] = None,
    capability: Annotated[
        str, typer.Option(help="Compute capability of the GPU that will run them.")
    ] = "sm89",
    runtime: Annotated[
        Literal["tensorrt-rtx", "tensorrt"],
        typer.Option(help="tensorrt needs that GPU."),
    ] = "tensorrt-rtx",
) -> None:
    """Build a bundle's engines ahead of time, into the cache that runs look in; TensorRT-RTX needs no GPU for it.

    Example: spine-engine export engines ./my-bundle --capability sm89
    """
    build_engines(
        Bundle.open(bundle),
        capability,
        runtime=runtime,
    )


def _detector(
    own: Path | None,
    vfr: Path | None,
    appearance: Path | None,
    context: Path | None,
) -> Path | SpineNetFiles | None:
    if vfr is None and appearance is None and context is None:
        return own
    if own is not None or vfr is None or appearance is None or context is None:
        raise UsageError(
            "SpineNet's detector is --vfr, --appearance and --context together, without --detector"
        )
    return SpineNetFiles(
        vfr=vfr,
        appearance=appearance,
        context=context,
    )


def _export(
    part: Part,
    out: Path,
    precision: Width,
    check: bool,
    worst: Path | None,
) -> None:
    """Write an ONNX file, and print how it compares with its checkpoint."""
    if worst is not None and not check:
        raise UsageError("--worst keeps what --verify finds: give both")
    part.export(out, precision)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    if not check:
        return
    outcomes = verify(
        part.module,
        out,
        part.describe(out),
        precision,
        phantom_samples(),
        worst,
    )
    for way, outcome in outcomes.items():
        print(f"  {way}: {outcome}")
    if not agrees(outcomes, precision):
        print("the exported file does not give the model's answers")
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
