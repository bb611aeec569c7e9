"""Held-out figures through the engine's own decode: discs at the right level within 8 mm, per source and contrast."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from spine_engine.detection import DetectionOptions, DetectorSpec, detect
from spine_engine.detection.detect import SliceBackend
from spine_engine.detection.levels import RANK_OF_LEVEL
from spine_engine.study import Stack
from spine_training.detector.data import Exam, fold_of, load_exams
from spine_training.detector.model import Deployed, LevelHeatmapNet

#: A disc counts as found when its centre lies within this of the truth (issue: "disc within 8 mm and the right level").
HIT_MM = 8.0
#: Distance of sagittal slices in clinical lumbar exams (RSNA 2024: 4-5 mm).
SLICE_MM = 4.0
#: Contrast of each exam; VB1's by eye and by its publication, the rest by their publications.
CONTRAST = {"VB1-02": "T1", "VB1-03": "STIR", "VB1-06": "T1", "VB1-07": "STIR", "VB1-08": "T1", "VB1-16": "T2"}
CONTRAST_OF_SOURCE = {"VB2": "T2", "VB3": "water-fat", "SPIDER": "T2-SPACE", "PHANTOM": "phantom"}


class TorchBackend:
    """A checkpoint as a detection backend, in float32."""

    def __init__(self, checkpoint: Path, spec: DetectorSpec | None = None) -> None:
        net = LevelHeatmapNet(spec)
        net.load_state_dict(torch.load(checkpoint, weights_only=True)["ema"])
        self.net = Deployed(net).eval()

    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """`{"slices": (N, 1, H, W)} -> {"heatmaps": (N, K, h, w)}`."""
        with torch.inference_mode():
            maps = self.net.forward(torch.from_numpy(inputs["slices"]).contiguous(memory_format=torch.channels_last))
        return {"heatmaps": np.ascontiguousarray(maps.float().numpy())}


def stack_from_exam(exam: Exam, slice_mm: float = SLICE_MM) -> Stack:
    """The exam as one sagittal stack of slices `slice_mm` thick (thinner sources keep their own), at LPS
    `(x, y, z) = (lateral, column, -row)`.
    """
    step = exam.spacing_mm[2]
    group = max(1, round(slice_mm / step)) if step < 1.5 else 1
    depth = exam.volume.shape[2] // group * group
    slabs = exam.volume[:, :, :depth].astype(np.float32).reshape(*exam.volume.shape[:2], -1, group).mean(3)
    lateral = (np.arange(slabs.shape[2]) * group + (group - 1) / 2) * step
    pixels = np.ascontiguousarray(np.round(np.moveaxis(slabs, 2, 0)[::-1] * 16).astype(np.uint16))
    origins = np.zeros((len(lateral), 3))
    origins[:, 0] = lateral[::-1]
    axes = np.array([[-1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    ones = np.ones(len(lateral), np.float32)
    return Stack(pixels, ones, ones * 0, origins, axes, (exam.spacing_mm[0], exam.spacing_mm[1]))


@dataclass(frozen=True, slots=True)
class Row:
    """One disc of one exam: error of the disc given for its level, and of the nearest disc given (mm)."""

    exam: str
    source: str
    contrast: str
    level: str
    error_mm: float
    nearest_mm: float
    confidence: float
    given_by: str
    weak: bool


def lps_from_volume(center_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Volume mm (row, column, lateral) to the LPS of `stack_from_exam`."""
    return np.array([center_mm[2], center_mm[1], -center_mm[0]])


def evaluate_exam(
    exam: Exam, stacks: Sequence[Sequence[Stack]], backend: SliceBackend, options: DetectionOptions
) -> list[Row]:
    """Rows of the exam's lumbar discs. SPIDER has no lateral truth: there the distance is in the sagittal plane."""
    result = detect(stacks, backend, options=options)
    keep = np.array([0.0, 1.0, 1.0]) if exam.source == "SPIDER" else np.ones(3)
    given = {RANK_OF_LEVEL[level]: entry for level, entry in result.levels.items()}
    name = {rank: level for level, rank in RANK_OF_LEVEL.items()}
    contrast = CONTRAST.get(exam.name, CONTRAST_OF_SOURCE.get(exam.source, ""))
    rows = []
    for disc in exam.column.discs:
        if disc.rank not in given or not disc.known:
            continue
        truth = lps_from_volume(disc.center_mm)
        errors = {rank: float(np.linalg.norm((entry.center_mm - truth) * keep)) for rank, entry in given.items()}
        entry = given[disc.rank]
        mine, nearest = errors[disc.rank], min(errors.values())
        level = str(name[disc.rank])
        rows.append(
            Row(exam.name, exam.source, contrast, level, mine, nearest, entry.confidence, entry.source, disc.weak)
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Per source and contrast: discs, share right within 8 mm, error (median of the right, 90 %), level shifts."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.weak:
            groups["(L5/S1 placed from L5 alone, not counted)"].append(row)
            continue
        groups[f"{row.source} {row.contrast}"].append(row)
        groups["all"].append(row)
    head = ("exams", "discs", "right", "median", "p90", "shifted", ">=0.9", "right")
    lines = [f"{'source':42s}" + "".join(f"{text:>8s}" for text in head)]
    for name in sorted(groups):
        group = groups[name]
        error = np.array([r.error_mm for r in group])
        nearest = np.array([r.nearest_mm for r in group])
        sure = np.array([r.confidence >= 0.9 for r in group])
        right = error <= HIT_MM
        shifted = int(((error > HIT_MM) & (nearest <= HIT_MM)).sum())
        values = [
            f"{len({r.exam for r in group})}",
            f"{len(group)}",
            f"{100 * right.mean():.1f}%",
            f"{np.median(error[right]):.2f}" if right.any() else "-",
            f"{np.percentile(error, 90):.1f}",
            f"{shifted}",
            f"{sure.sum()}",
            f"{100 * right[sure].mean():.1f}%" if sure.any() else "-",
        ]
        lines.append(f"{name:42s}" + "".join(f"{value:>8s}" for value in values))
    return "\n".join(lines)


def evaluate(data: Path, backend: SliceBackend, fold: int, options: DetectionOptions | None = None) -> list[Row]:
    """Rows of every exam of `fold` (-1: all exams, which is no held-out figure)."""
    exams = load_exams(data)
    number = fold_of(exams)
    rows: list[Row] = []
    for exam in exams:
        if (fold < 0 or number[exam.name] == fold) and exam.name != "VB3-53":  # VB3-53 repeats VB3-51
            rows += evaluate_exam(exam, [[stack_from_exam(exam)]], backend, options or DetectionOptions())
    return rows


def rows_as_json(rows: Sequence[Row]) -> str:
    """One JSON object a line."""
    return "\n".join(json.dumps({k: getattr(r, k) for k in Row.__slots__}) for r in rows)
