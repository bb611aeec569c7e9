"""A report as tables for a terminal, and as the two CSV files that plots are made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich import box
from rich.table import Table

from spine_engine.anatomy import SEVERITIES
from spine_training.evaluation.reliability import BINS
from spine_training.evaluation.report import (
    FIGURES,
    Curves,
    Difference,
    Estimate,
    Report,
)

_WORDS = ("normal/mild", "moderate", "severe")


def tables(report: Report) -> Iterator[Table]:
    """Yield the tables of a report."""
    yield _scores(report)
    yield _cells(report)
    yield _confusion(report)
    yield _reliability(report)


def comparison_table(
    comparison: Mapping[str, Difference], first: str, second: str
) -> Table:
    """Return the table of a paired comparison of the files ``first`` and ``second``.

    Its last column is the share of resamples in which the first has the lower loss.
    """
    table = _table(
        f"First: {first}\nSecond: {second}",
        ("", "first", "second", "difference", "95 % interval", "better"),
    )
    for name in FIGURES:
        row = comparison[name]
        gap = row.difference
        values = (
            f"{row.first:.4f}",
            f"{row.second:.4f}",
            f"{gap.value:+.4f}",
            _interval(gap, "+"),
        )
        table.add_row(
            _label(name),
            *values,
            f"{row.first_better:.1%}",
        )
    return table


def calibration_table(
    stages: Mapping[str, Mapping[str, float]],
    *,
    studies: int,
    labels: int,
) -> Table:
    """Return the table of a calibration's figures: before, on the data it was fitted to, and cross-validated."""
    table = _table(
        f"Calibration on {studies} studies, {labels} labels",
        ("", *map(_label, stages)),
    )
    for name in (*FIGURES, "calibration_error", "calibration_error_unweighted"):
        table.add_row(
            _label(name),
            *(f"{stage[name]:.4f}" for stage in stages.values()),
        )
    return table


def confusion_lines(report: Report) -> Iterator[str]:
    """Yield ``confusion.csv``: labelled rows by group, true grade and most probable grade."""
    yield "group,true_grade,predicted_grade,rows"
    for name, group in report.groups.items():
        for true, row in zip(SEVERITIES, group.confusion, strict=True):
            for predicted, count in zip(SEVERITIES, row, strict=True):
                yield f"{name},{true},{predicted},{count}"


def reliability_lines(report: Report) -> Iterator[str]:
    """Yield ``reliability.csv``: the curves of every group and outcome, bin by bin; empty bins are left out."""
    yield "group,outcome,rows_weighed,lower,upper,rows,weight,confidence,observed"
    for name, group in report.groups.items():
        outcomes: dict[str, Curves] = {"most_probable": group, **group.cuts}
        for outcome, curves in outcomes.items():
            for weighing, curve in (
                ("metric", curves.reliability),
                ("alike", curves.reliability_unweighted),
            ):
                for b in curve:
                    figures = f"{b.lower:.6f},{b.upper:.6f},{b.rows},{b.weight:g},{b.confidence:.6f},{b.observed:.6f}"
                    yield f"{name},{outcome},{weighing},{figures}"


def _scores(report: Report) -> Table:
    title = f"Official metric, {report.studies} studies, {report.labels} labels (lower is better)"
    table = _table(
        title,
        ("", "score", "95 % interval", "prior", "uniform"),
    )
    for name in FIGURES:
        estimate = report.scores[name]
        floors = (
            f"{getattr(floor, name):.4f}" for floor in (report.prior, report.uniform)
        )
        table.add_row(
            _label(name),
            f"{estimate.value:.4f}",
            _interval(estimate),
            *floors,
        )
    return table


def _cells(report: Report) -> Table:
    table = _table(
        "Weighted log loss, and labels per grade",
        ("condition", "level", "log loss", *_WORDS),
    )
    before = None
    for cell in report.cells:
        loss = "-" if cell.log_loss is None else f"{cell.log_loss:.4f}"
        name = (
            ""
            if cell.condition == before
            else _label(cell.condition.rpartition("_")[0])
        )
        table.add_row(
            name,
            cell.level.replace("_", "/").upper(),
            loss,
            *map(str, cell.labels),
        )
        before = cell.condition
    return table


def _confusion(report: Report) -> Table:
    table = _table(
        "Rows by true grade and most probable grade",
        ("group", "true", *(f"as {word}" for word in _WORDS)),
    )
    for name, group in report.groups.items():
        for k, (word, row) in enumerate(zip(_WORDS, group.confusion, strict=True)):
            table.add_row(
                "" if k else name,
                word,
                *map(str, row),
            )
    return table


def _reliability(report: Report) -> Table:
    """Return one line a bin: what was predicted, and what was observed in each group as the metric weighs rows."""
    title = (
        f"Calibration error {report.calibration_error:.4f} as the metric weighs rows, "
        f"{report.calibration_error_unweighted:.4f} unweighted\n"
        "By top probability: its mean, the share that was right (rows), as the metric weighs rows"
    )
    table = _table(title, ("top", *report.groups))
    curves = [
        {round(b.lower * BINS): b for b in group.reliability}
        for group in report.groups.values()
    ]
    for k in sorted(set().union(*curves)):
        bins = [curve.get(k) for curve in curves]
        cells = [
            "" if b is None else f"{b.confidence:.3f} {b.observed:.3f} ({b.rows})"
            for b in bins
        ]
        table.add_row(f"{k / BINS:.2f} .. {(k + 1) / BINS:.2f}", *cells)
    for word, field in (
        ("error", "calibration_error"),
        ("unweighted", "calibration_error_unweighted"),
    ):
        table.add_row(
            word,
            *(f"{getattr(group, field):.4f}" for group in report.groups.values()),
        )
    return table


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in columns:
        table.add_column(
            name,
            justify="left"
            if name in ("", "condition", "level", "group", "true")
            else "right",
        )
    return table


def _label(name: str) -> str:
    return name.replace("_", " ")


def _interval(estimate: Estimate, sign: str = "") -> str:
    return f"{estimate.low:{sign}.4f} .. {estimate.high:{sign}.4f}"
