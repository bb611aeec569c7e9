"""The worker of a run: reads one unit of files and grades the studies in it."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from spine_engine.dicom import RoleOverrides, WorkUnit, read_unit
from spine_engine.dicom.limits import DEFAULT_LIMITS
from spine_engine.errors import MachineError
from spine_engine.options import RunOptions
from spine_engine.pipeline.clock import StageClock
from spine_engine.pipeline.models import PipelineModels, given_centers, opened_bundle
from spine_engine.pipeline.outcome import (
    UnitOutcome,
    broken,
    lacks_memory,
    short_of_memory,
)
from spine_engine.pipeline.study_pipeline import StudyPipeline
from spine_engine.results import study_key
from spine_engine.scheduler.batching.client import ServedBackend
from spine_engine.scheduler.task import Facts


class UnitWorker:
    """Reads and grades units in a worker process; its facts are the devices of its models, by role."""

    def __init__(
        self,
        root: Path,
        bundle_path: Path,
        bundle_digest: str,
        options: RunOptions,
        overrides: RoleOverrides,
        models_at: str | None = None,
    ) -> None:
        """Open the models, or connect to those served at ``models_at``.

        Raises:
            BackendError: the backend, device or precision is not available.
            BundleError: the bundle is damaged or no longer the one the run began with.
            CompanionLostError: nothing answers at ``models_at``.
            UsageError: the vertebral centres can no longer be used.
        """
        bundle = opened_bundle(bundle_path, bundle_digest)
        opener = None if models_at is None else partial(ServedBackend, models_at)
        self._root = root
        self._overrides = overrides
        self._limits = replace(DEFAULT_LIMITS, study_s=options.timeout_s)
        self._pipeline = StudyPipeline(
            PipelineModels(bundle, options, opener), given_centers(bundle, options)
        )

    def run(self, task: WorkUnit) -> tuple[UnitOutcome, Facts]:
        """Read a unit and grade its studies. Errors are those of ``StudyPipeline.grade``."""
        return self._outcome(task), self.facts

    @property
    def facts(self) -> Facts:
        """What each model opened so far runs on, by role."""
        return {
            role: asdict(device)
            for role, device in self._pipeline.models.devices.items()
        }

    def _outcome(self, unit: WorkUnit) -> UnitOutcome:
        clock = StageClock()
        try:
            with clock.stage("read"):
                reading = read_unit(self._root, unit, self._overrides, self._limits)
        except MachineError:  # no study's fault, and no other study would fare better
            raise
        except Exception as error:  # a bug costs one study, not the run
            if unit.study_id is None:
                raise
            if lacks_memory(error):
                return UnitOutcome(results=(short_of_memory(unit.study_id, clock),))
            return UnitOutcome(
                results=(broken(study_key(unit.study_id), error, clock),)
            )
        results = tuple(
            self._pipeline.grade(study, clock=clock) for study in reading.studies
        )
        return UnitOutcome(
            results=results, split=reading.split, refused=reading.refused
        )


def unit_worker(*args: Any) -> tuple[UnitWorker, Facts]:
    """Make the worker of a run in its process; the arguments are those of ``UnitWorker``."""
    worker = UnitWorker(*args)
    return worker, worker.facts
