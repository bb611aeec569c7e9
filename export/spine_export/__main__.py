"""``spine-engine export detector|grader|bundle``: checkpoints to ONNX, and to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spine_export.bundle import Card, write_bundle
from spine_export.onnx import export_detector, export_grader
from spine_training.evaluation.calibration import read_calibration

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

Onnx = Annotated[Path, typer.Option(help="The ONNX file to write.")]


@app.command("detector")
def detector_command(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of train detector.")], out: Onnx
) -> None:
    """Export a detector.

    Example: spine-engine export detector build/detector/last.pt --out build/detector.onnx
    """
    export_detector(checkpoint, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


@app.command("grader")
def grader_command(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of train grader or whole-study.")], out: Onnx
) -> None:
    """Export a grader of either kind.

    Example: spine-engine export grader build/grader/last.pt --out build/grader.onnx
    """
    export_grader(checkpoint, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


@app.command("bundle")
def bundle_command(
    out: Annotated[Path, typer.Option(help="Folder of the bundle; its files are replaced.")],
    name: Annotated[str, typer.Option(help="Of the bundle, a plain word.")],
    version: Annotated[str, typer.Option()] = "0.1.0",
    detector: Annotated[Path | None, typer.Option(help="Checkpoint of train detector.")] = None,
    grader: Annotated[Path | None, typer.Option(help="Checkpoint of train grader.")] = None,
    whole_study: Annotated[Path | None, typer.Option(help="Checkpoint of train whole-study.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="What train calibration wrote.")] = None,
    card: Annotated[Path | None, typer.Option(help="Licence, intended use, training data and metrics, JSON.")] = None,
) -> None:
    """Export checkpoints into a bundle, find the precisions they may run in, and open it.

    Example: spine-engine export bundle --detector build/detector/last.pt --grader build/grader/last.pt
    --name mine --out build/bundle
    """
    bundle = write_bundle(
        out,
        name=name,
        version=version,
        detector=detector,
        grader=grader,
        whole_study=whole_study,
        calibration=None if calibration is None else read_calibration(calibration),
        card=None if card is None else Card.read(card),
    )
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {bundle.manifest.name} {bundle.manifest.version}, {size / 1e6:.1f} MB, digest {bundle.digest[:12]}")


if __name__ == "__main__":
    app()
