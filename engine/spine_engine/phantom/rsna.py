"""Writes sets of phantom studies in the layout of the RSNA 2024 training data, with their truth beside them.

``ROOT/train_images/<study>/<series>/<n>.dcm`` and the three ``train*.csv`` files have RSNA's layout, so training code
reads the set unchanged; ``spine-engine run --input ROOT`` finds the images below ``train_images`` itself.
``ROOT/truth.json`` adds what is known of phantoms alone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import CONDITIONS, LEVELS, Condition
from spine_engine.phantom.dicom_out import numbered_slices, series_uid, write_study
from spine_engine.phantom.protocol import Protocol
from spine_engine.phantom.render import PhantomSeries, PhantomStudy, render
from spine_engine.phantom.severity import best_predictions
from spine_engine.phantom.spine import PhantomSpine, draw_spine
from spine_engine.study import Role

FloatArray = NDArray[np.float64]

GRADE_NAMES: Final = ("Normal/Mild", "Moderate", "Severe")
SERIES_NAMES: Final = {
    Role.SAGITTAL_T1: "Sagittal T1",
    Role.SAGITTAL_T2: "Sagittal T2/STIR",
    Role.AXIAL_T2: "Axial T2",
}
IMAGES_FOLDER: Final = "train_images"

# The point where RSNA's readers mark each condition: role, and (down, back, left) from the disc's centre in mm.
READER_POINTS: Final = {
    Condition.SPINAL_CANAL_STENOSIS: (Role.SAGITTAL_T2, (0.0, 24.0, 0.0)),
    Condition.LEFT_NEURAL_FORAMINAL_NARROWING: (Role.SAGITTAL_T1, (-7.0, 20.0, 17.0)),
    Condition.RIGHT_NEURAL_FORAMINAL_NARROWING: (Role.SAGITTAL_T1, (-7.0, 20.0, -17.0)),
    Condition.LEFT_SUBARTICULAR_STENOSIS: (Role.AXIAL_T2, (2.0, 20.0, 9.0)),
    Condition.RIGHT_SUBARTICULAR_STENOSIS: (Role.AXIAL_T2, (2.0, 20.0, -9.0)),
}


def study_seeds(count: int, seed: int) -> list[int]:
    """Return the seeds of a set's studies; sets of different seeds share none, a longer set begins as a shorter one."""
    return [
        int(np.random.default_rng([seed, 21, k]).integers(2**31)) for k in range(count)
    ]


def write_studies(
    root: Path,
    count: int,
    seed: int,
    *,
    protocol: Protocol | None = None,
    shuffled: bool = False,
    rle: bool = False,
) -> Iterator[str]:
    """Write ``count`` studies and RSNA's files, and yield each study's id when it is written.

    Memory holds one study at a time. This is a generator: nothing is written until it is iterated, and the files are
    complete when it ends. ``protocol`` None draws a scanner for every study.
    """
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as files:
        tables = {
            name: csv.writer(
                files.enter_context((root / f"{name}.csv").open("w", newline=""))
            )
            for name in (
                "train",
                "train_series_descriptions",
                "train_label_coordinates",
            )
        }
        truth = files.enter_context((root / "truth.json").open("w"))
        columns = [
            f"{condition}_{level}" for condition in CONDITIONS for level in LEVELS
        ]
        tables["train"].writerow(["study_id", *columns])
        tables["train_series_descriptions"].writerow(
            ["study_id", "series_id", "series_description"]
        )
        tables["train_label_coordinates"].writerow(
            ["study_id", "series_id", "instance_number", "condition", "level", "x", "y"]
        )
        truth.write("{")
        for k, study_seed in enumerate(study_seeds(count, seed)):
            study = render(draw_spine(study_seed), seed=study_seed, protocol=protocol)
            write_study(study, root / IMAGES_FOLDER, shuffled=shuffled, rle=rle)
            grades = [GRADE_NAMES[grade] for grade in study.spine.grades.T.ravel()]
            tables["train"].writerow([study.study_id, *grades])
            for series in study.series:
                row = [
                    study.study_id,
                    series_uid(study, series),
                    SERIES_NAMES[series.role],
                ]
                tables["train_series_descriptions"].writerow(row)
            tables["train_label_coordinates"].writerows(_coordinates(study, shuffled))
            _write_truth(truth, study, first=k == 0)
            yield study.study_id
        truth.write("\n}\n")


def truth_of(spine: PhantomSpine) -> dict[str, Any]:
    """Return the truth about a phantom, ready for JSON: centre and axes of each level, severity of each condition."""
    probabilities = spine.probabilities
    best = best_predictions(spine.narrowing)
    levels = {}
    for i, level in enumerate(LEVELS):
        levels[str(level)] = {
            "center_mm": spine.disc_center_mm[i].round(3).tolist(),
            "axes": spine.disc_axes[i].round(6).tolist(),
            "conditions": {
                str(condition): {
                    "narrowing": round(float(spine.narrowing[i, c]), 6),
                    "grade": int(spine.grades[i, c]),
                    "probabilities": probabilities[i, c].round(6).tolist(),
                    "best_prediction": best[i, c].round(6).tolist(),
                }
                for c, condition in enumerate(CONDITIONS)
            },
        }
    return {"seed": spine.seed, "levels": levels}


def _write_truth(file: IO[str], study: PhantomStudy, *, first: bool) -> None:
    text = json.dumps(truth_of(study.spine), separators=(",", ":"))
    file.write(("\n" if first else ",\n") + f'"{study.study_id}":{text}')


def _coordinates(study: PhantomStudy, shuffled: bool) -> Iterator[list[object]]:
    """Yield RSNA's rows of points: each condition where a reader would mark it, on the nearest slice of its series."""
    discs = list(
        zip(LEVELS, study.spine.disc_center_mm, study.spine.disc_axes, strict=True)
    )
    for condition in CONDITIONS:
        role, offset = READER_POINTS[condition]
        series = next((s for s in study.series if s.role is role), None)
        if series is None:
            continue
        name = condition.replace("_", " ").title()
        for level, center, axes in discs:
            number, x, y = _pixel_of(
                study, series, center + np.array(offset) @ axes, shuffled
            )
            row = [
                study.study_id,
                series_uid(study, series),
                number,
                name,
                level.replace("_", "/").upper(),
            ]
            yield [*row, f"{x:.3f}", f"{y:.3f}"]


def _pixel_of(
    study: PhantomStudy, series: PhantomSeries, point_mm: FloatArray, shuffled: bool
) -> tuple[int, float, float]:
    """Return the instance number of the slice nearest to a point, and the point's column and row on it.

    The distance is that from the slice's plane, mm, plus that from the picture's edge, pixels.
    """
    nearest: tuple[float, int, float, float] | None = None
    for number, stack, k in numbered_slices(study, series, shuffled=shuffled):
        away_mm, down_mm, right_mm = stack.axes @ (point_mm - stack.origins_mm[k])
        rows, columns = stack.pixels.shape[1:]
        y = down_mm / stack.spacing_mm[0]
        x = right_mm / stack.spacing_mm[1]
        distance = abs(away_mm) + max(0.0, -y, -x, y - rows + 1, x - columns + 1)
        if nearest is None or distance < nearest[0]:
            nearest = (distance, number, float(x), float(y))
    if nearest is None:
        raise ValueError(f"series {series.name} has no slices")
    return nearest[1:]
