"""Wall time of one study, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from spine_engine.pipeline.models import TimedModel


class StageClock:
    """Wall time by stage of one study."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a block as that of a stage."""
        began = perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + perf_counter() - began

    @contextmanager
    def grading(self, model: TimedModel[Any]) -> Iterator[None]:
        """Count the time that ``model`` takes as ``grade`` and the rest as ``voxelize``."""
        before = model.seconds
        with self.stage("voxelize"):
            yield
        seconds = model.seconds - before
        self._seconds["voxelize"] -= seconds
        self._seconds["grade"] = self._seconds.get("grade", 0.0) + seconds

    def timings_ms(self) -> dict[str, float]:
        """Return the time of each stage so far, in milliseconds."""
        return {stage: seconds * 1000 for stage, seconds in self._seconds.items()}
