"""Scan protocols of phantoms: sequences, slices, fields of view, and the planes that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from spine_engine.phantom.signal import Sequence
from spine_engine.phantom.spine import FIRST_DISC, PhantomSpine
from spine_engine.study import Role

FloatArray = NDArray[np.float64]
Axial = Literal["disc_stacks", "block", "none"]

SLICE_THICKNESS_SHARE: Final = 0.9
"""Slice thickness as a share of the distance between slices; the rest is gap."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A scan protocol; lengths in mm, angles in degrees. ``Protocol.draw`` gives the variety of many scanners.

    Attributes:
        sagittal: contrasts of the sagittal series, of ``"t1"``, ``"t2"``, ``"stir"``; they share one set of planes.
        axial: five stacks along the discs, one block of parallel slices, or no axial series.
        sagittal_slices, sagittal_step_mm, sagittal_fov_mm, sagittal_matrix, sagittal_center_mm: the sagittal planes;
            the last is the distance of their centre below the middle of L3.
        axial_slices, axial_step_mm, axial_fov_mm, axial_matrix: the axial planes; slices are per disc, at least five
            in drawn protocols, because shorter stacks get no role.
        tilt_deg: standard deviation of the planes' tilts against the anatomy.
        follow_patient: planes turn with the patient's pose, as a careful technician plans them; else they stay upright.
        noise: standard deviation of the complex noise as a share of the 99th percentile of the signal.
        coil_falloff: 0 for an even image, 1 for a strong surface coil at the back.
        saturation: share of the signal in front of the spine that a saturation band leaves; 1 for no band.
        ghost: strength of one motion ghost as a share of the signal.
    """

    sagittal: tuple[str, ...] = ("t1", "t2")
    axial: Axial = "disc_stacks"
    sagittal_slices: int = 15
    sagittal_step_mm: float = 4.4
    sagittal_fov_mm: float = 280.0
    sagittal_matrix: int = 384
    sagittal_center_mm: float = 5.0
    axial_slices: int = 5
    axial_step_mm: float = 4.0
    axial_fov_mm: float = 180.0
    axial_matrix: int = 256
    tilt_deg: float = 1.5
    follow_patient: bool = True
    noise: float = 0.02
    coil_falloff: float = 0.5
    saturation: float = 1.0
    ghost: float = 0.0

    def __post_init__(self) -> None:
        if not set(self.sagittal) <= {"t1", "t2", "stir"}:
            raise ValueError(f"sagittal must hold t1, t2, stir, got {self.sagittal}")
        if (
            min(
                self.sagittal_slices,
                self.sagittal_matrix,
                self.axial_slices,
                self.axial_matrix,
            )
            < 1
        ):
            raise ValueError("slices and matrices must be positive")
        if (
            min(
                self.sagittal_step_mm,
                self.sagittal_fov_mm,
                self.axial_step_mm,
                self.axial_fov_mm,
            )
            <= 0
        ):
            raise ValueError("steps and fields of view must be positive")

    @classmethod
    def draw(cls, seed: int) -> Protocol:
        """Draw a protocol with the variety of many scanners: resolution, field of view, T2 or STIR, axial layout."""
        rng = np.random.default_rng([seed, 11])
        fov = float(rng.uniform(220, 340))
        matrix = int(np.clip(32 * round(fov / rng.uniform(0.68, 0.95) / 32), 256, 448))
        chance = rng.random()
        contrasts = (
            ("t1", "t2")
            if chance < 0.82
            else ("t1", "stir")
            if chance < 0.92
            else ("t1", "t2", "stir")
        )
        axial_fov = float(rng.uniform(150, 220))
        return cls(
            sagittal=contrasts,
            axial="disc_stacks" if rng.random() < 0.85 else "block",
            sagittal_slices=int(rng.integers(13, 18)),
            sagittal_step_mm=float(rng.uniform(4.0, 5.0)),
            sagittal_fov_mm=fov,
            sagittal_matrix=matrix,
            sagittal_center_mm=float(rng.normal(8, 10)),
            axial_slices=int(rng.integers(5, 7)),
            axial_step_mm=float(rng.uniform(3.8, 4.6)),
            axial_fov_mm=axial_fov,
            axial_matrix=int(
                np.clip(32 * round(axial_fov / rng.uniform(0.62, 0.85) / 32), 192, 320)
            ),
            noise=float(rng.uniform(0.008, 0.035)),
            coil_falloff=float(rng.uniform(0.0, 1.0)),
            saturation=1.0 if rng.random() < 0.45 else float(rng.uniform(0.15, 0.8)),
            ghost=float(rng.uniform(0.0, 0.05)) if rng.random() < 0.3 else 0.0,
        )


@dataclass(frozen=True, eq=False)
class Planes:
    """Parallel slices in the canonical frame.

    Attributes:
        center_mm: ``(3,)``, the middle of all slices.
        axes: ``(3, 3)`` unit vectors through the slices, down the rows, along the columns; right-handed as in
            ``study.Stack``.
        shape: numbers of slices, rows and columns.
        step_mm: distances of slices, rows and columns.
    """

    center_mm: FloatArray
    axes: FloatArray
    shape: tuple[int, int, int]
    step_mm: tuple[float, float, float]

    @property
    def origin_mm(self) -> FloatArray:
        """The centre of voxel ``[0, 0, 0]``."""
        half = [(n - 1) / 2 * d for n, d in zip(self.shape, self.step_mm, strict=True)]
        return self.center_mm - np.array(half) @ self.axes


@dataclass(frozen=True, eq=False)
class SeriesPlan:
    """A group of series: its planes and the sequences acquired on them."""

    role_prefix: Literal["sagittal", "axial"]
    planes: tuple[Planes, ...]
    sequences: tuple[Sequence, ...] = field(default_factory=tuple)


def plan(spine: PhantomSpine, protocol: Protocol, seed: int) -> list[SeriesPlan]:
    """Lay out the planes of a study in the canonical frame and choose echo and repetition times."""
    rng = np.random.default_rng([seed, 12])
    tilts = np.radians(rng.normal(0, protocol.tilt_deg, (12, 3)))
    upright = np.eye(3) if protocol.follow_patient else _pose_only(spine).T
    middle = spine.shape.center_mm
    plans = []
    if protocol.sagittal:
        down = np.array([0.0, 0, -1])
        right = np.array([0.0, 1, 0])
        axes = (
            np.stack([np.cross(right, down), down, right])
            @ _small_rotation(tilts[0]).T
            @ upright.T
        )
        step = protocol.sagittal_fov_mm / protocol.sagittal_matrix
        shift = np.array(
            [rng.normal(0, 1.2), rng.normal(-5, 8), -protocol.sagittal_center_mm]
        )
        planes = Planes(
            middle + upright @ shift,
            axes,
            (
                protocol.sagittal_slices,
                protocol.sagittal_matrix,
                protocol.sagittal_matrix,
            ),
            (protocol.sagittal_step_mm, step, step),
        )
        sequences = tuple(_sequence(contrast, rng) for contrast in protocol.sagittal)
        plans.append(SeriesPlan("sagittal", (planes,), sequences))
    if protocol.axial != "none":
        plans.append(
            SeriesPlan(
                "axial",
                _axial_planes(spine, protocol, tilts, upright, rng),
                (_axial_t2(rng),),
            )
        )
    return plans


def role_of(prefix: str, contrast: str) -> Role:
    """Return the role of a series of this plane and contrast."""
    if prefix == "axial":
        return Role.AXIAL_T2
    return Role.SAGITTAL_T1 if contrast == "t1" else Role.SAGITTAL_T2


def _axial_planes(
    spine: PhantomSpine,
    protocol: Protocol,
    tilts: FloatArray,
    upright: FloatArray,
    rng: np.random.Generator,
) -> tuple[Planes, ...]:
    step = protocol.axial_fov_mm / protocol.axial_matrix
    matrix = protocol.axial_matrix
    frames = [
        spine.curve.frame_at(float(s))
        for s in spine.curve.discs[FIRST_DISC : FIRST_DISC + 5]
    ]
    if protocol.axial == "block":
        centers = [center for center, _ in frames]
        height_mm = float(centers[0][2] - centers[-1][2])
        groups = [
            (np.mean(centers, axis=0), 0.0, int(height_mm / protocol.axial_step_mm) + 6)
        ]
    else:
        groups = [
            (center, float(np.arctan2(-axes[0][1], -axes[0][2])), protocol.axial_slices)
            for center, axes in frames
        ]
    planes = []
    for k, (center, tilt, slices) in enumerate(groups):
        down = np.array([0.0, np.cos(tilt), -np.sin(tilt)])
        right = np.array([1.0, 0.0, 0.0])
        axes = (
            np.stack([np.cross(right, down), down, right])
            @ _small_rotation(tilts[1 + k]).T
        )
        if not protocol.follow_patient:
            axes = axes @ upright.T
        shift = (
            np.array([rng.normal(0, 2), 12 + rng.normal(0, 4), 0.0]) @ axes[[2, 1, 0]]
        )
        shift += axes[0] * rng.normal(0, 1.0)
        planes.append(
            Planes(
                center + shift,
                axes,
                (slices, matrix, matrix),
                (protocol.axial_step_mm, step, step),
            )
        )
    return tuple(planes)


def _sequence(contrast: str, rng: np.random.Generator) -> Sequence:
    """Draw times of a sagittal sequence as clinical 1.5 T protocols have them."""
    if contrast == "t1":
        return Sequence(
            contrast="t1",
            tr_ms=float(rng.integers(450, 720)),
            te_ms=float(rng.integers(8, 15)),
        )
    if contrast == "stir":
        return Sequence(
            contrast="stir",
            tr_ms=float(rng.integers(3200, 5200)),
            te_ms=float(rng.integers(45, 80)),
            ti_ms=float(rng.integers(150, 181)),
        )
    return Sequence(
        contrast="t2",
        tr_ms=float(rng.integers(2600, 4600)),
        te_ms=float(rng.integers(85, 122)),
    )


def _axial_t2(rng: np.random.Generator) -> Sequence:
    return Sequence(
        contrast="t2",
        tr_ms=float(rng.integers(3000, 5200)),
        te_ms=float(rng.integers(88, 122)),
    )


def _small_rotation(angles: FloatArray) -> FloatArray:
    """Return the rotation about x, then y, then z by three angles in radians."""
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        i = (axis + 1) % 3
        j = (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[j, i] = np.sin(angle)
        turn[i, j] = -turn[j, i]
        rotation = turn @ rotation
    return rotation


def _pose_only(spine: PhantomSpine) -> FloatArray:
    """Return the patient's pose without the mirror: the proper rotation in ``rotation``."""
    flip = np.diag([-1.0, 1.0, 1.0])
    return spine.rotation @ flip if spine.is_mirrored else spine.rotation
