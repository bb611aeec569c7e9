"""Scores of a grader on data that it was not trained on; for phantoms, beside the best score possible."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.phantom import PhantomSpine, Protocol, draw_spine, render
from spine_engine.phantom.severity import best_predictions, reader_probabilities
from spine_training.arrays import F64, I64
from spine_training.evaluation.reliability import (
    calibration_error,
    calibration_error_unweighted,
    unweighted,
)
from spine_training.grader.grids import GridSet, cut_levels, small_rotation
from spine_training.grader.model import MIRRORED_HEADS, GraderConfig
from spine_training.grader.phantoms import level_boxes, one_t2
from spine_training.metric import official_metric, prior_probabilities

POSE_DEG: Final = 12.0
"""Largest turn about each axis of the patient in ``consistency``: a patient lying askew."""


@torch.no_grad()
def predict(
    model: nn.Module,
    grids: NDArray[np.floating[Any]],
    batch: int = 40,
) -> F64:
    """Grade grids ``(N, C, D, H, W)`` -> ``(N, heads, 3)`` float64, on the device of the model's weights."""
    model.eval()
    device = next(model.parameters()).device
    parts = [
        model(
            torch.from_numpy(grids[start : start + batch].astype(np.float32)).to(device)
        )
        .double()
        .cpu()
        .numpy()
        for start in range(0, len(grids), batch)
    ]
    return np.concatenate(parts)


def by_study(heads: NDArray[Any]) -> NDArray[Any]:
    """Return ``(S, L, heads, ...)`` as ``(S, 5 levels, 5 conditions, ...)``, L being 5 levels or a whole study."""
    studies, levels = heads.shape[:2]
    if levels == len(LEVELS):
        return heads
    return heads.reshape(
        studies,
        len(CONDITIONS),
        len(LEVELS),
        *heads.shape[3:],
    ).swapaxes(1, 2)


def report(model: nn.Module, grids: GridSet, box: int) -> dict[str, float]:
    """Score a grader on one set of boxes of every study.

    Returns:
        ``metric`` and its parts; ``calibration_error`` as the metric weighs rows and ``calibration_error_unweighted``;
        the ``prior``'s metric; of phantoms also the ``best`` reachable, every narrowing known exactly, and the mean
        distance of the probabilities from the reader's.
    """
    rows = predict(model, grids.box_set(box))
    return scores(
        by_study(rows.reshape(*grids.grades.shape, 3)),
        by_study(grids.grades),
        by_study(grids.narrowing),
    )


def scores(rows: F64, grades: I64, narrowing: F64) -> dict[str, float]:
    """Score rows ``(S, 5 levels, 5 conditions, 3)``; see ``report``."""
    figures = {
        **asdict(official_metric(rows, grades)),
        "prior": official_metric(prior_probabilities(len(rows)), grades).metric,
        "calibration_error": calibration_error(rows, grades),
        "calibration_error_unweighted": calibration_error_unweighted(rows, grades),
    }
    if not np.isnan(narrowing).any():
        figures["best"] = official_metric(best_predictions(narrowing), grades).metric
        figures["miss_of_reader"] = float(
            np.abs(unweighted(rows) - reader_probabilities(narrowing)).mean()
        )
    return figures


def consistency(
    model: nn.Module, config: GraderConfig, seeds: Iterable[int]
) -> dict[str, float]:
    """Return the mean |probability difference| of phantoms, with true boxes, after a mirror, a pose and others.

    ``mirrored``: the patient reflected left to right, conditions exchanged back. ``posed``: patient and planes turned
    by up to ``POSE_DEG`` and moved. ``posed_upright``: the same, but the planes stay upright in the scanner, so that
    every slice cuts the spine obliquely. ``rescanned``: the same patient with other planes and noise, the scatter to
    compare with.
    """
    totals = dict.fromkeys(("mirrored", "posed", "posed_upright", "rescanned"), 0.0)
    count = 0
    for seed in seeds:
        spine, protocol = draw_spine(seed), Protocol.draw(seed)
        rng = np.random.default_rng([seed, 0x905E])
        turned = spine.posed(
            small_rotation(np.radians(rng.uniform(-POSE_DEG, POSE_DEG, 3))),
            rng.uniform(-40, 40, 3),
        )
        plain = _graded(model, config, spine, seed, protocol)
        others = {
            "mirrored": _graded(
                model,
                config,
                spine.mirrored(),
                seed,
                protocol,
            )[:, list(MIRRORED_HEADS)],
            "posed": _graded(model, config, turned, seed, protocol),
            "posed_upright": _graded(
                model,
                config,
                turned,
                seed,
                replace(protocol, follow_patient=False),
            ),
            "rescanned": _graded(
                model,
                config,
                spine,
                seed + 1,
                protocol,
            ),
        }
        for name, other in others.items():
            totals[name] += float(np.abs(other - plain).mean())
        count += 1
    return {name: total / count for name, total in totals.items()}


def _graded(
    model: nn.Module,
    config: GraderConfig,
    spine: PhantomSpine,
    seed: int,
    protocol: Protocol,
) -> F64:
    study = one_t2(
        render(
            spine,
            seed=seed,
            protocol=protocol,
        ),
        "t2",
    )
    return predict(
        model,
        cut_levels(
            study,
            level_boxes(spine.disc_center_mm, spine.disc_axes),
            config,
        ),
    )
