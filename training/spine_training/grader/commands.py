"""``spine-engine train grader|whole-study``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from rich.console import Console
from rich.progress import track

from spine_engine.errors import UsageError
from spine_training.backbones import canonical_backbone
from spine_training.curves import HELD_OUT
from spine_training.fit import FitOptions, Machine
from spine_training.grader.evaluate import report
from spine_training.grader.grids import TRUE_BOXES, BoxJitter, GridSet, GridSource, load_grids, make_grids
from spine_training.grader.model import WHOLE_STUDY, Grader, GraderConfig
from spine_training.grader.phantoms import PhantomSource
from spine_training.grader.rsna_grids import RsnaSource
from spine_training.grader.train import GradingOptions, Watch, train
from spine_training.metric import GROUPS
from spine_training.rsna import RsnaSet

console: Final = Console(stderr=True)

WHOLE_STUDY_JITTER: Final = BoxJitter(center_mm=12.0, rotation_deg=6.0)
"""Where the five levels lie in the picture differs from exam to exam; this much more teaches not to rely on it."""

Data = Annotated[Path | None, typer.Option(help="Folder in RSNA's layout: train.csv, its other tables, train_images/.")]
Phantoms = Annotated[int, typer.Option(min=0, help="Without --data: phantom studies to draw and train on.")]
Out = Annotated[Path, typer.Option(help="Folder for the checkpoint and the curves.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for the cut grids; by default OUT/grids.")]
Fold = Annotated[int, typer.Option(help="Fifth of the studies held out and watched, 0 to 4; -1 trains on all.")]
Backbone = Annotated[str, typer.Option(help="A model of timm_3d by name, a .json file that configures one, or ours.")]
Pool = Annotated[Literal["avg", "max"], typer.Option(help="How the last feature maps become one vector.")]
Shape = Annotated[tuple[int, int, int], typer.Option(help="Grid in voxels: down, back, left.")]
Spacing = Annotated[tuple[float, float, float], typer.Option(help="Voxel in mm: down, back, left.")]
Epochs = Annotated[int, typer.Option(min=1)]
BatchSize = Annotated[int, typer.Option(min=2, help="Grids a step, on each device.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Seed = Annotated[int, typer.Option()]
Start = Annotated[Path | None, typer.Option(help="A checkpoint to begin with.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on after the last finished epoch.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU where there is one.")]
Precision = Annotated[Literal["bf16", "f32"], typer.Option(help="Of the forward pass.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that prepare grids and batches.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of PyTorch.")]
Detector = Annotated[
    Path | None,
    typer.Option(help="Detector that finds the levels: bundle, .onnx or .pt; by default the packaged bundle's."),
]

_FIT: Final = FitOptions(epochs=24, learning_rate=2e-3)
_LEVEL: Final = GraderConfig()
_GRADING: Final = GradingOptions()


def train_grader(
    out: Out,
    data: Data = None,
    phantoms: Phantoms = 0,
    cache: Cache = None,
    detector: Detector = None,
    fold: Fold = 0,
    backbone: Backbone = _LEVEL.backbone,
    pool: Pool = _LEVEL.pool,
    shape: Shape = _LEVEL.shape,
    spacing_mm: Spacing = _LEVEL.spacing_mm,
    epochs: Epochs = _FIT.epochs,
    batch: BatchSize = _GRADING.batch,
    learning_rate: Rate = _FIT.learning_rate,
    seed: Seed = _FIT.seed,
    start: Start = None,
    resume: Resume = False,
    device: Device = "auto",
    precision: Precision = "bf16",
    workers: Workers = 1,
    threads: Threads = None,
) -> None:
    """Train a level grader: five conditions at one disc level.

    Example: spine-engine train grader --data rsna-2024 --out build/grader
    """
    config = GraderConfig(backbone=backbone, pool=pool, shape=shape, spacing_mm=spacing_mm)
    options = FitOptions(epochs=epochs, learning_rate=learning_rate, seed=seed, precision=precision)
    machine = Machine(device=device, threads=threads, workers=workers)
    source = _source(data, phantoms, detector)
    _train(config, BoxJitter(), source, out, cache, fold, options, GradingOptions(batch=batch), machine, start, resume)


def train_whole_study(
    out: Out,
    data: Data = None,
    phantoms: Phantoms = 0,
    cache: Cache = None,
    fold: Fold = 0,
    backbone: Backbone = WHOLE_STUDY.backbone,
    pool: Pool = WHOLE_STUDY.pool,
    shape: Shape = WHOLE_STUDY.shape,
    spacing_mm: Spacing = WHOLE_STUDY.spacing_mm,
    epochs: Epochs = _FIT.epochs,
    batch: BatchSize = 8,
    learning_rate: Rate = _FIT.learning_rate,
    seed: Seed = _FIT.seed,
    start: Start = None,
    resume: Resume = False,
    device: Device = "auto",
    precision: Precision = "bf16",
    workers: Workers = 1,
    threads: Threads = None,
) -> None:
    """Train a whole-study grader: all 25 grades from one grid, for studies whose levels are not found.

    Example: spine-engine train whole-study --data rsna-2024 --out build/whole-study
    """
    config = replace(WHOLE_STUDY, backbone=backbone, pool=pool, shape=shape, spacing_mm=spacing_mm)
    options = FitOptions(epochs=epochs, learning_rate=learning_rate, seed=seed, precision=precision)
    machine = Machine(device=device, threads=threads, workers=workers)
    source, grading = _source(data, phantoms, None), GradingOptions(batch=batch)
    _train(config, WHOLE_STUDY_JITTER, source, out, cache, fold, options, grading, machine, start, resume)


def cut_missing(source: GridSource, config: GraderConfig, jitter: BoxJitter, cache: Path, workers: int) -> None:
    """Cut the grids that the cache lacks, with a bar."""
    cut = make_grids(source, config, jitter, cache, workers=max(1, workers))
    count = sum(1 for _ in track(cut, "cutting grids", total=len(source.names), console=console, transient=True))
    if count:
        console.print(f"cut the grids of {count} studies into {cache}")


def _source(data: Path | None, phantoms: int, detector: Path | None) -> RsnaSource | PhantomSource:
    if (data is None) == (phantoms == 0):
        raise UsageError("give either --data, a folder in RSNA's layout, or --phantoms, a number of studies to draw")
    if data is None:
        return PhantomSource.training(phantoms)
    rsna = RsnaSet.open(data)
    if rsna.without_images:
        console.print(f"{rsna.without_images} studies of train.csv have no images here and are left out")
    return RsnaSource(data, tuple(study.study_id for study in rsna.studies), detector)


def _train(
    config: GraderConfig,
    jitter: BoxJitter,
    source: RsnaSource | PhantomSource,
    out: Path,
    cache: Path | None,
    fold: int,
    options: FitOptions,
    grading: GradingOptions,
    machine: Machine,
    start: Path | None,
    resume: bool,
) -> None:
    """Cut what is missing, hold a fold out, train."""
    try:
        config = replace(config, backbone=canonical_backbone(config.backbone))
        Grader(config)
    except ValueError as error:
        raise UsageError(str(error)) from None
    folder = cache or out / "grids"
    cut_missing(source, config, jitter, folder, machine.workers)
    training, held_out = _split(source, fold)
    seen = load_grids(training, config, jitter, folder)
    watch = None if held_out is None else _watch(held_out, config, jitter, folder, machine.workers)
    console.print(f"{len(seen)} studies to train on, {len(seen.places)} grids an epoch")
    data = f"{len(seen)} {source.kind}"
    train(
        seen, config, options, out, grading=grading, data=data, machine=machine, start=start, resume=resume, watch=watch
    )
    console.print(f"{out / 'last.pt'}")


WATCHED_PHANTOMS: Final = 40


def _split(source: RsnaSource | PhantomSource, fold: int) -> tuple[GridSource, GridSource | None]:
    if fold < 0:
        return source, None
    if isinstance(source, PhantomSource):
        return source, PhantomSource.held_out(WATCHED_PHANTOMS)
    training, held_out = source.split(fold)
    return training, held_out if held_out.names else None


def _watch(source: GridSource, config: GraderConfig, jitter: BoxJitter, folder: Path, workers: int) -> Watch:
    """Return what to report of the grader after each epoch: its metric on studies it does not see."""
    cut_missing(source, config, jitter, folder, workers)
    unseen: GridSet = load_grids(source, config, jitter, folder)
    return lambda grader: watched(grader, unseen)


def watched(grader: Grader, unseen: GridSet) -> dict[str, float]:
    """Return what a training reports of studies it does not see: the loss it minimises, the metric and its floors."""
    found = report(grader, unseen, TRUE_BOXES)
    grading = sum(found[group] for group in GROUPS) / len(GROUPS)
    known = [name for name in ("metric", "prior", "best") if name in found]
    return {HELD_OUT + "grading": grading, **{name: found[name] for name in known}}
