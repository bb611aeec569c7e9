"""The detector's training as a task of ``fit``: batches of slices drawn on the fly, their loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor, nn

from spine_engine.detection.spec import DetectorSpec
from spine_engine.errors import UsageError
from spine_training.curves import HELD_OUT
from spine_training.detector.augment import ExamArrays, arrays_from_exam, sample
from spine_training.detector.data import fold_of
from spine_training.detector.exam import Exam
from spine_training.detector.loss import detector_loss
from spine_training.detector.model import LevelHeatmapNet, load_detector
from spine_training.detector.phantoms import exams_from_phantom
from spine_training.fit import Batch, Parts, Session, fit
from spine_training.optimisation import FitOptions, plain_groups

CANVASES: Final = (((192, 160), 12, 0.45), ((160, 128), 18, 0.3), ((224, 192), 9, 0.25))
"""Canvas sizes in pixels (2 mm): 384 x 320 mm holds a whole-lumbar exam, 448 x 384 mm a very large field of view,
320 x 256 mm a short one. ``(canvas, slices a batch, how often)``; a batch covers about as many pixels in each."""

SOURCE_WEIGHTS: Final[Mapping[str, float]] = {
    "VB1": 0.22, "VB2": 0.26, "VB3": 0.27, "SPIDER": 0.25, "PHANTOM": 0.2, "RSNA": 1.0,
}  # fmt: skip
"""Relative frequency of each source in the draw. VB1 has the only T1 and STIR exams, so its few exams come
oftener than their number; RSNA's thousands come as often as all the public ones with their exact masks."""

COARSE: Final = 0.2
"""Share of batches that lose resolution, as a coarser scan does."""

PHANTOM_SEED: Final = 700_000
"""First seed of the training phantoms; the demo and the tests use small seeds."""

EPOCH_STEPS: Final = 200
"""Slices are drawn without end, so an epoch is a number of batches."""

DETECTOR_FIT: Final = FitOptions(
    epochs=12,
    learning_rate=3e-3,
    warmup_epochs=0.5,
    ema=0.997,
    clip_norm=1.0,
)


WATCHED_STEPS: Final = 10
"""Number of held-out batches that are scored after each epoch, the same ones every time: about 130 slices, a
twentieth of an epoch's, without a backward pass."""

WATCHED_SEED: Final = 0x0E
"""Seed of the held-out batches, the same for every training, so that all are scored on the same slices."""


@dataclass(frozen=True, eq=False)
class TrainingExams:
    """Exams to draw slices from, by source: ``groups`` to train on and ``held_out``; ``data`` says them in words."""

    groups: Mapping[str, Sequence[ExamArrays]]
    data: str
    held_out: Mapping[str, Sequence[ExamArrays]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        exams: Sequence[Exam],
        fold: int,
        *,
        phantoms: int = 0,
    ) -> TrainingExams:
        """Take all exams but those of ``fold`` (-1: all), and the sagittal series of so many phantoms.

        Raises:
            UsageError: none is left.
        """
        spec = DetectorSpec()
        number = fold_of(exams)
        groups: dict[str, list[ExamArrays]] = {}
        held_out: dict[str, list[ExamArrays]] = {}
        for exam in exams:
            chosen = held_out if number[exam.name] == fold else groups
            chosen.setdefault(exam.source, []).append(arrays_from_exam(exam, spec))
        if phantoms:
            seeds = range(PHANTOM_SEED, PHANTOM_SEED + phantoms)
            groups["PHANTOM"] = [
                arrays_from_exam(exam, spec)
                for seed in seeds
                for exam in exams_from_phantom(seed)
            ]
        if not groups:
            raise UsageError(
                f"no exam is left to train on without fold {fold}; give more data or --fold -1"
            )
        counts = ", ".join(
            f"{len(group)} {source}" for source, group in sorted(groups.items())
        )
        return cls(
            groups,
            f"{counts} exams" + (f", fold {fold} of 5 held out" if fold >= 0 else ""),
            held_out,
        )


class DetectorTask:
    """A ``fit.Task``: the level heat-map net learns from slices of exams."""

    def __init__(
        self,
        net: LevelHeatmapNet,
        exams: TrainingExams,
        *,
        seed: int = 0,
        steps: int = EPOCH_STEPS,
    ) -> None:
        self.model = net
        self.steps = steps
        self.config: dict[str, Any] = {"spec": asdict(net.spec), "widths": net.widths}
        self.settings: dict[str, Any] = {"data": exams.data, "steps": steps}
        self._seen = _Slices(exams.groups, net)
        self._unseen = _Slices(exams.held_out, net)
        self._seed = seed

    def batch(self, epoch: int, step: int) -> Batch:
        """Return ``(slices (N, 1, H, W), targets (N, 9, H / 2, W / 2))``."""
        return self._seen.batch(
            np.random.default_rng((self._seed, epoch * self.steps + step))
        )

    def loss(self, batch: Batch, progress: float) -> tuple[Tensor, Parts]:
        """Return the detector's loss and its parts."""
        slices, targets = batch
        maps = self.model(slices.contiguous(memory_format=torch.channels_last))
        with torch.autocast(slices.device.type, enabled=False):
            loss, parts = detector_loss(maps.float(), targets)
        return loss, parts

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return AdamW's groups."""
        return plain_groups(list(self.model.named_parameters()), weight_decay)

    def after_step(self) -> None:
        """Repair nothing: the net has no constraint."""

    @torch.no_grad()
    def figures(self, averaged: nn.Module) -> dict[str, float]:
        """Return loss and share of right levels on slices of the held-out exams; empty without any.

        ``cross-validate`` judges a fold in full, through the engine's own decode.
        """
        if not self._unseen:
            return {}
        device = next(averaged.parameters()).device
        scores: list[Parts] = []
        for step in range(WATCHED_STEPS):
            slices, targets = self._unseen.batch(
                np.random.default_rng((WATCHED_SEED, step))
            )
            loss, parts = detector_loss(
                averaged(slices.to(device)).float(),
                targets.to(device),
            )
            scores.append({"loss": loss, "level_right": parts["level_right"]})
        return {
            HELD_OUT + name: float(sum(parts[name] for parts in scores)) / WATCHED_STEPS
            for name in scores[0]
        }


class _Slices:
    """Batches of slices, drawn from exams by source; falsy without exams."""

    def __init__(
        self,
        groups: Mapping[str, Sequence[ExamArrays]],
        net: LevelHeatmapNet,
    ) -> None:
        self._groups, self._spec = groups, net.spec
        self._names = sorted(groups)
        weights = np.array([SOURCE_WEIGHTS[name] for name in self._names])
        self._weights = weights / weights.sum()

    def __bool__(self) -> bool:
        return bool(self._names)

    def batch(self, rng: np.random.Generator) -> Batch:
        """Return ``(slices (N, 1, H, W), targets (N, 9, H / 2, W / 2))``."""
        canvas, count, _ = CANVASES[
            rng.choice(
                len(CANVASES),
                p=[often for *_, often in CANVASES],
            )
        ]
        images, targets = [], []
        for name in rng.choice(self._names, count, p=self._weights):
            exams = self._groups[name]
            image, target = sample(
                exams[int(rng.integers(len(exams)))],
                canvas,
                rng,
                self._spec,
            )
            images.append(image)
            targets.append(target)
        slices = torch.from_numpy(np.stack(images)).unsqueeze(1)
        if rng.random() < COARSE:
            slices = nn.functional.avg_pool2d(
                slices,
                3,
                stride=1,
                padding=1,
            )
        return slices, torch.from_numpy(np.stack(targets))


def train(
    exams: TrainingExams,
    session: Session,
    options: FitOptions = DETECTOR_FIT,
    *,
    steps: int = EPOCH_STEPS,
) -> LevelHeatmapNet:
    """Train a detector and return the one with averaged weights.

    Args:
        exams: exams to draw slices from, and those held out.
        session: output folder, machine, first weights.
        options: the optimisation.
        steps: batches an epoch.

    Raises:
        UsageError: see ``fit``; or the first weights are no detector's.
    """
    torch.manual_seed(options.seed)
    net = LevelHeatmapNet() if session.start is None else load_detector(session.start)
    task = DetectorTask(
        net,
        exams,
        seed=options.seed,
        steps=steps,
    )
    averaged = fit(
        task,
        options,
        session.out,
        machine=session.machine,
        resume=session.resume,
    )
    return cast(LevelHeatmapNet, averaged)
