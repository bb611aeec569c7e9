"""Figures of a detector: the share of discs at the right level, per source and contrast."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

#: A disc counts as right when its centre lies within this of the truth (issue: "disc within 8 mm and the right level").
HIT_MM = 8.0
#: Of the levels given with this confidence, 98 % are to be right.
SURE = 0.9
#: The group of L5/S1 discs without a sacrum's mask: their truth is 2-3.5 mm off, so they are shown apart.
WEAK = "(L5/S1 placed from L5 alone, not counted)"
ALL = "all"


@dataclass(frozen=True, slots=True)
class Row:
    """One disc of one exam: error of the disc given for its level, and of the nearest disc given (mm)."""

    exam: str
    source: str
    contrast: str
    level: str
    error_mm: float
    nearest_mm: float
    confidence: float
    given_by: str
    weak: bool


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a group of discs.

    `right` is the share within `HIT_MM` of the truth of their level; `shifted` counts those that are not, while another
    level given is; `sure` counts those given with `SURE` confidence, `sure_right` is the share of them that is right.
    """

    group: str
    exams: int
    discs: int
    right: float
    median_mm: float
    p90_mm: float
    shifted: int
    sure: int
    sure_right: float | None


def figures(rows: Sequence[Row]) -> list[Figures]:
    """Return figures per source and contrast, sorted, then of the weak discs, then of all others together."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[WEAK if row.weak else f"{row.source} {row.contrast}".strip()].append(row)
    named = [_figures(name, groups[name]) for name in sorted(groups) if name != WEAK]
    named += [_figures(WEAK, groups[WEAK])] if WEAK in groups else []
    counted = [row for row in rows if not row.weak]
    return [*named, _figures(ALL, counted)] if counted else named


def _figures(group: str, rows: Sequence[Row]) -> Figures:
    error = np.array([row.error_mm for row in rows])
    nearest = np.array([row.nearest_mm for row in rows])
    sure = np.array([row.confidence >= SURE for row in rows])
    right = error <= HIT_MM
    return Figures(
        group=group,
        exams=len({row.exam for row in rows}),
        discs=len(rows),
        right=float(right.mean()),
        median_mm=float(np.median(error)),
        p90_mm=float(np.percentile(error, 90)),
        shifted=int((~right & (nearest <= HIT_MM)).sum()),
        sure=int(sure.sum()),
        sure_right=float(right[sure].mean()) if sure.any() else None,
    )


_HEADS = (
    "exams",
    "discs",
    "right",
    "median mm",
    "p90 mm",
    "shifted",
    f">= {SURE}",
    "of them right",
)


def _cells(entry: Figures) -> list[str]:
    sure_right = "-" if entry.sure_right is None else f"{100 * entry.sure_right:.1f} %"
    return [
        f"{entry.exams}",
        f"{entry.discs}",
        f"{100 * entry.right:.1f} %",
        f"{entry.median_mm:.2f}",
        f"{entry.p90_mm:.1f}",
        f"{entry.shifted}",
        f"{entry.sure}",
        sure_right,
    ]


def table(rows: Sequence[Row], title: str = "source") -> str:
    """Return the figures as aligned text."""
    widths = [len(head) + 2 for head in _HEADS]
    lines = [
        (title, list(_HEADS)),
        *((entry.group, _cells(entry)) for entry in figures(rows)),
    ]
    return "\n".join(
        f"{name:42s}"
        + "".join(
            f"{cell:>{width}s}" for cell, width in zip(cells, widths, strict=True)
        )
        for name, cells in lines
    )


def markdown(rows: Sequence[Row], title: str = "source") -> str:
    """Return the figures as a Markdown table."""
    lines = [[title, *_HEADS], ["---"] * (len(_HEADS) + 1)]
    lines += [[entry.group, *_cells(entry)] for entry in figures(rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page(by_view: Mapping[str, Sequence[Row]], nets: Sequence[str]) -> str:
    """Return the whole page: the method, the nets, a table for each field of view."""
    intro = f"""# The detector on exams it has not seen

Written by `make eval-detector`. The exams are dealt into five folds by patient; each is judged by a net that never saw
it, through the engine's own decode, as one series of 4 mm slices. Right: the disc given for a level lies within
{HIT_MM:g} mm of its true place (SPIDER has no lateral truth: in the sagittal plane). Shifted: wrong, and another
level's disc lies there. The last columns: discs given with a confidence of at least {SURE}, and how many of them are
right. The narrower fields of view are the same exams, cut below.

The nets, fold by fold:
"""
    tables = "\n\n".join(
        f"## Field of view: {view}\n\n{markdown(rows)}"
        for view, rows in by_view.items()
    )
    return intro + "\n" + "\n".join(f"- {net}" for net in nets) + f"\n\n{tables}\n"


def as_dicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the figures as plain values for JSON."""
    return [asdict(entry) for entry in figures(rows)]


def rows_as_json(rows: Sequence[Row]) -> str:
    """Return one line of JSON for each disc."""
    return "\n".join(json.dumps(asdict(row)) for row in rows)
