"""Makes phantoms with their true levels, for comparing two ways of running a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from spine_engine.anatomy import LEVELS, Level
from spine_engine.detection.levels import BOX_MM, DiscLevel
from spine_engine.phantom.render import render
from spine_engine.phantom.spine import draw_spine
from spine_engine.study import Source, Study

PHANTOMS: Final = 8
"""Number of phantoms: forty levels; more phantoms moved the mean difference of bf16 by less than 0.0001."""

UNSEEN_SEED: Final = 20_000_000
"""First seed of the phantoms that are never trained on."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A study to compare on, and the places of its levels, which graders look at."""

    study: Study
    levels: Mapping[Level, DiscLevel]


def phantom_samples(count: int = PHANTOMS, *, start: int = 0) -> list[Sample]:
    """Return phantoms that no training uses, with their true levels, beginning with number ``start``."""
    samples = []
    box_mm = np.array(BOX_MM)
    for seed in range(UNSEEN_SEED + start, UNSEEN_SEED + start + count):
        phantom = render(draw_spine(seed), seed=seed)
        discs = zip(
            LEVELS, phantom.spine.disc_center_mm, phantom.spine.disc_axes, strict=True
        )
        levels = {
            level: DiscLevel(level, center, axes, box_mm, 1.0, Source.DETECTOR)
            for level, center, axes in discs
        }
        samples.append(Sample(phantom.as_study(), levels))
    return samples
