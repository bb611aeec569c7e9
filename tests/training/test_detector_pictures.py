"""The picture of a detector's localisation shows what its figures count."""

import numpy as np
import pytest

from spine_engine.errors import UsageError
from spine_training.detector.figures import ALL, HIT_MM, Row, figures
from spine_training.detector.pictures import (
    localisation_figure,
    outcome_of,
    write_picture,
)

LEVELS = ("l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1")


@pytest.fixture
def rows():
    """Forty exams; one in ten is shifted by a level, one in ten has its L1/L2 beside; L5/S1 of the last is weak."""
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    made = []
    for k in range(40):
        for level in LEVELS:
            error = nearest = float(rng.lognormal(0.5, 0.4))
            if k % 10 == 3:
                error = nearest + 33
            if k % 10 == 7 and level == "l1_l2":
                error = nearest = 12.0
            made.append(
                Row(
                    f"e{k}",
                    "A",
                    "T2",
                    level,
                    error,
                    nearest,
                    0.95,
                    "detector",
                    weak=False,
                )
            )
    made.append(Row("e40", "A", "T2", "l5_s1", 50.0, 50.0, 0.95, "detector", weak=True))
    return made


def lines(axes):
    return {
        line.get_label(): line
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def test_hits_and_misses_are_those_of_the_figures(rows):
    _, levels, _ = localisation_figure(rows).axes
    counts = {
        bars.get_label(): [bar.get_width() for bar in bars]
        for bars in levels.containers
    }
    assert counts == {
        "right": [32, 36, 36, 36, 36],
        "shifted": [4] * 5,
        "beside": [4, 0, 0, 0, 0],
    }
    assert [text.get_text() for text in levels.texts][:2] == [
        "32 right, 4 shifted, 4 beside",
        "36 right, 4 shifted",
    ]
    total = next(entry for entry in figures(rows) if entry.group == ALL)
    assert sum(counts["shifted"]) == total.shifted
    assert sum(counts["right"]) == pytest.approx(total.right * total.discs)
    hatches = {bars[0].get_hatch() for bars in levels.containers}
    assert len(hatches) == 3, "colour is not the only carrier"


def test_outcomes():
    near, far = HIT_MM, HIT_MM + 0.1
    made = [
        Row("e", "A", "", "l1_l2", error, nearest, 1.0, "", weak=False)
        for error, nearest in ((near, near), (far, near), (far, far))
    ]
    assert [outcome_of(row) for row in made] == ["right", "shifted", "beside"]


def test_cumulative_shares_are_exact(rows):
    *_, shares = localisation_figure(rows).axes
    drawn = lines(shares)
    assert list(drawn) == [
        "all: 88.0%",
        "L1/L2: 80.0%",
        *(f"{n}: 90.0%" for n in ("L2/L3", "L3/L4", "L4/L5", "L5/S1")),
    ]
    errors = np.array([row.error_mm for row in rows if not row.weak])
    within, share = drawn["all: 88.0%"].get_data()
    assert share == pytest.approx([(errors <= x).mean() for x in within])
    assert share[-1] == 1
    own = np.array([row.error_mm for row in rows if row.level == "l1_l2"])
    within, share = drawn["L1/L2: 80.0%"].get_data()
    assert share == pytest.approx([(own <= x).mean() for x in within])


def test_boxes_are_the_percentiles_of_each_level(rows):
    errors, *_ = localisation_figure(rows).axes
    medians = [line for line in errors.lines if line.get_linewidth() == 1.8]
    for level, line in zip(LEVELS, medians, strict=True):
        own = [row.error_mm for row in rows if row.level == level and not row.weak]
        assert line.get_xdata()[0] == pytest.approx(np.median(own))
    assert [label.get_text() for label in errors.get_yticklabels()] == [
        "L1/L2",
        "L2/L3",
        "L3/L4",
        "L4/L5",
        "L5/S1",
    ]
    assert errors.get_ylim()[0] > errors.get_ylim()[1], "L1/L2 is above"


def test_a_level_without_discs_stays_empty(rows, tmp_path):
    write_picture(tmp_path / "some.svg", [row for row in rows if row.level != "l3_l4"])
    text = (tmp_path / "some.svg").read_text()
    assert "Localisation of 160 discs of 40 exams" in text
    assert "L3/L4:" not in text


def test_nothing_to_draw_is_said(rows):
    with pytest.raises(UsageError, match="no disc to draw"):
        localisation_figure([row for row in rows if row.weak])
