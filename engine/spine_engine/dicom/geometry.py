"""From the slices of one series to stacks of parallel slices at their true positions.

Frame: DICOM patient LPS mm. A slice's ImagePositionPatient is the centre of its first voxel; its orientation gives the
direction of growing columns ("right", first triple) and of growing rows ("down"); the normal is right x down
(PS3.3 C.7.6.2.1.1). Slices are ordered by the projection of their position on the normal, and by nothing else.
SpacingBetweenSlices and SliceThickness are never read. All choices depend on geometry first and on instance numbers
and paths only to choose between slices at one position, so file order and names change nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.dicom.header import FrameHeader, ImageHeader
from spine_engine.dicom.pixels import Pixels
from spine_engine.errors import Reason, StudyError, Warn
from spine_engine.study import Stack

PARALLEL_DEGREES: Final = 1.0
"""Slices belong to one stack when their normals and their row vectors agree within this angle."""
ORTHONORMAL_TOLERANCE: Final = 1e-3
"""An orientation this close to orthonormal is renormalised; one that is farther off is refused."""
SAME_POSITION_MM: Final = 0.05
"""Slices closer than this along the normal lie at one position; real MR slices are at least 0.3 mm apart."""
SAME_BLOCK_MM: Final = 1.0
"""Slices at one position along the normal, but farther apart than this in the plane, belong to different blocks."""
SAME_TILT_DEGREES: Final = 0.05
"""Slices of one prescribed block agree within this angle: headers keep about six digits."""
MIN_BLOCK: Final = 3
"""Nearly parallel slices are taken apart into blocks of at least this many."""
SPACING_TOLERANCE: Final = 1e-3
"""Pixel spacings within this fraction are one spacing."""
ROUNDING_MM: Final = 1e-8
"""Slack for the rounding of decimal fractions when spacings are compared."""
ECHO_TOLERANCE_MS: Final = 1.0
"""Echo times farther apart than this are different echoes."""
GAP_FACTOR: Final = 1.5
"""A distance of more than this many median distances is a gap: at least every other slice is missing there."""
MAX_NOTES: Final = 4
"""How many shared positions the evidence of one stack names."""
UNEVEN_FRACTION: Final = 0.1
"""Distances that differ from the median by more than this fraction (and are no gap) are uneven."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One decoded slice on its way into a stack."""

    path: str
    image: ImageHeader
    frame: FrameHeader
    pixels: Pixels

    @property
    def recency(self) -> tuple[int, str, int, int, str]:
        """What orders two slices at one position: the greatest is the latest."""
        image = self.image
        return (
            image.acquisition_number,
            self.frame.acquired,
            image.instance_number,
            self.frame.index,
            self.path,
        )


@dataclass(frozen=True, slots=True)
class PlacedSlice:
    """A slice with checked geometry.

    Attributes:
        source: the slice.
        origin_mm: the centre of its first voxel ``(3,)``.
        axes: orthonormal ``(3, 3)``: normal, down, right. Slices of one orientation share the array.
        axes_key: the nine numbers of ``axes``.
        spatial_key: what sorts slices in space, whatever their names: normal, right, origin.
    """

    source: Slice
    origin_mm: NDArray[np.float64]
    axes: NDArray[np.float64]
    axes_key: tuple[float, ...]
    spatial_key: tuple[float, ...]

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """Distance between rows and between columns."""
        spacing = self.source.frame.spacing_mm
        assert spacing is not None
        return spacing


@dataclass(frozen=True)
class BuiltStack:
    """A stack, the slices it was made of (in its order), and what was unusual."""

    stack: Stack
    slices: tuple[Slice, ...]
    warnings: frozenset[Warn]
    notes: tuple[str, ...]


def place(source: Slice) -> PlacedSlice:
    """Check and renormalise a slice's geometry.

    Raises:
        StudyError: position, orientation or spacing is missing or not finite, or the orientation is not orthonormal.
    """
    frame = source.frame
    if frame.orientation is None:
        raise StudyError(Reason.NO_ORIENTATION)
    if frame.position_mm is None:
        raise StudyError(Reason.NO_POSITION)
    if frame.spacing_mm is None:
        raise StudyError(Reason.NO_PIXEL_SPACING)
    axes, key = _orthonormal(frame.orientation)
    return PlacedSlice(
        source,
        np.array(frame.position_mm),
        axes,
        key,
        (*key[:3], *key[6:], *frame.position_mm),
    )


@lru_cache(maxsize=1024)  # the slices of a series share one orientation, or a few
def _orthonormal(
    orientation: tuple[float, ...],
) -> tuple[NDArray[np.float64], tuple[float, ...]]:
    """Return the axes of an orientation (normal, down, right) as an array and as nine numbers.

    Raises:
        StudyError: it is not orthonormal.
    """
    right, down = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.array([np.linalg.norm(right), np.linalg.norm(down)])
    if (
        np.abs(lengths - 1).max() > ORTHONORMAL_TOLERANCE
        or abs(float(right @ down)) > ORTHONORMAL_TOLERANCE
    ):
        raise StudyError(Reason.BAD_ORIENTATION)
    right = right / lengths[0]
    down = down - right * (right @ down)
    down = down / np.linalg.norm(down)
    axes = np.stack([np.cross(right, down), down, right])
    axes.flags.writeable = False
    return axes, tuple(axes.ravel().tolist())


def contrast_groups(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Split a series by echo, b-value, time, kind of image and signedness: one contrast at one time each.

    Groups come in ascending order of what splits them.
    """
    echo_of = _echo_labels(slices)
    groups: dict[tuple[float, ...], list[Slice]] = {}
    kind_of = {
        image_type: image_kind(image_type)
        for image_type in {s.frame.image_type for s in slices}
    }
    kinds = sorted(set(kind_of.values()))
    for s in slices:
        frame = s.frame
        kind = float(kinds.index(kind_of[frame.image_type]))
        key = (
            echo_of[id(s)],
            frame.b_value or 0.0,
            float(frame.temporal or 0),
            kind,
            frame.inversion_time_ms or 0.0,
        )
        groups.setdefault(key, []).append(s)
    return [groups[key] for key in sorted(groups)]


def _echo_labels(slices: Sequence[Slice]) -> dict[int, float]:
    """Label each slice with the smallest echo time of its cluster, or with minus its echo number where none is said."""
    times = sorted(
        {s.frame.echo_time_ms for s in slices if s.frame.echo_time_ms is not None}
    )
    label: dict[float, float] = {}
    for before, time in zip([None, *times], times, strict=False):
        close = before is not None and time - before <= ECHO_TOLERANCE_MS
        label[time] = label[before] if close and before is not None else time
    return {
        id(s): -float(s.frame.echo_number or 0)
        if s.frame.echo_time_ms is None
        else label[s.frame.echo_time_ms]
        for s in slices
    }


# ImageType values (PS3.3 C.7.6.1.1.2, C.8.3.1.1.1) that make an image something else than an anatomical slice.
_KINDS: Final = (
    ("mosaic", ("MOSAIC",)),
    ("localizer", ("LOCALIZER", "SCOUT")),
    ("projection", ("PROJECTION IMAGE", "PROJECTION", "MIP", "MNIP", "MAX_IP")),
    ("reformat", ("MPR", "REFORMATTED", "CSA MPR", "CURVED")),
    ("screen save", ("SCREEN SAVE", "CSA REPORT", "PROTOCOL", "SCREENSHOT")),
    (
        "map",
        (
            "ADC",
            "FA",
            "EADC",
            "T2 MAP",
            "T1 MAP",
            "T2_STAR",
            "DIFFUSION MAP",
            "R2",
            "PERFUSION",
            "FIELD_MAP",
        ),
    ),
    (
        "phase",
        (
            "P",
            "PHASE",
            "PHASE MAP",
            "PHASE_MAP",
            "I",
            "R",
            "REAL",
            "IMAGINARY",
            "VELOCITY",
            "VELOCITY MAP",
        ),
    ),
    ("derived", ("DERIVED",)),
    ("water", ("WATER", "W")),
    ("fat", ("FAT", "F")),
    ("in phase", ("IN_PHASE", "IP", "IN PHASE")),
    ("opposed phase", ("OPP_PHASE", "OP", "OUT_PHASE", "OPPOSED PHASE")),
)


def image_kind(image_type: tuple[str, ...]) -> str:
    """Name what kind of image ``ImageType`` says this is; ``"slice"`` for an ordinary one."""
    return next(
        (kind for kind, words in _KINDS if any(word in image_type for word in words)),
        "slice",
    )


def build_stacks(slices: Sequence[Slice]) -> tuple[list[BuiltStack], Counter[Reason]]:
    """Sort one contrast's slices into stacks of parallel slices, and count the slices that have no usable geometry.

    Stacks come in a fixed spatial order: of falling height (superior first), then from the left, then from the back.
    """
    placed: list[PlacedSlice] = []
    refused: Counter[Reason] = Counter()
    for s in slices:
        try:
            placed.append(place(s))
        except StudyError as error:
            refused[error.reason] += 1
    built: list[BuiltStack] = []
    for parallel in _parallel_groups(placed):
        consistent, mixed = _largest_consistent(parallel)
        built.extend(_stack(block, mixed) for block in _blocks(consistent))
    built.sort(key=lambda b: tuple(-b.stack.center_mm[[2, 0, 1]].round(3)))
    return built, refused


def _parallel_groups(placed: Sequence[PlacedSlice]) -> list[list[PlacedSlice]]:
    """Cluster slices by StackID and by normals and row vectors within ``PARALLEL_DEGREES`` of a group's leader.

    The most frequent orientation leads first; ties go by the orientation itself.
    """
    least = np.cos(np.deg2rad(PARALLEL_DEGREES))
    turns = {key: np.array([key[:3], key[6:]]) for key in {p.axes_key for p in placed}}
    orientations: Counter[tuple[float, ...]] = Counter()
    for key, count in Counter(p.axes_key for p in placed).items():
        orientations[tuple(turns[key].round(5).ravel().tolist())] += count
    leaders: list[NDArray[np.float64]] = []
    for orientation, _ in sorted(
        orientations.items(), key=lambda item: (-item[1], item[0])
    ):
        axes = np.array(orientation).reshape(2, 3)
        if all((axes * leader).sum(axis=1).min() < least for leader in leaders):
            leaders.append(axes)
    nearest = {
        key: int(
            np.argmax([float((turn * leader).sum(axis=1).min()) for leader in leaders])
        )
        for key, turn in turns.items()
    }
    groups: list[list[PlacedSlice]] = [[] for _ in leaders]
    for p in sorted(placed, key=lambda p: p.spatial_key):
        groups[nearest[p.axes_key]].append(p)
    ids = sorted({p.source.frame.stack_id for p in placed})
    by_id = [
        [p for p in group if p.source.frame.stack_id == stack_id]
        for group in groups
        for stack_id in ids
    ]
    return [group for group in by_id if group]


def _largest_consistent(parallel: list[PlacedSlice]) -> tuple[list[PlacedSlice], int]:
    """Keep the largest group of one matrix, spacing and signedness; also return how many slices that leaves out."""
    groups: dict[
        tuple[int, int, bool], dict[tuple[float, float], list[PlacedSlice]]
    ] = {}
    for p in parallel:
        image = p.source.image
        by_spacing = groups.setdefault((image.rows, image.columns, image.signed), {})
        spacing = next(
            (s for s in by_spacing if _same_spacing(s, p.spacing_mm)), p.spacing_mm
        )
        by_spacing.setdefault(spacing, []).append(p)
    candidates = [
        (len(g), shape, spacing, g)
        for shape, by in groups.items()
        for spacing, g in by.items()
    ]
    best = max(candidates, key=lambda c: c[:3])
    return best[3], len(parallel) - best[0]


def _same_spacing(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(
        abs(a - b) <= ROUNDING_MM + SPACING_TOLERANCE * b
        for a, b in zip(one, other, strict=True)
    )


def _blocks(consistent: list[PlacedSlice]) -> list[list[PlacedSlice]]:
    """Split parallel slices that share positions along the normal yet lie side by side in the plane."""
    axes = consistent[0].axes
    placed = sorted(
        ((float(p.origin_mm @ axes[0]), p.spatial_key, p) for p in consistent),
        key=lambda item: item[:2],
    )
    along, ordered = [item[0] for item in placed], [item[2] for item in placed]
    in_plane = [axes[1:] @ p.origin_mm for p in ordered]
    side_by_side = any(
        b - a < SAME_POSITION_MM
        and np.abs(in_plane[i + 1] - in_plane[i]).max() > SAME_BLOCK_MM
        for i, (a, b) in enumerate(pairwise(along))
    )
    if not side_by_side:
        return _split_where_tilt_changes(ordered, along, in_plane)
    blocks: list[tuple[NDArray[np.float64], list[PlacedSlice]]] = []
    for p, where in zip(ordered, in_plane, strict=True):
        near = [
            (float(np.abs(last - where).max()), i) for i, (last, _) in enumerate(blocks)
        ]
        distance, nearest = min(near, default=(np.inf, -1))
        if distance <= SAME_BLOCK_MM:
            blocks[nearest][1].append(p)
            blocks[nearest] = (where, blocks[nearest][1])
        else:
            blocks.append((where, [p]))
    return [block for _, block in blocks]


def _split_where_tilt_changes(
    ordered: list[PlacedSlice], along: list[float], in_plane: list[NDArray[np.float64]]
) -> list[list[PlacedSlice]]:
    """Split nearly parallel blocks: where the tilt changes at a jump, and every block holds ``MIN_BLOCK`` slices."""
    if len(ordered) < 2 * MIN_BLOCK:
        return [ordered]
    usual = float(np.median(np.diff(along)))
    least = np.cos(np.deg2rad(SAME_TILT_DEGREES))
    blocks = [[ordered[0]]]
    for i in range(1, len(ordered)):
        before, p = ordered[i - 1 : i + 1]
        if (
            p.axes is not before.axes
            and (p.axes * before.axes).sum(axis=1).min() < least
        ):
            aside = np.abs(in_plane[i] - in_plane[i - 1]).max() > SAME_BLOCK_MM
            if aside or along[i] - along[i - 1] > GAP_FACTOR * usual:
                blocks.append([])
        blocks[-1].append(p)
    return blocks if min(map(len, blocks)) >= MIN_BLOCK else [ordered]


def _stack(block: list[PlacedSlice], left_out: int) -> BuiltStack:
    """Build one stack from ordered, consistent slices, after duplicates at one position are settled."""
    axes = Counter(p.axes_key for p in block)
    leader = np.array(max(axes, key=lambda a: (axes[a], a))).reshape(3, 3)
    block = sorted(
        block, key=lambda p: (float(p.origin_mm @ leader[0]), p.source.recency)
    )
    kept, warnings, notes = _without_duplicates(block, leader[0])
    warnings |= _spacing_warnings([float(p.origin_mm @ leader[0]) for p in kept])
    if left_out:
        warnings.add(Warn.MIXED_MATRIX)
        notes.append(f"{left_out} slices of another matrix or spacing left out")
    stack = Stack(
        pixels=np.stack([p.source.pixels for p in kept]),  # type: ignore[arg-type]
        slope=np.array([p.source.frame.slope for p in kept], np.float32),
        intercept=np.array([p.source.frame.intercept for p in kept], np.float32),
        origins_mm=np.stack([p.origin_mm for p in kept]),
        axes=leader,
        spacing_mm=kept[0].spacing_mm,
    )
    return BuiltStack(
        stack, tuple(p.source for p in kept), frozenset(warnings), tuple(notes)
    )


def _without_duplicates(
    block: list[PlacedSlice], normal: NDArray[np.float64]
) -> tuple[list[PlacedSlice], set[Warn], list[str]]:
    """Keep one slice a position: exact copies are dropped, of different images the latest stays."""
    kept: list[PlacedSlice] = []
    warnings: set[Warn] = set()
    notes: list[str] = []
    copies = 0
    for same in _positions(block, normal):
        if len(same) == 1:
            kept.append(same[0])
            continue
        distinct = {
            _pixel_hash(p): p for p in same
        }  # the last of equal ones is the latest
        copies += len(same) - len(distinct)
        latest = max(distinct.values(), key=lambda p: p.source.recency)
        kept.append(latest)
        if len(distinct) > 1:
            warnings.add(Warn.DUP_POSITION)
            if len(notes) < MAX_NOTES:
                numbers = " and ".join(_numbers_of(p) for p in distinct.values())
                where = float(latest.origin_mm @ normal)
                notes.append(
                    f"acquisition/instance {numbers} share position {where:.2f} mm, {_numbers_of(latest)} kept"
                )
    if copies:
        warnings.add(Warn.DUP_FILE)
        notes.append(f"{copies} exact copies dropped")
    return kept, warnings, notes


def _numbers_of(p: PlacedSlice) -> str:
    return f"{p.source.image.acquisition_number}/{p.source.image.instance_number}"


def _spacing_warnings(positions_mm: list[float]) -> set[Warn]:
    """Say whether ascending positions have gaps or are uneven."""
    distances = np.diff(positions_mm)
    if len(distances) < 2:
        return set()
    warnings: set[Warn] = set()
    median = float(np.median(distances))
    regular = distances[distances <= GAP_FACTOR * median]
    if len(regular) < len(distances):
        warnings.add(Warn.GAP)
    if np.abs(regular - median).max() > max(UNEVEN_FRACTION * median, SAME_POSITION_MM):
        warnings.add(Warn.UNEVEN)
    return warnings


def _positions(
    block: list[PlacedSlice], normal: NDArray[np.float64]
) -> list[list[PlacedSlice]]:
    """Gather ordered slices that lie at one position along the normal."""
    positions: list[list[PlacedSlice]] = []
    for p in block:
        if (
            positions
            and float((p.origin_mm - positions[-1][0].origin_mm) @ normal)
            < SAME_POSITION_MM
        ):
            positions[-1].append(p)
        else:
            positions.append([p])
    return positions


def _pixel_hash(p: PlacedSlice) -> bytes:
    """Hash what a slice shows: its pixels and their rescale."""
    frame = p.source.frame
    digest = hashlib.sha256(np.array([frame.slope, frame.intercept]).tobytes())
    digest.update(np.ascontiguousarray(p.source.pixels).tobytes())
    return digest.digest()
