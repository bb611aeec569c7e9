"""SpineNet's decoder at its bounds: what the papers' numbers decide, just inside and just outside."""

from __future__ import annotations

import numpy as np
import pytest
from conftest_columns import FRAME
from conftest_detection import sagittal_stack
from test_spinenet_joining import box, groups

from spine_engine.detection import DetectionOptions
from spine_engine.detection.levels import Found, Vertebra
from spine_engine.detection.spinenet import detect as vfr
from spine_engine.detection.spinenet.beam import named_column, step_costs
from spine_engine.detection.spinenet.decode import Polygons, polygons_from_maps
from spine_engine.detection.spinenet.detect import (
    _agree,
    _Column,
    _disc_between,
    _joined,
    _missed_between,
)
from spine_engine.detection.spinenet.joining import Body, without_doubles
from spine_engine.errors import Warn

# ---- one vertebra of one patch ------------------------------------------------------------------------------------

CORNERS = [
    (120, 90),
    (120, 110),
    (90, 110),
    (90, 90),
]  # right-top, right-bottom, left-bottom, left-top
CENTER = (105, 100)


def maps_of(
    *,
    heat: float = 0.9,
    missing: tuple[int, ...] = (),
    miss_px: tuple[float, ...] = (0, 0, 0, 0),
    size: int = 224,
) -> np.ndarray:
    """Maps of one vertebra: single pixels of heat; the vote of corner k misses the centroid by `miss_px[k]`."""
    maps = np.zeros((1, 13, size, size), np.float32)
    maps[0, 4, CENTER[1], CENTER[0]] = heat
    for k, (x, y) in enumerate(CORNERS):
        if k not in missing:
            maps[0, k, y, x] = heat
        maps[0, 5 + k, y, x] = CENTER[0] - x + miss_px[k]
        maps[0, 9 + k, y, x] = CENTER[1] - y
    return maps


def seen_in(maps: np.ndarray) -> list[int]:
    (found,) = polygons_from_maps(maps)
    return found.seen.tolist()


def test_a_vertebra_is_its_four_corners_and_its_heat_their_mean() -> None:
    maps = maps_of()
    maps[0, 0, 90, 120], maps[0, 1, 110, 120] = 0.7, 0.8
    (found,) = polygons_from_maps(maps)
    assert found.corners.tolist() == [[list(map(float, corner)) for corner in CORNERS]]
    assert found.heat == pytest.approx([(0.7 + 0.8 + 0.9 + 0.9) / 4])
    (three,) = polygons_from_maps(maps_of(missing=(2,)))
    assert three.heat == pytest.approx([0.9])
    assert three.corners[0, 2].tolist() == [
        90,
        110,
    ]  # as far beyond the centroid as the first lies before it


@pytest.mark.parametrize(("heat", "seen"), [(0.599, []), (0.601, [4])])
def test_a_landmark_is_hotter_than_six_tenths(heat: float, seen: list[int]) -> None:
    assert seen_in(maps_of(heat=heat)) == seen


@pytest.mark.parametrize(("miss", "seen"), [(9.9, [4]), (10.0, [4]), (10.1, [3])])
def test_a_vote_counts_within_ten_pixels(miss: float, seen: list[int]) -> None:
    assert seen_in(maps_of(miss_px=(miss, 0, 0, 0))) == seen


def test_three_corners_make_a_vertebra_and_two_do_not() -> None:
    assert seen_in(maps_of(missing=(1,))) == [3]
    assert seen_in(maps_of(missing=(1, 2))) == []


def test_of_too_many_peaks_the_64_hottest_count() -> None:
    maps = maps_of(heat=0.7)
    # 70 spots of another corner map lie too far to vote; hotter ones crowd the true corner out, cooler ones do not
    spots = [(x, y) for y in range(2, 40, 4) for x in range(2, 30, 4)]
    assert len(spots) == 70
    cooler, hotter, a_few = maps.copy(), maps.copy(), maps.copy()
    for x, y in spots:
        cooler[0, 0, y, x], hotter[0, 0, y, x] = 0.65, 0.8
    for x, y in spots[:63]:
        a_few[0, 0, y, x] = 0.8
    assert (seen_in(cooler), seen_in(a_few), seen_in(hotter)) == ([4], [4], [3])


# ---- polygons become vertebrae ------------------------------------------------------------------------------------


def beside(share: float) -> float:
    """How far a box of width 34 is moved to overlap itself by this share (intersection over union)."""
    return 34 * (1 - share) / (1 + share)


@pytest.mark.parametrize(("share", "count"), [(0.21, 1), (0.19, 2)])
def test_polygons_of_one_slice_that_overlap_more_than_a_fifth_are_one(
    share: float, count: int
) -> None:
    corners = np.array([box(0, 0), box(beside(share), 0)])
    kept = without_doubles(Polygons(corners, np.array([4, 4]), np.array([0.8, 0.9])))
    assert len(kept.corners) == count
    assert kept.heat.tolist() == [0.9, 0.8][:count]


def test_seen_corners_count_before_heat_and_height_before_place() -> None:
    corners = np.array([box(0, 0), box(2, 0), box(1, 0)])
    kept = without_doubles(
        Polygons(corners, np.array([3, 4, 4]), np.array([0.99, 0.7, 0.8]))
    )
    np.testing.assert_array_equal(kept.corners, corners[2:])
    apart = np.array([box(50, 40), box(0, 40), box(0, 0)])
    kept = without_doubles(
        Polygons(apart, np.array([4, 4, 4]), np.array([0.8, 0.8, 0.8]))
    )
    np.testing.assert_array_equal(kept.corners, apart[[2, 1, 0]])


@pytest.mark.parametrize(("share", "found"), [(0.21, [[0, 1]]), (0.19, [])])
def test_polygons_of_two_slices_that_overlap_more_than_a_fifth_are_one(
    share: float, found: list[list[int]]
) -> None:
    assert groups([box(0, 0), box(beside(share), 0)], [0, 1]) == found


@pytest.mark.parametrize(
    ("share", "found"), [(0.055, [[0, 1, 2, 3]]), (0.045, [[0, 1], [2, 3]])]
)
def test_vertebrae_that_overlap_more_than_a_twentieth_are_one(
    share: float, found: list[list[int]]
) -> None:
    assert (
        groups(
            [box(0, 0), box(0, 0), box(beside(share), 0), box(beside(share), 0)],
            [0, 1, 2, 3],
        )
        == found
    )


# ---- from named vertebrae to discs --------------------------------------------------------------------------------


def body(
    z: float, *, height: float = 30.0, depth: float = 34.0, lean: float = 0.0
) -> Body:
    """A body centred at `z` (LPS mm); its lower edge falls by `lean` mm to the back."""
    corners = [
        (depth / 2, height / 2),
        (depth / 2, -height / 2 - lean),
        (-depth / 2, -height / 2 + lean),
    ]
    corners.append((-depth / 2, height / 2))
    return Body(np.array([(0.0, y, z + up) for y, up in corners]), 0, 3)


@pytest.mark.parametrize(
    ("apart", "missed"),
    [
        (39, 0),
        (58, 0),
        (59, 1),
        (78, 1),
        (97, 1),
        (98, 2),
        (117, 2),
        (10, 0),
    ],  # 39 mm are one pitch of 1.3 heights
)
def test_how_many_vertebrae_find_room_between_two(apart: float, missed: int) -> None:
    assert _missed_between(body(apart), body(0)) == missed


def test_the_pitch_is_that_of_both_bodies() -> None:
    assert _missed_between(body(60, height=20), body(0, height=40)) == 1
    assert _missed_between(body(60, height=30), body(0, height=40)) == 0


def test_a_disc_lies_between_the_facing_edges_along_their_mean() -> None:
    disc = _disc_between(body(40, lean=6.0), body(0, height=20.0), 0.7)
    np.testing.assert_allclose(disc.center_mm, (0, 0, (25 + 10) / 2))
    edge = np.array([0.0, 34.0, -12.0]) / np.hypot(34, 12)
    np.testing.assert_allclose(disc.direction, (edge + np.array([0, 1, 0])) / 2)
    assert disc.confidence == 0.7


def test_steps_down_the_column_cost_nothing_and_others_what_the_papers_say() -> None:
    costs = step_costs(0)
    assert costs[5, 4] == costs[1, 0] == costs[23, 22] == 0
    assert costs[5, 5] == costs[4, 5] == costs[5, 3] == costs[0, 1] == 1000
    assert costs[0, 0] == 100
    roomy = step_costs(2)
    assert roomy[5, 4] == roomy[5, 3] == roomy[5, 2] == 0
    assert roomy[5, 1] == roomy[5, 5] == 1000
    assert (roomy == 0).sum() == 23 + 22 + 21


def test_the_beam_keeps_a_hundred_columns() -> None:
    table = np.log(np.random.default_rng(0).dirichlet(np.full(24, 9.0), 4))
    room = [3, 3, 3]  # thousands of columns without a break
    usual = named_column(table, room).probability
    np.testing.assert_array_equal(
        usual, named_column(table, room, width=100).probability
    )
    for width in (99, 101):
        assert not np.array_equal(
            usual, named_column(table, room, width=width).probability
        )


# ---- columns vote -------------------------------------------------------------------------------------------------


def named(
    *ranks: int,
    shift: float = 0.0,
    cost: float = 1.0,
    confidence: float = 0.8,
    y: float = 0.0,
) -> _Column:
    """Discs 40 mm apart, L5/S1 at z = shift; the body above each is called by its rank."""
    places = {rank: np.array([0.0, y, 40.0 * rank + shift]) for rank in ranks}
    found = {
        rank: Found(place, np.array([0.0, 1.0, 0.0]), confidence)
        for rank, place in places.items()
    }
    bodies = {
        f"v{rank}": Vertebra(f"v{rank}", place + np.array([0, 0, 20.0]), confidence)
        for rank, place in places.items()
    }
    return _Column(found, bodies, cost)


@pytest.mark.parametrize(
    ("other", "agrees"),
    [
        (named(0, 1, 2, shift=9.9), True),
        (named(0, 1, 2, shift=10.1), False),
        (named(0, 1, 2, y=9.9), True),
        (named(0, 1, 2, y=10.1), False),
        (named(0, 1, 2, shift=40.0), False),
        (named(7, 8), True),  # another part of the spine
        (named(1, shift=-40.0), False),  # the same disc by another name
    ],
)
def test_columns_agree_where_every_disc_that_both_show_has_one_name(
    other: _Column, agrees: bool
) -> None:
    one = named(0, 1, 2)
    assert _agree(one, other, FRAME) == _agree(other, one, FRAME) == agrees


def test_how_far_discs_lie_across_the_slices_does_not_matter() -> None:
    one = named(0, 1)
    far = {
        rank: Found(d.center_mm + np.array([30.0, 0, 0]), d.direction, d.confidence)
        for rank, d in one.found.items()
    }
    assert _agree(one, _Column(far, {}, 1.0), FRAME)


def test_columns_that_agree_are_averaged() -> None:
    found, vertebrae, warnings = _joined(
        [named(0, 1, confidence=0.8), named(1, 2, shift=4, confidence=0.6)], FRAME
    )
    assert {rank: disc.center_mm[2] for rank, disc in found.items()} == {
        0: 0,
        1: 42,
        2: 84,
    }
    assert [round(disc.confidence, 9) for disc in found.values()] == [0.8, 0.7, 0.6]
    assert [(each.name, each.center_mm[2], each.confidence) for each in vertebrae] == [
        ("v2", 104, 0.6),
        ("v1", 62, 0.7),
        ("v0", 20, 0.8),
    ]
    assert warnings == set()


def test_of_columns_that_disagree_the_cheaper_wins_whole_and_keeps_half_its_confidence() -> (
    None
):
    cheap, dear = named(0, 1, cost=1.0), named(1, 2, shift=-40.0, cost=2.0)
    for given in ([cheap, dear], [dear, cheap]):
        found, vertebrae, warnings = _joined(given, FRAME)
        assert {rank: disc.center_mm[2] for rank, disc in found.items()} == {
            0: 0,
            1: 40,
        }
        assert [disc.confidence for disc in found.values()] == [0.4, 0.4]
        assert [(each.name, each.confidence) for each in vertebrae] == [
            ("v1", 0.4),
            ("v0", 0.4),
        ]
        assert warnings == {Warn.SERIES_DISAGREE}


def test_a_column_without_a_lumbar_disc_comes_last_whatever_its_cost() -> None:
    lumbar, thoracic = named(3, 4, cost=9.0), named(5, 6, shift=-40.0, cost=1.0)
    found, _, warnings = _joined([thoracic, lumbar], FRAME)
    assert sorted(found) == [3, 4]
    assert warnings == {Warn.SERIES_DISAGREE}
    found, _, _ = _joined(
        [named(4, 5, cost=2.0), named(0, 1, shift=160.0, cost=3.0)], FRAME
    )
    assert sorted(found) == [4, 5]  # L1/L2 is lumbar


# ---- from columns to a detection ----------------------------------------------------------------------------------


def found_in(
    monkeypatch: pytest.MonkeyPatch,
    *columns: _Column | None,
    box_mm: tuple[float, float, float] | None = None,
):
    """What is detected where the stacks of a study, one a series, say these columns."""
    stacks = [
        sagittal_stack(n, slices=2, spacing_mm=8.0, middle_mm=(n, 0, 0))
        for n in range(len(columns))
    ]
    said = {
        stack.pixels.tobytes(): column
        for stack, column in zip(stacks, columns, strict=True)
    }
    shown: list[bytes] = []

    def viewed(stack):
        shown.append(stack.pixels.tobytes())
        return stack.pixels.tobytes()

    monkeypatch.setattr(vfr, "view_from_stack", viewed)
    monkeypatch.setattr(vfr, "_column_of", lambda view, *nets: said[view])
    options = None if box_mm is None else DetectionOptions(box_mm=box_mm)
    detection = vfr.detect_vertebra_field(
        [[stack] for stack in stacks], None, None, None, options
    )
    assert len(shown) == len(columns)
    return detection


def test_a_whole_column_has_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    made = found_in(monkeypatch, named(*range(6)))
    assert made.warnings == ()
    assert [round(entry.center_mm[2]) for entry in made.levels.values()] == [
        160,
        120,
        80,
        40,
        0,
    ]
    assert [entry.size_mm.tolist() for entry in made.levels.values()] == [
        [40, 96, 96]
    ] * 5
    assert [body.name for body in made.vertebrae] == [
        "v5",
        "v4",
        "v3",
        "v2",
        "v1",
        "v0",
    ]
    assert made.alternative is None


@pytest.mark.parametrize(
    ("columns", "warnings"),
    [
        ([named(0, 1, 3, 4)], [Warn.LEVEL_INTERPOLATED]),
        ([named(*range(5), confidence=0.501)], []),
        ([named(*range(5), confidence=0.499)], [Warn.LOW_CONFIDENCE]),
        ([named(*range(4))], [Warn.LEVEL_INTERPOLATED, Warn.LOW_CONFIDENCE]),
        (
            [named(*range(5)), named(*range(5), shift=-40, cost=2.0)],
            [Warn.LOW_CONFIDENCE, Warn.SERIES_DISAGREE],
        ),
        ([named(*range(5)), None], []),
    ],
    ids=[
        "a gap",
        "even chance",
        "less than even",
        "an end",
        "dispute",
        "one shows nothing",
    ],
)
def test_warnings_are_what_the_levels_say(
    monkeypatch: pytest.MonkeyPatch, columns, warnings: list[Warn]
) -> None:
    made = found_in(monkeypatch, *columns)
    assert made.warnings == tuple(warnings)
    assert {entry.source for entry in made.levels.values()} <= {
        "detector",
        "interpolated",
    }


@pytest.mark.parametrize(
    "column", [None, named(), named(5, 6, 7)], ids=["nothing", "no disc", "thoracic"]
)
def test_without_a_lumbar_disc_the_field_of_view_places_the_levels(
    monkeypatch: pytest.MonkeyPatch, column
) -> None:
    made = found_in(monkeypatch, column, box_mm=(10.0, 20.0, 30.0))
    assert [entry.source for entry in made.levels.values()] == ["prior"] * 5
    assert [entry.size_mm.tolist() for entry in made.levels.values()] == [
        [10, 20, 30]
    ] * 5
    assert made.warnings == (Warn.LOW_CONFIDENCE,)


def test_l1_l2_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    made = found_in(monkeypatch, named(4, 5), box_mm=(10.0, 20.0, 30.0))
    assert [entry.source[0] for entry in made.levels.values()] == [
        "d",
        "i",
        "i",
        "i",
        "i",
    ]
    assert [entry.size_mm.tolist() for entry in made.levels.values()] == [
        [10, 20, 30]
    ] * 5
