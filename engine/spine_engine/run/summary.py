"""What a run did, as ``run.json`` tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from spine_engine.results import Status
from spine_engine.run.shards import WHOLE, Shard

EXIT_ALL_GRADED: Final = 0
EXIT_SOME_NOT_GRADED: Final = 8
EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, what a shell reports for a program ended by Ctrl-C; also after SIGTERM."""

RESEARCH_NOTE: Final = "Research use only; not a medical device."


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The numbers of a run and of the output folder it left behind.

    Attributes:
        engine_version: version of this package.
        bundle: name, version, digest and path of the models; the path is empty for the packaged ones.
        devices: what each model really ran on, by role; empty when no study has needed one.
        options: the options of the run, as given.
        interrupted: it was stopped before its end; the same command goes on.
        incomplete: studies recorded without a file of theirs that could not be read; the next run tries them again.
        statuses, reasons: studies in the output folder by status, and those not graded by reason.
        refused_files: files and folders that were not used, by reason; ``refused_examples`` names the first of them.
        shard: the part of the input that the output folder holds.
        missing_shards: of a merge, the shards that were not given or had not ended, each with what is wrong.
        walked: units walked by this run; ``resumed`` had been done by earlier ones.
        wall_s: duration of this run; ``stage_seconds`` the time its studies spent in each stage, over all workers.
        digests: SHA-256 of the other result files by name, which were written by the same finish.
        series_tables: names of the tables of series that were used, and of those left out, each with the reason.
        peak_memory_bytes: highest resident memory of the main process and of each worker.
    """

    engine_version: str
    bundle: Mapping[str, str]
    devices: Mapping[str, Mapping[str, str]]
    options: Mapping[str, Any]
    interrupted: bool
    shard: Shard = WHOLE
    missing_shards: Sequence[str] = ()
    incomplete: int = 0
    statuses: Mapping[str, int]
    reasons: Mapping[str, int]
    refused_files: Mapping[str, int]
    refused_examples: list[tuple[str, str]]
    walked: int
    resumed: int
    wall_s: float
    stage_seconds: Mapping[str, float]
    peak_memory_bytes: Mapping[str, Any]
    digests: Mapping[str, str] = field(default_factory=dict)
    series_tables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def studies(self) -> int:
        """How many studies the output folder holds."""
        return sum(self.statuses.values())

    @property
    def exit_code(self) -> int:
        """The exit code of ``spine-engine run``."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        some = self.studies > 0 or self.shard.count > 1
        all_graded = some and self.statuses.get(Status.GRADED, 0) == self.studies
        return (
            EXIT_ALL_GRADED if all_graded and not self._lost else EXIT_SOME_NOT_GRADED
        )

    @property
    def _lost(self) -> bool:
        """Whether a unit died before its study's id was known, or a file, folder or shard could not be read."""
        reasons = (
            "worker_died",
            "timeout",
            "internal_error",
            "out_of_memory",
            "unreadable",
        )
        return (
            self.incomplete > 0
            or len(self.missing_shards) > 0
            or any(self.refused_files.get(reason) for reason in reasons)
        )

    def record(self) -> dict[str, Any]:
        """Return the content of ``run.json``."""
        return {
            "engine_version": self.engine_version,
            "note": RESEARCH_NOTE,
            "bundle": dict(self.bundle),
            "devices": {role: dict(device) for role, device in self.devices.items()},
            "options": dict(self.options),
            "interrupted": self.interrupted,
            "shard": str(self.shard),
            "missing_shards": list(self.missing_shards),
            "studies": {
                "total": self.studies,
                **{str(status): self.statuses.get(status, 0) for status in Status},
                "incomplete": self.incomplete,
            },
            "reasons": dict(sorted(self.reasons.items())),
            "refused_files": {
                "total": sum(self.refused_files.values()),
                "by_reason": dict(self.refused_files),
            },
            "refused_examples": [
                {"path": path, "reason": reason}
                for path, reason in self.refused_examples
            ],
            "units": {"walked": self.walked, "resumed": self.resumed},
            "wall_s": round(self.wall_s, 3),
            "studies_per_s": round(self.walked / self.wall_s, 4)
            if self.wall_s > 0
            else 0.0,
            "stage_seconds": {
                stage: round(seconds, 3)
                for stage, seconds in sorted(self.stage_seconds.items())
            },
            "peak_memory_bytes": dict(self.peak_memory_bytes),
            "series_tables": dict(self.series_tables),
            "sha256": dict(self.digests),
        }
