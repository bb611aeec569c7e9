"""``spine-engine train grader|whole-study``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from rich.console import Console
from rich.progress import track

from spine_engine.errors import UsageError
from spine_training.backbones import canonical_backbone
from spine_training.curves import HELD_OUT
from spine_training.fit import CHECKPOINT, Machine, Session
from spine_training.grader.evaluate import report
from spine_training.grader.grids import (
    TRUE_BOXES,
    BoxJitter,
    GridSet,
    GridSource,
    load_grids,
    make_grids,
)
from spine_training.grader.model import WHOLE_STUDY, Grader, GraderConfig
from spine_training.grader.phantoms import PhantomSource
from spine_training.grader.rsna_grids import RsnaSource
from spine_training.grader.train import GradingOptions, train
from spine_training.metric import GROUPS
from spine_training.optimisation import FitOptions
from spine_training.rsna import RsnaSet

console: Final = Console(stderr=True)

WATCHED_PHANTOMS: Final = 40
"""Phantoms that are held out where the training's studies are phantoms themselves."""

WHOLE_STUDY_JITTER: Final = BoxJitter(center_mm=12.0, rotation_deg=6.0)
"""The levels' place in the picture differs from exam to exam; straying this far teaches not to rely on it."""

Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder in RSNA's layout: train.csv, its other tables, train_images/."
    ),
]
Phantoms = Annotated[
    int,
    typer.Option(
        min=0, help="Number of phantom studies to train on, in place of --data."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for the checkpoint and the curves.")]
Cache = Annotated[
    Path | None,
    typer.Option(help="Folder that keeps the cut grids; OUT/grids by default."),
]
Fold = Annotated[
    int,
    typer.Option(
        help="Fold held out and scored after each epoch, 0 to 4; -1 trains on all studies."
    ),
]
Backbone = Annotated[
    str,
    typer.Option(
        help="Backbone: a name of timm_3d or of this project, or a .json file that configures one."
    ),
]
Pool = Annotated[
    Literal["avg", "max"],
    typer.Option(help="Pooling of the last feature maps into one vector."),
]
Shape = Annotated[
    tuple[int, int, int], typer.Option(help="Grid in voxels: down, back, left.")
]
Spacing = Annotated[
    tuple[float, float, float], typer.Option(help="Voxel in mm: down, back, left.")
]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over all grids.")]
BatchSize = Annotated[int, typer.Option(min=2, help="Grids a step on each device.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]
Start = Annotated[
    Path | None,
    typer.Option(
        help="Checkpoint whose averaged weights replace the random first ones."
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue after the last finished epoch.")
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(help="Device; auto takes a GPU where there is one."),
]
Precision = Annotated[
    Literal["bf16", "f32"], typer.Option(help="Number format of the forward pass.")
]
Workers = Annotated[
    int, typer.Option(min=0, help="Number of processes that prepare grids and batches.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Number of PyTorch's CPU threads.")
]
Detector = Annotated[
    Path | None,
    typer.Option(
        help="Detector that finds the levels: bundle, .onnx or .pt; by default the packaged bundle's."
    ),
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
    options = FitOptions(
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
    plan = _GridPlan(
        source=_source(data, phantoms, detector),
        config=GraderConfig(
            backbone=backbone,
            pool=pool,
            shape=shape,
            spacing_mm=spacing_mm,
        ),
        jitter=BoxJitter(),
        cache=cache or out / "grids",
        fold=fold,
    )
    _train(
        plan,
        options,
        batch,
        Session(
            out=out,
            machine=machine,
            start=start,
            resume=resume,
        ),
    )


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
    """Train a whole-study grader: all 25 grades from one grid, for studies whose levels no detector finds.

    Example: spine-engine train whole-study --data rsna-2024 --out build/whole-study
    """
    options = FitOptions(
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
    plan = _GridPlan(
        source=_source(data, phantoms, None),
        config=replace(
            WHOLE_STUDY,
            backbone=backbone,
            pool=pool,
            shape=shape,
            spacing_mm=spacing_mm,
        ),
        jitter=WHOLE_STUDY_JITTER,
        cache=cache or out / "grids",
        fold=fold,
    )
    _train(
        plan,
        options,
        batch,
        Session(
            out=out,
            machine=machine,
            start=start,
            resume=resume,
        ),
    )


def cut_missing(
    source: GridSource,
    config: GraderConfig,
    jitter: BoxJitter,
    cache: Path,
    workers: int,
) -> None:
    """Cut the grids that the cache lacks, with a bar."""
    cut = make_grids(
        source,
        config,
        jitter,
        cache,
        workers=max(1, workers),
    )
    count = sum(
        1
        for _ in track(
            cut,
            "cutting grids",
            total=len(source.names),
            console=console,
            transient=True,
        )
    )
    if count:
        console.print(f"cut the grids of {count} studies into {cache}")


def _source(
    data: Path | None, phantoms: int, detector: Path | None
) -> RsnaSource | PhantomSource:
    if (data is None) == (phantoms == 0):
        raise UsageError(
            "give either --data, a folder in RSNA's layout, or --phantoms, a number of studies to draw"
        )
    if data is None:
        return PhantomSource.training(phantoms)
    rsna = RsnaSet.open(data)
    if rsna.without_images:
        console.print(
            f"{rsna.without_images} studies of train.csv have no images here and are left out"
        )
    return RsnaSource(
        data,
        tuple(study.study_id for study in rsna.studies),
        detector,
    )


@dataclass(frozen=True, kw_only=True)
class _GridPlan:
    """The grids of a training: their studies, how they are cut, where they are kept, which fold is held out."""

    source: RsnaSource | PhantomSource
    config: GraderConfig
    jitter: BoxJitter
    cache: Path
    fold: int

    def split(self) -> tuple[GridSource, GridSource | None]:
        """Return the studies to train on and those that are held out."""
        if self.fold < 0:
            return self.source, None
        if isinstance(self.source, PhantomSource):
            return self.source, PhantomSource.held_out(WATCHED_PHANTOMS)
        training, held_out = self.source.split(self.fold)
        return training, held_out if held_out.names else None


def _train(
    plan: _GridPlan,
    options: FitOptions,
    batch: int,
    session: Session,
) -> None:
    """Cut the missing grids, hold a fold out, train."""
    try:
        config = replace(
            plan.config,
            backbone=canonical_backbone(plan.config.backbone),
        )
        Grader(config)
    except ValueError as error:
        raise UsageError(str(error)) from None
    training, held_out = plan.split()
    cut_missing(
        plan.source,
        config,
        plan.jitter,
        plan.cache,
        session.machine.workers,
    )
    seen = load_grids(training, config, plan.jitter, plan.cache)
    watch = None
    if held_out is not None:
        cut_missing(
            held_out,
            config,
            plan.jitter,
            plan.cache,
            session.machine.workers,
        )
        watch = partial(
            watched,
            unseen=load_grids(held_out, config, plan.jitter, plan.cache),
        )
    console.print(f"{len(seen)} studies to train on, {len(seen.places)} grids an epoch")
    train(
        seen,
        config,
        options,
        session,
        grading=GradingOptions(batch=batch),
        watch=watch,
    )
    console.print(f"{session.out / CHECKPOINT}")


def watched(grader: Grader, unseen: GridSet) -> dict[str, float]:
    """Return a grader's figures on held-out studies: the loss that training minimises, the metric and its floors."""
    figures = report(grader, unseen, TRUE_BOXES)
    grading = sum(figures[group] for group in GROUPS) / len(GROUPS)
    known = [name for name in ("metric", "prior", "best") if name in figures]
    return {HELD_OUT + "grading": grading, **{name: figures[name] for name in known}}
