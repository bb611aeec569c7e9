"""The chart of a result: a bar for each system's studies a second."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from spine_bench.harness.figures import ENGINE, rate, speedup
from spine_bench.harness.result import Result
from spine_engine.errors import OutputError, UsageError

ENGINE_COLOUR: Final = "#1f6f78"
OTHER_COLOUR: Final = "#a9b4c2"
INK: Final = "#22303c"

LABELS: Final = {
    "engine": "spine-engine",
    "onnxruntime": "ONNX Runtime,\none study at a time",
    "notebook": "notebook: pydicom, Open3D,\nTorchIO, PyTorch eager",
    "tuned-torch": "PyTorch tuned: compiled,\nbf16, DataLoader",
    "tuned-torch-lean": "PyTorch tuned, told which\nslices the engine looks at",
    "limit": "bare models\n(no reading, no voxels)",
}
"""What the bars are called; other systems keep their name."""


def draw(result: Result, path: Path) -> None:
    """Draw the studies a second of every system but the null system, offline; the format is that of ``path``'s ending.

    Raises:
        UsageError: matplotlib is not installed, or there is nothing to draw.
        OutputError: ``path`` cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UsageError("charts need matplotlib: in a clone, pip install '.[bench]' (or 'make bench')") from None
    rates = {record.name: rate(result, record.name) for record in result.systems if record.name != "null"}
    shown = sorted(
        ((spread, name) for name, spread in rates.items() if spread and spread.median), key=lambda pair: pair[0].median
    )
    if not shown:
        raise UsageError("no system graded a study offline, so there is nothing to draw")
    figure = Figure(figsize=(8.0, 0.9 + 0.62 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    names = [LABELS.get(name, name) for _, name in shown]
    values = [spread.median for spread, _ in shown]
    colours = [ENGINE_COLOUR if name == ENGINE else OTHER_COLOUR for _, name in shown]
    around = [[s.median - s.low for s, _ in shown], [s.high - s.median for s, _ in shown]]
    axes.barh(names, values, color=colours, height=0.62, xerr=around, ecolor=INK, error_kw={"linewidth": 1})
    for place, (spread, name) in enumerate(shown):
        text = f"{spread.median:.3g}"
        over = speedup(result, ENGINE, name)
        if name != ENGINE and over is not None and over.median > 1:
            text += f"  (engine: {over.median:.3g}x)"
        axes.annotate(
            text,
            (spread.high, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontweight="bold" if name == ENGINE else "normal",
        )
    axes.set_xlim(0, 1.28 * max(spread.high for spread, _ in shown))
    axes.set_xlabel("studies a second", color=INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0, colors=INK)
    axes.tick_params(axis="x", colors=INK)
    machine, rounds = result.machine, result.settings.rounds
    axes.set_title(f"{machine.cores} cores, {result.library.name}; medians of {rounds} rounds", color=INK, fontsize=10)
    try:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; free space or choose another place") from error
    except ValueError as error:
        raise UsageError(f"cannot draw {path.name}: {error}") from None
