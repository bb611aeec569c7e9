"""``python -m spine_training.detector train|evaluate|cross-validate``: train the disc detector, see what it finds."""

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
from spine_training.detector.train import DETECTOR_FIT, EPOCH_STEPS, TrainingExams, train
from spine_training.drawing import NoMatplotlibError
from spine_training.fit import Machine, read_checkpoint
from spine_training.folds import FOLDS

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

Data = Annotated[
    list[Path], typer.Option(help="Folder with lumbar-mri/ and spider-slices/, or in RSNA's layout; can be repeated.")
]
Picture = Annotated[Path | None, typer.Option(help="File for a picture of the errors by level, .svg.")]
Cache = Annotated[Path, typer.Option(help="Folder where the volumes of RSNA sets are kept once read.")]
DEFAULT_CACHE: Final = Path("build/detector-cache")


@app.command("train")
def train_command(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and the curves.")],
    fold: Annotated[int, typer.Option(help="Fold held out, 0 to 4; -1 trains on everything.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help=f"Of {EPOCH_STEPS} batches each.")] = DETECTOR_FIT.epochs,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = DETECTOR_FIT.learning_rate,
    seed: Annotated[int, typer.Option()] = DETECTOR_FIT.seed,
    phantoms: Annotated[int, typer.Option(min=0, help="Phantom studies mixed in.")] = 0,
    start: Annotated[Path | None, typer.Option(help="A checkpoint to begin with.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last finished epoch.")] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU where there is one.")] = "auto",
    precision: Annotated[Literal["bf16", "f32"], typer.Option(help="Of the forward pass.")] = DETECTOR_FIT.precision,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw slices.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of PyTorch.")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder for the volumes of RSNA sets once read; OUT/cache by default."),
    ] = None,
) -> None:
    """Train a detector.

    Example: spine-engine train detector --data exams --out build/detector
    """
    options = replace(DETECTOR_FIT, epochs=epochs, learning_rate=learning_rate, seed=seed, precision=precision)
    exams = TrainingExams.of(load_data(data, cache or out / "cache"), fold, phantoms=phantoms)
    typer.echo(exams.data, err=True)
    machine = Machine(device=device, threads=threads, workers=workers)
    train(exams, out, options, machine=machine, start=start, resume=resume)
    typer.echo(out / "last.pt")


@app.command("evaluate")
def evaluate_command(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint (.pt) or an exported model (.onnx).")],
    data: Data,
    fold: Annotated[int, typer.Option(help="The fold the checkpoint did not see; -1: all exams.")] = 0,
    precision: Annotated[Literal["f32", "bf16"], typer.Option(help="Of an exported model, under OpenVINO.")] = "f32",
    rows: Annotated[Path | None, typer.Option(help="File for every disc, a line of JSON each.")] = None,
    picture: Picture = None,
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """Print held-out figures per source and contrast.

    Example: python -m spine_training.detector evaluate build/detector/last.pt --data exams --fold 0
    """
    onnx = checkpoint.suffix == ".onnx"
    backend = open_backend(checkpoint, precision=precision, threads=2) if onnx else TorchBackend(checkpoint)
    found = evaluate(load_data(data, cache), backend, fold)
    print(table(found))
    if rows is not None:
        rows.write_text(rows_as_json(found) + "\n")
    _draw(picture, found)


@app.command("cross-validate")
def cross_validate_command(
    checkpoints: Annotated[str, typer.Argument(help="Path of the checkpoints, {fold} standing for the fold's number.")],
    data: Data,
    fold: Annotated[
        list[int] | None, typer.Option(min=0, max=FOLDS - 1, help="Judge this fold only; can be repeated.")
    ] = None,
    crops: Annotated[bool, typer.Option("--crops", help="Judge narrower fields of view too.")] = False,
    rows: Annotated[Path | None, typer.Option(help="File for every disc, a line of JSON each.")] = None,
    picture: Picture = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="File for a page of figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """Print one table of the exams of all folds, each judged by the checkpoint that never saw it.

    Example: python -m spine_training.detector cross-validate "build/fold{fold}/last.pt" --data exams
    """
    found: dict[str, list[Row]] = {}
    for number, by_view in cross_validate(load_data(data, cache), checkpoints, fold or range(FOLDS), crops=crops):
        typer.echo(f"fold {number} done", err=True)
        for view, discs in by_view.items():
            found.setdefault(view, []).extend(discs)
    if as_json:
        typer.echo(json.dumps({view: as_dicts(discs) for view, discs in found.items()}))
    else:
        typer.echo("\n\n".join(table(discs, view) for view, discs in found.items()))
    if rows is not None:
        rows.write_text(rows_as_json(found["whole"]) + "\n")
    _draw(picture, found["whole"])
    if markdown_file is not None:
        nets = [_net(Path(checkpoints.replace("{fold}", str(number)))) for number in fold or range(FOLDS)]
        markdown_file.write_text(page(found, nets))


def _draw(picture: Path | None, rows: list[Row]) -> None:
    """Write the picture that was asked for; without matplotlib say so, the figures being printed."""
    if picture is None:
        return
    try:
        write_picture(picture, rows)
    except NoMatplotlibError as error:
        typer.echo(str(error), err=True)


def _net(checkpoint: Path) -> str:
    """How a checkpoint was trained, in words."""
    content = read_checkpoint(checkpoint)
    batches = content.get("epoch", 0) * content.get("settings", {}).get("steps", 0)
    return f"{content.get('settings', {}).get('data', 'unknown exams')}: {batches} batches"


if __name__ == "__main__":
    app()
