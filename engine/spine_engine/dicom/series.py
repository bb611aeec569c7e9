"""From what was read of each series to the study: contrasts, stacks, planes, roles, warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from spine_engine.dicom.geometry import BuiltStack, Slice, build_stacks, contrast_groups
from spine_engine.dicom.overrides import RoleOverrides
from spine_engine.dicom.pixels import Pixels
from spine_engine.dicom.roles import (
    MIN_SLICES,
    Decision,
    Part,
    decide,
    ineligible,
    plane_of,
)
from spine_engine.errors import Reason, Warn
from spine_engine.study import Role, Series, StoredSlice, Study


@dataclass
class ReadSeries:
    """What was read of one series.

    Attributes:
        series_uid: its SeriesInstanceUID, or "".
        path: the folder of its first file, relative to the input.
        slices: its decoded slices, in no order that matters.
        images: how many images its files declared.
        failures: how many images were lost, by reason.
        unread: why images that can play no role were not decoded.
    """

    series_uid: str
    path: str
    slices: list[Slice] = field(default_factory=list)
    images: int = 0
    failures: Counter[Reason] = field(default_factory=Counter)
    unread: list[str] = field(default_factory=list)


@dataclass
class _Contrast:
    """The slices of one contrast of a series, and the parts that were made of them."""

    slices: list[Slice]
    parts: list[Part] = field(default_factory=list)


@dataclass
class _Draft:
    """A series on its way: its contrasts with their parts, or a finished refusal; ``stated`` is the override's role."""

    read: ReadSeries
    stated: Role | None
    contrasts: list[_Contrast]
    warnings: set[Warn]
    notes: list[str]
    refusal: Series | None = None

    @property
    def parts(self) -> list[Part]:
        """The parts of all its contrasts."""
        return [part for contrast in self.contrasts for part in contrast.parts]


def assemble(
    study_id: str, read: Sequence[ReadSeries], overrides: RoleOverrides
) -> Study:
    """Build the study from its series."""
    drafts = [
        _draft(study_id, series, overrides)
        for series in sorted(read, key=lambda s: (s.path, s.series_uid))
    ]
    parts = [part for draft in drafts for part in draft.parts]
    decisions = dict(zip(map(id, parts), decide(parts), strict=True))
    warnings: set[Warn] = set()
    series: list[Series] = []
    frames_of_reference: set[str] = set()
    for draft in drafts:
        warnings |= draft.warnings
        if draft.refusal is not None:
            series.append(draft.refusal)
        stored = _stored(draft, decisions) if draft.parts else []
        for part, (kind, images) in zip(draft.parts, stored, strict=True):
            decision = decisions[id(part)]
            series.append(
                _series(part, decision, draft.notes, kind=kind, stored=images)
            )
            if decision.overridden:
                warnings.add(Warn.ROLE_OVERRIDDEN)
            if decision.role is not None:
                warnings |= {
                    warning for built in part.stacks for warning in built.warnings
                }
                frames_of_reference |= {
                    s.image.frame_of_reference
                    for built in part.stacks
                    for s in built.slices
                }
    roles = {s.role for s in series}
    for role, warning in (
        (Role.SAGITTAL_T1, Warn.NO_SAGITTAL_T1),
        (Role.SAGITTAL_T2, Warn.NO_SAGITTAL_T2),
        (Role.AXIAL_T2, Warn.NO_AXIAL_T2),
    ):
        if role not in roles:
            warnings.add(warning)
    if len(frames_of_reference - {""}) > 1:
        warnings.add(Warn.FRAME_OF_REFERENCE)
    in_order = tuple(warning for warning in Warn if warning in warnings)
    return Study(study_id, tuple(series), in_order, _study_reason(series))


def _draft(study_id: str, read: ReadSeries, overrides: RoleOverrides) -> _Draft:
    """Sort one series into stacks and parts, or refuse it."""
    stated = overrides.role(study_id, read.series_uid, read.path)
    failures = Counter(read.failures)
    groups: list[list[BuiltStack]] = []
    contrasts = [_Contrast(slices) for slices in contrast_groups(read.slices)]
    for contrast in contrasts:
        built, refused = build_stacks(contrast.slices)
        failures += refused
        groups.append(built)
    notes = (
        [f"{sum(failures.values())} slices dropped ({_counts(failures)})"]
        if failures
        else []
    )
    draft = _Draft(read, stated, contrasts, set(), notes)
    usable = [built for group in groups for built in group if len(built.slices) > 1]
    if not usable:
        reason = (
            _common(failures) if failures and not any(groups) else Reason.NOT_A_VOLUME
        )
        lost_kind = next(
            (why for s in read.slices if (why := ineligible(s.image, s.frame))), None
        )
        kind = next(iter(sorted(read.unread)), None) or (
            lost_kind if stated is None else None
        )
        if kind is not None:
            draft.refusal = Series(read.path, None, kind, (), read.images)
        else:
            evidence = "; ".join(["no stack of slices at different positions", *notes])
            draft.refusal = Series(read.path, None, evidence, (), 0, reason=reason)
            draft.warnings.add(Warn.SERIES_REFUSED)
        images = (_as_stored(one, one.pixels) for one in read.slices)
        stored = tuple(image for image in images if image is not None)
        draft.refusal = replace(
            draft.refusal, kind=stated, stored=stored if stated else ()
        )
        return draft
    if failures:
        draft.warnings.add(Warn.SLICE_DROPPED)
    for contrast, group in zip(contrasts, groups, strict=True):
        contrast.parts.extend(_parts(read, group, stated))
    return draft


def _stored(
    draft: _Draft, decisions: Mapping[int, Decision]
) -> list[tuple[Role | None, tuple[StoredSlice, ...]]]:
    """Return for each part of a draft the kind of its images, and the images: those of its stacks.

    A contrast's images that are in no stack go with its first part, if they are of one kind with all its parts.
    """
    parts: list[tuple[Role | None, list[StoredSlice]]] = []
    homeless: list[StoredSlice] = []
    for contrast in draft.contrasts:
        roles = {decisions[id(part)].role for part in contrast.parts} - {None}
        kind = draft.stated or (next(iter(roles)) if len(roles) == 1 else None)
        first = len(parts)
        in_stacks: set[int] = set()
        for part in contrast.parts:
            pairs = [
                pair
                for built in part.stacks
                for pair in zip(built.slices, built.stack.pixels, strict=True)
            ]
            in_stacks.update(id(one) for one, _ in pairs)
            images = [_as_stored(one, pixels) for one, pixels in pairs]
            parts.append(
                (
                    kind or decisions[id(part)].role,
                    [image for image in images if image is not None],
                )
            )
        if kind is not None:
            left = [
                _as_stored(one, one.pixels)
                for one in contrast.slices
                if id(one) not in in_stacks
            ]
            (parts[first][1] if contrast.parts else homeless).extend(
                image for image in left if image is not None
            )
    parts[0][1].extend(homeless)
    return [(kind, tuple(images)) for kind, images in parts]


def _as_stored(one: Slice, pixels: Pixels) -> StoredSlice | None:
    """Return a slice as its file has it, with its pixels or a stack's copy of them; None where it has no place."""
    frame, image = one.frame, one.image
    if (
        frame.position_mm is None
        or frame.orientation is None
        or frame.spacing_mm is None
    ):
        return None
    largest = -1 if image.signed else (1 << image.bits_stored) - 1
    return StoredSlice(
        pixels=pixels,
        flip=largest if image.monochrome1 else None,
        position_mm=frame.position_mm,
        orientation=frame.orientation,
        spacing_mm=frame.spacing_mm,
        thickness_mm=frame.thickness_mm,
    )


def _parts(
    read: ReadSeries, group: list[BuiltStack], stated: Role | None
) -> Iterable[Part]:
    """Sort one contrast's stacks by plane; stacks too short for a role stand apart, unless an override names them."""
    least = MIN_SLICES if stated is None else 2
    by_plane: dict[tuple[bool, str | None], list[BuiltStack]] = {}
    for built in group:
        long_enough = len(built.slices) >= least
        plane = plane_of(built.stack, built.slices[0].image.texts)
        by_plane.setdefault((not long_enough, plane), []).append(built)
    for (short, plane), stacks in sorted(
        by_plane.items(), key=lambda item: (item[0][0], item[0][1] or "")
    ):
        yield Part(
            read.path, read.series_uid, plane, tuple(stacks), None if short else stated
        )


def _series(
    part: Part,
    decision: Decision,
    notes: list[str],
    *,
    kind: Role | None,
    stored: tuple[StoredSlice, ...],
) -> Series:
    """Build the series record of one part."""
    evidence = "; ".join(
        [
            decision.evidence,
            *notes,
            *(note for built in part.stacks for note in built.notes),
        ]
    )
    stacks = tuple(built.stack for built in part.stacks)
    contrast = decision.contrast
    return Series(
        part.path,
        decision.role,
        evidence,
        stacks,
        part.slices,
        contrast,
        kind=kind,
        stored=stored,
    )


def _study_reason(series: list[Series]) -> Reason | None:
    """Say why a study cannot be graded: what is wrong with all its series if it is one thing, else no sagittal."""
    if any(s.role in (Role.SAGITTAL_T1, Role.SAGITTAL_T2) for s in series):
        return None
    reasons = {s.reason for s in series}
    if series and None not in reasons:
        geometry = {
            Reason.NO_ORIENTATION,
            Reason.NO_POSITION,
            Reason.NO_PIXEL_SPACING,
            Reason.BAD_ORIENTATION,
        }
        if len(reasons) == 1:
            return next(iter(reasons))
        if reasons <= geometry:
            return Reason.NO_GEOMETRY
    return Reason.NO_SAGITTAL


def _common(failures: Counter[Reason]) -> Reason:
    """Return the most frequent reason; ties go by the order of the reasons."""
    return max(Reason, key=lambda reason: failures[reason])


def _counts(failures: Counter[Reason]) -> str:
    return ", ".join(
        f"{reason} {failures[reason]}" for reason in Reason if failures[reason]
    )
