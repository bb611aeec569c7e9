"""How well a grader reads phantoms it has never seen, beside the best that anyone could."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_engine.phantom import PhantomSpine, Protocol, draw_spine, render
from spine_engine.phantom.severity import best_predictions, reader_probabilities
from spine_training.grader.data import CropSet, cut_grids, small_rotation
from spine_training.grader.model import MIRRORED_HEADS, GraderConfig
from spine_training.metric import official_metric, prior_probabilities

BINS = 15
"""Bins of the expected calibration error, equally wide in confidence (Guo et al. 2017)."""


POSE_DEG = 12.0
"""Largest turn about each axis of the patient in ``consistency``: a patient lying askew."""


@torch.no_grad()
def predict(model: nn.Module, grids: NDArray[np.floating[Any]], batch: int = 40) -> NDArray[np.float64]:
    """Grade level grids ``(N, C, D, H, W)`` -> ``(N, 5, 3)`` float64."""
    model.eval()
    parts = [
        model(torch.from_numpy(grids[start : start + batch].astype(np.float32))).double().numpy()
        for start in range(0, len(grids), batch)
    ]
    return np.concatenate(parts)


def report(predictions: NDArray[np.float64], crops: CropSet) -> dict[str, Any]:
    """Score predictions ``(crops, 5, 3)`` of whole studies, five crops each in order of level.

    Returns:
        ``metric`` and its parts; ``best``, reachable when every narrowing were known exactly; ``prior``;
        ``calibration_error`` of the probabilities with the weights divided out; ``studies``.
    """
    studies = len(crops) // len(LEVELS)
    shape = (studies, len(LEVELS), len(CONDITIONS))
    grades, narrowing = crops.grades.reshape(shape), crops.narrowing.reshape(shape)
    rows = predictions.reshape(*shape, 3)
    return {
        "studies": studies,
        **asdict(official_metric(rows, grades)),
        "best": official_metric(best_predictions(narrowing), grades).metric,
        "prior": official_metric(prior_probabilities(studies), grades).metric,
        "calibration_error": calibration_error(rows.reshape(-1, 3), grades.ravel()),
        "mean_miss_of_reader": float(np.abs(unweighted(rows) - reader_probabilities(narrowing)).mean()),
    }


def unweighted(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide the metric's weights 1 / 2 / 4 out of probabilities that were trained with them."""
    plain = probabilities / np.array([1.0, 2.0, 4.0])
    divided: NDArray[np.float64] = plain / plain.sum(-1, keepdims=True)
    return divided


def calibration_error(probabilities: NDArray[np.float64], grades: NDArray[np.int64]) -> float:
    """Expected calibration error of the most likely grade, the metric's weights divided out first, ``(N, 3)`` rows."""
    plain = unweighted(probabilities)
    confidence, right = plain.max(-1), plain.argmax(-1) == grades
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    gap = np.bincount(bins, right - confidence, minlength=BINS)
    return float(np.abs(gap).sum() / counts.sum())


def consistency(model: nn.Module, config: GraderConfig, seeds: Iterable[int]) -> dict[str, float]:
    """Mean |probability difference| of phantoms, with true boxes, after a mirror, a pose and a pose not followed.

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
        turned = spine.posed(small_rotation(np.radians(rng.uniform(-POSE_DEG, POSE_DEG, 3))), rng.uniform(-40, 40, 3))
        plain = _graded(model, config, spine, seed, protocol)
        others = {
            "mirrored": _graded(model, config, spine.mirrored(), seed, protocol)[:, list(MIRRORED_HEADS)],
            "posed": _graded(model, config, turned, seed, protocol),
            "posed_upright": _graded(model, config, turned, seed, replace(protocol, follow_patient=False)),
            "rescanned": _graded(model, config, spine, seed + 1, protocol),
        }
        for name, other in others.items():
            totals[name] += float(np.abs(other - plain).mean())
        count += 1
    return {name: total / count for name, total in totals.items()}


def _graded(
    model: nn.Module, config: GraderConfig, spine: PhantomSpine, seed: int, protocol: Protocol
) -> NDArray[np.float64]:
    study = render(spine, seed=seed, protocol=protocol)
    return predict(model, cut_grids(study, spine.disc_center_mm, spine.disc_axes, config))
