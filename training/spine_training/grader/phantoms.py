"""Phantom studies as a source of grids: drawn, rendered and cut in memory, with their narrowing known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from spine_engine.phantom import PhantomStudy, draw_spine, render
from spine_engine.phantom.samples import UNSEEN_SEED
from spine_engine.study import Role, Study
from spine_training.arrays import F64
from spine_training.grader.grids import BoxJitter, Cut, box_sets, cut_levels
from spine_training.grader.model import GraderConfig
from spine_training.grader.whole import cut_whole, whole_box

TRAINING_SEED: Final = 10_000_000
"""Phantoms from here on are trained on; those of ``demo`` and tests have small seeds."""

HELD_OUT_SEED: Final = UNSEEN_SEED
"""Phantoms from here on are never trained on."""

PHANTOM: Final = 1
"""Version of the phantoms: raise it when the same seeds look different."""


@dataclass(frozen=True)
class PhantomSource:
    """Phantoms by seed."""

    seeds: tuple[int, ...]

    @classmethod
    def training(cls, count: int) -> PhantomSource:
        """Return the first ``count`` phantoms to train on."""
        return cls(tuple(range(TRAINING_SEED, TRAINING_SEED + count)))

    @classmethod
    def held_out(cls, count: int) -> PhantomSource:
        """Return the first ``count`` phantoms that no training sees."""
        return cls(tuple(range(HELD_OUT_SEED, HELD_OUT_SEED + count)))

    @property
    def kind(self) -> str:
        """The studies' kind, in words."""
        return "synthetic phantom studies of this project, with their narrowing known exactly"

    @property
    def names(self) -> Sequence[str]:
        """The seeds, as text."""
        return [str(seed) for seed in self.seeds]

    @property
    def facts(self) -> dict[str, Any]:
        """A phantom is its seed, so sets that overlap share a cache."""
        return {"kind": "phantoms", "phantom": PHANTOM}

    def cut(
        self,
        name: str,
        config: GraderConfig,
        jitter: BoxJitter,
    ) -> Cut:
        """Draw, render and cut one phantom."""
        seed = int(name)
        rng = np.random.default_rng([seed, 0xB0C5])
        phantom = render(draw_spine(seed), seed=seed)
        study = one_t2(
            phantom,
            "t2" if rng.random() < 0.5 else "stir",
        )
        spine = phantom.spine
        if config.task == "whole_study":
            sets = box_sets([whole_box(study)], jitter, rng)
            grids = np.stack([cut_whole(study, box, config)[None] for (box,) in sets])
            return Cut(
                grids,
                spine.grades.T.reshape(1, -1),
                spine.narrowing.T.reshape(1, -1),
            )
        sets = box_sets(
            level_boxes(spine.disc_center_mm, spine.disc_axes),
            jitter,
            rng,
        )
        return Cut(
            np.stack([cut_levels(study, each, config) for each in sets]),
            spine.grades,
            spine.narrowing,
        )


def level_boxes(centers_mm: F64, axes: F64) -> list[F64]:
    """Return the boxes ``(4, 3)`` of discs at centres ``(5, 3)`` with axes ``(5, 3, 3)``."""
    return [
        np.concatenate([center[None], rows])
        for center, rows in zip(centers_mm, axes, strict=True)
    ]


def one_t2(phantom: PhantomStudy, prefer: str) -> Study:
    """Return the study; where it has both T2 and STIR, only the one of contrast ``prefer``, as most patients have."""
    whole = phantom.as_study()
    contrasts = {series.contrast for series in whole.with_role(Role.SAGITTAL_T2)}
    kept = tuple(
        s
        for s in whole.series
        if s.role is not Role.SAGITTAL_T2 or len(contrasts) < 2 or s.contrast == prefer
    )
    return replace(whole, series=kept)
