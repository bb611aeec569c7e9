"""``python -m spine_training.detector train|evaluate|cross-validate``: train the disc detector and judge it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from spine_engine.backends import open_backend
from spine_training.detector.data import load_data
from spine_training.detector.evaluate import TorchBackend, cross_validate, evaluate
from spine_training.detector.figures import Row, as_dicts, page, rows_as_json, table
from spine_training.detector.pictures import write_picture
from spine_training.detector.train import (
    DETECTOR_FIT,
    EPOCH_STEPS,
    TrainingExams,
    train,
)
from spine_training.drawing import NoMatplotlibError
from spine_training.fit import Machine, Session, read_checkpoint
from spine_training.folds import FOLDS

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
)

Data = Annotated[
    list[Path],
    typer.Option(
        help="Folder with lumbar-mri/ and spider-slices/, or in RSNA's layout; repeatable."
    ),
]
Picture = Annotated[
    Path | None, typer.Option(help="SVG file to draw the errors by level to.")
]
Cache = Annotated[
    Path, typer.Option(help="Folder that keeps the volumes of RSNA sets once read.")
]
DEFAULT_CACHE: Final = Path("build/detector-cache")


@app.command("train")
def train_command(
    data: Data,
    out: Annotated[
        Path, typer.Option(help="Folder for the checkpoint and the curves.")
    ],
    fold: Annotated[
        int, typer.Option(help="Fold held out, 0 to 4; -1 trains on everything.")
    ] = 0,
    epochs: Annotated[
        int, typer.Option(min=1, help=f"Epochs of {EPOCH_STEPS} batches each.")
    ] = DETECTOR_FIT.epochs,
    learning_rate: Annotated[
        float, typer.Option(help="Peak learning rate.")
    ] = DETECTOR_FIT.learning_rate,
    seed: Annotated[
        int, typer.Option(help="Seed of every random draw.")
    ] = DETECTOR_FIT.seed,
    phantoms: Annotated[
        int, typer.Option(min=0, help="Number of phantom studies mixed in.")
    ] = 0,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint whose averaged weights replace the random first ones."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue after the last finished epoch.")
    ] = False,
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(help="Device; auto takes a GPU where there is one."),
    ] = "auto",
    precision: Annotated[
        Literal["bf16", "f32"], typer.Option(help="Number format of the forward pass.")
    ] = DETECTOR_FIT.precision,
    workers: Annotated[
        int, typer.Option(min=0, help="Number of processes that draw slices.")
    ] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Number of PyTorch's CPU threads.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps the volumes of RSNA sets once read; OUT/cache by default."
        ),
    ] = None,
) -> None:
    """Train a detector.

    Example: spine-engine train detector --data exams --out build/detector
    """
    options = replace(
        DETECTOR_FIT,
        epochs=epochs,
        learning_rate=learning_rate,
        seed=seed,
        precision=precision,
    )
    machine = Machine(
        device=device,
        threads=threads,
        workers=workers,
    )
    session = Session(
        out=out,
        machine=machine,
        start=start,
        resume=resume,
    )
    exams = TrainingExams.of(
        load_data(data, cache or out / "cache"),
        fold,
        phantoms=phantoms,
    )
    typer.echo(exams.data, err=True)
    train(exams, session, options)
    typer.echo(out / "last.pt")


@app.command("evaluate")
def evaluate_command(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint (.pt) or an exported model (.onnx).")
    ],
    data: Data,
    fold: Annotated[
        int, typer.Option(help="Fold that the checkpoint did not see; -1: all exams.")
    ] = 0,
    precision: Annotated[
        Literal["f32", "bf16"],
        typer.Option(help="Precision of an exported model under OpenVINO."),
    ] = "f32",
    rows: Annotated[
        Path | None, typer.Option(help="File to write a line of JSON to for each disc.")
    ] = None,
    picture: Picture = None,
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """Print held-out figures per source and contrast.

    Example: python -m spine_training.detector evaluate build/detector/last.pt --data exams --fold 0
    """
    onnx = checkpoint.suffix == ".onnx"
    backend = (
        open_backend(
            checkpoint,
            precision=precision,
            threads=2,
        )
        if onnx
        else TorchBackend(checkpoint)
    )
    discs = evaluate(
        load_data(data, cache),
        backend,
        fold,
    )
    print(table(discs))
    if rows is not None:
        rows.write_text(rows_as_json(discs) + "\n")
    _draw(picture, discs)


@app.command("cross-validate")
def cross_validate_command(
    checkpoints: Annotated[
        str,
        typer.Argument(
            help="Path of the checkpoints, with {fold} in place of the fold's number."
        ),
    ],
    data: Data,
    fold: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            max=FOLDS - 1,
            help="Judge this fold alone; repeatable.",
        ),
    ] = None,
    crops: Annotated[
        bool, typer.Option("--crops", help="Also judge narrower fields of view.")
    ] = False,
    rows: Annotated[
        Path | None, typer.Option(help="File to write a line of JSON to for each disc.")
    ] = None,
    picture: Picture = None,
    markdown_file: Annotated[
        Path | None,
        typer.Option("--markdown", help="Markdown file to write the figures to."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON.")
    ] = False,
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """Print one table of the exams of all folds, each judged by the checkpoint that never saw it.

    Example: python -m spine_training.detector cross-validate "build/fold{fold}/last.pt" --data exams
    """
    discs_by_view: dict[str, list[Row]] = {}
    for number, by_view in cross_validate(
        load_data(data, cache),
        checkpoints,
        fold or range(FOLDS),
        crops=crops,
    ):
        typer.echo(f"fold {number} done", err=True)
        for view, discs in by_view.items():
            discs_by_view.setdefault(view, []).extend(discs)
    if as_json:
        typer.echo(
            json.dumps({view: as_dicts(discs) for view, discs in discs_by_view.items()})
        )
    else:
        typer.echo(
            "\n\n".join(table(discs, view) for view, discs in discs_by_view.items())
        )
    if rows is not None:
        rows.write_text(rows_as_json(discs_by_view["whole"]) + "\n")
    _draw(picture, discs_by_view["whole"])
    if markdown_file is not None:
        nets = [
            _net(Path(checkpoints.replace("{fold}", str(number))))
            for number in fold or range(FOLDS)
        ]
        markdown_file.write_text(page(discs_by_view, nets))


def _draw(picture: Path | None, rows: list[Row]) -> None:
    """Write the picture, if a path is given; print one line where matplotlib is not installed."""
    if picture is None:
        return
    try:
        write_picture(picture, rows)
    except NoMatplotlibError as error:
        typer.echo(str(error), err=True)


def _net(checkpoint: Path) -> str:
    """Describe the training of a checkpoint in words."""
    content = read_checkpoint(checkpoint)
    batches = content.get("epoch", 0) * content.get("settings", {}).get("steps", 0)
    return (
        f"{content.get('settings', {}).get('data', 'unknown exams')}: {batches} batches"
    )


if __name__ == "__main__":
    app()
