"""The public face for many studies: ``Engine.open(bundle).run(folder)``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spine_engine.options import RunOptions
from spine_engine.run.folders import check_input
from spine_engine.run.run import Run, RunIdentity


class Engine:
    """Grades folders of studies with one verified bundle.

    Example::

        from spine_engine import Engine

        for study in Engine.open().run("exams"):
            print(study.study_id, study.status)
    """

    def __init__(self, bundle: Any, options: RunOptions) -> None:
        """Use :meth:`open`."""
        self.bundle = bundle
        self.options = options

    @classmethod
    def open(
        cls, bundle: str | Path | None = None, *, options: RunOptions | None = None
    ) -> Engine:
        """Verify a bundle, the packaged one where none is named, and return an engine for it.

        Raises:
            BundleError: the bundle is missing, damaged or not what its manifest says.
        """
        from spine_engine.bundle import Bundle

        return cls(
            Bundle.open(None if bundle is None else Path(bundle)),
            options or RunOptions(),
        )

    def run(self, folder: str | Path, output: str | Path | None = None) -> Run:
        """Return a run over the DICOM files of ``folder``; iterate over it to carry it out.

        With ``output`` the results are written there and an interrupted run can be resumed; without, nothing is kept.

        Raises:
            UsageError: the input is not a readable folder, or the series descriptions cannot be used.
        """
        from spine_engine.run.plan import plan_run
        from spine_engine.run.tuning import tuned

        root = check_input(Path(folder))
        options = tuned(self.options, self.bundle)
        plan = plan_run(root, self.bundle, options)
        identity = RunIdentity(
            bundle=self.bundle.facts,
            options=options,
            series_descriptions=plan.series_descriptions,
        )
        return Run(plan, None if output is None else Path(output), identity=identity)
