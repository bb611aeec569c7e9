"""Anatomy and its truth: frames, mirror, pose."""

import numpy as np
import pytest

from spine_engine.phantom import draw_spine
from spine_engine.phantom.spine import VERTEBRAE

TURN = np.array(
    [[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1.0]]
)
TILT = np.array(
    [[1.0, 0, 0], [0, np.cos(0.1), -np.sin(0.1)], [0, np.sin(0.1), np.cos(0.1)]]
)


def test_disc_frames_are_right_handed_and_point_down_back_and_left() -> None:
    for seed in range(5):
        for spine in (draw_spine(seed), draw_spine(seed).mirrored()):
            axes = spine.disc_axes
            assert axes @ axes.transpose(0, 2, 1) == pytest.approx(
                np.broadcast_to(np.eye(3), (5, 3, 3)), abs=1e-9
            )
            assert np.linalg.det(axes) == pytest.approx(np.ones(5))
            assert (axes[:, 0, 2] < -0.5).all()
            assert (axes[:, 1, 1] > 0.5).all()
            assert (axes[:, 2, 0] > 0.8).all()


def test_discs_lie_between_their_vertebrae_top_to_bottom() -> None:
    for seed in range(5):
        spine = draw_spine(seed)
        z = spine.vertebra_center_mm[
            VERTEBRAE.index("L1") : VERTEBRAE.index("S1") + 1, 2
        ]
        assert (z[:-1] > spine.disc_center_mm[:, 2]).all()
        assert (spine.disc_center_mm[:, 2] > z[1:]).all()
        steps = np.linalg.norm(np.diff(spine.disc_center_mm, axis=0), axis=1)
        assert (steps > 18).all()
        assert (steps < 55).all()


def test_lordosis_puts_l5_s1_at_a_slope() -> None:
    slopes = np.array(
        [
            np.degrees(np.arcsin(draw_spine(seed).disc_axes[-1, 0, 1]))
            for seed in range(30)
        ]
    )
    assert 15 < slopes.mean() < 40


def test_mirror_is_an_involution_that_swaps_sides() -> None:
    spine = draw_spine(3)
    mirror = spine.mirrored()
    assert mirror.disc_center_mm == pytest.approx(spine.disc_center_mm * [-1, 1, 1])
    assert mirror.narrowing[:, 0] == pytest.approx(spine.narrowing[:, 2])
    assert mirror.narrowing[:, 1] == pytest.approx(spine.narrowing[:, 3])
    assert mirror.narrowing[:, 4] == pytest.approx(spine.narrowing[:, 4])
    assert (mirror.grades[:, [2, 3, 0, 1, 4]] == spine.grades).all()
    assert mirror.is_mirrored
    assert not mirror.mirrored().is_mirrored
    assert mirror.mirrored().disc_axes == pytest.approx(spine.disc_axes)


def test_pose_moves_the_truth_rigidly() -> None:
    for spine in (draw_spine(4), draw_spine(4).mirrored()):
        posed = spine.posed(TURN @ TILT, np.array([5.0, -7.0, 30.0]))
        assert posed.disc_center_mm == pytest.approx(
            spine.disc_center_mm @ (TURN @ TILT).T + [5, -7, 30]
        )
        assert posed.disc_axes == pytest.approx(spine.disc_axes @ (TURN @ TILT).T)
        assert (posed.narrowing == spine.narrowing).all()


def test_pose_refuses_what_is_not_a_rotation() -> None:
    with pytest.raises(ValueError, match="mirrored"):
        draw_spine(0).posed(np.diag([-1.0, 1, 1]), np.zeros(3))
    with pytest.raises(ValueError, match="orthonormal"):
        draw_spine(0).posed(2 * np.eye(3), np.zeros(3))


def test_given_narrowing_leaves_the_anatomy_alone() -> None:
    plain, set_to = draw_spine(9), draw_spine(9, narrowing=np.full((5, 5), 0.9))
    assert (plain.disc_center_mm == set_to.disc_center_mm).all()
    assert (set_to.narrowing == 0.9).all()
    assert (set_to.grades == 2).all()
    with pytest.raises(ValueError, match="5 levels"):
        draw_spine(9, narrowing=np.zeros(5))
