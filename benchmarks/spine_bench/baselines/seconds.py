"""Seconds a study of each system and where they go.

A short look: each system in turn, alone, in a process of its own, once it is warm. Processor seconds are those of the
system and its processes; on a machine that others use as well they say more than wall time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spine_bench.findings import BundleFolder, Findings, Input, Table, chosen, progress
from spine_bench.harness.host import Host
from spine_bench.harness.interfaces import StudyLibrary, library_of
from spine_bench.harness.loadgen import Load, Scenario
from spine_bench.harness.systems import BASELINES


def measure(
    folder: Input = None,
    systems: Annotated[
        str, typer.Option(help="Which systems, with commas.")
    ] = ",".join(BASELINES),
    bundle: BundleFolder = None,
    studies: int = 10,
) -> Findings:
    """Measure the seconds a study that each system takes, and by stage."""
    library = library_of(folder, studies)
    rows = []
    for name in chosen(systems, BASELINES, "system"):
        rows.append(measured(name, library, bundle))
        progress(f"{name}: {rows[-1]['processor_s']:.3f} processor s a study")
    return Findings(
        tables=[
            Table(
                title="Seconds a study",
                columns=(
                    "system",
                    "studies",
                    "s a study, wall",
                    "processor",
                    "failed",
                    "wall by stage",
                ),
                rows=[
                    (
                        row["system"],
                        str(row["studies"]),
                        f"{row['wall_s']:.3f}",
                        f"{row['processor_s']:.3f}",
                        str(row["failed"]),
                        ", ".join(
                            f"{stage} {seconds:.3f}"
                            for stage, seconds in row["stages_s"].items()
                        ),
                    )
                    for row in rows
                ],
            )
        ],
        record=rows,
        failure="a study was not graded" if any(row["failed"] for row in rows) else "",
    )


def measured(name: str, library: StudyLibrary, bundle: Path | None) -> dict[str, Any]:
    """Open a system, let it grade every study once, and close it."""
    host = Host(name, library, bundle)
    try:
        warm = host.open()
        outcome = host.measure(Load(scenario=Scenario.OFFLINE, queries=len(library)))
    finally:
        host.close()
    return {
        "system": name,
        "studies": len(library),
        "wall_s": outcome.wall_s / len(library),
        "processor_s": outcome.cpu_s,
        "failed": sum(outcome.failures.values()),
        "stages_s": dict(outcome.stage_seconds),
        "facts": warm.facts,
    }
