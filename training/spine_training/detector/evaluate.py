"""Held-out detection through the engine's own decode, on whole exams and on narrower fields of view."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from spine_engine.backends.base import Model
from spine_engine.detection import DetectionOptions, detect
from spine_engine.detection.levels import RANK_OF_LEVEL
from spine_engine.errors import UsageError
from spine_engine.study import Stack
from spine_training.arrays import F32, F64
from spine_training.detector.data import fold_of
from spine_training.detector.exam import Exam, pixels_of
from spine_training.detector.figures import Row
from spine_training.detector.model import Deployed, load_detector
from spine_training.detector.truth import Column
from spine_training.folds import FOLDS

#: Distance of sagittal slices in clinical lumbar exams (RSNA 2024: 4-5 mm).
SLICE_MM = 4.0
#: Narrower fields of view: mm of the picture left below the centre of L5/S1.
CROPS_MM = {
    "30 mm left below L5/S1": 30.0,
    "8 mm left, no sacrum": 8.0,
    "cut between L4/L5 and L5/S1": -15.0,
}


class TorchBackend:
    """A checkpoint as a detection backend, in float32."""

    def __init__(self, checkpoint: Path) -> None:
        self.net = Deployed(load_detector(checkpoint)).eval()

    def run(self, inputs: Mapping[str, F32]) -> dict[str, F32]:
        """`{"slices": (N, 1, H, W)} -> {"heatmaps": (N, K, h, w)}`."""
        with torch.inference_mode():
            maps = self.net.forward(
                torch.from_numpy(inputs["slices"]).contiguous(
                    memory_format=torch.channels_last
                )
            )
        return {"heatmaps": np.ascontiguousarray(maps.float().numpy())}


def stack_from_exam(exam: Exam, slice_mm: float = SLICE_MM) -> Stack:
    """Return the exam as one sagittal stack of slices `slice_mm` thick (thicker sources keep their own), at LPS
    `(x, y, z) = (lateral, column, -row)`.
    """
    step = exam.spacing_mm[2]
    group = max(1, round(slice_mm / step)) if step < 1.5 else 1
    volume = pixels_of(exam.volume)
    depth = volume.shape[2] // group * group
    slabs = (
        volume[:, :, :depth]
        .astype(np.float32)
        .reshape(*volume.shape[:2], -1, group)
        .mean(3)
    )
    lateral = (np.arange(slabs.shape[2]) * group + (group - 1) / 2) * step
    pixels = np.ascontiguousarray(
        np.round(np.moveaxis(slabs, 2, 0)[::-1] * 16).astype(np.uint16)
    )
    origins = np.zeros((len(lateral), 3))
    origins[:, 0] = lateral[::-1]
    axes = np.array([[-1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    ones = np.ones(len(lateral), np.float32)
    return Stack(
        pixels,
        ones,
        ones * 0,
        origins,
        axes,
        (exam.spacing_mm[0], exam.spacing_mm[1]),
    )


def lps_from_volume(center_mm: F64) -> F64:
    """Turn volume mm (row, column, lateral) into the LPS of `stack_from_exam`."""
    return np.array([center_mm[2], center_mm[1], -center_mm[0]])


def evaluate_exam(
    exam: Exam,
    stacks: Sequence[Sequence[Stack]],
    backend: Model,
    options: DetectionOptions | None = None,
) -> list[Row]:
    """Return a row for each lumbar disc of the exam; SPIDER's distances lie in the sagittal plane, the known one."""
    result = detect(stacks, backend, options=options)
    keep = np.array([0.0, 1.0, 1.0]) if exam.source == "SPIDER" else np.ones(3)
    given = {RANK_OF_LEVEL[level]: entry for level, entry in result.levels.items()}
    name = {rank: level for level, rank in RANK_OF_LEVEL.items()}
    rows = []
    for disc in exam.column.discs:
        if disc.rank not in given or not disc.known:
            continue
        truth = lps_from_volume(disc.center_mm)
        errors = {
            rank: float(np.linalg.norm((entry.center_mm - truth) * keep))
            for rank, entry in given.items()
        }
        entry = given[disc.rank]
        mine, nearest = errors[disc.rank], min(errors.values())
        level = str(name[disc.rank])
        rows.append(
            Row(
                exam.name,
                exam.source,
                exam.contrast,
                level,
                mine,
                nearest,
                entry.confidence,
                entry.source,
                disc.weak,
            )
        )
    return rows


def evaluate(
    exams: Sequence[Exam],
    backend: Model,
    fold: int,
    options: DetectionOptions | None = None,
) -> list[Row]:
    """Return the rows of every exam of `fold` (-1: all exams, which is no held-out figure)."""
    number = fold_of(exams)
    judged = [exam for exam in exams if fold < 0 or number[exam.name] == fold]
    return [
        row
        for exam in judged
        for row in evaluate_exam(
            exam,
            [[stack_from_exam(exam)]],
            backend,
            options,
        )
    ]


def cropped(exam: Exam, below_mm: float) -> Exam:
    """Return the exam cut `below_mm` below the centre of L5/S1, with the discs that it still shows."""
    volume, row_mm = pixels_of(exam.volume), exam.spacing_mm[0]
    rows = int((exam.column.discs[0].center_mm[0] + below_mm) / row_mm)
    discs = tuple(
        disc for disc in exam.column.discs if disc.center_mm[0] < rows * row_mm
    )
    rest = np.ascontiguousarray(volume[: max(1, rows)])
    return replace(
        exam,
        volume=rest,
        column=Column(discs, exam.column.bodies),
    )


def cross_validate(
    exams: Sequence[Exam],
    pattern: str,
    folds: Sequence[int] = range(FOLDS),
    *,
    crops: bool = False,
) -> Iterator[tuple[int, dict[str, list[Row]]]]:
    """Judge each fold's checkpoint on the exams it never saw; yield the fold and its rows by field of view.

    Args:
        exams: exams of all folds.
        pattern: path of the checkpoints, with `{fold}` in place of the fold's number.
        folds: folds to judge.
        crops: also judge the fields of view of `CROPS_MM`; the whole one has the name "whole".

    Raises:
        UsageError: the pattern has no `{fold}`, or a checkpoint does not exist.
    """
    if "{fold}" not in pattern:
        raise UsageError(
            f"the checkpoint pattern {pattern!r} lacks {{fold}}; write for example folds/fold{{fold}}/last.pt"
        )
    paths = {fold: Path(pattern.replace("{fold}", str(fold))) for fold in folds}
    if missing := [str(path) for path in paths.values() if not path.is_file()]:
        raise UsageError(
            f"no checkpoint {missing[0]!r} ({len(missing)} missing); train that fold, or name others by --fold"
        )
    for fold, path in paths.items():
        backend = TorchBackend(path)
        by_view = {"whole": evaluate(exams, backend, fold)}
        number = fold_of(exams)
        for name, below_mm in CROPS_MM.items() if crops else ():
            held_out = [
                cropped(exam, below_mm) for exam in exams if number[exam.name] == fold
            ]
            by_view[name] = evaluate(held_out, backend, -1)
        yield fold, by_view
