"""Localisation of a detector as a picture: the error of every disc by level, the share within x mm, hits and misses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from spine_engine.anatomy import LEVELS
from spine_engine.errors import UsageError
from spine_training.arrays import F64
from spine_training.detector.figures import HIT_MM, Row
from spine_training.drawing import (
    FAINT,
    FIRST,
    INK,
    SECOND,
    THIRD,
    figure,
    level_label,
    panel_title,
    write_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXIS_MM: Final = (0.2, 100.0)
"""The logarithmic axis of errors: a pixel is 2 mm, the next level 35 mm away; what lies beyond is drawn at its ends."""

WHISKERS: Final = (5, 95)
"""Percentiles where a level's whiskers end."""

_STEPS: Final = 181
"""Distances at which the cumulative share is drawn: 20 to each doubling, 3 px apart in a picture of 600 px."""

_TICKS_MM: Final = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
_OUTCOMES: Final = {
    "right": (FIRST, ""),
    "shifted": (SECOND, "///"),
    "beside": (THIRD, "xxx"),
}
"""Colour and hatch of each outcome of a disc."""

_LINES: Final = (
    ("#0e464d", "-"),
    ("#1f6f78", "--"),
    ("#4a979c", "-."),
    ("#c2571a", ":"),
    ("#7a3510", (0, (5, 1, 1, 1))),
)
"""A line for each level, from L1/L2 down."""


def write_picture(path: Path, rows: Sequence[Row]) -> None:
    """Write the picture of a detector's rows.

    Raises:
        UsageError: there is no disc to draw, or matplotlib is not installed (``NoMatplotlibError``).
        OutputError: the file cannot be written.
    """
    write_svg(localisation_figure(rows), path)


def localisation_figure(rows: Sequence[Row]) -> Figure:
    """Draw all discs that count, as ``figures`` counts them: those of L5/S1 placed from L5 alone are left out.

    Raises:
        UsageError: there is no such disc, or matplotlib is not installed (``NoMatplotlibError``).
    """
    counted = [row for row in rows if not row.weak]
    if not counted:
        raise UsageError(
            "no disc to draw: no exam with a known disc was judged; name another --fold or more --data"
        )
    by_level = {
        str(level): [row for row in counted if row.level == level] for level in LEVELS
    }
    exams = len({row.exam for row in counted})
    with figure(
        5.6, f"Localisation of {len(counted)} discs of {exams} exams, by level"
    ) as drawn:
        grid = drawn.add_gridspec(
            2,
            2,
            width_ratios=(1.7, 1),
            height_ratios=(1.2, 1),
        )
        errors, outcomes = drawn.add_subplot(grid[0, 0]), drawn.add_subplot(grid[0, 1])
        shares = drawn.add_subplot(grid[1, :], sharex=errors)
        _errors(errors, by_level)
        _outcomes(outcomes, by_level)
        _shares(shares, counted, by_level)
    return drawn


def outcome_of(row: Row) -> str:
    """Return a disc's outcome: ``right``, ``shifted`` (another level's disc lies there) or ``beside`` (none does)."""
    if row.error_mm <= HIT_MM:
        return "right"
    return "shifted" if row.nearest_mm <= HIT_MM else "beside"


def _errors(axes: Axes, by_level: Mapping[str, Sequence[Row]]) -> None:
    """Draw the box of each level's errors, and every disc beyond its whiskers."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    drawn = {
        place: _errors_mm(discs)
        for place, discs in enumerate(by_level.values())
        if discs
    }
    thin = {"color": FAINT, "linewidth": 0.9}
    axes.boxplot(
        list(drawn.values()),
        positions=list(drawn),
        orientation="horizontal",
        whis=WHISKERS,
        widths=0.55,
        patch_artist=True,
        manage_ticks=False,
        boxprops={
            "facecolor": "#d3e6e6",
            "edgecolor": FIRST,
            "linewidth": 0.9,
        },
        medianprops={"color": INK, "linewidth": 1.8},
        whiskerprops=thin,
        capprops=thin,
        flierprops={
            "marker": ".",
            "markersize": 4,
            "markerfacecolor": FIRST,
            "markeredgewidth": 0,
        },
    )
    axes.axvline(
        HIT_MM,
        color=SECOND,
        linewidth=1,
        linestyle=":",
    )
    axes.set(xscale="log", xlim=AXIS_MM)
    axes.xaxis.set_major_locator(FixedLocator(_TICKS_MM))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in _TICKS_MM]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(
        range(len(by_level)),
        [level_label(level) for level in by_level],
    )
    axes.set(
        ylim=(len(by_level) - 0.4, -0.6),
        xlabel="distance from the true centre, mm",
    )
    axes.grid(axis="x")
    axes.tick_params(length=0)
    panel_title(
        axes,
        "Error",
        f"median, quartiles, {WHISKERS[0]} to {WHISKERS[1]} %, and every disc beyond",
    )


def _outcomes(axes: Axes, by_level: Mapping[str, Sequence[Row]]) -> None:
    """Draw how many discs are right, shifted and beside."""
    counts = {
        name: np.array(
            [
                sum(outcome_of(row) == name for row in discs)
                for discs in by_level.values()
            ]
        )
        for name in _OUTCOMES
    }
    left = np.zeros(len(by_level))
    for name, (colour, hatch) in _OUTCOMES.items():
        axes.barh(
            range(len(by_level)),
            counts[name],
            left=left,
            height=0.5,
            color=colour,
            hatch=hatch,
            label=name,
        )
        left += counts[name]
    for place in range(len(by_level)):
        text = ", ".join(
            f"{counts[name][place]} {name}" for name in _OUTCOMES if counts[name][place]
        )
        axes.annotate(
            text,
            (0, place),
            (0, 11),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set(
        ylim=(len(by_level) - 0.4, -0.6),
        yticks=[],
        xticks=[],
    )
    axes.spines[["bottom", "left"]].set_visible(False)
    panel_title(axes, "Level", f"right: within {HIT_MM:g} mm at its own level")
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(-0.04, 0.0),
        ncols=3,
        columnspacing=0.8,
        handlelength=1.2,
        handletextpad=0.4,
    )


def _shares(
    axes: Axes,
    rows: Sequence[Row],
    by_level: Mapping[str, Sequence[Row]],
) -> None:
    """Draw the cumulative share of discs within a distance, for each level and all."""
    _share(
        axes,
        _errors_mm(rows),
        f"all: {_within(rows):.1%}",
        INK,
        "-",
        2.2,
    )
    for (level, discs), (colour, line) in zip(by_level.items(), _LINES, strict=True):
        if discs:
            _share(
                axes,
                _errors_mm(discs),
                f"{level_label(level)}: {_within(discs):.1%}",
                colour,
                line,
                1.2,
            )
    axes.axvline(
        HIT_MM,
        color=SECOND,
        linewidth=1,
        linestyle=":",
    )
    axes.set(
        ylim=(0, 1.03),
        xlabel="within this distance of the true centre, mm",
        ylabel="share of the discs",
    )
    axes.set_yticks(
        [0, 0.25, 0.5, 0.75, 1],
        ["0", "25 %", "50 %", "75 %", "100 %"],
    )
    axes.grid()
    axes.tick_params(length=0)
    axes.legend(
        loc="upper left",
        title=f"within {HIT_MM:g} mm",
        alignment="left",
    )
    panel_title(axes, "Share within a distance")


def _share(
    axes: Axes,
    errors_mm: F64,
    label: str,
    colour: str,
    line: Any,
    width: float,
) -> None:
    within = np.geomspace(*AXIS_MM, _STEPS)
    shares = np.searchsorted(
        np.sort(errors_mm),
        within,
        side="right",
    ) / len(errors_mm)
    axes.plot(
        within,
        shares,
        label=label,
        color=colour,
        linestyle=line,
        linewidth=width,
    )


def _errors_mm(rows: Sequence[Row]) -> F64:
    return np.asarray([row.error_mm for row in rows]).clip(*AXIS_MM)


def _within(rows: Sequence[Row]) -> float:
    return float(np.mean([row.error_mm <= HIT_MM for row in rows]))
