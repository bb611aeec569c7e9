"""The pictures of ``evaluate`` show what the report holds."""

import sys

import numpy as np
import pytest
from test_evaluate_command import called, invoked, small  # noqa: F401 - a fixture
from test_evaluate_report import made

from spine_training.drawing import write_svg
from spine_training.evaluation import pictures
from spine_training.evaluation.pictures import (
    FEW_ROWS,
    confusion_figure,
    levels_figure,
    reliability_figure,
    scores_figure,
)
from spine_training.evaluation.report import FIGURES, compare_arrays, evaluate_arrays
from spine_training.metric import MISSING

NAMES = {
    "scores.svg",
    "levels.svg",
    "confusion.svg",
    "reliability.svg",
    "reliability-unweighted.svg",
}


@pytest.fixture(scope="module")
def reports():
    pytest.importorskip("matplotlib")
    right, grades = made(60, 3)
    grades[:, 0, 0] = MISSING
    sharp, _ = made(60, 3, sharpness=2.0)
    first, second = (
        evaluate_arrays(rows, grades, resamples=100, seed=0) for rows in (right, sharp)
    )
    return first, second, compare_arrays(right, sharp, grades, resamples=100, seed=0)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def titled(figure, column, row):
    """The panel of a reliability figure, and the one of its rows below."""
    return figure.axes[6 * row + column], figure.axes[6 * row + 3 + column]


def points(line):
    """The points of a line that are drawn."""
    x, y = np.array(line.get_data(), float)
    return {(x, y) for x, y in zip(x, y, strict=True) if np.isfinite(x + y)}


@pytest.mark.parametrize("weighed", [True, False])
def test_a_reliability_curve_is_that_of_the_report(reports, weighed):
    report, other, _ = reports
    drawn = reliability_figure(report, other, weighed=weighed)
    kind, error = (
        ("reliability", "calibration_error")
        if weighed
        else ("reliability_unweighted", "calibration_error_unweighted")
    )
    some_are_few = False
    for column, (name, group) in enumerate(report.groups.items()):
        others = other.groups[name]
        for row, (curves, theirs) in enumerate(
            [
                (group, others),
                *zip(group.cuts.values(), others.cuts.values(), strict=True),
            ]
        ):
            upper, lower = titled(drawn, column, row)
            diagonal, *lines = upper.lines
            assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
            for k, one in enumerate((curves, theirs)):
                bins = getattr(one, kind)
                many = {(b.confidence, b.observed) for b in bins if b.rows >= FEW_ROWS}
                few = {(b.confidence, b.observed) for b in bins if b.rows < FEW_ROWS}
                some_are_few |= bool(few)
                assert points(lines[2 * k]) == many
                assert points(lines[2 * k + 1]) == few
                assert lines[2 * k + 1].get_markerfacecolor() == "#ffffff"
                assert lower.patches[k].get_data().values.sum() == sum(
                    b.rows for b in bins
                )
                assert max(b.rows for b in bins) < lower.get_ylim()[1]
            assert (
                f"error {getattr(curves, error):.3f}, other {getattr(theirs, error):.3f}"
                in texts(upper)
            )
            assert upper.get_title("left") == name.capitalize()
    assert some_are_few


def test_the_two_cuts_are_drawn_under_their_own_names(reports):
    drawn = reliability_figure(reports[0])
    labels = [
        axes.get_ylabel()
        for axes in drawn.axes
        if axes.get_ylabel() not in ("", "rows")
    ]
    assert labels == ["share it was right", "share moderate or severe", "share severe"]
    assert "calibration error" in texts(drawn.axes[0])[0]


def test_a_confusion_matrix_holds_counts_and_shares_as_text(reports):
    report, *_ = reports
    drawn = confusion_figure(report)
    for axes, group in zip(drawn.axes, report.groups.values(), strict=True):
        counts = np.array(group.confusion)
        wanted = [
            f"{count}\n{count / row.sum():.0%}" for row in counts for count in row
        ]
        assert [text for text in texts(axes) if "\n" in text] == wanted
        colours = axes.collections[0].get_array()
        assert colours.ravel().tolist() == pytest.approx(
            (counts / counts.sum(axis=1, keepdims=True)).ravel()
        )
        assert (
            f"{np.trace(counts) / counts.sum():.1%} right of {counts.sum()} rows"
            in texts(axes)
        )
        assert axes.yaxis_inverted(), "normal or mild is the first row"


def test_cell_text_is_read_on_its_colour(reports):
    """At least 4.5 to 1, as WCAG asks of small text."""

    def luminance(colour):
        rgb = np.array(colour[:3])
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (
            0.2126,
            0.7152,
            0.0722,
        )

    from matplotlib.colors import to_rgb

    for axes in (*confusion_figure(reports[0]).axes, *levels_figure(reports[0]).axes):
        mesh = axes.collections[0]
        mesh.update_scalarmappable()
        cells = [text for text in axes.texts if "\n" in text.get_text()]
        for text, colour in zip(cells, mesh.get_facecolors(), strict=True):
            assert colour[3] == 1, "no label is white, not see-through"
            low, high = sorted((luminance(to_rgb(text.get_color())), luminance(colour)))
            assert (high + 0.05) / (low + 0.05) >= 4.5


def test_levels_show_losses_and_labels(reports):
    report, *_ = reports
    (axes,) = levels_figure(report).axes
    shown = texts(axes)
    assert shown[0].startswith("no label\n0/0/0")
    assert shown[1:] == [
        f"{c.log_loss:.3f}\n{'/'.join(map(str, c.labels))}" for c in report.cells[1:]
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "L1/L2",
        "L2/L3",
        "L3/L4",
        "L4/L5",
        "L5/S1",
    ]


def test_scores_have_their_intervals_and_floors(reports):
    report, other, comparison = reports
    drawn = scores_figure(report, comparison, other)
    scores, differences = drawn.axes
    whiskers = [
        segment for each in scores.containers for segment in each[2][0].get_segments()
    ]
    wanted = [
        (e.low, e.high)
        for each in (report, other)
        for e in (each.scores[name] for name in FIGURES)
    ]
    assert np.array(whiskers)[..., 0] == pytest.approx(np.array(wanted))
    assert f"{report.scores['metric'].value:.3f}" in texts(scores)
    prior = next(line for line in scores.lines if line.get_label() == "weighted prior")
    assert prior.get_xdata().tolist() == [
        getattr(report.prior, name) for name in FIGURES
    ]
    assert f"{comparison['metric'].difference.value:+.3f}" in texts(differences)
    assert f"better in {comparison['metric'].first_better:.1%}" in texts(differences)
    assert [t.get_text() for t in drawn.legends[0].texts][:2] == [
        "these predictions",
        "the other (--against)",
    ]
    assert len(scores_figure(report).axes) == 1


def test_out_gets_the_pictures_the_same_every_time(small, tmp_path, monkeypatch):  # noqa: F811
    """The reliability pictures take longest to write: they are seen below, and written in the slow test."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(
        pictures, "reliability_figure", lambda report, *_, **__: levels_figure(report)
    )
    options, probabilities, grades, _ = small
    said = invoked(*options, "--out", tmp_path / "out")
    assert all(name in said.stdout.replace("\n", "") for name in NAMES)
    assert said.stderr == ""
    assert {path.name for path in (tmp_path / "out").glob("*.svg")} == NAMES
    report = evaluate_arrays(probabilities, grades, resamples=100, seed=0)
    for draw, name in (
        (confusion_figure, "confusion.svg"),
        (scores_figure, "scores.svg"),
    ):
        write_svg(draw(report), tmp_path / name)
        assert (tmp_path / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


TITLES = {
    "scores.svg": "Official metric and its parts",
    "levels.svg": "Weighted log loss by condition and level",
    "confusion.svg": "Most probable grade by true grade: rows",
    "reliability.svg": "as the metric weighs rows: 1 / 2 / 4 by true grade",
    "reliability-unweighted.svg": "unweighted: the chances of the grades",
}


def test_every_picture_has_its_name_and_the_other_file_if_compared(
    small,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    pytest.importorskip("matplotlib")
    options, *_ = small
    drawn = {}
    monkeypatch.setattr(
        pictures, "write_svg", lambda made, path: drawn.update({path: made})
    )
    called(
        *options, "--against", tmp_path / "predictions.csv", "--out", tmp_path / "out"
    )
    titles = {
        path.name: made.get_suptitle().removeprefix("Reliability, ")
        for path, made in drawn.items()
    }
    assert {name: title.split(", ")[0] for name, title in titles.items()} == TITLES
    assert {path.parent for path in drawn} == {tmp_path / "out"}
    compared = {
        path.name
        for path, made in drawn.items()
        for legend in made.legends
        if "the other (--against)" in [text.get_text() for text in legend.texts]
    }
    assert compared == {"scores.svg", "reliability.svg", "reliability-unweighted.svg"}


@pytest.mark.slow
def test_against_puts_the_other_file_into_the_pictures(small, tmp_path):  # noqa: F811
    pytest.importorskip("matplotlib")
    options, *_ = small
    called(
        *options, "--against", tmp_path / "predictions.csv", "--out", tmp_path / "out"
    )
    for name in ("scores.svg", "reliability.svg", "reliability-unweighted.svg"):
        assert "the other (--against)" in (tmp_path / "out" / name).read_text()


def test_without_matplotlib_the_numbers_are_written_and_it_is_said(
    small,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    options, *_ = small
    whole = called(*options, "--json")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scores.svg").write_text("of an earlier report")
    said = called(*options, "--out", tmp_path / "out")
    assert said.count("no pictures: matplotlib is not installed; pip install") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.json",
        "confusion.csv",
        "reliability.csv",
    }
    assert (tmp_path / "out" / "report.json").read_text() == whole
