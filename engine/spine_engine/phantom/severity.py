"""Draws how narrow each place of a phantom is, and how a noisy reader grades it.

Every level and condition has a continuous narrowing in [0, 1] that shapes the anatomy. A reader sees it with Gaussian
noise and cuts it at two thresholds, so the probabilities of the three grades are known exactly, and with them the best
metric that anyone can reach on phantoms. The narrowings are logit-normal, fitted so that the grades are as frequent as
in the RSNA 2024 training labels; a Gaussian factor model correlates them across sides, conditions and levels. Arrays
are ordered ``(5 levels, 5 conditions)`` as ``anatomy.LEVELS`` and ``anatomy.CONDITIONS``.
"""

from __future__ import annotations

from functools import lru_cache
from math import erf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import CONDITIONS, LEVELS, Condition

FloatArray = NDArray[np.float64]

READER_THRESHOLDS: Final = (0.42, 0.68)
"""Narrowings above which a noise-free reader grades moderate, severe."""

READER_NOISE: Final = 0.073
"""Standard deviation of the reader's noise; chosen so that the best reachable metric is about 0.2 (0.190 measured,
decision 0003)."""

GRADE_WEIGHTS: Final = (1.0, 2.0, 4.0)
"""Row weights of the official RSNA 2024 metric by true grade."""

# RSNA 2024 training labels: normal-mild, moderate, severe for l1_l2 .. l5_s1; left and right pooled.
_CANAL_COUNTS = (
    (1886, 67, 21),
    (1770, 151, 53),
    (1622, 230, 122),
    (1482, 237, 255),
    (1904, 51, 19),
)
_FORAMINAL_COUNTS = (
    (3799, 126, 15),
    (3584, 339, 17),
    (3044, 825, 81),
    (2412, 1258, 270),
    (2528, 1016, 396),
)
_SUBARTICULAR_COUNTS = (
    (3370, 203, 52),
    (3132, 498, 156),
    (2646, 908, 391),
    (1778, 1246, 921),
    (2807, 805, 320),
)

_FORAMINAL = (
    Condition.LEFT_NEURAL_FORAMINAL_NARROWING,
    Condition.RIGHT_NEURAL_FORAMINAL_NARROWING,
)
_SUBARTICULAR = (
    Condition.LEFT_SUBARTICULAR_STENOSIS,
    Condition.RIGHT_SUBARTICULAR_STENOSIS,
)
_CANAL = Condition.SPINAL_CANAL_STENOSIS

# Shares of variance of the factors: patient, level (all conditions), level's pair of sides, this place alone.
# Measured against the label plausibility figures in decision 0003.
_CANAL_SHARES = (0.50, 0.44, 0.0, 0.06)
_SUBARTICULAR_SHARES = (0.42, 0.30, 0.00, 0.28)
_FORAMINAL_SHARES = (0.25, 0.20, 0.13, 0.42)

_NODES = np.linspace(-6.0, 6.0, 601)
_NODE_WEIGHTS = np.exp(-0.5 * _NODES**2) / np.exp(-0.5 * _NODES**2).sum()


def grade_frequencies() -> FloatArray:
    """Return the frequency of each grade in RSNA's labels, ``(5 levels, 5 conditions, 3)``, left and right pooled."""
    frequencies = np.empty((len(LEVELS), len(CONDITIONS), 3))
    for c, condition in enumerate(CONDITIONS):
        table = _CANAL_COUNTS
        if condition in _FORAMINAL:
            table = _FORAMINAL_COUNTS
        elif condition in _SUBARTICULAR:
            table = _SUBARTICULAR_COUNTS
        frequencies[:, c] = np.array(table, float) / np.sum(
            table, axis=1, keepdims=True
        )
    return frequencies


def reader_probabilities(narrowing: FloatArray) -> FloatArray:
    """Return P(grade | narrowing) of the noisy reader, ``narrowing.shape + (3,)``: Bayes probabilities."""
    above = [
        _normal_cdf((np.asarray(narrowing, float) - cut) / READER_NOISE)
        for cut in READER_THRESHOLDS
    ]
    return np.stack([1 - above[0], above[0] - above[1], above[1]], axis=-1)


def read_grades(narrowing: FloatArray, seed: int) -> NDArray[np.int64]:
    """Return the noisy reader's grades (0 normal-mild, 1 moderate, 2 severe) in the shape of ``narrowing``."""
    noise = np.random.default_rng([seed, _READER_STREAM]).normal(
        0.0, READER_NOISE, np.shape(narrowing)
    )
    reading = np.asarray(narrowing, float) + noise
    return np.searchsorted(READER_THRESHOLDS, reading, side="right").astype(np.int64)


_READER_STREAM = 0x5EAD


def draw_narrowing(rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Draw a patient's narrowings ``(5 levels, 5 conditions)`` in [0, 1], and each level's wear, N(0, 1) ``(5,)``.

    The wear correlates with the narrowings and decides how discs look; it is drawn here because both share factors.
    """
    patient = rng.normal()
    level = rng.normal(size=len(LEVELS))
    pair = {
        _FORAMINAL: rng.normal(size=len(LEVELS)),
        _SUBARTICULAR: rng.normal(size=len(LEVELS)),
    }
    latent = np.empty((len(LEVELS), len(CONDITIONS)))
    for c, condition in enumerate(CONDITIONS):
        own = rng.normal(size=len(LEVELS))
        shares = _CANAL_SHARES
        sides = np.zeros(len(LEVELS))
        if condition in _FORAMINAL:
            shares = _FORAMINAL_SHARES
            sides = pair[_FORAMINAL]
        elif condition in _SUBARTICULAR:
            shares = _SUBARTICULAR_SHARES
            sides = pair[_SUBARTICULAR]
        loadings = np.sqrt(shares)
        latent[:, c] = (
            loadings[0] * patient
            + loadings[1] * level
            + loadings[2] * sides
            + loadings[3] * own
        )
    mean, spread = _latent_parameters()
    wear = (
        np.sqrt(0.35) * patient
        + np.sqrt(0.35) * level
        + np.sqrt(0.3) * rng.normal(size=len(LEVELS))
    )
    return 1.0 / (1.0 + np.exp(-(mean + spread * latent))), wear


def best_predictions(narrowing: FloatArray) -> FloatArray:
    """Return the probabilities that minimise the expected weighted log loss: ``weight * P(grade)``, normalised.

    The official metric weighs a row by its true grade, so its best answer is not the plain Bayes probability.
    """
    weighted = reader_probabilities(narrowing) * np.array(GRADE_WEIGHTS)
    return np.asarray(weighted / weighted.sum(axis=-1, keepdims=True))


def official_metric(predictions: FloatArray, grades: NDArray[np.int64]) -> FloatArray:
    """Return the four parts of the RSNA 2024 metric: canal, foraminal, subarticular, any severe canal.

    The metric is the mean of the parts.

    Args:
        predictions: ``(studies, 5 levels, 5 conditions, 3)``, rows summing to 1.
        grades: ``(studies, 5 levels, 5 conditions)`` in 0, 1, 2.
    """
    weights = np.array(GRADE_WEIGHTS)[grades]
    probability = np.take_along_axis(predictions, grades[..., None], axis=-1)[..., 0]
    loss = -np.log(np.clip(probability, 1e-15, 1.0))
    parts = []
    for group in ((_CANAL,), _FORAMINAL, _SUBARTICULAR):
        columns = [CONDITIONS.index(condition) for condition in group]
        parts.append(
            float((loss * weights)[..., columns].sum() / weights[..., columns].sum())
        )
    canal = CONDITIONS.index(_CANAL)
    severe = (grades[..., canal] == 2).any(axis=1)
    chance = np.clip(predictions[..., canal, 2].max(axis=1), 1e-15, 1 - 1e-15)
    study_weights = weights[..., canal].max(axis=1)
    any_loss = -np.where(severe, np.log(chance), np.log(1 - chance))
    parts.append(float((any_loss * study_weights).sum() / study_weights.sum()))
    return np.array(parts)


@lru_cache(maxsize=1)
def _latent_parameters() -> tuple[FloatArray, FloatArray]:
    """Fit mean and spread of logit(narrowing) so that the reader's grades are as frequent as in RSNA's labels."""
    frequencies = grade_frequencies()
    mean, spread = np.empty((2, len(LEVELS), len(CONDITIONS)))
    for index in np.ndindex(len(LEVELS), len(CONDITIONS)):
        mean[index], spread[index] = _fit(frequencies[index])
    return mean, spread


def _fit(frequency: FloatArray) -> tuple[float, float]:
    """Solve two equations, P(grade >= moderate) and P(severe), for mean and spread by damped Newton steps."""
    target = _logit(np.array([1 - frequency[0], frequency[2]]))
    point = np.array([-1.5, 1.0])
    for _ in range(60):
        error = _logit(_exceedance(point)) - target
        step = 1e-4
        moved = [_logit(_exceedance(point + step * axis)) for axis in np.eye(2)]
        slopes = np.stack(
            [(logits - target - error) / step for logits in moved], axis=1
        )
        point = point - np.clip(np.linalg.solve(slopes, error), -0.4, 0.4)
        point[1] = max(point[1], 0.2)
        if np.abs(error).max() < 1e-9:
            break
    return float(point[0]), float(point[1])


def _exceedance(point: FloatArray) -> FloatArray:
    """Return P(grade >= moderate) and P(severe) of narrowings with ``point = (mean, spread)`` of their logit."""
    narrowing = 1.0 / (1.0 + np.exp(-(point[0] + point[1] * _NODES)))
    grades = reader_probabilities(narrowing)
    return np.asarray(
        np.array(
            [
                _NODE_WEIGHTS @ (grades[:, 1] + grades[:, 2]),
                _NODE_WEIGHTS @ grades[:, 2],
            ]
        )
    )


def _logit(p: FloatArray) -> FloatArray:
    return np.asarray(np.log(p / (1 - p)))


def _normal_cdf(z: FloatArray) -> FloatArray:
    return np.asarray(
        0.5 * (1.0 + np.vectorize(erf, otypes=[float])(np.asarray(z) / np.sqrt(2.0)))
    )
