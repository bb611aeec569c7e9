"""The two seams of the harness: where samples come from, and what answers them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spine_engine.dicom import WorkUnit


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One study on disk: its files, relative to ``root``."""

    root: Path
    unit: WorkUnit


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a system made of a sample.

    Attributes:
        probabilities: ``(5 levels, 5 conditions, 3 severities)``, each row summing to 1; None where it has none.
        failure: why there are none, in one word or line; None where there are.
        stage_seconds: wall time of this sample by stage, as far as the system knows it.
    """

    probabilities: NDArray[np.float64] | None
    failure: str | None = None
    stage_seconds: Mapping[str, float] = field(default_factory=dict)


class SampleLibrary(Protocol):
    """The samples that a measurement draws from; reading them is the system's own work."""

    @property
    def name(self) -> str:
        """Return what the samples are, in a few words."""
        ...

    def __len__(self) -> int:
        """Return how many samples there are."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""
        ...


class SystemUnderTest(Protocol):
    """Takes studies from their files to probabilities.

    - ``open`` loads and warms everything up; only then is ``submit`` called, ``close`` ends it.
    - ``submit`` returns at once: what cannot be worked on yet waits inside the system, in order.
    - ``done`` is called exactly once a sample, from any thread, in any order; a failure is an answer as well.
    - ``facts`` says after ``open`` what really runs: backend, device, precision, threads, processes, versions.
    """

    name: str

    def open(self) -> None:
        """Load the models and warm up."""
        ...

    def submit(self, sample: Sample, done: Callable[[Answer], None]) -> None:
        """Begin with a sample, or queue it."""
        ...

    def facts(self) -> dict[str, object]:
        """Return what really runs."""
        ...

    def close(self) -> None:
        """End what was opened; samples not yet answered are answered with a failure."""
        ...
