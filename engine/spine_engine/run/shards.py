"""Shards: the part of a folder that one of several runs grades, each into an output folder of its own."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spine_engine.dicom.discovery import WorkUnit
from spine_engine.errors import UsageError
from spine_engine.run.ledger import LEDGER_FILE, Ledger, LedgerReader

MAX_SHARDS: Final = 100_000

_SHARD: Final = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")
_SLURM: Final = (
    "SLURM_ARRAY_TASK_ID",
    "SLURM_ARRAY_TASK_MIN",
    "SLURM_ARRAY_TASK_COUNT",
)
_KUBERNETES: Final = "JOB_COMPLETION_INDEX"


@dataclass(frozen=True)
class Shard:
    """Shard ``index`` of ``count``, counted from 1. The only shard of 1 is the whole folder.

    Raises:
        UsageError: ``index`` is not between 1 and ``count``.
    """

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count <= MAX_SHARDS:
            raise UsageError(
                f"a shard is I/N with I from 1 to N (at most {MAX_SHARDS:,}), got {self}"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse ``I/N``.

        Raises:
            UsageError: ``text`` is not a shard.
        """
        match = _SHARD.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"--shard takes I/N, such as 3/16, or auto; got {text!r}")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def from_environment(
        cls, count: int | None = None, environment: Mapping[str, str] = os.environ
    ) -> Shard:
        """Return the shard of this task of a Slurm array, or of this pod of a Kubernetes Indexed Job.

        Slurm says how many tasks there are; Kubernetes does not, so ``count`` is needed there.

        Raises:
            UsageError: neither has set its variables, they hold no numbers, or ``count`` is missing or differs.
        """
        if all(name in environment for name in _SLURM):
            task, first, tasks = (_number(environment, name) for name in _SLURM)
            if count not in (None, tasks):
                raise UsageError(
                    f"--shards is {count}, but the Slurm array has {tasks} tasks: leave --shards out"
                )
            return cls(task - first + 1, tasks)
        if _KUBERNETES in environment:
            if count is None:
                raise UsageError(
                    f"--shard auto with {_KUBERNETES} needs --shards N, the completions of the job"
                )
            return cls(_number(environment, _KUBERNETES) + 1, count)
        raise UsageError(
            f"--shard auto needs {', '.join(_SLURM)} (a Slurm array) or {_KUBERNETES} "
            "(a Kubernetes Indexed Job) in the environment; give --shard I/N instead"
        )

    def holds(self, unit: WorkUnit) -> bool:
        """Whether this shard grades ``unit``: decided by its study id, or by its path where that is not known yet."""
        name = unit.key if unit.study_id is None else unit.study_id
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1


WHOLE: Final = Shard()
"""The whole folder."""


def missing_shards(given: Iterable[Shard]) -> list[int]:
    """Return the indices of the shards that were not given.

    Raises:
        UsageError: they are shards of different numbers, or one was given twice.
    """
    shards = list(given)
    counts = sorted({shard.count for shard in shards})
    if len(counts) != 1:
        raise UsageError(
            f"these are shards of {' and of '.join(map(str, counts))}: merge those of one set"
        )
    indices = [shard.index for shard in shards]
    for index in indices:
        if indices.count(index) > 1:
            raise UsageError(
                f"shard {index}/{counts[0]} is given twice: name each output folder once"
            )
    return sorted(set(range(1, counts[0] + 1)) - set(indices))


def join_shards(ledger: Ledger, folders: Sequence[Path]) -> list[str]:
    """Take the results of shards over into ``ledger``; return a phrase for each shard that is missing or has not ended.

    Raises:
        UsageError: the folders are not shards of one set.
        OutputError: a folder holds no results, or results made with other facts.
    """
    if not folders:
        return []
    given = {}
    for folder in folders:
        with closing(LedgerReader(folder / LEDGER_FILE)) as reader:
            given[folder] = (
                Shard.parse(reader.fact("shard") or str(WHOLE)),
                reader.ended,
            )
    shards = [shard for shard, _ in given.values()]
    missing = [
        f"{index}/{shards[0].count} was not given" for index in missing_shards(shards)
    ]
    ledger.clear()
    for folder, (shard, ended) in given.items():
        ledger.join(folder / LEDGER_FILE)
        if not ended:
            missing.append(f"{shard} in {folder} has not ended: resume its run")
    return missing


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise UsageError(
            f"{name} must be a whole number, got {environment[name]!r}"
        ) from None
