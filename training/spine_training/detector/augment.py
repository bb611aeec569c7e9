"""Random sagittal slices of an exam with their targets, rendered straight from the volume.

Canvas frame: pixel (r, c) of a slice lies at `pixel_mm * (r, c)`; rows superior -> inferior, columns anterior ->
posterior. A random affine takes canvas mm to volume mm; the slice plane may be tilted against the volume, and several
lateral samples are averaged, as in a thick slice. Why not TorchIO: docs/decisions/0008-training.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numba
import numpy as np

from spine_engine.detection.spec import DetectorSpec
from spine_training.arrays import F32, F64, U8
from spine_training.detector.exam import Exam, intensity_window, pixels_of
from spine_training.detector.targets import SliceColumn, target_planes

#: A disc's heat in a slice falls with its lateral distance: at 24 mm it is 0.13.
LATERAL_SIGMA_MM = 12.0


@dataclass(frozen=True, slots=True)
class ExamArrays:
    """An exam as plain arrays: discs `(n, 8)` = row, column, lateral mm, direction (2), rank, known, weak.

    `volume` may be a file, see `Exam`.
    """

    volume: U8 | Path
    spacing_mm: F64
    low: float
    high: float
    discs: F64
    bodies: F64

    @property
    def pixels(self) -> U8:
        """The voxels, read from their file where the volume is one."""
        return pixels_of(self.volume)


def arrays_from_exam(exam: Exam, spec: DetectorSpec) -> ExamArrays:
    """Return an exam as plain arrays."""
    low, high = exam.window or intensity_window(pixels_of(exam.volume), spec)
    discs = np.array(
        [
            [
                *d.center_mm,
                *d.direction,
                d.rank,
                d.known,
                d.weak,
            ]
            for d in exam.column.discs
        ],
        float,
    )
    bodies = np.array(
        [[*center, rank] for rank, center in exam.column.bodies],
        float,
    )
    spacing = np.array(exam.spacing_mm)
    return ExamArrays(exam.volume, spacing, low, high, discs, bodies)


@numba.njit(cache=True, nogil=True)
def _render_slice(
    volume: U8,
    spacing: F64,
    matrix: F64,
    shift: F64,
    plane: F64,
    offsets: F64,
    crop: F64,
    lut: F64,
    window: tuple[float, float, float],
    bias: F64,
    pixel_mm: float,
    out: F32,
) -> None:
    """Render the mean of bilinear samples at the lateral `offsets` mm, through `lut`, times the bias field; 0 outside.

    `matrix` and `shift` take canvas mm to volume mm; `plane` gives the lateral mm of a volume point; `crop` is the
    field of view in canvas pixels; `window` is (low, high, gain) of the intensities.
    """
    rows, columns, depth = volume.shape
    low, high, gain = window
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            out[r, c] = 0.0
            if r < crop[0] or r >= crop[1] or c < crop[2] or c >= crop[3]:
                continue
            y, x = r * pixel_mm, c * pixel_mm
            vy = matrix[0, 0] * y + matrix[0, 1] * x + shift[0]
            vx = matrix[1, 0] * y + matrix[1, 1] * x + shift[1]
            fy, fx = vy / spacing[0], vx / spacing[1]
            iy, ix = int(np.floor(fy)), int(np.floor(fx))
            if iy < 0 or ix < 0 or iy >= rows - 1 or ix >= columns - 1:
                continue
            ty, tx = fy - iy, fx - ix
            lateral = plane[0] + plane[1] * vy + plane[2] * vx
            total = 0.0
            for offset in offsets:
                k = int(np.floor((lateral + offset) / spacing[2] + 0.5))
                k = min(max(k, 0), depth - 1)
                total += (1 - ty) * (
                    (1 - tx) * volume[iy, ix, k] + tx * volume[iy, ix + 1, k]
                )
                total += ty * (
                    (1 - tx) * volume[iy + 1, ix, k] + tx * volume[iy + 1, ix + 1, k]
                )
            value = (total / len(offsets) - low) / (high - low)
            by = 2.0 * r / out.shape[0] - 1.0
            bx = 2.0 * c / out.shape[1] - 1.0
            field = np.exp(
                bias[0] * by
                + bias[1] * bx
                + bias[2] * by * by
                + bias[3] * bx * bx
                + bias[4] * bx * by
            )
            position = min(max(value * field * gain, 0.0), 1.25) * (len(lut) - 1) / 1.25
            i = min(int(position), len(lut) - 2)
            out[r, c] = lut[i] + (position - i) * (lut[i + 1] - lut[i])


def _random_lut(rng: np.random.Generator, gamma: float) -> F64:
    """Draw an intensity curve over 0..1.25: gamma, monotone bends, at times an inversion or a free curve."""
    x = np.linspace(0.0, 1.25, 64)
    y = np.minimum(x, 1.25) ** (gamma * np.exp(rng.normal(0.0, 0.35)))
    if rng.random() < 0.4:  # random monotone
        steps = np.exp(rng.normal(0.0, 0.9, 8))
        curve = np.concatenate([[0.0], np.cumsum(steps) / steps.sum()])
        y = 0.3 * y + 0.7 * np.interp(
            x / 1.25,
            np.linspace(0, 1, 9),
            curve,
        )
    draw = rng.random()
    if draw < 0.1:  # inverted tissue, dark air
        y = (1.0 - y / y.max()) * np.clip(
            x / rng.uniform(0.05, 0.25),
            0.0,
            1.0,
        )
    elif draw < 0.2:  # any smooth contrast
        free = np.interp(
            x,
            np.linspace(0, 1.25, 7),
            rng.uniform(0.0, 1.1, 7),
        )
        y = free * np.clip(x / 0.1, 0.0, 1.0)
    return np.asarray(y * np.exp(rng.normal(0.0, 0.12)))


def _crop_mm(rng: np.random.Generator, discs: F64, extent: F64) -> F64:
    """Draw a field of view in volume mm (row from, to, column from, to), from cut columns to the whole picture."""
    box = np.array([0.0, extent[0], 0.0, extent[1]])
    if rng.random() < 0.45:
        return box
    last = len(discs) - 1
    if rng.random() < 0.65:
        above = discs[min(1, last), 0] if rng.random() < 0.15 else discs[0, 0] + 8.0
        if rng.random() < 0.5:
            box[1] = rng.uniform(min(above, extent[0]), extent[0])
        else:
            box[1] = min(extent[0], above + rng.exponential(35.0))
    if rng.random() < 0.7:
        l1_l2 = discs[min(int(np.searchsorted(discs[:, 5], 4)), last), 0] + 10.0
        lowest = l1_l2 if rng.random() < 0.75 else discs[min(3, last), 0]
        box[0] = rng.uniform(0.0, max(1.0, float(lowest)))
    box[0] = max(0.0, min(box[0], box[1] - 110.0))
    if rng.random() < 0.6:
        box[2] = rng.uniform(
            0.0,
            max(1.0, discs[:, 1].min() - 32.0),
        )
    if rng.random() < 0.6:
        box[3] = rng.uniform(
            min(discs[:, 1].max() + 40.0, extent[1] - 1.0),
            extent[1],
        )
    return box


@dataclass(frozen=True, slots=True)
class _Placement:
    """A sample's motion `canvas = forward @ volume + shift` (mm), and its field of view in canvas mm."""

    forward: F64
    shift: F64
    crop_mm: F64


def _placement(
    rng: np.random.Generator,
    discs: F64,
    extent: F64,
    size_mm: F64,
) -> _Placement:
    """Draw a rotation, scale and shear, a field of view, and its place on the canvas."""
    angle = np.deg2rad(
        rng.normal(0.0, 8.0) if rng.random() < 0.8 else rng.uniform(-25, 25)
    )
    scale = np.exp(rng.normal(0.0, 0.1)) * np.exp(rng.normal(0.0, 0.04, 2))
    rotation = np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    shear = np.array([[1.0, 0.0], [rng.normal(0.0, 0.05), 1.0]])
    forward = rotation @ shear @ np.diag(scale)
    crop = _crop_mm(rng, discs, extent)
    middle = np.array([(crop[0] + crop[1]) / 2, (crop[2] + crop[3]) / 2])
    reach = np.array([(crop[1] - crop[0]) / 2, (crop[3] - crop[2]) / 2])
    half = np.minimum(
        np.abs(forward) @ reach,
        reach * scale * 1.03,
    )
    slack = size_mm / 2 - half
    center = size_mm / 2 + rng.uniform(-1, 1, 2) * np.maximum(slack, 0.0)
    for axis in range(2):  # larger than the canvas: let any part be cut
        if slack[axis] < 0:
            center[axis] = size_mm[axis] / 2 + rng.uniform(slack[axis], -slack[axis])
    box = np.array(
        [
            center[0] - half[0],
            center[0] + half[0],
            center[1] - half[1],
            center[1] + half[1],
        ]
    )
    box = np.clip(box, 0.0, np.repeat(size_mm, 2))
    return _Placement(
        forward,
        center - forward @ middle,
        box,
    )


def sample(
    exam: ExamArrays,
    canvas: tuple[int, int],
    rng: np.random.Generator,
    spec: DetectorSpec,
) -> tuple[F32, F32]:
    """Draw one random slice `(H, W)` and its target planes `(9, H / stride, W / stride)`."""
    exam = replace(exam, volume=pixels_of(exam.volume))
    extent = (np.array(exam.pixels.shape) - 1) * exam.spacing_mm
    place = _placement(
        rng,
        exam.discs,
        extent,
        np.array(canvas) * spec.pixel_mm,
    )
    plane = _slice_plane(rng, exam.discs, extent)
    image = _sampled_image(exam, rng, spec, place, plane, canvas)
    return image, target_planes(
        _column(exam, place, plane),
        canvas,
        spec,
    )


def _column(exam: ExamArrays, place: _Placement, plane: F64) -> SliceColumn:
    """Return the exam's discs and bodies as the slice `plane` shows them on the canvas."""
    discs = exam.discs.copy()
    bodies = exam.bodies.copy()
    discs[:, :2] = discs[:, :2] @ place.forward.T + place.shift
    bodies[:, :2] = bodies[:, :2] @ place.forward.T + place.shift
    direction = discs[:, 3:5] @ place.forward.T
    discs[:, 3:5] = direction / np.linalg.norm(
        direction,
        axis=1,
        keepdims=True,
    )
    return SliceColumn(
        discs,
        bodies,
        _amplitude(plane, exam.discs),
        _amplitude(plane, exam.bodies),
        place.crop_mm,
    )


def _sampled_image(
    exam: ExamArrays,
    rng: np.random.Generator,
    spec: DetectorSpec,
    place: _Placement,
    plane: F64,
    canvas: tuple[int, int],
) -> F32:
    """Return the picture of a sample: thick slice, intensity curve, gain, bias field, noise."""
    thickness = rng.choice([1.0, 3.0, 4.0, 4.0, 5.0])
    count = max(1, round(thickness / max(1.0, exam.spacing_mm[2])))
    window = (exam.low, exam.high, float(np.exp(rng.normal(0.0, 0.25))))
    bias = rng.normal(0.0, 0.3, 5) * (rng.random() < 0.6)
    inverse = np.linalg.inv(place.forward).astype(np.float64)
    image = np.empty(canvas, np.float32)
    _render_slice(
        exam.pixels,
        exam.spacing_mm,
        inverse,
        -inverse @ place.shift,
        plane,
        (np.arange(count) - (count - 1) / 2) * thickness / count,
        np.ceil(place.crop_mm / spec.pixel_mm),
        _random_lut(rng, spec.gamma),
        window,
        bias,
        spec.pixel_mm,
        image,
    )
    if rng.random() < 0.5:
        image += (rng.exponential(0.04) * rng.standard_normal(canvas, np.float32)) * (
            image > 0
        )
        np.maximum(image, 0.0, out=image)
    return image


def _slice_plane(rng: np.random.Generator, discs: F64, extent: F64) -> F64:
    """Draw the slice: its lateral position as a plane `p0 + p1 * row + p2 * column` in volume mm."""
    tilt = rng.normal(0.0, 0.05, 2) if extent[2] > 30 else np.zeros(2)
    pivot = discs[rng.integers(len(discs))]
    reach = rng.uniform(-26.0, 26.0) if rng.random() < 0.5 else rng.normal(0.0, 8.0)
    lateral = float(np.clip(pivot[2] + reach, 0.0, extent[2]))
    return np.array([lateral - tilt @ pivot[:2], tilt[0], tilt[1]])


def _amplitude(plane: F64, points: F64) -> F64:
    """Return each point's share in the slice: a Gaussian of its lateral distance to the slice plane."""
    distance = plane[0] + points[:, :2] @ plane[1:] - points[:, 2]
    return np.asarray(np.exp(-(distance**2) / (2 * LATERAL_SIGMA_MM**2)))
