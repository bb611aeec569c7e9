"""From peaks to candidates: what is one disc, how heavy it is, and what is left out beside it."""

from __future__ import annotations

import numpy as np
import pytest
from conftest_columns import FRAME, Seen, candidate, log_level, peaks

from spine_engine.detection import DetectorSpec
from spine_engine.detection.candidates import (
    Peaks,
    candidates_from_peaks,
    clear_candidates,
    joined,
    peaks_from_maps,
)
from spine_engine.detection.slices import Canvas


def table(
    *rows: tuple[float, ...], beliefs: list[dict[int, float]] | None = None
) -> Peaks:
    """Peaks of (x, y, z, height, share, series); they point back and up by turns."""
    values = np.array(rows, float)
    votes = beliefs or [{0: 0.9}] * len(rows)
    pointing = np.array([(0.0, 1.0, 0.0), (0.0, 0.8, 0.6)] * len(rows))[: len(rows)]
    series = values[:, 5].astype(np.int64)
    return Peaks(
        values[:, :3],
        values[:, 3],
        values[:, 4],
        pointing,
        np.array([log_level(v) for v in votes]),
        series,
    )


def test_a_candidate_is_the_mean_of_its_peaks_by_squared_heat_and_share() -> None:
    beliefs = [{0: 0.9, 1: 0.1}, {0: 0.5, 1: 0.5}]
    seen = table((-4, 0, 0, 0.8, 5.0, 0), (4, 3, 6, 0.4, 2.5, 0), beliefs=beliefs)
    (one,) = candidates_from_peaks(seen, FRAME)
    heavy, light = 0.64 * 5.0, 0.16 * 2.5
    share = light / (heavy + light)  # a ninth
    assert share == pytest.approx(1 / 9)
    np.testing.assert_allclose(one.position_mm, (-4 + 8 * share, 3 * share, 6 * share))
    np.testing.assert_allclose(one.direction, (0, 1 - 0.2 * share, 0.6 * share))
    np.testing.assert_allclose(
        one.log_level, (1 - share) * seen.log_level[0] + share * seen.log_level[1]
    )
    assert one.peak == 0.8
    assert one.mass_mm == pytest.approx(0.8 * 5.0 + 0.4 * 2.5)


def test_over_series_masses_are_averaged_votes_summed_and_peaks_averaged_where_seen() -> (
    None
):
    beliefs = [{0: 0.9}, {0: 0.5, 1: 0.5}, {3: 0.9}]
    seen = table(
        (0, 0, 0, 0.8, 4, 0),
        (0, 2, 0, 0.4, 4, 2),
        (0, 0, 90, 0.6, 4, 2),
        beliefs=beliefs,
    )
    one, other = sorted(
        candidates_from_peaks(seen, FRAME), key=lambda c: c.position_mm[2]
    )
    assert one.peak == pytest.approx(0.6)
    assert one.mass_mm == pytest.approx(
        (0.8 * 4 + 0.4 * 4) / 2
    )  # two of the series show anything
    np.testing.assert_allclose(one.log_level, seen.log_level[0] + seen.log_level[1])
    assert other.peak == pytest.approx(0.6)
    assert other.mass_mm == pytest.approx(0.6 * 4 / 2)
    np.testing.assert_allclose(other.log_level, seen.log_level[2])


@pytest.mark.parametrize(("apart", "count"), [(12.9, 1), (13.1, 2)])
@pytest.mark.parametrize("axis", [1, 2])
def test_peaks_within_13_mm_in_the_sagittal_plane_are_one_disc(
    apart: float, count: int, axis: int
) -> None:
    other = [0.0, 0.0, 0.0]
    other[axis] = apart
    assert (
        len(
            candidates_from_peaks(
                table((0, 0, 0, 0.8, 4, 0), (*other, 0.7, 4, 0)), FRAME
            )
        )
        == count
    )


def test_peaks_far_apart_across_the_slices_are_one_disc() -> None:
    assert (
        len(
            candidates_from_peaks(
                table((-30, 0, 0, 0.8, 4, 0), (30, 0, 0, 0.7, 4, 0)), FRAME
            )
        )
        == 1
    )


def test_the_highest_peak_is_joined_first() -> None:
    # 0 and 20 are two discs, 10 lies within reach of both and goes to the nearer one
    seen = table((0, 0, 0, 0.5, 4, 0), (0, 0, 9, 0.3, 4, 0), (0, 0, 20, 0.9, 4, 0))
    found = sorted(c.position_mm[2] for c in candidates_from_peaks(seen, FRAME))
    assert len(found) == 2
    assert found[1] == pytest.approx(20)
    assert 0 < found[0] < 9
    # the middle one is highest, and takes both sides
    seen = table((0, 0, 0, 0.5, 4, 0), (0, 0, 9, 0.9, 4, 0), (0, 0, 18, 0.3, 4, 0))
    assert len(candidates_from_peaks(seen, FRAME)) == 1


def test_the_order_of_peaks_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    rows = [
        tuple(row)
        for row in np.column_stack(
            [rng.normal(0, 12, (40, 3)), rng.choice([0.3, 0.5], 40)]
        )
    ]
    seen = table(*((*row, 4.0, k % 2) for k, row in enumerate(rows)))
    again = seen.where(np.ones(40, np.bool_))
    order = rng.permutation(40)
    again = Peaks(*(getattr(seen, name)[order] for name in Peaks.__dataclass_fields__))
    one, two = (
        sorted(c.position_mm.round(9).tolist() for c in candidates_from_peaks(p, FRAME))
        for p in (seen, again)
    )
    assert one == two
    assert len(one) > 2


def test_no_peaks_no_candidates() -> None:
    nothing = table((0, 0, 0, 0.8, 4, 0)).where(np.zeros(1, np.bool_))
    assert candidates_from_peaks(nothing, FRAME) == []
    assert clear_candidates([], FRAME) == []


def test_peaks_of_a_series_are_told_apart_and_joined_again() -> None:
    seen = joined(
        [
            peaks([Seen(0, {0: 1.0})], 0),
            peaks([Seen(40, {1: 1.0}), Seen(80, {2: 1.0})], 1),
        ]
    )
    assert [len(seen.of_series(n).height) for n in (0, 1, 2)] == [5, 10, 0]
    assert set(seen.of_series(1).position_mm[:, 2]) == {40.0, 80.0}


def clear(*pairs: tuple[float, float], y: float = 0.0) -> list[tuple[float, float]]:
    """(height, mass) of what is left of candidates of these heights and masses."""
    found = clear_candidates([candidate(z, mass=mass, y=y) for z, mass in pairs], FRAME)
    return [(c.position_mm[2], c.mass_mm) for c in found]


def test_candidates_come_from_the_sacrum_upwards() -> None:
    assert [z for z, _ in clear((40, 9), (0, 10), (80, 11))] == [0, 40, 80]


@pytest.mark.parametrize(("share", "kept"), [(0.119, False), (0.121, True)])
def test_less_than_twelve_hundredths_of_a_typical_mass_is_noise(
    share: float, kept: bool
) -> None:
    column = [
        (40.0 * k, mass) for k, mass in enumerate((30, 20, 10, 10, 10))
    ]  # the median of the five is 10
    assert ((-40.0, 10 * share) in clear(*column, (-40.0, 10 * share))) == kept


def test_a_typical_mass_is_the_median_of_the_five_heaviest() -> None:
    column = [
        (40.0 * k, mass) for k, mass in enumerate((50, 40, 30, 20, 10, 3.5, 3.5, 3.5))
    ]
    assert len(clear(*column)) == 5  # 3.6 is 0.12 of 30
    assert len(clear(*column[2:])) == 6  # 0.12 of 10


@pytest.mark.parametrize(
    ("apart", "share", "kept"),
    [(23.9, 0.59, False), (23.9, 0.61, True), (24.1, 0.3, True), (23.9, 1.0, True)],
)
def test_of_two_within_24_mm_one_with_less_than_six_tenths_of_the_mass_goes(
    apart: float, share: float, kept: bool
) -> None:
    found = clear((0, 10), (apart, 10 * share), (100, 10), (140, 10), (180, 10))
    assert ((apart, 10 * share) in found) == kept
    assert (0, 10) in found


def test_what_lies_beside_counts_as_near_too_and_the_heaviest_neighbour_decides() -> (
    None
):
    column = [candidate(z, mass=10) for z in (0, 100, 140, 180)]
    beside = candidate(0, y=20, mass=5.9)
    assert beside not in clear_candidates([*column, beside], FRAME)
    # 6.1 stays beside 10.1; 6 would stay beside 6.1 but goes beside 10.1
    three = [candidate(0, mass=10.1), candidate(20, mass=6.1), candidate(10, mass=6.0)]
    kept = clear_candidates(
        [*three, candidate(100, mass=10), candidate(140, mass=10)], FRAME
    )
    assert [c.position_mm[2] for c in kept] == [0, 20, 100, 140]


def test_noise_is_cut_to_the_64_heaviest() -> None:
    many = [candidate(30.0 * k, mass=10 + 0.01 * k) for k in range(80)]
    kept = clear_candidates(many, FRAME)
    assert [c.position_mm[2] for c in kept] == [30.0 * k for k in range(16, 80)]


def test_of_equals_the_one_to_the_right_front_below_is_taken_first() -> None:
    one, other = candidate(0, x=-3, mass=10), candidate(0, x=3, mass=10)
    for given in ([one, other], [other, one]):
        assert clear_candidates(given, FRAME) == [one, other]


def canvas() -> Canvas:
    """Two slices at x = -3 and 3, shares 5 and 7 mm, their first pixel at (., -50, 90), turned by 90 degrees."""
    origins = np.array([(-3.0, -50.0, 90.0), (3.0, -50.0, 90.0)])
    down, back, across = (
        np.array([0.0, 0.6, -0.8]),
        np.array([0.0, 0.8, 0.6]),
        np.array([1.0, 0, 0]),
    )
    return Canvas(
        np.zeros((2, 0, 0), np.float32),
        origins,
        down,
        back,
        across,
        (0, 0, 0, 0),
        np.array([5.0, 7]),
        2.0,
    )


def test_a_peak_of_the_maps_lies_where_its_pixel_does() -> None:
    maps = np.zeros((2, 14, 20, 30), np.float32)
    maps[1, 0, 12, 17] = 0.7  # a disc in the second slice
    maps[1, 2:4, 12, 17] = 0.5, 0.25
    maps[1, 4:, 12, 17] = np.log(np.arange(1, 11) / 55)
    maps[0, 1, 3, 4] = 0.6  # a body in the first
    discs, bodies = peaks_from_maps(
        iter([maps[:1], maps[1:]]), canvas(), 3, DetectorSpec()
    )
    place = canvas()
    # output pixel i is centred on input pixel 2 i + 0.5, which is 2 mm wide
    np.testing.assert_allclose(
        discs.position_mm,
        [place.origins_mm[1] + 2 * (24.5 * place.down + 34.5 * place.back)],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        bodies.position_mm,
        [place.origins_mm[0] + 2 * (6.5 * place.down + 8.5 * place.back)],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        discs.direction, [0.5 * place.down + 0.25 * place.back], atol=1e-6
    )
    np.testing.assert_allclose(
        np.exp(discs.log_level), [np.arange(1, 11) / 55], atol=1e-6
    )
    assert discs.height == pytest.approx([0.7])
    assert bodies.height == pytest.approx([0.6])
    assert discs.share_mm.tolist() == [7]
    assert bodies.share_mm.tolist() == [5]
    assert discs.series.tolist() == bodies.series.tolist() == [3]


@pytest.mark.parametrize(("heat", "count"), [(0.079, 0), (0.081, 1)])
def test_a_peak_below_eight_hundredths_is_noise(heat: float, count: int) -> None:
    maps = np.zeros((1, 14, 20, 30), np.float32)
    maps[0, 0, 12, 17] = heat
    discs, bodies = peaks_from_maps([maps], canvas(), 0, DetectorSpec())
    assert (len(discs.height), len(bodies.height)) == (count, 0)
