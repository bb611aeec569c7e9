"""One study through its stages: locate the levels, cut their grids, grade them, and say what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from spine_engine.anatomy import LEVELS, Level
from spine_engine.bundle import Bundle
from spine_engine.detection import Detection, DiscLevel, undetected
from spine_engine.errors import (
    BackendError,
    BundleError,
    Reason,
    StudyError,
    UsageError,
    Warn,
)
from spine_engine.options import RunOptions
from spine_engine.pipeline.centers import (
    CenterTable,
    VertebralCenters,
    detected_centers,
    given_levels,
)
from spine_engine.pipeline.clock import StageClock
from spine_engine.pipeline.gate import refusal
from spine_engine.pipeline.grading import grade, grade_between, grade_whole_study
from spine_engine.pipeline.level_grids import level_grids
from spine_engine.pipeline.models import PipelineModels, given_centers
from spine_engine.pipeline.outcome import (
    between_vertebrae,
    broken,
    lacks_memory,
    series_results,
    with_grades,
    without_grade,
)
from spine_engine.pipeline.recipe_inputs import recipe_level_grids
from spine_engine.results import StudyResult, study_key
from spine_engine.scheduler.task import CompanionLostError
from spine_engine.study import Source, Study


class StudyPipeline:
    """Grades one study after the other in this process, with models that are opened once.

    Example::

        from spine_engine import StudyPipeline, read_study

        with StudyPipeline.open() as pipeline:
            result = pipeline.grade(read_study("exams/patient7"))
            print(result.probabilities("spinal_canal_stenosis", "l4_l5"))

    A pipeline is used from one thread at a time. Results are those of ``spine-engine run`` with the same bundle,
    backend and precision.
    """

    def __init__(
        self, models: PipelineModels, centers: CenterTable | None = None
    ) -> None:
        """Use :meth:`open`."""
        self.models = models
        self._centers = centers or CenterTable()
        self._grids: NDArray[np.float32] | None = None
        if models.grader is not None:
            entry = models.grader.entry
            self._grids = np.empty(
                (len(LEVELS), len(entry.channels), *entry.grid.shape), np.float32
            )

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle | None = None,
        options: RunOptions | None = None,
    ) -> Self:
        """Open the models of a bundle in this process.

        Args:
            bundle: the bundle or its folder; the packaged one where not given.
            options: backend, device, precision, threads, whether to use the detector, and vertebral centres; what
                concerns a run over many studies is ignored.

        Raises:
            BundleError: the bundle is missing, damaged or not what its manifest says.
            BackendError: the backend, device or precision is not available.
            UsageError: the vertebral centres cannot be used.
        """
        opened = (
            bundle
            if isinstance(bundle, Bundle)
            else Bundle.open(None if bundle is None else Path(bundle))
        )
        chosen = options or RunOptions()
        centers = given_centers(opened, chosen)
        return cls(PipelineModels(opened, chosen), centers)

    def close(self) -> None:
        """Release the models."""
        self.models.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def locate(self, study: Study) -> Detection:
        """Find the five disc levels of a study in its sagittal series.

        Returns:
            For each level its centre (patient LPS, mm), axes, size, confidence and source, and the warnings.

        Raises:
            StudyError: the study has no sagittal series.
            UsageError: the bundle has no detector, or the options do without it.
        """
        if self.models.detector is None:
            raise UsageError(
                "these models grade without looking for levels: open a bundle with a detector"
            )
        return self.models.find_levels(study.sagittal_stacks)

    def grids(
        self, study: Study, levels: Detection | Mapping[Level, DiscLevel]
    ) -> NDArray[np.float32]:
        """Cut the grids that the grader sees of a study.

        Args:
            study: the study, as ``read_study`` returns it.
            levels: where its levels are, as :meth:`locate` returns them.

        Returns:
            ``(5, C, D, H, W)`` float32, 0..1, in an array of its own: five levels from L1/L2 down, the grader's
            channels, then voxels from superior to inferior, anterior to posterior, and the patient's right to left.
            A level without a place of its own (source ``prior``) is all 0. With a grader whose recipe cuts between
            vertebrae, its axes are the recipe's, and given centres of the study go before ``levels``.

        Raises:
            StudyError: a recipe finds no point at a level, or not all its vertebrae.
            UsageError: the bundle has no grader of levels, or the options do without it.
        """
        if self.models.grader is None:
            raise UsageError(
                "these models grade a study as a whole: open a bundle with a grader of levels"
            )
        entry = self.models.grader.entry
        if not entry.grid_recipe.is_native:
            detection = (
                levels if isinstance(levels, Detection) else Detection(levels, (), ())
            )
            centers = self._centers_of(study) or self._detected(detection)
            if centers is None:
                raise StudyError(
                    Reason.NOT_LOCALIZED, "the detector did not find all six vertebrae"
                )
            return recipe_level_grids(study, centers, entry.grid_recipe)[0]
        places = levels.levels if isinstance(levels, Detection) else levels
        return level_grids(study, places, entry.layout)[0]

    def grade(self, study: Study, *, clock: StageClock | None = None) -> StudyResult:
        """Grade a study; whatever is wrong with it is in the result.

        Args:
            study: the study, as ``read_study`` returns it.
            clock: adds up the time of each stage; a new one where not given.

        Raises:
            BackendError, BundleError: a model that is opened late is not available.
        """
        clock = clock or StageClock()
        try:
            if study.reason is not None:
                return without_grade(study, study.reason, clock)
            return self._graded(study, clock)
        except StudyError as error:
            detail = error.detail if error.reason is Reason.INTERNAL_ERROR else None
            return without_grade(study, error.reason, clock, detail=detail)
        except MemoryError:
            return without_grade(study, Reason.OUT_OF_MEMORY, clock)
        except (
            BackendError,
            BundleError,
        ):  # a model that cannot be had is no study's fault
            raise
        except CompanionLostError:
            self.models.close()  # every connection; the next study connects anew
            raise
        except Exception as error:  # noqa: BLE001 - a bug costs one study, not the run
            if lacks_memory(error):
                return without_grade(study, Reason.OUT_OF_MEMORY, clock)
            return broken(
                study_key(study.study_id), error, clock, series_results(study)
            )

    def _graded(self, study: Study, clock: StageClock) -> StudyResult:
        grader = self.models.grader
        if grader is None:
            return self._graded_whole(study, undetected(study.sagittal_stacks), clock)
        centers = self._centers_of(study)
        if centers is not None:
            return self._graded_between(study, given_levels(centers), centers, clock)
        with clock.stage("detect"):
            detection = self.models.find_levels(study.sagittal_stacks)
        if all(disc.source == Source.PRIOR for disc in detection.levels.values()):
            return self._graded_whole(study, detection, clock)
        with clock.stage("detect"):
            refused = refusal(study.sagittal_stacks, detection, self.models.find_levels)
        if refused is not None:
            return without_grade(study, refused, clock)
        if grader.entry.grid_recipe.of_levels:
            return self._graded_between(
                study, detection, self._detected(detection), clock
            )
        with clock.grading(grader):
            grades = grade(
                study, detection.levels, grader, grader.entry, out=self._grids
            )
        if not grades.assessed.any():
            return without_grade(study, Reason.GAP_AT_LEVEL, clock, detection)
        return with_grades(study, detection, grades, clock, by=grader.entry)

    def _centers_of(self, study: Study) -> VertebralCenters | None:
        """Return the vertebral centres that the user gave for a study; None where there are none."""
        return self._centers.of_study(study_key(study.study_id))

    def _detected(self, detection: Detection) -> VertebralCenters | None:
        """Return the vertebral centres of a detection; None where the detector names vertebrae and lacks one."""
        detector = self.models.detector
        return detected_centers(
            detection, named=detector is not None and detector.entry.decoder == "vfr"
        )

    def _graded_between(
        self,
        study: Study,
        detection: Detection,
        centers: VertebralCenters | None,
        clock: StageClock,
    ) -> StudyResult:
        """Grade the levels of a study between its vertebrae; without all six, the study as a whole."""
        grader = self.models.grader
        assert grader is not None
        if centers is None:
            return self._graded_whole(study, detection, clock)
        with clock.grading(grader):
            grades = grade_between(
                study, centers, grader, grader.entry, out=self._grids
            )
        result = with_grades(study, detection, grades, clock, by=grader.entry)
        return between_vertebrae(result, centers, grader.entry.grid_recipe)

    def _graded_whole(
        self, study: Study, detection: Detection, clock: StageClock
    ) -> StudyResult:
        """Grade a study whose levels are not known, where the bundle has a model for that."""
        grader = self.models.whole_study_grader()
        if grader is None:
            return without_grade(study, Reason.NOT_LOCALIZED, clock, detection)
        with clock.grading(grader):
            grades = grade_whole_study(study, grader, grader.entry)
        if not grades.assessed.any():
            return without_grade(study, Reason.NOT_LOCALIZED, clock, detection)
        return with_grades(
            study, detection, grades, clock, Warn.WHOLE_STUDY_GRADER, by=grader.entry
        )
