"""``python -m spine_training.detector train|evaluate``: train the disc detector on public exams, see what it finds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from spine_engine.backends import open_backend
from spine_engine.detection.spec import DetectorSpec
from spine_training.detector.augment import ExamArrays, arrays_from_exam
from spine_training.detector.evaluate import TorchBackend, evaluate, rows_as_json, table
from spine_training.detector.phantoms import exams_from_phantom
from spine_training.detector.train import TrainOptions, train

PHANTOM_SEED: Final = 700_000
"""First seed of the training phantoms; the demo and the tests use small seeds."""

_DEFAULTS: Final = TrainOptions()

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

Data = Annotated[Path, typer.Option(help="Folder with lumbar-mri/ and spider-slices/.")]


@app.command("train")
def train_command(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, last.pt.")],
    fold: Annotated[int, typer.Option(help="Fold held out, 0 to 4; -1 trains on everything.")] = _DEFAULTS.fold,
    steps: Annotated[int, typer.Option(min=1)] = _DEFAULTS.steps,
    learning_rate: Annotated[float, typer.Option()] = _DEFAULTS.learning_rate,
    seed: Annotated[int, typer.Option()] = _DEFAULTS.seed,
    phantoms: Annotated[int, typer.Option(min=0, help="Phantom studies mixed in.")] = 0,
    start: Annotated[Path | None, typer.Option(help="A checkpoint to begin with.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT/last.pt.")] = False,
) -> None:
    """Train a detector.

    Example: spine-engine train detector --data exams --out build/detector.
    """
    options = TrainOptions(
        steps=steps,
        fold=fold,
        seed=seed,
        start=None if start is None else str(start),
        phantoms=phantoms,
        learning_rate=learning_rate,
    )
    print(train(data, out, options, resume=resume, extra=_phantom_group(phantoms)))


@app.command("evaluate")
def evaluate_command(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint (.pt) or an exported model (.onnx).")],
    data: Data,
    fold: Annotated[int, typer.Option(help="The fold the checkpoint did not see; -1: all exams.")] = 0,
    precision: Annotated[Literal["f32", "bf16"], typer.Option(help="Of an exported model, under OpenVINO.")] = "f32",
    rows: Annotated[Path | None, typer.Option(help="File for every disc, a line of JSON each.")] = None,
) -> None:
    """Print held-out figures per source and contrast.

    Example: python -m spine_training.detector evaluate build/detector/last.pt --data exams --fold 0
    """
    onnx = checkpoint.suffix == ".onnx"
    backend = open_backend(checkpoint, precision=precision, threads=2) if onnx else TorchBackend(checkpoint)
    found = evaluate(data, backend, fold)
    print(table(found))
    if rows is not None:
        rows.write_text(rows_as_json(found) + "\n")


def _phantom_group(count: int) -> dict[str, list[ExamArrays]]:
    """Sagittal series of ``count`` phantom studies as a training group of their own."""
    if not count:
        return {}
    spec = DetectorSpec()
    seeds = range(PHANTOM_SEED, PHANTOM_SEED + count)
    return {"PHANTOM": [arrays_from_exam(exam, spec) for seed in seeds for exam in exams_from_phantom(seed)]}


if __name__ == "__main__":
    app()
