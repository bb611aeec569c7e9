"""Inputs on which precisions are compared: phantoms that no training has seen, cut as the engine cuts studies."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.phantom import draw_spine, render
from spine_engine.study import Role, Stack
from spine_training.grader.grids import TRUE_BOXES, BoxJitter
from spine_training.grader.model import GraderConfig
from spine_training.grader.phantoms import HELD_OUT_SEED, PhantomSource

PHANTOMS: Final = 8
"""Forty levels; more phantoms moved the mean difference of bf16 by less than 0.0001."""


def phantom_grids(config: GraderConfig, count: int = PHANTOMS) -> NDArray[np.float32]:
    """Return grids ``(N, C, D, H, W)`` for a grader: five a phantom, or one for a whole-study grader."""
    source = PhantomSource.held_out(count)
    cuts = [source.cut(name, config, BoxJitter(boxes=1)) for name in source.names]
    return np.concatenate([cut.grids[TRUE_BOXES] for cut in cuts])


def phantom_series(count: int = PHANTOMS) -> list[list[tuple[Stack, ...]]]:
    """Return the stacks of each sagittal series of phantoms, as ``detect`` takes them."""
    studies: list[list[Any]] = []
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + count):
        study = render(draw_spine(seed), seed=seed).as_study()
        studies.append([s.stacks for role in (Role.SAGITTAL_T1, Role.SAGITTAL_T2) for s in study.with_role(role)])
    return studies
