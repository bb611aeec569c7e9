"""The public face for many studies: ``Engine.open(bundle).run(folder)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spine_engine.options import RunOptions
from spine_engine.run.folders import check_input
from spine_engine.run.run import Run, RunIdentity
from spine_engine.run.shards import WHOLE, Shard

if TYPE_CHECKING:
    from spine_engine.run.plan import RunPlan


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
        cls,
        bundle: str | Path | None = None,
        *,
        options: RunOptions | None = None,
        trust: bool = False,
    ) -> Engine:
        """Verify a bundle, the packaged one where none is named, and return an engine for it.

        Args:
            bundle: its folder. One that is named is tried in a process of its own first.
            options: how to run it.
            trust: use models of any operators, and try nothing.

        Raises:
            BundleError: the bundle is missing, damaged or not what its manifest says.
        """
        from spine_engine.bundle.examination import open_examined

        chosen = options or RunOptions()
        named = None if bundle is None else Path(bundle)
        return cls(open_examined(named, backend=chosen.backend, trust=trust), chosen)

    def run(
        self,
        folder: str | Path,
        output: str | Path | None = None,
        *,
        shard: Shard = WHOLE,
    ) -> Run:
        """Return a run over the DICOM files of ``folder``; iterate over it to carry it out.

        With ``output`` the results are written there and an interrupted run can be resumed; without, nothing is kept.
        Runs of the shards 1 to N of a folder, each with an output folder of its own, grade every study once, on as
        many machines as there are; :meth:`merge` joins what they wrote.

        Raises:
            UsageError: the input is not a readable folder, or the series descriptions or the vertebral centres cannot
                be used.
        """
        plan, identity = self._planned(folder, shard)
        return Run(plan, None if output is None else Path(output), identity=identity)

    def merge(
        self, shards: Sequence[str | Path], folder: str | Path, output: str | Path
    ) -> Run:
        """Return a run that takes over the results of the shards of ``folder`` and writes them into ``output``.

        It grades nothing but the studies whose files were spread over shards. Its files are those that one run over
        ``folder`` would have written.

        Raises:
            UsageError: the input is not a readable folder, or the series descriptions cannot be used.
        """
        plan, identity = self._planned(folder, WHOLE)
        plan = replace(plan, discover=lambda root: iter(()))
        return Run(
            plan,
            Path(output),
            identity=identity,
            shards=[Path(shard) for shard in shards],
        )

    def _planned(self, folder: str | Path, shard: Shard) -> tuple[RunPlan, RunIdentity]:
        from spine_engine.run.plan import plan_run
        from spine_engine.run.tuning import tuned

        root = check_input(Path(folder))
        options = tuned(self.options, self.bundle)
        plan = replace(plan_run(root, self.bundle, options), shard=shard)
        identity = RunIdentity(
            bundle=self.bundle.facts,
            options=options,
            series_descriptions=plan.series_descriptions,
            shard=shard,
            centers=plan.centers,
        )
        return plan, identity
