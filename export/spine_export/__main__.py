"""``spine-engine export detector|grader|bundle``: checkpoints to ONNX, and two models to a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from spine_export.bundle import write_bundle, write_grader_card
from spine_export.onnx import export_detector, export_grader
from spine_export.parity import reduced_precisions
from spine_training.grader.data import HELD_OUT_SEED, load_crops

GRADER_DATA: Final = (
    "grader: synthetic phantom studies of this project (Apache-2.0), as severe as the RSNA 2024 training labels; no "
    "image of a patient was used, so its grades of patients are a demonstration without clinical meaning"
)

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


@app.command("detector")
def detector_command(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of spine_training.detector.")],
    out: Annotated[Path, typer.Option(help="The ONNX file to write.")],
) -> None:
    """Export a detector.

    Example: spine-engine export detector build/detector/last.pt --out build/detector.onnx.
    """
    export_detector(checkpoint, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


@app.command("grader")
def grader_command(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of spine_training.grader.")],
    out: Annotated[Path, typer.Option(help="Folder for grader.onnx and its card, grader.json.")],
    figures: Annotated[Path | None, typer.Option(help="What spine_training.grader evaluate printed.")] = None,
    crops: Annotated[Path | None, typer.Option(help="Held-out crops to prove reduced precisions on.")] = None,
    studies: Annotated[int, typer.Option(min=1, help="How many of them.")] = 40,
) -> None:
    """Export a grader; without --crops it may run in float32 only.

    Example: spine-engine export grader build/grader/last.pt --out build --figures figures.json --crops build/crops
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "grader.onnx"
    model = export_grader(checkpoint, path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    precisions = ["f32"]
    if crops is not None:
        grids = load_crops(crops, range(HELD_OUT_SEED, HELD_OUT_SEED + studies), slice(1)).grids
        for precision, parity in reduced_precisions(path.read_bytes(), grids).items():
            print(f"{precision}: {'passed' if parity.passed else 'refused'}, {parity}")
            precisions += [str(precision)] * parity.passed
    found = {} if figures is None else card_metrics(json.loads(figures.read_text(encoding="utf-8")))
    write_grader_card(out / "grader.json", model.grader.config, found, [GRADER_DATA], precisions)


@app.command("bundle")
def bundle_command(
    detector: Annotated[Path, typer.Option(help="detector.onnx")],
    detector_card: Annotated[Path, typer.Option(help="Its card, JSON.")],
    grader: Annotated[Path, typer.Option(help="grader.onnx")],
    grader_card: Annotated[Path, typer.Option(help="Its card, JSON.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; its files are replaced.")],
    name: Annotated[str, typer.Option()] = "lumbar-small",
    version: Annotated[str, typer.Option()] = "0.1.0",
) -> None:
    """Put a detector and a grader into a bundle, and open it.

    Example: spine-engine export bundle --detector d.onnx --detector-card d.json --grader g.onnx --grader-card g.json
    --out engine/spine_engine/bundles/lumbar-small
    """
    bundle = write_bundle(detector, detector_card, grader, grader_card, out, name=name, version=version)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {bundle.manifest.name} {bundle.manifest.version}, {size / 1e6:.1f} MB, digest {bundle.digest[:12]}")


def card_metrics(figures: dict[str, Any]) -> dict[str, float]:
    """Return the held-out figures a card carries from what ``evaluate`` printed."""
    exact, strayed = figures["true_boxes"], figures["strayed_boxes"]
    parts = ("canal", "foraminal", "subarticular", "any_severe_canal")
    metrics = {
        "phantom_studies": exact["studies"],
        "phantom_metric": exact["metric"],
        "phantom_metric_strayed_boxes": strayed["metric"],
        "phantom_metric_best_reachable": exact["best"],
        "phantom_metric_prior": exact["prior"],
        "phantom_calibration_error": exact["calibration_error"],
        **{f"phantom_metric_{part}": exact[part] for part in parts},
        **{f"phantom_difference_{kind}": value for kind, value in figures.get("consistency", {}).items()},
    }
    return {key: round(float(value), 4) for key, value in metrics.items()}


if __name__ == "__main__":
    app()
