"""Draws the voxel grid of a level as one picture: labelled slices of every channel.

Sagittal channels show sagittal planes (head up, front to the left), the axial one axial planes (front up, the patient's
right on the left). Each voxel is a block of one grey: nothing is smoothed. Pillow comes with the extra ``viz``.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import Level
from spine_engine.bundle.manifest import GraderEntry
from spine_engine.errors import UsageError
from spine_engine.report.cloud import ROLE_NAMES
from spine_engine.report.scene import confidence_words
from spine_engine.report.words import LEVEL_NAMES
from spine_engine.results import LevelResult
from spine_engine.study import Role

COLUMNS: Final = 8
ROWS: Final = 2
"""At most sixteen slices per channel, evenly spaced: every third of 48 voxels across, every other of 24 downwards."""

PIXELS_PER_MM: Final = 3.0
"""Scale of the picture: voxels of 1.2 mm become blocks of 3 or 4 pixels, large enough to be seen one by one."""

GAP: Final = 6
LABEL_HEIGHT: Final = 18
HEAD_HEIGHT: Final = 30
GROUND: Final = (16, 21, 28)
INK: Final = (230, 235, 240)
MUTED: Final = (169, 180, 192)


def pillow() -> ModuleType:
    """Import Pillow and return its ``PIL`` with the drawing modules.

    Raises:
        UsageError: Pillow is not installed.
    """
    try:
        for part in ("Image", "ImageDraw", "ImageFont"):
            import_module(f"PIL.{part}")
        return import_module("PIL")
    except ImportError:
        raise UsageError(
            "Pillow is missing; it comes with the extra 'viz' (in a clone: pip install '.[viz]')"
        ) from None


def montage(
    grid: NDArray[np.float32],
    coverage: NDArray[np.float64],
    entry: GraderEntry,
    level: Level,
    place: LevelResult,
) -> Any:
    """Return a ``PIL.Image`` of a level's grid ``(C, D, H, W)``, one block of slices per channel.

    Args:
        grid: values 0..1; D runs from head to feet, H front to back, W from the patient's right to left.
        coverage: ``(C,)``, the share of the grid that each channel covers.
        entry: the grader's entry of the bundle's manifest.
        level: the level of the grid.
        place: the place of that level.
    """
    pil = pillow()
    channels = zip(grid, coverage, entry.channels, strict=True)
    blocks = [
        _block(pil, channel, share, role, entry, place)
        for channel, share, role in channels
    ]
    width = max(block.width for block in blocks) + 2 * GAP
    height = (
        HEAD_HEIGHT
        + GAP
        + sum(block.height + LABEL_HEIGHT + 2 * GAP for block in blocks)
    )
    image = pil.Image.new("RGB", (width, height), GROUND)
    draw = pil.ImageDraw.Draw(image)
    shape, voxel = (
        " x ".join(f"{n:g}" for n in numbers)
        for numbers in (entry.grid.shape, entry.grid.spacing_mm)
    )
    title = f"{LEVEL_NAMES[level]}   {confidence_words(place.confidence, place.source)}   {shape} voxels of {voxel} mm"
    draw.text((GAP, GAP), title, INK, pil.ImageFont.load_default(18))
    top = HEAD_HEIGHT + GAP
    for block, role, share in zip(blocks, entry.channels, coverage, strict=True):
        covers = (
            f"covers {100 * share:.0f} % of the grid"
            if share > 0
            else "the study has none here"
        )
        draw.text(
            (GAP, top),
            f"{ROLE_NAMES[role]}: {covers}",
            MUTED,
            pil.ImageFont.load_default(13),
        )
        image.paste(block, (GAP, top + LABEL_HEIGHT))
        top += LABEL_HEIGHT + block.height + 2 * GAP
    return image


def _block(
    pil: ModuleType,
    channel: NDArray[np.float32],
    share: float,
    role: Role,
    entry: GraderEntry,
    place: LevelResult,
) -> Any:
    """Return the slices of one channel in rows, each above its distance from the disc's centre.

    A channel that covers nothing has no slices.
    """
    along = 0 if role is Role.AXIAL_T2 else 2
    count = channel.shape[along]
    step = -(-count // (COLUMNS * ROWS))
    chosen = range((count - 1) % step // 2, count, step) if share > 0 else range(0)
    down_mm, right_mm = (
        step for axis, step in enumerate(entry.grid.spacing_mm) if axis != along
    )
    rows, columns = (size for axis, size in enumerate(channel.shape) if axis != along)
    height = round(rows * down_mm * PIXELS_PER_MM)
    width = round(columns * right_mm * PIXELS_PER_MM)
    lines = -(-len(chosen) // COLUMNS)
    size = (COLUMNS * (width + GAP) - GAP, lines * (height + LABEL_HEIGHT))
    block = pil.Image.new("RGB", size, GROUND)
    draw = pil.ImageDraw.Draw(block)
    font = pil.ImageFont.load_default(12)
    for n, index in enumerate(chosen):
        pixels = np.round(channel.take(index, axis=along).clip(0, 1) * 255).astype(
            np.uint8
        )
        picture = pil.Image.fromarray(pixels).resize(
            (width, height), pil.Image.Resampling.NEAREST
        )
        left = n % COLUMNS * (width + GAP)
        top = n // COLUMNS * (height + LABEL_HEIGHT)
        block.paste(picture, (left, top))
        offset_mm = (index - (count - 1) / 2) * entry.grid.spacing_mm[
            along
        ] + entry.grid.center_offset_mm[along]
        draw.text(
            (left + 2, top + height + 1),
            _distance(offset_mm, along, place),
            MUTED,
            font,
        )
    return block


def _distance(offset_mm: float, along: int, place: LevelResult) -> str:
    """Return the distance of a slice from the disc's centre, and the side of the patient."""
    assert place.axes is not None
    positive, negative = ("L", "R") if along == 2 else ("H", "F")
    towards = offset_mm * place.axes[along][0 if along == 2 else 2]
    return f"{positive if towards > 0 else negative} {abs(offset_mm):.1f} mm"
