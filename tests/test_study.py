"""A stack refuses what cannot be placed, and knows where it lies."""

import numpy as np
import pytest

from spine_engine.study import Stack


def stack(**changes):
    values = {
        "pixels": np.zeros((3, 4, 5), np.uint16),
        "slope": np.ones(3, np.float32),
        "intercept": np.zeros(3, np.float32),
        "origins_mm": np.array([[0.0, 0, 0], [4.0, 0, 0], [9.0, 0, 0]]),
        "axes": np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]]),
        "spacing_mm": (0.5, 1.0),
    }
    return Stack(**values | changes)


def test_positions_spacing_and_middle():
    made = stack()
    np.testing.assert_allclose(made.positions_mm, [0, 4, 9])
    assert made.slice_spacing_mm == pytest.approx(4.5)
    np.testing.assert_allclose(made.center_mm, [4.5, 2.0, -0.75])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": np.zeros((3, 4, 5), np.float32)}, "uint16 or int16"),
        ({"pixels": np.zeros((4, 5), np.uint16)}, "uint16 or int16"),
        ({"slope": np.ones(2, np.float32)}, "3 entries"),
        ({"axes": np.eye(3) * 1.01}, "orthonormal"),
        ({"spacing_mm": (0.5, 0.0)}, "positive"),
        ({"origins_mm": np.array([[4.0, 0, 0], [0.0, 0, 0], [9.0, 0, 0]])}, "ascend"),
        ({"origins_mm": np.array([[0.0, 0, 0], [0.0, 3, 0], [9.0, 0, 0]])}, "ascend"),
    ],
)
def test_what_cannot_be_placed_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        stack(**changes)
