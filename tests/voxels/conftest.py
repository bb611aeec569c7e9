"""Random posed stacks and grids."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from voxel_stacks import random_stack, rotation

from spine_engine.study import Stack
from spine_engine.voxels import GridPose


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
