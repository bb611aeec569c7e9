"""Counts the finished studies of a run over time, in steps of round length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from math import ceil, floor
from typing import Final

MOST_STEPS: Final = 60
"""Largest number of bars that can be told apart on a phone."""
_STEPS_S: Final = (
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    14_400,
    43_200,
    86_400,
)


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The finished studies in each step of a run.

    Attributes:
        first, last: times when the first and the last study finished, UTC; the last without a date on the same day.
        step_s: length of a step.
        counts: studies finished in each step, beginning with the first study's.
        longest_pause_s: the longest time in which no study finished.
    """

    first: str
    last: str
    step_s: int
    counts: tuple[int, ...]
    longest_pause_s: float

    @property
    def most(self) -> float:
        """The studies per minute in the busiest step."""
        return max(self.counts) * 60 / self.step_s


def timeline(finished: Iterable[float | None]) -> Timeline | None:
    """Return the timeline of times in seconds since 1970; None if no time is known."""
    times = sorted(time for time in finished if time is not None)
    if not times:
        return None
    span = times[-1] - times[0]
    step = next(
        (step for step in _STEPS_S if span / step < MOST_STEPS),
        ceil((span + 1) / MOST_STEPS),
    )
    counts = [0] * (floor(span / step) + 1)
    for time in times:
        counts[floor((time - times[0]) / step)] += 1
    pauses = [after - before for before, after in pairwise(times)]
    return Timeline(
        first=_clock(times[0]),
        last=_clock(times[-1], after=times[0]),
        step_s=step,
        counts=tuple(counts),
        longest_pause_s=max(pauses, default=0.0),
    )


def _clock(time: float, after: float | None = None) -> str:
    """Return a time in words, without its date if ``after`` has the same date."""
    moment = datetime.fromtimestamp(time, UTC)
    same_day = (
        after is not None and datetime.fromtimestamp(after, UTC).date() == moment.date()
    )
    return moment.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S")
