"""Contents of the pages as plain values: results, pictures with their outlines, a scene. There is no HTML here.

Nothing in these values names a patient except ``Identity``, which exists only if it was asked for.
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
    """A closed outline over a picture, where the box of a level cuts it.

    Attributes:
        level: the level of the box.
        points: corners ``(x, y)`` in pixels of the picture: x to the right, y down, (0, 0) its upper left corner, so
            that the centre of the first pixel is (0.5, 0.5).
        confidence: confidence of the level's place, 0..1; None where it was given.
        source: ``"detector"``, ``"interpolated"``, ``"prior"`` or ``"given"``, as in ``studies.jsonl``.
    """

    level: Level
    points: tuple[tuple[float, float], ...]
    confidence: float | None
    source: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A grey picture of one plane through the patient.

    Attributes:
        name: the name that people read: "Sagittal T2, slice 8 of 15".
        png: the pixels, 8-bit grey.
        width, height: size in pixels.
        pixel_mm: the height and the width of a pixel, mm; a page shows the picture in the patient's proportions.
        edges: directions to the left, right, top and bottom of the picture, from geometry alone, each one of the
            letters ``L R A P H F`` (patient's left, right, anterior, posterior, head, feet; DICOM PS3.3 C.7.6.1.1.1).
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
    """The person as the headers name them, untrusted text; shown on a page only with ``--with-identity``.

    ``series`` maps the path of each series to its SeriesDescription.
    """

    patient_name: str
    patient_id: str
    birth_date: str
    study_date: str
    study_description: str
    series: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StudyContent:
    """The contents of one study's page.

    Attributes:
        result: the recorded result of the study.
        provenance: ``(what, value)`` lines: engine version, bundle, precision and device of each model, ...
        overview: the middle sagittal slices, T2 first, with the levels' boxes.
        crops: for each level the sagittal and axial planes of the grid that the grader saw.
        scene: the study in space; None if there are no images to show.
        no_pictures: a sentence that says why there are no pictures; None if there are some.
        identity: the person, if asked for.
        run_page: relative link to the page of the run; None if there is no such page.
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
    """One study on the page of a run: its result, the relative link to its page, the time when it was finished.

    ``finished`` is in seconds since 1970; None if the run did not record it.
    """

    result: StudyResult
    page: str | None
    finished: float | None
    identity: Identity | None = None


@dataclass(frozen=True, kw_only=True)
class RunContent:
    """The contents of a run's page: ``run.json``, and every study of the output folder, sorted by id."""

    run: Mapping[str, Any]
    studies: Sequence[RunStudy]
    title: str = "Run"
