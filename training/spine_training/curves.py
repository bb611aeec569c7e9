"""The curves of a training: ``curves.csv`` with a row an epoch, and ``curves.svg`` drawn from the same rows."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from spine_training.arrays import F64
from spine_training.drawing import FAINT, FIRST, SECOND, figure, panel_title, write_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLE: Final = "curves.csv"
PICTURE: Final = "curves.svg"

LEARNING_RATE: Final = "learning_rate"
"""The column of an epoch's last learning rate."""

HELD_OUT: Final = "held_out_"
"""Prefix of a figure that repeats another one on held-out data."""

Row = Mapping[str, float]
"""The figures of one epoch by name; ``epoch`` is among them and counts from 1."""

_NO_CURVE: Final = ("epoch", "seconds")
_FLOORS: Final = {"prior": "metric", "best": "metric"}
"""Bounds of another figure: drawn as lines across its panel."""

_ONLY_HELD_OUT: Final = ("metric",)
_WORDS: Final = {
    "loss": ("Loss", "what is minimised"),
    "grading": ("Grading", "weighted log loss"),
    "exact": ("Narrowing", "mean error, fades out"),
    "metric": ("Official metric", "lower is better"),
    LEARNING_RATE: ("Learning rate", "when the epoch ends"),
    "disc": ("Discs", "cross-entropy"),
    "body": ("Vertebral bodies", "cross-entropy"),
    "direction": ("Direction of discs", "mean error"),
    "level": ("Level", "cross-entropy"),
    "level_right": ("Level right", "share of pixels"),
}
"""Title of a panel and what its axis counts; a figure without words keeps its name."""

_TRAINING_LOOK: Final[tuple[str, str, str]] = (FIRST, "o", "-")
_HELD_OUT_LOOK: Final = (SECOND, "s", "--")
_DOTS: Final = 40
"""Largest number of epochs that have a dot each; more would touch."""

_COLUMNS: Final = 2
_PANEL_IN: Final = 1.75


def write_table(path: Path, history: Sequence[Row]) -> None:
    """Replace the table of a training by the rows of all its epochs."""
    names = list(dict.fromkeys(name for row in history for name in row))
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(
            {name: f"{value:.6g}" for name, value in row.items()} for row in history
        )
    os.replace(partial, path)


def write_picture(path: Path, history: Sequence[Row]) -> None:
    """Replace the picture of a training by one of all its epochs.

    Raises:
        NoMatplotlibError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    write_svg(curves_figure(history), path)


def curves_figure(history: Sequence[Row]) -> Figure:
    """Draw every figure of a training over its epochs, held-out data beside the training's own.

    A figure that stays 0 is left out, and so is one that an epoch lacks, for that epoch.
    """
    names = list(
        dict.fromkeys(
            name
            for row in history
            for name in row
            if name not in (*_NO_CURVE, *_FLOORS)
        )
    )
    moving = [name for name in names if any(row.get(name, 0) for row in history)]
    panels = list(dict.fromkeys(name.removeprefix(HELD_OUT) for name in moving))
    panels.sort(key=lambda name: name == LEARNING_RATE)  # the rate comes last
    epochs = _column(history, "epoch")
    rows = -(-len(panels) // _COLUMNS)
    title = f"Training, {len(history)} epoch{'s' if len(history) > 1 else ''}"
    with figure(0.75 + _PANEL_IN * rows, title) as drawn:
        grid = drawn.subplots(
            rows,
            _COLUMNS,
            sharex=True,
            squeeze=False,
        ).ravel()
        for axes, name in zip(grid, panels, strict=False):
            _panel(axes, epochs, history, name, moving)
        for axes in grid[len(panels) :]:
            axes.remove()
        for axes in grid[max(0, len(panels) - _COLUMNS) : len(panels)]:
            axes.set_xlabel("epoch")
            axes.tick_params(labelbottom=True)
        looks = {"training": _TRAINING_LOOK}
        if any(name.startswith(HELD_OUT) or name in _ONLY_HELD_OUT for name in moving):
            looks |= {"held out": _HELD_OUT_LOOK}
        handles = [
            axes.plot(
                [],
                [],
                label=label,
                color=colour,
                marker=marker,
                linestyle=line,
            )[0]
            for label, (colour, marker, line) in looks.items()
        ]
        drawn.legend(
            handles=handles,
            loc="outside lower left",
            ncols=2,
        )
    return drawn


def _panel(
    axes: Axes,
    epochs: F64,
    history: Sequence[Row],
    name: str,
    names: Sequence[str],
) -> None:
    """Draw one figure, on the training data and held out, with its floors; its last values stand above as text."""
    from matplotlib.ticker import MaxNLocator

    title, unit = _WORDS.get(name, (name, ""))
    last = []
    for column in (name, HELD_OUT + name):
        if column not in names:
            continue
        values, held_out = (
            _column(history, column),
            column != name or name in _ONLY_HELD_OUT,
        )
        colour, marker, line = _HELD_OUT_LOOK if held_out else _TRAINING_LOOK
        marker = marker if len(epochs) <= _DOTS else ""
        axes.plot(
            epochs,
            values,
            color=colour,
            marker=marker,
            linestyle=line,
            markersize=3,
        )
        last.append(("held out " if held_out else "") + f"{values[-1]:.3g}")
    for floor in (floor for floor, of in _FLOORS.items() if of == name):
        values = _column(history, floor)
        axes.plot(
            epochs,
            values,
            color=FAINT,
            linewidth=1,
            linestyle=":",
        )
        if np.isfinite(values).any():
            at = np.flatnonzero(np.isfinite(values))[-1]
            place = (epochs[at], values[at])
            text = f"{floor} {values[at]:.3g}"
            axes.annotate(
                text,
                place,
                (0, 2),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=FAINT,
            )
    panel_title(
        axes,
        title,
        ": ".join(filter(None, (unit, ", ".join(last)))),
    )
    axes.set(
        xlim=(epochs[0] - 0.5, epochs[-1] + 0.5),
        ylim=(0, 1.05 * axes.get_ylim()[1]),
    )
    axes.xaxis.set_major_locator(
        MaxNLocator(
            6,
            integer=True,
            min_n_ticks=1,
        )
    )
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y")


def _column(history: Sequence[Row], name: str) -> F64:
    values = np.array([row.get(name, np.nan) for row in history])
    return np.where(np.isfinite(values), values, np.nan)
