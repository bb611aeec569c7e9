"""What a study is once its files are read: series of stacks of parallel slices, placed in patient LPS millimetres.

Frame: DICOM patient coordinates, LPS (+x the patient's left, +y posterior, +z superior), millimetres. The positions
and axes come from ImagePositionPatient, ImageOrientationPatient and PixelSpacing alone (DICOM PS3.3 C.7.6.2.1.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.errors import Reason, Warn

AXES_TOLERANCE = 1e-4
"""How far the rows of ``Stack.axes`` may be from orthonormal; the reader renormalises before it builds a stack."""


PLACE_DECIMALS: Final = 3
AXIS_DECIMALS: Final = 9
"""Decimals of places (mm) and of unit vectors. Detection gives no more than these, so that ``studies.jsonl`` holds the
very boxes that were graded: with nine decimals axes are orthonormal to 1e-8."""


class Role(StrEnum):
    """The part a series plays in the grading. STIR plays ``SAGITTAL_T2``, as in the RSNA 2024 data."""

    SAGITTAL_T1 = "sagittal_t1"
    SAGITTAL_T2 = "sagittal_t2"
    AXIAL_T2 = "axial_t2"


class Source(StrEnum):
    """How the place of a disc level is known: from the detector, between its neighbours, from the field of view, or
    between vertebral centres that the user gave."""

    DETECTOR = "detector"
    INTERPOLATED = "interpolated"
    PRIOR = "prior"
    GIVEN = "given"


@dataclass(frozen=True, eq=False, repr=False)
class Stack:
    """Parallel slices with one matrix and one pixel spacing, at their true (maybe uneven) positions.

    Attributes:
        pixels: stored values ``(S, R, C)``, uint16 or int16, C-contiguous: sign-extended, MONOCHROME1 inverted.
        slope, intercept: ``(S,)`` float32, the modality rescale of each slice: ``value = slope * stored + intercept``.
        origins_mm: ``(S, 3)`` float64, the centre of voxel ``[s, 0, 0]`` in LPS mm; ascending along ``axes[0]``.
        axes: ``(3, 3)`` float64, rows are orthonormal LPS vectors: slice normal (``axes[2] x axes[1]``), the way row
            indices grow ("down"), the way column indices grow ("right").
        spacing_mm: distance between rows and between columns, mm (DICOM PixelSpacing order).

    Raises:
        ValueError: shapes disagree, the axes are not orthonormal, or the slices are not in ascending order.
    """

    pixels: NDArray[np.uint16] | NDArray[np.int16]
    slope: NDArray[np.float32]
    intercept: NDArray[np.float32]
    origins_mm: NDArray[np.float64]
    axes: NDArray[np.float64]
    spacing_mm: tuple[float, float]

    def __post_init__(self) -> None:
        slices = self.pixels.shape[0] if self.pixels.ndim == 3 else -1
        if slices < 1 or self.pixels.dtype not in (np.uint16, np.int16):
            raise ValueError(
                f"pixels must be (S, R, C) uint16 or int16, got {self.pixels.shape} {self.pixels.dtype}"
            )
        if (
            self.slope.shape != (slices,)
            or self.intercept.shape != (slices,)
            or self.origins_mm.shape != (slices, 3)
        ):
            raise ValueError(
                f"slope, intercept and origins_mm must have {slices} entries, one a slice"
            )
        if (
            self.axes.shape != (3, 3)
            or np.abs(self.axes @ self.axes.T - np.eye(3)).max() > AXES_TOLERANCE
        ):
            raise ValueError("axes must be three orthonormal rows")
        if min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm must be positive, got {self.spacing_mm}")
        if np.any(np.diff(self.positions_mm) <= 0):
            raise ValueError(
                "slices must ascend along axes[0], each at a position of its own"
            )

    def __repr__(self) -> str:
        slices, rows, columns = self.pixels.shape
        return f"<Stack of {slices} slices of {rows} x {columns}>"

    @property
    def positions_mm(self) -> NDArray[np.float64]:
        """Positions of the slices along the normal ``(S,)``, mm, strictly ascending."""
        positions: NDArray[np.float64] = self.origins_mm @ self.axes[0]
        return positions

    @property
    def slice_spacing_mm(self) -> float:
        """Median distance between neighbouring slices, mm; 0.0 for a single slice."""
        return (
            float(np.median(np.diff(self.positions_mm)))
            if len(self.pixels) > 1
            else 0.0
        )

    @property
    def center_mm(self) -> NDArray[np.float64]:
        """The middle of the stack ``(3,)``, LPS mm."""
        rows, columns = self.pixels.shape[1:]
        down = self.axes[1] * self.spacing_mm[0] * (rows - 1) / 2
        right = self.axes[2] * self.spacing_mm[1] * (columns - 1) / 2
        middle: NDArray[np.float64] = (
            (self.origins_mm[0] + self.origins_mm[-1]) / 2 + down + right
        )
        return middle


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class StoredSlice:
    """One image as its file has it: nothing is renormalised, sorted or left out. What grids of recipes are made of.

    Attributes:
        pixels: ``(R, C)`` uint16 or int16; shared with the stack that the image is part of, if any.
        flip: where the file is MONOCHROME1, ``pixels`` are inverted and ``flip - pixels`` is what it stores; else None.
        position_mm: ImagePositionPatient, the centre of the first pixel.
        orientation: ImageOrientationPatient: the way column indices grow, then the way row indices grow.
        spacing_mm: PixelSpacing: between rows, between columns.
        thickness_mm: SliceThickness; None where the file has none.
    """

    pixels: NDArray[np.uint16] | NDArray[np.int16]
    flip: int | None
    position_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing_mm: tuple[float, float]
    thickness_mm: float | None

    def __repr__(self) -> str:
        return f"<StoredSlice of {self.pixels.shape[0]} x {self.pixels.shape[1]}>"

    @property
    def stored(self) -> NDArray[np.uint16] | NDArray[np.int16]:
        """The stored values ``(R, C)``: ``pixels`` itself, or a copy that is not inverted."""
        if self.flip is None:
            return self.pixels
        return (self.flip - self.pixels.astype(np.int32)).astype(self.pixels.dtype)  # type: ignore[return-value]


@dataclass(frozen=True, eq=False, repr=False)
class Series:
    """One series of a study: what it is used for, why, and its stacks.

    Attributes:
        path: the folder of its first file, relative to the input folder, with forward slashes.
        role: the part it plays, or None when it takes none (``evidence`` says why).
        evidence: one sentence a person can read: the numbers, text or override that decided.
        stacks: its stacks in a fixed spatial order; empty when the series was refused.
        slices: how many images were kept.
        contrast: ``"t1"``, ``"t2"``, ``"stir"`` or ``"pd"`` where known; a STIR series may play ``SAGITTAL_T2``.
        reason: why the series cannot be used at all; None for a sound series, with or without a role.
        kind: what its images count as where every image of a kind takes part, as in grids of recipes: what the series
            table states, else the role that images of its contrast play; None when there is neither.
        stored: every image of the series that was decoded and can be placed: those of its stacks, duplicates, and
            those of no stack.
    """

    path: str
    role: Role | None
    evidence: str
    stacks: tuple[Stack, ...]
    slices: int
    contrast: str | None = None
    reason: Reason | None = None
    kind: Role | None = None
    stored: tuple[StoredSlice, ...] = ()

    def __repr__(self) -> str:
        return f"<Series {self.path!r}: {self.role or 'no role'}, {self.slices} slices>"


@dataclass(frozen=True, eq=False, repr=False)
class Study:
    """One study of one patient. Series are sorted by path; nothing here names the patient.

    ``reason`` says why the study cannot be graded as far as its files tell (no sagittal series, identifiers that
    contradict each other, nothing readable); None when grading can begin.
    """

    study_id: str
    series: tuple[Series, ...]
    warnings: tuple[Warn, ...] = ()
    reason: Reason | None = None

    def __repr__(self) -> str:
        return f"<Study {self.study_id}: {len(self.series)} series{f', {self.reason}' if self.reason else ''}>"

    @property
    def sagittal_stacks(self) -> list[tuple[Stack, ...]]:
        """The stacks of each sagittal series that plays a role, T1 before T2: what detection looks at."""
        roles = (Role.SAGITTAL_T1, Role.SAGITTAL_T2)
        return [series.stacks for role in roles for series in self.with_role(role)]

    def with_role(self, role: Role) -> Iterator[Series]:
        """Yield the series that play ``role``: at most one sagittal T1, one sagittal T2, any number of axial T2."""
        return (series for series in self.series if series.role is role)
