"""Clouds against a loop over pixels, and thinned ones against the whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_space import AXIAL, SAGITTAL, a_series, a_study, oblique

from spine_engine.report.cloud import AIR, MORE_COLOURS, ROLE_COLOURS, study_cloud
from spine_engine.study import Role, Stack
from spine_engine.voxels import robust_window


def by_loops(series):
    """Return every pixel of a series that is not air: place and value, pixel by pixel."""
    window = robust_window(series.stacks)
    found = []
    for stack in series.stacks:
        for s, r, c in np.ndindex(stack.pixels.shape):
            value = stack.pixels[s, r, c] * float(stack.slope[s]) + float(
                stack.intercept[s]
            )
            value = (value - window.low) / (window.high - window.low)
            place = (
                stack.origins_mm[s]
                + r * stack.spacing_mm[0] * stack.axes[1]
                + c * stack.spacing_mm[1] * stack.axes[2]
            )
            if value > AIR:
                found.append([*place, min(value, 1.0)])
    return np.array(found)


def test_points_are_pixel_centres_of_oblique_uneven_stacks_by_series_in_order() -> None:
    study = a_study()
    cloud = study_cloud(study)
    assert cloud.names == ("Sagittal T2", "Sagittal T1", "Axial T2", "Axial T2 (2)")
    axial, _, t1, t2, other_axial = study.series
    for number, series in enumerate((t2, t1, axial, other_axial)):
        mine = cloud.series == number
        want = by_loops(series)
        np.testing.assert_allclose(
            cloud.points_mm[mine], want[:, :3], rtol=0, atol=1e-4
        )
        np.testing.assert_allclose(cloud.values[mine], want[:, 3], rtol=0, atol=1e-6)
    assert cloud.points_mm.dtype == cloud.values.dtype == np.float32
    assert np.all(np.diff(cloud.series.astype(int)) >= 0)


def test_air_is_left_out_and_the_ball_is_not() -> None:
    stack = oblique(1, SAGITTAL)
    cloud = study_cloud(a_study(a_series(Role.SAGITTAL_T2, stack)))
    assert len(cloud.values) == np.count_nonzero(stack.pixels >= 300)
    assert cloud.values.min() > AIR
    assert cloud.values.max() == 1.0


def test_series_without_a_role_are_left_out_and_a_stir_is_called_so() -> None:
    t2, other = oblique(1, SAGITTAL), oblique(2, SAGITTAL)
    study = a_study(
        a_series(None, other),
        a_series(Role.SAGITTAL_T2, t2, contrast="stir"),
        a_series(Role.AXIAL_T2),
    )
    assert study_cloud(study).names == ("Sagittal STIR",)


def test_every_axial_series_has_a_name_and_a_colour() -> None:
    study = a_study(
        *(
            a_series(Role.AXIAL_T2, oblique(n, AXIAL, shape=(2, 20, 20)))
            for n in range(4)
        )
    )
    cloud = study_cloud(study)
    assert cloud.names == ("Axial T2", "Axial T2 (2)", "Axial T2 (3)", "Axial T2 (4)")
    assert cloud.colours == (
        ROLE_COLOURS[Role.AXIAL_T2],
        *MORE_COLOURS,
        MORE_COLOURS[0],
    )


def test_nothing_gives_an_empty_cloud() -> None:
    cloud = study_cloud(a_study(a_series(None, oblique(1, SAGITTAL))), limit=10)
    assert cloud.points_mm.shape == (0, 3)
    assert cloud.names == ()
    with pytest.raises(ValueError, match="positive"):
        study_cloud(a_study(), limit=0)


@pytest.mark.parametrize("limit", [1, 7, 500, 4000, 10**9])
def test_a_thinned_cloud_is_part_of_the_whole_never_larger_than_asked_and_always_the_same(
    limit: int,
) -> None:
    whole, thin, again = (
        study_cloud(a_study()),
        study_cloud(a_study(), limit=limit),
        study_cloud(a_study(), limit=limit),
    )
    assert min(limit, len(whole.values)) * 0.6 <= len(thin.values) <= limit
    place = {tuple(point): n for n, point in enumerate(whole.points_mm.tolist())}
    chosen = [place[tuple(point)] for point in thin.points_mm.tolist()]
    assert len(set(chosen)) == len(chosen)
    assert np.array_equal(whole.values[chosen], thin.values)
    assert np.array_equal(whole.series[chosen], thin.series)
    assert np.array_equal(again.points_mm, thin.points_mm)
    assert np.array_equal(again.values, thin.values)


def test_thinning_is_even_over_series_and_the_plane() -> None:
    """Each square millimetre of slice keeps about as many points as any other, whatever the pixels' size."""

    def full(stack: Stack) -> Stack:
        pixels = np.full(stack.pixels.shape, 500, np.uint16)
        pixels[:, : stack.pixels.shape[1] // 20] = (
            100  # some air, so that there is a window
        )
        return replace(
            stack,
            pixels=pixels,
            slope=np.ones_like(stack.slope),
            intercept=0 * stack.intercept,
        )

    fine = full(oblique(1, SAGITTAL, shape=(6, 240, 240), pixel=(0.5, 0.5)))
    coarse = full(oblique(2, AXIAL, shape=(12, 80, 80), pixel=(1.5, 1.5)))
    thin = study_cloud(
        a_study(a_series(Role.SAGITTAL_T2, fine), a_series(Role.AXIAL_T2, coarse)),
        limit=5000,
    )
    assert 4000 < len(thin.values) <= 5000
    sagittal, axial = np.bincount(thin.series).tolist()
    assert axial / sagittal == pytest.approx(
        2.0, rel=0.05
    )  # twelve slices of the same size against six
    for number, stack in enumerate((fine, coarse)):
        local = (thin.points_mm[thin.series == number] - stack.center_mm) @ stack.axes[
            1:
        ].T
        sixteenths = np.histogramdd(local, bins=(4, 4))[0]
        assert sixteenths.max() / sixteenths.min() < 1.25
