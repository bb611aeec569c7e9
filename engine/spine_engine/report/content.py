"""What the pages show, as plain values: results, pictures with their outlines, a scene. No HTML here.

Nothing in these values names a patient, except ``Identity``, which is only there when it was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spine_engine.anatomy import Level
from spine_engine.results import StudyResult

if TYPE_CHECKING:
    from spine_engine.report.scene import Scene


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A closed outline over a picture: where the box of a level cuts it.

    Attributes:
        level: whose box it is.
        points: corners ``(x, y)`` in pixels of the picture: x to the right, y down, (0, 0) its upper left corner, so
            that the centre of the first pixel is (0.5, 0.5).
        confidence: of the level's place, 0..1.
        source: ``"detector"``, ``"interpolated"`` or ``"prior"``, as in ``studies.jsonl``.
    """

    level: Level
    points: tuple[tuple[float, float], ...]
    confidence: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A grey picture of one plane through the patient.

    Attributes:
        name: what it shows, for people: "Sagittal T2, slice 8 of 15".
        png: the pixels, 8-bit grey.
        width, height: pixels.
        pixel_mm: the height and the width of a pixel, mm; a page shows the picture in the patient's proportions.
        edges: what lies to the left, right, top and bottom of the picture, from geometry alone: one of the letters
            ``L R A P H F`` (patient's left, right, anterior, posterior, head, feet; DICOM PS3.3 C.7.6.1.1.1).
        outlines: the levels' boxes, where they cut the plane.
    """

    name: str
    png: bytes
    width: int
    height: int
    pixel_mm: tuple[float, float]
    edges: tuple[str, str, str, str]
    outlines: tuple[Outline, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What the headers say of the person, untrusted text; on a page only with ``--with-identity``.

    ``series`` has the SeriesDescription by the path of the series.
    """

    patient_name: str
    patient_id: str
    birth_date: str
    study_date: str
    study_description: str
    series: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StudyContent:
    """One study's page.

    Attributes:
        result: what became of the study.
        provenance: ``(what, value)`` lines: engine version, bundle, precision and device of each model, ...
        overview: the middle sagittal slices, T2 first, with the levels' boxes.
        crops: for each level the sagittal and axial planes of the grid that the grader saw.
        scene: the study in space; None where there are no images to show.
        no_pictures: why there are no pictures, a sentence for people; None where there are.
        identity: the person, where asked for.
        run_page: link to the page of the run, relative; None for a page of its own.
    """

    result: StudyResult
    provenance: Sequence[tuple[str, str]]
    overview: Sequence[Picture] = ()
    crops: Mapping[Level, Sequence[Picture]] = field(default_factory=dict)
    scene: Scene | None = None
    no_pictures: str | None = None
    identity: Identity | None = None
    run_page: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunStudy:
    """One study in the page of a run: its result, the link to its page (relative), when it was done.

    ``finished`` is in seconds since 1970, None where the run did not record it.
    """

    result: StudyResult
    page: str | None
    finished: float | None
    identity: Identity | None = None


@dataclass(frozen=True, kw_only=True)
class RunContent:
    """A run's page: what ``run.json`` holds, and every study of the output folder, sorted by id."""

    run: Mapping[str, Any]
    studies: Sequence[RunStudy]
    title: str = "Run"
