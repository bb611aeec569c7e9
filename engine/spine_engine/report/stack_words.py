"""Describes a stack in words: the distance of its slices, its gaps, its tilt.

Slices are counted as people look at them: sagittal ones from the patient's right, axial ones from the top, coronal ones
from the front. Frame: patient LPS, mm; a tilt is the angle between the slices and the patient's own plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.dicom.geometry import GAP_FACTOR, SAME_POSITION_MM, UNEVEN_FRACTION
from spine_engine.report.pictures import Plane, plane_of
from spine_engine.report.words import many
from spine_engine.study import Stack

LEVEL_DEGREES: Final = 0.5
"""Angle below which slices are shown as not tilted: pages show whole degrees."""

_AXIS: Final[dict[Plane, int]] = {"sagittal": 0, "axial": 2, "coronal": 1}
_FIRST_IS_LOW: Final[dict[Plane, bool]] = {
    "sagittal": True,
    "axial": False,
    "coronal": True,
}
"""Whether the slice that is counted first has the smallest coordinate along the plane's axis (+x left, +z top)."""
_COUNTED_FROM: Final[dict[Plane, str]] = {
    "sagittal": "the right",
    "axial": "the top",
    "coronal": "the front",
}
_PATIENTS_EDGE: Final = (("left edge", 1.0), ("front edge", -1.0), ("top edge", 1.0))
"""For each axis of LPS the edge of a slice that describes a tilt, and the axis's sign there."""
_WAYS: Final = (
    ("to the right", "to the left"),
    ("forwards", "backwards"),
    ("lower", "higher"),
)
"""Words for a smaller and a larger coordinate along each axis of LPS."""


@dataclass(frozen=True, kw_only=True)
class Tilt:
    """The angle of slices against the patient's own plane.

    Attributes:
        degrees: the angle between the two planes, 0 to 55.
        words: "12°, front edge lower", or "none".
    """

    degrees: float
    words: str


def tilt_of(stack: Stack) -> Tilt:
    """Return the tilt of a stack against the patient's sagittal, axial or coronal plane, whichever is nearest."""
    normal: NDArray[np.float64] = stack.axes[0]
    axis = _AXIS[plane_of(stack)]
    degrees = float(np.degrees(np.arccos(min(1.0, abs(float(normal[axis]))))))
    if degrees < LEVEL_DEGREES:
        return Tilt(degrees=degrees, words="none")
    along = max((i for i in range(3) if i != axis), key=lambda i: abs(float(normal[i])))
    edge, sign = _PATIENTS_EDGE[along]
    # in the plane n . p = 0 a step along one axis moves the other by -n_along / n_axis
    moved = -float(normal[along] / normal[axis]) * sign
    return Tilt(
        degrees=degrees, words=f"{degrees:.0f}°, {edge} {_WAYS[axis][moved > 0]}"
    )


def gaps_of(stack: Stack) -> str:
    """Return in words whether slices are missing or unevenly spaced, by the limits of the reader's warnings."""
    distances = np.diff(stack.positions_mm)
    if not len(distances):
        return "a single slice"
    usual = float(np.median(distances))
    plane = plane_of(stack)
    if (stack.axes[0, _AXIS[plane]] > 0) != _FIRST_IS_LOW[plane]:
        distances = distances[::-1]
    gaps = np.flatnonzero(distances > GAP_FACTOR * usual)
    if len(gaps):
        largest = int(gaps[distances[gaps].argmax()])
        first = largest + 1
        where = f"{distances[largest]:.1f} mm between slices {first} and {first + 1} from {_COUNTED_FROM[plane]}"
        return (
            f"1 gap: {where}"
            if len(gaps) == 1
            else f"{many(len(gaps), 'gap')}, the largest {where}"
        )
    if np.abs(distances - usual).max() > max(UNEVEN_FRACTION * usual, SAME_POSITION_MM):
        return f"uneven: {distances.min():.1f} to {distances.max():.1f} mm apart"
    return "none"
