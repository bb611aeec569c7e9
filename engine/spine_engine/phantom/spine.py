"""The phantom's anatomy: a parametric lumbar spine, drawn from a seed, placed in the patient, with known truth.

The spine is described in a frame of its own, the *canonical* frame: LPS axes, the middle of L3's body near the origin,
the patient upright in the scanner. Along the centre curve a point has three coordinates in mm: ``s`` down the curve,
``h`` towards the back, ``w`` towards the patient's left; discs and bodies are simple shapes in (s, h, w).
``rotation`` and ``translation_mm`` map canonical to patient LPS coordinates; for a mirrored spine they reflect.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import CONDITIONS, LEVELS, MIRRORED_CONDITION
from spine_engine.phantom.severity import (
    draw_narrowing,
    read_grades,
    reader_probabilities,
)

FloatArray = NDArray[np.float64]
Number = TypeVar("Number", np.float64, np.int64)

VERTEBRAE: Final = (
    "T8",
    "T9",
    "T10",
    "T11",
    "T12",
    "L1",
    "L2",
    "L3",
    "L4",
    "L5",
    "S1",
    "S2",
    "S3",
    "S4",
    "S5",
)
FIRST_DISC: Final = 5
"""Index of the L1/L2 disc; disc ``j`` lies between vertebrae ``j`` and ``j + 1``."""

CURVE_STEP_MM: Final = 0.5
CURVE_MARGIN_MM: Final = 60.0

# Adult means, mm, by vertebra T8 .. S5 (rounded from published lumbar morphometry: Panjabi et al., Spine 17 (1992) 299
# for bodies, canals and pedicles) and segmental sagittal tilt for about 55 degrees of lordosis over 40 of sacral slope.
_BODY_HEIGHT = (20, 21, 22, 23, 25, 26, 27, 28, 27.5, 27, 29, 24, 20, 17, 15)
_HALF_DEPTH = (
    14.5,
    15,
    15.5,
    16,
    16.5,
    16.5,
    17,
    17.3,
    17.5,
    17.5,
    13.5,
    9.5,
    7.5,
    6,
    5,
)
_HALF_WIDTH = (15, 15.5, 16.5, 18, 19.5, 20.5, 22, 23.5, 25, 26.5, 26, 20, 17, 14, 10)
_TILT_DEG = (6, 2, -4, -10, -15, -18, -17, -11, -2, 14, 38, 50, 47, 25, -8)
_CANAL_DEPTH = (15.5, 15.5, 16, 16.5, 17, 17.5, 17.2, 17, 17, 17, 15, 11, 8, 6, 4)
_CANAL_HALF_WIDTH = (10, 10, 10.5, 11, 11.5, 11.5, 11.5, 12, 12.5, 14, 15, 11, 8, 5, 3)
_DISC_HEIGHT = (4.5, 4.8, 5, 5.5, 7, 8, 9, 10, 11, 10, 3.0, 1.5, 1.1, 1.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class SpineShape:
    """One patient's anatomy without its stenoses; lengths in mm, per vertebra T8 .. S5 or per disc below it.

    Attributes:
        body_height, half_depth, half_width, tilt_deg, canal_depth, canal_half_width: ``(15,)``.
        disc_height, hydration, schmorl_mm: ``(14,)``; hydration 1 is a bright young disc, 0 a black one.
        marrow: ``(15,)`` signal factor of each vertebra's marrow.
        scoliosis_mm, scoliosis_length_mm, scoliosis_phase, rotation_deg_per_mm: lateral curve and its axial rotation.
        conus_mm: distance of the cord's end below the middle of L1.
        back_fat_mm, front_mm, front_fat_mm, muscle_fat: soft tissue around the spine.
        center_mm: ``(3,)`` middle of L3's body in the canonical frame.
        texture_seed: seed of the texture of tissues.
    """

    body_height: FloatArray
    half_depth: FloatArray
    half_width: FloatArray
    tilt_deg: FloatArray
    canal_depth: FloatArray
    canal_half_width: FloatArray
    disc_height: FloatArray
    hydration: FloatArray
    schmorl_mm: FloatArray
    marrow: FloatArray
    scoliosis_mm: float
    scoliosis_length_mm: float
    scoliosis_phase: float
    rotation_deg_per_mm: float
    conus_mm: float
    back_fat_mm: float
    front_mm: float
    front_fat_mm: float
    muscle_fat: float
    center_mm: FloatArray
    texture_seed: int


@dataclass(frozen=True, eq=False)
class CenterCurve:
    """The centre curve sampled every ``CURVE_STEP_MM``: ``(n,)`` arrays in the canonical frame.

    Attributes:
        start_mm: arc length of the first sample.
        s: arc length.
        x, y, z: position.
        tilt: sagittal angle (radians, positive where the way down leads backwards).
        lean: lateral slope dx/ds.
        turn: axial rotation (radians).
        tops, bottoms: arc lengths of the vertebral bodies' ends.
        discs: arc lengths of the disc centres.
    """

    start_mm: float
    s: FloatArray
    x: FloatArray
    y: FloatArray
    z: FloatArray
    tilt: FloatArray
    lean: FloatArray
    turn: FloatArray
    tops: FloatArray
    bottoms: FloatArray
    discs: FloatArray

    def frame_at(self, s_mm: float) -> tuple[FloatArray, FloatArray]:
        """Return position ``(3,)`` and axes ``(3, 3)`` (down the curve, to the back, to the left) at an arc length."""
        x, y, z, tilt, lean, turn = (
            float(np.interp(s_mm, self.s, v))
            for v in (self.x, self.y, self.z, self.tilt, self.lean, self.turn)
        )
        down = np.array([lean, np.sin(tilt), -np.cos(tilt)])
        down /= np.linalg.norm(down)
        left = np.array(
            [np.cos(turn), np.sin(turn) * np.cos(tilt), np.sin(turn) * np.sin(tilt)]
        )
        left -= (left @ down) * down
        left /= np.linalg.norm(left)
        return np.array([x, y, z]), np.stack([down, np.cross(left, down), left])


@dataclass(frozen=True, eq=False, kw_only=True)
class PhantomSpine:
    """A spine with known severity, placed in the patient.

    Attributes:
        seed: seed that the spine was drawn from.
        shape: anatomy in the canonical frame.
        narrowing: ``(5 levels, 5 conditions)`` in [0, 1], sides as they are in the *patient*.
        grades: ``(5, 5)``, the noisy reader's grades: 0 normal-mild, 1 moderate, 2 severe.
        rotation, translation_mm: ``patient = rotation @ canonical + translation_mm``; a reflection when mirrored.
    """

    seed: int
    shape: SpineShape
    narrowing: FloatArray
    grades: NDArray[np.int64]
    rotation: FloatArray
    translation_mm: FloatArray

    @property
    def is_mirrored(self) -> bool:
        """Whether the canonical anatomy appears as its mirror image."""
        return bool(np.linalg.det(self.rotation) < 0)

    @property
    def probabilities(self) -> FloatArray:
        """The noisy reader's P(grade | narrowing), ``(5 levels, 5 conditions, 3)``."""
        return reader_probabilities(self.narrowing)

    @property
    def canonical_narrowing(self) -> FloatArray:
        """The narrowings with sides as in the canonical frame, ``(5, 5)``."""
        return _sides_swapped(self.narrowing) if self.is_mirrored else self.narrowing

    @cached_property
    def curve(self) -> CenterCurve:
        """The centre curve in the canonical frame."""
        return _center_curve(self.shape)

    @property
    def disc_center_mm(self) -> FloatArray:
        """The centres of the five discs ``(5, 3)``, patient LPS mm."""
        return np.stack([self._placed_frame(s)[0] for s in self._graded_discs])

    @property
    def disc_axes(self) -> FloatArray:
        """The axes of the five discs ``(5, 3, 3)``: superior to inferior, front to back, patient's right to left."""
        return np.stack([self._placed_frame(s)[1] for s in self._graded_discs])

    @property
    def vertebra_center_mm(self) -> FloatArray:
        """The centres of the vertebral bodies T8 .. S5 ``(15, 3)``, patient LPS mm, as named in ``VERTEBRAE``."""
        return np.stack(
            [
                self._placed_frame(s)[0]
                for s in (self.curve.tops + self.curve.bottoms) / 2
            ]
        )

    def mirrored(self) -> Self:
        """Return the exact reflection of the patient in the plane x = 0, with left and right severities swapped."""
        flip = np.diag([-1.0, 1.0, 1.0])
        return replace(
            self,
            narrowing=_sides_swapped(self.narrowing),
            grades=_sides_swapped(self.grades),
            rotation=flip @ self.rotation,
            translation_mm=flip @ self.translation_mm,
        )

    def posed(self, rotation: FloatArray, translation_mm: FloatArray) -> Self:
        """Return the patient rotated about the origin of patient coordinates, then moved.

        Raises:
            ValueError: ``rotation`` is not a proper ``(3, 3)`` rotation.
        """
        rotation = np.asarray(rotation, float)
        if (
            rotation.shape != (3, 3)
            or np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-6
        ):
            raise ValueError("rotation must be an orthonormal (3, 3) matrix")
        if np.linalg.det(rotation) < 0:
            raise ValueError("rotation must not reflect; use mirrored()")
        moved = rotation @ self.translation_mm + np.asarray(translation_mm, float)
        return replace(self, rotation=rotation @ self.rotation, translation_mm=moved)

    def with_narrowing(self, narrowing: FloatArray) -> Self:
        """Return the same patient with other narrowings ``(5, 5)`` in [0, 1], read again by the same reader."""
        narrowing = np.clip(np.asarray(narrowing, float), 0.0, 1.0)
        if narrowing.shape != (len(LEVELS), len(CONDITIONS)):
            raise ValueError(
                f"narrowing must be (5 levels, 5 conditions), got {narrowing.shape}"
            )
        return replace(
            self, narrowing=narrowing, grades=read_grades(narrowing, self.seed)
        )

    @property
    def _graded_discs(self) -> FloatArray:
        return self.curve.discs[FIRST_DISC : FIRST_DISC + len(LEVELS)]

    def _placed_frame(self, s_mm: float) -> tuple[FloatArray, FloatArray]:
        position, axes = self.curve.frame_at(float(s_mm))
        placed = axes @ self.rotation.T
        if self.is_mirrored:
            placed[2] = -placed[2]
        return self.rotation @ position + self.translation_mm, placed


def draw_spine(
    seed: int, *, narrowing: FloatArray | None = None, scoliosis: bool = True
) -> PhantomSpine:
    """Draw a patient: anatomy, narrowings with RSNA's frequencies, and the noisy reader's grades.

    Args:
        seed: any non-negative integer; the same seed gives the same patient.
        narrowing: ``(5 levels, 5 conditions)`` in [0, 1] to use instead of drawn ones; the anatomy stays the same.
        scoliosis: False for a spine without lateral curve and axial rotation.
    """
    drawn, wear = draw_narrowing(np.random.default_rng([seed, 1]))
    rng = np.random.default_rng([seed, 2])
    spine = PhantomSpine(
        seed=seed,
        shape=_draw_shape(rng, wear, scoliosis),
        narrowing=drawn,
        grades=read_grades(drawn, seed),
        rotation=np.eye(3),
        translation_mm=np.zeros(3),
    )
    return spine if narrowing is None else spine.with_narrowing(narrowing)


def _draw_shape(
    rng: np.random.Generator, wear: FloatArray, scoliosis: bool
) -> SpineShape:
    """Draw the anatomy; ``wear (5,)`` dries and flattens the graded discs."""
    scale = float(np.clip(rng.normal(1.0, 0.07), 0.85, 1.18))

    def vary(mean: tuple[float, ...], spread: float) -> FloatArray:
        return (
            np.array(mean, float)
            * scale
            * (1 + rng.normal(0, spread))
            * (1 + rng.normal(0, spread / 2, len(mean)))
        )

    worn = np.concatenate(
        [rng.normal(-0.3, 0.7, FIRST_DISC), wear, rng.normal(0, 1, 4)]
    )
    hydration = np.clip(
        0.62 - 0.27 * worn + rng.normal(0, 0.10, 14) - rng.normal(0, 0.15), 0.02, 1.0
    )
    loss = np.clip(0.16 * (worn - 0.5), 0, 0.45)
    tilt = np.array(_TILT_DEG, float)
    lordosis = rng.normal(1, 0.22)
    sacral_slope = rng.normal(0, 6)
    kyphosis = rng.normal(0, 3)
    tilt = np.concatenate(
        [
            tilt[:5] * lordosis + kyphosis,
            tilt[5:10] * lordosis,
            tilt[10:] + sacral_slope,
        ]
    )
    tilt += rng.normal(0, 1.2, len(tilt)) + rng.normal(0, 3)
    body_height = vary(_BODY_HEIGHT, 0.04)
    if rng.random() < 0.10:
        body_height[rng.integers(2, 10)] *= rng.uniform(0.6, 0.88)
    return SpineShape(
        body_height=body_height,
        half_depth=vary(_HALF_DEPTH, 0.05),
        half_width=vary(_HALF_WIDTH, 0.05),
        tilt_deg=tilt,
        canal_depth=vary(_CANAL_DEPTH, 0.035),
        canal_half_width=vary(_CANAL_HALF_WIDTH, 0.03),
        disc_height=vary(_DISC_HEIGHT, 0.08) * (1 - loss),
        hydration=hydration,
        schmorl_mm=np.where(rng.random(14) < 0.08, rng.uniform(2, 5, 14), 0.0),
        marrow=np.clip(rng.normal(1, 0.10) + rng.normal(0, 0.03, 15), 0.7, 1.35),
        scoliosis_mm=float(rng.exponential(2.5)) if scoliosis else 0.0,
        scoliosis_length_mm=float(rng.uniform(220, 420)),
        scoliosis_phase=float(rng.uniform(0, 2 * np.pi)),
        rotation_deg_per_mm=float(rng.uniform(-0.7, 0.7)),
        conus_mm=float(rng.normal(10, 14)),
        back_fat_mm=float(rng.uniform(7, 24)),
        front_mm=float(rng.uniform(70, 115)),
        front_fat_mm=float(rng.uniform(8, 40)),
        muscle_fat=float(rng.beta(1.6, 5.0)),
        center_mm=np.array([rng.normal(0, 4), rng.normal(0, 8), rng.normal(0, 8)])
        if scoliosis
        else np.zeros(3),
        texture_seed=int(rng.integers(2**31)),
    )


def _center_curve(shape: SpineShape) -> CenterCurve:
    """Integrate the tilt down the spine; most of the bending happens at the discs, as in people."""
    steps = np.zeros(2 * len(VERTEBRAE))
    steps[1::2] = shape.body_height
    steps[2::2] = shape.disc_height
    ends = np.cumsum(steps)
    tops = ends[::2]
    bottoms = ends[1::2]
    discs = (bottoms[:-1] + tops[1:]) / 2
    s = np.arange(-CURVE_MARGIN_MM, bottoms[-1] + CURVE_MARGIN_MM, CURVE_STEP_MM)

    bend = np.diff(shape.tilt_deg)
    knots = np.concatenate(
        [[-CURVE_MARGIN_MM], np.stack([tops, bottoms], axis=1).ravel(), [s[-1]]]
    )
    at_tops = shape.tilt_deg - 0.2 * np.concatenate([[0.0], bend])
    at_bottoms = shape.tilt_deg + 0.2 * np.concatenate([bend, [0.0]])
    first = shape.tilt_deg[0] + 8
    angles = np.concatenate(
        [
            [first],
            np.stack([at_tops, at_bottoms], axis=1).ravel(),
            [shape.tilt_deg[-1] - 30],
        ]
    )
    kernel = np.hanning(25)
    padded = np.pad(np.interp(s, knots, angles), 12, mode="edge")
    tilt = np.radians(np.convolve(padded, kernel / kernel.sum(), mode="valid"))

    middle = float((tops[7] + bottoms[7]) / 2)
    y = np.cumsum(np.sin(tilt)) * CURVE_STEP_MM
    z = -np.cumsum(np.cos(tilt)) * CURVE_STEP_MM
    wave = 2 * np.pi / shape.scoliosis_length_mm
    fade = 1 / (1 + np.exp((s - tops[11]) / 12))
    x = shape.scoliosis_mm * np.sin(wave * (s - middle) + shape.scoliosis_phase) * fade
    turn = np.radians(shape.rotation_deg_per_mm * x)
    lean = np.gradient(x, CURVE_STEP_MM)
    x, y, z = (
        v - np.interp(middle, s, v) + c
        for v, c in zip((x, y, z), shape.center_mm, strict=True)
    )
    return CenterCurve(float(s[0]), s, x, y, z, tilt, lean, turn, tops, bottoms, discs)


def _sides_swapped(values: NDArray[Number]) -> NDArray[Number]:
    """Swap the left and right conditions (last axis) of an array ``(5, 5)``."""
    order = [CONDITIONS.index(MIRRORED_CONDITION[c]) for c in CONDITIONS]
    return values[:, order]
