"""Seconds a study of each baseline and where they go: ``python -m spine_bench.baselines.seconds FOLDER``.

A look without the harness: each system in turn, alone, in a process of its own, after one warm-up study. Processor
seconds are those of the system and its processes; on a machine that others use as well they say more than wall time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import psutil

from spine_bench.baselines.registry import SYSTEMS, open_system
from spine_bench.harness.interfaces import Answer, Sample, SystemUnderTest
from spine_engine.dicom import WorkUnit, discover


@dataclass
class Row:
    """One system: seconds a study, wall and of processors; wall and processor seconds a study by stage; failures."""

    system: str
    studies: int
    wall_s: float
    processor_s: float
    failed: int
    stages_s: dict[str, float]
    facts: dict[str, object] = field(default_factory=dict)


def samples_of(root: Path, count: int) -> list[Sample]:
    """Return the first ``count`` studies under a folder."""
    units = (unit for unit in discover(root) if isinstance(unit, WorkUnit))
    return [Sample(root=root, unit=unit) for unit in islice(units, count)]


def measure(name: str, bundle: Path | None, samples: Sequence[Sample]) -> Row:
    """Open a system, grade one study for warmth, then every study, and close it."""
    system = open_system(name, bundle)
    prepare = getattr(system, "prepare", None)
    if prepare is not None:
        prepare(samples)
    system.open()
    try:
        _graded(system, samples[:1])
        wall, processor = time.perf_counter(), _processor_s()
        answers = _graded(system, samples)
        wall, processor = time.perf_counter() - wall, _processor_s() - processor
        facts = system.facts()
    finally:
        system.close()
    stages: dict[str, float] = {}
    for answer in answers:
        for stage, seconds in answer.stage_seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    count = len(samples)
    return Row(
        system=name,
        studies=count,
        wall_s=wall / count,
        processor_s=processor / count,
        failed=sum(answer.probabilities is None for answer in answers),
        stages_s={stage: seconds / count for stage, seconds in stages.items()},
        facts=facts,
    )


def _graded(system: SystemUnderTest, samples: Sequence[Sample]) -> list[Answer]:
    answers: list[Answer] = []
    every = threading.Event()

    def done(answer: Answer) -> None:
        answers.append(answer)
        if len(answers) == len(samples):
            every.set()

    for sample in samples:
        system.submit(sample, done)
    every.wait()
    return answers


def _processor_s() -> float:
    """Return the processor seconds of this process and of those that it started and that still run."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown."""
    lines = ["| system | studies | s a study, wall | processor | failed | wall by stage |", "|---|---|---|---|---|---|"]
    for row in rows:
        stages = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in row.stages_s.items())
        lines.append(
            f"| {row.system} | {row.studies} | {row.wall_s:.3f} | {row.processor_s:.3f} | {row.failed} | {stages} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the systems, print the table, and write JSON where asked; 1 when a study failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="studies")
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--bundle", type=Path, help="a bundle's folder; the packaged one by default")
    parser.add_argument("--studies", type=int, default=10)
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(arguments)
    samples = samples_of(options.folder, options.studies)
    if not samples:
        parser.error(f"{options.folder} holds no study")
    rows: list[Row] = []
    for name in options.systems:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows.append(pool.submit(measure, name, options.bundle, samples).result())
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2), encoding="utf-8")
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
