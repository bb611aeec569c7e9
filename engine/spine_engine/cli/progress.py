"""Shows the progress of a long run: one bar on a terminal, a plain line at intervals elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from spine_engine.results import Status
from spine_engine.run.dispatcher import Progress

LINE_EVERY_S: Final = 10.0
_REFRESH_S: Final = 0.2


@contextmanager
def shown(progress: Progress) -> Iterator[None]:
    """Show ``progress`` on standard error while the block runs."""
    ended = threading.Event()
    show = _bar if sys.stderr.isatty() else _lines
    painter = threading.Thread(target=show, args=(progress, ended), daemon=True)
    painter.start()
    try:
        yield
    finally:
        ended.set()
        painter.join(timeout=2)


def _lines(progress: Progress, ended: threading.Event) -> None:
    begun = time.monotonic()
    last_line = ""
    while not ended.wait(LINE_EVERY_S):
        line = _state(progress, time.monotonic() - begun)
        if line != last_line:
            print(line, file=sys.stderr, flush=True)
            last_line = line


def _state(progress: Progress, seconds: float) -> str:
    done = progress.processed + progress.resumed
    total = f"{progress.found}+" if progress.discovering else str(progress.found)
    rate = progress.processed / seconds if seconds > 0 else 0.0
    return f"{done} of {total} studies, {rate:.2f} a second, {not_graded(progress)} not graded"


def not_graded(progress: Progress) -> int:
    """Return the number of this run's studies that have not been graded."""
    return progress.statuses[Status.PRIOR] + progress.statuses[Status.FAILED]


def _bar(progress: Progress, ended: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(
            "{task.completed}/{task.fields[of]}  {task.fields[rate]:.2f}/s  {task.fields[bad]} not graded"
        ),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    begun = time.monotonic()
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("studies", total=None, of="?", rate=0.0, bad=0)
        while not ended.wait(_REFRESH_S):
            seconds = time.monotonic() - begun
            bar.update(
                task,
                description="stopping" if progress.stopped else "studies",
                completed=progress.processed + progress.resumed,
                total=None if progress.discovering else progress.found,
                of=f"{progress.found}+" if progress.discovering else progress.found,
                rate=progress.processed / seconds,
                bad=not_graded(progress),
            )
