"""Renders what the engine sees in a folder as one page: each study's series, their stacks in space, their evidence.

The page holds no text of the input but study ids, unless an ``Identity`` comes with the study.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from spine_engine.errors import Reason
from spine_engine.report.content import Identity, Picture
from spine_engine.report.page import render
from spine_engine.report.pictures import plane_of, thumbnail
from spine_engine.report.projections import Projection, projections, stack_name
from spine_engine.report.stack_words import gaps_of, tilt_of
from spine_engine.report.words import REASONS, ROLE_NAMES, WARNINGS, Words, many
from spine_engine.study import Role, Series, Stack, Study
from spine_engine.voxels import robust_window

MAX_BYTES: Final = 1_050_000
"""Size up to which studies are shown in full: with its list the page stays below 1.5 MB."""

MAX_LISTED: Final = 1000
"""Number of studies that are listed; the others are only counted. A line takes about 300 bytes."""

_SHOWN_FIRST: Final = (Role.SAGITTAL_T2, Role.SAGITTAL_T1, Role.AXIAL_T2, None)


@dataclass(frozen=True, kw_only=True)
class StackRow:
    """One stack: its name in the drawings, the number of slices, their distance in mm, gaps and tilt."""

    name: str
    slices: int
    apart_mm: str
    gaps: str
    tilt: str


@dataclass(frozen=True, kw_only=True)
class StackGroup:
    """Stacks of one series with the same matrix and spacing: a picture of the middle one, their size, their rows."""

    picture: Picture
    words: str
    rows: tuple[StackRow, ...]


@dataclass(frozen=True, kw_only=True)
class InspectedSeries:
    """One series: its number in the drawings, role and evidence, the reason if it was refused, and its stacks.

    ``path`` and ``description`` are None without an identity.
    """

    name: str
    role: str
    has_role: bool
    evidence: str
    refused: tuple[str, Words] | None
    slices: int
    stacks: int
    groups: tuple[StackGroup, ...]
    path: str | None
    description: str | None


@dataclass(frozen=True, kw_only=True)
class InspectedStudy:
    """One study: its words and, if there was room for them, its pictures."""

    study_id: str
    reason: tuple[str, Words] | None
    warnings: tuple[tuple[str, Words], ...]
    roles: str
    series_count: int
    again: bool
    identity: Identity | None
    series: tuple[InspectedSeries, ...] = ()
    drawings: tuple[Projection, ...] = ()

    @property
    def size(self) -> int:
        """The bytes that the study takes of a page, within a tenth; measured on exams and phantoms."""
        groups = [group for series in self.series for group in series.groups]
        words = (
            3500
            + 900 * len(self.series)
            + 250 * sum(len(group.rows) for group in groups)
        )
        drawn = sum(
            len(line.path) + 60 for drawing in self.drawings for line in drawing.lines
        )
        pictures = sum(len(group.picture.png) * 4 // 3 for group in groups)
        return words + drawn + pictures


def inspect_page(
    studies: Iterable[tuple[Study, Identity | None]], refused: Mapping[str, int]
) -> str:
    """Return the page of a folder. Studies are read one by one and released; only words and small pictures are kept.

    Args:
        studies: the studies in the order in which they are read, with the persons if asked for.
        refused: number of files or folders that were not read, by reason; read after the last study.
    """
    shown: list[InspectedStudy] = []
    listed: list[InspectedStudy] = []
    seen_ids: set[str] = set()
    count = 0
    free_bytes = MAX_BYTES
    for study, identity in studies:
        count += 1
        again = study.study_id in seen_ids
        if free_bytes > 0:
            full = inspected(study, identity, again=again)
            free_bytes -= full.size
            if free_bytes > 0 or not shown:
                shown.append(full)
            else:
                free_bytes = 0
        if len(listed) < MAX_LISTED:
            listed.append(_summary(study, identity, again=again))
        seen_ids.add(study.study_id)
    return render(
        "inspect.html.j2",
        count=count,
        shown=shown,
        listed=listed,
        unlisted=count - len(listed),
        refused=[
            (reason, REASONS[Reason(reason)], refused[reason])
            for reason in sorted(refused)
        ],
    )


def inspected(
    study: Study, identity: Identity | None = None, *, again: bool = False
) -> InspectedStudy:
    """Return what the page shows of one study; ``again`` is set if another folder also held files of it."""
    order = sorted(study.series, key=lambda series: _SHOWN_FIRST.index(series.role))
    named = [(str(number), series) for number, series in enumerate(order, 1)]
    return replace(
        _summary(study, identity, again=again),
        series=tuple(_series(name, series, identity) for name, series in named),
        drawings=projections([(name, series.stacks) for name, series in named]),
    )


def _summary(study: Study, identity: Identity | None, *, again: bool) -> InspectedStudy:
    """Return what the page's list shows of a study."""
    counts = Counter(
        ROLE_NAMES[series.role] for series in study.series if series.role is not None
    )
    names = [ROLE_NAMES[role] for role in _SHOWN_FIRST if ROLE_NAMES[role] in counts]
    return InspectedStudy(
        study_id=study.study_id,
        reason=None if study.reason is None else (study.reason, REASONS[study.reason]),
        warnings=tuple((warning, WARNINGS[warning]) for warning in study.warnings),
        roles=", ".join(
            f"{counts[name]} × {name}" if counts[name] > 1 else name for name in names
        )
        or "none",
        series_count=len(study.series),
        again=again,
        identity=identity,
    )


def _series(name: str, series: Series, identity: Identity | None) -> InspectedSeries:
    contrast = (
        " (STIR)" if series.contrast == "stir" and series.role is not None else ""
    )
    return InspectedSeries(
        name=name,
        role="No role"
        if series.role is None
        else ROLE_NAMES[series.role].removesuffix("/STIR") + contrast,
        has_role=series.role is not None,
        evidence=series.evidence,
        refused=None
        if series.reason is None
        else (series.reason, REASONS[series.reason]),
        slices=series.slices,
        stacks=len(series.stacks),
        groups=_groups(name, series.stacks),
        path=None if identity is None else series.path,
        description=None if identity is None else identity.series.get(series.path),
    )


def _groups(name: str, stacks: Sequence[Stack]) -> tuple[StackGroup, ...]:
    """Return the stacks of a series, grouped by matrix and pixel spacing, in the order of each group's first stack."""
    alike: dict[str, list[tuple[int, Stack]]] = {}
    for number, stack in enumerate(stacks):
        alike.setdefault(_size_words(stack), []).append((number, stack))
    if not stacks:
        return ()
    window = robust_window(stacks)
    groups = []
    for size_words, members in alike.items():
        rows = tuple(
            _row(stack_name(name, number, len(stacks)), stack)
            for number, stack in members
        )
        picture = thumbnail(members[len(members) // 2][1], window)
        words = (
            f"{many(len(members), f'{plane_of(members[0][1])} stack')} of {size_words}"
        )
        groups.append(StackGroup(picture=picture, words=words, rows=rows))
    return tuple(groups)


def _size_words(stack: Stack) -> str:
    _, rows, columns = stack.pixels.shape
    down, right = stack.spacing_mm
    return f"{rows} × {columns} pixels of {down:.2f} × {right:.2f} mm"


def _row(name: str, stack: Stack) -> StackRow:
    slices = len(stack.pixels)
    return StackRow(
        name=name,
        slices=slices,
        apart_mm=f"{stack.slice_spacing_mm:.2f}" if slices > 1 else "–",
        gaps=gaps_of(stack),
        tilt=tilt_of(stack).words,
    )
