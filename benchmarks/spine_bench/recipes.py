"""How fast grids of recipes are beside the engine's own of the same size, and how much memory a study takes.

One study, one thread, processor time of the process; contestants take turns, so that a busy machine slows all alike.
Each is timed from a study that has been read to its finished float32 grids.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time
from typing import Annotated, Any, Final

import numpy as np
import typer

from spine_bench.findings import Findings, Input, Table
from spine_bench.harness.interfaces import F32
from spine_bench.harness.turns import take_turns
from spine_engine.anatomy import LEVELS, Level
from spine_engine.detection import Detection, DiscLevel
from spine_engine.dicom import read_study
from spine_engine.phantom.samples import phantom_samples
from spine_engine.pipeline.centers import VertebralCenters, detected_centers
from spine_engine.pipeline.level_grids import level_grids, study_grid, study_pose
from spine_engine.pipeline.recipe_inputs import recipe_level_grids, recipe_study_grid
from spine_engine.study import Role, Source, Study
from spine_engine.voxels import GridLayout, GridRecipe, GridSpec, recipe_named

CHANNELS: Final = (Role.SAGITTAL_T1, Role.AXIAL_T2, Role.SAGITTAL_T2)
WHOLE: Final = GridLayout(
    channels=CHANNELS, spec=GridSpec((256,) * 3, (1.0,) * 3), normalisation="grid_range"
)
LEVEL: Final = GridLayout(
    channels=CHANNELS, spec=GridSpec((128,) * 3, (1.0,) * 3), normalisation="grid_range"
)

LEVEL_STEP_MM: Final = 35.0
"""Distance of the places that stand for levels where a study is not a phantom: lumbar discs are as far apart."""

MEMORY_MB: Final = 300.0
"""Most memory that a recipe's grid may take above the engine's own."""


@dataclass(frozen=True)
class Target:
    """A recipe's grids take at most ``most`` times as long as the engine's own of that size."""

    recipe: str
    native: str
    most: float


NATIVE_WHOLE, NATIVE_LEVELS = "native, 3 x 256^3", "native, 5 x 3 x 128^3"
TARGETS: Final = (
    Target("rsna2024-whole-256", NATIVE_WHOLE, 1.5),
    Target("rsna2024-whole-256-training", NATIVE_WHOLE, 1.5),
    Target("rsna2024-level-128", NATIVE_LEVELS, 2.5),
)


def measure(
    folder: Input = None,
    rounds: Annotated[int, typer.Option(help="Rounds of each contestant.")] = 7,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the grids that each recipe makes of the study: .webp.",
        ),
    ] = None,
) -> Findings:
    """Compare grids of recipes with the engine's own: time and memory."""
    makers = contestants(*the_study(folder))
    times = take_turns(makers, rounds, process_time)
    middle = {name: 1e3 * median(seconds) for name, seconds in times.items()}
    peaks = {name: peak_mb(folder, name) for name in makers}
    reached = [_reached(target, middle, peaks) for target in TARGETS]
    if pictures is not None:
        draw(pictures, {name: make().copy() for name, make in makers.items()})
    return Findings(
        tables=[
            Table(
                title="Grids",
                columns=("one thread each", "median ms", "best ms", "peak MB"),
                rows=[
                    (
                        name,
                        f"{middle[name]:.0f}",
                        f"{1e3 * min(seconds):.0f}",
                        f"{peaks[name]:.0f}",
                    )
                    for name, seconds in times.items()
                ],
            ),
            Table(
                title="Targets",
                columns=(
                    "recipe",
                    "times native",
                    "at most",
                    "MB above native",
                    "at most",
                    "",
                ),
                rows=[
                    (
                        one["recipe"],
                        f"{one['ratio']:.2f}",
                        f"{one['most']:g}",
                        f"{one['above_mb']:.0f}",
                        f"{MEMORY_MB:g}",
                        "reached" if one["reached"] else "MISSED",
                    )
                    for one in reached
                ],
            ),
        ],
        record={"median_ms": middle, "peak_mb": peaks, "targets": reached},
    )


def _reached(
    target: Target, middle: Mapping[str, float], peaks: Mapping[str, float]
) -> dict[str, Any]:
    ratio = middle[target.recipe] / middle[target.native]
    above = peaks[target.recipe] - peaks[target.native]
    return {
        "recipe": target.recipe,
        "native": target.native,
        "most": target.most,
        "ratio": ratio,
        "above_mb": above,
        "reached": ratio <= target.most and above <= MEMORY_MB,
    }


def the_study(folder: Path | None) -> tuple[Study, Mapping[Level, DiscLevel]]:
    """Return the study of a folder and places for its levels; a phantom and its true levels where there is none."""
    if folder is None:
        (sample,) = phantom_samples(1)
        return sample.study, sample.levels
    study = read_study(folder)
    pose = study_pose(study)
    levels = {
        level: DiscLevel(
            level,
            pose.center_mm + pose.axes[0] * LEVEL_STEP_MM * (n - 2),
            pose.axes,
            np.ones(3),
            1.0,
            Source.DETECTOR,
        )
        for n, level in enumerate(LEVELS)
    }
    return study, levels


Make = Callable[[], F32]


def contestants(study: Study, levels: Mapping[Level, DiscLevel]) -> dict[str, Make]:
    """Return what makes the grids of a study, by name."""
    centers = detected_centers(Detection(levels, (), ()), named=False)
    assert isinstance(centers, VertebralCenters)
    buffer = np.empty(
        (len(LEVELS), len(CHANNELS), *LEVEL.spec.shape), np.float32
    )  # as a pipeline keeps one

    def made(recipe: GridRecipe) -> F32:
        if recipe.of_levels:
            return recipe_level_grids(study, centers, recipe, out=buffer)[0]
        return recipe_study_grid(study, recipe)[0]

    return {
        NATIVE_WHOLE: lambda: study_grid(study, WHOLE)[0],
        NATIVE_LEVELS: lambda: level_grids(study, levels, LEVEL, out=buffer)[0],
        **{
            target.recipe: partial(made, recipe_named(target.recipe))
            for target in TARGETS
        },
    }


def peak_mb(folder: Path | None, name: str) -> float:
    """Return the peak memory of a process that makes one contestant's grids of a study it has read, twice."""
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        return pool.submit(_peak_mb, folder, name).result()


def _peak_mb(folder: Path | None, name: str) -> float:
    make = contestants(*the_study(folder))[name]
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # Linux: the peak so far, of reading, is forgotten
    for _ in range(2):
        make()
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) * 1024 / 1e6


# -- pictures


def draw(path: Path, grids: Mapping[str, F32]) -> None:
    """Draw the middle planes of each grid's channels, a row a recipe: front to the left, head up."""
    from PIL import Image, ImageDraw, ImageFont

    side, gap, head = 220, 8, 26
    width = len(CHANNELS) * (side + gap) + gap
    image = Image.new(
        "RGB", (width, len(grids) * (side + head + gap) + gap), (20, 22, 26)
    )
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for row, (name, made) in enumerate(grids.items()):
        top = gap + row * (side + head + gap)
        pen.text((gap, top), name, (230, 230, 230), font)
        grid = made[LEVELS.index(Level.L4_L5)] if made.ndim == 5 else made
        for column, (channel, role) in enumerate(zip(grid, CHANNELS, strict=True)):
            plane = _middle(channel, role, native=name in (NATIVE_WHOLE, NATIVE_LEVELS))
            bright = float(np.percentile(plane, 99.5)) or 1.0
            grey = np.rint(np.clip(plane / bright, 0, 1) * 255).astype(np.uint8)
            panel = Image.fromarray(grey).resize((side, side), Image.Resampling.NEAREST)
            image.paste(panel, (gap + column * (side + gap), top + head))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=82, method=6)


def _middle(channel: F32, role: Role, *, native: bool) -> F32:
    """Return the middle plane of a channel as people look at it: front or right to the left."""
    down = channel if native else channel.transpose(2, 1, 0)[::-1]
    axis = 0 if role is Role.AXIAL_T2 else 2
    filled = np.flatnonzero(down.any(axis=tuple({0, 1, 2} - {axis})))
    middle = int(filled[len(filled) // 2]) if len(filled) else 0
    return down[middle] if axis == 0 else down[:, :, middle]
