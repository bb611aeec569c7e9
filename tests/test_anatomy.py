"""The vocabulary: RSNA's order, its priors, and what a mirrored patient becomes."""

import pytest

from spine_engine.anatomy import CONDITIONS, LEVELS, MIRRORED_CONDITION, SEVERITIES, Condition, Level, prior, row_id


def test_conditions_are_alphabetical_and_levels_run_downwards():
    assert list(CONDITIONS) == sorted(CONDITIONS)
    assert LEVELS == ("l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1")
    assert SEVERITIES == ("normal_mild", "moderate", "severe")


def test_row_id_is_rsnas():
    assert row_id("4003253", Condition.SPINAL_CANAL_STENOSIS, Level.L1_L2) == "4003253_spinal_canal_stenosis_l1_l2"


def test_mirroring_twice_changes_nothing_and_swaps_every_sided_condition():
    for condition in CONDITIONS:
        mirrored = MIRRORED_CONDITION[condition]
        assert MIRRORED_CONDITION[mirrored] is condition
        assert (mirrored is condition) == (condition is Condition.SPINAL_CANAL_STENOSIS)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_priors_are_probabilities_and_the_same_on_both_sides(condition, level):
    probabilities = prior(condition, level)
    assert sum(probabilities) == pytest.approx(1, abs=1e-12)
    assert min(probabilities) > 0.01
    assert probabilities == prior(MIRRORED_CONDITION[condition], level)
