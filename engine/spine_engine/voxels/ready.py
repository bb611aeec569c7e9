"""What the kernels need of a stack and no grid changes: worked out once, however many grids are cut from it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from spine_engine.study import Stack
from spine_engine.voxels.grid import GridPose, GridSpec
from spine_engine.voxels.placement import EVEN, NO_SEGMENTS, alike, pitch_mm, slice_segments, slice_shift
from spine_engine.voxels.window import WindowedStack

Placed = Stack | WindowedStack


@dataclass(frozen=True, eq=False)
class ReadyStack:
    """One stack as ``kernels.resample_stack`` wants it; the arrays are described there."""

    stack: Stack
    flat: NDArray[np.uint16]
    flip: int
    tone: NDArray[np.float32]
    shift: NDArray[np.float32]
    segments: tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]
    kind: int
    pitch_mm: float
    clip: tuple[np.float32, np.float32]


@dataclass(frozen=True, eq=False)
class ReadyChannel:
    """The stacks of a channel in an order of their own, whatever order they were given in.

    Attributes:
        stacks: the stacks, sorted by place, then by a checksum of their pixels.
        to_stack: ``(N, 3, 3)``, from LPS mm to (slice or mm along the normal, row, column).
        origins_mm: ``(N, 3)``, the first pixel of each stack, LPS mm.
    """

    stacks: tuple[ReadyStack, ...]
    to_stack: NDArray[np.float64]
    origins_mm: NDArray[np.float64]

    def places(self, spec: GridSpec, pose: GridPose) -> NDArray[np.float64]:
        """Return ``(N, 4, 3)``: where voxel [0, 0, 0] lies in each stack, and its steps along D, H and W."""
        steps = (pose.axes * np.asarray(spec.spacing_mm)[:, None]) @ self.to_stack.transpose(0, 2, 1)
        center = (self.to_stack @ (pose.center_mm - self.origins_mm)[..., None])[..., 0]
        first = center - (np.asarray(spec.shape) - 1) / 2 @ steps
        return np.concatenate([first[:, None], steps], axis=1)


def ready(channel: Sequence[Placed]) -> ReadyChannel:
    """Prepare the stacks of one channel for any number of grids.

    Args:
        channel: a ``WindowedStack`` gives values scaled to 0..1; a plain ``Stack`` its rescaled values as they are.
    """
    stacks = tuple(_ready_stack(placed) for placed in _in_fixed_order(channel))
    scales = np.array([[s.pitch_mm if s.kind == EVEN else 1.0, *s.stack.spacing_mm] for s in stacks])
    axes = np.array([s.stack.axes for s in stacks]).reshape(-1, 3, 3)
    origins = np.array([s.stack.origins_mm[0] for s in stacks]).reshape(-1, 3)
    return ReadyChannel(stacks, axes / scales.reshape(-1, 3, 1), origins)


def tone_of(placed: Placed) -> tuple[int, NDArray[np.float32], tuple[np.float32, np.float32]]:
    """Return the bits that make stored values unsigned, gain and offset of each slice ``(2, S)``, and the bounds."""
    if isinstance(placed, WindowedStack):
        stack, window = placed.stack, placed.window
        scale, low, clip = 1.0 / (window.high - window.low), window.low, (np.float32(0.0), np.float32(1.0))
    else:
        stack, scale, low, clip = placed, 1.0, 0.0, (np.float32(-np.inf), np.float32(np.inf))
    flip = 0x8000 if stack.pixels.dtype == np.int16 else 0
    gain, tone = stack.slope * scale, np.empty((2, len(stack.slope)), np.float32)
    offset = (stack.intercept.astype(np.float64) - low) * scale
    tone[0], tone[1] = gain, offset - flip * gain if flip else offset
    return flip, tone, clip


def _ready_stack(placed: Placed) -> ReadyStack:
    stack = placed.stack if isinstance(placed, WindowedStack) else placed
    flip, tone, clip = tone_of(placed)
    offsets = (stack.origins_mm - stack.origins_mm[0]) @ stack.axes.T
    positions, shift = offsets[:, 0], slice_shift(offsets[:, 1:], stack.spacing_mm)
    pitch = pitch_mm(positions)
    kind = alike(positions, pitch, tone, shift)
    segments = NO_SEGMENTS if kind == EVEN else slice_segments(positions, pitch)
    flat = stack.pixels.view(np.uint16).reshape(-1)
    if stack.pixels.shape[2] == 1:
        flat = np.append(flat, flat[-1:])
    return ReadyStack(
        stack=stack,
        flat=flat,
        flip=flip,
        tone=tone,
        shift=shift,
        segments=(segments.starts, segments.slices, segments.rate),
        kind=kind,
        pitch_mm=pitch,
        clip=clip,
    )


def _in_fixed_order(channel: Sequence[Placed]) -> list[Placed]:
    """Sort stacks by place; only those that share one are told apart by their pixels, which costs a look at all."""

    def stack(placed: Placed) -> Stack:
        return placed.stack if isinstance(placed, WindowedStack) else placed

    def place(placed: Placed) -> tuple[float, ...]:
        s = stack(placed)
        return (*s.origins_mm[0].tolist(), *s.axes.ravel().tolist(), *s.spacing_mm, *s.pixels.shape)

    if len(channel) < 2:
        return list(channel)
    ordered: list[Placed] = []
    for _, group in groupby(sorted(channel, key=place), key=place):
        same = list(group)
        ordered += same if len(same) == 1 else sorted(same, key=lambda placed: zlib.crc32(stack(placed).pixels.data))
    return ordered
