"""The one place that loads matplotlib: the common look of every picture, and its way to a file.

Pictures are SVG whose text stays text: a few kilobytes, sharp at any size and in print, searchable, opened by every
browser. The same input gives the same bytes: nothing of the clock, of chance or of a user's matplotlibrc enters.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spine_engine.errors import UsageError
from spine_engine.results import write_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INSTALL: Final = (
    "pip install \"spine-mri-engine[train]\" (in a clone: pip install '.[train]')"
)

WIDTH_IN: Final = 6.25
"""600 px as a browser shows it, at 96 to the inch; a letter of 8.5 points then has 11 px."""

INK: Final = "#22303c"
FAINT: Final = "#66727f"
"""4.9 to 1 against white: still read as text."""
GRID: Final = "#dfe4ea"
FIRST: Final = "#1f6f78"
SECOND: Final = "#c2571a"
THIRD: Final = "#8a94a1"
"""Teal, orange and grey: apart in hue for every kind of colour vision, and in lightness; each also has its own marker,
dash or hatch."""
LOW_TO_HIGH: Final = ("#ffffff", "#d3e6e6", "#8fbfc1", "#4a979c", "#1f6f78", "#0e464d")
"""One hue from light to dark, for amounts."""

_LOOK: Final[dict[str, Any]] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "hatch.linewidth": 0.6,
    "hatch.color": "#ffffff",
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "spine-engine",
}

_UNSEEN: Final = (
    (re.compile(r"^\s+|\s+$"), ""),
    (re.compile(r' id="[a-z0-9.]+_\d+"| transform="rotate\(-0 [^"]*"'), ""),
    (re.compile(r'(?<=[ "(])(-?\d+\.\d\d)\d+(?=[ ")]|$)(?=[^<>]*(?:>|$))'), r"\1"),
)
"""Patterns that ``_compact`` replaces; the digits only inside a tag, never in its text."""


class NoMatplotlibError(UsageError):
    """matplotlib is not installed, so nothing is drawn; measurements are not affected."""


@contextmanager
def figure(height_in: float, title: str) -> Iterator[Figure]:
    """Yield an empty figure ``WIDTH_IN`` wide, titled; drawing inside the ``with`` block has the common look.

    The figure belongs to no window and no global state (no pyplot).

    Raises:
        NoMatplotlibError: matplotlib is not installed; the message says how to get it.
    """
    with _look():
        from matplotlib.figure import Figure

        drawn = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        drawn.suptitle(
            title,
            x=0.01,
            ha="left",
            fontsize=10,
            fontweight="bold",
            color=INK,
        )
        yield drawn


def write_svg(drawn: Figure, path: Path) -> None:
    """Replace ``path`` by the picture in one step; the figure's title becomes the file's.

    Raises:
        OutputError: the file cannot be written.
    """
    content = io.StringIO()
    with _look():
        metadata = {
            "Title": drawn.get_suptitle(),
            "Date": None,
            "Creator": None,
        }
        drawn.savefig(
            content,
            format="svg",
            facecolor="#ffffff",
            metadata=metadata,
        )
    write_lines(
        path,
        map(_compact, content.getvalue().splitlines()),
    )


def panel_title(axes: Axes, title: str, note: str = "") -> None:
    """Set the bold title of a panel and, below it, a plain note."""
    axes.set_title(title, pad=16 if note else 6)
    if note:
        axes.annotate(
            note,
            (0, 1),
            (0, 5),
            "axes fraction",
            "offset points",
            color=FAINT,
            fontsize=8,
        )


def level_label(level: str) -> str:
    """Return a level as readers write it: ``L4/L5``."""
    return level.replace("_", "/").upper()


def _compact(line: str) -> str:
    """Drop the invisible parts of a line, a third of a file: indents, names of groups, digits beyond 0.01 points."""
    for pattern, kept in _UNSEEN:
        line = pattern.sub(kept, line)
    return line


@contextmanager
def _look() -> Iterator[None]:
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise NoMatplotlibError(
            f"no pictures: matplotlib is not installed; {INSTALL}"
        ) from None
    plain = {
        name: value
        for name, value in matplotlib.rcParamsDefault.items()
        if not name.startswith("backend")
    }
    settings: Any = {**plain, **_LOOK}
    with matplotlib.rc_context(settings):
        yield
