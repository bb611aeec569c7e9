"""Renders phantoms as MR images: samples tissue on the scan planes, adds coil, blur and noise, stores 12 bits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from spine_engine.phantom.profiles import Field, field_of
from spine_engine.phantom.protocol import (
    SLICE_THICKNESS_SHARE,
    Planes,
    Protocol,
    SeriesPlan,
    plan,
    role_of,
)
from spine_engine.phantom.sampling import SUPERSAMPLING, sample
from spine_engine.phantom.signal import TEXTURE, Sequence
from spine_engine.phantom.spine import CURVE_MARGIN_MM, PhantomSpine
from spine_engine.study import Role, Series, Stack, StoredSlice, Study

# Compiled in from other files: 810c5c937653

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]

SIGNAL_SPREAD: Final = 0.10
"""Log-normal spread of each tissue's signal between scans, because patients and scanners differ."""

NORMAL_TABLE_SIZE: Final = 1 << 16


@dataclass(frozen=True, eq=False)
class PhantomSeries:
    """One rendered series: its name and role, the sequence that made it, its stacks in patient LPS mm."""

    name: str
    description: str
    role: Role
    sequence: Sequence
    thickness_mm: float
    stacks: tuple[Stack, ...]

    def as_series(self) -> Series:
        """Return the series as the reader would return it, without writing files."""
        slices = sum(len(stack.pixels) for stack in self.stacks)
        return Series(
            self.name,
            self.role,
            "phantom",
            self.stacks,
            slices,
            self.sequence.contrast,
            kind=self.role,
            stored=self.stored,
        )

    @property
    def stored(self) -> tuple[StoredSlice, ...]:
        """The images as the phantom's files have them, with the decimals that are written."""
        return tuple(
            StoredSlice(
                pixels=pixels,
                flip=None,
                position_mm=tuple(round(value, 6) for value in origin.tolist()),
                orientation=tuple(
                    round(value, 10)
                    for value in (*stack.axes[2].tolist(), *stack.axes[1].tolist())
                ),
                spacing_mm=(
                    round(stack.spacing_mm[0], 8),
                    round(stack.spacing_mm[1], 8),
                ),
                thickness_mm=round(self.thickness_mm, 2),
            )
            for stack in self.stacks
            for pixels, origin in zip(stack.pixels, stack.origins_mm, strict=True)
        )


@dataclass(frozen=True, eq=False)
class PhantomStudy:
    """A rendered study and the spine it shows; ``study_id`` is a UID under 2.25 that depends on everything drawn."""

    study_id: str
    spine: PhantomSpine
    series: tuple[PhantomSeries, ...]

    def as_study(self) -> Study:
        """Return the study as the reader would return it, without writing files."""
        series = sorted(
            (rendered.as_series() for rendered in self.series),
            key=lambda series: series.path,
        )
        return Study(self.study_id, tuple(series))


def render(
    spine: PhantomSpine, *, seed: int, protocol: Protocol | None = None
) -> PhantomStudy:
    """Scan a phantom.

    Args:
        spine: the patient, perhaps mirrored or posed.
        seed: seed of the protocol (if none is given), plane tilts, coil and noise; the same seed gives the same bytes.
        protocol: how to scan; None draws it from the seed.
    """
    protocol = protocol or Protocol.draw(seed)
    anatomy = field_of(spine)
    rng = np.random.default_rng([seed, 13])
    normals = rng.standard_normal(NORMAL_TABLE_SIZE, dtype=np.float32)
    series: list[PhantomSeries] = []
    for group in plan(spine, protocol, seed):
        signals = np.stack([sequence.signal() for sequence in group.sequences])
        signals *= np.exp(rng.normal(0, SIGNAL_SPREAD, signals.shape)).astype(
            np.float32
        )
        clean = [
            render_clean(anatomy, planes, signals, saturation=protocol.saturation)
            for planes in group.planes
        ]
        for k, sequence in enumerate(group.sequences):
            bright = float(np.percentile(clean[0][k, ::3, ::7, ::7], 99))
            images = [
                _oriented(planes, image[k], spine)
                for planes, image in zip(group.planes, clean, strict=True)
            ]
            stacks = _acquire(images, bright, protocol, normals, rng)
            series.append(_named(group, sequence, stacks))
    series.sort(key=lambda rendered: rendered.name)
    return PhantomStudy(_study_id(spine, seed, protocol), spine, tuple(series))


def render_clean(
    anatomy: Field, planes: Planes, signals: Float32Array, *, saturation: float = 1.0
) -> Float32Array:
    """Return the noise-free images ``(sequences, slices, rows, columns)`` on planes of the canonical frame.

    ``signals (sequences, tissues)`` holds the brightness of each tissue; ``saturation`` is the share of the signal in
    front of the spine that a saturation band leaves, 1 for no band.
    """
    out = np.empty((len(signals), *planes.shape), np.float32)
    steps = (planes.axes * np.array(planes.step_mm)[:, None]).astype(np.float64)
    sample(
        planes.origin_mm, steps, SLICE_THICKNESS_SHARE, SUPERSAMPLING, signals, TEXTURE,
        anatomy.along, -CURVE_MARGIN_MM, anatomy.plane, anatomy.soft, anatomy.lattice, anatomy.scalars, saturation, out,
    )  # fmt: skip
    return out


def _oriented(
    planes: Planes, image: Float32Array, spine: PhantomSpine
) -> tuple[Planes, Float32Array]:
    """Place planes in the patient; a mirror flips columns (axial) or slices (sagittal), so axes stay right-handed."""
    axes = planes.axes @ spine.rotation.T
    center = spine.rotation @ planes.center_mm + spine.translation_mm
    if spine.is_mirrored:
        across = int(np.argmax(np.abs(planes.axes[:, 0])))
        axes[across] = -axes[across]
        image = np.flip(image, axis=across)
    return Planes(center, axes, planes.shape, planes.step_mm), np.ascontiguousarray(
        image
    )


def _acquire(
    images: list[tuple[Planes, Float32Array]], bright: float, protocol: Protocol, normals: Float32Array,
    rng: np.random.Generator,
) -> tuple[Stack, ...]:  # fmt: skip
    """Add coil, point spread, ghost and noise to one series, scaled by its ``bright`` signal, and store 12 bits."""
    gain = float(rng.uniform(700, 2400)) / bright
    falloff = protocol.coil_falloff
    waves = rng.normal(0, 0.08, 5) * falloff
    ghost_shift = int(rng.integers(20, 90))
    start = int(rng.integers(1 << 30))
    stacks = []
    for index, (planes, image) in enumerate(images):
        pixels = np.empty(image.shape, np.uint16)
        axis = 1 if abs(planes.axes[1][1]) > abs(planes.axes[2][1]) else 2
        _finish(
            image, pixels, axis, planes.step_mm[axis], falloff, waves, gain, protocol.noise * bright * gain,
            protocol.ghost, ghost_shift, normals, start + 7919 * index,
        )  # fmt: skip
        count = len(pixels)
        origins = (
            planes.origin_mm
            + np.arange(count)[:, None] * planes.step_mm[0] * planes.axes[0]
        )
        slope = np.ones(count, np.float32)
        intercept = np.zeros(count, np.float32)
        stacks.append(
            Stack(
                pixels,
                slope,
                intercept,
                origins,
                planes.axes,
                (planes.step_mm[1], planes.step_mm[2]),
            )
        )
    return tuple(stacks)


def _named(
    group: SeriesPlan, sequence: Sequence, stacks: tuple[Stack, ...]
) -> PhantomSeries:
    return PhantomSeries(
        name=f"{group.role_prefix}_{sequence.contrast}",
        description=f"{group.role_prefix.capitalize()} {sequence.contrast.upper()}",
        role=role_of(group.role_prefix, sequence.contrast),
        sequence=sequence,
        thickness_mm=round(group.planes[0].step_mm[0] * SLICE_THICKNESS_SHARE, 2),
        stacks=stacks,
    )


def _study_id(spine: PhantomSpine, seed: int, protocol: Protocol) -> str:
    text = f"{spine.seed}|{seed}|{protocol}|{spine.narrowing.tobytes().hex()}|{spine.shape.scoliosis_mm!r}"
    place = np.round(np.vstack([spine.rotation, spine.translation_mm]), 9) + 0.0
    digest = hashlib.sha256(text.encode() + place.tobytes()).digest()
    return f"2.25.{int.from_bytes(digest[:15], 'big')}"


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _finish(
    image: Float32Array, pixels: NDArray[np.uint16], axis: int, step_mm: float, falloff: float, waves: FloatArray,
    gain: float, noise: float, ghost: float, ghost_shift: int, normals: Float32Array, start: int,
) -> None:  # fmt: skip
    """Blur in plane (1 2 1), weigh by the coil's smooth sensitivity, add a ghost and Rician noise, store 12 bits."""
    slices, rows, columns = image.shape
    blurred = np.empty((rows, columns), np.float32)
    line = np.empty(columns, np.float32)
    mask = normals.shape[0] - 1
    state = np.uint64(start) * np.uint64(2654435761) + np.uint64(1)
    for k in range(slices):
        for r in range(rows):
            above, below = max(r - 1, 0), min(r + 1, rows - 1)
            for c in range(columns):
                line[c] = (
                    0.22 * (image[k, above, c] + image[k, below, c])
                    + 0.56 * image[k, r, c]
                )
            for c in range(columns):
                blurred[r, c] = (
                    0.22 * (line[max(c - 1, 0)] + line[min(c + 1, columns - 1)])
                    + 0.56 * line[c]
                )
        for r in range(rows):
            v = 2.0 * r / rows - 1
            for c in range(columns):
                u = 2.0 * c / columns - 1
                depth = (rows - r if axis == 1 else columns - c) * step_mm
                coil = (
                    1
                    + waves[0] * u
                    + waves[1] * v
                    + waves[2] * u * v
                    + waves[3] * u * u
                    + waves[4] * v * v
                )
                coil *= 1 - falloff + falloff * 2.2 / (1 + (depth / 85.0) ** 2)
                value = blurred[r, c]
                if ghost > 0:
                    other = (
                        (r + ghost_shift) % rows
                        if axis == 1
                        else (c + ghost_shift) % columns
                    )
                    value += ghost * (
                        blurred[other, c] if axis == 1 else blurred[r, other]
                    )
                state = state * np.uint64(6364136223846793005) + np.uint64(
                    1442695040888963407
                )
                real = (
                    value * coil * gain
                    + noise * normals[(state >> np.uint64(40)) & np.uint64(mask)]
                )
                imaginary = noise * normals[(state >> np.uint64(20)) & np.uint64(mask)]
                pixels[k, r, c] = min(
                    int(np.sqrt(real * real + imaginary * imaginary) + 0.5), 4095
                )
