"""A system that answers at once: what is measured of it is the harness itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from spine_bench.harness.interfaces import Answer, Sample
from spine_engine.anatomy import CONDITIONS, LEVELS, SEVERITIES

_SHAPE: Final = (len(LEVELS), len(CONDITIONS), len(SEVERITIES))


class NullSystem:
    """Answers every sample with the same grades, in the caller's thread."""

    def __init__(self) -> None:
        self.name = "null"
        self._answer = Answer(probabilities=np.full(_SHAPE, 1 / len(SEVERITIES)))

    def open(self) -> None:
        """Do nothing."""

    def submit(self, sample: Sample, done: Callable[[Answer], None]) -> None:
        """Answer at once."""
        done(self._answer)

    def facts(self) -> dict[str, object]:
        """Return nothing: nothing runs."""
        return {}

    def close(self) -> None:
        """Do nothing."""
