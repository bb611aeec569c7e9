"""The chart of a result: a bar for each system's studies a second."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from spine_bench.harness.figures import ENGINE, rate, speedup
from spine_bench.harness.result import Result
from spine_engine.errors import OutputError, UsageError

ENGINE_COLOUR: Final = "#1f6f78"
OTHER_COLOUR: Final = "#a9b4c2"
INK: Final = "#22303c"

# What the bars are called; other systems keep their name.
LABELS: Final = {
    "engine": "spine-engine",
    "onnxruntime": "ONNX Runtime,\none study at a time",
    "notebook": "notebook: pydicom, Open3D,\nTorchIO, PyTorch eager",
    "tuned-torch": "PyTorch tuned: compiled,\nbf16, a process a core",
    "tuned-torch-lean": "PyTorch tuned, told which\nslices the engine looks at",
    "limit": "bare models\n(no reading, no voxels)",
}


def draw(result: Result, path: Path) -> None:
    """Draw the studies a second of every system but the null system, offline; the format is that of ``path``'s ending.

    Raises:
        UsageError: matplotlib is not installed, or there is nothing to draw.
        OutputError: ``path`` cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UsageError(
            "charts need matplotlib: in a clone, pip install '.[bench]' (or 'make bench')"
        ) from None
    rates = {
        record.name: rate(result, record.name)
        for record in result.systems
        if record.name != "null"
    }
    bars = sorted(
        (spread.median, name, spread)
        for name, spread in rates.items()
        if spread and spread.median
    )
    if not bars:
        raise UsageError(
            "no system graded a study offline, so there is nothing to draw"
        )
    figure = Figure(figsize=(8.0, 0.9 + 0.62 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(
        [LABELS.get(name, name) for _, name, _ in bars],
        [middle for middle, _, _ in bars],
        color=[
            ENGINE_COLOUR if name == ENGINE else OTHER_COLOUR for _, name, _ in bars
        ],
        height=0.62,
        xerr=np.transpose(
            [(middle - spread.low, spread.high - middle) for middle, _, spread in bars]
        ),
        ecolor=INK,
        error_kw={"linewidth": 1},
    )
    for place, (middle, name, spread) in enumerate(bars):
        over = speedup(result, ENGINE, name)
        times = (
            f"  (engine: {over.median:.3g}x)"
            if name != ENGINE and over and over.median > 1
            else ""
        )
        axes.annotate(
            f"{middle:.3g}{times}",
            (spread.high, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontweight="bold" if name == ENGINE else "normal",
        )
    axes.set_xlim(0, 1.28 * max(spread.high for _, _, spread in bars))
    axes.set_xlabel("studies a second", color=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.tick_params(axis="y", length=0)
    axes.set_title(
        f"{result.machine.cores} cores, {result.library.name}; medians of {result.settings.rounds} rounds",
        color=INK,
        fontsize=10,
    )
    try:
        figure.savefig(
            path,
            dpi=150,
            metadata={"Date": None} if path.suffix == ".svg" else None,
        )
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; free space or choose another place"
        ) from error
    except ValueError as error:
        raise UsageError(f"cannot draw {path.name}: {error}") from None
