"""What may be graded where, at its bounds: the share of a grid that counts, and how far a model may be off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_grading import (
    ALL_ROLES,
    AXIAL,
    ENTRY,
    T1,
    T2,
    Recorder,
    axial,
    calibration,
    discs,
    stack,
    study,
)
from test_whole_study import ENTRY as WHOLE
from test_whole_study import answer

from spine_engine.anatomy import CONDITIONS, LEVELS, prior
from spine_engine.errors import Reason, StudyError, Warn
from spine_engine.pipeline.grading import (
    calibrated,
    checked,
    grade,
    grade_whole_study,
    prior_probabilities,
)
from spine_engine.pipeline.level_grids import level_grids, study_grid
from spine_engine.study import Role, Series

LEFT_FORAMEN, LEFT_RECESS, RIGHT_FORAMEN, RIGHT_RECESS, CANAL = range(5)
EVERY = (LEFT_FORAMEN, LEFT_RECESS, RIGHT_FORAMEN, RIGHT_RECESS, CANAL)
FORAMINA, RECESSES = (LEFT_FORAMEN, RIGHT_FORAMEN), (LEFT_RECESS, RIGHT_RECESS)
NO_T1, NO_T2, NO_AXIAL = Warn.NO_SAGITTAL_T1, Warn.NO_SAGITTAL_T2, Warn.NO_AXIAL_T2


@pytest.mark.parametrize("model", ["levels", "whole study"])
@pytest.mark.parametrize(
    ("series", "graded", "said"),
    [
        ((T1, T2, axial()), EVERY, {}),
        ((T1, T2), (*FORAMINA, CANAL), {LEFT_RECESS: NO_AXIAL, RIGHT_RECESS: NO_AXIAL}),
        ((T1, axial()), EVERY, {}),
        ((T2, axial()), EVERY, {}),
        (
            (T1,),
            FORAMINA,
            {LEFT_RECESS: NO_AXIAL, RIGHT_RECESS: NO_AXIAL, CANAL: NO_T2},
        ),
        ((T2,), (*FORAMINA, CANAL), {LEFT_RECESS: NO_AXIAL, RIGHT_RECESS: NO_AXIAL}),
        ((axial(),), (*RECESSES, CANAL), {LEFT_FORAMEN: NO_T1, RIGHT_FORAMEN: NO_T1}),
    ],
    ids=["all", "no axial", "no t2", "no t1", "t1", "t2", "axial"],
)
def test_which_series_can_show_what(
    model: str, series: tuple[Series, ...], graded, said: dict[int, Warn]
) -> None:
    if model == "levels":
        grades = grade(study(*series), discs(), Recorder(), ENTRY)
    elif any(one.role is not Role.AXIAL_T2 for one in series):
        grades = grade_whole_study(study(*series), Recorder(answer()), WHOLE)
    else:
        with pytest.raises(StudyError) as caught:
            grade_whole_study(study(*series), Recorder(answer()), WHOLE)
        assert caught.value.reason is Reason.NO_SAGITTAL
        return
    assert tuple(grades.assessed.all(axis=0).nonzero()[0]) == tuple(sorted(graded))
    assert tuple(grades.assessed.any(axis=0).nonzero()[0]) == tuple(sorted(graded))
    assert grades.not_assessed == tuple((CONDITIONS[k], said[k]) for k in sorted(said))
    assert grades.not_covered == ()


def test_a_series_without_a_stack_shows_nothing() -> None:
    refused = replace(axial(), stacks=(), reason=Reason.CORRUPT_PIXELS)
    grades = grade(study(T1, T2, refused), discs(), Recorder(), ENTRY)
    assert [warning for _, warning in grades.not_assessed] == [NO_AXIAL, NO_AXIAL]


def test_a_series_that_the_model_does_not_take_shows_nothing() -> None:
    channels = (Role.SAGITTAL_T1,)
    entry = replace(
        ENTRY,
        channels=channels,
        inputs=(replace(ENTRY.inputs[0], shape=(None, 1, 6, 8, 10)),),
    )
    backend = Recorder()
    grades = grade(study(T1, T2, axial()), discs(), backend, entry)
    assert backend.asked[0].shape == (5, 1, 6, 8, 10)
    assert grades.assessed.all(axis=0).tolist() == [True, False, True, False, False]
    assert grades.not_assessed == (
        (CONDITIONS[LEFT_RECESS], NO_AXIAL),
        (CONDITIONS[RIGHT_RECESS], NO_AXIAL),
        (CONDITIONS[CANAL], NO_T2),
    )


@pytest.mark.parametrize(("planes", "graded"), [(1, False), (2, True)])
def test_a_series_shows_a_level_when_it_covers_a_fifth_of_its_grid(
    planes: int, graded: bool
) -> None:
    """The grids are cut into ten planes from above to below, and the axial slices cover one or two of them."""
    grid = replace(ENTRY.grid, shape=(10, 8, 10), spacing_mm=(4.0, 6.0, 6.0))
    entry = replace(
        ENTRY, grid=grid, inputs=(replace(ENTRY.inputs[0], shape=(None, 3, 10, 8, 10)),)
    )
    # one slice of 4 mm at the plane 2 mm above the middle, or two
    slices = Series(
        "ax",
        Role.AXIAL_T2,
        "",
        (stack(AXIAL, planes, 4.0, 9, (0, 0, 2.0 * (planes == 1))),),
        planes,
    )
    grades = grade(study(T1, T2, slices), discs(), Recorder(), entry)
    assert grades.coverage[2, 1] == pytest.approx(0.1 * planes)
    assert grades.assessed[2, list(RECESSES)].tolist() == [graded, graded]
    assert grades.not_covered == (LEVELS if not graded else (*LEVELS[:2], *LEVELS[3:]))
    assert grades.assessed[:, list(FORAMINA)].all()


def test_any_coverage_at_all_shows_a_whole_study() -> None:
    few = Series("ax", Role.AXIAL_T2, "", (stack(AXIAL, 1, 4.0, 9, (0, 0, 10.0)),), 1)
    grades = grade_whole_study(study(T1, few), Recorder(answer()), WHOLE)
    assert grades.assessed.all()
    assert grades.coverage.shape == (5, 3)
    assert (grades.coverage == grades.coverage[0]).all()
    assert 0 < grades.coverage[0, 1] <= 0.1


def test_levels_without_a_place_are_not_missed() -> None:
    grades = grade(
        study(T1, T2, axial()), discs([LEVELS[0], LEVELS[3]]), Recorder(), ENTRY
    )
    assert grades.assessed.any(axis=1).tolist() == [False, True, True, False, True]
    assert grades.not_covered == ()
    assert grades.coverage[[0, 3]].tolist() == [[0, 0, 0]] * 2
    for level in (0, 3):
        for k, condition in enumerate(CONDITIONS):
            assert tuple(grades.probabilities[level, k]) == prior(
                condition, LEVELS[level]
            )


def test_interpolated_levels_are_graded() -> None:
    inferred = {
        level: replace(disc, source="interpolated") for level, disc in discs().items()
    }
    assert grade(study(T1, T2, axial()), inferred, Recorder(), ENTRY).assessed.all()


def test_priors_by_level_and_condition() -> None:
    table = prior_probabilities()
    assert table.shape == (5, 5, 3)
    assert tuple(table[3, LEFT_RECESS]) == prior(CONDITIONS[LEFT_RECESS], LEVELS[3])
    assert tuple(table[1, CANAL]) == prior(CONDITIONS[CANAL], LEVELS[1])


# ---- what a model may answer --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "accepted"),
    [
        ((0.5, 0.3, 0.2), True),
        ((0.5, 0.3, 0.2 + 0.9e-3), True),
        ((0.5, 0.3, 0.2 + 1.1e-3), False),
        ((0.5, 0.3, 0.2 - 0.9e-3), True),
        ((0.5, 0.3, 0.2 - 1.1e-3), False),
        ((1.0 + 0.4e-3, 0.5e-3, -0.9e-3), True),
        ((1.0 + 0.5e-3, 0.6e-3, -1.1e-3), False),
        ((1.0 + 0.9e-3, -0.4e-3, -0.5e-3), True),
        ((1.0 + 1.1e-3, -0.5e-3, -0.6e-3), False),
        ((np.nan, 0.5, 0.5), False),
        ((np.inf, 0.5, 0.5), False),
    ],
)
def test_probabilities_may_be_off_by_a_thousandth(
    row: tuple[float, ...], accepted: bool
) -> None:
    raw = np.tile(np.array([0.2, 0.3, 0.5], np.float32), (2, 2, 1))
    raw[1, 0] = row
    if not accepted:
        with pytest.raises(StudyError, match="not probabilities") as caught:
            checked(raw, (2, 2, 3))
        assert caught.value.reason is Reason.INTERNAL_ERROR
        return
    values = checked(raw, (2, 2, 3))
    assert values.dtype == np.float64
    np.testing.assert_allclose(values.sum(axis=-1), 1, atol=1e-15)
    clipped = np.maximum(raw[1, 0].astype(float), 0)
    np.testing.assert_allclose(values[1, 0], clipped / clipped.sum(), atol=1e-12)


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(
        StudyError, match=r"gave the shape \(4, 5, 3\), not \(5, 5, 3\)"
    ) as caught:
        checked(np.zeros((4, 5, 3), np.float32), (5, 5, 3))
    assert caught.value.reason is Reason.INTERNAL_ERROR


def test_certain_probabilities_move_by_a_ten_millionth_at_most_before_they_are_calibrated() -> (
    None
):
    certain = np.zeros((5, 5, 3))
    certain[..., 0] = 1
    moved = calibrated(certain, calibration(2.0, 0.0, condition=0, level=0))
    np.testing.assert_allclose(moved[1, 1], (1 - 1e-7, 0, 1e-7), atol=1e-12)
    root = 1 / (1 + np.sqrt(1e-7 / (1 - 1e-7)))
    np.testing.assert_allclose(moved[0, 0], (root, 0, 1 - root), atol=1e-9)


def test_a_rising_shift_lowers_the_severity_and_a_rising_temperature_flattens() -> None:
    p = np.tile(np.array([0.1, 0.2, 0.7]), (5, 5, 1))
    milder = calibrated(p, calibration(1.0, 0.5, condition=2, level=3))
    assert milder[3, 2, 0] > 0.1
    assert milder[3, 2, 2] < 0.7
    flatter = calibrated(p, calibration(3.0, 0.0, condition=2, level=3))
    assert 0.3 < flatter[3, 2, 0] < 0.5
    np.testing.assert_allclose(
        np.delete(flatter.reshape(25, 3), 17, axis=0), np.tile(p[0, 0], (24, 1))
    )


# ---- grids --------------------------------------------------------------------------------------------------------


def test_a_buffer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"out must be \(5, 3, 6, 8, 10\), got \(4, 3, 6, 8, 10\)"
    ):
        level_grids(
            study(T1), discs(), ENTRY.layout, out=np.zeros((4, 3, 6, 8, 10), np.float32)
        )
    with pytest.raises(ValueError, match="out must be"):
        study_grid(study(T1), WHOLE.layout, np.zeros((3, 10, 8, 11), np.float32))


def test_each_channel_holds_the_series_of_its_role_in_the_models_order() -> None:
    order = (Role.AXIAL_T2, Role.SAGITTAL_T2, Role.SAGITTAL_T1)
    plain, _ = level_grids(study(T1, T2, axial()), discs(), ENTRY.layout)
    turned, coverage = level_grids(
        study(T1, T2, axial()), discs(), replace(ENTRY, channels=order).layout
    )
    assert ALL_ROLES == (Role.SAGITTAL_T1, Role.AXIAL_T2, Role.SAGITTAL_T2)
    np.testing.assert_array_equal(turned, plain[:, [1, 2, 0]])
    assert coverage.min() == 1


def test_axial_series_are_windowed_each_by_itself() -> None:
    upper, lower = axial(14, (0, 0, 50)), replace(axial(14, (0, 0, -50)), path="ax2")
    lower.stacks[0].pixels[:] //= 8
    grids, _ = level_grids(study(upper, lower), discs(), ENTRY.layout)
    for level in (0, 4):
        assert 0.4 < grids[level, 1].mean() < 0.6  # noise in a window of its own


def test_a_flat_grid_keeps_its_one_value() -> None:
    flat = replace(
        T1, stacks=(replace(T1.stacks[0], pixels=np.full_like(T1.stacks[0].pixels, 7)),)
    )
    channels = (Role.SAGITTAL_T1,)
    entry = replace(
        ENTRY,
        normalisation="grid_range",
        channels=channels,
        inputs=(replace(ENTRY.inputs[0], shape=(None, 1, 6, 8, 10)),),
    )
    grids, _ = level_grids(study(flat), discs(), entry.layout)
    assert np.unique(grids).tolist() == [1.0]
    grid, _ = study_grid(study(flat), entry.layout)
    assert np.unique(grid).tolist() == [1.0]


def test_the_range_of_a_whole_studys_grid_is_its_own() -> None:
    channels = (Role.SAGITTAL_T1,)
    shape = (1, 1, 10, 8, 12)
    entry = replace(
        WHOLE,
        normalisation="grid_range",
        channels=channels,
        inputs=(replace(WHOLE.inputs[0], shape=shape),),
    )
    grid, _ = study_grid(study(T1), entry.layout)
    assert (grid.min(), grid.max()) == (0.0, 1.0)
