"""The vocabulary: RSNA's words and order, its priors, and what a mirrored patient becomes."""

import pytest

from spine_engine.anatomy import (
    CONDITIONS,
    LEVELS,
    MIRRORED_CONDITION,
    SEVERITIES,
    Condition,
    Level,
    prior,
    row_id,
)

STAGGERED = ("neural_foraminal_narrowing", "subarticular_stenosis")

# Weighted priors of the RSNA 2024 training labels, in thousandths, from L1/L2 down to L5/S1: normal-mild, moderate,
# severe, rows weighing 1, 2 and 4. Both sides of a condition share them; rounding leaves some sums at 1001 or 999.
PRIORS = {
    "spinal_canal_stenosis": [
        (896, 64, 40),
        (775, 132, 93),
        (631, 179, 190),
        (498, 159, 343),
        (915, 49, 37),
    ],
    "neural_foraminal_narrowing": [
        (924, 61, 15),
        (828, 157, 16),
        (606, 329, 65),
        (401, 419, 180),
        (411, 331, 258),
    ],
    "subarticular_stenosis": [
        (846, 102, 52),
        (659, 210, 131),
        (439, 301, 260),
        (224, 313, 463),
        (493, 283, 225),
    ],
}


def test_the_words_and_their_order_are_rsnas():
    assert CONDITIONS == (
        "left_neural_foraminal_narrowing",
        "left_subarticular_stenosis",
        "right_neural_foraminal_narrowing",
        "right_subarticular_stenosis",
        "spinal_canal_stenosis",
    )
    assert LEVELS == ("l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1")
    assert SEVERITIES == ("normal_mild", "moderate", "severe")


def test_row_id_is_rsnas():
    assert (
        row_id("4003253", Condition.SPINAL_CANAL_STENOSIS, Level.L1_L2)
        == "4003253_spinal_canal_stenosis_l1_l2"
    )


def test_mirroring_swaps_the_sides_and_nothing_else():
    assert {
        "spinal_canal_stenosis": "spinal_canal_stenosis",
        **{f"left_{name}": f"right_{name}" for name in STAGGERED},
        **{f"right_{name}": f"left_{name}" for name in STAGGERED},
    } == MIRRORED_CONDITION


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("place", range(5))
def test_priors_are_those_of_the_training_labels_and_the_same_on_both_sides(
    condition, place
):
    name = condition.removeprefix("left_").removeprefix("right_")
    wanted = PRIORS[name][place]
    probabilities = prior(condition, LEVELS[place])
    assert sum(probabilities) == pytest.approx(1, abs=1e-12)
    assert probabilities == pytest.approx(
        [share / sum(wanted) for share in wanted], abs=1e-12
    )
