"""Exams from data in RSNA's layout: the sagittal series of every labelled study, with discs from the readers' points.

Reading a thousand studies takes a while and their volumes fill gigabytes, so each study is read once: its volumes and
truth are kept in a cache folder, and a volume is loaded when a slice of it is drawn.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from spine_engine.anatomy import Level
from spine_engine.detection.levels import RANK_OF_LEVEL
from spine_engine.detection.slices import spine_frame
from spine_engine.detection.spec import DetectorSpec
from spine_engine.errors import StudyError
from spine_engine.study import Role, Series, Stack, Study
from spine_training.detector.exam import Exam, intensity_window, pixels_of
from spine_training.detector.stacks import StackVolume, volume_from_stack
from spine_training.detector.truth import Column, Disc, body_above
from spine_training.places import DiscPlace, level_places
from spine_training.rsna import LabelledStudy, RsnaSet

SOURCE = "RSNA"
#: Part of every name in the cache: raise it when what a cached exam holds changes.
CACHE_VERSION = 1
#: A shorter stack is a localiser or what is left of a broken series.
MIN_SLICES = 5


@dataclass(frozen=True, slots=True)
class RsnaExams:
    """The exams of a set, the number of studies without one by reason, and the number of points without a place."""

    exams: tuple[Exam, ...]
    left_out: Mapping[str, int]
    lost_points: int

    def __str__(self) -> str:
        studies = len({exam.patient for exam in self.exams})
        reasons = "".join(
            f"; {count} without: {reason}"
            for reason, count in sorted(self.left_out.items())
        )
        return f"{len(self.exams)} exams of {studies} RSNA studies{reasons}; {self.lost_points} points without place"


def load_rsna(root: Path, cache: Path) -> RsnaExams:
    """Return the exams of a folder in RSNA's layout, reading what `cache` lacks.

    Raises:
        UsageError: `root` is not in RSNA's layout.
    """
    rsna = RsnaSet.open(root)
    cache.mkdir(parents=True, exist_ok=True)
    exams: list[Exam] = []
    left_out = Counter(
        {"no images": rsna.without_images} if rsna.without_images else {}
    )
    lost = 0
    missing = [
        study for study in rsna.studies if not _index(rsna, study, cache).exists()
    ]
    unread: set[str] = set()
    for study in track(
        missing,
        "reading studies",
        console=Console(stderr=True),
        disable=not missing,
    ):
        try:
            _store(rsna, study, cache)
        except StudyError as error:  # not cached: the next run tries again
            left_out[str(error.reason)] += 1
            unread.add(study.study_id)
    for study in rsna.studies:
        if study.study_id in unread:
            continue
        study_exams, reason, lost_here = _stored(rsna, study, cache)
        exams += study_exams
        lost += lost_here
        if reason:
            left_out[reason] += 1
    return RsnaExams(tuple(exams), dict(left_out), lost)


def column_from_places(
    places: Mapping[Level, DiscPlace], volume: StackVolume
) -> Column:
    """Return the truth of a volume: the places as discs, bodies midway between them and one above the topmost.

    Raises:
        ValueError: the places lack L5/S1, or are fewer than two.
    """
    if Level.L5_S1 not in places or len(places) < 2:
        raise ValueError(
            f"want L5/S1 and a disc above it, got {', '.join(places) or 'none'}"
        )
    discs = tuple(
        Disc(
            RANK_OF_LEVEL[level],
            volume.place(place.center_mm),
            volume.direction(place.axes[1]),
            known=place.known,
        )
        for level, place in sorted(
            places.items(), key=lambda item: RANK_OF_LEVEL[item[0]]
        )
    )
    middles = [(low.center_mm + high.center_mm) / 2 for low, high in pairwise(discs)]
    return Column(
        discs,
        tuple(enumerate([*middles, body_above(discs[-1], discs[-2])])),
    )


def _exams_of(rsna: RsnaSet, labels: LabelledStudy) -> tuple[list[Exam], str, int]:
    """Read a study; return its exams, the reason where there are none, and the number of points without a place."""
    points = rsna.points_mm(labels.study_id)
    lost = len(labels.marks) - len(points)
    study = rsna.read(labels.study_id)
    stacks = list(_sagittal(study))
    if not stacks:
        return [], "no sagittal series", lost
    places = level_places(
        points,
        spine_frame([stack for _, stack in stacks]),
    )
    if Level.L5_S1 not in places or len(places) < 2:
        return [], "no points at L5/S1 and above", lost
    exams = []
    for series, stack in stacks:
        volume = volume_from_stack(stack)
        column = column_from_places(places, volume)
        name = f"{SOURCE}-{labels.study_id}-{series.contrast}"
        window = intensity_window(volume.pixels, DetectorSpec())
        exams.append(
            Exam(
                name,
                SOURCE,
                labels.study_id,
                volume.pixels,
                volume.spacing_mm,
                column,
                _contrast(series),
                window,
            )
        )
    return exams, "", lost


def _sagittal(study: Study) -> Iterator[tuple[Series, Stack]]:
    """Yield the longest stack of each sagittal series."""
    for role in (Role.SAGITTAL_T1, Role.SAGITTAL_T2):
        for series in study.with_role(role):
            stack = max(series.stacks, key=lambda stack: len(stack.pixels))
            if len(stack.pixels) >= MIN_SLICES:
                yield series, stack


def _contrast(series: Series) -> str:
    return (series.contrast or "").upper()


def _index(rsna: RsnaSet, labels: LabelledStudy, cache: Path) -> Path:
    """Return the index file of a study in the cache; its name changes with the set and with the study's points."""
    content = (CACHE_VERSION, str(rsna.root.resolve()), labels.marks)
    digest = hashlib.sha256(
        repr(content).encode("utf-8", "surrogateescape")
    ).hexdigest()[:12]
    return cache / f"{labels.study_id}-{digest}.npz"


def _store(rsna: RsnaSet, labels: LabelledStudy, cache: Path) -> None:
    """Read a study into the cache: volumes as .npy, then, last and at once, the index."""
    exams, reason, lost = _exams_of(rsna, labels)
    index = _index(rsna, labels, cache)
    arrays: dict[str, Any] = {
        "reason": reason,
        "lost": lost,
        "count": len(exams),
    }
    for k, exam in enumerate(exams):
        np.save(
            index.with_suffix(f".{k}.npy"),
            pixels_of(exam.volume),
        )
        discs = [
            [d.rank, *d.center_mm, *d.direction, d.known] for d in exam.column.discs
        ]
        bodies = [[rank, *center] for rank, center in exam.column.bodies]
        arrays |= {
            f"{k}.name": exam.name,
            f"{k}.contrast": exam.contrast,
            f"{k}.spacing_mm": exam.spacing_mm,
        }
        arrays |= {
            f"{k}.window": exam.window,
            f"{k}.discs": discs,
            f"{k}.bodies": bodies,
        }
    temporary = index.with_suffix(".tmp.npz")
    np.savez(temporary, **arrays)
    os.replace(temporary, index)


def _stored(
    rsna: RsnaSet, labels: LabelledStudy, cache: Path
) -> tuple[list[Exam], str, int]:
    """Return what `_store` kept, volumes by path."""
    index = _index(rsna, labels, cache)
    exams = []
    with np.load(index) as arrays:
        for k in range(int(arrays["count"])):
            discs = tuple(
                Disc(
                    int(row[0]),
                    row[1:4],
                    row[4:6],
                    known=bool(row[6]),
                )
                for row in np.atleast_2d(arrays[f"{k}.discs"])
            )
            bodies = tuple((int(row[0]), row[1:4]) for row in arrays[f"{k}.bodies"])
            row_mm, column_mm, lateral_mm = arrays[f"{k}.spacing_mm"].tolist()
            low, high = arrays[f"{k}.window"].tolist()
            exams.append(
                Exam(
                    str(arrays[f"{k}.name"]),
                    SOURCE,
                    labels.study_id,
                    index.with_suffix(f".{k}.npy"),
                    (row_mm, column_mm, lateral_mm),
                    Column(discs, bodies),
                    str(arrays[f"{k}.contrast"]),
                    (low, high),
                )
            )
        return exams, str(arrays["reason"]), int(arrays["lost"])
