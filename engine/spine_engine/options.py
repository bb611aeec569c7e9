"""What a user may choose about a run: frozen, checked on creation, echoed into ``run.json``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from spine_engine.errors import UsageError

MAX_WORKERS = 256
"""More processes than any single machine this is meant for has cores; a larger number is a typing error."""

DEFAULT_TIMEOUT_S = 300.0
"""Seconds one study may take before its worker is killed (docs/reasons.md, ``timeout``)."""

Schedule = Literal["auto", "study", "batch"]

MAX_BATCH: Final = 1024
"""A batch of this many slices is 100 MB; more only takes memory."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out.

    Attributes:
        workers: processes that walk one study each at a time; ``None`` takes what ``spine-engine tune`` found best on
            this machine, or else one for each CPU this process may use (half as many more where they share models).
        threads: threads the runtime uses for a model on a CPU; ``None`` takes what was found best, or else one, and all
            CPUs for shared models.
        schedule: ``"study"``: every worker has models of its own. ``"batch"``: the workers share the models of one
            process, which joins what they ask across studies; by timing, so the last digits of results may differ
            from run to run. ``"auto"``: what was found best, or else ``"batch"`` on anything but a CPU.
        max_batch: the most slices, or level grids, in one call of a shared model.
        max_delay_ms: how long a shared model with nothing to do waits for a batch to fill up.
        max_memory_bytes: a ceiling for the memory of all processes together, kept by limits on the workers, less what
            the main process and shared models are expected to take; ``None`` sets none. A study for which a worker's
            share is too little is walked once more, alone, with all of it.
        backend: the runtime that executes the models: ``"openvino"``, ``"onnxruntime"``, ...
        device: the device asked of it, as the backend names it; the run fails rather than use another.
        precision: ``"auto"`` (the fastest here that the models passed parity in), ``"f32"``, ``"bf16"``, ``"f16"``, or
            ``"int8"``, which is for graders: the other models then run as in ``"auto"``.
        timeout_s: how long one study may take.
        max_attempts: how often a study may kill its worker, or outlast ``timeout_s``, before it is recorded failed.
        series_descriptions: a CSV in RSNA's layout that says which series plays which part; ``None`` uses one lying
            beside the input folder when there is one.
        detector: find the levels first and grade each; false grades with the bundle's whole-study grader alone.
        centers: a CSV of vertebral centres, for graders whose recipe cuts between them (``centers.CenterTable``);
            studies that are not in it are located as usual.

    Raises:
        UsageError: a value is out of range.
    """

    workers: int | None = None
    threads: int | None = None
    schedule: Schedule = "auto"
    max_batch: int = 32
    max_delay_ms: float = 2.0
    max_memory_bytes: int | None = None
    backend: str = "openvino"
    device: str = "cpu"
    precision: str = "auto"
    timeout_s: float = DEFAULT_TIMEOUT_S
    max_attempts: int = 2
    series_descriptions: Path | None = None
    detector: bool = True
    centers: Path | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "threads"):
            number = getattr(self, name)
            if number is not None and not 1 <= number <= MAX_WORKERS:
                raise UsageError(
                    f"{name} must be between 1 and {MAX_WORKERS}, got {number}"
                )
        if self.schedule not in get_args(Schedule):
            raise UsageError(
                f"schedule must be one of {', '.join(get_args(Schedule))}, got {self.schedule!r}"
            )
        if not 1 <= self.max_batch <= MAX_BATCH:
            raise UsageError(
                f"max_batch must be between 1 and {MAX_BATCH}, got {self.max_batch}"
            )
        if not 0 <= self.max_delay_ms <= 1000:
            raise UsageError(
                f"max_delay_ms must be between 0 and 1000, got {self.max_delay_ms}"
            )
        if not 0 < self.timeout_s <= 86_400:
            raise UsageError(
                f"timeout_s must be above 0 and at most 86400 seconds, got {self.timeout_s}"
            )
        if not 1 <= self.max_attempts <= 10:
            raise UsageError(
                f"max_attempts must be between 1 and 10, got {self.max_attempts}"
            )
        for name in ("backend", "device", "precision"):
            if not getattr(self, name):
                raise UsageError(f"{name} must not be empty")

    @property
    def batched(self) -> bool:
        """Whether the workers share the models of one process."""
        return self.schedule == "batch" or (
            self.schedule == "auto" and self.device.lower() != "cpu"
        )

    @property
    def worker_count(self) -> int:
        """The number of worker processes that will run, as far as memory allows."""
        if self.workers is not None:
            return self.workers
        cpus = usable_cpus()
        return min(cpus + (cpus + 1) // 2 if self.batched else cpus, MAX_WORKERS)

    @property
    def thread_count(self) -> int:
        """The threads of a model on a CPU: one a worker; all where the workers share it."""
        return self.threads or (min(usable_cpus(), MAX_WORKERS) if self.batched else 1)


def usable_cpus() -> int:
    """Return how many CPUs this process may run on (affinity respected), at least 1."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # not Linux
        return max(1, os.cpu_count() or 1)
