"""``spine-engine view STUDY``: writes one study in space: a page, point clouds and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spine_engine.errors import OutputError, StudyError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from spine_engine.anatomy import Level
    from spine_engine.bundle.manifest import GraderEntry
    from spine_engine.detection import Detection
    from spine_engine.dicom import RoleOverrides
    from spine_engine.results import LevelResult
    from spine_engine.study import Study


def view(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY", help="Folder with the DICOM files of one study."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Folder for the files.")
    ] = Path("view"),
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Bundle of models; by default the packaged one."
        ),
    ] = None,
    study_id: Annotated[
        str | None,
        typer.Option(
            "--study",
            metavar="ID",
            help="Id of the study, if the folder holds several.",
        ),
    ] = None,
    series_descriptions: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Table of the series' roles; one beside the input is used by default.",
        ),
    ] = None,
    no_png: Annotated[
        bool, typer.Option("--no-png", help="Write no pictures.")
    ] = False,
    window: Annotated[
        bool, typer.Option("--window", help="Also open Open3D's window.")
    ] = False,
) -> None:
    """Write a study as a point cloud, the boxes of its levels and the voxel grids that the grader sees.

    DIR then holds view.html (in 3-D, in any browser), cloud.ply, levels.ply, a grid_LEVEL.ply for each level, and
    pictures: cloud.png and a grid_LEVEL.png for each level. Positions are the patient's (LPS), in millimetres.

    Example: spine-engine view exams/patient7 --output patient7
    """
    from spine_engine.dicom import RoleOverrides
    from spine_engine.pipeline.outcome import level_results
    from spine_engine.report.montage import pillow
    from spine_engine.report.ply import open3d

    open3d()
    if not no_png:
        pillow()
    overrides = (
        RoleOverrides.from_csv(series_descriptions) if series_descriptions else None
    )
    study = _shown_study(folder, study_id, overrides)
    detection, entry = _detected(study, bundle)
    levels = {} if detection is None else level_results(detection)
    try:
        output.mkdir(parents=True, exist_ok=True)
        for line in _write(study, levels, output, pictures=not no_png):
            typer.echo(line)
        if detection is not None and entry is not None:
            for line in _write_grids(
                study, detection, entry, levels, output, pictures=not no_png
            ):
                typer.echo(line)
    except OSError as error:
        raise OutputError(
            f"cannot write to {output}: {error.strerror}; free space or name another folder"
        ) from error
    if window:
        _show(study, levels)


def _shown_study(
    folder: Path, study_id: str | None, overrides: RoleOverrides | None
) -> Study:
    """Read the only study of a folder, or the one that is named; refuse a study without a series to show."""
    from spine_engine.dicom import read_study
    from spine_engine.report.cloud import shown_series

    study = read_study(folder, study_id, overrides=overrides)
    if not shown_series(study):
        raise UsageError(
            f"study {study.study_id} has no series to show ({study.reason or 'none has a role'}): "
            "'spine-engine inspect' shows why"
        )
    return study


def _detected(
    study: Study, folder: Path | None
) -> tuple[Detection | None, GraderEntry | None]:
    """Return where the levels are, and what the bundle says of the grader; None for both, and a line, without them."""
    from spine_engine.bundle.examination import open_examined
    from spine_engine.options import RunOptions
    from spine_engine.pipeline.models import in_two_stages
    from spine_engine.pipeline.study_pipeline import StudyPipeline

    bundle, options = open_examined(folder), RunOptions()
    if not in_two_stages(bundle, options):
        typer.echo("the bundle has no detector: there are no boxes and no level grids")
        return None, None
    try:
        with StudyPipeline.open(bundle, options) as pipeline:
            return pipeline.locate(study), bundle.grader
    except StudyError as error:
        typer.echo(
            f"the levels were not located ({error.reason}): there are no boxes and no level grids"
        )
        return None, None


def _write(
    study: Study, levels: Mapping[Level, LevelResult], output: Path, *, pictures: bool
) -> Iterator[str]:
    """Write the page, the cloud, the boxes and the picture of the study; yield a line about each file."""
    from spine_engine.report.cloud import study_cloud
    from spine_engine.report.offscreen import PACKAGES, picture
    from spine_engine.report.page import render
    from spine_engine.report.ply import write_cloud, write_levels
    from spine_engine.report.scene import study_scene

    page = render(
        "view.html.j2", study_id=study.study_id, scene=study_scene(study, levels)
    )
    (output / "view.html").write_text(page, encoding="utf-8")
    yield f"{output / 'view.html'}: the study in 3-D, for any browser"
    cloud = study_cloud(study)
    write_cloud(output / "cloud.ply", cloud)
    yield f"{output / 'cloud.ply'}: {len(cloud.values):,} points, {', '.join(cloud.names)}"
    if levels:
        write_levels(output / "levels.ply", levels)
        yield f"{output / 'levels.ply'}: the boxes of {len(levels)} levels"
    if pictures:
        problem = picture(study, levels, output / "cloud.png")
        if problem is None:
            yield f"{output / 'cloud.png'}: the study, opened at the middle"
        else:
            yield (
                f"no cloud.png: {problem}; Open3D draws without a screen through Vulkan, on Debian: "
                f"apt-get install {PACKAGES}"
            )


def _write_grids(
    study: Study,
    detection: Detection,
    entry: GraderEntry,
    levels: Mapping[Level, LevelResult],
    output: Path,
    *,
    pictures: bool,
) -> Iterator[str]:
    """Write the grid of each level that was located, as voxels and as a picture; yield a line about each file."""
    from spine_engine.anatomy import LEVELS
    from spine_engine.pipeline.level_grids import level_grids
    from spine_engine.study import Source

    if not entry.grid_recipe.is_native:
        yield f"no grids: those of the recipe {entry.grid_recipe.name} are not shown here"
        return
    grids, coverage = level_grids(study, detection.levels, entry.layout)
    unplaced = [
        level for level in LEVELS if detection.levels[level].source == Source.PRIOR
    ]
    if unplaced:
        yield f"no grid of {', '.join(unplaced)}: only the field of view places them, and the grader skips them"
    for grid, share, level in zip(grids, coverage, LEVELS, strict=True):
        if level not in unplaced:
            yield from _write_grid(
                grid,
                share,
                entry,
                level,
                detection,
                levels[level],
                output,
                pictures=pictures,
            )


def _write_grid(
    grid: NDArray[np.float32],
    coverage: NDArray[np.float64],
    entry: GraderEntry,
    level: Level,
    detection: Detection,
    place: LevelResult,
    output: Path,
    *,
    pictures: bool,
) -> Iterator[str]:
    import numpy as np

    from spine_engine.report.montage import montage
    from spine_engine.report.ply import write_grid

    disc = detection.levels[level]
    pose = entry.layout.pose(disc.center_mm, disc.axes)
    write_grid(output / f"grid_{level}.ply", grid, entry.grid.spec, pose)
    shape = " x ".join(str(size) for size in grid.shape[1:])
    yield f"{output / f'grid_{level}.ply'}: {np.count_nonzero(grid.any(axis=0)):,} of {shape} voxels hold something"
    if pictures:
        montage(grid, coverage, entry, level, place).save(
            output / f"grid_{level}.png", optimize=True
        )
        yield f"{output / f'grid_{level}.png'}: its slices, channel by channel"


def _show(study: Study, levels: Mapping[Level, LevelResult]) -> None:
    from spine_engine.report.cloud import study_cloud
    from spine_engine.report.offscreen import window

    problem = window(study_cloud(study), levels)
    if problem is not None:
        typer.echo(
            f"no window: {problem}; it needs a screen (DISPLAY or WAYLAND_DISPLAY) and a Vulkan driver",
            err=True,
        )
