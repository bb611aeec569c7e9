"""A stack refuses what cannot be placed, and knows where it lies; a study knows its series by their roles."""

import numpy as np
import pytest

from spine_engine.errors import Reason, Warn
from spine_engine.study import Role, Series, Stack, Study


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


def one_slice(**changes):
    single = {
        "pixels": np.zeros((1, 4, 5), np.int16),
        "slope": np.ones(1, np.float32),
        "intercept": np.zeros(1, np.float32),
        "origins_mm": np.array([[7.0, 1, 2]]),
    }
    return stack(**single | changes)


def test_positions_spacing_and_middle():
    made = stack()
    np.testing.assert_allclose(made.positions_mm, [0, 4, 9])
    assert made.slice_spacing_mm == pytest.approx(4.5)
    np.testing.assert_allclose(made.center_mm, [4.5, 2.0, -0.75])


def test_the_spacing_is_the_median_and_a_single_slice_has_none():
    count, places = 5, [0.0, 1, 4, 7, 20]
    made = stack(
        pixels=np.zeros((count, 4, 5), np.uint16),
        slope=np.ones(count, np.float32),
        intercept=np.zeros(count, np.float32),
        origins_mm=np.array([[x, 0, 0] for x in places]),
    )
    assert made.slice_spacing_mm == 3.0
    assert one_slice().slice_spacing_mm == 0.0
    np.testing.assert_allclose(one_slice().center_mm, [7, 3.0, 1.25])


def test_a_staggered_stack_lies_in_the_middle_of_its_first_and_last_slice():
    made = stack(origins_mm=np.array([[0.0, 0, 0], [4.0, 50, 50], [8.0, 2, 4]]))
    np.testing.assert_allclose(made.positions_mm, [0, 4, 8])
    np.testing.assert_allclose(made.center_mm, [4, 1 + 2.0, 2 - 0.75])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": np.zeros((3, 4, 5), np.float32)}, "uint16 or int16"),
        ({"pixels": np.zeros((3, 4, 5), np.uint8)}, "uint16 or int16"),
        ({"pixels": np.zeros((4, 5), np.uint16)}, "uint16 or int16"),
        ({"pixels": np.zeros((0, 4, 5), np.uint16)}, "uint16 or int16"),
        ({"pixels": np.zeros((3, 4, 5, 1), np.uint16)}, "uint16 or int16"),
        ({"slope": np.ones(2, np.float32)}, "3 entries"),
        ({"intercept": np.ones(4, np.float32)}, "3 entries"),
        ({"origins_mm": np.zeros((2, 3))}, "3 entries"),
        ({"origins_mm": np.zeros((3, 2))}, "3 entries"),
        ({"axes": np.eye(3) * 1.01}, "orthonormal"),
        ({"axes": np.eye(3)[:2]}, "orthonormal"),
        ({"spacing_mm": (0.5, 0.0)}, "positive"),
        ({"spacing_mm": (-0.5, 1.0)}, "positive"),
        ({"origins_mm": np.array([[4.0, 0, 0], [0.0, 0, 0], [9.0, 0, 0]])}, "ascend"),
        ({"origins_mm": np.array([[0.0, 0, 0], [0.0, 3, 0], [9.0, 0, 0]])}, "ascend"),
    ],
)
def test_what_cannot_be_placed_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        stack(**changes)


def test_axes_may_be_off_by_a_ten_thousandth():
    sound = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
    assert (
        stack(axes=sound + np.array([[0, 0.9e-4, 0], [0, 0, 0], [0, 0, 0]])).axes[0, 1]
        == 0.9e-4
    )
    with pytest.raises(ValueError, match="orthonormal"):
        stack(axes=sound + np.array([[0, 1.1e-4, 0], [0, 0, 0], [0, 0, 0]]))


def test_a_study_knows_its_series_by_their_roles():
    assert list(Role) == ["sagittal_t1", "sagittal_t2", "axial_t2"]
    series = [
        Series(path, role, "", (), 0)
        for path, role in (
            ("a", Role.AXIAL_T2),
            ("b", None),
            ("c", Role.SAGITTAL_T1),
            ("d", Role.AXIAL_T2),
        )
    ]
    study = Study("1.2", tuple(series))
    assert [one.path for one in study.with_role(Role.AXIAL_T2)] == ["a", "d"]
    assert [one.path for one in study.with_role(Role.SAGITTAL_T1)] == ["c"]
    assert list(study.with_role(Role.SAGITTAL_T2)) == []
    assert (study.warnings, study.reason) == ((), None)
    assert (series[0].contrast, series[0].reason) == (None, None)
    told = Study("1.2", (), (Warn.GAP,), Reason.NO_SAGITTAL)
    assert (told.warnings, told.reason) == ((Warn.GAP,), Reason.NO_SAGITTAL)
