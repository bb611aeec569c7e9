"""From labelled discs to five complete levels: what is inferred where, how sure it is, and how boxes are turned."""

from __future__ import annotations

import numpy as np
import pytest
from conftest_columns import FRAME

from spine_engine.anatomy import Level
from spine_engine.detection.levels import (
    BODY_NAMES,
    DiscLevel,
    Found,
    axes_from_direction,
    complete_levels,
    prior_levels,
)

BOX = (40.0, 96.0, 96.0)
BACK = np.array([0.0, 1.0, 0.0])


def disc(
    z: float,
    confidence: float = 0.8,
    *,
    y: float = 0.0,
    x: float = 0.0,
    slope_deg: float = 0.0,
) -> Found:
    """A disc whose posterior end points down by `slope_deg`."""
    slope = np.deg2rad(slope_deg)
    return Found(
        np.array([x, y, z]), np.array([0.0, np.cos(slope), -np.sin(slope)]), confidence
    )


def levels(found: dict[int, Found]) -> list[DiscLevel]:
    """The levels from L5/S1 upwards."""
    return list(complete_levels(found, FRAME, BOX).values())[::-1]


def test_ranks_count_upwards_from_the_sacrum() -> None:
    made = complete_levels(
        {rank: disc(40.0 * rank, 0.1 * rank) for rank in range(5)}, FRAME, BOX
    )
    assert [str(level) for level in made] == [
        "l1_l2",
        "l2_l3",
        "l3_l4",
        "l4_l5",
        "l5_s1",
    ]
    assert [entry.center_mm[2] for entry in made.values()] == [160, 120, 80, 40, 0]
    assert [entry.confidence for entry in made.values()] == [0.4, 0.3, 0.2, 0.1, 0.0]
    assert {entry.source for entry in made.values()} == {"detector"}
    assert [entry.level for entry in made.values()] == list(Level)
    assert BODY_NAMES == ("l5", "l4", "l3", "l2", "l1", "t12", "t11", "t10", "t9")


def test_between_two_discs_a_level_lies_on_the_line_and_keeps_seven_tenths_of_the_less_sure() -> (
    None
):
    made = levels(
        {0: disc(0, 0.9, y=0), 3: disc(90, 0.5, y=30, slope_deg=30), 4: disc(120)}
    )
    assert [entry.source for entry in made] == [
        "detector",
        "interpolated",
        "interpolated",
        "detector",
        "detector",
    ]
    np.testing.assert_allclose(made[1].center_mm, (0, 10, 30), atol=1e-9)
    np.testing.assert_allclose(made[2].center_mm, (0, 20, 60), atol=1e-9)
    assert [entry.confidence for entry in made[1:3]] == [0.35, 0.35]
    up, down = np.array([0.0, 1.0, 0.0]), disc(0, slope_deg=30).direction
    np.testing.assert_allclose(
        made[1].axes[1], (2 * up + down) / np.linalg.norm(2 * up + down), atol=1e-8
    )
    np.testing.assert_allclose(
        made[2].axes[1], (up + 2 * down) / np.linalg.norm(up + 2 * down), atol=1e-8
    )


def test_a_level_is_inferred_from_its_nearest_neighbours() -> None:
    made = levels(
        {0: disc(0, 0.9), 1: disc(30, 0.8), 3: disc(110, 0.6), 4: disc(150, 0.1)}
    )
    assert made[2].center_mm[2] == 70
    assert made[2].confidence == pytest.approx(0.7 * 0.6)


@pytest.mark.parametrize(
    ("rank", "heights"),
    [
        (0, [0, 35, 70, 105, 140]),
        (2, [-70, -35, 0, 35, 70]),
        (4, [-140, -105, -70, -35, 0]),
    ],
)
def test_from_one_disc_the_others_follow_35_mm_apart_each_less_sure(
    rank: int, heights: list[float]
) -> None:
    made = levels({rank: disc(0, 0.8)})
    np.testing.assert_allclose(
        [entry.center_mm[2] for entry in made], heights, atol=1e-9
    )
    np.testing.assert_allclose([entry.center_mm[:2] for entry in made], 0, atol=1e-9)
    wanted = [0.8 * 0.4 ** abs(k - rank) for k in range(5)]
    np.testing.assert_allclose([entry.confidence for entry in made], wanted, atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_one_disc_that_slopes_bends_the_column_half_way_to_its_normal(
    sign: int,
) -> None:
    made = levels({0: disc(0, slope_deg=sign * 30)})
    # the normal of a disc that falls to the back leans back, 30 degrees; half of it and half of straight up
    lean = np.deg2rad(15) * sign
    np.testing.assert_allclose(
        made[1].center_mm, (0, 35 * np.sin(lean), 35 * np.cos(lean)), atol=1e-3
    )


@pytest.mark.parametrize(("apart", "step"), [(30, 30), (38, 38), (20, 25), (60, 45)])
def test_beyond_the_last_of_several_the_spacing_goes_on_within_reason(
    apart: float, step: float
) -> None:
    above = levels({0: disc(0), 1: disc(apart)})
    assert [entry.center_mm[2] for entry in above[1:]] == [
        apart + step * k for k in range(4)
    ]
    below = levels({3: disc(0), 4: disc(apart)})
    assert [entry.center_mm[2] for entry in below[:3]] == [-3 * step, -2 * step, -step]


def test_the_spacing_is_that_of_one_step_where_a_disc_between_is_missing() -> None:
    made = levels({0: disc(0), 2: disc(70)})
    assert [entry.center_mm[2] for entry in made] == [0, 35, 70, 105, 140]
    made = levels({2: disc(0), 4: disc(70)})
    assert [entry.center_mm[2] for entry in made] == [-70, -35, 0, 35, 70]


def test_beyond_the_last_the_two_nearest_decide() -> None:
    made = levels({0: disc(0), 1: disc(30), 2: disc(70)})
    assert [entry.center_mm[2] for entry in made] == [0, 30, 70, 110, 150]
    made = levels({2: disc(0), 3: disc(40), 4: disc(70)})
    assert [entry.center_mm[2] for entry in made] == [-80, -40, 0, 40, 70]


def test_the_chord_and_the_normal_of_the_last_disc_count_alike() -> None:
    made = levels({0: disc(0, slope_deg=20), 1: disc(35, slope_deg=20)})
    lean = np.deg2rad(10)
    np.testing.assert_allclose(
        made[2].center_mm, (0, 35 * np.sin(lean), 35 + 35 * np.cos(lean)), atol=1e-3
    )
    np.testing.assert_allclose(made[4].axes[1], made[1].axes[1], atol=1e-9)


def test_thoracic_discs_help_and_are_no_level() -> None:
    made = levels({0: disc(0, 0.9), 5: disc(200, 0.9)})
    assert [entry.center_mm[2] for entry in made] == [0, 40, 80, 120, 160]
    made = levels({6: disc(0, 0.9), 5: disc(-30, 0.9)})
    assert [entry.center_mm[2] for entry in made] == [-180, -150, -120, -90, -60]
    assert made[4].confidence == pytest.approx(0.9 * 0.4)


def test_confidence_is_never_above_one_or_below_zero_and_has_six_decimals() -> None:
    made = levels(
        {
            0: disc(0, 1.2),
            1: disc(35, -0.1),
            2: disc(70, 1 / 3),
            3: disc(105),
            4: disc(140),
        }
    )
    assert [entry.confidence for entry in made[:3]] == [1.0, 0.0, 0.333333]


def test_nothing_cannot_be_completed() -> None:
    with pytest.raises(ValueError, match="no disc"):
        complete_levels({}, FRAME, BOX)


def test_axes_follow_the_disc_but_never_leave_the_sagittal_plane() -> None:
    axes = axes_from_direction(np.array([0.7, 3.0, -4.0]), FRAME)
    np.testing.assert_allclose(axes[1], (0, 0.6, -0.8), atol=1e-12)
    np.testing.assert_allclose(axes[2], (1, 0, 0), atol=1e-12)
    np.testing.assert_allclose(
        axes[0], (0, -0.8, -0.6), atol=1e-12
    )  # down, and forward where the back end is lower
    assert np.linalg.det(axes) == pytest.approx(1)
    across_only = axes_from_direction(np.array([2.0, 0.0, 0.0]), FRAME)
    np.testing.assert_allclose(across_only, FRAME, atol=1e-12)
    short = axes_from_direction(np.array([0.0, 0.0, -1e-5]), FRAME)
    np.testing.assert_allclose(short[1], (0, 0, -1), atol=1e-12)


def test_the_prior_is_spaced_evenly_about_the_middle_of_the_picture() -> None:
    turned = FRAME @ np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]).T
    made = prior_levels(np.array([1.0, 2.0, 3.0]), turned, (10.0, 20.0, 30.0))
    assert list(made) == list(Level)
    down = {
        "l1_l2": -56.0,
        "l2_l3": -21.0,
        "l3_l4": 14.0,
        "l4_l5": 49.0,
        "l5_s1": 84.0,
    }  # (2.4 - rank) * 35 mm
    for level, entry in made.items():
        np.testing.assert_allclose(
            entry.center_mm, np.array([1, 2, 3]) + turned[0] * down[level], atol=1e-3
        )
        np.testing.assert_allclose(entry.axes, turned, atol=1e-9)
        assert (entry.confidence, entry.source, entry.level) == (0.02, "prior", level)
        assert entry.size_mm.tolist() == [10, 20, 30]


def test_places_keep_the_decimals_of_the_result_file() -> None:
    third = np.array([1 / 3, 2 / 3, 1e-4])
    axes = axes_from_direction(np.array([0.0, 1.0, -0.3]), FRAME)
    entry = DiscLevel(Level.L1_L2, third, axes, 10 * third, 0.5, "detector")
    assert entry.center_mm.tolist() == [0.333, 0.667, 0.0]
    assert entry.size_mm.tolist() == [3.333, 6.667, 0.001]
    assert entry.axes.tolist() == np.round(axes, 9).tolist()
    assert entry.axes[1].tolist() == [0.0, 0.957826285, -0.287347886]
