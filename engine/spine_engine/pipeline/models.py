"""The models of one worker: what every study needs is opened at once, the fallback when a study first needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from spine_engine.backends import AskedPrecision, Backend, Device
from spine_engine.backends.checked import CheckedBackend, memory_is_limited
from spine_engine.bundle import Bundle
from spine_engine.bundle.manifest import DetectorEntry, GraderEntry, ModelEntry
from spine_engine.detection import Detection
from spine_engine.detection.finder import LevelFinder, level_finder
from spine_engine.errors import BundleError, UsageError
from spine_engine.options import RunOptions
from spine_engine.pipeline.centers import CenterTable
from spine_engine.study import Stack

EntryT = TypeVar("EntryT", bound=ModelEntry)


class TimedModel(Generic[EntryT]):
    """A loaded model with what its manifest says, which adds up the time it takes; a ``Backend`` itself."""

    def __init__(self, entry: EntryT, backend: Backend) -> None:
        self.entry = entry
        self._backend = backend
        self.inputs, self.outputs, self.device = (
            backend.inputs,
            backend.outputs,
            backend.device,
        )
        self.seconds = 0.0

    def run(
        self, inputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float32]]:
        """Run the model once."""
        began = perf_counter()
        try:
            return self._backend.run(inputs)
        finally:
            self.seconds += perf_counter() - began

    def close(self) -> None:
        """Release the model."""
        self._backend.close()


class PipelineModels:
    """Detector and grader where the run uses them, and the whole-study grader where the bundle has one.

    Attributes:
        detector, grader: of the two stages; both None when the bundle has only a whole-study grader, or the run does
            without the detector.
        devices: by role what each model that has been opened runs on; it grows when the fallback is first needed.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: RunOptions,
        opener: Callable[[str], Backend] | None = None,
    ) -> None:
        """Open what every study needs.

        Args:
            bundle: the models.
            options: how the run is carried out.
            opener: gives the model of a role where it is not to be opened in this process.

        Raises:
            BackendError: the backend, device or precision is not to be had.
            BundleError: a model is damaged or not what the manifest says.
        """
        self._bundle, self._options = bundle, options
        self._opener = opener or partial(open_role, bundle, options)
        self.devices: dict[str, Device] = {}
        self.detector: TimedModel[DetectorEntry] | None = None
        self.grader: TimedModel[GraderEntry] | None = None
        self._labellers: tuple[TimedModel[ModelEntry], ...] = ()
        self._find: LevelFinder | None = None
        self._whole: TimedModel[GraderEntry] | None = None
        if in_two_stages(bundle, options):
            self.detector = self._open("detector", bundle.detector)
            self.grader = self._open("grader", bundle.grader)
            models = bundle.manifest.models
            named = {
                "vertebra_appearance": models.vertebra_appearance,
                "vertebra_context": models.vertebra_context,
            }
            self._labellers = tuple(
                self._open(role, entry)
                for role, entry in named.items()
                if entry is not None
            )
            found = self.detector.entry
            self._find = level_finder(
                found.decoder, found.spec, (self.detector, *self._labellers)
            )
        else:
            self.whole_study_grader()

    def find_levels(self, sagittal: Sequence[Sequence[Stack]]) -> Detection:
        """Find the levels of a study in its sagittal series, by the decoder that the bundle names.

        Raises:
            StudyError: there is no sagittal stack.
            ValueError: the run does without the detector.
        """
        if self._find is None:
            raise ValueError("this run has no detector")
        return self._find(sagittal)

    def close(self) -> None:
        """Release every model; one that is shared by a process is asked for again when it is run again."""
        for model in (self.detector, *self._labellers, self.grader, self._whole):
            if model is not None:
                model.close()

    def whole_study_grader(self) -> TimedModel[GraderEntry] | None:
        """Return the whole-study grader, opened now if need be; None when the bundle has none. Errors as on opening."""
        entry = self._bundle.manifest.models.whole_study_grader
        if self._whole is None and entry is not None:
            self._whole = self._open("whole_study_grader", entry)
        return self._whole

    def _open(self, role: str, entry: EntryT) -> TimedModel[EntryT]:
        backend = self._opener(role)
        self.devices[role] = backend.device
        return TimedModel(entry, backend)


def open_role(bundle: Bundle, options: RunOptions, role: str) -> Backend:
    """Open the bundle's model of ``role`` in this process.

    Raises:
        BackendError: the backend, device or precision is not to be had.
        BundleError: there is no such model, or it is damaged or not what the manifest says.
    """
    entry = bundle.entry(role)
    backend = bundle.open_model(
        entry,
        name=options.backend,
        device=options.device,
        precision=cast(AskedPrecision, options.precision),
        threads=options.thread_count,
    )
    if options.max_memory_bytes is None and not memory_is_limited():
        return backend
    return CheckedBackend(backend, entry.profile)


def in_two_stages(bundle: Bundle, options: RunOptions) -> bool:
    """Whether a run finds the levels first and grades each: the bundle can, and the options do not forbid it."""
    models = bundle.manifest.models
    return (
        options.detector and models.detector is not None and models.grader is not None
    )


def given_centers(bundle: Bundle, options: RunOptions) -> CenterTable:
    """Return the vertebral centres that the options name; an empty table where they name none.

    Raises:
        UsageError: they cannot be used, or the bundle's grader does not cut between vertebrae.
    """
    if options.centers is None:
        return CenterTable()
    grader = bundle.manifest.models.grader
    if (
        grader is None
        or not grader.grid_recipe.of_levels
        or not in_two_stages(bundle, options)
    ):
        raise UsageError(
            "centres are for graders of levels that are cut between vertebrae, by a recipe such as rsna2024-level-128: "
            "run without them, or with another bundle"
        )
    return CenterTable.from_csv(options.centers)


def opened_bundle(path: Path, digest: str) -> Bundle:
    """Open a bundle in another process than the one that began the run.

    Raises:
        BundleError: it is damaged, or no longer the one the run began with.
    """
    bundle = Bundle.open(
        path, trust=True
    )  # whoever began the run has verified it, or trusts it
    if bundle.digest != digest:
        raise BundleError(
            f"the bundle {bundle.manifest.name!r} was changed while the run started; start again"
        )
    return bundle
