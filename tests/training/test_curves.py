"""The curves of a training: every epoch of every figure, on the training data and held out."""

import csv

import numpy as np
import pytest

from spine_training.curves import (
    LEARNING_RATE,
    curves_figure,
    write_picture,
    write_table,
)

NAMES = (
    "epoch",
    "loss",
    "grading",
    "exact",
    "held_out_grading",
    "metric",
    "prior",
    "seconds",
)
GRADER = [
    dict(zip(NAMES, row, strict=True))
    for row in (
        (1.0, 3.0, 1.2, 0.0, 1.3, 1.1, 0.79, 9.0),
        (2.0, 2.0, 0.8, 0.0, 0.9, 0.7, 0.79, 8.0),
        (3.0, 1.0, 0.6, 0.0, 0.8, 0.6, 0.79, 8.0),
    )
]


def panels(figure):
    return {axes.get_title("left"): axes for axes in figure.axes}


def values(axes):
    return [line.get_ydata().tolist() for line in axes.lines if len(line.get_xdata())]


@pytest.fixture(autouse=True)
def matplotlib():
    return pytest.importorskip("matplotlib")


def test_every_figure_has_a_panel_with_its_epochs():
    drawn = panels(curves_figure(GRADER))
    assert list(drawn) == ["Loss", "Grading", "Official metric"]
    assert drawn["Loss"].lines[0].get_xdata().tolist() == [1, 2, 3]
    assert values(drawn["Loss"]) == [[3.0, 2.0, 1.0]]
    assert values(drawn["Grading"]) == [[1.2, 0.8, 0.6], [1.3, 0.9, 0.8]]
    assert values(drawn["Official metric"])[:2] == [[1.1, 0.7, 0.6], [0.79, 0.79, 0.79]]
    assert "prior 0.79" in [text.get_text() for text in drawn["Official metric"].texts]
    assert "weighted log loss: 0.6, held out 0.8" in [
        text.get_text() for text in drawn["Grading"].texts
    ]


def test_held_out_differs_in_line_and_marker_not_only_in_colour():
    training, held_out = panels(curves_figure(GRADER))["Grading"].lines
    assert training.get_linestyle() != held_out.get_linestyle()
    assert training.get_marker() != held_out.get_marker()


def test_held_out_is_in_the_legend_where_it_is_drawn():
    def legend(history):
        return [text.get_text() for text in curves_figure(history).legends[0].texts]

    assert legend(GRADER) == ["training", "held out"]
    assert legend([{"epoch": 1.0, "loss": 1.0}]) == ["training"]


def test_an_epoch_that_lacks_a_figure_leaves_a_gap():
    """A training that an older version began has no learning rate for its first epochs; a loss may not be finite."""
    later = [*GRADER[:2], {**GRADER[2], LEARNING_RATE: 0.002, "loss": float("inf")}]
    drawn = panels(curves_figure(later))
    assert list(drawn)[-1] == "Learning rate"
    assert np.isnan(values(drawn["Learning rate"])[0]).tolist() == [True, True, False]
    assert np.isnan(values(drawn["Loss"])[0]).tolist() == [False, False, True]


def test_a_figure_without_words_keeps_its_name():
    assert list(panels(curves_figure([{"epoch": 1.0, "loss": 1.0, "dice": 0.5}]))) == [
        "Loss",
        "dice",
    ]


def test_the_first_epoch_alone_has_its_tick():
    drawn = curves_figure(GRADER[:1])
    assert drawn.get_suptitle() == "Training, 1 epoch"
    low, high = drawn.axes[0].get_xlim()
    assert [tick for tick in drawn.axes[0].get_xticks() if low <= tick <= high] == [1]


def test_table_and_picture_hold_the_same_rows(tmp_path):
    write_table(tmp_path / "curves.csv", GRADER)
    with (tmp_path / "curves.csv").open() as file:
        rows = [
            {name: float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]
    assert rows == GRADER
    write_picture(tmp_path / "one.svg", GRADER)
    write_picture(tmp_path / "two.svg", rows)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert "Training, 3 epochs" in (tmp_path / "one.svg").read_text()


def test_a_table_that_is_cut_off_while_it_is_written_leaves_the_earlier_one_whole(
    tmp_path,
):
    path = tmp_path / "curves.csv"
    write_table(path, GRADER[:2])
    before = path.read_text()
    with pytest.raises(ValueError, match="format"):
        write_table(path, [*GRADER, {**GRADER[2], "loss": "not a number"}])
    assert path.read_text() == before
    write_table(path, GRADER)
    assert len(path.read_text().splitlines()) == 4
    assert [file.name for file in tmp_path.iterdir()] == ["curves.csv"]
