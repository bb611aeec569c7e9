"""``python -m spine_training.grader train|evaluate``: train the level grader on phantoms, and see how well it reads."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track

from spine_training.grader.data import HELD_OUT_SEED, TRAINING_SEED, BoxJitter, CropSet, load_crops, make_crops
from spine_training.grader.evaluate import consistency, predict, report
from spine_training.grader.model import Grader, GraderConfig, MirrorAveraged, load_grader
from spine_training.grader.train import TrainOptions, train

TRUE_BOXES = slice(1)
STRAYED_BOXES = slice(1, 2)

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
console = Console(stderr=True)

Crops = Annotated[Path, typer.Option(help="Folder of cut phantoms; what it lacks is made.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]


@app.command("train")
def train_command(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and curves.")],
    crops: Crops,
    studies: Annotated[int, typer.Option(min=1, help="Phantom studies to train on.")] = 600,
    held_out: Annotated[int, typer.Option(min=0, help="Phantom studies to watch; 0 for none.")] = 60,
    epochs: Annotated[int, typer.Option(min=1)] = 24,
    backbone: Annotated[str, typer.Option(help="A narrow configuration or a name timm_3d knows.")] = "narrow_conv_24",
    start: Annotated[Path | None, typer.Option(help="A checkpoint to begin with.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last finished epoch.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that make crops.")] = 1,
    threads: Threads = 1,
) -> None:
    """Train a grader.

    Example: spine-engine train grader --crops build/crops --out build/grader.
    """
    torch.set_num_threads(threads)
    config = GraderConfig(backbone=backbone)
    seeds = range(TRAINING_SEED, TRAINING_SEED + studies)
    watched = range(HELD_OUT_SEED, HELD_OUT_SEED + held_out)
    _make([*watched, *seeds], config, crops, workers)
    unseen = load_crops(crops, watched, TRUE_BOXES) if held_out else None
    options = TrainOptions(epochs=epochs)
    began = time.monotonic()

    def on_epoch(epoch: int, grader: Grader, figures: dict[str, float]) -> None:
        if unseen is not None:
            figures["metric"] = report(predict(grader, unseen.grids), unseen)["metric"]
        left = (time.monotonic() - began) / (epoch + 1) * (epochs - epoch - 1) / 60
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        console.print(f"epoch {epoch + 1}/{epochs}  {shown}  {left:.0f} min left")

    train(load_crops(crops, seeds), config, options, out, start=start, resume=resume, on_epoch=on_epoch)


@app.command("evaluate")
def evaluate_command(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of train.")],
    crops: Crops,
    studies: Annotated[int, typer.Option(min=1, help="Held-out phantom studies.")] = 200,
    consistency_studies: Annotated[int, typer.Option(min=0, help="Studies mirrored and posed; 0 for none.")] = 12,
    workers: Annotated[int, typer.Option(min=1, help="Processes that make crops.")] = 1,
    threads: Threads = 1,
) -> None:
    """Score a grader on phantoms it has never seen, and print the figures as JSON.

    Example: python -m spine_training.grader evaluate build/grader/last.pt --crops build/crops > grader.json
    """
    torch.set_num_threads(threads)
    grader = load_grader(checkpoint)
    model = MirrorAveraged(grader)
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + studies)
    _make(list(seeds), grader.config, crops, workers)
    figures = {
        "true_boxes": _scored(model, load_crops(crops, seeds, TRUE_BOXES)),
        "strayed_boxes": _scored(model, load_crops(crops, seeds, STRAYED_BOXES)),
    }
    if consistency_studies:
        few = range(HELD_OUT_SEED, HELD_OUT_SEED + consistency_studies)
        figures["consistency"] = consistency(model, grader.config, track(few, "mirrors and poses", console=console))
    print(json.dumps(figures, indent=2))


def _scored(model: MirrorAveraged, crops: CropSet) -> dict[str, float]:
    return report(predict(model, crops.grids), crops)


def _make(seeds: list[int], config: GraderConfig, crops: Path, workers: int) -> None:
    made = make_crops(seeds, config, BoxJitter(), crops, workers=workers)
    missing = sum(1 for _ in track(made, "phantoms", total=len(seeds), console=console))
    if missing:
        console.print(f"made crops of {missing} phantoms")


if __name__ == "__main__":
    app()
