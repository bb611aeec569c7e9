"""The decoder on columns made by hand: what is seen, and what levels, confidence, warnings and doubts come of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from conftest_columns import FRAME, Seen, at, decoded

from spine_engine.anatomy import Level
from spine_engine.detection import DetectionOptions, LabellingOptions
from spine_engine.errors import Warn

LOW, BETWEEN = Warn.LOW_CONFIDENCE, Warn.LEVEL_INTERPOLATED
DISAGREE, TRANSITIONAL = Warn.SERIES_DISAGREE, Warn.TRANSITIONAL_ANATOMY
FIVE = tuple(at(rank) for rank in range(5))
SEVEN = tuple(at(rank) for rank in range(7))


def taken(*ranks: int, **odds: float) -> tuple[Seen, ...]:
    """Discs of these ranks as a net sees them that takes each for its own rank and for others with the given odds."""
    steps = {"own": 0, "above": 1, "below": -1}
    return tuple(
        at(r, belief={r + steps[name]: share for name, share in odds.items()})
        for r in ranks
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is seen, and what is to come of it; levels from L1/L2 down to L5/S1.

    Sources are d: detector, i: interpolated. `ends_mm` are the heights of L1/L2 and L5/S1, evenly spaced between.
    """

    series: Sequence[Sequence[Seen]]
    sources: str = "ddddd"
    ends_mm: tuple[float, float] = (76.0, -76.0)
    surest: tuple[float, float] = (0.9, 1.0)
    doubtful: tuple[float, float]
    warnings: set[Warn] = field(default_factory=set)
    other: tuple[int, float, float] | None = (
        None  # shift, and bounds of its probability
    )
    picture: dict[str, float] = field(default_factory=dict)


CASES = {
    "the whole lumbar spine": Case(series=[FIVE], doubtful=(0.95, 1.0)),
    "and two thoracic discs": Case(series=[SEVEN], doubtful=(0.95, 1.0)),
    "in two series": Case(series=[SEVEN, FIVE], doubtful=(0.95, 1.0)),
    "without the sacrum in the picture": Case(
        series=[FIVE],
        picture={"bottom_mm": -87},
        surest=(0.8, 0.85),
        doubtful=(0.8, 0.85),
    ),
    "L5/S1 alone: the others lie above it": Case(
        series=[[at(0)]],
        sources="iiiid",
        ends_mm=(-76.0 + 4 * 35, -76.0),
        doubtful=(0.01, 0.03),
        warnings={LOW, BETWEEN},
    ),
    "L1/L2 alone: the others lie below it": Case(
        series=[[at(4)]],
        sources="diiii",
        ends_mm=(76.0, 76.0 - 4 * 35),
        surest=(0.15, 0.25),
        doubtful=(0.003, 0.01),
        warnings={LOW, BETWEEN},
        other=(-1, 0.1, 0.2),
        picture={"top_mm": 100, "bottom_mm": 50},
    ),
    "two discs: the spacing between them goes on above": Case(
        series=[[at(0), at(1)]],
        sources="iiidd",
        doubtful=(0.05, 0.065),
        warnings={LOW, BETWEEN},
    ),
    "the middle three": Case(
        series=[[at(1), at(2), at(3)]],
        sources="idddi",
        doubtful=(0.3, 0.4),
        warnings={LOW, BETWEEN},
    ),
    "L3/L4 missing": Case(
        series=[[at(r) for r in (0, 1, 3, 4)]],
        sources="ddidd",
        doubtful=(0.65, 0.7),
        warnings={BETWEEN},
    ),
    "L4/L5 and L3/L4 missing": Case(
        series=[[at(r) for r in (0, 3, 4)]],
        sources="ddiid",
        doubtful=(0.65, 0.7),
        warnings={BETWEEN},
    ),
    "L1/L2 missing above although the picture shows its place": Case(
        series=[FIVE[:4]], sources="idddd", doubtful=(0.3, 0.4), warnings={LOW, BETWEEN}
    ),
    "L1/L2 is placed by the disc above it": Case(
        series=[[at(r) for r in (0, 1, 2, 3, 5)]],
        sources="idddd",
        doubtful=(0.6, 0.7),
        warnings={BETWEEN},
    ),
    "discs that are hardly seen": Case(
        series=[[at(r, heat=0.2) for r in range(5)]],
        surest=(0.4, 0.5),
        doubtful=(0.3, 0.4),
        warnings={LOW},
    ),
    "split evidence, sacrum in the picture": Case(
        series=[taken(*range(5), own=0.45, above=0.45)],
        surest=(0.75, 0.9),
        doubtful=(0.75, 0.9),
        warnings={TRANSITIONAL},
        other=(1, 0.1, 0.25),
    ),
    "split evidence, both ends cut": Case(
        series=[taken(*range(1, 5), own=0.5, above=0.5)],
        sources="ddddi",
        surest=(0.35, 0.5),
        doubtful=(0.12, 0.2),
        warnings={LOW, BETWEEN},
        other=(1, 0.45, 0.55),
        picture={"top_mm": 100, "bottom_mm": -60},
    ),
    "split evidence; no disc is seen above where the picture shows the place of one: named higher": Case(
        series=[taken(*range(4), own=0.5, above=0.5)],
        sources="ddddi",
        ends_mm=(38.0, -114.0),
        surest=(0.65, 0.75),
        doubtful=(0.2, 0.3),
        warnings={LOW, BETWEEN},
        other=(-1, 0.1, 0.25),
        picture={"top_mm": 100, "bottom_mm": -87},
    ),
    "one series of two names the column one higher": Case(
        series=[
            taken(*range(6), own=0.97, above=0.01),
            taken(*range(6), own=0.05, above=0.9),
        ],
        doubtful=(0.95, 1.0),
        warnings={DISAGREE},
        other=(1, 0.001, 0.05),
    ),
    "one series of two names the column one lower": Case(
        series=[
            taken(*range(1, 7), own=0.97, below=0.01),
            taken(*range(1, 7), own=0.05, below=0.9),
        ],
        sources="ddddi",
        picture={"bottom_mm": -60},
        surest=(0.7, 0.85),
        doubtful=(0.25, 0.35),
        warnings={LOW, BETWEEN, DISAGREE},
        other=(-1, 0.05, 0.0999),
    ),
    "a series that does not know disagrees with nobody": Case(
        series=[FIVE, taken(*range(5), own=0.45, above=0.55)], doubtful=(0.9, 1.0)
    ),
    "a sacral disc below": Case(
        series=[[Seen(z=-106, y=10, tilt_deg=60, belief={-1: 0.9}, heat=0.4), *FIVE]],
        doubtful=(0.9, 1.0),
    ),
    "facet joints beside the column": Case(
        series=[[Seen(z=-57, y=30, belief={1: 0.9}, heat=0.5, slices=1), *FIVE]],
        doubtful=(0.9, 1.0),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_is_seen_gives(case: Case) -> None:
    detection = decoded(*case.series, **case.picture)
    assert detection is not None
    levels = detection.levels
    assert list(levels) == ["l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1"]
    assert "".join(entry.source[0] for entry in levels.values()) == case.sources
    heights = [entry.center_mm[2] for entry in levels.values()]
    np.testing.assert_allclose(heights, np.linspace(*case.ends_mm, 5), atol=0.01)
    for entry in levels.values():
        np.testing.assert_allclose(entry.center_mm[:2], 0, atol=0.01)
        np.testing.assert_allclose(entry.axes, FRAME, atol=1e-9)
    confidences = [entry.confidence for entry in levels.values()]
    assert case.surest[0] <= max(confidences) <= case.surest[1]
    assert case.doubtful[0] <= min(confidences) <= case.doubtful[1]
    assert detection.warnings == tuple(sorted(case.warnings))
    if case.other is None:
        assert detection.alternative is None
        return
    assert detection.alternative is not None
    shift, least, most = case.other
    assert detection.alternative.shift == shift
    assert least <= detection.alternative.probability <= most
    assert detection.alternative.probability == round(
        detection.alternative.probability, 6
    )
    assert list(detection.alternative.levels) == list(Level)
    others = [entry.center_mm[2] for entry in detection.alternative.levels.values()]
    step = (case.ends_mm[0] - case.ends_mm[1]) / 4
    np.testing.assert_allclose(
        others, np.array(heights) - step * shift, atol=0.01
    )  # one higher: names go one down


@pytest.mark.parametrize(
    "discs",
    [
        [],
        [at(r, heat=0.1) for r in range(5)],
        [at(r, heat=0.119) for r in range(5)],
        [at(r, heat=0.05) for r in range(2)],
    ],
    ids=["nothing", "noise", "just below 0.12", "fainter than anything"],
)
def test_a_column_of_noise_is_not_labelled(discs: list[Seen]) -> None:
    assert decoded(discs) is None


def test_a_column_whose_best_disc_peaks_just_above_noise_is_labelled() -> None:
    detection = decoded([at(0, heat=0.121), *(at(r, heat=0.1) for r in range(1, 5))])
    assert detection is not None
    assert detection.levels[Level.L5_S1].source == "detector"
    assert detection.levels[Level.L5_S1].confidence < 0.121 / 0.4


def test_a_picture_of_the_thoracic_spine_alone_has_no_level() -> None:
    thoracic = [at(r, belief={r: 0.98}) for r in (6, 7, 8)]
    options = DetectionOptions(labelling=LabellingOptions(level_fade=100.0))
    assert decoded(thoracic, bottom_mm=130, top_mm=260, options=options) is None
    one_lumbar = [at(4, belief={4: 0.98}), *thoracic]
    detection = decoded(one_lumbar, bottom_mm=60, top_mm=260, options=options)
    assert detection is not None
    assert detection.levels[Level.L1_L2].source == "detector"


def test_without_the_sacrum_every_disc_keeps_85_hundredths_of_its_confidence() -> None:
    # L5/S1 lies at -76; 5 mm below it, and 10 mm more that may be cut, must lie in the picture
    inside, outside = (decoded(FIVE, bottom_mm=bottom) for bottom in (-91.5, -90.5))
    assert inside is not None
    assert outside is not None
    for level in Level:
        ratio = outside.levels[level].confidence / inside.levels[level].confidence
        assert ratio == pytest.approx(0.85, abs=0.01), level


def test_the_sacrum_is_looked_for_below_where_l5_s1_must_lie() -> None:
    upper = [at(r) for r in (2, 3, 4)]  # L5/S1 is then 70 mm below L3/L4, the sacrum 75
    inside, outside = (decoded(upper, bottom_mm=bottom) for bottom in (-86, -84))
    assert inside is not None
    assert outside is not None
    assert outside.levels[Level.L3_L4].confidence / inside.levels[
        Level.L3_L4
    ].confidence == pytest.approx(0.85, 0.02)


def test_confidence_falls_with_a_peak_below_04_and_no_further_up() -> None:
    bright, clear, half = (
        decoded([at(r, heat=heat) for r in range(5)]) for heat in (0.95, 0.7, 0.2)
    )
    assert bright is not None
    assert clear is not None
    assert half is not None
    middle = Level.L4_L5
    assert bright.levels[middle].confidence == pytest.approx(
        clear.levels[middle].confidence, abs=0.02
    )
    assert (
        0.44 < half.levels[middle].confidence < 0.5
    )  # half of 0.4 is left of a posterior of nearly 1


def test_a_level_just_below_an_even_chance_is_low_confidence() -> None:
    for heat, low in ((0.26, False), (0.25, True)):
        detection = decoded([at(r, heat=heat) for r in range(5)])
        assert detection is not None
        least = min(entry.confidence for entry in detection.levels.values())
        assert (least < 0.5) == low, least
        assert (Warn.LOW_CONFIDENCE in detection.warnings) == low
        assert abs(least - 0.5) < 0.03


def test_the_boxes_have_the_size_asked_for() -> None:
    plain, small = (
        decoded(FIVE),
        decoded(FIVE, options=DetectionOptions(box_mm=(10.0, 20.0, 30.0))),
    )
    assert plain is not None
    assert small is not None
    assert [entry.size_mm.tolist() for entry in plain.levels.values()] == [
        [40, 96, 96]
    ] * 5
    assert [entry.size_mm.tolist() for entry in small.levels.values()] == [
        [10, 20, 30]
    ] * 5


BODIES = [Seen(z=38 * (r - 2) + 19, belief={}, heat=0.6) for r in range(6)]


def test_bodies_between_two_discs_are_named_from_above() -> None:
    detection = decoded(SEVEN, bodies=BODIES)
    assert detection is not None
    assert [(body.name, round(body.center_mm[2])) for body in detection.vertebrae] == [
        ("t12", 133),
        ("l1", 95),
        ("l2", 57),
        ("l3", 19),
        ("l4", -19),
        ("l5", -57),
    ]
    below = (
        detection.levels[Level.L5_S1].confidence,
        detection.levels[Level.L4_L5].confidence,
    )
    assert detection.vertebrae[-1].confidence == pytest.approx(min(below), abs=2e-6)


def test_a_body_counts_only_within_12_mm_of_the_middle_between_its_discs() -> None:
    for away_mm, named in ((11.5, ["l5"]), (12.5, [])):
        detection = decoded(FIVE, bodies=[Seen(z=-57, y=away_mm, belief={}, heat=0.6)])
        assert detection is not None
        assert [body.name for body in detection.vertebrae] == named


def test_of_two_bodies_the_nearer_is_taken_and_a_faint_one_is_less_sure() -> None:
    detection = decoded(
        FIVE,
        bodies=[
            Seen(z=-48, y=9, belief={}, heat=0.9),
            Seen(z=-57, y=-5, belief={}, heat=0.1),
        ],
    )
    assert detection is not None
    (body,) = detection.vertebrae
    np.testing.assert_allclose(body.center_mm, (0, -5, -57), atol=1e-9)
    least = min(
        detection.levels[level].confidence for level in (Level.L5_S1, Level.L4_L5)
    )
    assert body.confidence == pytest.approx(least * 0.1 / 0.4, abs=2e-6)


def test_no_body_is_named_where_a_disc_between_is_missing() -> None:
    detection = decoded([at(r) for r in (0, 1, 3, 4)], bodies=BODIES)
    assert detection is not None
    assert [body.name for body in detection.vertebrae] == ["l2", "l5"]
