"""What a run needs to know, built once: the input, who grades, with how much memory, and what decides the results."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from spine_engine.anatomy import LEVELS
from spine_engine.backends import Backend
from spine_engine.bundle import Bundle
from spine_engine.dicom import RefusedFile, RoleOverrides, WorkUnit, discover
from spine_engine.options import RunOptions
from spine_engine.pipeline.models import given_centers, open_role, opened_bundle
from spine_engine.pipeline.outcome import UnitOutcome
from spine_engine.pipeline.unit_worker import unit_worker
from spine_engine.run.memory import Resources, divide_memory
from spine_engine.run.shards import WHOLE, Shard
from spine_engine.scheduler import Companion, WorkerFactory, WorkerPool
from spine_engine.scheduler.batching.batcher import BatchPolicy, doubling
from spine_engine.scheduler.batching.server import ModelServer
from spine_engine.scheduler.task import OnFacts

Discover = Callable[[Path], Iterator[WorkUnit | RefusedFile]]
"""Yields the units of files under a folder, and the files that belong to none."""

MODEL_CALL_S: Final = 150.0
"""A call of a model that takes longer is hung: a batch of the largest graders takes half a minute on one core."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """How a run is carried out.

    Attributes:
        root: the input folder.
        discover: finds the units of work in it.
        factory: makes a worker in its process.
        resources: how many workers there are, and what each may have of the memory.
        timeout_s: how long one unit may take.
        max_attempts: how often a unit may kill its worker, or outlast ``timeout_s``, before it is recorded failed.
        companion: the process that serves models to the workers, not yet started; None where each opens its own.
        series_descriptions: digest of the stated roles of series, or ``"none"``.
        centers: digest of the given vertebral centres, or ``"none"``.
        series_tables: names of the tables that state them, and of tables that were left out, for ``run.json``.
        shard: the part of the input that this run grades.
    """

    root: Path
    discover: Discover
    factory: WorkerFactory[WorkUnit, UnitOutcome]
    resources: Resources
    timeout_s: float
    max_attempts: int
    companion: Companion | None = None
    series_descriptions: str = "none"
    centers: str = "none"
    series_tables: Mapping[str, Any] = field(default_factory=dict)
    shard: Shard = WHOLE

    def open_pool(
        self, on_facts: OnFacts = lambda facts: None
    ) -> WorkerPool[WorkUnit, UnitOutcome]:
        """Return the pool of this run's workers; ``on_facts`` receives the devices of their models, by role."""
        return WorkerPool(
            self.factory,
            workers=self.resources.workers,
            timeout_s=self.timeout_s,
            on_facts=on_facts,
            memory=self.resources.memory,
            companion=self.companion,
        )


def plan_run(root: Path, bundle: Bundle, options: RunOptions) -> RunPlan:
    """Read the series descriptions and return the plan for the studies under ``root``.

    Raises:
        UsageError: the series descriptions or the vertebral centres cannot be used, or the memory allowed holds no
            worker.
    """
    centers = given_centers(bundle, options)
    given = options.series_descriptions
    overrides = (
        RoleOverrides.find(root) if given is None else RoleOverrides.from_csv(given)
    )
    server = None
    if options.batched:
        serving = partial(ServedModels, bundle.path, bundle.digest, options)
        server = ModelServer(
            serving, call_timeout_s=min(MODEL_CALL_S, options.timeout_s / 2)
        )
    address = None if server is None else server.address
    used = bundle.manifest.models.by_role().values()
    return RunPlan(
        root=root,
        discover=discover,
        factory=partial(
            unit_worker, root, bundle.path, bundle.digest, options, overrides, address
        ),
        resources=divide_memory(
            options, model_bytes=sum(entry.size_bytes for entry in used)
        ),
        timeout_s=options.timeout_s,
        max_attempts=options.max_attempts,
        companion=server,
        series_descriptions=_digest(overrides),
        centers=centers.digest,
        series_tables={
            "used": list(overrides.tables),
            "left_out": dict(overrides.left_out),
        },
    )


def _digest(overrides: RoleOverrides) -> str:
    """Return what stands for the stated roles of series in a run's identity."""
    stated = sorted(
        (study, series, str(role)) for (study, series), role in overrides.roles.items()
    )
    return (
        hashlib.sha256(repr(stated).encode("utf-8", "backslashreplace")).hexdigest()
        if stated
        else "none"
    )


class ServedModels:
    """Opens the models of the process that the workers share them of, each with the batches it is called with."""

    def __init__(
        self, bundle_path: Path, bundle_digest: str, options: RunOptions
    ) -> None:
        """Verify the bundle.

        Raises:
            BundleError: the bundle is damaged or no longer the one the run began with.
        """
        self._bundle, self._options = opened_bundle(bundle_path, bundle_digest), options

    def __call__(self, role: str) -> tuple[Backend, BatchPolicy]:
        """Open the model of ``role``. Errors are those of ``open_role``."""
        backend = open_role(self._bundle, self._options, role)
        profile = self._bundle.entry(role).profile
        most, kept = self._options.max_batch, set[int]()
        if profile is not None:
            most = min(most, profile.largest[0])
            kept = {size for size in profile.batches if size <= most}
        unit = (
            len(LEVELS) if role == "grader" else 1
        )  # a study asks for its five levels at once
        sizes = tuple(sorted(kept.union(doubling(min(unit, most), most))))
        return backend, BatchPolicy(
            sizes=sizes, max_delay_ms=self._options.max_delay_ms
        )
