"""What a user may choose about a run: frozen, checked on creation, echoed into ``run.json``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from spine_engine.errors import UsageError

MAX_WORKERS = 256
"""More processes than any single machine this is meant for has cores; a larger number is a typing error."""

DEFAULT_TIMEOUT_S = 300.0
"""Seconds one study may take before its worker is killed (docs/reasons.md, ``timeout``)."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out.

    Attributes:
        workers: processes that walk one study each at a time; ``None`` takes one for each CPU this process may use.
        backend: the runtime that executes the models: ``"openvino"``, ``"onnxruntime"``, ...
        device: the device asked of it, as the backend names it; the run fails rather than use another.
        precision: ``"auto"`` (the fastest here that the models passed parity in), ``"f32"``, ``"bf16"``, ``"f16"``, or
            ``"int8"``, which is for graders: the other models then run as in ``"auto"``.
        timeout_s: how long one study may take.
        max_attempts: how often a study may kill its worker, or outlast ``timeout_s``, before it is recorded failed.
        series_descriptions: a CSV in RSNA's layout that says which series plays which part; ``None`` uses one lying
            beside the input folder when there is one.
        detector: find the levels first and grade each; false grades with the bundle's whole-study grader alone.

    Raises:
        UsageError: a value is out of range.
    """

    workers: int | None = None
    backend: str = "openvino"
    device: str = "cpu"
    precision: str = "auto"
    timeout_s: float = DEFAULT_TIMEOUT_S
    max_attempts: int = 2
    series_descriptions: Path | None = None
    detector: bool = True

    def __post_init__(self) -> None:
        if self.workers is not None and not 1 <= self.workers <= MAX_WORKERS:
            raise UsageError(f"workers must be between 1 and {MAX_WORKERS}, got {self.workers}")
        if not 0 < self.timeout_s <= 86_400:
            raise UsageError(f"timeout_s must be above 0 and at most 86400 seconds, got {self.timeout_s}")
        if not 1 <= self.max_attempts <= 10:
            raise UsageError(f"max_attempts must be between 1 and 10, got {self.max_attempts}")
        for name in ("backend", "device", "precision"):
            if not getattr(self, name):
                raise UsageError(f"{name} must not be empty")

    @property
    def worker_count(self) -> int:
        """The number of worker processes that will run."""
        return self.workers or min(usable_cpus(), MAX_WORKERS)


def usable_cpus() -> int:
    """Return how many CPUs this process may run on (affinity respected), at least 1."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # not Linux
        return max(1, os.cpu_count() or 1)
