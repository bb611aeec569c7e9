"""``python -m spine_training.grader evaluate``: score a grader on phantoms that it was never trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import track

from spine_engine.phantom.rsna import study_seeds
from spine_training.grader.commands import Workers, console, cut_missing
from spine_training.grader.evaluate import consistency, report
from spine_training.grader.grids import TRUE_BOXES, BoxJitter, load_grids
from spine_training.grader.model import MirrorAveraged, load_grader
from spine_training.grader.phantoms import HELD_OUT_SEED, PhantomSource

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
)


@app.command("evaluate")
def evaluate_command(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint of train grader or whole-study.")
    ],
    cache: Annotated[
        Path,
        typer.Option(
            help="Folder that keeps the phantoms' grids; missing ones are made."
        ),
    ],
    studies: Annotated[
        int, typer.Option(min=1, help="Number of held-out phantom studies.")
    ] = 400,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of other phantoms, as for spine-engine phantom; without it, the held-out ones."
        ),
    ] = None,
    consistency_studies: Annotated[
        int,
        typer.Option(
            min=0, help="Number of studies that are mirrored and posed; 0 for none."
        ),
    ] = 12,
    workers: Workers = 1,
    threads: Annotated[int, typer.Option(min=1, help="Number of CPU threads.")] = 1,
) -> None:
    """Score a grader on phantoms with true and with strayed boxes, and print the figures as JSON.

    Example: python -m spine_training.grader evaluate build/grader/last.pt --cache build/grids > grader.json
    """
    torch.set_num_threads(threads)
    grader = load_grader(checkpoint)
    model = MirrorAveraged(grader)
    source = (
        PhantomSource.held_out(studies)
        if seed is None
        else PhantomSource(tuple(study_seeds(studies, seed)))
    )
    jitter = BoxJitter(boxes=2)
    cut_missing(source, grader.config, jitter, cache, workers)
    grids = load_grids(source, grader.config, jitter, cache)
    figures = {
        "studies": studies,
        "true_boxes": report(model, grids, TRUE_BOXES),
        "strayed_boxes": report(model, grids, TRUE_BOXES + 1),
    }
    if consistency_studies and grader.config.task == "level":
        few = range(HELD_OUT_SEED, HELD_OUT_SEED + consistency_studies)
        figures["consistency"] = consistency(
            model,
            grader.config,
            track(
                few,
                "mirrors and poses",
                console=console,
            ),
        )
    print(json.dumps(figures, indent=2))


@app.callback()
def _group() -> None:
    pass


if __name__ == "__main__":
    app()
