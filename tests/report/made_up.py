"""Made-up contents of pages."""

import random
from dataclasses import replace

import imagecodecs
import numpy as np

from spine_engine.anatomy import LEVELS
from spine_engine.errors import Reason, Warn
from spine_engine.report.content import (
    Identity,
    Outline,
    Picture,
    RunContent,
    RunStudy,
    StudyContent,
)
from spine_engine.results import (
    ALL_ROW_NAMES,
    PRIOR_ROWS,
    AlternativeResult,
    LevelResult,
    SeriesResult,
    Status,
    StudyResult,
    in_millionths,
    ungraded,
)

HOSTILE = [
    "<script>window.hacked=1</script>",
    '"><img src=x onerror=window.hacked=1>',
    "'><svg onload=window.hacked=1>",
    "</title></style></script><script>window.hacked=1</script>",
    "=cmd|' /C calc'!A0",
    "{{ 7 * 7 }}{% include 'page' %}",
    "javascript:window.hacked=1",
]
"""Texts that would run, break out or be computed where they are not escaped."""

PROVENANCE = (
    ("spine-engine", "1.2.3"),
    ("bundle", "lumbar-small 0.2.2"),
    ("detector", "openvino CPU bf16"),
)


def levels(sources=("detector",) * 5, confidence=0.97):
    return {
        level: LevelResult(
            center_mm=None if source == "prior" else (1.0, -20.0, 60.0 - 35 * i),
            axes=None if source == "prior" else ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
            size_mm=None if source == "prior" else (40.0, 96.0, 96.0),
            confidence=0.0 if source == "prior" else confidence - 0.05 * i,
            source=source,
        )
        for i, (level, source) in enumerate(zip(LEVELS, sources, strict=True))
    }


def series(
    evidence="sagittal (normal 1.00 0.02 0.09), TE 100 ms, TR 3500 ms: T2",
    path="PAT_DOE/t2",
):
    return (
        SeriesResult(
            path=path, role="sagittal_t2", evidence=evidence, stacks=1, slices=14
        ),
        SeriesResult(
            path=f"{path}-scout",
            role=None,
            evidence=evidence,
            stacks=0,
            slices=1,
            reason=Reason.NOT_A_VOLUME,
        ),
    )


def rows(seed=0, severe=0.05):
    """25 rows, each with a likeliest severity drawn at random."""
    rng = random.Random(seed)
    weights = [(0.8, 0.15, 0.05), (0.2, 0.7, 0.1), (0.05, 0.2, 0.75)]
    chosen = rng.choices(weights, [1 - 2 * severe, severe, severe], k=25)
    return tuple(
        in_millionths([share + rng.random() * 0.04 for share in shares])
        for shares in chosen
    )


def graded(study_id="1.2.840.1", seed=0, lost=(), **fields):
    values = rows(seed)
    kept = tuple(
        prior if name in lost else row
        for name, row, prior in zip(ALL_ROW_NAMES, values, PRIOR_ROWS, strict=True)
    )
    made = StudyResult(
        study_id=study_id,
        status=Status.GRADED,
        rows=kept,
        not_assessed=tuple(lost),
        levels=levels(),
        series=series(),
        timings_ms={"read": 31.4, "detect": 350.0, "voxelize": 18.0, "grade": 120.0},
    )
    return replace(made, **fields)


def failed(
    study_id="1.2.840.2", reason=Reason.CORRUPT_PIXELS, status=Status.FAILED, **fields
):
    return ungraded(study_id, status, reason, **fields)


def alternative(shift=1):
    return AlternativeResult(
        shift=shift, probability=0.31, centers_mm=dict.fromkeys(LEVELS, (0.0, 0.0, 0.0))
    )


def identity(text="Doe^Jane"):
    return Identity(
        patient_name=text,
        patient_id=text,
        birth_date=text,
        study_date=text,
        study_description=text,
        series={"PAT_DOE/t2": text},
    )


def picture(
    name="Sagittal T2, slice 8 of 15",
    *,
    width=96,
    height=64,
    pixel_mm=(1.0, 0.5),
    sources=(),
):
    grey = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
    outlines = tuple(
        Outline(
            level=level,
            points=(
                (30.0, 8.0 + 10 * i),
                (60.0, 6.0 + 10 * i),
                (60.0, 12.0 + 10 * i),
                (30.0, 14.0 + 10 * i),
            ),
            confidence=0.97 - 0.1 * i,
            source=source,
        )
        for i, (level, source) in enumerate(zip(LEVELS, sources, strict=False))
    )
    return Picture(
        name=name,
        png=imagecodecs.png_encode(grey),
        width=width,
        height=height,
        pixel_mm=pixel_mm,
        edges=("A", "P", "H", "F"),
        outlines=outlines,
    )


def study_content(result=None, **fields):
    result = result or graded()
    made = StudyContent(
        result=result,
        provenance=PROVENANCE,
        overview=(
            picture(
                sources=("detector", "detector", "interpolated", "prior", "detector")
            ),
            picture("T1"),
        ),
        crops={
            level: (
                picture("Sagittal T2, middle"),
                picture("Axial T2, through the disc"),
            )
            for level in LEVELS
        },
        run_page="../index.html",
    )
    return replace(made, **fields)


def run_record(**fields):
    return {
        "engine_version": "1.2.3",
        "bundle": {
            "name": "lumbar-small",
            "version": "0.2.2",
            "digest": "ab" * 32,
            "path": "/home/PAT_DOE/bundle",
        },
        "devices": {
            "detector": {"backend": "openvino", "device": "CPU", "precision": "bf16"}
        },
        "options": {
            "workers": 2,
            "schedule": "study",
            "device": "cpu",
            "series_descriptions": "/home/PAT_DOE/s.csv",
        },
        "interrupted": False,
        "studies": {"total": 3, "graded": 2, "prior": 0, "failed": 1},
        "reasons": {"corrupt_pixels": 1},
        "refused_files": {
            "total": 3,
            "by_reason": {"not_an_image": 2, "unreadable": 1},
        },
        "refused_examples": [{"path": "PAT_DOE/notes.txt", "reason": "not_an_image"}],
        "units": {"walked": 3, "resumed": 0},
        "wall_s": 24.056,
        "studies_per_s": 2.4941,
        "stage_seconds": {
            "detect": 35.249,
            "grade": 3.514,
            "read": 3.315,
            "voxelize": 2.534,
        },
        "peak_memory_bytes": {
            "main": 69120000,
            "workers": [363237376, 366313472],
            "total": 798670848,
        },
        **fields,
    }


def run_content(studies=None, **record):
    studies = (
        [graded("1.2.840.1"), graded("1.2.840.3", seed=3), failed()]
        if studies is None
        else studies
    )
    return RunContent(
        run=run_record(**record),
        studies=[
            RunStudy(result=result, page=f"studies/{i}.html", finished=1.76e9 + 7.0 * i)
            for i, result in enumerate(studies)
        ],
    )


def many_studies(number):
    """A run of many studies: one in twenty not graded, one in eight with warnings."""
    rng = random.Random(0)
    reasons, warns = list(Reason), list(Warn)
    for i in range(number):
        study_id = f"2.25.{rng.getrandbits(122)}"
        warnings = tuple(sorted(rng.sample(warns, 2))) if i % 8 == 0 else ()
        if i % 20 == 7:
            status = Status.PRIOR if i % 40 == 7 else Status.FAILED
            yield failed(study_id, reasons[i % len(reasons)], status, warnings=warnings)
        else:
            lost = rng.sample(ALL_ROW_NAMES, 3) if i % 9 == 0 else ()
            sources = (
                ("interpolated",) + ("detector",) * 4
                if i % 11 == 0
                else ("detector",) * 5
            )
            yield graded(
                study_id,
                i,
                lost,
                warnings=warnings,
                levels=levels(sources, 1 - rng.random() * 0.4),
            )


def graded_as(**rows):
    """Return a graded study that is normal but for the rows given as ``condition_level``."""
    normal = (900_000, 80_000, 20_000)
    return graded(rows=tuple(rows.get(name, normal) for name in ALL_ROW_NAMES))
