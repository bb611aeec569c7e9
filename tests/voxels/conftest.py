"""Random posed stacks and grids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from compiled import forget_outdated
from voxel_stacks import random_stack, rotation

from spine_engine.study import Stack
from spine_engine.voxels import GridPose, aligned, kernels, vectors

for kernel in (
    kernels.resample_stack,
    aligned.resample_aligned,
):  # before any test has loaded one
    forget_outdated(
        Path(kernel.stats.cache_path),
        Path(kernel.py_func.__code__.co_filename),
        Path(vectors.__file__),
    )


@pytest.fixture
def make_stack() -> Callable[..., Stack]:
    """Return the maker of random stacks."""
    return random_stack


@pytest.fixture
def make_pose() -> Callable[[int], GridPose]:
    """Return a maker of oblique grid poses near the origin."""

    def make(seed: int) -> GridPose:
        rng = np.random.default_rng(seed + 1000)
        return GridPose(rng.uniform(-2, 2, 3), rotation(rng))

    return make
