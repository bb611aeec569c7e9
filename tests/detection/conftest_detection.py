"""A synthetic column and a fake backend that answers with its heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from spine_engine.detection import DetectorSpec
from spine_engine.detection.slices import canvas_from_stack, series_range
from spine_engine.study import Stack

SPEC = DetectorSpec()


@dataclass(frozen=True)
class SceneDisc:
    """One disc: LPS centre, direction anterior -> posterior, its rank, heat, and the ranks the net believes in."""

    center_mm: np.ndarray
    direction: np.ndarray
    rank: int
    heat: float = 0.9
    belief: Mapping[int, float] | None = None  # rank (-1 sacrum) -> probability


@dataclass
class Scene:
    """Discs, and stacks that look at them."""

    discs: list[SceneDisc]
    stacks: list[Stack] = field(default_factory=list)

    def backend(self) -> SceneBackend:
        return SceneBackend(self)


def column(
    ranks: Sequence[int] = range(7),
    *,
    spacing_mm: float = 35.0,
    scoliosis_mm: float = 0.0,
) -> list[SceneDisc]:
    """A lordotic column about the origin, L5/S1 lowest at z = -70, with a lateral bow of `scoliosis_mm`."""
    discs = []
    for rank in ranks:
        z = -70.0 + spacing_mm * rank
        slope = np.deg2rad(
            35.0 - 10.0 * rank
        )  # the disc's posterior end points down at L5/S1, up at the top
        center = np.array(
            [scoliosis_mm * np.sin(rank / 6 * np.pi), 8.0 * np.cos(rank / 4 * np.pi), z]
        )
        discs.append(
            SceneDisc(center, np.array([0.0, np.cos(slope), -np.sin(slope)]), rank)
        )
    return discs


def rotation(pitch: float = 0.0, yaw: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """Rotation about x, z and y by degrees."""
    a, b, c = np.deg2rad([pitch, yaw, roll])
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    y = np.array([[np.cos(c), 0, np.sin(c)], [0, 1, 0], [-np.sin(c), 0, np.cos(c)]])
    return z @ y @ x


def sagittal_stack(
    seed: int = 0,
    *,
    turn: np.ndarray | None = None,
    down: Sequence[float] = (0, 0, -1),
    right: Sequence[float] = (0, 1, 0),
    slices: int = 15,
    step_mm: float = 4.0,
    height_mm: float = 320.0,
    middle_mm: Sequence[float] = (0, 0, 20),
    spacing_mm: float = 1.0,
) -> Stack:
    """A stack of noise with the given storage of rows (`down`) and columns (`right`), its middle at `middle_mm`."""
    rng = np.random.default_rng(seed)
    turn = np.eye(3) if turn is None else turn
    axes = np.stack([np.cross(right, down), down, right]).astype(float) @ turn.T
    size = np.array([height_mm, 256.0] if abs(down[2]) > 0.5 else [256.0, height_mm])
    shape = (size / spacing_mm).astype(int)
    pixels = rng.integers(0, 500, (slices, *shape)).astype(np.uint16)
    origin = (
        turn @ np.array(middle_mm, float)
        - axes[1] * size[0] / 2
        - axes[2] * size[1] / 2
    )
    offsets = (np.arange(slices) - (slices - 1) / 2) * step_mm
    ones = np.ones(slices, np.float32)
    return Stack(
        pixels,
        ones,
        0 * ones,
        origin + offsets[:, None] * axes[0],
        axes,
        (spacing_mm, spacing_mm),
    )


def turned(discs: Sequence[SceneDisc], turn: np.ndarray) -> list[SceneDisc]:
    """The discs of a patient lying obliquely."""
    return [
        replace(d, center_mm=turn @ d.center_mm, direction=turn @ d.direction)
        for d in discs
    ]


class SceneBackend:
    """Knows the slices of every stack of a scene and answers with the heat maps of its discs."""

    def __init__(
        self, scene: Scene, series: Sequence[Sequence[Stack]] | None = None
    ) -> None:
        self.maps: dict[bytes, np.ndarray] = {}
        for stacks in series or [[stack] for stack in scene.stacks]:
            low, high = series_range(stacks, SPEC)
            for stack in stacks:
                canvas = canvas_from_stack(stack, low, high, SPEC)
                pictures = (picture.tobytes() for picture in canvas.slices)
                self.maps.update(
                    zip(pictures, render(scene.discs, canvas), strict=True)
                )

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            "heatmaps": np.stack(
                [self.maps[picture.tobytes()] for picture in inputs["slices"]]
            )
        }


def render(discs: Sequence[SceneDisc], canvas) -> np.ndarray:
    """Heat maps `(S, K, h, w)` as a perfect net would give them."""
    count, height, width = canvas.slices.shape
    maps = np.zeros((count, SPEC.channels, height // 2, width // 2), np.float32)
    mm = (np.mgrid[: height // 2, : width // 2] * 2 + 0.5) * SPEC.pixel_mm
    nearest = np.full((count, *mm.shape[1:]), 1e9)
    for disc in discs:
        for s in range(count):
            offset = disc.center_mm - canvas.origins_mm[s]
            lateral = offset @ canvas.across
            d2 = (mm[0] - offset @ canvas.down) ** 2 + (
                mm[1] - offset @ canvas.back
            ) ** 2
            heat = disc.heat * np.exp(-d2 / 50.0 - lateral**2 / (2 * 12.0**2))
            maps[s, 0] = np.maximum(maps[s, 0], heat)
            near = d2 < nearest[s]
            nearest[s] = np.minimum(nearest[s], d2)
            maps[s, 2][near], maps[s, 3][near] = (
                disc.direction @ canvas.down,
                disc.direction @ canvas.back,
            )
            belief = disc.belief or {
                disc.rank: 0.9,
                disc.rank + 1: 0.05,
                disc.rank - 1: 0.05,
            }
            for b in range(len(SPEC.bins)):
                maps[s, 4 + b][near] = np.log(max(belief.get(b - 1, 0.0), 1e-4))
    return maps
