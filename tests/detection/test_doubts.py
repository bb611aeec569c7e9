"""When a series disagrees, and when another numbering is told: each threshold just inside and just outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest_columns import FRAME, candidate, picture

from spine_engine.anatomy import Level
from spine_engine.detection import LabellingOptions
from spine_engine.detection.labelling import RANKS, Column, Labelling, labelled, shifted
from spine_engine.detection.levels import complete_levels
from spine_engine.detection.numbering import NamedColumn, Picture, doubts, series_shift
from spine_engine.errors import Warn

BOX = (40.0, 96.0, 96.0)
OPTIONS = LabellingOptions()


def named(
    ranks: Sequence[int],
    *,
    belief: float = 0.9,
    heights: Sequence[float] | None = None,
    votes: Sequence[dict[int, float]] | None = None,
    bottom_mm: float = -500.0,
) -> NamedColumn:
    """Discs 40 mm apart from z = 0 upwards, named `ranks`, each with the posterior `belief`; `votes` are log odds."""
    count = len(ranks)
    posterior, emit = np.zeros((count, RANKS)), np.zeros((count, RANKS))
    for k, rank in enumerate(ranks):
        if rank >= 0:
            posterior[k, rank] = belief
        for other, vote in (votes[k] if votes else {}).items():
            emit[k, other] = vote
    step = np.full((count, count, 4), -np.inf)
    step[np.triu_indices(count, 1)] = (-np.inf, 0.0, -9.0, -9.0)
    place = np.arange(count, dtype=float)
    between = -20.0 * np.maximum(
        place[None, :] - place[:, None] - 1, 0
    )  # nobody leaves a disc out
    ends = [np.tile(-20.0 * side[:, None], RANKS) for side in (place, place[::-1])]
    column = Column(emit, step, between, *ends)
    where = heights if heights is not None else [40.0 * k for k in range(count)]
    return NamedColumn(
        [candidate(z) for z in where],
        Labelling(np.array(ranks), posterior, 0.0, column),
        Picture([picture(500.0, bottom_mm)], FRAME),
    )


STUDY = named([0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("discs", "options", "shift"),
    [
        ([1, 2, 3, 4, 5], {}, 1),
        ([2, 3, 4, 5, 6], {}, 2),
        ([-1, 0, 1, 2, 3], {}, -1),
        ([0, 1, 2, 3, 4], {}, 0),
        ([1, 2, 3], {}, 1),  # three discs are enough
        ([1, 2], {}, 0),  # two can be a chance
        ([1, 2, 3, -1, -1], {}, 1),
        ([1, 2, -1, -1, -1], {}, 0),
        ([1, 2, 3, 5, 6], {}, 0),  # not all moved alike
        ([1, 2, 3], {"belief": 0.601}, 1),
        ([1, 2, 3], {"belief": 0.599}, 0),  # it does not know
        ([1, 2, 3, 4], {"heights": [12.9, 40, 80, 120]}, 1),
        (
            [1, 2, 3],
            {"heights": [13.1, 40, 80]},
            0,
        ),  # the first is another disc: two are left
    ],
)
def test_a_series_alone_names_the_column_so_much_higher(
    discs: list[int], options: dict[str, Any], shift: int
) -> None:
    alone = named(discs, **options)
    assert series_shift(STUDY, alone, FRAME, OPTIONS) == shift


def test_how_many_discs_and_how_much_belief_are_options() -> None:
    two, unsure = named([1, 2]), named([1, 2, 3], belief=0.3)
    assert series_shift(STUDY, two, FRAME, LabellingOptions(series_discs=2)) == 1
    assert series_shift(STUDY, unsure, FRAME, LabellingOptions(series_belief=0.25)) == 1


def test_the_belief_is_that_of_the_series_in_its_own_names() -> None:
    weak = named([0, 1, 2, 3, 4], belief=0.1)
    assert series_shift(weak, named([1, 2, 3, 4, 5]), FRAME, OPTIONS) == 1


def column(
    odds: float, *, upper: float | None = None, bottom_mm: float = -500.0
) -> NamedColumn:
    """Four discs whose net gives the numbering one higher the log odds `odds` each, the upper two `upper`."""
    votes = [
        {rank: 0.0, rank + 1: odds if rank < 3 or upper is None else upper}
        for rank in (1, 2, 3, 4)
    ]
    votes = [{rank: vote.get(rank, -60.0) for rank in range(RANKS)} for vote in votes]
    made = named([1, 2, 3, 4], votes=votes, bottom_mm=bottom_mm)
    return NamedColumn(made.candidates, labelled(made.labelling.column), made.picture)


def told(
    made: NamedColumn, alone: Sequence[NamedColumn] = (), **options: float
) -> tuple[int | None, set[Warn]]:
    levels = complete_levels(made.found(made.labelling.ranks), FRAME, BOX)
    other, warnings = doubts(
        made, alone, levels, FRAME, BOX, LabellingOptions(**options)
    )
    return None if other is None else other.shift, warnings


# the numbering one higher has the odds e^(4 * odds): 0.1 is at odds of 1 to 9
AT_A_TENTH = np.log(1 / 9) / 4


@pytest.mark.parametrize(("more", "shift"), [(0.01, 1), (-0.01, None)])
def test_another_numbering_is_told_from_a_tenth_on(
    more: float, shift: int | None
) -> None:
    made = column(AT_A_TENTH + more)
    assert shifted(made.labelling, 1).probability == pytest.approx(0.1, abs=0.005)
    assert told(made)[0] == shift
    assert told(made, alternative=0.2)[0] is None
    assert told(made, alternative=0.05)[0] == 1


def test_below_a_tenth_it_is_told_where_a_series_says_so() -> None:
    made = column(-1.0)
    assert told(made) == (None, set())
    assert told(made, [named([2, 3, 4, 5])]) == (1, {Warn.SERIES_DISAGREE})
    # an agreeing series says nothing, a shift that no labelling has is warned of but not told
    assert told(made, [named([1, 2, 3, 4])]) == (None, set())
    assert told(column(-900.0), [named([2, 3, 4, 5])]) == (None, {Warn.SERIES_DISAGREE})


def test_the_likeliest_of_several_is_told() -> None:
    made = column(-0.3)
    assert told(made, [named([0, 1, 2, 3])])[0] == 1
    assert Warn.SERIES_DISAGREE in told(made, [named([0, 1, 2, 3])])[1]


@pytest.mark.parametrize(
    ("bottom_mm", "warned"), [(-89, False), (-91, True)]
)  # L5/S1 lies 40 mm below the first disc, one higher 80; 10 mm at the edge may be cut
def test_where_both_discs_that_may_be_l5_s1_are_in_the_picture_the_anatomy_is_in_doubt(
    bottom_mm: float, warned: bool
) -> None:
    made = column(-0.1, bottom_mm=bottom_mm)
    lowest = complete_levels(made.found(shifted(made.labelling, 1).ranks), FRAME, BOX)[
        Level.L5_S1
    ].center_mm[2]
    assert lowest == pytest.approx(-80)
    shift, warnings = told(made)
    assert shift == 1
    assert (Warn.TRANSITIONAL_ANATOMY in warnings) == warned


@pytest.mark.parametrize(
    ("lower", "upper", "warned"),
    [(0.5, -0.6, True), (-0.6, 0.5, True), (-0.1, -0.1, False)],
)
def test_halves_that_vote_apart_are_transitional_whatever_the_picture_shows(
    lower: float, upper: float, warned: bool
) -> None:
    made = column(lower, upper=upper, bottom_mm=-30)
    shift, warnings = told(made)
    assert shift is not None
    assert (Warn.TRANSITIONAL_ANATOMY in warnings) == warned


def test_a_numbering_that_only_a_series_wants_is_no_matter_of_the_anatomy() -> None:
    made = column(-1.0, bottom_mm=-300)
    assert told(made, [named([2, 3, 4, 5])]) == (1, {Warn.SERIES_DISAGREE})


def test_pictures_end_ten_millimetres_before_their_edges() -> None:
    shown = Picture(
        [picture(100.0, -100.0)], FRAME
    )  # down from -100 to 100, back from -100 to 100
    places = np.array(
        [
            (0, 0),
            (-89, 0),
            (-91, 0),
            (89, 0),
            (91, 0),
            (0, 89),
            (0, 91),
            (0, -89),
            (0, -91),
        ],
        float,
    )
    assert shown(places).tolist() == [
        True,
        True,
        False,
        True,
        False,
        True,
        False,
        True,
        False,
    ]
    both = Picture([picture(100.0, 20.0), picture(-20.0, -100.0)], FRAME)
    assert both(np.array([(-50.0, 0), (0, 0), (50.0, 0)])).tolist() == [
        True,
        False,
        True,
    ]


def test_of_slices_that_are_staggered_the_middle_one_is_the_picture() -> None:
    straight = picture(100.0, -100.0)
    upwards = np.array([(0.0, 0.0, 15.0 * n) for n in range(5)])
    shown = Picture(
        [replace(straight, origins_mm=straight.origins_mm + upwards)], FRAME
    )  # 130 to -70 in the middle
    assert shown(
        np.array([(-119.0, 0), (-121.0, 0), (59.0, 0), (61.0, 0)])
    ).tolist() == [True, False, True, False]


def test_a_column_without_a_labelled_disc_shows_no_sacrum() -> None:
    assert named([-1, -1]).found(np.array([-1, -1])) == {}


def test_discs_left_out_are_not_found() -> None:
    found = named([-1, 0, 1], belief=0.8).found(np.array([-1, 0, 1]))
    assert {rank: disc.center_mm[2] for rank, disc in found.items()} == {
        0: 40.0,
        1: 80.0,
    }
    assert [disc.confidence for disc in found.values()] == [0.8, 0.8]
