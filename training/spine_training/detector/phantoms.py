"""Phantom studies as detector exams: rendered sagittal stacks with the truth of the drawn spine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from spine_engine.phantom import PhantomSpine, Protocol, draw_spine, render
from spine_engine.study import Stack
from spine_training.detector.exam import Exam
from spine_training.detector.stacks import StackVolume, volume_from_stack
from spine_training.detector.truth import Column, Disc

#: Index of L5 in the phantom's vertebrae T8 .. S5.
L5 = 9
LUMBAR_DISCS = 5
#: Largest pose drawn for a training phantom, degrees (sd) about each axis, and its shift in mm.
POSE_SD_DEG, SHIFT_MM = 4.0, 20.0


def posed_spine(seed: int) -> PhantomSpine:
    """Draw a spine in a slightly oblique pose."""
    rng = np.random.default_rng((seed, 101))
    a, b, c = np.deg2rad(rng.normal(0.0, POSE_SD_DEG, 3))
    x = np.array(
        [
            [1, 0, 0],
            [0, np.cos(a), -np.sin(a)],
            [0, np.sin(a), np.cos(a)],
        ]
    )
    y = np.array(
        [
            [np.cos(b), 0, np.sin(b)],
            [0, 1, 0],
            [-np.sin(b), 0, np.cos(b)],
        ]
    )
    z = np.array(
        [
            [np.cos(c), -np.sin(c), 0],
            [np.sin(c), np.cos(c), 0],
            [0, 0, 1],
        ]
    )
    return draw_spine(seed).posed(
        z @ y @ x,
        rng.normal(0.0, SHIFT_MM, 3),
    )


def exams_from_phantom(seed: int) -> list[Exam]:
    """Return one exam for each sagittal series of phantom `seed`."""
    spine = posed_spine(seed)
    study = render(
        spine,
        seed=seed,
        protocol=replace(Protocol.draw(seed), axial="none"),
    )
    return [
        exam_from_stack(
            f"PHANTOM-{seed}-{series.sequence.contrast}",
            series.stacks[0],
            spine,
        )
        for series in study.series
    ]


def exam_from_stack(name: str, stack: Stack, spine: PhantomSpine) -> Exam:
    """Return a stack as a volume with the spine's discs and bodies in volume mm."""
    volume = volume_from_stack(stack)
    return Exam(
        name,
        "PHANTOM",
        name,
        volume.pixels,
        volume.spacing_mm,
        _column(spine, volume),
        "phantom",
    )


def _column(spine: PhantomSpine, volume: StackVolume) -> Column:
    """Return the five lumbar discs as drawn, thoracic ones midway between their vertebral bodies."""
    bodies = [
        (rank, volume.place(spine.vertebra_center_mm[L5 - rank])) for rank in range(L5)
    ]
    discs: list[Disc] = []
    for rank in range(L5):
        if rank < LUMBAR_DISCS:
            center = volume.place(spine.disc_center_mm[LUMBAR_DISCS - 1 - rank])
            direction = volume.direction(spine.disc_axes[LUMBAR_DISCS - 1 - rank][1])
        else:
            center = (bodies[rank][1] + bodies[rank - 1][1]) / 2
            chord = bodies[rank - 1][1] - bodies[rank][1]
            direction = np.array([-chord[1], chord[0]]) / np.hypot(chord[0], chord[1])
        discs.append(Disc(rank, center, direction))
    return Column(tuple(discs), tuple(bodies))
