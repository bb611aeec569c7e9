"""What the engine sees in a folder as one page: the series of each study, their stacks in space, and why each role.

No text of the input is in it but study ids, unless an ``Identity`` comes with the study.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
"""Studies are shown in full until they take this much of a page that is to stay below 1.5 MB with its list."""

MAX_LISTED: Final = 1000
"""Studies beyond this many are only counted: a line takes about 300 bytes."""

_SHOWN_FIRST: Final = (Role.SAGITTAL_T2, Role.SAGITTAL_T1, Role.AXIAL_T2, None)


@dataclass(frozen=True, kw_only=True)
class StackRow:
    """One stack in numbers and words: its name in the drawings, slices, their distance in mm, gaps and tilt."""

    name: str
    slices: int
    apart_mm: str
    gaps: str
    tilt: str


@dataclass(frozen=True, kw_only=True)
class StackGroup:
    """Stacks of one series that are alike: a picture of the middle one, what they have in common, and each of them."""

    picture: Picture
    words: str
    rows: tuple[StackRow, ...]


@dataclass(frozen=True, kw_only=True)
class InspectedSeries:
    """One series: its number in the drawings, role and evidence, why it was refused, and its stacks.

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
    """One study: the words and, where there was room for them, the pictures."""

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
        """About how many bytes it takes of a page; measured on exams and phantoms, right within a tenth."""
        groups = [group for one in self.series for group in one.groups]
        words = 3500 + 900 * len(self.series) + 250 * sum(len(group.rows) for group in groups)
        drawn = sum(len(line.path) + 60 for drawing in self.drawings for line in drawing.lines)
        return words + drawn + sum(len(group.picture.png) * 4 // 3 for group in groups)


def inspect_page(studies: Iterable[tuple[Study, Identity | None]], refused: Mapping[str, int]) -> str:
    """Return the page of a folder. Studies are taken one by one and let go; only words and small pictures are kept.

    Args:
        studies: the studies in the order in which they are met, with the persons where asked for.
        refused: how many files or folders were not read, by reason; looked at after the last study.
    """
    shown: list[InspectedStudy] = []
    listed: list[InspectedStudy] = []
    met: set[str] = set()
    count, room = 0, MAX_BYTES
    for study, identity in studies:
        count += 1
        if room > 0:
            full = inspected(study, identity, again=study.study_id in met)
            room -= full.size
            if room > 0 or not shown:
                shown.append(full)
            else:
                room = 0
        if len(listed) < MAX_LISTED:
            listed.append(_summary(study, identity, again=study.study_id in met))
        met.add(study.study_id)
    return render(
        "inspect.html.j2",
        count=count,
        shown=shown,
        listed=listed,
        unlisted=count - len(listed),
        refused=[(reason, _words_of(reason), refused[reason]) for reason in sorted(refused)],
    )


def inspected(study: Study, identity: Identity | None = None, *, again: bool = False) -> InspectedStudy:
    """Return what the page shows of one study; ``again`` where another folder held files of it too."""
    order = sorted(study.series, key=lambda series: _SHOWN_FIRST.index(series.role))
    named = [(str(number), series) for number, series in enumerate(order, 1)]
    summary = _summary(study, identity, again=again)
    return InspectedStudy(
        study_id=summary.study_id,
        reason=summary.reason,
        warnings=summary.warnings,
        roles=summary.roles,
        series_count=summary.series_count,
        again=again,
        identity=identity,
        series=tuple(_series(name, series, identity) for name, series in named),
        drawings=projections([(name, series.stacks) for name, series in named]),
    )


def _summary(study: Study, identity: Identity | None, *, again: bool) -> InspectedStudy:
    """Return what the page's list says of a study."""
    roles = Counter(ROLE_NAMES[series.role] for series in study.series if series.role is not None)
    in_order = [ROLE_NAMES[role] for role in _SHOWN_FIRST if ROLE_NAMES[role] in roles]
    return InspectedStudy(
        study_id=study.study_id,
        reason=None if study.reason is None else (study.reason, REASONS[study.reason]),
        warnings=tuple((warning, WARNINGS[warning]) for warning in study.warnings),
        roles=", ".join(f"{roles[name]} × {name}" if roles[name] > 1 else name for name in in_order) or "none",
        series_count=len(study.series),
        again=again,
        identity=identity,
    )


def _words_of(reason: str) -> Words:
    return REASONS[Reason(reason)]


def _series(name: str, series: Series, identity: Identity | None) -> InspectedSeries:
    contrast = " (STIR)" if series.contrast == "stir" and series.role is not None else ""
    return InspectedSeries(
        name=name,
        role="No role" if series.role is None else ROLE_NAMES[series.role].removesuffix("/STIR") + contrast,
        has_role=series.role is not None,
        evidence=series.evidence,
        refused=None if series.reason is None else (series.reason, REASONS[series.reason]),
        slices=series.slices,
        stacks=len(series.stacks),
        groups=_groups(name, series.stacks),
        path=None if identity is None else series.path,
        description=None if identity is None else identity.series.get(series.path),
    )


def _groups(name: str, stacks: Sequence[Stack]) -> tuple[StackGroup, ...]:
    """Return the stacks of a series by plane, matrix and pixel spacing, in the order of each group's first."""
    alike: dict[str, list[tuple[int, Stack]]] = {}
    for number, stack in enumerate(stacks):
        alike.setdefault(_common_words(stack), []).append((number, stack))
    window = robust_window(stacks) if stacks else None
    groups = []
    for words, members in alike.items():
        assert window is not None
        plane = plane_of(members[0][1])
        rows = tuple(_row(stack_name(name, number, len(stacks)), stack) for number, stack in members)
        picture = thumbnail(members[len(members) // 2][1], window)
        groups.append(
            StackGroup(picture=picture, words=f"{many(len(members), f'{plane} stack')} of {words}", rows=rows)
        )
    return tuple(groups)


def _common_words(stack: Stack) -> str:
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
