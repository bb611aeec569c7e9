"""Prepares stacks for the kernels: computes once what every grid cut from a stack needs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from spine_engine.study import Stack
from spine_engine.voxels.grid import GridPose, GridSpec
from spine_engine.voxels.placement import (
    EVEN,
    NO_SEGMENTS,
    alike,
    pitch_mm,
    slice_segments,
    slice_shift,
)
from spine_engine.voxels.window import WindowedStack

StackInput = Stack | WindowedStack


@dataclass(frozen=True, eq=False)
class PreparedStack:
    """One stack as the arguments of ``kernels.resample_stack``, which describes the arrays."""

    stack: Stack
    flat: NDArray[np.uint16]
    sign_bit: int
    rescale: NDArray[np.float32]
    shift: NDArray[np.float32]
    segments: tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]
    kind: int
    pitch_mm: float
    clip: tuple[np.float32, np.float32]


@dataclass(frozen=True, eq=False)
class PreparedChannel:
    """The stacks of a channel in a fixed order, whatever order they were given in.

    Attributes:
        stacks: the stacks, sorted by place, then by a checksum of their pixels.
        to_stack: ``(N, 3, 3)``, from LPS mm to (slice or mm along the normal, row, column).
        origins_mm: ``(N, 3)``, the first pixel of each stack, LPS mm.
    """

    stacks: tuple[PreparedStack, ...]
    to_stack: NDArray[np.float64]
    origins_mm: NDArray[np.float64]

    def places(self, spec: GridSpec, pose: GridPose) -> NDArray[np.float64]:
        """Return ``(N, 4, 3)``: the place of voxel [0, 0, 0] in each stack, and the steps along D, H and W."""
        steps = (
            pose.axes * np.asarray(spec.spacing_mm)[:, None]
        ) @ self.to_stack.transpose(0, 2, 1)
        center = (self.to_stack @ (pose.center_mm - self.origins_mm)[..., None])[..., 0]
        first = center - (np.asarray(spec.shape) - 1) / 2 @ steps
        return np.concatenate([first[:, None], steps], axis=1)


def prepared(channel: Sequence[StackInput]) -> PreparedChannel:
    """Prepare the stacks of one channel for any number of grids.

    Args:
        channel: a ``WindowedStack`` gives values scaled to 0..1; a plain ``Stack`` gives its rescaled values unchanged.
    """
    stacks = tuple(_prepared_stack(stack) for stack in _in_fixed_order(channel))
    scales = np.array(
        [[s.pitch_mm if s.kind == EVEN else 1.0, *s.stack.spacing_mm] for s in stacks]
    )
    axes = np.array([s.stack.axes for s in stacks]).reshape(-1, 3, 3)
    origins = np.array([s.stack.origins_mm[0] for s in stacks]).reshape(-1, 3)
    return PreparedChannel(stacks, axes / scales.reshape(-1, 3, 1), origins)


def rescale_of(
    stack_input: StackInput,
) -> tuple[int, NDArray[np.float32], tuple[np.float32, np.float32]]:
    """Return the sign bit of the stored values, gain and offset of each slice ``(2, S)``, and the bounds of the result.

    The sign bit turns stored values into unsigned order.
    """
    stack = _stack_of(stack_input)
    scale = 1.0
    low = 0.0
    clip = (np.float32(-np.inf), np.float32(np.inf))
    if isinstance(stack_input, WindowedStack):
        low = stack_input.window.low
        scale = 1.0 / (stack_input.window.high - low)
        clip = (np.float32(0.0), np.float32(1.0))
    sign_bit = 0x8000 if stack.pixels.dtype == np.int16 else 0
    gain = stack.slope * scale
    offset = (stack.intercept.astype(np.float64) - low) * scale
    rescale = np.array(
        [gain, offset - sign_bit * gain if sign_bit else offset], np.float32
    )
    return sign_bit, rescale, clip


def _stack_of(stack_input: StackInput) -> Stack:
    return stack_input.stack if isinstance(stack_input, WindowedStack) else stack_input


def _prepared_stack(stack_input: StackInput) -> PreparedStack:
    stack = _stack_of(stack_input)
    sign_bit, rescale, clip = rescale_of(stack_input)
    offsets = (stack.origins_mm - stack.origins_mm[0]) @ stack.axes.T
    positions = offsets[:, 0]
    shift = slice_shift(offsets[:, 1:], stack.spacing_mm)
    pitch = pitch_mm(positions)
    kind = alike(positions, pitch, rescale, shift)
    segments = NO_SEGMENTS if kind == EVEN else slice_segments(positions, pitch)
    flat = stack.pixels.view(np.uint16).reshape(-1)
    if stack.pixels.shape[2] == 1:
        flat = np.append(flat, flat[-1:])
    return PreparedStack(
        stack=stack,
        flat=flat,
        sign_bit=sign_bit,
        rescale=rescale,
        shift=shift,
        segments=(segments.starts, segments.slices, segments.rate),
        kind=kind,
        pitch_mm=pitch,
        clip=clip,
    )


def _in_fixed_order(channel: Sequence[StackInput]) -> list[StackInput]:
    """Sort stacks by place; only stacks that share a place are sorted by their pixels, which all have to be read."""

    def place(stack_input: StackInput) -> tuple[float, ...]:
        stack = _stack_of(stack_input)
        return (
            *stack.origins_mm[0].tolist(),
            *stack.axes.ravel().tolist(),
            *stack.spacing_mm,
            *stack.pixels.shape,
        )

    def checksum(stack_input: StackInput) -> int:
        return zlib.crc32(_stack_of(stack_input).pixels.data)

    if len(channel) < 2:
        return list(channel)
    ordered: list[StackInput] = []
    for _, group in groupby(sorted(channel, key=place), key=place):
        same_place = list(group)
        ordered += (
            same_place if len(same_place) == 1 else sorted(same_place, key=checksum)
        )
    return ordered
