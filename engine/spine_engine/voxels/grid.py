"""Defines a voxel grid: its shape and voxel size, and its place in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

AXES_TOLERANCE = 1e-6


@dataclass(frozen=True)
class GridSpec:
    """Shape ``(D, H, W)`` and voxel size in mm of a grid, independent of its place.

    For level grids D runs superior to inferior, H anterior to posterior, W from the patient's right to left.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(
                f"shape must be three positive integers (D, H, W), got {self.shape}"
            )
        if len(self.spacing_mm) != 3 or not all(
            step > 0 for step in self.spacing_mm
        ):  # also where one is no number
            raise ValueError(
                f"spacing_mm must be three positive numbers (D, H, W), got {self.spacing_mm}"
            )

    @property
    def size_mm(self) -> tuple[float, float, float]:
        """The edge lengths of the box that the voxels fill, mm."""
        d, h, w = (
            n * step for n, step in zip(self.shape, self.spacing_mm, strict=True)
        )
        return (d, h, w)


@dataclass(frozen=True, eq=False)
class GridPose:
    """A grid's place: its centre (LPS mm) and the unit vectors along which D, H and W indices grow.

    Voxel ``[d, h, w]`` has its centre at ``center_mm + sum_k (i_k - (n_k - 1) / 2) * spacing_k * axes[k]``.
    """

    center_mm: NDArray[np.float64]
    axes: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.center_mm.shape != (3,) or self.axes.shape != (3, 3):
            raise ValueError(
                f"want center_mm (3,) and axes (3, 3), got {self.center_mm.shape} and {self.axes.shape}"
            )
        if (
            not np.abs(self.axes @ self.axes.T - np.eye(3)).max() <= AXES_TOLERANCE
        ):  # also where it is no number
            raise ValueError("axes must be three orthonormal rows")
        if not np.isfinite(self.center_mm).all():
            raise ValueError(f"center_mm must be finite, got {self.center_mm}")
