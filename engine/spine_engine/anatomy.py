"""The vocabulary of the lumbar spine: levels, conditions, severities, row ids and prior probabilities.

Order is the RSNA 2024 LumbarDISC submission order: conditions alphabetical, levels from the top inside each condition.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Level(StrEnum):
    """The five lumbar disc levels, from superior to inferior."""

    L1_L2 = "l1_l2"
    L2_L3 = "l2_l3"
    L3_L4 = "l3_l4"
    L4_L5 = "l4_l5"
    L5_S1 = "l5_s1"


class Condition(StrEnum):
    """The five graded conditions, alphabetical. Left and right are the patient's."""

    LEFT_NEURAL_FORAMINAL_NARROWING = "left_neural_foraminal_narrowing"
    LEFT_SUBARTICULAR_STENOSIS = "left_subarticular_stenosis"
    RIGHT_NEURAL_FORAMINAL_NARROWING = "right_neural_foraminal_narrowing"
    RIGHT_SUBARTICULAR_STENOSIS = "right_subarticular_stenosis"
    SPINAL_CANAL_STENOSIS = "spinal_canal_stenosis"


class Severity(StrEnum):
    """The three grades, in ascending order; also the columns of ``predictions.csv``."""

    NORMAL_MILD = "normal_mild"
    MODERATE = "moderate"
    SEVERE = "severe"


LEVELS: Final = tuple(Level)
CONDITIONS: Final = tuple(Condition)
SEVERITIES: Final = tuple(Severity)

MIRRORED_CONDITION: Final[dict[Condition, Condition]] = {
    Condition.LEFT_NEURAL_FORAMINAL_NARROWING: Condition.RIGHT_NEURAL_FORAMINAL_NARROWING,
    Condition.RIGHT_NEURAL_FORAMINAL_NARROWING: Condition.LEFT_NEURAL_FORAMINAL_NARROWING,
    Condition.LEFT_SUBARTICULAR_STENOSIS: Condition.RIGHT_SUBARTICULAR_STENOSIS,
    Condition.RIGHT_SUBARTICULAR_STENOSIS: Condition.LEFT_SUBARTICULAR_STENOSIS,
    Condition.SPINAL_CANAL_STENOSIS: Condition.SPINAL_CANAL_STENOSIS,
}
"""What each condition becomes when the patient is mirrored left to right."""

# Weighted priors (normal-mild, moderate, severe) of the RSNA 2024 training labels, rows weighing 1 / 2 / 4 by true
# severity, left and right pooled, l1_l2 .. l5_s1. They score 0.7900 on the official metric.
_CANAL_PRIORS = (
    (0.896, 0.064, 0.040),
    (0.775, 0.132, 0.093),
    (0.631, 0.179, 0.190),
    (0.498, 0.159, 0.343),
    (0.915, 0.049, 0.037),
)
_FORAMINAL_PRIORS = (
    (0.924, 0.061, 0.015),
    (0.828, 0.157, 0.016),
    (0.606, 0.329, 0.065),
    (0.401, 0.419, 0.180),
    (0.411, 0.331, 0.258),
)
_SUBARTICULAR_PRIORS = (
    (0.846, 0.102, 0.052),
    (0.659, 0.210, 0.131),
    (0.439, 0.301, 0.260),
    (0.224, 0.313, 0.463),
    (0.493, 0.283, 0.225),
)
_PRIORS: Final = {
    Condition.LEFT_NEURAL_FORAMINAL_NARROWING: _FORAMINAL_PRIORS,
    Condition.LEFT_SUBARTICULAR_STENOSIS: _SUBARTICULAR_PRIORS,
    Condition.RIGHT_NEURAL_FORAMINAL_NARROWING: _FORAMINAL_PRIORS,
    Condition.RIGHT_SUBARTICULAR_STENOSIS: _SUBARTICULAR_PRIORS,
    Condition.SPINAL_CANAL_STENOSIS: _CANAL_PRIORS,
}


def prior(condition: Condition, level: Level) -> tuple[float, float, float]:
    """Return the weighted prior (normal-mild, moderate, severe) of one condition at one level; it sums to 1."""
    weights = _PRIORS[condition][LEVELS.index(level)]
    total = sum(weights)
    return (weights[0] / total, weights[1] / total, weights[2] / total)


def row_id(study_id: str, condition: Condition, level: Level) -> str:
    """Return RSNA's row id, ``<study>_<condition>_<level>``."""
    return f"{study_id}_{condition}_{level}"
