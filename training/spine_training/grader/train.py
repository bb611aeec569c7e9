"""The graders' training as a task of ``fit``: batches of augmented grids, the loss, the parameter groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor, nn

from spine_engine.errors import UsageError
from spine_training.arrays import I64
from spine_training.fit import Batch, Parts, Session, fit
from spine_training.grader.augment import AugmentOptions, augment
from spine_training.grader.grids import GridSet
from spine_training.grader.loss import grading_loss, narrowing_loss
from spine_training.grader.model import Grader, GraderConfig, load_grader
from spine_training.optimisation import FitOptions, plain_groups

CUTPOINT_LEARNING_RATE: Final = 10.0
"""Factor of the common rate: the cut-points must travel from 2 to about 8 apart within a short training."""

EXACT_SHARE: Final = 0.8
"""Share of the training in which the exact narrowing still counts; calibration is left to the last fifth."""


@dataclass(frozen=True, kw_only=True)
class GradingOptions:
    """Batches and loss of a grader's training; stored in every checkpoint.

    ``exact_weight`` is the weight, in the beginning, of the error of the narrowing where it is known exactly; it
    fades to 0 before the end, where readers' grades alone decide, as calibrated probabilities need it.
    """

    batch: int = 32
    exact_weight: float = 4.0
    augment: AugmentOptions = field(default_factory=AugmentOptions)

    def __post_init__(self) -> None:
        if self.batch < 2:
            raise UsageError(
                f"batch is {self.batch}; batch norm needs at least 2 grids"
            )


Watch = Callable[[Grader], dict[str, float]]


class GradingTask:
    """A ``fit.Task``: a grader learns from a set of grids."""

    model: Grader

    def __init__(
        self,
        grader: Grader,
        grids: GridSet,
        options: GradingOptions,
        *,
        seed: int = 0,
        data: str = "",
        watch: Watch | None = None,
    ) -> None:
        self.model = grader
        self.config: dict[str, Any] = asdict(grader.config)
        self.settings: dict[str, Any] = {
            **asdict(options),
            "studies": len(grids),
            "data": data,
        }
        self._grids = grids
        self._options = options
        self._seed = seed
        self._watch = watch
        self._places = grids.places
        if len(self._places) < 2:
            raise UsageError(
                "the training data has fewer than two labelled grids; give more studies"
            )
        self.steps = math.ceil(len(self._places) / options.batch)
        self._order = lru_cache(maxsize=2)(self._order_of_epoch)
        self._grades = lru_cache(maxsize=2)(grids.grades_of_epoch)

    def batch(self, epoch: int, step: int) -> Batch:
        """Return grids ``(N, C, D, H, W)``, grades ``(N, heads)`` and narrowing ``(N, heads)``."""
        grids, grades, narrowing = [], [], []
        for number, place in enumerate(
            self._order(epoch)[step :: self.steps]
        ):  # as many grids in every batch, or one
            study, box, level = place.tolist()
            labels = [
                torch.from_numpy(self._grades(epoch)[study, level]),
                torch.from_numpy(self._grids.narrowing[study, level]).float(),
            ]
            grid = torch.from_numpy(
                self._grids.grid(study, box, level).astype(np.float32)
            )
            config, seed = self.model.config, self._draw(epoch, step, number)
            grid, labels = augment(
                grid,
                labels,
                config.mirrored_heads,
                config.spacing_mm,
                self._options.augment,
                seed,
            )
            grids.append(grid)
            grades.append(labels[0])
            narrowing.append(labels[1])
        return torch.stack(grids), torch.stack(grades), torch.stack(narrowing)

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        """Return the grading loss with the fading exact one, and both as parts."""
        grids, grades, narrowing = batch
        grader = self.model
        latents = grader.latents(grids.contiguous(memory_format=torch.channels_last_3d))
        with torch.autocast(grids.device.type, enabled=False):
            graded = grading_loss(grader.grade(latents), grades)
            cutpoints = torch.stack([link.cutpoints for link in grader.links()])
            exact = narrowing_loss(latents, cutpoints, narrowing)
        weight = self._options.exact_weight * max(0.0, 1.0 - progress / EXACT_SHARE)
        return graded + weight * exact, {
            "grading": graded.detach(),
            "exact": exact.detach(),
        }

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the groups: cut-points apart, they travel far."""
        named = list(self.model.named_parameters())
        cutpoints = [(name, p) for name, p in named if name.endswith("cutpoints")]
        others = [(name, p) for name, p in named if not name.endswith("cutpoints")]
        return [
            *plain_groups(others, weight_decay),
            {
                "params": [p for _, p in cutpoints],
                "weight_decay": 0.0,
                "times": CUTPOINT_LEARNING_RATE,
            },
        ]

    def after_step(self) -> None:
        """Keep the cut-points in ascending order."""
        self.model.order_cutpoints()

    def figures(self, averaged: nn.Module) -> dict[str, float]:
        """Return the figures that ``watch`` gives of the averaged grader."""
        if self._watch is None or not isinstance(averaged, Grader):
            return {}
        return self._watch(averaged)

    def _order_of_epoch(self, epoch: int) -> I64:
        order = np.random.default_rng([self._seed, epoch, 0x0D]).permutation(
            len(self._places)
        )
        return self._places[order]

    def _draw(
        self,
        epoch: int,
        step: int,
        number: int,
    ) -> int:
        return int(
            np.random.SeedSequence([self._seed, epoch, step, number]).generate_state(
                1, np.uint64
            )[0]
            >> 1
        )


def train(
    grids: GridSet,
    config: GraderConfig,
    options: FitOptions,
    session: Session,
    *,
    grading: GradingOptions | None = None,
    watch: Watch | None = None,
) -> Grader:
    """Train a grader and return the one with averaged weights.

    Args:
        grids: grids with their grades.
        config: the model.
        options: the optimisation.
        session: output folder, machine, first weights.
        grading: batches and loss.
        watch: called after each epoch with the averaged grader; its figures are reported beside the loss.

    Raises:
        UsageError: see ``fit``; or the first weights are not those of such a grader.
    """
    torch.manual_seed(options.seed)
    grader = Grader(config) if session.start is None else load_grader(session.start)
    if grader.config != config:
        kind = f"{grader.config.backbone}, {grader.config.task}"
        raise UsageError(f"{session.start} is another grader ({kind}) than asked for")
    task = GradingTask(
        grader,
        grids,
        grading or GradingOptions(),
        seed=options.seed,
        data=grids.description,
        watch=watch,
    )
    averaged = fit(
        task,
        options,
        session.out,
        machine=session.machine,
        resume=session.resume,
    )
    return cast(Grader, averaged)
