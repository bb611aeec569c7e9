"""Phantom studies as detector exams: rendered sagittal stacks with the truth of the drawn spine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from spine_engine.detection.slices import canvas_axes
from spine_engine.phantom import PhantomSpine, Protocol, draw_spine, render
from spine_engine.study import Stack
from spine_training.detector.data import Exam
from spine_training.detector.truth import Column, Disc

#: Index of L5 in the phantom's vertebrae T8 .. S5.
L5 = 9
LUMBAR_DISCS = 5
#: Largest pose drawn for a training phantom, degrees (sd) about each axis, and its shift in mm.
POSE_SD_DEG, SHIFT_MM = 4.0, 20.0


def posed_spine(seed: int) -> PhantomSpine:
    """A drawn spine in a slightly oblique pose."""
    rng = np.random.default_rng((seed, 101))
    a, b, c = np.deg2rad(rng.normal(0.0, POSE_SD_DEG, 3))
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return draw_spine(seed).posed(z @ y @ x, rng.normal(0.0, SHIFT_MM, 3))


def exams_from_phantom(seed: int) -> list[Exam]:
    """One exam for each sagittal series of phantom `seed`."""
    spine = posed_spine(seed)
    study = render(spine, seed=seed, protocol=replace(Protocol.draw(seed), axial="none"))
    return [
        exam_from_stack(f"PHANTOM-{seed}-{series.sequence.contrast}", series.stacks[0], spine)
        for series in study.series
    ]


def exam_from_stack(name: str, stack: Stack, spine: PhantomSpine) -> Exam:
    """A stack as a volume (row, column, lateral) in 8 bits, with the spine's discs and bodies in volume mm."""
    down, back, across, which, signs = canvas_axes(stack)
    pixels = stack.pixels.astype(np.float32)
    volume = np.moveaxis(pixels, (int(which[0]), int(which[1]), 0), (0, 1, 2))
    spacing = [stack.spacing_mm[which[0] - 1], stack.spacing_mm[which[1] - 1], stack.slice_spacing_mm]
    last = [(n - 1) * s for n, s in zip(pixels.shape[1:], stack.spacing_mm, strict=True)]
    origin = stack.origins_mm[0].copy()
    for axis, sign in zip(which, signs, strict=True):
        if sign < 0:
            volume = np.flip(volume, axis=int(np.flatnonzero(which == axis)[0]))
            origin += last[axis - 1] * stack.axes[axis]
    if stack.axes[0] @ across < 0:
        volume = np.flip(volume, axis=2)
        origin += (stack.positions_mm[-1] - stack.positions_mm[0]) * stack.axes[0]
    scale = 255.0 / max(float(np.percentile(volume, 99.8)), 1.0)
    volume8 = np.ascontiguousarray(np.clip(volume * scale, 0, 255).astype(np.uint8))
    frame = np.stack([down, back, across])
    column = _column(spine, frame, origin)
    return Exam(name, "PHANTOM", name, volume8, (spacing[0], spacing[1], spacing[2]), column)


def _column(spine: PhantomSpine, frame: NDArray[np.float64], origin: NDArray[np.float64]) -> Column:
    """The five lumbar discs as drawn; thoracic ones midway between their vertebral bodies."""
    bodies = [(rank, frame @ (spine.vertebra_center_mm[L5 - rank] - origin)) for rank in range(L5)]
    discs: list[Disc] = []
    for rank in range(L5):
        if rank < LUMBAR_DISCS:
            center = frame @ (spine.disc_center_mm[LUMBAR_DISCS - 1 - rank] - origin)
            direction = (frame @ spine.disc_axes[LUMBAR_DISCS - 1 - rank][1])[:2]
        else:
            center = (bodies[rank][1] + bodies[rank - 1][1]) / 2
            chord = bodies[rank - 1][1] - bodies[rank][1]
            direction = np.array([-chord[1], chord[0]])
        discs.append(Disc(rank, center, direction / np.linalg.norm(direction)))
    return Column(tuple(discs), tuple(bodies))
