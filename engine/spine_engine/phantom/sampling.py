"""The outer rendering kernel: sums the tissue samples of every voxel into signals.

numba caches a kernel under the content of its own source file, so a change in the kernels it calls would go unnoticed.
``sample`` therefore closes over a stamp of all the sources that are compiled into it, which numba adds to the key: an
upgraded installation never runs a mixture of old and new kernels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from spine_engine.phantom.tissue import (
    noise_at,
    outline_at,
    plane_at,
    shell_at,
    tissue_at,
)

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]

SUPERSAMPLING: Final = np.array(
    [
        [0.0, -0.10, 0.30],
        [-0.40, -0.30, 0.10],
        [0.40, -0.05, 0.05],
        [-0.20, 0.15, -0.35],
        [0.20, 0.35, -0.15],
    ],
    np.float32,
)
"""Offsets of a voxel's samples near the spine: through the slice (share of its thickness), down and along (pixels).
The last two are sampled only where the first three (middle and both faces of the slice) disagree."""

_COMPILED_IN: Final = ("tissue.py", "profiles.py", "signal.py", "spine.py")


def _source_stamp() -> int:
    """Return a positive number that changes with any source that the kernel is compiled from."""
    digest = hashlib.sha256()
    for name in _COMPILED_IN:
        digest.update((Path(__file__).parent / name).read_bytes())
    return int.from_bytes(digest.digest()[:6], "big")


@numba.njit(nogil=True, error_model="numpy", inline="always")
def _add(
    total: Float32Array, signals: Float32Array, first: int, second: int, share: float, texture: Float32Array,
    fine: float, coarse: float,
) -> None:  # fmt: skip
    """Add one sample's signal, with its tissue's grain, to the contrasts' sums."""
    grain = 1 + texture[first] * (0.8 * fine + 0.5 * coarse)
    for m in range(total.shape[0]):
        total[m] += grain * (
            (1 - share) * signals[m, first] + share * signals[m, second]
        )


def _stamped(stamp: int) -> Callable[..., None]:
    """Build the kernel; ``stamp`` only enters the key under which numba caches it."""

    @numba.njit(cache=True, nogil=True, error_model="numpy")
    def sample(
        origin: FloatArray, steps: FloatArray, thickness: float, offsets: Float32Array, signals: Float32Array,
        texture: Float32Array, along: Float32Array, start_mm: float, plane: Float32Array, soft: Float32Array,
        lattice: Float32Array, scalars: Float32Array, saturation: float, out: Float32Array,
    ) -> None:  # fmt: skip
        """Fill ``out`` with each voxel's mean signal: several samples near the spine, one elsewhere, one texture."""
        if stamp < 0:
            return
        contrasts = signals.shape[0]
        total = np.empty(contrasts, np.float32)
        for k in range(out.shape[1]):
            for r in range(out.shape[2]):
                for c in range(out.shape[3]):
                    x = origin[0] + k * steps[0, 0] + r * steps[1, 0] + c * steps[2, 0]
                    y = origin[1] + k * steps[0, 1] + r * steps[1, 1] + c * steps[2, 1]
                    z = origin[2] + k * steps[0, 2] + r * steps[1, 2] + c * steps[2, 2]
                    back, back_skin, belly, belly_skin = outline_at(soft, x, z)
                    if y > back_skin or y < belly_skin:
                        out[:, k, r, c] = 0
                        continue
                    fine = noise_at(lattice, x / 2.2, y / 1.7, z / 1.7)
                    coarse = noise_at(lattice, x / 13.0, y / 11.0, z / 13.0 + 9.5)
                    total[:] = 0
                    h = plane_at(plane, y, z)[1]
                    if y > back or y < belly + 8:
                        streak = noise_at(lattice, x / 4.5 + 3.3, y / 3.5, z / 24.0)
                        first, second, share = shell_at(
                            x, y, streak, back, back_skin, belly, belly_skin
                        )
                        _add(
                            total, signals, first, second, share, texture, fine, coarse
                        )
                        samples = 1
                    else:
                        near = h > -28 and h < 48 and abs(x) < 46
                        streak = 0.0
                        if h > 8 or (h > -28 and abs(x) > 24):
                            streak = noise_at(lattice, x / 4.5 + 3.3, y / 3.5, z / 24.0)
                        samples, alike, middle, middle_share = 0, near, -1, 0.0
                        for n in range(offsets.shape[0] if near else 1):
                            if n == 3 and alike:
                                break
                            u, v, t = (
                                offsets[n, 0] * thickness,
                                offsets[n, 1],
                                offsets[n, 2],
                            )
                            if not near:
                                u, v, t = 0.0, 0.0, 0.0
                            first, second, share = tissue_at(
                                x + u * steps[0, 0] + v * steps[1, 0] + t * steps[2, 0],
                                y + u * steps[0, 1] + v * steps[1, 1] + t * steps[2, 1],
                                z + u * steps[0, 2] + v * steps[1, 2] + t * steps[2, 2],
                                fine, coarse, streak, belly, along, start_mm, plane, scalars,
                            )  # fmt: skip
                            _add(
                                total,
                                signals,
                                first,
                                second,
                                share,
                                texture,
                                fine,
                                coarse,
                            )
                            samples += 1
                            if n == 0:
                                middle, middle_share = first, share
                            elif first != middle or abs(share - middle_share) > 0.1:
                                alike = False
                    kept = 1 - (1 - saturation) * min(max((-h - 34) / 14, 0.0), 1.0)
                    for m in range(contrasts):
                        out[m, k, r, c] = max(total[m] / samples, 0.0) * kept

    return sample


sample: Final = _stamped(_source_stamp())
"""``sample(origin, steps, thickness, offsets, signals, texture, along, start_mm, plane, soft, lattice, scalars,
saturation, out)``: fill ``out (contrasts, slices, rows, columns)`` with the mean signal of each voxel, whose centre is
``origin + k steps[0] + r steps[1] + c steps[2]``, canonical mm; ``profiles.Field`` describes the tables."""
