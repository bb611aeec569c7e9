"""A report as pictures: scores with their intervals, log loss by level, confusion, reliability.

Every amount that a colour shows stands there as text too, and two predictions differ in marker and line as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from spine_engine.anatomy import CONDITIONS, LEVELS
from spine_training.arrays import F64
from spine_training.drawing import (
    FAINT,
    FIRST,
    GRID,
    INK,
    LOW_TO_HIGH,
    SECOND,
    THIRD,
    figure,
    level_label,
    panel_title,
    write_svg,
)
from spine_training.evaluation.reliability import BINS, Bin
from spine_training.evaluation.report import (
    FIGURES,
    Curves,
    Difference,
    Estimate,
    Report,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES: Final = (
    "scores.svg",
    "levels.svg",
    "confusion.svg",
    "reliability.svg",
    "reliability-unweighted.svg",
)
"""The files of a report's pictures."""

FEW_ROWS: Final = 10
"""A bin with fewer rows is drawn hollow: its share is known to no better than 0.3 (95 % interval of one half)."""

_GRADES: Final = ("normal/\nmild", "moderate", "severe")
_OUTCOMES: Final = {
    "most_probable": ("probability of the likeliest grade", "share it was right"),
    "at_least_moderate": ("P(moderate or severe)", "share moderate or severe"),
    "severe": ("P(severe)", "share severe"),
}
"""Labels of the two axes of each predicted outcome."""

_WEIGHED: Final = "Reliability, as the metric weighs rows: 1 / 2 / 4 by true grade"
_UNWEIGHTED: Final = "Reliability, unweighted: the chances of the grades"
_MINE: Final[dict[str, Any]] = {
    "color": FIRST,
    "marker": "o",
    "linestyle": "-",
}
_THEIRS: Final[dict[str, Any]] = {
    "color": SECOND,
    "marker": "s",
    "linestyle": "--",
}
_HOLLOW: Final[dict[str, Any]] = {"linestyle": "", "markerfacecolor": "#ffffff"}
_RIGHT: Final[dict[str, Any]] = {
    "color": THIRD,
    "linewidth": 1,
    "linestyle": ":",
}
_NAMES: Final = ("these predictions", "the other (--against)")


def write_pictures(
    folder: Path,
    report: Report,
    other: Report | None = None,
    comparison: Mapping[str, Difference] | None = None,
) -> tuple[str, ...]:
    """Write the pictures of a report, and of the other one that it is compared with; return the names of the files.

    Raises:
        NoMatplotlibError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    pictures = (
        scores_figure(report, comparison, other),
        levels_figure(report),
        confusion_figure(report),
        reliability_figure(report, other),
        reliability_figure(report, other, weighed=False),
    )
    for name, drawn in zip(PICTURES, pictures, strict=True):
        write_svg(drawn, folder / name)
    return PICTURES


def scores_figure(
    report: Report,
    comparison: Mapping[str, Difference] | None = None,
    other: Report | None = None,
) -> Figure:
    """Draw the metric and its parts with their intervals and floors; beside them the differences from another file."""
    title = f"Official metric and its parts, {report.studies} studies, {report.labels} labels (lower is better)"
    with figure(2.9, title) as drawn:
        panels = drawn.subplots(
            1,
            1 if comparison is None else 2,
            sharey=True,
            squeeze=False,
        )[0]
        axes, places = panels[0], np.arange(len(FIGURES))
        files = [each for each in (report, other) if each is not None]
        for each, look, label, shift in zip(
            files, (_MINE, _THEIRS), _NAMES, (-0.17, 0.17), strict=False
        ):
            estimates = [each.scores[name] for name in FIGURES]
            _whiskers(
                axes,
                estimates,
                places + (shift if other else 0),
                look["color"],
                look["marker"],
                label,
            )
        for floor, marker, label in (
            (report.prior, "D", "weighted prior"),
            (report.uniform, "x", "1/3, 1/3, 1/3"),
        ):
            values = [getattr(floor, name) for name in FIGURES]
            axes.plot(
                values,
                places,
                linestyle="",
                color=THIRD,
                marker=marker,
                label=label,
            )
        axes.set_yticks(places, [_words(name) for name in FIGURES])
        axes.set(
            ylim=(len(FIGURES) - 0.5, -0.6),
            xlim=(0, None),
            xlabel="weighted log loss, 95 % interval",
        )
        if comparison is not None:
            _differences(panels[1], comparison, places)
        for panel in panels:
            panel.grid(axis="x")
            panel.tick_params(axis="y", length=0)
            panel.locator_params(
                axis="x",
                nbins=6 if len(panels) == 1 else 5,
            )
        handles, labels = axes.get_legend_handles_labels()
        order = np.roll(range(len(labels)), len(files))  # lines come before error bars
        drawn.legend(
            [handles[k] for k in order],
            [labels[k] for k in order],
            loc="outside lower left",
            ncols=4,
        )
    return drawn


def levels_figure(report: Report) -> Figure:
    """Draw the weighted log loss of every condition and level, with its labels per grade."""
    with figure(3.3, "Weighted log loss by condition and level") as drawn:
        axes = drawn.subplots()
        shape = (len(CONDITIONS), len(LEVELS))
        losses = np.array(
            [
                np.nan if cell.log_loss is None else cell.log_loss
                for cell in report.cells
            ]
        ).reshape(shape)
        texts = [
            ("no label" if cell.log_loss is None else f"{cell.log_loss:.3f}")
            + "\n"
            + "/".join(map(str, cell.labels))
            for cell in report.cells
        ]
        top = max(1.0, float(np.nanmax(losses)))
        _matrix(
            axes,
            losses / top,
            np.reshape(texts, shape),
        )
        axes.set_xticks(
            _middles(len(LEVELS)),
            [level_label(level) for level in LEVELS],
        )
        axes.set_yticks(
            _middles(len(CONDITIONS)),
            [_words(name.rpartition("_")[0]) for name in CONDITIONS],
        )
        axes.set_xlabel(
            f"log loss (white 0, darkest {top:.2g}); labels: normal or mild/moderate/severe"
        )
    return drawn


def confusion_figure(report: Report) -> Figure:
    """Draw the confusion of every condition group: counts, and shares of each true grade."""
    with figure(
        2.75, "Most probable grade by true grade: rows, and share of the true grade"
    ) as drawn:
        for axes, (name, group) in zip(
            drawn.subplots(1, len(report.groups)), report.groups.items(), strict=True
        ):
            counts = np.array(group.confusion)
            shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            texts = [
                [f"{count}\n{share:.0%}" for count, share in zip(*row, strict=True)]
                for row in zip(counts, shares, strict=True)
            ]
            _matrix(axes, shares, np.array(texts))
            axes.set_xticks(_middles(3), _GRADES)
            axes.set_yticks(
                _middles(3),
                _GRADES if name == next(iter(report.groups)) else [""] * 3,
            )
            right = np.trace(counts) / counts.sum()
            panel_title(
                axes,
                _words(name),
                f"{right:.1%} right of {counts.sum()} rows",
            )
        drawn.axes[0].set_ylabel("true grade")
        drawn.axes[1].set_xlabel("most probable grade")
    return drawn


def reliability_figure(
    report: Report,
    other: Report | None = None,
    *,
    weighed: bool = True,
) -> Figure:
    """Draw what was predicted against what came true, per outcome and condition group, over how many rows a bin has.

    Args:
        report: report of the predictions.
        other: report of the predictions that they are compared with.
        weighed: weigh rows as the metric does; False: all alike, the weights divided out of the probabilities.
    """
    with figure(8.4, _WEIGHED if weighed else _UNWEIGHTED) as drawn:
        names = list(report.groups)
        heights = [4.0, 1.2] * len(_OUTCOMES)
        panels = drawn.subplots(
            len(heights),
            len(names),
            sharex=True,
            sharey="row",
            height_ratios=heights,
        )
        for row, (outcome, (predicted, came_true)) in enumerate(_OUTCOMES.items()):
            largest = 1
            for column, name in enumerate(names):
                upper, lower = panels[2 * row, column], panels[2 * row + 1, column]
                files = [
                    _curves(one, name, outcome)
                    for one in (report, other)
                    if one is not None
                ]
                largest = max(largest, _reliability(upper, lower, files, weighed))
                errors = [
                    c.calibration_error if weighed else c.calibration_error_unweighted
                    for c in files
                ]
                note = (
                    "calibration error {:.3f}"
                    if other is None
                    else "error {:.3f}, other {:.3f}"
                )
                panel_title(
                    upper,
                    _words(name),
                    note.format(*errors),
                )
            panels[2 * row, 0].set_ylabel(came_true)
            _decades(panels[2 * row + 1, 0], largest)
            panels[2 * row + 1, len(names) // 2].set_xlabel(predicted)
        drawn.align_ylabels()
        handles = [
            upper.plot([], [], label=label, **look)[0]
            for label, look in _legend(other is not None)
        ]
        drawn.legend(
            handles=handles,
            loc="outside lower left",
            ncols=4,
        )
    return drawn


def _whiskers(
    axes: Axes,
    estimates: Sequence[Estimate],
    places: Any,
    color: str,
    marker: str,
    label: str | None = None,
) -> None:
    """Draw values with their intervals."""
    values = np.array([each.value for each in estimates])
    around = [
        values - [each.low for each in estimates],
        [each.high for each in estimates] - values,
    ]
    axes.errorbar(
        values,
        places,
        xerr=around,
        fmt=marker,
        color=color,
        markersize=4,
        elinewidth=1.4,
        label=label,
    )
    for place, each in zip(places, estimates, strict=True):
        sign = "+" if label is None else ""
        _beside(
            axes,
            f"{each.value:{sign}.3f}",
            each.high,
            place,
        )


def _beside(
    axes: Axes,
    text: str,
    x: float,
    y: float,
) -> None:
    axes.annotate(
        text,
        (x, y),
        (5, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
    )


def _differences(axes: Axes, comparison: Mapping[str, Difference], places: Any) -> None:
    """Draw first minus second; left of zero the first is better."""
    axes.axvline(
        0,
        color=FAINT,
        linewidth=1,
    )
    _whiskers(
        axes,
        [comparison[name].difference for name in FIGURES],
        places,
        INK,
        "o",
    )
    for place, name in zip(places, FIGURES, strict=True):
        row = comparison[name]
        axes.annotate(
            f"better in {row.first_better:.1%}",
            (row.difference.value, place),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=FAINT,
        )
    axes.margins(x=0.25)
    axes.set_xlabel("difference (below 0: these are better)")


def _matrix(axes: Axes, shares: Any, texts: Any) -> None:
    """Draw cells coloured by ``shares`` in 0 .. 1 (NaN: left white), their text in whichever ink is read on it."""
    from matplotlib.colors import LinearSegmentedColormap

    shares = np.nan_to_num(shares)
    colours = LinearSegmentedColormap.from_list("amount", LOW_TO_HIGH)
    axes.pcolormesh(
        shares,
        cmap=colours,
        vmin=0,
        vmax=1,
        edgecolors=GRID,
        linewidth=0.7,
    )
    for (row, column), share in np.ndenumerate(shares):
        ink = (
            "#ffffff" if _luminance(colours(share)) < 0.179 else "#000000"
        )  # at least 4.5 to 1 either way
        axes.text(
            column + 0.5,
            row + 0.5,
            texts[row, column],
            ha="center",
            va="center",
            color=ink,
            linespacing=1.3,
        )
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _luminance(colour: Any) -> float:
    """Return the relative luminance of an sRGB colour (WCAG 2.2)."""
    rgb = np.asarray(colour)[:3]
    linear = np.where(
        rgb <= 0.04045,
        rgb / 12.92,
        ((rgb + 0.055) / 1.055) ** 2.4,
    )
    return float(linear @ (0.2126, 0.7152, 0.0722))


def _reliability(
    upper: Axes,
    lower: Axes,
    files: Sequence[Curves],
    weighed: bool,
) -> int:
    """Draw the curves of one or two files over the number of rows a bin has; return the largest number."""
    largest = 0
    upper.plot([0, 1], [0, 1], **_RIGHT)
    for curves, look in zip(files, (_MINE, _THEIRS), strict=False):
        curve = _by_bin(
            curves.reliability if weighed else curves.reliability_unweighted
        )
        many = curve["rows"] >= FEW_ROWS
        observed = curve["observed"]
        upper.plot(
            curve["confidence"],
            np.where(many, observed, np.nan),
            **look,
        )  # a gap where a bin has few rows
        upper.plot(
            curve["confidence"][~many],
            observed[~many],
            **{**look, **_HOLLOW},
        )
        largest = max(largest, int(curve["rows"].max()))
        edges = np.linspace(0, 1, BINS + 1)
        first = look is _MINE
        lower.stairs(
            curve["rows"],
            edges,
            fill=first,
            color=look["color"],
            alpha=0.55 if first else 1,
        )
    for axes in (upper, lower):
        axes.set(
            xlim=(-0.03, 1.03),
            xticks=[0, 0.5, 1],
            xticklabels=["0", "0.5", "1"],
        )
        axes.tick_params(length=0)
    upper.set(
        ylim=(-0.03, 1.03),
        yticks=[0, 0.5, 1],
        yticklabels=["0", "0.5", "1"],
    )
    upper.grid()
    lower.set_yscale("log")
    return largest


def _decades(axes: Axes, largest: int) -> None:
    """Label a logarithmic axis of rows by plain numbers."""
    ticks = [10**k for k in range(len(str(largest)))]
    axes.set(
        ylabel="rows",
        ylim=(0.7, 1.5 * largest),
        yticks=ticks,
        yticklabels=[str(tick) for tick in ticks],
    )
    axes.minorticks_off()


def _by_bin(curve: Sequence[Bin]) -> dict[str, F64]:
    """Return arrays over every bin for ``_reliability``; an empty bin has no rows, the rest NaN."""
    table = {
        "rows": np.zeros(BINS),
        "confidence": np.full(BINS, np.nan),
        "observed": np.full(BINS, np.nan),
    }
    for b in curve:
        for name, values in table.items():
            values[round(b.lower * BINS)] = getattr(b, name)
    return table


def _curves(report: Report, group: str, outcome: str) -> Curves:
    return report.groups[group].cuts.get(outcome, report.groups[group])


def _legend(compared: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    yield _NAMES[0], _MINE
    if compared:
        yield _NAMES[1], _THEIRS
    yield f"fewer than {FEW_ROWS} rows", {**_MINE, **_HOLLOW, "color": FAINT}
    yield "as it should be", _RIGHT


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _middles(count: int) -> list[float]:
    return [k + 0.5 for k in range(count)]
