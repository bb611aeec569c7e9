"""The progress of a training: a line an epoch on the terminal, ``curves.csv``, ``curves.svg``, TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from spine_engine.errors import SpineEngineError
from spine_training import curves

TENSORBOARD: Final = "tensorboard"

BAR_UPDATES: Final = 50
"""Updates of the progress bar an epoch."""


class Reporter:
    """Shows the progress of a training and writes its curves.

    Args:
        out: folder of the curves.
        epochs: length of the whole training.
        history: a row of figures for each finished epoch; ``finish`` appends to it.
    """

    def __init__(
        self,
        out: Path,
        epochs: int,
        history: list[dict[str, float]],
    ) -> None:
        from tensorboardX import SummaryWriter  # only the process that reports needs it

        self._out = out
        self._epochs = epochs
        self._history = history
        self._can_draw = True
        self._writer = SummaryWriter(
            str(out / TENSORBOARD),
            purge_step=len(history) + 1,
        )
        self._console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        self._bar = Progress(
            *columns,
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._first = len(history)
        self._task = self._bar.add_task(
            "training",
            total=epochs - self._first,
            loss="",
        )
        self._began = time.monotonic()
        self._epoch_began = self._began
        if self._console.is_terminal:
            self._bar.start()

    def step(
        self,
        done: int,
        steps: int,
        sums: Mapping[str, Tensor],
    ) -> None:
        """Move the bar on: ``done`` of an epoch's ``steps`` are taken, with these sums of what the loss reported."""
        if not self._bar.live.is_started or done % max(1, steps // BAR_UPDATES):
            return
        epoch = len(self._history)
        self._bar.update(
            self._task,
            completed=epoch - self._first + done / steps,
            description=f"epoch {epoch + 1}/{self._epochs}",
            loss=f"loss {float(sums['loss']) / done:.4f}",
        )

    def finish(self, figures: Mapping[str, float], rate: float) -> None:
        """Report the figures of an epoch that has ended, and its last learning rate."""
        now = time.monotonic()
        epoch = len(self._history) + 1
        shown = {**figures, "seconds": now - self._epoch_began}
        row = {
            "epoch": float(epoch),
            **shown,
            curves.LEARNING_RATE: rate,
        }
        self._epoch_began = now
        self._history.append(row)
        left_s = (now - self._began) / (epoch - self._first) * (self._epochs - epoch)
        values = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self._console.print(
            f"epoch {epoch}/{self._epochs}  {values}  {left_s / 60:.1f} min left"
        )
        for name, value in row.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()
        curves.write_table(self._out / curves.TABLE, self._history)
        self._draw()

    def _draw(self) -> None:
        """Draw the curves; a failure is reported once and stops nothing."""
        if not self._can_draw:
            return
        try:
            curves.write_picture(self._out / curves.PICTURE, self._history)
        except Exception as error:  # noqa: BLE001 - hours of training are worth more than any picture
            known = isinstance(error, SpineEngineError)
            message = (
                str(error) if known else f"no picture: {type(error).__name__}: {error}"
            )
            self._console.print(
                message,
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
            self._can_draw = False

    def close(self) -> None:
        """End the bar and the TensorBoard file."""
        self._bar.stop()
        self._writer.close()
